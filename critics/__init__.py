"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.base import AGGREGATES, ModelCritic
from critics.combine import Combination, CriticWeights, LogisticCritic, WeightedCritic
from critics.genrm import GenerativeVerifier, VerifierConfig
from critics.likelihood import LikelihoodCritic
from critics.loading import load_critic
from critics.modeling import CriticModel, HeadConfig

__all__ = [
    "AGGREGATES",
    "Combination",
    "CriticModel",
    "CriticWeights",
    "GenerativeVerifier",
    "HeadConfig",
    "LikelihoodCritic",
    "LogisticCritic",
    "ModelCritic",
    "VerifierConfig",
    "WeightedCritic",
    "load_critic",
]
