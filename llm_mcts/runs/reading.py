"""What a run directory says, as data: rounds, stages, evaluations, verdicts. Nothing is computed by models here.

A stage, a critic or a split that the run does not have is simply absent. Costs that a stage did not note are summed from its
records where it has some; seconds are then unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_mcts.runner import Record
from llm_mcts.runs.directory import RoundDirectory, RunDirectory, run_files
from llm_mcts.runs.stages import STAGES
from llm_mcts.scores import Score, paired_difference
from llm_mcts.stats import PairedDifference
from llm_mcts.types import Problem, Usage

Split = Literal["eval", "test"]
SPLITS: tuple[Split, ...] = ("eval", "test")
Status = Literal["start", "accepted", "rejected", "in progress", "not started"]


@dataclass(frozen=True)
class Stage:
    """One finished stage of a round, or one in progress whose records tell what it has cost so far."""

    name: str
    seconds: float | None
    """Wall-clock seconds; None where they were not noted."""
    usage: Usage | None
    """None where no model wrote or read."""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has noted its end."""
        return bool(self.notes)


@dataclass(frozen=True)
class MethodRecords:
    """One method's records on one split."""

    records: Sequence[Record]
    complete: bool
    """Whether all questions are done; the first ones done are the short ones, so that a part tells nothing of the whole."""


@dataclass(frozen=True)
class Round:
    """One round."""

    number: int
    directory: RoundDirectory
    stages: Sequence[Stage]
    marks: Mapping[Split, Mapping[str, MethodRecords]]
    verdict: Mapping[str, Any] | None
    status: Status

    def records(self, split: Split, method: str) -> Sequence[Record] | None:
        """A method's records where the evaluation is complete and holds some."""
        marks = self.marks[split].get(method)
        return marks.records if marks and marks.complete and marks.records else None

    def stage(self, name: str) -> Stage | None:
        """A stage, where the round has it."""
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True)
class Run:
    """A run, finished or in progress."""

    name: str
    directory: RunDirectory
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    rounds: Sequence[Round]
    """Round 0 first; rounds not started yet are among them, as far as the configuration asks for them."""
    methods: Sequence[str]
    """In the configuration's order."""
    problems: Mapping[str, Problem]
    """Questions by id, as far as the run keeps them."""

    @property
    def finished(self) -> bool:
        """Whether every round has its verdict."""
        return all(r.status in ("start", "accepted", "rejected") for r in self.rounds)

    def incumbent(self, number: int) -> Round:
        """What a round was compared with: the last accepted round before it, or the start."""
        return next(r for r in reversed(self.rounds) if r.number < number and r.status in ("accepted", "start"))

    @property
    def last(self) -> Round:
        """The incumbent at the end."""
        return self.incumbent(self.rounds[-1].number + 1)

    def scores(self, split: Split) -> Iterator[tuple[Round, Score]]:
        """Every complete evaluation, by round and method."""
        for here in self.rounds:
            for method in self.methods:
                if records := here.records(split, method):
                    yield here, Score.of(method, records)

    def change(self, split: Split, method: str, a: Round, b: Round) -> PairedDifference | None:
        """A method in round `b` against the same in round `a`; None where one is not evaluated."""
        before, after = a.records(split, method), b.records(split, method)
        return paired_difference(before, after) if before and after else None


def read_run(directory: RunDirectory) -> Run:
    """Everything the report is made of, but trees and rows.

    Raises:
        DataError: a file of the run is broken.
    """
    with run_files(directory.path):
        return _read_run(directory)


def _read_run(directory: RunDirectory) -> Run:
    config = directory.config() or {}
    on_disk = [int(here.path.name.removeprefix("round_")) for here in directory.rounds()]
    wanted = range(int(config.get("num_rounds", 0)) + 1)
    rounds = [_round(directory.round(number), number, number in on_disk) for number in sorted({0, *on_disk, *wanted})]
    found = [method for r in rounds for split in SPLITS for method in r.marks[split]]
    methods = list(dict.fromkeys([*config.get("methods", {}), *sorted(found)]))
    problems = {
        row["id"]: Problem(row["id"], row["question"], row.get("gold")) for r in rounds for row in r.directory.questions.read()
    }
    name = directory.path.resolve().name
    return Run(name, directory, config, directory.manifest() or {}, rounds, methods, problems)


def _round(here: RoundDirectory, number: int, begun: bool) -> Round:
    marks: dict[Split, Mapping[str, MethodRecords]] = {split: _marks(here, split) for split in SPLITS}
    notes = {row["stage"]: {k: v for k, v in row.items() if k != "stage"} for row in here.metrics()}
    verdict = notes.get("gate")
    status: Status = "start"
    if number:
        status = "in progress" if begun else "not started"
        if verdict is not None:
            status = "accepted" if verdict["accepted"] else "rejected"
    return Round(number, here, _stages(here, notes, marks), marks, verdict, status)


def _marks(here: RoundDirectory, split: Split) -> dict[str, MethodRecords]:
    found = {}
    for method in here.methods(split):
        journal = here.evaluation(method) if split == "eval" else here.test(method)
        found[method] = MethodRecords([Record.from_dict(row) for row in journal.read()], journal.complete)
    return found


def _stages(
    here: RoundDirectory, notes: Mapping[str, Mapping[str, Any]], marks: Mapping[Split, Mapping[str, MethodRecords]]
) -> list[Stage]:
    summed: dict[str, Usage | None] = {"search": None}
    if notes.get("search", {}).get("usage") is None:
        summed["search"] = _total(Usage(**row["usage"]) for row in here.trees.heads())
    for name, split in (("evaluate", "eval"), ("test", "test")):
        summed[name] = _total(r.usage for m in marks[split].values() for r in m.records)  # type: ignore[index]
    names = [*notes, *(name for name, usage in summed.items() if usage and name not in notes)]
    names.sort(key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    return [_stage(name, notes.get(name, {}), summed.get(name)) for name in names]


def _stage(name: str, notes: Mapping[str, Any], summed: Usage | None) -> Stage:
    noted = notes.get("usage")
    usage = Usage(**noted) if noted else summed
    seconds = notes.get("seconds")
    return Stage(name, None if seconds is None else float(seconds), usage, notes)


def _total(usages: Iterator[Usage]) -> Usage | None:
    total, found = Usage(), False
    for usage in usages:
        total += usage
        found = True
    return total if found else None
