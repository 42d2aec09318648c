"""Gumbel search: Sequential Halving, completed values and the improved policy by hand; its degeneracies."""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError, CriticError, DataError
from llm_mcts.result import SearchResult
from llm_mcts.search.gumbel import (
    GumbelConfig,
    completed_sigma,
    gumbel,
    improved_policy,
    mixed_value,
    sequential_halving,
)
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, State, Step
from tests.search_cases import QUESTION, ListedPolicy, NoiseCritic, TableCritic, noise_script, run, scripted, summary


def node_with(value: float, children: Sequence[tuple[float, int, float]]) -> Node:
    """A node of this value whose children have (prior, visits, value sum)."""
    node = Node(Step(""))
    node.value = value
    for i, (prior, n, w) in enumerate(children):
        child = Node(Step("abcdef"[i]), prior, node, i)
        child.visit_count, child.value_sum = n, w
        node.children.append(child)
    return node


@pytest.mark.parametrize(
    ("considered", "simulations", "rounds"),
    [
        # log2(4) = 2 phases of 8 simulations: 4 steps get floor(16 / (2 * 4)) = 2 visits, then 2 steps 16 / (2 * 2) = 4.
        (4, 16, [(4, 0), (4, 1), (2, 2), (2, 3), (2, 4), (2, 5)]),
        # 8 steps, 24 simulations, 3 phases: floor(24 / 24) = 1 visit for 8; floor(24 / 12) = 2 for 4; floor(24 / 6) = 4 for 2.
        (8, 24, [(8, 0), (4, 1), (4, 2), (2, 3), (2, 4), (2, 5), (2, 6)]),
        # Cut at the end: 5 simulations for 4 steps: one visit each (floor(5 / 8) raised to 1), one is left.
        (4, 5, [(4, 0), (1, 1)]),
        (1, 3, [(1, 0), (1, 1), (1, 2)]),
        (2, 1, [(1, 0)]),
        # 3 steps: log2(3) rounded up is 2 phases; 12 / (2 * 3) = 2 visits, then of max(2, 3 // 2) = 2 steps 12 / (2 * 2) = 3.
        (3, 12, [(3, 0), (3, 1), (2, 2), (2, 3), (2, 4)]),
    ],
)
def test_sequential_halving_by_hand(considered: int, simulations: int, rounds: list[tuple[int, int]]) -> None:
    assert list(sequential_halving(considered, simulations)) == rounds


@given(st.integers(1, 20), st.integers(1, 300))
def test_sequential_halving_spends_what_there_is(considered: int, simulations: int) -> None:
    rounds = list(sequential_halving(considered, simulations))
    assert sum(n for n, _ in rounds) == simulations
    assert [visits for _, visits in rounds] == list(range(len(rounds)))
    assert [n for n, _ in rounds] == sorted((n for n, _ in rounds), reverse=True)


def test_mixed_value_by_hand() -> None:
    # Visited: priors 0.5 and 0.3, q 0.8/2 = 0.4 and 0.9: (0.5*0.4 + 0.3*0.9) / 0.8 = 0.5875; N = 3.
    # v_mix = (0.2 + 3 * 0.5875) / 4 = 0.490625
    node = node_with(0.2, [(0.5, 2, 0.8), (0.3, 1, 0.9), (0.2, 0, 0.0)])
    assert mixed_value(node) == pytest.approx(0.490625)
    assert mixed_value(node_with(0.2, [(1.0, 0, 0.0)])) == 0.2


def test_completed_sigma_by_hand() -> None:
    # (50 + 2) * 0.1 = 5.2 times q: 0.4, 0.9 and, unvisited, v_mix.
    node = node_with(0.2, [(0.5, 2, 0.8), (0.3, 1, 0.9), (0.2, 0, 0.0)])
    assert completed_sigma(node, 50.0, 0.1) == pytest.approx([2.08, 4.68, 2.55125])


def test_improved_policy_by_hand() -> None:
    # Weights prior * exp(sigma): 0.5 e^2.08 = 4.002234, 0.3 e^4.68 = 32.331221, 0.2 e^2.55125 = 2.564608; sum 38.898063.
    node = node_with(0.2, [(0.5, 2, 0.8), (0.3, 1, 0.9), (0.2, 0, 0.0)])
    assert improved_policy(node, 50.0, 0.1) == pytest.approx([0.102890, 0.831178, 0.065932], abs=1e-5)


def test_an_improved_policy_without_values_is_the_prior() -> None:
    node = node_with(0.5, [(0.5, 0, 0.0), (0.3, 0, 0.0), (0.2, 0, 0.0)])
    assert improved_policy(node) == pytest.approx([0.5, 0.3, 0.2])


STEPS = {"": [Step("a", log(0.6)), Step("b", log(0.3)), Step("c", log(0.1))]}
ONE = GumbelConfig(num_simulations=1, num_considered=3, root_width=3, rollouts=0, rollout_weight=0.0)


def search(config: GumbelConfig, policy: Policy, critic: Critic, seed: int = 0) -> SearchResult:
    return run(gumbel(QUESTION, policy, critic, config, seed))


def gumbels(seed: int, n: int) -> list[float]:
    """The search's noise, from its documented seed: -log of exponential draws."""
    import random

    draw = random.Random(derive_seed(seed, QUESTION, "", "gumbel"))
    return [-log(draw.expovariate(1.0)) for _ in range(n)]


def test_with_one_simulation_the_step_of_highest_noise_and_logit_is_chosen() -> None:
    chosen = []
    for seed in range(40):
        result = search(ONE, ListedPolicy(STEPS), TableCritic({}, default=0.5), seed)
        scores = [g + log(p) for g, p in zip(gumbels(seed, 3), (0.6, 0.3, 0.1), strict=True)]
        assert result.steps[0] == "abc"[scores.index(max(scores))]
        chosen.append(result.steps[0])
    assert set(chosen) == {"a", "b", "c"}


def test_steps_are_drawn_by_their_priors() -> None:
    # argmax of g + logits is a sample of the prior (the Gumbel-max trick): 0.6, 0.3, 0.1.
    policy, critic = ListedPolicy(STEPS), TableCritic({}, default=0.5)
    chosen = [search(ONE, policy, critic, seed).steps[0] for seed in range(1500)]
    for step, p in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert chosen.count(step) / 1500 == pytest.approx(p, abs=0.04)


def test_values_decide_where_they_differ_enough() -> None:
    # sigma is (50 + N) q here: a difference of 0.5 in value is 25 in the score, far above the noise.
    values = {"": 0.5, "a": 0.2, "b": 0.3, "c": 0.8}
    config = replace(ONE, num_simulations=4, c_scale=1.0, max_depth=1)
    for seed in range(20):
        result = search(config, ListedPolicy(STEPS), TableCritic(values, default=0.2), seed)
        assert result.steps[0] == "c"


def test_a_tree_that_the_plan_did_not_grow_is_refused() -> None:
    policy, _ = scripted(noise_script(width=5))
    config = GumbelConfig(num_simulations=20)
    grown = search(config, policy, NoiseCritic()).tree
    assert grown is not None
    with pytest.raises(DataError, match="no stage of this plan"):
        run(gumbel(QUESTION, policy, NoiseCritic(), replace(config, num_simulations=64), 0, grown))
    step = max(grown.root.children, key=lambda child: child.visit_count)
    with pytest.raises(DataError, match="no stage of this plan"):
        run(gumbel(QUESTION, policy, NoiseCritic(), config, 0, grown.subtree(step)))


def test_a_round_that_fails_is_taken_back_whole() -> None:
    class Failing(NoiseCritic):
        def __init__(self, at: int) -> None:
            self.calls, self.at = 0, at

        async def score(self, states: Sequence[State]) -> list[float]:
            self.calls += 1
            if self.calls == self.at:
                raise ConnectionError("gone")
            return await super().score(states)

    config = GumbelConfig(num_simulations=16, num_considered=8)
    whole = summary(search(config, scripted(noise_script(width=6))[0], NoiseCritic()))
    for at in range(1, 6):
        tree = Tree(QUESTION)
        policy, _ = scripted(noise_script(width=6))
        with pytest.raises(CriticError, match="gone"):
            run(gumbel(QUESTION, policy, Failing(at), config, 0, tree))
        assert summary(run(gumbel(QUESTION, policy, NoiseCritic(), config, 0, tree))) == whole


def test_the_maximum_depth_holds_at_the_root() -> None:
    policy, _ = scripted(noise_script(width=4, depth=5))
    below = Tree(QUESTION, (Step("step 0a"),), "0")
    run(gumbel(QUESTION, policy, NoiseCritic(), GumbelConfig(num_simulations=4, max_depth=1), 0, below))
    assert not below.root.children
    run(gumbel(QUESTION, policy, NoiseCritic(), GumbelConfig(num_simulations=4, max_depth=2), 0, below))
    assert {node.depth for node in below.nodes()} == {1, 2}


def test_a_step_of_nearly_no_probability_is_no_error() -> None:
    steps = {"": [Step("a", -1.0), Step("b", -2000.0)], "a": [Step("c", -1.0), Step("d", -3000.0)], "b": [Step("e", -1.0)]}
    result = search(replace(ONE, num_simulations=2, num_considered=2), ListedPolicy(steps, "1"), TableCritic({}, default=0.5))
    assert result.answer == "1"


def test_visits_follow_the_plan() -> None:
    policy, _ = scripted(noise_script(width=4))
    config = GumbelConfig(num_simulations=16, num_considered=4, root_width=12, rollouts=0, rollout_weight=0.0)
    for seed in range(10):
        tree = search(config, policy, NoiseCritic(), seed).tree
        assert tree is not None
        visits = sorted((child.visit_count for child in tree.root.children), reverse=True)
        if len(visits) >= 4:
            assert visits[:4] == [6, 6, 2, 2]  # by the plan for 4 steps and 16 simulations above
            assert sum(visits[4:]) == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_considered": 9}, "num_considered is 9 of root_width 8"),
        ({"num_considered": 0}, "num_considered is 0"),
        ({"c_scale": -1.0}, "c_scale is -1"),
        ({"answer": "visits"}, "'visits'"),
        ({"num_simulations": 0}, "num_simulations is 0"),
    ],
)
def test_invalid_settings_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GumbelConfig(**values)
