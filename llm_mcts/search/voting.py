"""Choosing one answer among whole solutions, and seeing when the choice is settled."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from llm_mcts.result import SearchResult
from llm_mcts.types import State, Trace

Choice = Literal["best", "majority", "vote"]
"""best: the solution with the highest score. majority: the answer of most solutions. vote: of the largest sum of scores."""


def vote(traces: Sequence[Trace], weighted: bool = True) -> tuple[Trace | None, float]:
    """The answer with the largest sum of scores (weighted) or number of solutions, by its best-scored solution.

    Self-consistency (Wang et al. 2022) is the unweighted form; the weighted form is Math-Shepherd's
    argmax_a sum 1[a_i = a] score_i. A trace without a score counts 1. Ties go to the answer seen first.

    Returns:
        The chosen trace and the winner's share of all weight, in [0, 1]; (None, 0.0) where no trace states an answer.
    """
    weight = _weights(traces, weighted)
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


def choose(question: str, traces: list[Trace], choice: Choice) -> SearchResult:
    """The result of deciding among whole solutions; its confidence is the share of the votes, or the best score."""
    voted, share = vote(traces, weighted=choice == "vote")
    trace = best_trace(traces) if choice == "best" else voted
    if trace is None:
        return SearchResult(question, None, State(question), 0.0, traces)
    confidence = trace.score if choice == "best" and trace.score is not None else share
    return SearchResult(question, trace.state.answer, trace.state, confidence, traces)


def settled(traces: Sequence[Trace], choice: Choice, left: int) -> bool:
    """Whether `left` more solutions, each scored at most 1, cannot change the answer chosen.

    A vote is settled once the leader's lead exceeds what is left; the best solution once its score is 1.
    """
    if choice == "best":
        best = best_trace(traces)
        return best is not None and best.score == 1.0
    first, second = sorted([0.0, 0.0, *_weights(traces, choice == "vote").values()], reverse=True)[:2]
    return first - second > left


def _weights(traces: Sequence[Trace], weighted: bool) -> dict[str, float]:
    """The votes for each answer."""
    weight: dict[str, float] = defaultdict(float)
    for trace in traces:
        if trace.state.answer is not None:
            weight[trace.state.answer] += 1.0 if trace.score is None or not weighted else trace.score
    return weight
