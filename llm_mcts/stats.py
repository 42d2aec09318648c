"""Intervals and tests, each once: Wilson, Agresti and Min, exact McNemar, and the bootstrap over questions.

All intervals are two-sided 95 % ones. Questions are the unit: samples of one question are not independent.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean, stdev
from typing import TypeVar

T = TypeVar("T")
Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The normal interval of a mean; mean -/+ 1 for a single value."""
    mean = fmean(values)
    half = Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return mean - half, mean + half


def bootstrap_interval(
    parts: Sequence[T], figure: Callable[[Sequence[T]], float | None], resamples: int = 1000
) -> tuple[float, float]:
    """Percentile interval of `figure` over resampled parts (Efron 1979), seeded; resamples without the figure are left out.

    Args:
        parts: one per question, at least one.
        figure: of a list of parts; None where it does not exist.
        resamples: how often the parts are drawn again, with replacement.
    """
    draw = random.Random(0)
    drawn = (figure(draw.choices(parts, k=len(parts))) for _ in range(resamples))
    found = sorted(value for value in drawn if value is not None)
    return found[int(0.025 * len(found))], found[int(0.975 * len(found))]


@dataclass(frozen=True)
class PairedDifference:
    """How much more often B is right than A on the same questions."""

    n: int
    gained: int
    """Questions only B got right."""
    lost: int
    """Questions only A got right."""
    low: float
    high: float
    """95 % interval of the difference."""

    @property
    def difference(self) -> float:
        """Accuracy of B minus accuracy of A, in [-1, 1]."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def paired(gained: int, lost: int, n: int) -> PairedDifference:
    """Agresti and Min's interval for matched pairs (2005): Wald's with half a count added to each cell of the 2 x 2 table.

    It keeps its coverage in small samples and never collapses to a point.
    """
    total, g, lo = n + 2.0, gained + 0.5, lost + 0.5
    centre = (g - lo) / total
    half = Z95 * math.sqrt(g + lo - (g - lo) ** 2 / total) / total
    return PairedDifference(n, gained, lost, max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact test; half of it is the one-sided one of the side that leads. 1 without disagreement."""
    return min(1.0, 2 * at_least(max(gained, lost), gained + lost))


def at_least(successes: int, n: int) -> float:
    """P(X >= successes) of X ~ Binomial(n, 1/2), exactly."""
    return float(Fraction(sum(math.comb(n, k) for k in range(successes, n + 1)), 2**n))
