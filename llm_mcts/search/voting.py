"""Choosing one answer among whole solutions."""

from collections import defaultdict
from collections.abc import Sequence

from llm_mcts.types import Trace


def vote(traces: Sequence[Trace], weighted: bool = True) -> tuple[Trace | None, float]:
    """The answer with the largest sum of scores (weighted) or number of solutions, by its best-scored solution.

    Self-consistency (Wang et al. 2022) is the unweighted form; the weighted form is Math-Shepherd's
    argmax_a sum 1[a_i = a] score_i. A trace without a score counts 1. Ties go to the answer seen first.

    Returns:
        The chosen trace and the winner's share of all weight, in [0, 1]; (None, 0.0) where no trace states an answer.
    """
    weight: dict[str, float] = defaultdict(float)
    for trace in traces:
        if trace.state.answer is not None:
            weight[trace.state.answer] += 1.0 if trace.score is None or not weighted else trace.score
    if not weight:
        return None, 0.0
    winner = max(weight, key=weight.__getitem__)
    total = sum(weight.values())
    best = best_trace([t for t in traces if t.state.answer == winner])
    return best, weight[winner] / total if total else 0.0


def best_trace(traces: Sequence[Trace]) -> Trace | None:
    """The best-scored solution that states an answer; the first of equals. None where there is none."""
    answered = [t for t in traces if t.state.answer is not None]
    return max(answered, key=lambda t: -1.0 if t.score is None else t.score, default=None)
