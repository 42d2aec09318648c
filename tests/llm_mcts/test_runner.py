"""Many questions at once: bounds, order, failures as records, and no gold answer on the way in. Seeds, too."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, CriticError, ModelError, QuestionError
from llm_mcts.result import SearchResult
from llm_mcts.runner import Record, run_questions
from llm_mcts.seeding import derive_seed
from llm_mcts.solver import Solver
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.types import Problem, State, Step, Usage, meter

quick = settings(max_examples=50)

check = AnswerTask().check


def problems(n: int) -> list[Problem]:
    return [Problem(f"id{i}", f"question {i}", str(i), f"#### {i}") for i in range(n)]


def result(question: str, answer: str | None, confidence: float = 0.5) -> SearchResult:
    state = State(question, (Step("work"), Step(f"#### {answer}", terminal=True, answer=answer)))
    return SearchResult(question, answer, state, confidence, [])


async def right(question: str) -> SearchResult:
    return result(question, question.split()[-1])


def run(questions: list[Problem], solve: Any, concurrency: int = 4, **options: Any) -> list[Record]:
    return asyncio.run(run_questions(questions, solve, check, concurrency, **options))


def test_a_record_says_what_became_of_the_question() -> None:
    (record,) = run(problems(1), right)
    assert (record.id, record.answer, record.correct, record.confidence) == ("id0", "0", True, 0.5)
    assert (record.solution, record.error) == ("work\n#### 0", None)
    assert 0 < record.usage.seconds < 5


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("5", "5", True),
        ("5.0", "5", True),
        ("6", "5", False),
        (None, "5", False),
        ("", "5", False),
        ("5", None, None),
        (None, None, None),
        ("5", "", False),
    ],
)
def test_correctness(answer: str | None, gold: str | None, correct: bool | None) -> None:
    async def solve(question: str) -> SearchResult:
        return result(question, answer)

    (record,) = run([Problem("x", "q", gold)], solve)
    assert record.correct is correct


def test_no_questions_no_records() -> None:
    assert run([], right) == []


@quick
@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 20))
def test_records_keep_the_problems_order_whoever_ends_first(turns: list[int], concurrency: int) -> None:
    finished: list[str] = []

    async def solve(question: str) -> SearchResult:
        for _ in range(turns[int(question.split()[-1])]):
            await asyncio.sleep(0)
        return await right(question)

    records = run(problems(len(turns)), solve, concurrency, on_done=lambda record, _: finished.append(record.id))
    assert [r.id for r in records] == [f"id{i}" for i in range(len(turns))]
    assert [r.answer for r in records] == [str(i) for i in range(len(turns))]
    assert sorted(finished) == sorted(r.id for r in records)


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (3, 3), (50, 10)])
def test_at_most_so_many_at_once_and_really_so_many(concurrency: int, most: int) -> None:
    active = 0
    seen: list[int] = []

    async def solve(question: str) -> SearchResult:
        nonlocal active
        active += 1
        seen.append(active)
        for _ in range(5):
            await asyncio.sleep(0)
        active -= 1
        return await right(question)

    run(problems(10), solve, concurrency)
    assert max(seen) == most
    assert len(seen) == 10


def test_a_failure_frees_its_place() -> None:
    async def solve(question: str) -> SearchResult:
        raise QuestionError("too long")

    records = run(problems(5), solve, concurrency=1)
    assert [r.error for r in records] == ["QuestionError: too long"] * 5


@pytest.mark.parametrize(
    "error",
    [QuestionError("too long"), CriticError("NaN"), RuntimeError("out of memory"), ValueError("?"), TimeoutError("late")],
)
def test_a_failure_is_a_record_and_the_others_go_on(error: Exception) -> None:
    done: list[tuple[Record, SearchResult | None]] = []

    async def solve(question: str) -> SearchResult:
        if question == "question 1":
            meter().generated_tokens += 7
            raise error
        return await right(question)

    records = run(problems(3), solve, on_done=lambda *pair: done.append(pair))
    assert [r.error for r in records] == [None, f"{type(error).__name__}: {error}", None]
    assert [r.correct for r in records] == [True, None, True]
    failed = records[1]
    assert (failed.answer, failed.confidence, failed.solution) == (None, 0.0, "")
    assert failed.usage.generated_tokens == 7
    assert {record.id: found is None for record, found in done} == {"id0": False, "id1": True, "id2": False}


@pytest.mark.parametrize("error", [ConfigError("bad value"), ModelError("no weights")])
def test_an_error_that_would_hit_every_question_is_raised_and_stops_the_rest(error: Exception) -> None:
    stopped: list[str] = []

    async def solve(question: str) -> SearchResult:
        if question == "question 1":
            raise error
        try:
            await asyncio.sleep(2)
        except asyncio.CancelledError:
            stopped.append(question)
            raise
        return await right(question)

    async def main() -> int:
        with pytest.raises(type(error), match=str(error)):
            await run_questions(problems(6), solve, check, concurrency=3)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1  # only this one is left
    assert {"question 0", "question 2"} <= set(stopped)


def test_a_callback_that_fails_is_not_swallowed() -> None:
    def on_done(record: Record, _: SearchResult | None) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(problems(3), right, on_done=on_done)


def test_progress_hears_of_every_question_once() -> None:
    class Counter:
        def __init__(self) -> None:
            self.ids: list[str] = []

        def advance(self, record: Record) -> None:
            self.ids.append(record.id)

    counter = Counter()
    run(problems(5), right, progress=counter)
    assert sorted(counter.ids) == ["id0", "id1", "id2", "id3", "id4"]


def test_usage_is_kept_apart_between_questions() -> None:
    async def solve(question: str) -> SearchResult:
        for _ in range(int(question.split()[-1])):
            meter().lm_calls += 1
            await asyncio.sleep(0)
        return await right(question)

    assert [r.usage.lm_calls for r in run(problems(5), solve)] == [0, 1, 2, 3, 4]


def test_usage_counts_tasks_that_a_question_starts() -> None:
    async def work() -> None:
        meter().critic_calls += 1

    async def solve(question: str) -> SearchResult:
        await asyncio.gather(work(), work(), work())
        return await right(question)

    assert [r.usage.critic_calls for r in run(problems(2), solve)] == [3, 3]


def scripted_solver() -> tuple[Solver, ScriptedEngine]:
    def script(prompt: str) -> list[tuple[str, float]]:
        if prompt.endswith("#### 7\n"):
            return []
        return [("one step", 1.0)] if prompt.endswith("Answer:\n") else [("#### 7", 1.0)]

    engine = ScriptedEngine(script)
    return Solver(engine=engine), engine


def test_records_of_a_real_solver_carry_its_cost() -> None:
    solver, engine = scripted_solver()

    async def solve(question: str) -> SearchResult:
        return await solver.asolve(question, "greedy")

    records = run(problems(3), solve)
    assert len(engine.requests) == 3
    assert [r.usage.lm_calls for r in records] == [1, 1, 1]
    assert [r.usage.generated_tokens for r in records] == [2, 2, 2]  # a token is a line


@pytest.mark.parametrize("search", ["greedy", "self_consistency", "mcts"])
def test_gold_never_reaches_solve_nor_any_prompt(search: str) -> None:
    solver, engine = scripted_solver()
    asked: list[tuple[Any, ...]] = []

    async def solve(*args: Any, **named: Any) -> SearchResult:
        asked.append((*args, named))
        return await solver.asolve(args[0], search)

    secret = [Problem("SECRET-ID", f"question {i}", "SECRET-GOLD", "SECRET-SOLUTION") for i in range(2)]
    records = run(secret, solve)
    assert asked == [("question 0", {}), ("question 1", {})]
    assert len(engine.requests) >= 2
    for request in engine.requests:
        assert "SECRET" not in "".join(request.prompt)
    assert [r.correct for r in records] == [False, False]


@pytest.mark.parametrize("search", ["self_consistency", "mcts"])
def test_one_at_a_time_or_all_at_once_gives_the_same_records(search: str) -> None:
    def script(prompt: str) -> list[tuple[str, float]]:
        if re.search(r"#### \d\n$", prompt):
            return []
        if prompt.endswith("Answer:\n"):
            return [("go left", 0.5), ("go right", 0.5)]
        return [("#### 0", 0.3), ("#### 1", 0.3), ("#### 2", 0.4)]

    def records(concurrency: int, turns: Callable[[Any], int]) -> list[tuple[Any, ...]]:
        solver = Solver(engine=ScriptedEngine(script, turns))

        async def solve(question: str) -> SearchResult:
            return await solver.asolve(question, search)

        return [(r.id, r.answer, r.correct, r.confidence, r.solution) for r in run(problems(4), solve, concurrency)]

    alone = records(1, lambda _: 0)
    assert records(64, lambda request: request.seed % 5) == alone
    assert records(3, lambda request: -request.seed % 7) == alone


@quick
@given(
    st.builds(
        Record,
        id=st.text(),
        answer=st.none() | st.text(),
        correct=st.none() | st.booleans(),
        confidence=st.floats(0, 1),
        solution=st.text(),
        error=st.none() | st.text(),
        usage=st.builds(Usage, generated_tokens=st.integers(0), seconds=st.floats(0, 10)),
    )
)
def test_a_record_reads_back(record: Record) -> None:
    assert Record.from_dict(record.to_dict()) == record


def test_a_concurrency_of_none_is_refused() -> None:
    async def main() -> None:
        async with asyncio.timeout(0.2):
            await run_questions(problems(1), right, check, concurrency=0)

    with pytest.raises((ConfigError, ValueError)):
        asyncio.run(main())


# Seeds


def test_seeds_by_hand() -> None:
    # printf "(0, 'a', '1')" | b2sum -l 64 gives 86e6695a2966dc33, and a seed is its upper 63 bits.
    assert derive_seed(0, "a", 1) == 0x86E6695A2966DC33 >> 1
    assert derive_seed(7, "root", "q", 3) == 0xCE6B89163A5E63A2 >> 1


@quick
@given(st.integers(), st.lists(st.text(max_size=5) | st.integers(), max_size=4))
def test_seeds_are_in_range_and_repeatable(seed: int, parts: list[object]) -> None:
    assert 0 <= derive_seed(seed, *parts) < 2**63
    assert derive_seed(seed, *parts) == derive_seed(seed, *parts)


def test_seeds_differ_by_every_part() -> None:
    found = {derive_seed(s, q, i, d) for s in range(5) for q in ("q", "r") for i in range(10) for d in range(10)}
    assert len(found) == 5 * 2 * 10 * 10


def test_a_slash_inside_a_part_is_no_boundary() -> None:
    assert derive_seed(0, "1/2 of 6", 1) != derive_seed(0, "1", "2 of 6", 1)
