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
from math import exp, isfinite
from pathlib import Path
from typing import Any, Literal

import torch

from critics.kinds import KINDS, Kind
from critics.metrics import Group, Sample
from critics.scoring.combine import logit
from critics.scoring.logistic import fit_logistic
from critics.scoring.trained import AGGREGATES
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs.durable import write_atomically
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
    """The calibration of maximum likelihood, found by Newton's method.

    Raises:
        ConfigError: no such method.
        DataError: the outcomes are all alike.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration method is '{method}'; expected one of {', '.join(METHODS)}")
    if len({s.right for s in samples}) < 2:
        raise DataError(f"all {len(samples)} solutions have the same outcome; expected right and wrong ones to calibrate with")
    x = torch.tensor([[logit(s.score), 1.0] for s in samples], dtype=torch.float64)
    y = torch.tensor([float(s.right) for s in samples], dtype=torch.float64)
    ridge, bias_moves = (RIDGE, RIDGE), method == "platt"
    scale, bias = fit_logistic(x, y, (1.0, 0.0), ridge, (True, bias_moves)).tolist()
    if scale < 0:  # the likelihood is concave: with a >= 0 its maximum lies where a = 0
        scale, bias = 0.0, 0.0
        if bias_moves:
            bias = float(fit_logistic(x, y, (0.0, 0.0), ridge, (False, True))[1])
    return Calibration(scale, bias)


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
    """The first 16 hex digits of the SHA-256 of a checkpoint's head, or else of its weights: every training writes others.

    Raises:
        ConfigError: there are none.
    """
    for pattern in ("head.safetensors", "adapter_model.safetensors", "model*.safetensors"):
        if files := sorted(Path(folder).glob(pattern)):
            digest = hashlib.sha256()
            for path in files:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            return digest.hexdigest()[:16]
    raise ConfigError(f"{folder} has no head.safetensors and no weights; expected a critic's checkpoint")


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


def calibrated(
    critic: Critic, kind: Kind, folder: str | Path, file: str, fitted: Mapping[Kind, Fitted], aggregate: str
) -> Critic:
    """`critic`, loaded from `folder`, with its calibration from `file`.

    Raises:
        ConfigError: the file has none for this kind, or it was fitted to another checkpoint or aggregate.
    """
    if kind not in fitted:
        raise ConfigError(f"{file} has no calibration of the {kind} critic; fit it as well, with diagnose --calibrate")
    if fitted[kind].head != head_hash(folder):
        raise ConfigError(
            f"{file} was fitted to another {kind} checkpoint than {folder}; fit it again with diagnose --calibrate"
        )
    if kind == "prm" and fitted[kind].prm_aggregate != aggregate:
        raise ConfigError(
            f"{file} was fitted with prm_aggregate '{fitted[kind].prm_aggregate}' and the critics' is '{aggregate}'; "
            "make them the same"
        )
    return CalibratedCritic(critic, fitted[kind].calibration)
