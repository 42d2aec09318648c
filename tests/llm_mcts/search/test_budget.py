"""Budgets and early stop, for every search alike."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.result import SearchResult
from llm_mcts.search import SEARCHES
from llm_mcts.search.beam import DVTSConfig, dvts
from llm_mcts.search.budget import Limits, SearchConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.sampling import BestOfNConfig, SelfConsistencyConfig, best_of_n, self_consistency
from llm_mcts.search.voting import settled
from llm_mcts.tree import Tree
from llm_mcts.types import State, Step, Trace, Usage, meter, metered
from tests.search_cases import (
    QUESTION,
    ListedPolicy,
    NoiseCritic,
    TableCritic,
    noise_script,
    run,
    scripted,
    solution,
    tree_cases,
)

# Large enough that a budget below ends them; each with a bound on what one wave of its work may cost in calls and tokens.
# The scripted engine samples one token a line; a solution has at most 5 lines.
LARGE: dict[str, tuple[dict[str, Any], int, int]] = {
    "self_consistency": ({"num_samples": 500, "num_parallel": 3}, 1, 3 * 5),
    "best_of_n": ({"num_samples": 500, "num_parallel": 3}, 1, 3 * 5),
    "beam": ({"num_candidates": 12, "beam_width": 3}, 3, 12),
    "dvts": ({"num_candidates": 12, "subtree_width": 4}, 3, 12),
    # a wave: each simulation may expand a node (4 tokens) and complete a leaf
    "mcts": ({"num_simulations": 500, "num_parallel": 2, "expansion_width": 4}, 4, 2 * (4 + 5)),
    "alphago": ({"num_simulations": 500, "num_parallel": 2, "expansion_width": 4}, 4, 2 * (4 + 5)),
    "alphazero": ({"num_simulations": 500, "num_parallel": 2, "expansion_width": 4}, 2, 2 * 4),
    # up to 6 draws of one step, 4 rollouts
    "alphallm": ({"num_simulations": 500, "num_parallel": 2}, 2 * 7, 2 * (6 + 20)),
    # a round: up to 8 simulations
    "gumbel": ({"num_simulations": 500, "expansion_width": 4}, 16, 8 * (4 + 5)),
    "rest_mcts": ({"num_simulations": 500, "num_parallel": 2, "expansion_width": 4}, 4, 2 * (4 + 5)),
}


def searched(name: str, **settings: Any) -> SearchResult:
    """A search of a wide tree; its usage is in the result."""
    search, cls = SEARCHES[name]
    policy, _ = scripted(noise_script(width=6, depth=4))

    async def go() -> SearchResult:
        with metered() as usage:
            result = await search(QUESTION, policy, NoiseCritic(), cls(**{**LARGE[name][0], **settings}), 0)
        result.usage = usage
        return result

    return run(go())


def test_every_search_that_can_be_limited_is_here() -> None:
    assert set(LARGE) == set(SEARCHES) - {"greedy"}  # greedy is one call


@pytest.mark.parametrize("limit", [1, 7, 40])
@pytest.mark.parametrize("name", LARGE)
def test_tokens_go_beyond_their_limit_by_less_than_one_wave(name: str, limit: int) -> None:
    free = searched(name).usage.generated_tokens
    spent = searched(name, max_tokens=limit).usage.generated_tokens
    assert min(limit, free) <= spent < limit + LARGE[name][2], f"{spent} tokens, {free} without a limit"


@pytest.mark.parametrize("limit", [1, 5, 12])
@pytest.mark.parametrize("name", LARGE)
def test_calls_go_beyond_their_limit_by_less_than_one_wave(name: str, limit: int) -> None:
    free = searched(name).usage.lm_calls
    spent = searched(name, max_lm_calls=limit).usage.lm_calls
    assert min(limit, free) <= spent < limit + LARGE[name][1] + 1, f"{spent} calls, {free} without a limit"


@pytest.mark.parametrize("name", LARGE)
def test_seconds_end_a_search(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = searched(name).usage.lm_calls
    ticks = iter(range(10**9))
    monkeypatch.setattr("llm_mcts.search.budget.time.perf_counter", lambda: next(ticks))
    spent = searched(name, max_seconds=1.5).usage.lm_calls
    assert 1 <= spent < free


@pytest.mark.parametrize("name", LARGE)
def test_whichever_limit_comes_first_ends_the_search(name: str) -> None:
    few = searched(name, max_tokens=7).usage.generated_tokens
    assert searched(name, max_tokens=7, max_lm_calls=10**6, max_seconds=1e6).usage.generated_tokens == few


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("limit", ["max_tokens", "max_lm_calls"])
def test_a_limit_on_what_a_policy_does_not_count_is_an_error(name: str, limit: str) -> None:
    search, cls = SEARCHES[name]
    policy = ListedPolicy({"": [Step("#### 1", -1.0, 1, True, "1")]})
    config = cls(**{limit: 100}, **({"num_simulations": 3} if "num_simulations" in LARGE[name][0] else {}))
    with pytest.raises(PolicyError, match=r"no usage.*meter\(\)"):
        run(search(QUESTION, policy, NoiseCritic(), config, 0))


@pytest.mark.parametrize("value", [0, -5, nan, inf])
@pytest.mark.parametrize("key", ["max_tokens", "max_lm_calls", "max_seconds"])
def test_limits_are_above_0(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        SearchConfig(**{key: value})  # type: ignore[arg-type]


def test_limits_count_what_was_spent_before() -> None:
    config = SearchConfig(max_tokens=100, max_lm_calls=10)
    assert not Limits(config, Usage(generated_tokens=60), Usage(generated_tokens=39)).exhausted()
    assert Limits(config, Usage(generated_tokens=60), Usage(generated_tokens=40)).exhausted()
    assert Limits(config, Usage(lm_calls=4), Usage(lm_calls=6)).exhausted()
    assert not Limits(SearchConfig(), Usage(generated_tokens=10**9), Usage()).exhausted()


# Early stop.


def trace(answer: str | None, score: float | None = None) -> Trace:
    return Trace(solution(answer=answer), score)


@pytest.mark.parametrize(
    ("traces", "choice", "most", "is_settled"),
    [
        # Majority: A 3, B 1; B can reach A's 3 with two more solutions, and then be first only by one more.
        ("AAAB", "majority", 1, True),
        ("AAAB", "majority", 2, False),
        ("", "majority", 0, False),
        ("A", "majority", 0, True),
        ("A", "majority", 1, False),
    ],
)
def test_a_majority_is_settled_by_its_lead(traces: str, choice: Any, most: int, is_settled: bool) -> None:
    assert settled([trace(a) for a in traces], choice, most) is is_settled


def test_a_weighted_vote_is_settled_by_its_lead() -> None:
    # A 0.9 + 0.8 = 1.7, B 0.4: a lead of 1.3, and a solution more adds at most 1.
    traces = [trace("A", 0.9), trace("B", 0.4), trace("A", 0.8)]
    assert settled(traces, "vote", 1)
    assert not settled(traces, "vote", 2)


def test_the_best_is_settled_at_a_score_of_1() -> None:
    assert settled([trace("A", 1.0)], "best", 99)
    assert not settled([trace("A", 0.999)], "best", 1)
    assert not settled([trace(None, 1.0)], "best", 1)


class Alike(ListedPolicy):
    """Says nearly always the same; counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__({}, "1")
        self.solutions = 0

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self.solutions += n
        meter().lm_calls += 1
        return [state.then(*solution(answer="2" if (seed + i) % 7 == 0 else "1").steps) for i in range(n)]


@pytest.mark.parametrize("answer", ["majority", "best", "vote"])
def test_samples_stop_early_with_the_same_answer(answer: str) -> None:
    for seed in range(10):
        results, spent = [], []
        for early in (False, True):
            policy = Alike()
            if answer == "majority":
                config: Any = SelfConsistencyConfig(num_samples=64, num_parallel=4, early_stop=early)
                results.append(run(self_consistency(QUESTION, policy, None, config, seed)))
            else:
                config = BestOfNConfig(num_samples=64, num_parallel=4, early_stop=early, answer=answer)  # type: ignore[arg-type]
                results.append(run(best_of_n(QUESTION, policy, NoiseCritic(), config, seed)))
            spent.append(policy.solutions)
        assert results[0].answer == results[1].answer
        assert spent[1] <= spent[0] == 64
        if answer == "majority":
            assert spent[1] < 64


@pytest.mark.parametrize("answer", ["visits", "q", "best", "majority", "vote"])
def test_a_tree_search_stops_early_with_the_same_answer(answer: Any) -> None:
    def agreed(prompt: str) -> list[tuple[str, float]]:
        lines = prompt.rpartition("Answer:\n")[2].splitlines()
        if lines[-1:] and lines[-1].startswith("####"):
            return []
        return [("#### 1", 0.95), ("#### 2", 0.05)] if len(lines) == 3 else [(f"{len(lines)}{x}", 1 / 3) for x in "abc"]

    saved = 0
    for seed in range(12):
        policy, _ = scripted(agreed)
        config = MCTSConfig(num_simulations=60, num_parallel=2, answer=answer, c_puct=0.3)
        whole = run(mcts(QUESTION, policy, NoiseCritic(), config, seed))
        early = run(mcts(QUESTION, policy, NoiseCritic(), replace(config, early_stop=True), seed))
        assert whole.answer == early.answer
        assert whole.tree is not None
        assert early.tree is not None
        saved += whole.tree.root.visit_count - early.tree.root.visit_count
    assert (saved > 0) == (answer in ("visits", "majority", "vote"))  # the others could change up to the last simulation


def voted_tree(lead: float, simulations: int) -> Tree:
    """After so many simulations answer 1 has a lead of `lead` in the vote."""
    tree = Tree(QUESTION)
    tree.root.visit_count, tree.root.value, tree.root.value_sum = 1 + simulations, 0.5, 0.5 * (1 + simulations)
    tree.rollouts = [(tree.root, solution(answer="1"), 1.0), (tree.root, solution(answer="1"), lead - 0.5)]
    tree.rollouts += [(tree.root, solution(answer="2"), 0.5)]
    return tree


@pytest.mark.parametrize(
    ("lead", "num_parallel", "rollouts", "stops"),
    [
        # One simulation of 4 is left. A wave of 3 runs all 3, and each may add a solution of score 1: a lead of 1.25 is safe
        # from one simulation and not from three.
        (1.25, 1, 1, True),
        (1.25, 3, 1, False),
        # With two rollouts per leaf one simulation may add two solutions.
        (1.25, 1, 2, False),
        (1.0, 1, 1, False),  # the other answer may draw level
    ],
)
def test_a_vote_is_safe_from_all_that_the_last_wave_may_add(lead: float, num_parallel: int, rollouts: int, stops: bool) -> None:
    config = MCTSConfig(num_simulations=4, num_parallel=num_parallel, rollouts=rollouts, early_stop=True)
    tree, policy = voted_tree(lead, simulations=3), ListedPolicy({"": [Step(text, -1.0) for text in "abc"]}, answer="1")
    result = run(mcts(QUESTION, policy, TableCritic({}, default=0.5), config, 0, tree))
    assert (tree.root.visit_count == 4) is stops
    assert bool(policy.proposed) is not stops
    assert result.answer == "1"


@pytest.mark.parametrize(("num_parallel", "stops"), [(1, True), (2, False)])
def test_the_most_visited_path_is_safe_from_all_visits_of_the_last_wave(num_parallel: int, stops: bool) -> None:
    # A is two visits ahead of B. One simulation is left, a wave of two runs two: then B may draw level.
    tree = Tree(QUESTION)
    tree.expand(tree.root, [Step("A", -1.0, 1, True, "1"), Step("B", -1.0, 1, True, "2")], [0.5, 0.5])
    for node, visits in zip((tree.root, *tree.root.children), (5, 3, 1), strict=True):
        node.visit_count, node.value, node.value_sum = visits, 0.5, 0.5 * visits
    config = MCTSConfig(num_simulations=5, num_parallel=num_parallel, answer="visits", early_stop=True)
    run(mcts(QUESTION, ListedPolicy({}), TableCritic({}, default=0.5), config, 0, tree))
    assert (tree.root.visit_count == 5) is stops


@pytest.mark.parametrize("name", tree_cases())
def test_early_stop_changes_no_answer(name: str) -> None:
    search, config = tree_cases()[name]
    for seed in range(6):
        policy, _ = scripted(noise_script(width=3))
        whole = run(search(QUESTION, policy, NoiseCritic(), config, seed))
        early = run(search(QUESTION, policy, NoiseCritic(), replace(config, early_stop=True), seed))
        assert whole.answer == early.answer


class CoarseCritic:
    """Scores 0, 0.5 or 1, so that ties and perfect scores are common."""

    async def score(self, states: Sequence[State]) -> list[float]:
        return [random.Random(state.text).choice([0.0, 0.5, 1.0]) for state in states]


@pytest.mark.parametrize("answer", ["visits", "q", "best", "majority", "vote"])
@pytest.mark.parametrize("name", [name for name in tree_cases() if name not in ("rest_mcts", "alphazero")])
def test_early_stop_changes_no_answer_among_ties(name: str, answer: Any) -> None:
    search, config = tree_cases()[name]
    planned = name in ("beam", "dvts", "gumbel")
    if (planned or not config.revisit) and answer in ("visits", "q"):
        answer = "best"
    for seed in range(12):
        policy, _ = scripted(noise_script(width=3))
        changed = replace(config, answer=answer)
        whole = run(search(QUESTION, policy, CoarseCritic(), changed, seed))
        early = run(search(QUESTION, policy, CoarseCritic(), replace(changed, early_stop=True), seed))
        assert whole.answer == early.answer


def test_dvts_stops_when_its_finished_paths_outvote_the_others() -> None:
    # Three subtrees; two end at once in answer 1, the third continues. Two votes to one at most: settled after the first depth.
    class Turns(ListedPolicy):
        async def propose(self, state: State, n: int, seed: int) -> list[Step]:
            self.proposed.append(state.text)
            if not state.steps and len(self.proposed) < 3:
                return [Step(f"#### 1 ({len(self.proposed)})", -1.0, 1, True, "1")]
            return [Step(f"step {len(self.proposed)}", -1.0)]

    config = DVTSConfig(num_candidates=3, subtree_width=1, max_depth=6, answer="majority")
    for early, proposals in ((False, 8), (True, 3)):
        policy = Turns({})
        result = run(dvts(QUESTION, policy, NoiseCritic(), replace(config, early_stop=early), 0))
        assert (result.answer, len(policy.proposed)) == ("1", proposals)


def test_a_slow_policy_is_stopped_by_the_clock() -> None:
    class Slow(Alike):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            await asyncio.sleep(0.02)
            return await super().rollout(state, n, seed, temperature)

    started = time.perf_counter()
    config = SelfConsistencyConfig(num_samples=1000, num_parallel=1, max_seconds=0.1)
    result = run(self_consistency(QUESTION, Slow(), None, config, 0))
    assert 1 <= len(result.traces) <= 10
    assert time.perf_counter() - started < 2


def test_a_lower_limit_sees_the_beginning_of_what_a_higher_one_sees() -> None:
    def texts(traces: Sequence[Trace]) -> list[str]:
        return [t.state.text for t in traces]

    few, many = (searched("best_of_n", max_tokens=limit).traces for limit in (15, 60))
    assert texts(many)[: len(few)] == texts(few)
    assert len(many) > len(few)
