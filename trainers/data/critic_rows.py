"""From search trees to training rows. Together with the tasks, the only code that sees gold answers.

sft     right solutions, distinct, best-scored first, at most so many a question (`imitation`); weighted: with weights
distill what the search made of the policy at each prefix, and dpo: better and worse steps (`trainers.data.targets`)
value   whole solutions with their outcome: the label of every prefix; or paths with the tree's values
orm     the same solutions, judged as a whole; or right and wrong ones in pairs
prm     the same solutions with a label a step: the share of right endings below that step in the tree; or steps in pairs

Which of them a critic gets is its objective's business (`trainers.data.objectives`).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from critics.kinds import Kind
from llm_mcts.errors import ConfigError
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Trace
from trainers.data.evidence import node_rows, outcome_pairs, statistics_of, step_pairs, twins_first, with_values
from trainers.data.imitation import SelectionConfig, Solutions, WeightedConfig, select, solutions_of, weighted
from trainers.data.objectives import CriticLossConfig, needed_rows
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TargetRow, TreeRow, row_from_dict, row_to_dict
from trainers.data.targets import PreferenceConfig, TargetConfig, policy_pairs, target_rows

PolicyMethod = Literal["sft", "weighted", "distill", "dpo", "joint"]
"""How the policy learns from trees that are there; joint learns from what distill does."""

__all__ = [
    "PairRow",
    "PolicyMethod",
    "RowsConfig",
    "SolutionRow",
    "StepRow",
    "TargetRow",
    "TreeRow",
    "balanced",
    "policy_rows",
    "row_from_dict",
    "row_to_dict",
    "rows_from_tree",
]


@dataclass(frozen=True)
class RowsConfig:
    """Which trajectories become training rows."""

    sft_per_question: int = 4
    """Right solutions kept for the policy, at least 1; `selection.balance` may lower it."""
    critic_per_question: int = 8
    """Solutions kept for each critic, half of them right where there are enough of both; at least 2."""
    min_score: float = 0.0
    """Right solutions that the critics scored below this are not imitated; in [0, 1]. Without critics it is not asked.
    AlphaLLM: gamma."""
    negatives: Literal["found", "twins"] = "found"
    """Which solutions critics get where there are more than enough. found: the first that the search found; twins: a wrong one
    that shares as long a beginning as possible with a right one, and that right one, so that style cannot tell them apart."""
    pairs_per_question: int = 16
    """Step pairs kept for a PRM, or a policy, that is trained on pairs, at least 1."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Which right solutions the policy imitates (sft, weighted)."""
    weighted: WeightedConfig = field(default_factory=WeightedConfig)
    """How much each of them counts (weighted)."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """What the search made of the policy (distill, joint)."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Which steps are compared (dpo)."""

    def __post_init__(self) -> None:
        if self.sft_per_question < 1 or self.critic_per_question < 2 or not 0 <= self.min_score <= 1:
            raise ConfigError(
                f"rows with sft_per_question={self.sft_per_question}, critic_per_question={self.critic_per_question}, "
                f"min_score={self.min_score}; expected at least 1, at least 2, and within [0, 1]"
            )
        if self.negatives not in ("found", "twins") or self.pairs_per_question < 1:
            raise ConfigError(
                f"rows with negatives={self.negatives}, pairs_per_question={self.pairs_per_question}; expected found or twins, "
                "and at least 1"
            )


def rows_from_tree(
    tree: Tree, problem: Problem, task: Task, config: RowsConfig, losses: CriticLossConfig | None = None
) -> dict[str, Sequence[Row]]:
    """The rows of every trainer ("sft", "value", "prm", "orm") that one searched training question yields."""
    found = solutions_of(tree, problem, task)
    right, wrong = (
        [_solution(trace, problem, label) for trace in side] for side, label in ((found.right, 1.0), (found.wrong, 0.0))
    )
    if config.negatives == "twins":
        right, wrong = twins_first(right, wrong)
    outcomes = balanced(right, wrong, config.critic_per_question)
    rows: dict[str, Sequence[Row]] = {"sft": _imitated(found, problem, config)[0]}
    kinds: tuple[Kind, ...] = ("value", "prm", "orm")
    rows |= {kind: _critic_rows(kind, outcomes, tree, problem, task, config, losses or CriticLossConfig()) for kind in kinds}
    return rows


def policy_rows(
    tree: Tree, problem: Problem, task: Task, config: RowsConfig, method: PolicyMethod
) -> tuple[Sequence[Row], dict[str, int]]:
    """The policy's rows of one searched question, and how many of what the tree holds were refused, by reason.

    sft and weighted: SolutionRow, of whole solutions; distill and joint: TargetRow, of prefixes with children; dpo: PairRow,
    of pairs. A question whose answer is not known gives rows to those alone that do not ask for it.
    """
    distills = method in ("distill", "joint")
    if problem.gold is None and not (distills and not config.targets.asks_the_answer):
        return [], {"no gold answer": 1}
    rows: Sequence[Row]
    if distills:
        outcomes = config.targets.outcomes_per_question if method == "joint" else 0
        rows, refused = target_rows(tree, problem, task, config.targets, outcomes)
    elif method == "dpo":
        rows, refused = policy_pairs(tree, problem, task, config.pairs_per_question, config.preferences)
    else:
        found = solutions_of(tree, problem, task)
        rows, refused = (_weighted if method == "weighted" else _imitated)(found, problem, config)
    return rows, {reason: n for reason, n in refused.items() if n}


def _imitated(found: Solutions, problem: Problem, config: RowsConfig) -> tuple[list[SolutionRow], Counter[str]]:
    min_score = config.min_score if found.scored else 0.0
    kept, refused = select(found.right, found.pass_rate, config.sft_per_question, min_score, config.selection)
    return [_solution(trace, problem, 1.0) for trace in kept], found.refused() + refused


def _weighted(found: Solutions, problem: Problem, config: RowsConfig) -> tuple[list[SolutionRow], Counter[str]]:
    weights, unscored = weighted(found, config.weighted)
    refused = found.refused(config.weighted.wrong) + unscored
    rows: list[SolutionRow] = []
    limit = config.sft_per_question
    for side, least in ((found.right, config.min_score if found.scored else 0.0), (found.wrong, 0.0)):
        weighed = [trace for trace in side if trace.state.text in weights]
        kept, more = select(weighed, found.pass_rate, limit, least, config.selection)
        limit = len(kept)  # no more wrong ones than right ones
        refused += more
        rows += [replace(_solution(trace, problem, found.outcome(trace)), weight=weights[trace.state.text]) for trace in kept]
    return rows, refused


def _solution(trace: Trace, problem: Problem, label: float) -> SolutionRow:
    return SolutionRow(problem.id, problem.question, tuple(step.text for step in trace.state.steps), label)


def _critic_rows(
    kind: Kind,
    outcomes: list[SolutionRow],
    tree: Tree,
    problem: Problem,
    task: Task,
    config: RowsConfig,
    losses: CriticLossConfig,
) -> Sequence[Row]:
    """What a critic's objective needs, of the chosen solutions or of the tree."""
    needed = needed_rows(kind, losses)
    if needed is SolutionRow:
        return outcomes
    if needed is StepRow:
        shares = _right_shares(tree, problem, task)
        return [_step_row(row, shares) for row in outcomes]
    if kind == "orm":
        return outcome_pairs(outcomes)
    found = statistics_of(tree, problem, task)
    if kind == "prm":
        return step_pairs(found, problem, config.pairs_per_question)
    if losses.value.target == "tree_q":
        return node_rows(found, problem, config.critic_per_question)
    return [with_values(row, found) for row in outcomes]


def balanced(right: list[SolutionRow], wrong: list[SolutionRow], limit: int) -> list[SolutionRow]:
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
    for trace in tree.traces():
        correct = trace.state.answer is not None and task.check(trace.state.text, problem.gold)
        steps = tuple(s.text for s in trace.state.steps)
        for i in range(1, len(steps) + 1):
            counts[steps[:i]][0] += correct
            counts[steps[:i]][1] += 1
    return {prefix: n_right / n for prefix, (n_right, n) in counts.items()}


def _step_row(row: SolutionRow, shares: dict[tuple[str, ...], float]) -> StepRow:
    labels = tuple(shares.get(row.steps[: i + 1]) for i in range(len(row.steps)))
    return StepRow(row.problem, row.question, row.steps, labels)
