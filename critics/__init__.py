"""Critics: models that score partial and whole solutions in [0, 1]."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from critics.assemble.loading import StepCritic, load_critic
    from critics.kinds import KINDS, Kind
    from critics.model.heads import HeadConfig
    from critics.model.lora import LoraSpec
    from critics.model.model import CriticModel
    from critics.published.classifier import ClassifierCritic
    from critics.published.prm import PublicPRM, load_public
    from critics.scoring.calibration import CalibratedCritic, Calibration
    from critics.scoring.combine import Combination, CriticWeights, LogisticCritic, RankAverageCritic, WeightedCritic
    from critics.scoring.generative import GenerativeVerifier, VerifierConfig
    from critics.scoring.likelihood import LikelihoodCritic
    from critics.scoring.rollout import RolloutCritic
    from critics.scoring.trained import AGGREGATES, ModelCritic

_HOMES = {
    "AGGREGATES": "critics.scoring.trained",
    "CalibratedCritic": "critics.scoring.calibration",
    "Calibration": "critics.scoring.calibration",
    "ClassifierCritic": "critics.published.classifier",
    "Combination": "critics.scoring.combine",
    "CriticModel": "critics.model.model",
    "CriticWeights": "critics.scoring.combine",
    "GenerativeVerifier": "critics.scoring.generative",
    "HeadConfig": "critics.model.heads",
    "KINDS": "critics.kinds",
    "Kind": "critics.kinds",
    "LikelihoodCritic": "critics.scoring.likelihood",
    "LogisticCritic": "critics.scoring.combine",
    "LoraSpec": "critics.model.lora",
    "ModelCritic": "critics.scoring.trained",
    "PublicPRM": "critics.published.prm",
    "RankAverageCritic": "critics.scoring.combine",
    "RolloutCritic": "critics.scoring.rollout",
    "StepCritic": "critics.assemble.loading",
    "VerifierConfig": "critics.scoring.generative",
    "WeightedCritic": "critics.scoring.combine",
    "load_critic": "critics.assemble.loading",
    "load_public": "critics.published.prm",
}
"""Name -> the module it is loaded from when it is asked for: most of them load torch."""
__all__ = [
    "AGGREGATES",
    "KINDS",
    "CalibratedCritic",
    "Calibration",
    "ClassifierCritic",
    "Combination",
    "CriticModel",
    "CriticWeights",
    "GenerativeVerifier",
    "HeadConfig",
    "Kind",
    "LikelihoodCritic",
    "LogisticCritic",
    "LoraSpec",
    "ModelCritic",
    "PublicPRM",
    "RankAverageCritic",
    "RolloutCritic",
    "StepCritic",
    "VerifierConfig",
    "WeightedCritic",
    "load_critic",
    "load_public",
]


def __getattr__(name: str) -> Any:
    """Load what is in `_HOMES`."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'critics' has no attribute '{name}'")
