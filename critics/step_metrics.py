"""Whether a PRM finds the first wrong step: pure functions of step scores and the truth.

The first error that a critic names is the first step scored below a threshold; none below means a right solution. As
ProcessBench does (arXiv 2412.06559), its accuracy is taken on solutions with a wrong step (the very step must be named) and on
those without (none may be named), and F1 is the harmonic mean of the two: a critic that always, or never, complains gets 0.
Steps behind the first wrong one are not judged: whether what follows rightly from an error is wrong is a matter of taste.
Intervals are 95 %, from the bootstrap over questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from critics.metrics import Estimate, Sample, auc, within_question_auc
from llm_mcts.stats import bootstrap_interval


class Labelled(Protocol):
    """A solution with labels in [0, 1], None where unknown; below 0.5 is wrong. One is `trainers.data.critic_rows.StepRow`."""

    @property
    def question(self) -> str:
        """The question."""
        ...

    @property
    def steps(self) -> tuple[str, ...]:
        """The solution's lines."""
        ...

    @property
    def labels(self) -> tuple[float | None, ...]:
        """One a step."""
        ...


@dataclass(frozen=True)
class StepCase:
    """A solution: the critic's score of each step, and whether the step is right (None: unknown, or behind a wrong one)."""

    scores: tuple[float, ...]
    truth: tuple[bool | None, ...]

    @property
    def first_wrong(self) -> int | None:
        """Index of the first wrong step; None in a right solution."""
        return next((i for i, right in enumerate(self.truth) if right is False), None)


StepGroup = Sequence[StepCase]
"""The solutions of one question."""


def truth_of_labels(labels: Sequence[float | None]) -> tuple[bool | None, ...]:
    """Labels as truth: at least 0.5 is right. What stands before a right step is right; behind the first wrong one is None."""
    wrong = next((i for i, label in enumerate(labels) if label is not None and label < 0.5), len(labels))
    known = [i for i, label in enumerate(labels[:wrong]) if label is not None]
    last_right = known[-1] if known else -1
    return tuple(True if i <= last_right else False if i == wrong else None for i in range(len(labels)))


def is_known(truth: Sequence[bool | None]) -> bool:
    """Whether the first wrong step, or that there is none, is known."""
    before = truth[: next((i for i, right in enumerate(truth) if right is False), len(truth))]
    return None not in before


def first_below(scores: Sequence[float], threshold: float) -> int | None:
    """Index of the first score below the threshold."""
    return next((i for i, score in enumerate(scores) if score < threshold), None)


@dataclass(frozen=True)
class FirstError:
    """How often the first wrong step is named; None where there is no such solution."""

    overall: Estimate | None
    faulty: Estimate | None
    """On solutions with a wrong step."""
    right: Estimate | None
    """On solutions without one."""
    f1: Estimate | None
    """Harmonic mean of `faulty` and `right`."""


@dataclass(frozen=True)
class Hits:
    """Of one question: solutions whose first error was named rightly, and all, with and without a wrong step."""

    faulty: int
    faulty_all: int
    right: int
    right_all: int


def count_hits(group: StepGroup, threshold: float) -> Hits:
    """Count one question's solutions at a threshold."""
    hit = [first_below(case.scores, threshold) == case.first_wrong for case in group]
    wrong = [case.first_wrong is not None for case in group]
    named = sum(h and w for h, w in zip(hit, wrong, strict=True))
    return Hits(named, sum(wrong), sum(hit) - named, len(group) - sum(wrong))


def first_error(groups: Sequence[StepGroup], thresholds: Sequence[float]) -> FirstError:
    """Accuracy of the first error, each question judged at its own threshold."""
    hits = [count_hits(group, threshold) for group, threshold in zip(groups, thresholds, strict=True)]
    total = _total(hits)

    def estimate(figure: Callable[[Hits], float | None]) -> Estimate | None:
        """The figure of all questions together; resamples in which it does not exist are left out of its interval."""
        if (value := figure(total)) is None:
            return None
        return Estimate(value, *bootstrap_interval(hits, lambda drawn: figure(_total(drawn))), len(hits))

    return FirstError(
        estimate(lambda h: _share(h.faulty + h.right, h.faulty_all + h.right_all)),
        estimate(lambda h: _share(h.faulty, h.faulty_all)),
        estimate(lambda h: _share(h.right, h.right_all)),
        estimate(f1),
    )


def f1(hits: Hits) -> float | None:
    """Harmonic mean of the accuracies on solutions with and without a wrong step; None where one kind is missing."""
    faulty, right = _share(hits.faulty, hits.faulty_all), _share(hits.right, hits.right_all)
    if faulty is None or right is None:
        return None
    return 2 * faulty * right / (faulty + right) if faulty + right else 0.0


def best_threshold(groups: Sequence[StepGroup], candidates: int = 100) -> float:
    """The lowest threshold of maximum F1 (of maximum accuracy where one kind is missing) among quantiles of the scores."""
    scores = sorted({score for group in groups for case in group for score in case.scores})
    chosen = [*scores[:: max(1, len(scores) // candidates)], inf]

    def quality(threshold: float) -> float:
        total = _total([count_hits(group, threshold) for group in groups])
        found = f1(total)
        return found if found is not None else _share(total.faulty + total.right, total.faulty_all + total.right_all) or 0.0

    return max(chosen, key=quality)


def cross_thresholds(groups: Sequence[StepGroup]) -> list[float]:
    """For each question the best threshold of the other half of the questions."""
    halves = [best_threshold(groups[1::2]), best_threshold(groups[0::2])]
    return [halves[i % 2] for i in range(len(groups))]


@dataclass(frozen=True)
class StepDiagnosis:
    """How a PRM judges steps."""

    source: str
    """Where the truth comes from."""
    solutions: int
    faulty: int
    """Solutions with a wrong step."""
    left_out: int
    """Solutions whose first wrong step is unknown."""
    auc_within: Estimate | None
    """AUC over pairs of a right and a wrong step of one question."""
    auc_over_all: float | None
    at_half: FirstError
    """At threshold 0.5."""
    tuned: FirstError | None
    """At the best threshold of the other half of the questions; None with a single question."""
    thresholds: list[float]
    """The two halves' best thresholds, each used on the other half."""


def judge_steps(groups: Sequence[StepGroup], source: str) -> StepDiagnosis:
    """All figures of one PRM's step scores; solutions whose first wrong step is unknown are left out, and counted."""
    known = [[case for case in group if is_known(case.truth)] for group in groups]
    left_out = sum(map(len, groups)) - sum(map(len, known))
    known = [group for group in known if group]
    samples = [
        [Sample(s, right) for case in group for s, right in zip(case.scores, case.truth, strict=True) if right is not None]
        for group in known
    ]
    thresholds = cross_thresholds(known) if len(known) > 1 else []
    return StepDiagnosis(
        source,
        sum(map(len, known)),
        sum(case.first_wrong is not None for group in known for case in group),
        left_out,
        within_question_auc(samples),
        auc([sample for group in samples for sample in group]),
        first_error(known, [0.5] * len(known)),
        first_error(known, thresholds) if thresholds else None,
        thresholds[1::-1],
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _total(hits: Sequence[Hits]) -> Hits:
    return Hits(
        sum(h.faulty for h in hits),
        sum(h.faulty_all for h in hits),
        sum(h.right for h in hits),
        sum(h.right_all for h in hits),
    )


def to_markdown(diagnosis: StepDiagnosis) -> list[str]:
    """The lines of the report."""
    d = diagnosis
    lines = [
        "",
        f"Steps, by {d.source}: {d.solutions} solutions, {d.faulty} of them with a wrong step"
        + (f"; {d.left_out} left out, their first wrong step is unknown" if d.left_out else ""),
        "",
        f"- AUC of steps within questions {d.auc_within or '–'}; over all steps "
        + ("–" if d.auc_over_all is None else f"{d.auc_over_all:.3f}"),
        "",
        "| first step below | named rightly | in faulty solutions | in right ones | F1 |",
        "|---|---|---|---|---|",
    ]
    rows = [("0.5", d.at_half)]
    if d.tuned:
        bounds = " and ".join(f"{t:.3f}" if t < inf else "any" for t in d.thresholds)
        rows.append((f"{bounds} (chosen on the other half of the questions)", d.tuned))
    for name, row in rows:
        cells = (_percent(found) for found in (row.overall, row.faulty, row.right, row.f1))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _percent(e: Estimate | None) -> str:
    return "–" if e is None else f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]"
