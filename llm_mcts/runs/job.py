"""A command that can be resumed: its folder, lock, session and journals, opened and closed in one place.

    with open_job(out, config, resume, reporter, {"seed": 0}) as job:
        rows = job.each_question("questions.jsonl", problems, work, concurrency=64, title="labels")
        job.write_report({...})

While the block runs, this process holds the folder's lock; at its end the manifest says how the session ended. What is in a
journal is not computed again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_mcts.concurrency import gather_bounded
from llm_mcts.errors import DataError
from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.durable import write_atomically
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.types import Problem

Row = dict[str, Any]
Work = Callable[[Problem], Awaitable[tuple[Row | None, Record]]]
"""Question -> its row, which has the question's id as "id" (None: nothing to keep), and a record for the progress bar."""


class Job:
    """A command at work in its folder, or without one, where nothing is kept."""

    def __init__(self, out: Path | None, reporter: Reporter) -> None:
        self.out, self.reporter = out, reporter

    def journal(self, name: str) -> Journal | None:
        """A journal of the folder."""
        return Journal(self.out / name) if self.out else None

    def each_question(self, name: str, problems: Sequence[Problem], work: Work, concurrency: int, title: str) -> list[Row]:
        """`each_question` with the journal of that name."""
        return each_question(self.journal(name), problems, work, concurrency, self.reporter, title)

    def write(self, name: str, text: str) -> None:
        """A file of the folder, written whole."""
        if self.out:
            write_atomically(self.out / name, text.encode())

    def write_report(self, report: Mapping[str, Any]) -> None:
        """report.json."""
        self.write("report.json", json.dumps(report, indent=2) + "\n")


@contextmanager
def open_job(
    out: Path | None, config: Mapping[str, Any], resume: bool, reporter: Reporter, facts: Mapping[str, Any] | None = None
) -> Iterator[Job]:
    """Begin or resume a command in folder `out`.

    Args:
        out: None: nothing is kept.
        config: the settings, as plain values; a resumed command must have the same.
        resume: whether `out` may hold the command's earlier work.
        reporter: tells of the progress.
        facts: what the manifest says of the session, such as the seed.

    Raises:
        ConfigError: `out` holds other work, or this without `resume`, or another process is at work there.
    """
    if out is None:
        yield Job(None, reporter)
        return
    with RunDirectory.open(out, config, resume) as run:
        run.write_manifest(facts or {})
        yield Job(run.path, reporter)


def each_question(
    journal: Journal | None, problems: Sequence[Problem], work: Work, concurrency: int, reporter: Reporter, title: str
) -> list[Row]:
    """The rows of all questions, in order; those that the journal does not hold yet are worked on, and added to it.

    A question whose row is None is left out, and the journal stays open for a later session.

    Raises:
        DataError: the journal holds a question that is not among the problems.
    """
    rows: dict[str, Row] = {row["id"]: row for row in journal.read()} if journal else {}
    if journal and (strange := set(rows) - {problem.id for problem in problems}):
        raise DataError(
            f"{journal.path} has question {min(strange)}, which is not among the questions now; choose another folder"
        )
    left = [problem for problem in problems if problem.id not in rows]
    if left:
        with reporter.stage(title, len(left)) as progress:

            async def one(problem: Problem) -> tuple[Row | None, Record]:
                return await work(problem)

            def done(problem: Problem, result: tuple[Row | None, Record]) -> None:
                row, record = result
                if row is not None:
                    rows[problem.id] = row
                    if journal:
                        journal.append(row)
                progress.advance(record)

            asyncio.run(gather_bounded(one, left, concurrency, done))
    if journal and not journal.complete and len(rows) == len(problems):
        journal.finish([problem.id for problem in problems])
    return [rows[problem.id] for problem in problems if problem.id in rows]
