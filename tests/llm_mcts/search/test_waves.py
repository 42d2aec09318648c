"""Several simulations at once: virtual loss and waves by hand; a wave of one is the plain loop."""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

import pytest

from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig, build
from llm_mcts.search.waves import apply_virtual_loss, simulate_together, undo_virtual_loss
from llm_mcts.tree import Tree
from llm_mcts.types import Step
from tests.search_cases import (
    PLAIN,
    QUESTION,
    TRACED_STEPS,
    TRACED_VALUES,
    ListedPolicy,
    NoiseCritic,
    TableCritic,
    check_idle,
    check_root_visits,
    check_visits,
    noise_script,
    run,
    scripted,
    statistics,
    traced_tree,
)


def test_virtual_loss_is_counted_from_the_leaf_to_the_root() -> None:
    tree = Tree("q")
    tree.expand(tree.root, [Step("a"), Step("b")], [0.5, 0.5])
    a, b = tree.root.children
    apply_virtual_loss(a)
    apply_virtual_loss(a)
    apply_virtual_loss(tree.root)
    assert (tree.root.in_flight, a.in_flight, b.in_flight) == (3, 2, 0)
    undo_virtual_loss(a)
    assert (tree.root.in_flight, a.in_flight, b.in_flight) == (2, 1, 0)


def test_virtual_loss_by_hand() -> None:
    """Two simulations at once."""
    # Both stop at the root, which is expanded. The first chooses while the second is in flight: N = 1 + 1, sqrt 2:
    # a 0.5 + 1.41421*0.6 = 1.349, b 0.5 + 1.41421*0.4 = 1.066. a.
    # The second sees a lost visit at a: a 0/1 + 1.41421*0.6/2 = 0.424, b 1.066. b. (Without it: a again.)
    # Without it the second is taken back; the next one sees a's 0.9: N = 2, a 0.9 + 1.41421*0.6/2 = 1.324,
    # b (0.5 + 0.9)/2 + 1.41421*0.4 = 1.266, and goes below a.
    tree = traced_tree(
        replace(PLAIN, num_simulations=2, num_parallel=2), critic=TableCritic({**TRACED_VALUES, "a": 0.9}, default=0.5)
    )
    assert statistics(tree) == {"": (3, 2.2), "0": (1, 0.9), "1": (1, 0.8)}
    check_idle(tree)


def test_without_virtual_loss_simulations_do_not_see_each_other() -> None:
    critic = TableCritic({**TRACED_VALUES, "a": 0.9}, default=0.5)
    tree = traced_tree(replace(PLAIN, num_simulations=2, num_parallel=2, virtual_loss=0.0), critic=critic)
    assert statistics(tree) == {"": (3, 1.5), "0": (2, 1.0), "0.0": (1, 0.1)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"revisit": False},
        {"widening": WideningConfig(kind="progressive", k=1.5)},
        {"normalise": "tree", "selection": "uct"},
    ],
)
def test_a_wave_of_one_is_the_plain_loop(settings: dict[str, Any]) -> None:
    config = MCTSConfig(num_simulations=25, num_parallel=1, **settings)

    async def grown(together: bool) -> Tree:
        tree = Tree(QUESTION)
        search = build(tree, scripted(noise_script(width=4, depth=4))[0], NoiseCritic(), config, 3, None)
        await search.evaluate_root()
        for _ in range(25):
            await (simulate_together(search, [tree.root]) if together else search.simulate())
        check_idle(tree)
        return tree

    assert run(grown(True)).to_dict() == run(grown(False)).to_dict()


def test_simulations_from_chosen_steps_are_in_flight_until_they_are_evaluated() -> None:
    seen: list[tuple[int, int]] = []
    tree = Tree(QUESTION)

    class Watching(TableCritic):
        async def score(self, states: Sequence[Any]) -> list[float]:
            seen.append((tree.root.in_flight, sum(child.in_flight for child in tree.root.children)))
            return await super().score(states)

    search = build(tree, ListedPolicy(TRACED_STEPS), Watching(TRACED_VALUES, default=0.5), PLAIN, 0, None)

    async def go() -> None:
        await search.evaluate_root()
        await simulate_together(search, [tree.root])
        await simulate_together(search, [tree.root.children[1], tree.root.children[0]])

    run(go())
    # The root alone; then a; then b and, below a, c: two under way at the root, one at each child.
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert statistics(tree) == {"": (4, 1.6), "0": (2, 0.3), "0.0": (1, 0.1), "1": (1, 0.8)}
    check_idle(tree)


def test_of_simulations_that_meet_at_a_new_leaf_one_counts_and_at_a_known_one_all_do() -> None:
    # One step, which ends the solution, worth 0.75; three simulations at once.
    policy = ListedPolicy({"": [Step("#### 1", -1.0, 1, True, "1")]})
    tree = Tree(QUESTION)
    search = build(tree, policy, TableCritic({"": 0.5, "#### 1": 0.75}), replace(PLAIN, num_parallel=3), 0, None)

    async def go() -> list[tuple[int, float]]:
        await search.evaluate_root()
        await simulate_together(search, [tree.root] * 3)
        after_one = tree.root.visit_count, tree.root.value_sum
        await simulate_together(search, [tree.root] * 3)
        return [after_one, (tree.root.visit_count, tree.root.value_sum)]

    assert run(go()) == [(2, 1.25), (5, 3.5)]  # 0.5 + 0.75; then three times 0.75 more
    assert tree.root.children[0].visit_count == 4


@pytest.mark.parametrize("virtual_loss", [0.0, 1.0, 3.0])
def test_invariants_hold_for_simulations_that_meet_at_a_leaf(virtual_loss: float) -> None:
    # The policy is nearly sure of its first step, so the simulations under way follow each other there.
    class Sure(ListedPolicy):
        async def propose(self, state: Any, n: int, seed: int) -> list[Step]:
            return [Step(f"{len(state.steps)}a", log(0.98)), Step(f"{len(state.steps)}b", log(0.02))]

    config = MCTSConfig(num_simulations=32, num_parallel=4, virtual_loss=virtual_loss, rollouts=0, rollout_weight=0.0)
    tree = traced_tree(config, Sure({}), TableCritic({}, default=0.1))
    check_visits(tree)


def test_parallel_simulations_go_beyond_the_number_by_less_than_a_wave() -> None:
    for num_parallel in (1, 3, 7, 50):
        tree = traced_tree(MCTSConfig(num_simulations=20, num_parallel=num_parallel), scripted()[0], NoiseCritic(), 1)
        check_root_visits(tree, 20, num_parallel)
