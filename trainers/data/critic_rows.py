"""What a searched tree teaches the critics.

    value   whole solutions with their outcome: the label of every prefix; or paths with the tree's values
    orm     the same solutions, judged as a whole; or right and wrong ones in pairs
    prm     the same solutions with a label per step: the share of right endings below that step in the tree; or steps in pairs

Which of them a critic gets is up to its objective (`objectives.py`). Twins are a right and a wrong solution that part
as late as possible: what tells them apart is the slip, not the style.
"""

from collections.abc import Sequence
from itertools import takewhile

from critics.kinds import KINDS, Kind
from llm_mcts.types import Problem
from trainers.data.config import RowsConfig
from trainers.data.evidence import Evidence, Prefix, PrefixStatistics
from trainers.data.imitation import solution_row
from trainers.data.objectives import CriticLossConfig, needed_rows
from trainers.data.preferences import step_pairs
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TreeRow


def critic_rows(evidence: Evidence, config: RowsConfig, losses: CriticLossConfig | None = None) -> dict[Kind, Sequence[Row]]:
    """The rows of every critic that one searched question with a known answer yields."""
    right, wrong = (
        [solution_row(trace, evidence.problem, label) for trace in side]
        for side, label in ((evidence.right, 1.0), (evidence.wrong, 0.0))
    )
    if config.negatives == "twins":
        right, wrong = twins_first(right, wrong)
    outcomes = balanced(right, wrong, config.critic_per_question)
    return {kind: _rows(kind, outcomes, evidence, config, losses or CriticLossConfig()) for kind in KINDS}


def _rows(
    kind: Kind, outcomes: list[SolutionRow], evidence: Evidence, config: RowsConfig, losses: CriticLossConfig
) -> Sequence[Row]:
    """What a critic's objective needs, of the chosen solutions or of the tree."""
    needed = needed_rows(kind, losses)
    if needed is SolutionRow:
        return outcomes
    if needed is StepRow:
        return [_step_row(row, evidence.prefixes) for row in outcomes]
    if kind == "orm":
        return outcome_pairs(outcomes)
    if kind == "prm":
        return step_pairs(evidence.prefixes, evidence.problem, config.pairs_per_question)
    if losses.value.target == "tree_q":
        return node_rows(evidence.prefixes, evidence.problem, config.critic_per_question)
    return [with_values(row, evidence.prefixes) for row in outcomes]


def balanced(right: list[SolutionRow], wrong: list[SolutionRow], limit: int) -> list[SolutionRow]:
    """At most `limit` rows, half right and half wrong where there are enough of both, right ones first."""
    half = limit // 2
    n_right = min(len(right), max(half, limit - len(wrong)))
    n_wrong = min(len(wrong), limit - n_right)
    return [*right[:n_right], *wrong[:n_wrong]]


def _step_row(row: SolutionRow, prefixes: dict[Prefix, PrefixStatistics]) -> StepRow:
    known = (prefixes.get(row.steps[: i + 1]) for i in range(len(row.steps)))
    return StepRow(row.problem, row.question, row.steps, tuple(None if here is None else here.outcome for here in known))


def with_values(row: SolutionRow, found: dict[Prefix, PrefixStatistics]) -> TreeRow:
    """A whole solution with the tree's values along it; prefixes outside the tree, as on a rollout, have none."""
    known = [found.get(row.steps[:i], PrefixStatistics()) for i in range(len(row.steps) + 1)]
    q_values, visits = tuple(f.q_value for f in known), tuple(f.visits for f in known)
    return TreeRow(row.problem, row.question, row.steps, q_values, visits, row.label)


def node_rows(found: dict[Prefix, PrefixStatistics], problem: Problem, limit: int) -> list[TreeRow]:
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
