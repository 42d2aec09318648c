"""From search trees to training rows. Together with the tasks, the only code that sees gold answers.

sft     right solutions, distinct, best-scored first, at most so many a question
value   whole solutions with their outcome: the label of every prefix
orm     the same, judged as a whole
prm     whole solutions with a label a step: the share of right endings below that step in the tree
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.search.evaluation import tree_traces
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Trace


@dataclass(frozen=True)
class RowsConfig:
    """Which trajectories become training rows."""

    sft_per_question: int = 4
    """Right solutions kept for the policy, at least 1."""
    critic_per_question: int = 8
    """Solutions kept for each critic, half of them right where there are enough of both; at least 2."""
    min_score: float = 0.0
    """Right solutions that the critic scored below this are not imitated; in [0, 1]. AlphaLLM: gamma."""

    def __post_init__(self) -> None:
        if self.sft_per_question < 1 or self.critic_per_question < 2 or not 0 <= self.min_score <= 1:
            raise ConfigError(
                f"rows with sft_per_question={self.sft_per_question}, critic_per_question={self.critic_per_question}, "
                f"min_score={self.min_score}; expected at least 1, at least 2, and within [0, 1]"
            )


@dataclass(frozen=True)
class SolutionRow:
    """A solution; `label` is its outcome (1 right, 0 wrong)."""

    problem: str
    question: str
    steps: tuple[str, ...]
    label: float = 1.0


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


def row_from_dict(data: dict[str, Any]) -> SolutionRow | StepRow:
    """Read a row back from JSON.

    Raises:
        DataError: no steps, or labels outside [0, 1] or of the wrong number.
    """
    question, steps = data.get("question"), data.get("steps")
    if not isinstance(question, str):
        raise DataError(f"row with question {question!r}; expected a text")
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f"row with steps {steps!r} for question {question!r}; expected a list of texts, at least one")
    problem = str(data.get("problem", ""))
    if "labels" not in data:
        return SolutionRow(problem, question, tuple(steps), _label(data.get("label", 1.0), question))
    labels = data["labels"]
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise DataError(f"row with labels {labels!r} for {len(steps)} steps; expected one label a step")
    return StepRow(problem, question, tuple(steps), tuple(None if x is None else _label(x, question) for x in labels))


def _label(value: Any, question: str) -> float:
    """A label in [0, 1], or a DataError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"row with label {value!r} for question {question!r}; expected a number in [0, 1]")
    return float(value)


def rows_from_tree(tree: Tree, problem: Problem, task: Task, config: RowsConfig) -> dict[str, Sequence[SolutionRow | StepRow]]:
    """The rows of every trainer ("sft", "value", "prm", "orm") that one searched training question yields."""
    assert problem.gold is not None
    right: list[tuple[Trace, SolutionRow]] = []
    wrong: list[tuple[Trace, SolutionRow]] = []
    for trace in _distinct(tree_traces(tree)):
        steps = tuple(s.text for s in trace.state.steps)
        correct = task.check(trace.state.text, problem.gold)
        (right if correct else wrong).append((trace, SolutionRow(problem.id, problem.question, steps, float(correct))))
    by_score = sorted(right, key=lambda pair: inf if pair[0].score is None else -pair[0].score)
    liked = [row for trace, row in by_score if trace.score is None or trace.score >= config.min_score]
    outcomes = _balanced([row for _, row in right], [row for _, row in wrong], config.critic_per_question)
    shares = _right_shares(tree, problem, task)
    return {
        "sft": liked[: config.sft_per_question],
        "value": outcomes,
        "orm": outcomes,
        "prm": [_step_row(row, shares) for row in outcomes],
    }


def _distinct(traces: Sequence[Trace]) -> list[Trace]:
    """Traces with an answer, without repeated texts; the best score of equals."""
    best: dict[str, Trace] = {}
    for trace in traces:
        if trace.state.answer is not None and ((known := best.get(trace.state.text)) is None or _more(trace, known)):
            best[trace.state.text] = trace
    return list(best.values())


def _more(a: Trace, b: Trace) -> bool:
    return a.score is not None and (b.score is None or a.score > b.score)


def _balanced(right: list[SolutionRow], wrong: list[SolutionRow], limit: int) -> list[SolutionRow]:
    """At most `limit` rows, half right and half wrong where there are enough of both, right ones first."""
    half = limit // 2
    n_right = min(len(right), max(half, limit - len(wrong)))
    n_wrong = min(len(wrong), limit - n_right)
    return [*right[:n_right], *wrong[:n_wrong]]


def _right_shares(tree: Tree, problem: Problem, task: Task) -> dict[tuple[str, ...], float]:
    """For each prefix of steps, the share of right ones among the whole solutions below it.

    A Monte-Carlo estimate of the value that the search has already paid for.
    """
    assert problem.gold is not None
    counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for trace in tree_traces(tree):
        correct = trace.state.answer is not None and task.check(trace.state.text, problem.gold)
        steps = tuple(s.text for s in trace.state.steps)
        for i in range(1, len(steps) + 1):
            counts[steps[:i]][0] += correct
            counts[steps[:i]][1] += 1
    return {prefix: n_right / n for prefix, (n_right, n) in counts.items()}


def _step_row(row: SolutionRow, shares: dict[tuple[str, ...], float]) -> StepRow:
    labels = tuple(shares.get(row.steps[: i + 1]) for i in range(len(row.steps)))
    return StepRow(row.problem, row.question, row.steps, labels)


def row_to_dict(row: SolutionRow | StepRow) -> dict[str, Any]:
    """A JSON-ready row."""
    return asdict(row)
