"""The gate: does a round's candidate replace the incumbent? A paired test on the same held-out questions.

McNemar's exact test (McNemar 1947, exact form: Agresti, Categorical Data Analysis, 10.1): of the d = gained + lost questions on
which both disagree, the candidate's gains are Binomial(d, 1/2) when nothing has changed,

    P(gain by chance) = sum_{k >= gained} C(d, k) / 2^d,    P(fall by chance) = sum_{k >= lost} C(d, k) / 2^d,

and the two-sided p-value is twice the smaller one, at most 1. (AlphaGo Zero's gate: 55 % of 400 games.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from llm_mcts.errors import DataError
from llm_mcts.fields import AtLeast, Settings, Within
from llm_mcts.runner import Record
from llm_mcts.scores import paired_difference
from llm_mcts.stats import mcnemar


@dataclass(frozen=True)
class GateConfig(Settings, section="gate"):
    """When a round's policy and critics replace the former ones, and when the run stops early."""

    rule: Literal["not_worse", "better", "always"] = "not_worse"
    """not_worse: no method falls by more than `tolerance` or significantly, and their mean does not fall. better: at least one
    method gains significantly and none falls so. always: every round passes (what a run without a gate does)."""
    alpha: Annotated[float, Within(0, 0.5, open_low=True)] = 0.05
    """One-sided level of significance."""
    tolerance: Annotated[float, Within(0, 1)] = 0.02
    """not_worse: no method's held-out accuracy may fall by more than this."""
    patience: Annotated[int, AtLeast(0)] = 0
    """Number of consecutive rounds, rejected or with a gain below `min_gain`, that ends the run early; 0: never."""
    min_gain: Annotated[float, Within(0, 1)] = 0.005
    """The smallest gain in mean accuracy over the methods that counts as one for `patience`."""


@dataclass(frozen=True)
class MethodChange:
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
class GateDecision:
    """Whether the candidate is taken, why, and what it changed."""

    accepted: bool
    reason: str
    """One line for people."""
    changes: dict[str, MethodChange]
    """By method."""

    @property
    def gain(self) -> float:
        """Mean difference over the methods."""
        return sum(change.difference for change in self.changes.values()) / len(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """As the run directory keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GateDecision":
        """Read back what `to_dict` wrote; further keys, such as the stage's seconds, are left aside."""
        return cls(
            data["accepted"], data["reason"], {label: MethodChange(**change) for label, change in data["changes"].items()}
        )


def decide(
    before: Mapping[str, Sequence[Record]], after: Mapping[str, Sequence[Record]], config: GateConfig | None = None
) -> GateDecision:
    """Compare the candidate (`after`) with the incumbent (`before`), method by method, on the same held-out questions.

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
    return GateDecision(accepted, reason, changes)


def compare(before: Sequence[Record], after: Sequence[Record], config: GateConfig) -> MethodChange:
    """One method's paired change; the interval is Agresti and Min's.

    Raises:
        DataError: other questions on one side, or none.
    """
    if not after:
        raise DataError("the gate got no held-out question; expected at least one")
    pair = paired_difference(before, after)
    p_value = mcnemar(pair.gained, pair.lost)
    return MethodChange(pair.difference, pair.low, pair.high, pair.gained, pair.lost, pair.n, p_value)


def _apply(config: GateConfig, changes: Mapping[str, MethodChange]) -> tuple[bool, str]:
    """The rule's decision and its reason."""
    summary = "; ".join(f"{label} {change}" for label, change in changes.items())
    if config.rule == "always":
        return True, f"every round passes ({summary})"
    if fallen := [label for label, change in changes.items() if change.significant(config.alpha) < 0]:
        return False, f"{', '.join(fallen)} fell significantly ({summary})"
    if config.rule == "better":
        risen = [label for label, change in changes.items() if change.significant(config.alpha) > 0]
        return bool(risen), f"{', '.join(risen) or 'no method'} gained significantly ({summary})"
    if beyond := [label for label, change in changes.items() if change.difference < -config.tolerance]:
        return False, f"{', '.join(beyond)} fell by more than {100 * config.tolerance:g} points ({summary})"
    if sum(Fraction(change.gained - change.lost, change.n) for change in changes.values()) < 0:  # no rounding decides
        return False, f"the mean fell ({summary})"
    return True, f"not worse ({summary})"


def should_stop(verdicts: Sequence[GateDecision], config: GateConfig) -> str | None:
    """Why the run should end before its last round: the last `patience` rounds brought nothing; None where it should go on."""
    last = verdicts[-config.patience :] if config.patience else []
    if not last or len(last) < config.patience or any(v.accepted and v.gain >= config.min_gain for v in last):
        return None
    summary = ", ".join(f"{100 * v.gain:+.1f}" if v.accepted else "rejected" for v in last)
    return f"{len(last)} rounds in a row gained less than {100 * config.min_gain:g} points ({summary})"
