"""The gate: does a round's candidate replace what stands? A paired test on the same held-out questions.

McNemar's exact test (McNemar 1947, exact form: Agresti, Categorical Data Analysis, 10.1): of the d = gained + lost questions on
which both disagree, the candidate's gains are Binomial(d, 1/2) when nothing has changed,

    P(gain by chance) = sum_{k >= gained} C(d, k) / 2^d,    P(fall by chance) = sum_{k >= lost} C(d, k) / 2^d,

and the two-sided p-value is twice the smaller one, at most 1. The paired bootstrap (Efron 1979) draws the questions anew
instead, with replacement, and asks how often the difference changes its sign. (AlphaGo Zero's gate: 55 % of 400 games.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from llm_mcts.errors import ConfigError, DataError, suggest
from llm_mcts.evaluate import paired_difference
from llm_mcts.runner import Record

Test = Literal["mcnemar", "bootstrap"]
Rule = Literal["not_worse", "better", "always"]


@dataclass(frozen=True)
class GateConfig:
    """When a round's policy and critics replace the former ones, and when the run stops early."""

    rule: Rule = "not_worse"
    """not_worse: no method falls by more than `tolerance` or significantly, and their mean does not fall. better: at least one
    method gains significantly and none falls so. always: every round passes (what a run without a gate does)."""
    test: Test = "mcnemar"
    """mcnemar (exact) or bootstrap (paired, seeded): what decides whether a change is significant."""
    alpha: float = 0.05
    """One-sided level of significance, in (0, 0.5]."""
    tolerance: float = 0.02
    """not_worse: no method's held-out accuracy may fall by more than this; in [0, 1]."""
    resamples: int = 10_000
    """bootstrap: how often the questions are drawn anew, at least 100."""
    patience: int = 0
    """So many rounds in a row that are rejected or gain less than `min_gain` end the run early; 0: never."""
    min_gain: float = 0.005
    """The least gain in mean accuracy over the methods that counts as one for `patience`, in [0, 1]."""
    seed: int = 0
    """Of the bootstrap's draws."""

    def __post_init__(self) -> None:
        for name, known in (("rule", get_args(Rule)), ("test", get_args(Test))):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"gate.{name} is '{value}'{suggest(str(value), known)}")
        if not 0 < self.alpha <= 0.5:
            raise ConfigError(f"gate.alpha is {self.alpha}; expected within (0, 0.5]")
        for name in ("tolerance", "min_gain"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"gate.{name} is {getattr(self, name)}; expected within [0, 1]")
        if self.resamples < 100 or self.patience < 0:
            raise ConfigError(
                f"gate with resamples={self.resamples}, patience={self.patience}; expected resamples >= 100, patience >= 0"
            )


@dataclass(frozen=True)
class Change:
    """What the candidate changed for one method: accuracies in [0, 1], of n paired questions."""

    difference: float
    low: float
    high: float
    """95 % interval of the difference."""
    gained: int
    """Questions that the candidate alone got right."""
    lost: int
    """Questions that it alone got wrong."""
    n: int
    p_value: float
    """Two-sided: how likely so large a change is when the two are equally good."""

    def significant(self, alpha: float) -> int:
        """1 for a gain and -1 for a fall that is significant at the one-sided level alpha, else 0."""
        return (self.difference > 0) - (self.difference < 0) if self.p_value / 2 <= alpha else 0

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{points}, p = {self.p_value:.3f}"


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate is taken, why, and what it changed."""

    accepted: bool
    reason: str
    """One line for people."""
    changes: dict[str, Change]
    """By method."""

    @property
    def gain(self) -> float:
        """Mean difference over the methods."""
        return sum(change.difference for change in self.changes.values()) / len(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """As the run directory keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Read back what `to_dict` wrote; further keys, such as the stage's seconds, are left aside."""
        return cls(data["accepted"], data["reason"], {label: Change(**change) for label, change in data["changes"].items()})


def decide(
    before: Mapping[str, Sequence[Record]], after: Mapping[str, Sequence[Record]], config: GateConfig | None = None
) -> Verdict:
    """Compare the candidate (`after`) with what stands (`before`), method by method, on the same held-out questions.

    Raises:
        DataError: other methods or questions on one side, or none at all.
    """
    config = config or GateConfig()
    if set(before) != set(after) or not after:
        raise DataError(
            f"the gate got methods {sorted(before)} before and {sorted(after)} after; expected the same, at least one"
        )
    changes = {label: compare(before[label], records, config) for label, records in after.items()}
    accepted, reason = _apply(config, changes)
    return Verdict(accepted, reason, changes)


def compare(before: Sequence[Record], after: Sequence[Record], config: GateConfig) -> Change:
    """One method's paired change; the interval is Agresti and Min's, or with the bootstrap its percentiles.

    Raises:
        DataError: other questions on one side, or none.
    """
    if not after:
        raise DataError("the gate got no held-out question; expected at least one")
    pair = paired_difference(before, after)
    if config.test == "mcnemar":
        low, high, p_value = pair.low, pair.high, mcnemar(pair.gained, pair.lost)
    else:
        low, high, p_value = bootstrap(pair.gained, pair.lost, pair.n, config.resamples, config.seed)
    return Change(pair.difference, low, high, pair.gained, pair.lost, pair.n, p_value)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact test; half of it is the one-sided one of the side that leads. 1 without disagreement."""
    return min(1.0, 2 * at_least(max(gained, lost), gained + lost))


def at_least(successes: int, n: int) -> float:
    """P(X >= successes) of X ~ Binomial(n, 1/2), exactly."""
    return float(Fraction(sum(math.comb(n, k) for k in range(successes, n + 1)), 2**n))


def bootstrap(gained: int, lost: int, n: int, resamples: int, seed: int) -> tuple[float, float, float]:
    """Paired bootstrap of the difference: (low, high) of the 95 % percentile interval, and the two-sided p-value.

    A question's difference is 1, -1 or 0, so that drawing n questions anew is one multinomial draw. The p-value is twice the
    share of draws on the other side of 0 or at it, with 1 added to both counts (Davison and Hinkley 1997, 4.2).
    """
    import numpy as np

    shares = [gained / n, lost / n, (n - gained - lost) / n]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)  # [resamples, 3]
    differences = (draws[:, 0] - draws[:, 1]) / n
    low, high = np.quantile(differences, [0.025, 0.975])
    other_side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (other_side + 1) / (resamples + 1))


def _apply(config: GateConfig, changes: Mapping[str, Change]) -> tuple[bool, str]:
    """The rule's decision and its reason."""
    told = "; ".join(f"{label} {change}" for label, change in changes.items())
    if config.rule == "always":
        return True, f"every round passes ({told})"
    if fallen := [label for label, change in changes.items() if change.significant(config.alpha) < 0]:
        return False, f"{', '.join(fallen)} fell significantly ({told})"
    if config.rule == "better":
        risen = [label for label, change in changes.items() if change.significant(config.alpha) > 0]
        return bool(risen), f"{', '.join(risen) or 'no method'} gained significantly ({told})"
    if beyond := [label for label, change in changes.items() if change.difference < -config.tolerance]:
        return False, f"{', '.join(beyond)} fell by more than {100 * config.tolerance:g} points ({told})"
    if sum(Fraction(change.gained - change.lost, change.n) for change in changes.values()) < 0:  # no rounding decides
        return False, f"the mean fell ({told})"
    return True, f"not worse ({told})"


def should_stop(verdicts: Sequence[Verdict], config: GateConfig) -> str | None:
    """Why the run should end before its last round: the last `patience` rounds brought nothing; None where it should go on."""
    last = verdicts[-config.patience :] if config.patience else []
    if not last or len(last) < config.patience or any(v.accepted and v.gain >= config.min_gain for v in last):
        return None
    told = ", ".join(f"{100 * v.gain:+.1f}" if v.accepted else "rejected" for v in last)
    return f"{len(last)} rounds in a row gained less than {100 * config.min_gain:g} points ({told})"
