"""Which right solutions of a searched question the policy imitates (rejection sampling), and how much each counts.

    right -> scored at least min_score -> not much longer than the shortest -> best first -> distinct -> the first k

The defaults are plain rejection sampling: distinct texts, the k best. Every solution is kept or refused for one reason, and
the refused are counted. Weights are those of advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177).
"""

from collections import Counter
from collections.abc import Sequence
from math import ceil, inf
from statistics import fmean

from llm_mcts.tasks.equations import written_equations
from llm_mcts.types import Problem, Trace
from trainers.data.config import RowsConfig, SelectionConfig, WeightedConfig
from trainers.data.evidence import Evidence
from trainers.data.rows import NO_GOLD, SolutionRow


def imitation_rows(evidence: Evidence, config: RowsConfig) -> tuple[list[SolutionRow], Counter[str]]:
    """Right solutions to imitate, all alike; and what was refused, by reason."""
    if not evidence.answer_known:
        return [], Counter({NO_GOLD: 1})
    min_score = config.min_score if evidence.scored else 0.0
    kept, refused = select(evidence.right, evidence.pass_rate, config.sft_per_question, min_score, config.selection)
    return [solution_row(trace, evidence.problem, 1.0) for trace in kept], evidence.refused() + refused


def weighted_rows(evidence: Evidence, config: RowsConfig) -> tuple[list[SolutionRow], Counter[str]]:
    """Solutions to imitate, each with its weight; and what was refused, by reason."""
    if not evidence.answer_known:
        return [], Counter({NO_GOLD: 1})
    weights, unscored = weighted(evidence, config.weighted)
    refused = evidence.refused(config.weighted.wrong) + unscored
    rows: list[SolutionRow] = []
    limit = config.sft_per_question
    for side, label, low in ((evidence.right, 1.0, config.min_score if evidence.scored else 0.0), (evidence.wrong, 0.0, 0.0)):
        weighed = [trace for trace in side if trace.state.text in weights]
        kept, more = select(weighed, evidence.pass_rate, limit, low, config.selection)
        limit = len(kept)  # no more wrong ones than right ones
        refused += more
        rows += [solution_row(trace, evidence.problem, label, weights[trace.state.text]) for trace in kept]
    return rows, refused


def solution_row(trace: Trace, problem: Problem, label: float, weight: float = 1.0) -> SolutionRow:
    """A whole solution as a row."""
    return SolutionRow(problem.id, problem.question, tuple(step.text for step in trace.state.steps), label, weight)


def select(
    distinct: Sequence[Trace], pass_rate: float, limit: int, min_score: float, config: SelectionConfig
) -> tuple[list[Trace], Counter[str]]:
    """The solutions to imitate, the best first, and how many were refused for which reason.

    Args:
        distinct: solutions without repeated texts.
        pass_rate: p of the question, in [0, 1].
        limit: k.
        min_score: solutions that the critics scored below this are refused; unscored ones stay, behind the scored.
    """
    shortest = min((len(trace.state.text) for trace in distinct), default=0)
    liked = [trace for trace in distinct if trace.score is None or trace.score >= min_score]
    brief = [t for t in liked if config.length_ratio == 0 or len(t.state.text) <= config.length_ratio * shortest]

    def rank(trace: Trace) -> tuple[float, int]:
        return (inf if trace.score is None else -trace.score, len(trace.state.text) if config.prefer_short else 0)

    ranked = sorted(brief, key=rank)
    if config.dedupe == "equations":
        best: dict[tuple[str, ...], Trace] = {}
        for trace in ranked:
            best.setdefault(written_equations(trace.state.text) or (trace.state.text,), trace)
        ranked = list(best.values())
    if config.balance == "pass_rate":
        limit = max(min(1, limit), ceil(limit * (1 - pass_rate)))
    counts = {"low score": len(distinct) - len(liked), "too long": len(liked) - len(brief)}
    counts |= {"same equations": len(brief) - len(ranked), "over the limit": max(0, len(ranked) - limit)}
    return ranked[:limit], Counter(counts)


def weighted(evidence: Evidence, config: WeightedConfig) -> tuple[dict[str, float], Counter[str]]:
    """Text -> weight of each distinct solution to be imitated, and how many have none because no critic scored them."""

    def score(trace: Trace) -> float | None:
        if config.score == "outcome":
            return float(evidence.is_right(trace))
        return trace.score if evidence.scored else None

    known = [value for trace in evidence.traces if (value := score(trace)) is not None]
    baseline = fmean(known) if known else 0.0
    chosen = [*evidence.right, *evidence.wrong] if config.wrong else evidence.right
    weights = {t.state.text: config.weight(value, baseline) for t in chosen if (value := score(t)) is not None}
    return weights, Counter({"unscored": len(chosen) - len(weights)})
