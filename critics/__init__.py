"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.base import AGGREGATES, ModelCritic
from critics.calibration import CalibratedCritic, Calibration
from critics.combine import Combination, CriticWeights, LogisticCritic, RankAverageCritic, WeightedCritic
from critics.likelihood import LikelihoodCritic
from critics.modeling import CriticModel, HeadConfig
from critics.rollout import RolloutCritic

__all__ = [
    "AGGREGATES",
    "CalibratedCritic",
    "Calibration",
    "Combination",
    "CriticModel",
    "CriticWeights",
    "HeadConfig",
    "LikelihoodCritic",
    "LogisticCritic",
    "ModelCritic",
    "RankAverageCritic",
    "RolloutCritic",
    "WeightedCritic",
]
