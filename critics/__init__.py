"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.base import AGGREGATES, ModelCritic
from critics.combine import Combination, CriticWeights, LogisticCritic, WeightedCritic
from critics.likelihood import LikelihoodCritic
from critics.modeling import CriticModel, HeadConfig

__all__ = [
    "AGGREGATES",
    "Combination",
    "CriticModel",
    "CriticWeights",
    "HeadConfig",
    "LikelihoodCritic",
    "LogisticCritic",
    "ModelCritic",
    "WeightedCritic",
]
