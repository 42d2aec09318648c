"""Questions that became right or wrong from one round to another, with both solutions line by line."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from llm_mcts.runner import Record
from llm_mcts.runs.reading import Run

Line = tuple[str, bool]
"""A line of a solution, and whether the other solution has it not at this place."""


@dataclass(frozen=True)
class Example:
    """One question before and after a round."""

    id: str
    question: str | None
    """None where the run does not keep it."""
    gold: str | None
    before: Record
    after: Record

    @property
    def lines(self) -> list[tuple[Line | None, Line | None]]:
        """Both solutions side by side; None where one has no line beside the other's."""
        return side_by_side(self.before.solution.splitlines(), self.after.solution.splitlines())


@dataclass(frozen=True)
class Exchange:
    """What one method gained and lost in one round."""

    round: int
    since: int
    method: str
    gained: Sequence[str]
    """Ids of all questions that became right."""
    lost: Sequence[str]
    """Ids of all questions that became wrong."""
    examples: Sequence[tuple[bool, Example]]
    """(gained, example): the first few of each, gained ones first."""


def exchanges(run: Run, limit: int) -> list[Exchange]:
    """Every judged round against what stood before it, by method, with up to `limit` examples of each direction."""
    found = []
    for here in run.rounds[1:]:
        before = run.incumbent(here.number)
        for method in run.methods:
            old, new = before.records("eval", method), here.records("eval", method)
            if not old or not new:
                continue
            pairs = list(zip(old, new, strict=True))
            gained = [(a, b) for a, b in pairs if b.correct and not a.correct]
            lost = [(a, b) for a, b in pairs if a.correct and not b.correct]
            examples = [(True, _example(run, *p)) for p in gained[:limit]] + [(False, _example(run, *p)) for p in lost[:limit]]
            ids = [b.id for _, b in gained], [b.id for _, b in lost]
            found.append(Exchange(here.number, before.number, method, *ids, examples))
    return found


def _example(run: Run, before: Record, after: Record) -> Example:
    problem = run.problems.get(before.id)
    question, gold = (problem.question, problem.gold) if problem else (None, None)
    return Example(before.id, question, gold, before, after)


def side_by_side(a: Sequence[str], b: Sequence[str]) -> list[tuple[Line | None, Line | None]]:
    """Two texts aligned on the lines they share, which are unmarked."""
    rows: list[tuple[Line | None, Line | None]] = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        differs = kind != "equal"
        left, right = ([(line, differs) for line in lines] for lines in (a[a0:a1], b[b0:b1]))
        rows += zip_longest(left, right)
    return rows
