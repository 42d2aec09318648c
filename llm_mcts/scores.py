"""A method's row in a report: accuracy with its interval, cost per question, and how two methods differ."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.runner import Record
from llm_mcts.stats import PairedDifference, paired, wilson
from llm_mcts.types import Usage


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


def paired_difference(a: Sequence[Record], b: Sequence[Record]) -> PairedDifference:
    """Compare two methods question by question.

    Raises:
        DataError: the records are not of the same questions.
    """
    if [r.id for r in a] != [r.id for r in b]:
        raise DataError("paired comparison of different questions; expected the same questions in the same order")
    gained = sum(bool(y.correct) and not x.correct for x, y in zip(a, b, strict=True))
    lost = sum(bool(x.correct) and not y.correct for x, y in zip(a, b, strict=True))
    return paired(gained, lost, len(a))
