"""Calibration: a critic's scores mapped so that of the solutions scored 0.7 about 70 % are right.

    Platt        q = sigmoid(a logit(p) + b)     (Platt 1999)
    temperature  q = sigmoid(a logit(p)),  T = 1 / a   (Guo et al. 2017, arXiv 1706.04599)

Fitted by maximum likelihood on outcomes of held-out questions, with a >= 0: calibration never turns an order round; where the
scores have nothing to tell, a is 0 and every score becomes the share of right ones. A ridge of 1e-6 towards a = 1, b = 0 keeps
the fit finite where right and wrong scores do not overlap.

One file holds the calibrations of several critics, a kind each, with the hash of the head that each was fitted to.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite, log1p
from pathlib import Path
from typing import Any, Literal

from critics.kinds import KINDS, Kind
from critics.metrics import Group, Sample
from critics.scoring.combine import logit
from critics.scoring.trained import AGGREGATES
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs.directory import write_atomically
from llm_mcts.search.contracts import critic_scores
from llm_mcts.types import Critic, State

Method = Literal["platt", "temperature"]
METHODS: tuple[Method, ...] = ("platt", "temperature")
RIDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """q = sigmoid(scale * logit(p) + bias)."""

    scale: float
    """a, at least 0."""
    bias: float = 0.0
    """b; 0 for temperature."""

    def __post_init__(self) -> None:
        if not (isfinite(self.scale) and self.scale >= 0 and isfinite(self.bias)):
            raise ConfigError(f"calibration with scale={self.scale}, bias={self.bias}; expected finite, the scale at least 0")

    def __call__(self, score: float) -> float:
        """The calibrated score in [0, 1]."""
        return _sigmoid(self.scale * logit(score) + self.bias)


def fit_calibration(samples: Sequence[Sample], method: Method = "platt") -> Calibration:
    """The calibration of greatest likelihood, found by Newton's method.

    Raises:
        ConfigError: no such method.
        DataError: the outcomes are all alike.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration method is '{method}'; expected one of {', '.join(METHODS)}")
    if len({s.right for s in samples}) < 2:
        raise DataError(f"all {len(samples)} solutions have the same outcome; expected right and wrong ones to calibrate with")
    x, y = [logit(s.score) for s in samples], [float(s.right) for s in samples]
    free = method == "platt"
    scale, bias = _newton(x, y, (1.0, 0.0), move_scale=True, move_bias=free)
    if scale < 0:  # the likelihood is concave: with a >= 0 its maximum lies where a = 0
        scale, bias = _newton(x, y, (0.0, 0.0), move_scale=False, move_bias=free)
    return Calibration(scale, bias)


def _newton(
    x: Sequence[float], y: Sequence[float], start: tuple[float, float], move_scale: bool, move_bias: bool
) -> tuple[float, float]:
    """Minimise the mean cross-entropy over (scale, bias), or over those that may move; steps are halved until it falls."""
    a, b = start
    loss = _loss(x, y, a, b)
    for _ in range(100):
        da, db = _step(x, y, a, b, move_scale, move_bias)
        size = 1.0
        while size > 1e-8 and (new := _loss(x, y, a - size * da, b - size * db)) > loss:
            size /= 2
        if size <= 1e-8:
            break
        a, b, loss = a - size * da, b - size * db, new
        if max(abs(da), abs(db)) < 1e-10:
            break
    return a, b


def _step(x: Sequence[float], y: Sequence[float], a: float, b: float, move_scale: bool, move_bias: bool) -> tuple[float, float]:
    """Newton's step H^-1 g of the two parameters, 0 for one that stays."""
    p = [_sigmoid(a * v + b) for v in x]
    w, n = [q * (1 - q) for q in p], len(x)
    ga = sum((q - t) * v for q, t, v in zip(p, y, x, strict=True)) / n + RIDGE * (a - 1)
    gb = sum(q - t for q, t in zip(p, y, strict=True)) / n + RIDGE * b
    haa = sum(u * v * v for u, v in zip(w, x, strict=True)) / n + RIDGE
    hab = sum(u * v for u, v in zip(w, x, strict=True)) / n
    hbb = sum(w) / n + RIDGE
    if not (move_scale and move_bias):
        return (ga / haa if move_scale else 0.0), (gb / hbb if move_bias else 0.0)
    determinant = haa * hbb - hab * hab
    return (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant


def _loss(x: Sequence[float], y: Sequence[float], a: float, b: float) -> float:
    """Mean of log(1 + e^z) - y z, z = a x + b, and the ridge."""
    z = [a * v + b for v in x]
    cross_entropy = sum(max(v, 0.0) + log1p(exp(-abs(v))) - t * v for v, t in zip(z, y, strict=True))
    return cross_entropy / len(x) + RIDGE / 2 * ((a - 1) ** 2 + b * b)


def _sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z)) if z >= 0 else exp(z) / (1 + exp(z))


def cross_fitted(groups: Sequence[Group], method: Method) -> list[list[Sample]]:
    """Each half of the questions (the even and the odd ones), calibrated by what was fitted to the other half."""
    fits = [fit_calibration([s for group in groups[half::2] for s in group], method) for half in (1, 0)]
    return [[replace(s, score=fits[q % 2](s.score)) for s in group] for q, group in enumerate(groups)]


class CalibratedCritic:
    """A critic whose scores are calibrated. Its ranking stays as it was."""

    def __init__(self, critic: Critic, calibration: Calibration) -> None:
        self.critic, self.calibration = critic, calibration

    async def score(self, states: Sequence[State]) -> list[float]:
        """One calibrated score per state; a finished solution without an answer stays at 0."""
        scores = await critic_scores(self.critic, states)
        return [
            0.0 if state.terminal and state.answer is None else self.calibration(score)
            for state, score in zip(states, scores, strict=True)
        ]


# Files


@dataclass(frozen=True)
class Fitted:
    """A calibration with what it belongs to."""

    calibration: Calibration
    method: Method
    head: str
    """`head_hash` of the checkpoint it was fitted to."""
    questions: int
    samples: int
    prm_aggregate: str = "last"
    """How a PRM's step scores became one where it was fitted."""


def head_hash(folder: str | Path) -> str:
    """The first 16 hex digits of the SHA-256 of a checkpoint's head, or of a verifier's weights: every training writes others.

    Raises:
        ConfigError: there is none.
    """
    for name in ("head.safetensors", "adapter_model.safetensors", "model.safetensors"):
        if (path := Path(folder) / name).exists():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    raise ConfigError(f"{folder} has no head.safetensors; expected a critic's checkpoint")


def save_calibrations(fitted: Mapping[Kind, Fitted], path: Path) -> None:
    """Write as JSON: critic's kind -> calibration."""
    write_atomically(path, json.dumps({kind: asdict(one) for kind, one in fitted.items()}, indent=2).encode() + b"\n")


def load_calibrations(path: str | Path) -> dict[Kind, Fitted]:
    """Read what `save_calibrations` wrote.

    Raises:
        ConfigError: the file is missing, or holds no calibrations.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {kind: _fitted(row) for kind, row in data.items()}
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no calibration ({error}); expected what diagnose --calibrate wrote") from error
    if not found or (strange := set(found) - set(KINDS)):
        what = ", ".join(sorted(strange)) if found else "nothing"
        raise ConfigError(f"{path} calibrates {what}; expected some of {', '.join(KINDS)}")
    return found


def _fitted(row: Mapping[str, Any]) -> Fitted:
    calibration = Calibration(float(row["calibration"]["scale"]), float(row["calibration"]["bias"]))
    if row["method"] not in METHODS or row["prm_aggregate"] not in AGGREGATES:
        raise ValueError(f"method {row['method']!r}, prm_aggregate {row['prm_aggregate']!r}")
    return Fitted(
        calibration, row["method"], str(row["head"]), int(row["questions"]), int(row["samples"]), row["prm_aggregate"]
    )


def calibrated(critic: Critic, kind: Kind, folder: str, file: str, fitted: Mapping[Kind, Fitted], aggregate: str) -> Critic:
    """`critic`, loaded from `folder`, with its calibration from `file`.

    Raises:
        ConfigError: the file has none for this kind, or it was fitted to another checkpoint or aggregate.
    """
    if kind not in fitted:
        raise ConfigError(f"{file} has no calibration of the {kind} critic; fit it as well, with diagnose --calibrate")
    if fitted[kind].head != head_hash(folder):
        raise ConfigError(
            f"{file} was fitted to another {kind} checkpoint than {folder}; fit it anew with diagnose --calibrate"
        )
    if kind == "prm" and fitted[kind].prm_aggregate != aggregate:
        raise ConfigError(
            f"{file} was fitted with prm_aggregate '{fitted[kind].prm_aggregate}' and the critics' is '{aggregate}'; "
            "make them the same"
        )
    return CalibratedCritic(critic, fitted[kind].calibration)
