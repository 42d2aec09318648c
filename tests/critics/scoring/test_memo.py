"""A critic's memory: once for all who ask, errors heard and not kept, nobody harmed by another's leaving."""

import asyncio
from collections.abc import Callable

import pytest

from critics.scoring.generative import GenerativeVerifier, VerifierConfig
from critics.scoring.likelihood import LikelihoodCritic
from critics.scoring.memo import Memo
from critics.scoring.rollout import RolloutCritic
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import Critic, State, Step, metered


class Squares:
    """Computes squares, and says when."""

    def __init__(self, *fails: int) -> None:
        self.calls, self.fails = list[list[int]](), fails

    async def __call__(self, keys: list[int]) -> list[int]:
        self.calls.append(keys)
        await asyncio.sleep(0.001)
        if any(key in self.fails for key in keys):
            raise ValueError(f"no square of {keys}")
        return [key * key for key in keys]


def test_values_come_in_order_and_are_computed_once() -> None:
    memo, squares = Memo[int, int](), Squares()
    assert asyncio.run(memo.fetch([3, 1, 3, 2], squares)) == [9, 1, 9, 4]
    assert asyncio.run(memo.fetch([2, 5], squares)) == [4, 25]
    assert asyncio.run(memo.fetch([], squares)) == []
    assert squares.calls == [[3, 1, 2], [5]]


def test_what_is_being_computed_is_shared() -> None:
    memo, squares = Memo[int, int](), Squares()

    async def together() -> list[list[int]]:
        return list(await asyncio.gather(memo.fetch([1, 2], squares), memo.fetch([2, 3], squares), memo.fetch([3], squares)))

    assert asyncio.run(together()) == [[1, 4], [4, 9], [9]]
    assert squares.calls == [[1, 2], [3]]


def test_an_error_reaches_everyone_and_is_not_kept() -> None:
    memo, squares = Memo[int, int](), Squares(2)

    async def together() -> list[object]:
        return list(await asyncio.gather(memo.fetch([2], squares), memo.fetch([2], squares), return_exceptions=True))

    errors = asyncio.run(together())
    assert [str(error) for error in errors] == ["no square of [2]"] * 2
    squares.fails = ()
    assert asyncio.run(memo.fetch([2], squares)) == [4]
    assert squares.calls == [[2], [2]]


def test_a_cancelled_caller_harms_no_one() -> None:
    memo, squares = Memo[int, int](), Squares()

    async def one_leaves() -> list[int]:
        leaving = asyncio.create_task(memo.fetch([4], squares))
        staying = asyncio.create_task(memo.fetch([4], squares))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(one_leaves()) == [16]
    assert squares.calls == [[4]]


def test_the_oldest_are_forgotten() -> None:
    memo, squares = Memo[int, int](2), Squares()
    for key in (1, 2, 3, 2, 1):
        assert asyncio.run(memo.fetch([key], squares)) == [key * key]
    assert squares.calls == [[1], [2], [3], [1]]
    assert asyncio.run(memo.fetch([5, 6, 7], squares)) == [25, 36, 49]  # more at once than it keeps


def test_what_an_ended_loop_left_is_computed_again() -> None:
    memo, squares = Memo[int, int](), Squares()

    async def begin() -> None:
        memo.begin([6], squares)

    asyncio.run(begin())
    assert asyncio.run(memo.fetch([6], squares)) == [36]


ANSWER = Step("#### 7", terminal=True, answer="7")
STATES = [State("Q", (Step("a"),)), State("Q", (Step("a"), ANSWER))]


def lines(prompt: str) -> list[tuple[str, float]]:
    return [("#### 7", 1.0)]


ENGINE = ScriptedEngine(lines)
PROMPT = PromptFormat(PromptConfig(), None)
CRITICS: dict[str, Callable[[], Critic]] = {
    "rollouts": lambda: RolloutCritic(LMPolicy(ScriptedEngine(lines), PROMPT), answers=["7"], num_rollouts=2),
    "likelihood": lambda: LikelihoodCritic(Words(), PROMPT),  # type: ignore[arg-type]
    "verifier": lambda: GenerativeVerifier(Words(), PROMPT),  # type: ignore[arg-type]
    "verifier with rationales": lambda: GenerativeVerifier(Words(), PROMPT, config=VerifierConfig(2)),  # type: ignore[arg-type]
}


class Words:
    """An engine that counts its calls; every word has probability 1/2, every text stops at once."""

    async def logprobs(self, prompt: object, continuations: list[object]) -> list[list[float]]:
        from llm_mcts.types import meter

        meter().lm_calls += 1
        await asyncio.sleep(0.001)
        return [[-0.6931471805599453]] * len(continuations)

    async def generate(self, request: object) -> list[object]:
        from llm_mcts.engines.base import Completion
        from llm_mcts.types import meter

        meter().lm_calls += 1
        await asyncio.sleep(0.001)
        return [Completion("why", 0.0, 1, "stop") for _ in range(request.n)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CRITICS)
def test_callers_at_the_same_time_cost_what_one_costs(name: str) -> None:
    def cost(critic: Critic, callers: int) -> tuple[list[list[float]], int]:
        async def ask() -> list[list[float]]:
            return list(await asyncio.gather(*(critic.score(STATES) for _ in range(callers))))

        with metered() as usage:
            scores = asyncio.run(ask())
        return scores, usage.lm_calls

    one, calls = cost(CRITICS[name](), 1)
    many, calls_of_many = cost(CRITICS[name](), 3)
    assert many == one * 3
    assert calls_of_many == calls > 0
    assert all(0 <= score <= 1 for score in one[0])
    assert len(one[0]) == len(STATES)
