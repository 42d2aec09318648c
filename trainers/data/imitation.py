"""Which right solutions of a searched question the policy imitates (rejection sampling), and how much each counts.

    right -> scored at least min_score -> not much longer than the shortest -> best first -> distinct -> the first k

The defaults are plain rejection sampling: distinct texts, the k best. Every solution is kept or refused for one reason, and
the refused are counted. Weights are those of advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from statistics import fmean
from typing import Literal

from llm_mcts.errors import ConfigError
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Trace

_EQUATION = re.compile(r"[\d(][\d \t.,+\-*/()%$]*=[ \t]*-?\$?\d[\d,]*(?:\.\d+)?")
_SAME_SIGN = str.maketrans({"×": "*", "x": "*", "·": "*", "÷": "/", "−": "-"})


@dataclass(frozen=True)
class SelectionConfig:
    """Which of a question's right solutions are imitated."""

    dedupe: Literal["text", "equations"] = "text"
    """Which solutions count as one. text: equal texts; equations: equal equations in equal order, whatever the words are
    (a solution without any: equal texts). Of those that count as one the best is kept."""
    length_ratio: float = 0.0
    """Solutions longer than this times the question's shortest right one, in characters, are left out; at least 1, or 0: no
    limit. Long ones tend to hold detours that the answer hides."""
    prefer_short: bool = False
    """Of equally scored solutions the shorter first, else in the order in which the search found them."""
    balance: Literal["none", "pass_rate"] = "none"
    """none: k solutions a question. pass_rate: ceil(k (1 - p)), at least 1, where p is the share of right ones among all that
    the search found: a hard question keeps up to k, one that is always solved keeps one."""

    def __post_init__(self) -> None:
        if self.dedupe not in ("text", "equations") or self.balance not in ("none", "pass_rate"):
            raise ConfigError(
                f"selection with dedupe={self.dedupe}, balance={self.balance}; expected text or equations, none or pass_rate"
            )
        if self.length_ratio != 0 and not 1 <= self.length_ratio < inf:
            raise ConfigError(f"selection.length_ratio is {self.length_ratio}; expected at least 1, or 0 for no limit")


@dataclass(frozen=True)
class WeightedConfig:
    """How much each solution counts: w = min(exp((score - baseline) / beta), clip)."""

    beta: float = 0.5
    """Temperature, at least 0.01; scores are in [0, 1]. Large: all count alike, small: the best alone. Authors' code: 1, of
    advantages that it divides by their deviation, which of outcomes is at most 0.5."""
    clip: float = 20.0
    """Largest weight, at least 1. Authors' code: 20."""
    score: Literal["outcome", "critic"] = "outcome"
    """outcome: 1 for a right solution, 0 for a wrong one, so that rare right ones count most; critic: what the critics said of
    it. The baseline is the mean over all whole solutions of the question."""
    wrong: bool = False
    """Imitate wrong solutions too, with the small weight that they have; as many at most as right ones."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.beta < inf or not 1 <= self.clip < inf:
            raise ConfigError(f"weighted with beta={self.beta}, clip={self.clip}; expected at least 0.01, at least 1")
        if self.score not in ("outcome", "critic"):
            raise ConfigError(f"weighted.score is '{self.score}'; expected outcome or critic")

    def weight(self, score: float, baseline: float) -> float:
        """w of a solution; both arguments in [0, 1]."""
        return exp(min((score - baseline) / self.beta, log(self.clip)))


@dataclass(frozen=True)
class Solutions:
    """The whole solutions that a search found for one question."""

    traces: list[Trace]
    """All of them."""
    right: list[Trace]
    """Distinct right ones in the order in which they were found, each with the best score of its equals."""
    wrong: list[Trace]
    """Distinct wrong ones that state an answer, likewise."""
    is_right: dict[str, bool]
    """Text -> whether it is right, for all that state an answer."""
    scored: bool = True
    """Whether critics gave the scores. Without critics a search values a solution by its answer's share of the votes so far:
    that puts solutions in an order and says no more."""

    def outcome(self, trace: Trace) -> float:
        """1 for a right solution, 0 for a wrong one or one without an answer."""
        return float(trace.state.answer is not None and self.is_right[trace.state.text])

    @property
    def pass_rate(self) -> float:
        """Share of right ones among all, repetitions included; 0 where there is none."""
        return fmean(self.outcome(trace) for trace in self.traces) if self.traces else 0.0

    def refused(self, wrong_too: bool = False) -> Counter[str]:
        """What is no distinct right solution, by reason; with `wrong_too`, what is no distinct solution at all."""
        answered = [trace for trace in self.traces if trace.state.answer is not None]
        right = sum(self.is_right[trace.state.text] for trace in answered)
        wrong = len(answered) - right
        repeated = right - len(self.right) + (wrong - len(self.wrong) if wrong_too else 0)
        return Counter(
            {"no answer": len(self.traces) - len(answered), "wrong": 0 if wrong_too else wrong, "repeated": repeated}
        )


def solutions_of(tree: Tree, problem: Problem, task: Task) -> Solutions:
    """The solutions of a tree of a question whose answer is known."""
    assert problem.gold is not None
    traces = tree.traces(votes=True)
    distinct = _distinct(traces)
    is_right = {trace.state.text: task.check(trace.state.text, problem.gold) for trace in distinct}
    right, wrong = ([trace for trace in distinct if is_right[trace.state.text] is side] for side in (True, False))
    return Solutions(traces, right, wrong, is_right, tree.scored_by == "critic")


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
            best.setdefault(equations(trace.state.text), trace)
        ranked = list(best.values())
    if config.balance == "pass_rate":
        limit = max(min(1, limit), ceil(limit * (1 - pass_rate)))
    counts = {"low score": len(distinct) - len(liked), "too long": len(liked) - len(brief)}
    counts |= {"same equations": len(brief) - len(ranked), "over the limit": max(0, len(ranked) - limit)}
    return ranked[:limit], Counter(counts)


def equations(text: str) -> tuple[str, ...]:
    """The arithmetic of a solution alone: its equations in order, without blanks, currency and thousands separators.

    A text without an equation stands for itself.
    """
    found = _EQUATION.findall(text.translate(_SAME_SIGN))
    return tuple(re.sub(r"[\s$,]", "", one) for one in found) or (text,)


def weighted(solutions: Solutions, config: WeightedConfig) -> tuple[dict[str, float], Counter[str]]:
    """Text -> weight of each distinct solution to be imitated, and how many have none because no critic scored them."""

    def score(trace: Trace) -> float | None:
        if config.score == "outcome":
            return solutions.outcome(trace)
        return trace.score if solutions.scored else None

    known = [value for trace in solutions.traces if (value := score(trace)) is not None]
    baseline = fmean(known) if known else 0.0
    chosen = [*solutions.right, *solutions.wrong] if config.wrong else solutions.right
    weights = {t.state.text: config.weight(value, baseline) for t in chosen if (value := score(t)) is not None}
    return weights, Counter({"unscored": len(chosen) - len(weights)})


def _distinct(traces: Sequence[Trace]) -> list[Trace]:
    """Traces with an answer, without repeated texts; the best score of equals."""
    best: dict[str, Trace] = {}
    for trace in traces:
        if trace.state.answer is not None and ((known := best.get(trace.state.text)) is None or _more(trace, known)):
            best[trace.state.text] = trace
    return list(best.values())


def _more(a: Trace, b: Trace) -> bool:
    return a.score is not None and (b.score is None or a.score > b.score)
