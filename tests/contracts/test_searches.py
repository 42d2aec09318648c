"""What every search keeps, whatever its method: one suite over all entries of SEARCHES."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from math import isnan, nan
from typing import Any

import pytest

from llm_mcts.errors import ConfigError, CriticError, PolicyError, QuestionError
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.search import SEARCHES
from llm_mcts.types import Critic, Policy, Problem, State, Step, Trace
from tests.search_cases import (
    QUESTION,
    ListedPolicy,
    NoiseCritic,
    check_depth,
    check_idle,
    check_no_gold,
    check_round_trip,
    noise_script,
    run,
    scripted,
    shuffled,
    summary,
)

SMALL = {"num_simulations": 12, "num_samples": 6, "num_candidates": 6, "beam_width": 3, "subtree_width": 3}
NAMES = sorted(SEARCHES)
ASKING_A_CRITIC = sorted(set(NAMES) - {"self_consistency"})
NEEDING_A_CRITIC = ["alphallm", "alphazero", "beam", "best_of_n", "dvts", "rest_mcts"]
PROPOSING = sorted(set(NAMES) - {"greedy", "self_consistency", "best_of_n"})


def config(name: str, **values: Any) -> Any:
    """A search's defaults, made small."""
    cls = SEARCHES[name][1]
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in {**SMALL, **values}.items() if key in known})


async def search(name: str, policy: Policy, critic: Critic | None, question: str = QUESTION, seed: int = 0) -> SearchResult:
    return await SEARCHES[name][0](question, policy, critic, config(name), seed)


def found(name: str, policy: Policy | None = None, critic: Critic | None = None, **where: Any) -> SearchResult:
    return run(search(name, policy or scripted()[0], critic or NoiseCritic(), **where))


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_whole(name: str) -> None:
    for seed in range(5):
        result = found(name, seed=seed)
        assert isinstance(result, SearchResult)
        assert result.question == QUESTION
        assert result.state.question == QUESTION
        assert result.answer == result.state.answer
        assert isinstance(result.answer, str)
        assert isinstance(result.confidence, float)
        assert 0.0 <= result.confidence <= 1.0
        assert result.traces
        for trace in result.traces:
            assert isinstance(trace, Trace)
            assert trace.state.terminal
            assert trace.state.question == QUESTION
        scores = [trace.score for trace in result.traces if trace.score is not None]
        assert len(scores) == (len(result.traces) if name in ASKING_A_CRITIC else 0)
        assert all(0.0 <= score <= 1.0 for score in scores)
        assert result.state in [trace.state for trace in result.traces]
        assert result.steps == [step.text for step in result.state.steps]
        assert json.loads(json.dumps(result.to_dict()))["answer"] == result.answer


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_is_sound(name: str) -> None:
    tree = found(name).tree
    if name in PROPOSING:
        assert tree is not None
        assert tree.question == QUESTION
        check_idle(tree)
        check_round_trip(tree)
        check_depth(tree, config(name).max_depth)
    else:
        assert tree is None


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_result(name: str) -> None:
    assert summary(found(name, seed=3)) == summary(found(name, seed=3))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "greedy"])
def test_the_seed_matters(name: str) -> None:
    assert len({json.dumps(summary(found(name, seed=seed))) for seed in range(5)}) > 1


def test_greedy_needs_no_seed() -> None:
    assert len({json.dumps(summary(found("greedy", seed=seed))) for seed in range(5)}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_replies_does_not_matter(name: str) -> None:
    class LateCritic(NoiseCritic):
        async def score(self, states: Sequence[State]) -> list[float]:
            for _ in range(len(states) % 4):
                await asyncio.sleep(0)
            return await super().score(states)

    for seed in range(3):
        late = found(name, scripted(turns=shuffled)[0], LateCritic(), seed=seed)
        assert summary(late) == summary(found(name, seed=seed))


@pytest.mark.parametrize("name", NAMES)
def test_64_questions_at_once_give_the_results_of_one_at_a_time(name: str) -> None:
    questions = [f"Question {i}?" for i in range(64)]
    policy, engine = scripted(turns=shuffled)
    order: list[str] = []

    async def at_once() -> list[SearchResult]:
        return await asyncio.gather(*(search(name, policy, NoiseCritic(), question) for question in questions))

    together = run(at_once())
    order = [request.prompt[0] for request in engine.requests]
    alone = [found(name, question=question) for question in questions]
    assert [summary(result) for result in together] == [summary(result) for result in alone]
    assert len({result.state.text for result in together}) > 10  # the questions have different solutions
    if name in PROPOSING:
        assert order != sorted(order, key=order.index)  # requests of different questions did mix


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDING_A_CRITIC])
def test_a_critic_is_optional(name: str) -> None:
    result = run(search(name, scripted()[0], None))
    assert 0.0 <= result.confidence <= 1.0
    assert result.traces
    assert [trace.score for trace in result.traces] == [None] * len(result.traces)


@pytest.mark.parametrize("name", NEEDING_A_CRITIC)
def test_a_missing_critic_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="no critic"):
        run(search(name, scripted()[0], None))


class BrokenCritic:
    """Fair until its call number `at`, then what `broken` makes of fair scores."""

    def __init__(self, broken: Any, at: int) -> None:
        self.broken, self.at, self.calls = broken, at, 0

    async def score(self, states: Sequence[State]) -> list[float]:
        scores = await NoiseCritic().score(states)
        self.calls += 1
        return self.broken(scores) if self.calls > self.at else scores  # type: ignore[no-any-return]


BROKEN = {
    "nan": (lambda scores: [nan] * len(scores), "nan"),
    "last one nan": (lambda scores: [*scores[:-1], nan], "nan"),
    "above 1": (lambda scores: [1.5, *scores[1:]], "1.5"),
    "below 0": (lambda scores: [-0.25, *scores[1:]], "-0.25"),
    "too few": (lambda scores: scores[:-1], r"\d+ scores for \d+ states"),
    "too many": (lambda scores: [*scores, 0.5], r"\d+ scores for \d+ states"),
    "none": (lambda scores: [], r"0 scores for \d+ states"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ASKING_A_CRITIC)
def test_a_broken_critic_is_an_error_that_names_the_question(name: str, broken: str) -> None:
    wrong, message = BROKEN[broken]
    counting = BrokenCritic(None, at=10**9)
    found(name, critic=counting)
    for at in {0, counting.calls // 2, counting.calls - 1}:
        with pytest.raises(CriticError, match=message) as error:
            found(name, critic=BrokenCritic(wrong, at))
        assert QUESTION in str(error.value)


@pytest.mark.parametrize("name", ASKING_A_CRITIC)
def test_a_critic_that_raises_is_never_a_score(name: str) -> None:
    failure = OSError("the critic is gone")

    def gone(scores: list[float]) -> list[float]:
        raise failure

    with pytest.raises(CriticError, match="OSError: the critic is gone") as error:
        found(name, critic=BrokenCritic(gone, 0))
    assert error.value.__cause__ is failure
    assert QUESTION in str(error.value)


def test_self_consistency_asks_no_critic() -> None:
    critic = BrokenCritic(None, at=10**9)
    with_critic = found("self_consistency", critic=critic)
    assert critic.calls == 0
    assert summary(with_critic) == summary(run(search("self_consistency", scripted()[0], None)))


@pytest.mark.parametrize("name", PROPOSING)
def test_a_policy_that_proposes_nothing_is_an_error_that_names_the_question(name: str) -> None:
    with pytest.raises(PolicyError, match="no step") as error:
        found(name, ListedPolicy({}))
    assert QUESTION in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_completes_too_little_is_an_error(name: str) -> None:
    class Empty(ListedPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            return []

    with pytest.raises(PolicyError):
        found(name, Empty({"": [Step("a")]}))


class FailingPolicy:
    """Raises `failure` at call number `at`."""

    def __init__(self, at: int, failure: Exception) -> None:
        self.policy, self.at, self.failure, self.calls = scripted(noise_script(width=4))[0], at, failure, 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls > self.at:
            raise self.failure

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        self._call()
        return await self.policy.propose(state, n, seed)

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self._call()
        return await self.policy.rollout(state, n, seed, temperature)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_fails_on_the_way_fails_the_search(name: str) -> None:
    failure = ConnectionError("the model is gone")
    healthy = FailingPolicy(10**9, failure)
    found(name, healthy)
    assert healthy.calls >= 1
    for at in range(healthy.calls):
        with pytest.raises(PolicyError, match="ConnectionError: the model is gone") as error:
            found(name, FailingPolicy(at, failure))
        assert error.value.__cause__ is failure
        assert QUESTION in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_one_question_that_fails_is_a_record_and_the_others_go_on(name: str) -> None:
    problems = [Problem(str(i), f"Question {i}?", "1") for i in range(4)]

    async def solve(question: str) -> SearchResult:
        policy = FailingPolicy(0, ConnectionError("the model is gone")) if question == "Question 2?" else scripted()[0]
        return await search(name, policy, NoiseCritic(), question)

    records = run(run_questions(problems, solve, lambda answer, gold: answer == gold))
    assert [record.error is None for record in records] == [True, True, False, True]
    error = records[2].error or ""
    assert error.startswith("PolicyError: policy failed on question 'Question 2?': ConnectionError: the model is gone")


@pytest.mark.parametrize("question", ["", " \n\t"])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_question_is_an_error(name: str, question: str) -> None:
    policy, engine = scripted()
    with pytest.raises(QuestionError, match="empty"):
        found(name, policy, question=question)
    assert engine.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_prompts_hold_the_question_and_what_was_generated_and_no_gold_answer(name: str) -> None:
    golds = ["86420", "97531"]
    problems = [Problem(str(i), f"Question {i}?", gold, f"Surely.\n#### {gold}") for i, gold in enumerate(golds)]
    policy, engine = scripted()
    records = run(run_questions(problems, lambda q: search(name, policy, NoiseCritic(), q), lambda a, gold: a == gold))
    assert [record.error for record in records] == [None, None]
    check_no_gold(engine.requests, golds)
    prompts = {f"Question: {problem.question}\nAnswer:\n" for problem in problems}
    assert {request.prompt[0] for request in engine.requests} == prompts


def settings_of(kinds: tuple[type, ...]) -> list[tuple[str, str]]:
    fields = [(name, f.name, f.default) for name, (_, cls) in SEARCHES.items() for f in dataclasses.fields(cls)]
    return [(name, key) for name, key, default in fields if type(default) in kinds]


@pytest.mark.parametrize(("name", "key"), settings_of((int, float)))
def test_a_number_below_every_range_is_refused_by_name(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match="-1") as error:
        config(name, **{key: -1})
    assert key in str(error.value)


@pytest.mark.parametrize(("name", "key"), settings_of((str,)))
def test_an_unknown_choice_is_refused_by_name(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match="'nonsense'") as error:
        config(name, **{key: "nonsense"})
    assert key in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_frozen_and_defaults_are_valid(name: str) -> None:
    cls = SEARCHES[name][1]
    made = cls()
    assert not any(isinstance(v, float) and isnan(v) for v in dataclasses.asdict(made).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.anything = 1


def test_the_suite_knows_every_search() -> None:
    """A new search: add it to the lists above where it differs."""
    assert set(NAMES) >= set(ASKING_A_CRITIC) | set(NEEDING_A_CRITIC) | set(PROPOSING)
    assert PROPOSING == ["alphago", "alphallm", "alphazero", "beam", "dvts", "gumbel", "mcts", "rest_mcts"]
