"""Monte-Carlo tree search: hand-traced trees, a game with a known optimum, invariants."""

import asyncio
from dataclasses import replace
from math import log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.engines.base import Request
from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.tree_search import backup
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, Policy, Problem, Step
from tests.search_cases import (
    QUESTION,
    ListedPolicy,
    NoiseCritic,
    SecretGame,
    TableCritic,
    check_depth,
    check_idle,
    check_no_gold,
    check_priors,
    check_q_range,
    check_root_visits,
    check_round_trip,
    check_value_sums,
    check_visits,
    noise_script,
    run,
    scripted,
    summary,
)


def step(text: str, p: float, answer: str | None = None) -> Step:
    return Step(text, log(p), 1, answer is not None, answer)


STEPS = {
    "": [step("a", 0.6), step("b", 0.4)],
    "a": [step("c", 0.5), step("d", 0.5)],
    "b": [step("#### 1", 0.7, "1"), step("e", 0.3)],
}
VALUES = {"": 0.5, "a": 0.2, "b": 0.8, "b\n#### 1": 1.0, "b\ne": 0.4, "a\nc": 0.1, "a\nd": 0.3, "a\n#### 5": 0.6}
PLAIN = MCTSConfig(num_simulations=3, c_puct=1.0, rollouts=0, rollout_weight=0.0, num_parallel=1)


def search(config: MCTSConfig, policy: Policy | None = None, critic: Critic | None = None, seed: int = 0) -> SearchResult:
    return run(mcts(QUESTION, policy or ListedPolicy(STEPS), critic or TableCritic(VALUES, default=0.5), config, seed))


def tree_of(config: MCTSConfig, policy: Policy | None = None, critic: Critic | None = None, seed: int = 0) -> Tree:
    tree = search(config, policy, critic, seed).tree
    assert tree is not None
    return tree


def statistics(tree: Tree) -> dict[str, tuple[int, float]]:
    return {n.key(): (n.visit_count, pytest.approx(n.value_sum)) for n in tree.nodes() if n.visit_count}


def test_backup_by_hand() -> None:
    tree = Tree("q")
    tree.expand(tree.root, [Step("a"), Step("b")], [0.5, 0.5])
    a, b = tree.root.children
    tree.expand(a, [Step("c")], [1.0])
    (c,) = a.children
    c.value = 0.25
    backup(c)
    backup(c)
    b.value = 1.0
    backup(b)
    # root: 0.25 + 0.25 + 1 over 3 visits; a and c: 0.5 over 2; b: 1 over 1.
    assert [(n.visit_count, n.value_sum) for n in (tree.root, a, c, b)] == [(3, 1.5), (2, 0.5), (2, 0.5), (1, 1.0)]
    assert tree.root.q_value == 0.5


def test_puct_by_hand() -> None:
    """Three simulations with c = 1, each after the one before."""
    # The root alone is worth 0.5.
    # 1: the root is expanded. N = 1, q = 0.5: a 0.5 + 1*0.6 = 1.1, b 0.5 + 0.4 = 0.9. a, worth 0.2.
    # 2: N = 2, q = 0.35, sqrt 2 = 1.41421: a 0.2 + 1.41421*0.6/2 = 0.624, b 0.35 + 1.41421*0.4 = 0.916. b, worth 0.8.
    # 3: N = 3, sqrt 3 = 1.73205: a 0.2 + 1.73205*0.6/2 = 0.720, b 0.8 + 1.73205*0.4/2 = 1.146. b is expanded;
    #    N = 1, q = 0.8: #### 1 0.8 + 0.7, e 0.8 + 0.3. #### 1, worth 1.0.
    tree = tree_of(PLAIN)
    assert statistics(tree) == {"": (4, 2.5), "0": (1, 0.2), "1": (2, 1.8), "1.0": (1, 1.0)}
    assert [n.prior for n in tree.nodes()] == pytest.approx([1.0, 0.6, 0.4, 0.7, 0.3])


def test_uct_by_hand() -> None:
    """Five simulations with c = 1, each after the one before."""
    # The root alone is worth 0.5. 1: unvisited a, 0.2. 2: unvisited b, 0.8.
    # 3: N = 3, sqrt(2 ln 3) = 1.482304: a 0.2 + 1.482 = 1.682, b 0.8 + 1.482. b is expanded: unvisited #### 1, 1.0.
    # 4: N = 4, sqrt(2 ln 4) = 1.665109: a 0.2 + 1.665 = 1.865, b 1.8/2 + 1.665/sqrt 2 = 0.9 + 1.177 = 2.077.
    #    Below b: unvisited e, 0.4.
    # 5: N = 5, sqrt(2 ln 5) = 1.794123: a 0.2 + 1.794 = 1.994, b 2.2/3 + 1.794/sqrt 3 = 0.733 + 1.036 = 1.769.
    #    a is expanded: unvisited c, 0.1.
    tree = tree_of(replace(PLAIN, num_simulations=5, selection="uct"))
    assert statistics(tree) == {
        "": (6, 3.0),
        "0": (2, 0.3),
        "0.0": (1, 0.1),
        "1": (3, 2.2),
        "1.0": (1, 1.0),
        "1.1": (1, 0.4),
    }


def test_virtual_loss_by_hand() -> None:
    """Two simulations at once."""
    # Both stop at the root, which is expanded. The first chooses while the second is in flight: N = 1 + 1, sqrt 2:
    # a 0.5 + 1.41421*0.6 = 1.349, b 0.5 + 1.41421*0.4 = 1.066. a.
    # The second sees a lost visit at a: a 0/1 + 1.41421*0.6/2 = 0.424, b 1.066. b. (Without it: a again.)
    # Without it the second is taken back; the next one sees a's 0.9: N = 2, a 0.9 + 1.41421*0.6/2 = 1.324,
    # b (0.5 + 0.9)/2 + 1.41421*0.4 = 1.266, and goes below a.
    tree = tree_of(replace(PLAIN, num_simulations=2, num_parallel=2), critic=TableCritic({**VALUES, "a": 0.9}, default=0.5))
    assert statistics(tree) == {"": (3, 2.2), "0": (1, 0.9), "1": (1, 0.8)}
    check_idle(tree)


def test_without_virtual_loss_simulations_do_not_see_each_other() -> None:
    critic = TableCritic({**VALUES, "a": 0.9}, default=0.5)
    tree = tree_of(replace(PLAIN, num_simulations=2, num_parallel=2, virtual_loss=0.0), critic=critic)
    assert statistics(tree) == {"": (3, 1.5), "0": (2, 1.0), "0.0": (1, 0.1)}


def test_the_leaf_value_mixes_in_rollouts() -> None:
    # The root's rollout is worth 0.9, so V = 0.75 * 0.5 + 0.25 * 0.9 = 0.6; that of a 0.7: 0.75 * 0.2 + 0.25 * 0.7 = 0.325.
    tree = tree_of(
        replace(PLAIN, num_simulations=1, rollouts=1, rollout_weight=0.25),
        ListedPolicy(STEPS, answer="7"),
        TableCritic({"": 0.5, "#### 7": 0.9, "a": 0.2, "a\n#### 7": 0.7}),
    )
    assert (tree.root.value, tree.root.children[0].value) == (pytest.approx(0.6), pytest.approx(0.325))
    assert [(n.key(), s.text, v) for n, s, v in tree.rollouts] == [("", "#### 7", 0.9), ("0", "a\n#### 7", 0.7)]


def test_without_a_critic_solutions_judge_each_other() -> None:
    policy, _ = scripted(noise_script())
    result = run(mcts(QUESTION, policy, None, MCTSConfig(num_simulations=12, num_parallel=1, answer="vote"), 0))
    counts: dict[str, int] = {}
    for trace in result.traces:
        assert trace.score is None
        if trace.state.answer is not None:
            counts[trace.state.answer] = counts.get(trace.state.answer, 0) + 1
    assert counts[str(result.answer)] == max(counts.values())
    assert result.confidence == pytest.approx(max(counts.values()) / sum(counts.values()))


def test_a_search_needs_something_to_value_leaves_by() -> None:
    with pytest.raises(ConfigError, match="no critic"):
        run(mcts(QUESTION, ListedPolicy(STEPS), None, PLAIN, 0))


def test_a_policy_without_steps_is_an_error_that_names_the_place() -> None:
    with pytest.raises(PolicyError, match=f"'0'.*{QUESTION[:-1]}"):
        search(replace(PLAIN, num_simulations=40), ListedPolicy({"": STEPS[""][:1]}))


# Answers: the hand-traced tree has one solution in it, worth 1.0; rollouts add others.


def test_answer_by_vote_value_and_visits() -> None:
    # Root: A, B, B and C end at once. Every one is visited at least once in 8 simulations with this much exploration.
    ends = [step("#### 1", 0.4, "1"), step("#### 2", 0.3, "2"), step("2 = #### 2", 0.2, "2"), step("#### 3", 0.1, "3")]
    values = {"": 0.5, "#### 1": 0.6, "#### 2": 0.4, "2 = #### 2": 0.5, "#### 3": 0.1}
    config = replace(PLAIN, num_simulations=30, c_puct=5.0)
    results = {
        answer: search(replace(config, answer=answer), ListedPolicy({"": ends}), TableCritic(values))  # type: ignore[arg-type]
        for answer in ("vote", "best", "visits")
    }
    # vote: "1" 0.6, "2" 0.4 + 0.5 = 0.9, "3" 0.1, total 1.6.
    assert (results["vote"].answer, results["vote"].confidence) == ("2", pytest.approx(0.5625))
    assert results["vote"].state.text == "2 = #### 2"  # the better of the two
    assert (results["best"].answer, results["best"].confidence) == ("1", 0.6)
    # visits: "1" has the greatest prior and value; its share of the 30 visits below the root.
    tree = results["visits"].tree
    assert tree is not None
    assert results["visits"].answer == "1"
    assert results["visits"].confidence == pytest.approx(tree.root.children[0].visit_count / 30)
    assert len(results["visits"].traces) == 4


def test_where_the_most_visited_path_ends_early_the_policy_completes_it_greedily() -> None:
    policy = ListedPolicy(STEPS, answer="5")
    result = search(replace(PLAIN, num_simulations=2, answer="visits"), policy)
    assert policy.rolled_out == [("a", 1, 0.0)]
    assert (result.answer, result.state.text) == ("5", "a\n#### 5")


def test_the_chosen_solution_is_among_those_seen() -> None:
    result = search(replace(PLAIN, num_simulations=2, answer="visits"), ListedPolicy(STEPS, answer="5"))
    assert result.state in [trace.state for trace in result.traces]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"selection": "pukt"}, "'pukt'.*did you mean 'puct'"),
        ({"answer": "value"}, "'value'"),
        ({"num_simulations": 0}, "num_simulations is 0"),
        ({"expansion_width": -1}, "expansion_width is -1"),
        ({"max_depth": 0}, "max_depth is 0"),
        ({"num_parallel": 0}, "num_parallel is 0"),
        ({"c_puct": -0.5}, "c_puct is -0.5"),
        ({"rollouts": -2}, "rollouts is -2"),
        ({"virtual_loss": -1.0}, "virtual_loss is -1.0"),
        ({"rollout_weight": 1.5}, "rollout_weight is 1.5"),
        ({"rollout_weight": float("nan")}, "rollout_weight is nan"),
        ({"prior_temperature": 0.0}, "prior_temperature is 0.0"),
        ({"rollouts": 0}, "rollouts is 0"),
    ],
)
def test_invalid_settings_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MCTSConfig(**values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, 0])
@pytest.mark.parametrize("name", ["num_simulations", "expand_visits", "max_depth", "num_parallel", "expansion_width"])
def test_counts_are_whole_numbers(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"mcts.{name} is {value}"):
        MCTSConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["c_puct", "virtual_loss", "prior_temperature"])
def test_settings_are_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=str(value)):
        MCTSConfig(**{name: value})  # type: ignore[arg-type]


# Solvable truth.


def solved(budget: int, noise: float, games: int = 30, **settings: Any) -> int:
    """In how many of the games `budget` simulations find the one best solution of 81."""
    config = MCTSConfig(
        **{
            "num_simulations": budget,
            "expansion_width": 3,
            "rollouts": 0,
            "rollout_weight": 0.0,
            "num_parallel": 1,
            "c_puct": 0.5,
            "answer": "best",
            **settings,
        }
    )

    async def one(number: int) -> bool:
        game = SecretGame(number, noise=noise)
        return (await mcts(f"game {number}", game, game, config, number)).answer == game.secret

    return sum(run(one(number)) for number in range(games))


def check_more_search_finds_more(noise: float, **settings: Any) -> None:
    """30 games with 121 places, of which 60 simulations see at most 60. Seeds are fixed.

    Margins: 20 games more are solved with 60 simulations than with 10, and 24 of the 30 in all.
    """
    few, some, many = (solved(budget, noise, **settings) for budget in (10, 25, 60))
    assert few <= some <= many, f"{few}, {some}, {many}"
    assert few + 20 <= many, f"{few} with 10 simulations, {many} with 60"
    assert many >= 24, f"{many} of 30"


@pytest.mark.parametrize(("selection", "noise"), [("uct", 0.0), ("uct", 0.15), ("uct", 0.4), ("puct", 0.0), ("puct", 0.15)])
def test_more_search_finds_the_best_solution_more_often(selection: str, noise: float) -> None:
    check_more_search_finds_more(noise, selection=selection)


def test_more_search_finds_the_best_solution_with_rollouts_and_in_parallel() -> None:
    check_more_search_finds_more(0.15, rollouts=1, rollout_weight=0.5, num_parallel=4)


def test_an_exact_critic_is_followed_to_the_best_solution() -> None:
    # Without exploration the search follows the critic; exact values lead straight to the best of 81.
    assert solved(30, noise=0.0, selection="uct", c_puct=0.0) == 30


# Invariants.

random_settings = st.fixed_dictionaries(
    {
        "num_simulations": st.integers(1, 40),
        "selection": st.sampled_from(["puct", "uct"]),
        "c_puct": st.sampled_from([0.0, 0.3, 1.25, 5.0]),
        "expansion_width": st.integers(1, 5),
        "prior_temperature": st.sampled_from([0.1, 0.67, 1.0, 3.0]),
        "max_depth": st.integers(1, 5),
        "rollouts": st.integers(1, 3),
        "rollout_weight": st.sampled_from([0.0, 0.5, 1.0]),
        "virtual_loss": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "answer": st.sampled_from(["vote", "best", "visits"]),
    }
)
seeds = st.integers(0, 2**32)


def searched(settings: dict[str, Any], num_parallel: int, critic: bool, seed: int) -> tuple[SearchResult, Tree, list[Request]]:
    policy, engine = scripted(noise_script(width=4, depth=4))
    if not critic and settings["answer"] == "best":
        settings = {**settings, "answer": "vote"}
    config = MCTSConfig(num_parallel=num_parallel, **settings)
    result = run(mcts(f"question {seed % 7}", policy, NoiseCritic() if critic else None, config, seed))
    assert result.tree is not None
    return result, result.tree, engine.requests


@settings(max_examples=60, deadline=None)
@given(random_settings, st.booleans(), seeds)
def test_invariants_one_simulation_at_a_time(values: dict[str, Any], critic: bool, seed: int) -> None:
    _, tree, _ = searched(values, 1, critic, seed)
    check_visits(tree)
    check_value_sums(tree)


@settings(max_examples=80, deadline=None)
@given(random_settings, st.integers(1, 6), st.booleans(), seeds)
def test_invariants(values: dict[str, Any], num_parallel: int, critic: bool, seed: int) -> None:
    result, tree, requests = searched(values, num_parallel, critic, seed)
    check_root_visits(tree, values["num_simulations"], num_parallel)
    check_idle(tree)
    check_depth(tree, values["max_depth"])
    check_priors(tree)
    check_q_range(tree)
    check_round_trip(tree)
    assert 0.0 <= result.confidence <= 1.0
    assert all(t.state.terminal for t in result.traces)
    for node in tree.nodes():
        assert len(node.children) <= values["expansion_width"]
        assert node.visit_count >= sum(child.visit_count for child in node.children)
        assert (node.value is None) == (node.visit_count == 0)
    prompts = {"".join(request.prompt) for request in requests}
    assert all(prompt.startswith(f"Question: question {seed % 7}\nAnswer:\n") for prompt in prompts)


@pytest.mark.parametrize("virtual_loss", [0.0, 1.0, 3.0])
def test_invariants_hold_for_simulations_that_meet_at_a_leaf(virtual_loss: float) -> None:
    # The policy is nearly sure of its first step, so the simulations under way follow each other there.
    class Sure(ListedPolicy):
        async def propose(self, state: Any, n: int, seed: int) -> list[Step]:
            return [Step(f"{len(state.steps)}a", log(0.98)), Step(f"{len(state.steps)}b", log(0.02))]

    config = MCTSConfig(num_simulations=32, num_parallel=4, virtual_loss=virtual_loss, rollouts=0, rollout_weight=0.0)
    tree = tree_of(config, Sure({}), TableCritic({}, default=0.1))
    check_visits(tree)


GOLDS = ["86420", "97531"]


def test_no_gold_answer_reaches_a_prompt() -> None:
    problems = [Problem(str(i), f"Question {i}?", gold, f"The solution is\n#### {gold}") for i, gold in enumerate(GOLDS)]
    policy, engine = scripted()

    async def solve(question: str) -> SearchResult:
        return await mcts(question, policy, NoiseCritic(), MCTSConfig(num_simulations=10), 0)

    records = run(run_questions(problems, solve, lambda solution, gold: solution == gold))
    assert [record.error for record in records] == [None, None]
    assert len(engine.requests) > 10
    check_no_gold(engine.requests, GOLDS)

    async def leaking(question: str) -> SearchResult:
        gold = next(p.gold for p in problems if p.question == question)
        return await mcts(f"{question} (it is {gold})", policy, NoiseCritic(), MCTSConfig(num_simulations=2), 0)

    engine.requests.clear()
    run(run_questions(problems, leaking, lambda solution, gold: solution == gold))
    with pytest.raises(AssertionError, match="gold answer 86420"):
        check_no_gold(engine.requests, GOLDS)


# Degeneracies.


def test_without_exploration_and_noise_uct_always_goes_for_value() -> None:
    tree = tree_of(replace(PLAIN, num_simulations=30, selection="uct", c_puct=0.0))
    a, b = tree.root.children
    # a (0.2) is tried once; b (0.8, then 1.0 below it) gets all the rest: 30 - 1 (a).
    assert (a.visit_count, b.visit_count) == (1, 29)


def test_one_simulation_evaluates_the_root_and_one_step() -> None:
    policy, engine = scripted()
    config = MCTSConfig(num_simulations=1, rollouts=3, num_parallel=1, expansion_width=4)
    result = run(mcts(QUESTION, policy, NoiseCritic(), config, 0))
    assert result.tree is not None
    assert (result.tree.root.visit_count, len(result.traces)) == (2, 6)
    assert [request.n for request in engine.requests] == [3, 4, 3]


def test_parallel_simulations_go_beyond_the_number_by_less_than_a_wave() -> None:
    for num_parallel in (1, 3, 7, 50):
        tree = searched({"num_simulations": 20}, num_parallel, True, 1)[1]
        check_root_visits(tree, 20, num_parallel)


def test_a_longer_search_begins_with_the_shorter_one() -> None:
    short, long = (searched({"num_simulations": n}, 1, True, 3)[1] for n in (10, 20))
    places = {node.key(): node for node in long.nodes()}
    for node in short.nodes():
        assert places[node.key()].step.text == node.step.text
        assert places[node.key()].visit_count >= node.visit_count


def test_searches_of_one_policy_do_not_share_anything() -> None:
    policy, _ = scripted()

    async def both() -> list[SearchResult]:
        return await asyncio.gather(*(mcts(QUESTION, policy, NoiseCritic(), MCTSConfig(num_simulations=10), 0) for _ in "ab"))

    first, second = run(both())
    assert first.tree is not second.tree
    assert summary(first) == summary(second)
    assert (
        summary(first)["tree"]["nodes"] != summary(run(mcts(QUESTION, policy, NoiseCritic(), MCTSConfig(), 1)))["tree"]["nodes"]
    )


@pytest.mark.parametrize("answer", ["vote", "majority", "best"])
def test_where_no_solution_was_seen_the_most_visited_path_is_completed(answer: Any) -> None:
    policy = ListedPolicy(STEPS, answer="5")
    result = search(replace(PLAIN, num_simulations=2, answer=answer), policy)
    assert policy.rolled_out == [("a", 1, 0.0)]  # a and b have one visit each
    assert (result.answer, result.steps) == ("5", ["a", "#### 5"])
    assert [trace.state for trace in result.traces] == [result.state]


# Without revisits.


def test_without_revisits_every_simulation_evaluates_a_new_node() -> None:
    for parallel in (1, 3):
        for seed in range(5):
            policy, _ = scripted(noise_script(width=3, depth=3))
            config = MCTSConfig(num_simulations=200, num_parallel=parallel, expansion_width=8, c_puct=0.3, revisit=False)
            tree = run(mcts(QUESTION, policy, NoiseCritic(), config, seed)).tree
            assert tree is not None
            assert all(node.visit_count == 1 for node in tree.nodes() if not node.children)
            # All there is has been seen, well below 200 simulations, and the search ended there.
            assert all(node.visit_count for node in tree.nodes())
            assert len(tree) == tree.root.visit_count < 150
            check_visits(tree)
            check_value_sums(tree)
            check_idle(tree)


def test_with_revisits_the_best_solution_draws_the_visits() -> None:
    policy, _ = scripted(noise_script(width=3, depth=3))
    config = MCTSConfig(num_simulations=200, num_parallel=1, expansion_width=8, c_puct=0.3)
    tree = run(mcts(QUESTION, policy, NoiseCritic(), config, 0)).tree
    assert tree is not None
    assert max(node.visit_count for node in tree.nodes() if node.terminal) > 20
    assert len(tree) < 150


def test_until_a_solution_is_met_again_revisits_change_nothing() -> None:
    trees = []
    for revisit in (True, False):
        config = replace(PLAIN, num_simulations=6, revisit=revisit)
        trees.append(tree_of(config, scripted(noise_script(width=4, depth=6))[0], NoiseCritic()).to_dict())
    assert trees[0] == trees[1]


def test_revisits_cannot_be_left_out_where_visits_choose() -> None:
    with pytest.raises(ConfigError, match=r"revisit.*visits"):
        MCTSConfig(revisit=False, answer="visits")


@pytest.mark.parametrize("values", [{"widening": WideningConfig(kind="progressive")}, {"expand_visits": 2}])
def test_revisits_cannot_be_left_out_where_nodes_grow_later(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="revisit is false"):
        MCTSConfig(revisit=False, **values)


def test_a_depth_limit_ends_what_there_is_to_see() -> None:
    class Endless(ListedPolicy):
        async def propose(self, state: Any, n: int, seed: int) -> list[Step]:
            return [Step(f"{len(state.steps)}{x}", log(0.5)) for x in "ab"]

    config = replace(PLAIN, num_simulations=100, max_depth=3, revisit=False)
    tree = tree_of(config, Endless({}), NoiseCritic())
    assert len(tree) == tree.root.visit_count == 1 + 2 + 4 + 8
