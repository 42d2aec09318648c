"""Many questions at once: bounded concurrency, progress, and a failure is a record, not the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError, ModelError, exhausted
from llm_mcts.result import SearchResult
from llm_mcts.types import Problem, Usage, metered

log = logging.getLogger(__name__)


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
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; expected at least 1")
    gate = asyncio.Semaphore(concurrency)

    async def one(problem: Problem) -> Record:
        async with gate:
            record, result = await _solve_one(problem, solve, check)
        if on_done:
            on_done(record, result)
        if progress:
            progress.advance(record)
        return record

    return await gather_all([one(problem) for problem in problems])


async def _solve_one(problem: Problem, solve: Solve, check: Check) -> tuple[Record, SearchResult | None]:
    with metered() as usage:
        try:
            result = await solve(problem.question)
        except (ConfigError, ModelError):
            raise
        except Exception as error:
            if exhausted(error):
                raise
            log.warning("question %s failed: %s", problem.id, error)
            return Record(problem.id, error=f"{type(error).__name__}: {error}", usage=usage), None
    result.usage = usage
    correct = None if problem.gold is None else result.answer is not None and check(f"#### {result.answer}", problem.gold)
    record = Record(problem.id, result.answer, correct, result.confidence, result.state.text, None, usage)
    return record, result
