"""Monte-Carlo tree search: hand-traced trees, a game with a known optimum, invariants."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.engines.base import Request
from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree
from llm_mcts.types import Problem
from tests.search_cases import (
    PLAIN,
    QUESTION,
    TRACED_STEPS,
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
    traced,
    traced_step,
    traced_tree,
)


def test_the_leaf_value_mixes_in_rollouts() -> None:
    # The root's rollout is worth 0.9, so V = 0.75 * 0.5 + 0.25 * 0.9 = 0.6; that of a 0.7: 0.75 * 0.2 + 0.25 * 0.7 = 0.325.
    tree = traced_tree(
        replace(PLAIN, num_simulations=1, rollouts=1, rollout_weight=0.25),
        ListedPolicy(TRACED_STEPS, answer="7"),
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
        run(mcts(QUESTION, ListedPolicy(TRACED_STEPS), None, PLAIN, 0))


def test_a_policy_without_steps_is_an_error_that_names_the_place() -> None:
    with pytest.raises(PolicyError, match=f"'0'.*{QUESTION[:-1]}"):
        traced(replace(PLAIN, num_simulations=40), ListedPolicy({"": TRACED_STEPS[""][:1]}))


# Answers: the hand-traced tree has one solution in it, worth 1.0; rollouts add others.


def test_answer_by_vote_value_and_visits() -> None:
    # Root: A, B, B and C end at once. Every one is visited at least once in 8 simulations with this much exploration.
    ends = [
        traced_step("#### 1", 0.4, "1"),
        traced_step("#### 2", 0.3, "2"),
        traced_step("2 = #### 2", 0.2, "2"),
        traced_step("#### 3", 0.1, "3"),
    ]
    values = {"": 0.5, "#### 1": 0.6, "#### 2": 0.4, "2 = #### 2": 0.5, "#### 3": 0.1}
    config = replace(PLAIN, num_simulations=30, c_puct=5.0)
    results = {
        answer: traced(replace(config, answer=answer), ListedPolicy({"": ends}), TableCritic(values))  # type: ignore[arg-type]
        for answer in ("vote", "best", "visits")
    }
    # vote: "1" 0.6, "2" 0.4 + 0.5 = 0.9, "3" 0.1, total 1.6.
    assert (results["vote"].answer, results["vote"].confidence) == ("2", pytest.approx(0.5625))
    assert results["vote"].state.text == "2 = #### 2"  # the better of the two
    assert (results["best"].answer, results["best"].confidence) == ("1", 0.6)
    # visits: "1" has the highest prior and value; its share of the 30 visits below the root.
    tree = results["visits"].tree
    assert tree is not None
    assert results["visits"].answer == "1"
    assert results["visits"].confidence == pytest.approx(tree.root.children[0].visit_count / 30)
    assert len(results["visits"].traces) == 4


def test_where_the_most_visited_path_ends_early_the_policy_completes_it_greedily() -> None:
    policy = ListedPolicy(TRACED_STEPS, answer="5")
    result = traced(replace(PLAIN, num_simulations=2, answer="visits"), policy)
    assert policy.rolled_out == [("a", 1, 0.0)]
    assert (result.answer, result.state.text) == ("5", "a\n#### 5")


def test_the_chosen_solution_is_among_those_seen() -> None:
    result = traced(replace(PLAIN, num_simulations=2, answer="visits"), ListedPolicy(TRACED_STEPS, answer="5"))
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


@settings(max_examples=60)
@given(random_settings, st.booleans(), seeds)
def test_invariants_one_simulation_at_a_time(values: dict[str, Any], critic: bool, seed: int) -> None:
    _, tree, _ = searched(values, 1, critic, seed)
    check_visits(tree)
    check_value_sums(tree)


@settings(max_examples=80)
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
    tree = traced_tree(replace(PLAIN, num_simulations=30, selection="uct", c_puct=0.0))
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
    policy = ListedPolicy(TRACED_STEPS, answer="5")
    result = traced(replace(PLAIN, num_simulations=2, answer=answer), policy)
    assert policy.rolled_out == [("a", 1, 0.0)]  # a and b have one visit each
    assert (result.answer, result.steps) == ("5", ["a", "#### 5"])
    assert [trace.state for trace in result.traces] == [result.state]
