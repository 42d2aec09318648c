"""Pseudo-labels for questions without a gold answer: what a search's solutions agree on, and its critics believe.

    answer a = argmax_a n_a, n_a whole solutions of the tree that state a;  taken if
    n_a / n >= min_vote,  mean critic score of a's solutions >= min_score,  n >= min_solutions

n counts solutions without an answer too: a policy that does not come to an end does not know the answer. Rows are then made
as if a were gold. AlphaLLM (arXiv 2404.12253) keeps a trajectory by its ORM alone; a vote is added here because a policy that
trains on its own answers has no other check, and it is no proof: solutions of one tree share steps, so they err together.
On imagined questions, which stray from what the policy knows, this filter is less precise than on labelled ones.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

from llm_mcts.fields import AtLeast, Settings, Within
from llm_mcts.tree import Tree
from llm_mcts.types import Trace

Reason = Literal[
    "agreed", "agreed by vote alone", "too few solutions", "no answer", "vote below min_vote", "score below min_score"
]


@dataclass(frozen=True)
class AgreementConfig(Settings, section="agreement"):
    """When an answer is taken for gold."""

    min_vote: Annotated[float, Within(0, 1, open_low=True)] = 0.6
    """Share of the whole solutions that have to state it."""
    min_score: Annotated[float, Within(0, 1)] = 0.6
    """Mean score that the critics have to give these solutions; without critics the vote decides alone."""
    min_solutions: Annotated[int, AtLeast(1)] = 4
    """Whole solutions that a tree must have."""
    distinct: bool = False
    """Count solutions of the same text once: a policy that repeats itself then has no more votes."""


@dataclass(frozen=True)
class Agreed:
    """What a tree's solutions agree on."""

    answer: str | None
    """The answer to be taken for gold; None: refused."""
    vote: float
    """Share of the whole solutions that state the most frequent answer, in [0, 1]."""
    score: float | None
    """The critics' mean score of these, in [0, 1]; None without critics."""
    reason: Reason
    """Why it is taken or refused."""


def agreed_answer(tree: Tree, config: AgreementConfig) -> Agreed:
    """The answer that the tree's whole solutions agree on, if that passes the thresholds.

    Args:
        tree: of a search of the question.
        config: the thresholds. Scores that agreement gave are not used: they would be the vote once more.
    """
    traces = tree.traces()
    if config.distinct:
        traces = list({trace.state.text: trace for trace in traces}.values())
    votes = Counter(trace.state.answer for trace in traces if trace.state.answer is not None)
    if not votes:
        return Agreed(None, 0.0, None, "no answer" if len(traces) >= config.min_solutions else "too few solutions")
    answer, n = votes.most_common(1)[0]
    vote, score = n / len(traces), _mean_score(traces, answer)
    if len(traces) < config.min_solutions:
        return Agreed(None, vote, score, "too few solutions")
    if vote < config.min_vote:
        return Agreed(None, vote, score, "vote below min_vote")
    if score is None:
        return Agreed(answer, vote, None, "agreed by vote alone")
    if score < config.min_score:
        return Agreed(None, vote, score, "score below min_score")
    return Agreed(answer, vote, score, "agreed")


def _mean_score(traces: Sequence[Trace], answer: str) -> float | None:
    scores = [trace.score for trace in traces if trace.state.answer == answer and trace.score is not None]
    return fmean(scores) if scores else None
