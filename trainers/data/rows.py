"""The rows that trainers read, and their JSON.

    SolutionRow   a solution and its outcome                       sft, weighted, value, orm
    StepRow       a solution with a label a step                   prm
    TreeRow       a path with the tree's Q and visits a prefix     value: tree_q, td_lambda
    PairRow       two beginnings of solutions, the better first    dpo; prm and orm: pairwise
    VerdictRow    a solution, or its beginning, judged in words    genrm
    TargetRow     what a search made of the policy at one prefix   distill, joint

A row's keys tell its type: `labels`, `q_values`, `chosen`, `right`, `actions`, or none of them. Every row checks itself
when it is made, so one made in Python is held to what one from a file is held to. Rows are written with a format version; one
without, such as a row of your own, is taken to be of the current version.

A row raises DataError where it has no steps, labels outside [0, 1], or the wrong number of them.
"""

from dataclasses import MISSING, asdict, dataclass, fields
from math import inf
from typing import Any

from llm_mcts.errors import DataError

FORMAT_VERSION = 1
"""Of a written row."""
NO_GOLD = "no gold answer"
"""Why a question without a known answer gives no rows."""


@dataclass(frozen=True)
class SolutionRow:
    """A solution; `label` is its outcome (1 right, 0 wrong)."""

    problem: str
    question: str
    steps: tuple[str, ...]
    label: float = 1.0
    weight: float = 1.0
    """How much the solution counts for trainer `weighted`, finite and above 0; written only where it is not 1."""

    def __post_init__(self) -> None:
        _check_texts(self, "steps")
        _check_number(self.label, "label", self.question)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight < inf:
            raise DataError(f"row with weight {self.weight!r} for question {self.question!r}; expected a finite number above 0")


@dataclass(frozen=True)
class StepRow:
    """A solution with a label in [0, 1] per step, or None where the tree does not tell."""

    problem: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]

    def __post_init__(self) -> None:
        _check_texts(self, "steps")
        _check_numbers(self, "labels", len(self.steps), "one label a step")

    @property
    def first_wrong(self) -> int | None:
        """Index of the first step labelled below 0.5; None where there is none."""
        return next((i for i, label in enumerate(self.labels) if label is not None and label < 0.5), None)


@dataclass(frozen=True)
class TreeRow:
    """A path of a search tree, with what the tree found at each of its prefixes, the bare question's first."""

    problem: str
    question: str
    steps: tuple[str, ...]
    q_values: tuple[float | None, ...]
    """Mean value backed up through each prefix, in [0, 1]; None where it has no visit. One more than steps."""
    visits: tuple[int, ...]
    """How many values that is the mean of."""
    label: float | None = None
    """The outcome of a whole solution (1 right, 0 wrong); None for an unfinished one."""

    def __post_init__(self) -> None:
        _check_texts(self, "steps")
        n = len(self.steps) + 1
        _check_numbers(self, "q_values", n, f"{n}, one a prefix, the bare question's first")
        _check_length(self, "visits", n, f"{n}, one a prefix, the bare question's first")
        for count in self.visits:
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise DataError(f"row with visits {count!r} for question {self.question!r}; expected a number of at least 0")
        if self.label is not None:
            _check_number(self.label, "label", self.question)


@dataclass(frozen=True)
class PairRow:
    """Two beginnings of solutions, or whole ones, of one question; `chosen` is the better one."""

    problem: str
    question: str
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_texts(self, "chosen", "rejected")


@dataclass(frozen=True)
class VerdictRow:
    """A solution, or a prefix of one, with its verdict; `rationale` is empty for a direct one."""

    problem: str
    question: str
    steps: tuple[str, ...]
    right: bool
    rationale: str = ""

    def __post_init__(self) -> None:
        _check_texts(self, "steps")
        if not isinstance(self.right, bool) or not isinstance(self.rationale, str):
            raise DataError(
                f"row with right {self.right!r} for question {self.question!r}; expected true or false, and a text as rationale"
            )


@dataclass(frozen=True)
class TargetRow:
    """What a search made of the policy behind one prefix: AlphaZero's training example (s, pi, z)."""

    problem: str
    question: str
    steps: tuple[str, ...]
    """The prefix; empty for the bare question."""
    actions: tuple[str, ...]
    """The next steps that the search considered, distinct; none: the row tells the outcome alone."""
    targets: tuple[float, ...]
    """pi: the search's probability of each, in [0, 1], adding up to 1."""
    outcome: float | None = None
    """z: share of right ones among the whole solutions found below the prefix, in [0, 1]; None where it is not known."""

    def __post_init__(self) -> None:
        outcome_alone = not self.actions and not self.targets and self.outcome is not None
        _check_texts(self, *([] if outcome_alone else ["actions"]), *(["steps"] if self.steps else []))
        if not isinstance(self.targets, tuple) or len(self.targets) != len(self.actions):
            raise DataError(
                f"row with targets {self.targets!r} for {len(self.actions)} actions; expected one probability an action"
            )
        for x in (*self.targets, *([] if self.outcome is None else [self.outcome])):
            _check_number(x, "label", self.question)
        if len(set(self.actions)) < len(self.actions) or (self.actions and abs(sum(self.targets) - 1) > 1e-6):
            raise DataError(
                f"row with targets {self.targets!r} for question {self.question!r}; expected distinct actions, and a sum of 1"
            )


Row = SolutionRow | StepRow | TreeRow | PairRow | VerdictRow | TargetRow
_TOLD_BY: dict[str, type[Row]] = {
    "chosen": PairRow,
    "actions": TargetRow,
    "q_values": TreeRow,
    "right": VerdictRow,
    "labels": StepRow,
}
"""The key that tells a row's type; the first that it has decides."""


def row_to_dict(row: Row) -> dict[str, Any]:
    """A JSON-ready row."""
    data = {"version": FORMAT_VERSION, **asdict(row)}
    if isinstance(row, SolutionRow) and row.weight == 1.0:
        del data["weight"]
    return data


def row_from_dict(data: dict[str, Any]) -> Row:
    """Read a row back from JSON.

    Raises:
        DataError: another format version, or a row that its type refuses.
    """
    if (version := data.get("version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise DataError(f"row with format version {version!r}; expected {FORMAT_VERSION}: make the rows again")
    cls = next((cls for key, cls in _TOLD_BY.items() if key in data), SolutionRow)
    values: dict[str, Any] = {}
    for field in fields(cls):
        if field.name in data or field.default is MISSING:
            value = data.get(field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    values["problem"] = str(data.get("problem", ""))
    if cls is TargetRow:  # the bare question's prefix
        values["steps"] = values["steps"] or ()
    return cls(**values)


def _check_texts(row: Any, *names: str) -> None:
    """A question, and lists of texts that are not empty."""
    if not isinstance(row.question, str):
        raise DataError(f"row with question {row.question!r}; expected a text")
    for name in names:
        texts = getattr(row, name)
        if not isinstance(texts, tuple) or not texts or not all(isinstance(text, str) for text in texts):
            shown = list(texts) if isinstance(texts, tuple) else texts
            raise DataError(f"row with {name} {shown!r} for question {row.question!r}; expected a list of texts, at least one")


def _check_numbers(row: Any, name: str, length: int, expected: str) -> None:
    _check_length(row, name, length, expected)
    for value in getattr(row, name):
        if value is not None:
            _check_number(value, "label", row.question)


def _check_length(row: Any, name: str, length: int, expected: str) -> None:
    values = getattr(row, name)
    if not isinstance(values, tuple) or len(values) != length:
        shown = list(values) if isinstance(values, tuple) else values
        raise DataError(f"row with {name} {shown!r} for {len(row.steps)} steps; expected {expected}")


def _check_number(value: Any, name: str, question: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"row with {name} {value!r} for question {question!r}; expected a number in [0, 1]")
