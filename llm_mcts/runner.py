"""Many questions at once: bounded concurrency, progress, and a failure is a record, not the end."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from llm_mcts.concurrency import gather_bounded
from llm_mcts.errors import ConfigError, ModelError, exhausted
from llm_mcts.result import SearchResult
from llm_mcts.types import Problem, Usage, metered

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Record:
    """What became of one question."""

    id: str
    answer: str | None = None
    correct: bool | None = None
    """None where the question has no known answer."""
    confidence: float = 0.0
    solution: str = ""
    error: str | None = None
    """Why there is no result."""
    usage: Usage = field(default_factory=Usage)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Record":
        """Read back what `to_dict` wrote."""
        return cls(**{**data, "usage": Usage(**data["usage"])})


class Progress(Protocol):
    """Told of each question that is done."""

    def advance(self, record: Record) -> None:
        """One more question has its record."""
        ...


Solve = Callable[[str], Awaitable[SearchResult]]
Check = Callable[[str, str], bool]


async def run_questions(
    problems: Sequence[Problem],
    solve: Solve,
    check: Check,
    concurrency: int = 64,
    on_done: Callable[[Record, SearchResult | None], None] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Solve all problems, at most `concurrency` at a time; records come back in the problems' order.

    Only the question's text reaches `solve`. An exception becomes the record's `error`, and the others go on; but an
    error in the configuration or a model, or a full disk or memory, would hit every question and is raised.
    """

    def done(_: Problem, result: tuple[Record, SearchResult | None]) -> None:
        if on_done:
            on_done(*result)
        if progress:
            progress.advance(result[0])

    solved = await gather_bounded(lambda problem: solve_one(problem, solve, check), problems, concurrency, done)
    return [record for record, _ in solved]


async def solve_one(problem: Problem, solve: Solve, check: Check) -> tuple[Record, SearchResult | None]:
    """One question's record and result; only its text reaches `solve`."""
    result, error, usage = await attempt(problem, lambda: solve(problem.question))
    if result is None:
        return Record(problem.id, error=error, usage=usage), None
    result.usage = usage
    correct = None if problem.gold is None else result.answer is not None and check(f"#### {result.answer}", problem.gold)
    return Record(problem.id, result.answer, correct, result.confidence, result.state.text, None, usage), result


async def attempt(problem: Problem, work: Callable[[], Awaitable[T]]) -> tuple[T | None, str | None, Usage]:
    """The result of some work on a question, or why there is none, and what it cost.

    Raises:
        ConfigError, ModelError: they would hit every question, as a full disk or memory would.
    """
    with metered() as usage:
        try:
            return await work(), None, usage
        except (ConfigError, ModelError):
            raise
        except Exception as error:
            if exhausted(error):
                raise
            log.warning("question %s failed: %s", problem.id, error)
            return None, f"{type(error).__name__}: {error}", usage
