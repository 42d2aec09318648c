"""Accuracy, honestly: with intervals, beside what it cost, several methods on the same questions."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runner import Check, Record, Solve, solve_one
from llm_mcts.runs.directory import Journal
from llm_mcts.runs.job import each_question, open_job
from llm_mcts.runs.progress import Reporter
from llm_mcts.settings import SolverConfig, build_search
from llm_mcts.solver import Solver
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.base import require_answers
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Usage

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class PairedDifference:
    """How much more often B is right than A on the same questions."""

    n: int
    gained: int
    """Questions only B got right."""
    lost: int
    """Questions only A got right."""
    low: float
    high: float
    """95 % interval of the difference."""

    @property
    def difference(self) -> float:
        """Accuracy of B minus accuracy of A, in [-1, 1]."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired_difference(a: Sequence[Record], b: Sequence[Record]) -> PairedDifference:
    """Compare two methods question by question, with Agresti and Min's 95 % interval for matched pairs (2005).

    The interval is Wald's with half a count added to each cell of the 2 x 2 table, which keeps its coverage in small
    samples and never collapses to a point.

    Raises:
        DataError: the records are not of the same questions.
    """
    if [r.id for r in a] != [r.id for r in b]:
        raise DataError("paired comparison of different questions; expected the same questions in the same order")
    n = len(a)
    gained = sum(bool(y.correct) and not x.correct for x, y in zip(a, b, strict=True))
    lost = sum(bool(x.correct) and not y.correct for x, y in zip(a, b, strict=True))
    total, g, lo = n + 2.0, gained + 0.5, lost + 0.5
    centre = (g - lo) / total
    half = Z95 * math.sqrt(g + lo - (g - lo) ** 2 / total) / total
    return PairedDifference(n, gained, lost, max(-1.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Score:
    """One method's row in a report: counts and total usage over all its questions."""

    method: str
    n: int
    correct: int
    failed: int
    usage: Usage

    @classmethod
    def of(cls, method: str, records: Sequence[Record]) -> "Score":
        """Summarise records; a failed question counts as not answered."""
        total = Usage()
        for record in records:
            total += record.usage
        correct = sum(bool(r.correct) for r in records)
        return cls(method, len(records), correct, sum(r.error is not None for r in records), total)

    @property
    def accuracy(self) -> float:
        """Share of questions answered rightly."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.correct, self.n)

    def to_dict(self) -> dict[str, Any]:
        """A flat JSON-ready row; costs are means per question, seconds as each question's own wall-clock time."""
        low, high = self.interval
        per = {f"{name}_per_question": getattr(self.usage, name) / max(1, self.n) for name in Usage.__slots__}
        return {
            "method": self.method,
            "n": self.n,
            "correct": self.correct,
            "failed": self.failed,
            "accuracy": round(self.accuracy, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            **{name: round(value, 3) for name, value in per.items()},
        }


def to_csv(scores: Sequence[Score]) -> str:
    """The rows as CSV with a header."""
    rows = [score.to_dict() for score in scores]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(scores: Sequence[Score]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| method | n | accuracy | 95 % interval | tokens sampled | LM calls | critic calls | latency, s | failed |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for s in scores:
        low, high = s.interval
        n, name = max(1, s.n), s.method.replace("|", "\\|")
        lines.append(
            f"| {name} | {s.n} | {100 * s.accuracy:.1f} % | {100 * low:.1f} – {100 * high:.1f} | "
            f"{s.usage.generated_tokens / n:.0f} | {s.usage.lm_calls / n:.1f} | {s.usage.critic_calls / n:.1f} | "
            f"{s.usage.seconds / n:.2f} | {s.failed} |"
        )
    return "\n".join(lines) + "\n"


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
class EvaluateConfig:
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
    num_questions: int = 200
    """How many of its questions, at least 1."""
    concurrency: int = 64
    """Questions searched at once, at least 1."""

    def __post_init__(self) -> None:
        for name in ("num_questions", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
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
