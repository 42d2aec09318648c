"""Better steps against worse ones, for a policy that learns from preferences and for a process preference model.

outcome   the share of right ones among the whole solutions below a step
q         the tree's Q: of the visited steps behind one prefix the two best against the two worst; whole solutions likewise by
          their path's mean Q (rStar-Math's PPM, arXiv 2501.04519)
"""

from collections import Counter, defaultdict
from statistics import fmean

from llm_mcts.types import Problem
from trainers.data.config import PreferenceConfig, RowsConfig
from trainers.data.evidence import Evidence, Prefix, PrefixStatistics, unanswered
from trainers.data.rows import NO_GOLD, PairRow

PER_SIDE = 2
"""Best and worst steps that are compared. rStar-Math: 2."""


def preference_rows(evidence: Evidence, config: RowsConfig) -> tuple[list[PairRow], Counter[str]]:
    """The rows of step-level DPO, and what was refused, by reason."""
    if not evidence.answer_known:
        return [], Counter({NO_GOLD: 1})
    return policy_pairs(evidence, config.pairs_per_question, config.preferences)


def policy_pairs(evidence: Evidence, limit: int, config: PreferenceConfig | None = None) -> tuple[list[PairRow], Counter[str]]:
    """Better and worse steps for a policy, at most `limit`, and what was refused, by reason.

    outcome: of the steps behind one prefix the two best against the two worst, those behind the prefix with most solutions
    first. Solutions without an answer are on neither side.
    """
    config = config or PreferenceConfig()
    problem, hopeless = evidence.problem, unanswered(evidence.tree)
    found = {steps: here for steps, here in evidence.prefixes.items() if steps not in hopeless}
    if config.by == "q":
        pairs = [pair for pair in step_pairs(found, problem, len(found) ** 2) if _part(pair.chosen, pair.rejected)]
    else:
        pairs = _pairs_by_outcome(found, problem, config.min_gap)
    return pairs[:limit], Counter({"over the limit": max(0, len(pairs) - limit)})


def _pairs_by_outcome(found: dict[Prefix, PrefixStatistics], problem: Problem, min_gap: float) -> list[PairRow]:
    groups: dict[Prefix, list[tuple[float, Prefix]]] = defaultdict(list)
    for steps, here in found.items():
        if steps and (share := here.outcome) is not None:
            groups[steps[:-1]].append((share, steps))
    ends = {prefix: sum(found[steps].right + found[steps].wrong for _, steps in group) for prefix, group in groups.items()}
    pairs = []
    for prefix in sorted(groups, key=lambda prefix: -ends[prefix]):
        ranked = sorted(groups[prefix], key=lambda pair: -pair[0])
        pairs += [
            PairRow(problem.id, problem.question, better, worse)
            for high, better in ranked[:PER_SIDE]
            for low, worse in ranked[: -PER_SIDE - 1 : -1]
            if high - low > min_gap
        ]
    return pairs


def _part(a: Prefix, b: Prefix) -> bool:
    """Whether neither begins with the other."""
    n = min(len(a), len(b))
    return a[:n] != b[:n]


def step_pairs(found: dict[Prefix, PrefixStatistics], problem: Problem, limit: int) -> list[PairRow]:
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


def _best_against_worst(
    group: list[tuple[float, Prefix]], found: dict[Prefix, PrefixStatistics]
) -> list[tuple[Prefix, Prefix]]:
    ranked = sorted(group, key=lambda pair: -pair[0])
    best = [pair for pair in ranked if found[pair[1]].right][:PER_SIDE]
    worst = [pair for pair in ranked[::-1] if found[pair[1]].wrong][:PER_SIDE]
    return [(better, worse) for q_better, better in best for q_worse, worse in worst if q_better > q_worse]
