"""Accuracy, honestly: with intervals, beside what it cost, several methods on the same questions."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.runner import Check, Record, Solve, solve_one
from llm_mcts.runs.job import each_question, open_job
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.scores import Score, paired_difference, to_csv, to_markdown
from llm_mcts.settings import SolverConfig, build_search
from llm_mcts.solver import Solver
from llm_mcts.stats import PairedDifference
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.base import require_answers
from llm_mcts.tree import Tree
from llm_mcts.types import Problem


def check_methods(methods: Mapping[str, Any]) -> None:
    """Refuse labels that could not name a file, and searches that do not exist.

    Raises:
        ConfigError: the offending label or search is named.
    """
    for label, search in methods.items():
        check_label(label)
        build_search(search)


def check_label(label: str) -> None:
    """Refuse a label that could not name a file.

    Raises:
        ConfigError: the label is named.
    """
    if not isinstance(label, str) or not re.fullmatch(r"[\w.+-]+", label) or label.startswith("."):
        raise ConfigError(f"method label {label!r} is not usable; expected letters, digits, '_', '-', '+' and '.'")


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Which searches to compare, with which models, on which questions."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """Policy and critics; every method runs on them."""
    methods: dict[str, Any] = field(
        default_factory=lambda: {"greedy": "greedy", "self_consistency": "self_consistency", "mcts": "mcts"}
    )
    """A label for each search with its settings."""
    split: str = "test"
    """Split of the task."""
    num_questions: Annotated[int, AtLeast(1)] = 200
    """How many of its questions."""
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Questions searched at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise ConfigError("methods is empty; expected a label for each search, such as greedy: greedy")
        check_methods(self.methods)


@dataclass(frozen=True)
class Evaluation:
    """Several methods on the same questions."""

    records: dict[str, list[Record]]

    @property
    def scores(self) -> list[Score]:
        """One row a method."""
        return [Score.of(label, records) for label, records in self.records.items()]

    @property
    def differences(self) -> dict[str, PairedDifference]:
        """Each method against the first, on the same questions."""
        (first, base), *others = self.records.items()
        return {f"{label} against {first}": paired_difference(base, records) for label, records in others}

    @property
    def markdown(self) -> str:
        """The table and the paired differences."""
        lines = [f"- {name}: {difference}" for name, difference in self.differences.items()]
        paired = "\nPaired on the same questions, 95 % intervals:\n\n" + "\n".join(lines) + "\n" if lines else ""
        return to_markdown(self.scores) + paired

    def files(self) -> dict[str, str]:
        """The report's files: name -> text."""
        data = json.dumps(self.to_dict(), indent=2) + "\n"
        return {"report.md": self.markdown, "report.csv": to_csv(self.scores), "report.json": data}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready report."""
        differences = {name: {**asdict(d), "difference": d.difference} for name, d in self.differences.items()}
        return {"scores": [score.to_dict() for score in self.scores], "differences": differences}


def evaluate_methods(
    config: EvaluateConfig, reporter: Reporter, folder: Path | None = None, resume: bool = False
) -> Evaluation:
    """Run every method on the same questions; with a folder, keep each record and write the report there.

    Raises:
        DataError: a question has no known answer.
        ConfigError: the folder holds an evaluation and `resume` is off, or one of another configuration.
    """
    task = config.task.build()
    problems = task.load(config.split, config.num_questions)
    require_answers(problems, f"of split {config.split}")
    with (
        Solver(config.solver) as solver,
        open_job(folder, asdict(config), resume, reporter, {"seed": config.solver.seed}) as job,
    ):
        records = {}
        for label, search in config.methods.items():
            solve = partial(solver.asolve, search=search)
            journal = job.journal(f"{label}.jsonl")
            records[label] = solve_into(journal, problems, solve, task.check, config.concurrency, reporter, label)
        evaluation = Evaluation(records)
        for name, text in evaluation.files().items():
            job.write(name, text)
    return evaluation


def solve_into(
    journal: Journal | None,
    problems: Sequence[Problem],
    solve: Solve,
    check: Check,
    concurrency: int,
    reporter: Reporter,
    title: str,
    keep_trees: bool = False,
) -> list[Record]:
    """Solve the problems that the journal does not hold yet and complete it; all records, in the problems' order."""

    async def work(problem: Problem) -> tuple[dict[str, Any], Record]:
        record, result = await solve_one(problem, solve, check)
        row = record.to_dict()
        if keep_trees and result:
            row["tree"] = (result.tree or Tree.of_samples(result.question, result.traces)).to_dict()
        return row, record

    rows = each_question(journal, problems, work, concurrency, reporter, title)
    return [Record.from_dict({key: value for key, value in row.items() if key != "tree"}) for row in rows]
