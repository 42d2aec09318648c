"""The rows that trainers read, and their JSON.

    SolutionRow   a solution and its outcome                       sft, weighted, value, orm
    StepRow       a solution with a label a step                   prm
    TreeRow       a path with the tree's Q and visits a prefix     value: tree_q, td_lambda
    PairRow       two beginnings of solutions, the better first    dpo; prm and orm: pairwise
    VerdictRow    a solution, or its beginning, judged in words    genrm
    TargetRow     what a search made of the policy at one prefix   distill, joint

A row's keys tell its type: `labels`, `q_values`, `chosen`, `right`, `actions`, or none of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from llm_mcts.errors import DataError


@dataclass(frozen=True)
class SolutionRow:
    """A solution; `label` is its outcome (1 right, 0 wrong)."""

    problem: str
    question: str
    steps: tuple[str, ...]
    label: float = 1.0
    weight: float = 1.0
    """How much the solution counts for trainer `weighted`, finite and above 0; written only where it is not 1."""


@dataclass(frozen=True)
class StepRow:
    """A solution with a label in [0, 1] per step, or None where the tree does not tell."""

    problem: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]

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


@dataclass(frozen=True)
class PairRow:
    """Two beginnings of solutions, or whole ones, of one question; `chosen` is the better one."""

    problem: str
    question: str
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class VerdictRow:
    """A solution, or a prefix of one, with its verdict; `rationale` is empty for a direct one."""

    problem: str
    question: str
    steps: tuple[str, ...]
    right: bool
    rationale: str = ""


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


Row = SolutionRow | StepRow | TreeRow | PairRow | VerdictRow | TargetRow


def row_to_dict(row: Row) -> dict[str, Any]:
    """A JSON-ready row."""
    data = asdict(row)
    if isinstance(row, SolutionRow) and row.weight == 1.0:
        del data["weight"]
    return data


def row_from_dict(data: dict[str, Any]) -> Row:
    """Read a row back from JSON.

    Raises:
        DataError: no steps, or labels outside [0, 1] or of the wrong number.
    """
    question = data.get("question")
    if not isinstance(question, str):
        raise DataError(f"row with question {question!r}; expected a text")
    problem = str(data.get("problem", ""))
    if "chosen" in data:
        return PairRow(problem, question, _steps(data, "chosen"), _steps(data, "rejected"))
    if "actions" in data:
        return _target_row(data, problem)
    steps = _steps(data, "steps")
    if "q_values" in data:
        q_values = tuple(None if q is None else _label(q, question) for q in _list(data, "q_values", len(steps) + 1))
        visits = tuple(_count(n, question) for n in _list(data, "visits", len(steps) + 1))
        label = data.get("label")
        return TreeRow(problem, question, steps, q_values, visits, None if label is None else _label(label, question))
    if "right" in data:
        right, rationale = data["right"], data.get("rationale", "")
        if not isinstance(right, bool) or not isinstance(rationale, str):
            raise DataError(
                f"row with right {right!r} for question {question!r}; expected true or false, and a text as rationale"
            )
        return VerdictRow(problem, question, steps, right, rationale)
    if "labels" in data:
        labels = tuple(None if x is None else _label(x, question) for x in _list(data, "labels", len(steps)))
        return StepRow(problem, question, steps, labels)
    return SolutionRow(problem, question, steps, _label(data.get("label", 1.0), question), _weight(data, question))


def _target_row(data: dict[str, Any], problem: str) -> TargetRow:
    question, outcome, given = data["question"], data.get("outcome"), data.get("targets")
    alone = data["actions"] in ([], ()) and given in ([], ()) and outcome is not None
    actions = () if alone else _steps(data, "actions")
    steps = _steps(data, "steps") if data.get("steps") else ()
    if not isinstance(given, list | tuple) or len(given) != len(actions):
        raise DataError(f"row with targets {given!r} for {len(actions)} actions; expected one probability an action")
    targets = tuple(_label(x, question) for x in given)
    if len(set(actions)) < len(actions) or (actions and abs(sum(targets) - 1) > 1e-6):
        raise DataError(f"row with targets {given!r} for question {question!r}; expected distinct actions, and a sum of 1")
    return TargetRow(problem, question, steps, actions, targets, None if outcome is None else _label(outcome, question))


def check_row(row: Row) -> None:
    """Hold a row made in Python to what a row read from a file is held to.

    Raises:
        DataError: no steps, or labels outside [0, 1] or of the wrong number.
    """
    row_from_dict(row_to_dict(row))


def _steps(data: dict[str, Any], key: str) -> tuple[str, ...]:
    steps = data.get(key)
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f"row with {key} {steps!r} for question {data['question']!r}; expected a list of texts, at least one")
    return tuple(steps)


def _list(data: dict[str, Any], key: str, length: int) -> Sequence[Any]:
    values = data.get(key)
    if not isinstance(values, list | tuple) or len(values) != length:
        expected = "one label a step" if key == "labels" else f"{length}, one a prefix, the bare question's first"
        raise DataError(f"row with {key} {values!r} for {len(data['steps'])} steps; expected {expected}")
    return values


def _label(value: Any, question: str) -> float:
    """A label in [0, 1], or a DataError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"row with label {value!r} for question {question!r}; expected a number in [0, 1]")
    return float(value)


def _weight(data: dict[str, Any], question: str) -> float:
    value = data.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
        raise DataError(f"row with weight {value!r} for question {question!r}; expected a finite number above 0")
    return float(value)


def _count(value: Any, question: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"row with visits {value!r} for question {question!r}; expected a number of at least 0")
    return value
