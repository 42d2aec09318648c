"""Two runs on the same questions, round against round: an ablation's table, with paired intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.runner import Record
from llm_mcts.runs.reading import SPLITS, Run, Split
from llm_mcts.scores import Score, paired_difference
from llm_mcts.stats import PairedDifference
from trainers.report.figures import in_words
from trainers.report.markdown import table
from trainers.report.tables import SPLIT_NAMES, Table, name_of, percent, points

NOTE = (
    "B minus A, in points, with 95 % intervals over the questions, paired. They say nothing of what another seed would train: "
    "one pair of runs is one draw of that."
)


@dataclass(frozen=True)
class Compared:
    """One method in the same round of two runs."""

    split: Split
    round: int
    method: str
    a: float
    """Run A's accuracy, in [0, 1]."""
    b: float
    found: PairedDifference
    """B minus A."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        facts = {"split": self.split, "round": self.round, "method": self.method, "a": self.a, "b": self.b}
        return {**facts, **asdict(self.found), "difference": self.found.difference, "verdict": in_words(self.found)}


def compare_runs(a: Run, b: Run) -> list[Compared]:
    """Whatever both runs evaluated to the end, by split, round and method.

    Raises:
        DataError: they were evaluated on different questions, or have no evaluation in common.
    """
    found = list(_compared(a, b))
    if not found:
        raise DataError(
            f"{a.name} and {b.name} have no evaluation in common; expected two runs with a finished evaluation of one method"
        )
    return found


def _compared(a: Run, b: Run) -> Iterator[Compared]:
    for split in SPLITS:
        for one, other in zip(a.rounds, b.rounds, strict=False):
            for method in a.methods:
                before, after = one.records(split, method), other.records(split, method)
                if not before or not after:
                    continue
                if not _same_questions(a, before, b, after):
                    raise DataError(
                        f"{a.name} and {b.name} answered different {SPLIT_NAMES[split]} questions; expected runs of one task, "
                        "with the same number of them"
                    )
                of_a, of_b = (Score.of(method, records).accuracy for records in (before, after))
                yield Compared(split, one.number, method, of_a, of_b, paired_difference(before, after))


def _same_questions(a: Run, before: Sequence[Record], b: Run, after: Sequence[Record]) -> bool:
    """Equal ids, and equal texts where both runs keep them: ids alone may be another file's."""
    if [r.id for r in before] != [r.id for r in after]:
        return False
    known = [r.id for r in before if r.id in a.problems and r.id in b.problems]
    return all(a.problems[id_].question == b.problems[id_].question for id_ in known)


def other_settings(a: Run, b: Run) -> list[str]:
    """Methods that have one label in both runs and other settings."""
    of_a, of_b = a.config.get("methods", {}), b.config.get("methods", {})
    return [method for method in of_a if method in of_b and of_a[method] != of_b[method]]


def comparison_table(found: list[Compared], a: str, b: str) -> str:
    """The comparison in Markdown."""
    columns = ("questions", "#n", "round", "method", f"#A: {a}", f"#B: {b}", "#B − A, points", "verdict")
    rows = []
    for c in found:
        accuracies = percent(c.a), percent(c.b), points(c.found), in_words(c.found)
        rows.append((SPLIT_NAMES[c.split], str(c.found.n), name_of(c.round), c.method, *accuracies))
    return f"{table(Table(columns, rows))}\n\n{NOTE}\n"
