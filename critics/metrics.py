"""Whether a critic can be trusted: pure functions of scores and outcomes.

A `Group` holds the samples of one question. What matters to a search is the order within a question: scores that merely tell
easy questions from hard ones have a fine AUC over all samples and choose no better than chance. Intervals are 95 %, over
questions, for samples of one question are not independent: of ratios from the bootstrap, of means the normal one.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from llm_mcts.errors import DataError
from llm_mcts.stats import bootstrap_interval, mean_interval


@dataclass(frozen=True)
class Sample:
    """One solution: the critic's score in [0, 1], whether it is right, its answer (None where it states none)."""

    score: float
    right: bool
    answer: str | None = None


Group = Sequence[Sample]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, and how many questions it rests on."""

    value: float
    low: float
    high: float
    questions: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(samples: Iterable[Sample]) -> float | None:
    """P(a right sample scores above a wrong one), ties half (Mann and Whitney 1947); None without both kinds."""
    won, pairs = _won(list(samples))
    return won / pairs if pairs else None


def within_question_auc(groups: Sequence[Group]) -> Estimate | None:
    """The same over pairs of one question only; None where no question has both kinds."""
    return _ratio([_won(group) for group in groups])


def _won(samples: Group) -> tuple[float, int]:
    """(pairs of a right and a wrong sample that are in order, all such pairs)."""
    ordered = sorted(samples, key=lambda s: s.score)
    won, below, tied_wrong, tied_right, at = 0.0, 0, 0, 0, None
    n_right = 0
    for sample in [*ordered, None]:
        if sample is None or sample.score != at:
            won += tied_right * (below + 0.5 * tied_wrong)
            below += tied_wrong
            tied_wrong = tied_right = 0
            at = sample.score if sample else None
        if sample is not None:
            tied_right += sample.right
            tied_wrong += not sample.right
            n_right += sample.right
    return won, n_right * (len(ordered) - n_right)


def _ratio(parts: Sequence[tuple[float, float]]) -> Estimate | None:
    """sum of a / sum of b with its bootstrap interval over the parts with b > 0."""
    if not (parts := [(a, b) for a, b in parts if b > 0]):
        return None

    def ratio(some: Sequence[tuple[float, float]]) -> float:
        return sum(a for a, _ in some) / sum(b for _, b in some)

    return Estimate(ratio(parts), *bootstrap_interval(parts, ratio), len(parts))


def agreement(a: Sequence[Group], b: Sequence[Group]) -> Estimate | None:
    """Share of the pairs of one question's answers that two critics put in the same order; ties of either are left out.

    The groups hold the same samples in the same order.
    """
    parts = []
    for x, y in zip(a, b, strict=True):
        answered = [i for i, sample in enumerate(x) if sample.answer is not None]
        pairs = [(i, j) for i in answered for j in answered if j < i]
        signs = [(x[i].score - x[j].score) * (y[i].score - y[j].score) for i, j in pairs]
        parts.append((sum(s > 0 for s in signs), sum(s != 0 for s in signs)))
    return _ratio(parts)


# Calibration


def brier(samples: Sequence[Sample]) -> float:
    """Mean of (score - outcome)^2."""
    return fmean((s.score - s.right) ** 2 for s in samples)


@dataclass(frozen=True)
class Bin:
    """Samples whose scores lie close together."""

    score: float
    """Their mean score."""
    right: float
    """Their share of right ones."""
    samples: int


def reliability(samples: Sequence[Sample], num_bins: int = 10) -> list[Bin]:
    """The non-empty ones of `num_bins` bins of equal width over [0, 1]."""
    bins: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        bins[min(num_bins - 1, int(sample.score * num_bins))].append(sample)
    return [Bin(fmean(s.score for s in b), fmean(s.right for s in b), len(b)) for _, b in sorted(bins.items())]


def calibration_error(samples: Sequence[Sample], num_bins: int = 10) -> float:
    """Expected calibration error: mean over samples of |share right - mean score| of their bin (Naeini et al. 2015)."""
    return sum(b.samples * abs(b.right - b.score) for b in reliability(samples, num_bins)) / len(samples)


# Choosing


def best_of(group: Group, n: int) -> float:
    """P(the best-scored of `n` random samples of the group is right), exactly; ties are broken at random.

    Raises:
        DataError: the group has fewer than `n` samples.
    """
    _check_size(group, n)
    by_score: dict[float, list[Sample]] = defaultdict(list)
    for sample in group:
        by_score[sample.score].append(sample)
    left, total = len(group), 0.0
    for _, tied in sorted(by_score.items(), reverse=True):
        # The best of n lies among these: none of the better ones was drawn, and not all are worse.
        p = comb(left, n) - comb(left - len(tied), n)
        total += p * fmean(s.right for s in tied)
        left -= len(tied)
    return total / comb(len(group), n)


def any_of(group: Group, n: int) -> float:
    """P(one of `n` random samples is right), exactly: what a perfect critic would reach (pass@n, Chen et al. 2021)."""
    _check_size(group, n)
    wrong = sum(not s.right for s in group)
    return 1.0 - comb(wrong, n) / comb(len(group), n)


def voted(group: Group, n: int, weighted: bool, draws: int = 64) -> float:
    """Share of `draws` random choices of `n` samples whose majority, or score-weighted vote, is right."""
    _check_size(group, n)
    draw = random.Random(n)
    return fmean(_vote_is_right(draw.sample(list(group), n), weighted) for _ in range(1 if n == len(group) else draws))


def _vote_is_right(samples: Group, weighted: bool) -> bool:
    votes: Counter[str] = Counter()
    right: dict[str, bool] = {}
    for sample in samples:
        if sample.answer is not None:
            votes[sample.answer] += sample.score if weighted else 1.0  # type: ignore[assignment]
            right[sample.answer] = sample.right
    return right[max(votes, key=lambda answer: votes[answer])] if votes else False


def _check_size(group: Group, n: int) -> None:
    if not 1 <= n <= len(group):
        raise DataError(f"{n} of a question's {len(group)} samples asked for; expected 1 to {len(group)}")


def mean_over(groups: Sequence[Group], figure: Callable[[Group], float]) -> Estimate:
    """Mean of a figure over questions, with the normal interval of a mean."""
    values = [figure(group) for group in groups]
    return Estimate(fmean(values), *mean_interval(values), len(values))


# Steps


def prefix_groups(scores: Sequence[Sequence[Sequence[float]]], groups: Sequence[Group]) -> dict[int, list[list[Sample]]]:
    """For each number of steps k, the unfinished prefixes of k steps with the outcome of the solution they became.

    Args:
        scores: for each question and sample the scores of its prefixes: of the bare question, then after each step.
        groups: the samples.
    """
    found: dict[int, list[list[Sample]]] = defaultdict(list)
    longest = max((len(row) for rows in scores for row in rows), default=0)
    for k in range(1, longest - 1):
        for rows, group in zip(scores, groups, strict=True):
            prefixes = [Sample(r[k], s.right, s.answer) for r, s in zip(rows, group, strict=True) if len(r) - 1 > k]
            found[k].append(prefixes)
    return dict(found)


def verdict(within: Estimate | None, gain: Estimate, vote_gain: Estimate, n: int) -> str:
    """One plain sentence: does it rank, and does choosing by it beat the majority of the same samples?

    Args:
        within: AUC within questions.
        gain: right answers of best-of-n minus majority, per question.
        vote_gain: the same of the weighted vote.
    """
    if within is None:
        return "cannot be judged: no question has both right and wrong answers"
    if within.questions < 10:
        return f"cannot be judged: only {within.questions} questions have both right and wrong answers; expected 10 or more"
    half = f"{within.value:.2f} ± {(within.high - within.low) / 2:.2f}"
    if within.high < 0.5:
        return f"ranks within questions worse than chance: {half}; look for swapped labels"
    if within.low <= 0.5:
        return f"ranks within questions no better than chance: {half}"
    sentences = [f"ranks within questions: {half}"]
    for name, found in (("best", gain), ("weighted vote", vote_gain)):
        word = "beats" if found.low > 0 else "loses to" if found.high < 0 else "ties with"
        points = f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        sentences.append(f"its {name} of {n} {word} their majority: {points}")
    return "; ".join(sentences)
