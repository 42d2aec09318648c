"""What a searched question's tree tells, worked out once for all row makers: each solution is marked once.

Together with the tasks, this is the only place that compares solutions with gold answers for training.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from llm_mcts.tasks.base import Task
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem, Trace

Prefix = tuple[str, ...]


@dataclass
class PrefixStatistics:
    """What a tree knows of one prefix of steps; nodes of equal steps count together."""

    visits: int = 0
    value_sum: float = 0.0
    right: int = 0
    """Whole solutions behind it that are right, rollouts included."""
    wrong: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def q_value(self) -> float | None:
        """Mean of what was backed up; None without a visit. Clipped, because sums of floats can pass 1 by rounding."""
        return min(max(self.value_sum / self.visits, 0.0), 1.0) if self.visits else None

    @property
    def outcome(self) -> float | None:
        """z: share of right ones among the whole solutions below, a Monte-Carlo value; None without any."""
        ends = self.right + self.wrong
        return self.right / ends if ends else None


class Evidence:
    """The whole solutions of a tree with their outcomes, and the statistics of its prefixes."""

    def __init__(self, tree: Tree, problem: Problem, check: Callable[[str], bool] | None) -> None:
        """`check`: whether a solution is right; None: the answer is not known, and nothing is."""
        self.tree, self.problem = tree, problem
        self.answer_known = check is not None
        self.scored = tree.scored_by == "critic"
        """Whether critics gave the scores. Without them a search values a solution by its answer's share of the votes so far,
        which puts solutions in an order and says no more."""
        self.traces = tree.traces(votes=True)
        """All whole solutions, as often as they were found."""
        distinct = _distinct(self.traces)
        self._right = {trace.state.text: check(trace.state.text) for trace in distinct} if check else {}
        right = [trace for trace in distinct if self._right.get(trace.state.text)]
        self.right: list[Trace] = right
        """Distinct right ones in the order in which they were found, each with the best score of its equals."""
        self.wrong: list[Trace] = [trace for trace in distinct if self._right.get(trace.state.text) is False]
        """Distinct wrong ones that state an answer, likewise."""

    @classmethod
    def of(cls, tree: Tree, problem: Problem, task: Task) -> "Evidence":
        """What the tree of a question tells; `task` marks its solutions where the answer is known."""
        gold = problem.gold
        return cls(tree, problem, None if gold is None else lambda text: task.check(text, gold))

    def is_right(self, trace: Trace) -> bool:
        """Whether a solution is right; one without an answer is not."""
        return trace.state.answer is not None and self._right[trace.state.text]

    @property
    def pass_rate(self) -> float:
        """Share of right ones among all, repetitions included; 0 where there is none."""
        return fmean(map(self.is_right, self.traces)) if self.traces else 0.0

    def refused(self, wrong_too: bool = False) -> Counter[str]:
        """What is no distinct right solution, by reason; with `wrong_too`, what is no distinct solution at all."""
        answered = [trace for trace in self.traces if trace.state.answer is not None]
        right = sum(map(self.is_right, answered))
        wrong = len(answered) - right
        repeated = right - len(self.right) + (wrong - len(self.wrong) if wrong_too else 0)
        return Counter(
            {"no answer": len(self.traces) - len(answered), "wrong": 0 if wrong_too else wrong, "repeated": repeated}
        )

    @cached_property
    def prefixes(self) -> dict[Prefix, PrefixStatistics]:
        """Visits, values and, where the answer is known, outcomes of every prefix."""
        statistics: dict[Prefix, PrefixStatistics] = defaultdict(PrefixStatistics)
        for node in self.tree.nodes():
            prefix = statistics[steps_of(self.tree, node)]
            prefix.visits += node.visit_count
            prefix.value_sum += node.value_sum
            prefix.nodes.append(node)
        for trace in self.traces if self.answer_known else ():
            right, steps = self.is_right(trace), tuple(step.text for step in trace.state.steps)
            for i in range(len(steps) + 1):
                statistics[steps[:i]].right += right
                statistics[steps[:i]].wrong += not right
        return dict(statistics)


def steps_of(tree: Tree, node: Node) -> Prefix:
    """The steps up to a node."""
    return tuple(step.text for step in tree.state(node).steps)


def unanswered(tree: Tree) -> set[Prefix]:
    """Solutions that end without an answer, cut off or given up, where no other continues from there.

    No policy should learn to end like that.
    """
    states = [tree.state(node) for node in tree.nodes()] + [state for _, state, _ in tree.rollouts]
    texts = [tuple(step.text for step in state.steps) for state in states]
    goes_on = {steps[:i] for steps in texts for i in range(len(steps))}
    ends = {steps for steps, state in zip(texts, states, strict=True) if state.terminal and state.answer is None}
    return ends - goes_on


def _distinct(traces: Sequence[Trace]) -> list[Trace]:
    """Traces with an answer, without repeated texts; the best score of equals."""
    best: dict[str, Trace] = {}
    for trace in traces:
        if trace.state.answer is not None and ((known := best.get(trace.state.text)) is None or _more(trace, known)):
            best[trace.state.text] = trace
    return list(best.values())


def _more(a: Trace, b: Trace) -> bool:
    return a.score is not None and (b.score is None or a.score > b.score)
