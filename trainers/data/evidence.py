"""What a search has found out beyond its solutions: values of nodes, better and worse steps, solutions that nearly agree.

node rows     paths to the leaves, with Q and visits of every node on them
step pairs    of the visited steps behind one prefix the two best against the two worst by Q; whole solutions likewise by
              their mean Q (rStar-Math's PPM, arXiv 2501.04519)
twins         a right and a wrong solution that part as late as possible: what tells them apart is the slip, not the style
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import fmean

from llm_mcts.tasks.base import Task
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem
from trainers.data.rows import PairRow, SolutionRow, TreeRow

Prefix = tuple[str, ...]
PER_SIDE = 2
"""Best and worst steps that are compared. rStar-Math: 2."""


@dataclass
class Found:
    """What a tree knows of one prefix of steps."""

    visits: int = 0
    value_sum: float = 0.0
    right: int = 0
    """Whole solutions behind it that are right, roll-outs included."""
    wrong: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def q_value(self) -> float | None:
        """Mean of what was backed up; None without a visit. Clipped, for sums of floats can pass 1 by rounding."""
        return min(max(self.value_sum / self.visits, 0.0), 1.0) if self.visits else None


def statistics_of(tree: Tree, problem: Problem, task: Task) -> dict[Prefix, Found]:
    """Visits, values and outcomes of every prefix; nodes of equal steps count together."""
    assert problem.gold is not None
    found = defaultdict(Found, node_statistics(tree))
    for trace in tree.traces():
        correct = trace.state.answer is not None and task.check(trace.state.text, problem.gold)
        steps = tuple(step.text for step in trace.state.steps)
        for i in range(len(steps) + 1):
            found[steps[:i]].right += correct
            found[steps[:i]].wrong += not correct
    return dict(found)


def node_statistics(tree: Tree) -> dict[Prefix, Found]:
    """Visits and values of every prefix in the tree, of which no outcome is looked at."""
    found: dict[Prefix, Found] = defaultdict(Found)
    for node in tree.nodes():
        here = found[_texts(tree, node)]
        here.visits += node.visit_count
        here.value_sum += node.value_sum
        here.nodes.append(node)
    return dict(found)


def unanswered(tree: Tree) -> set[Prefix]:
    """Solutions that end without an answer, cut off or given up, where no other goes on from there.

    No policy should learn to end like that.
    """
    states = [tree.state(node) for node in tree.nodes()] + [state for _, state, _ in tree.rollouts]
    texts = [tuple(step.text for step in state.steps) for state in states]
    goes_on = {steps[:i] for steps in texts for i in range(len(steps))}
    ends = {steps for steps, state in zip(texts, states, strict=True) if state.terminal and state.answer is None}
    return ends - goes_on


def _texts(tree: Tree, node: Node) -> Prefix:
    return tuple(step.text for step in tree.state(node).steps)


def with_values(row: SolutionRow, found: dict[Prefix, Found]) -> TreeRow:
    """A whole solution with the tree's values along it; prefixes outside the tree, as on a roll-out, have none."""
    known = [found.get(row.steps[:i], Found()) for i in range(len(row.steps) + 1)]
    q_values, visits = tuple(f.q_value for f in known), tuple(f.visits for f in known)
    return TreeRow(row.problem, row.question, row.steps, q_values, visits, row.label)


def node_rows(found: dict[Prefix, Found], problem: Problem, limit: int) -> list[TreeRow]:
    """The paths to at most `limit` visited leaves, the most visited first; they bear no outcome."""
    visited = [steps for steps, here in found.items() if here.visits and steps]
    inner = {steps[:-1] for steps in visited}
    leaves = sorted((steps for steps in visited if steps not in inner), key=lambda steps: -found[steps].visits)
    rows = [with_values(SolutionRow(problem.id, problem.question, steps), found) for steps in leaves[:limit]]
    return [TreeRow(row.problem, row.question, row.steps, row.q_values, row.visits) for row in rows]


def each_node_once(rows: Sequence[TreeRow]) -> list[TreeRow]:
    """The same rows, with the visits of a prefix counted in the first row that has it and 0 in the others."""
    seen: set[tuple[str, Prefix]] = set()
    once = []
    for row in rows:
        keys = [(row.question, row.steps[:i]) for i in range(len(row.steps) + 1)]
        visits = tuple(0 if key in seen else n for key, n in zip(keys, row.visits, strict=True))
        seen.update(keys)
        once.append(TreeRow(row.problem, row.question, row.steps, row.q_values, visits, row.label))
    return once


def step_pairs(found: dict[Prefix, Found], problem: Problem, limit: int) -> list[PairRow]:
    """Pairs for a process preference model, those behind the most visited prefix first, at most `limit`.

    A better step leads to a right answer at least once, a worse one to a wrong one, and its Q is less. Steps that end the
    solution are compared across the tree, by their paths' mean Q.
    """
    children: dict[Prefix, list[tuple[float, Prefix]]] = defaultdict(list)
    ends: list[tuple[float, Prefix]] = []
    for steps, here in found.items():
        if not steps or here.q_value is None:
            continue
        if any(node.terminal for node in here.nodes):
            path = [found[steps[:i]].q_value for i in range(1, len(steps) + 1) if steps[:i] in found]
            ends.append((fmean(q for q in path if q is not None), steps))
        else:
            children[steps[:-1]].append((here.q_value, steps))
    groups = [children[prefix] for prefix in sorted(children, key=lambda prefix: -found[prefix].visits)]
    pairs = [pair for group in [*groups, ends] for pair in _best_against_worst(group, found)]
    return [PairRow(problem.id, problem.question, better, worse) for better, worse in pairs[:limit]]


def _best_against_worst(group: list[tuple[float, Prefix]], found: dict[Prefix, Found]) -> list[tuple[Prefix, Prefix]]:
    ranked = sorted(group, key=lambda pair: -pair[0])
    best = [pair for pair in ranked if found[pair[1]].right][:PER_SIDE]
    worst = [pair for pair in ranked[::-1] if found[pair[1]].wrong][:PER_SIDE]
    return [(better, worse) for q_better, better in best for q_worse, worse in worst if q_better > q_worse]


def twins_first(right: list[SolutionRow], wrong: list[SolutionRow]) -> tuple[list[SolutionRow], list[SolutionRow]]:
    """Both lists reordered: the i-th right and wrong solution are twins, the closest first; then those without one."""
    pairs = sorted(
        ((distance(r.steps, w.steps), i, j) for i, r in enumerate(right) for j, w in enumerate(wrong)),
    )
    places: list[tuple[int, int]] = []
    for _, i, j in pairs:
        if all(i != a and j != b for a, b in places):
            places.append((i, j))
    taken_right, taken_wrong = {i for i, _ in places}, {j for _, j in places}
    rest_right = [row for i, row in enumerate(right) if i not in taken_right]
    rest_wrong = [row for j, row in enumerate(wrong) if j not in taken_wrong]
    return [*(right[i] for i, _ in places), *rest_right], [*(wrong[j] for _, j in places), *rest_wrong]


def distance(a: Prefix, b: Prefix) -> tuple[int, int]:
    """How far two solutions are apart: lines behind their common beginning, then how many of those lines differ."""
    shared = sum(1 for _ in takewhile(lambda lines: lines[0] == lines[1], zip(a, b, strict=False)))
    longer = max(len(a), len(b))
    same = sum(x == y for x, y in zip(a, b, strict=False))
    return longer - shared, longer - same


def outcome_pairs(rows: Sequence[SolutionRow]) -> list[PairRow]:
    """Every solution of one question beside one of the other outcome, in order; those of the fewer outcome in turn."""
    right, wrong = ([row for row in rows if row.label == label] for label in (1.0, 0.0))
    if not right or not wrong:
        return []
    return [
        PairRow(rows[0].problem, rows[0].question, right[i % len(right)].steps, wrong[i % len(wrong)].steps)
        for i in range(max(len(right), len(wrong)))
    ]
