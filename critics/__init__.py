"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.base import AGGREGATES, ModelCritic
from critics.calibration import CalibratedCritic, Calibration
from critics.classifier import ClassifierCritic
from critics.combine import Combination, CriticWeights, LogisticCritic, RankAverageCritic, WeightedCritic
from critics.genrm import GenerativeVerifier, VerifierConfig
from critics.likelihood import LikelihoodCritic
from critics.loading import load_critic
from critics.modeling import CriticModel, HeadConfig
from critics.public import PublicPRM, load_public
from critics.rollout import RolloutCritic

__all__ = [
    "AGGREGATES",
    "CalibratedCritic",
    "Calibration",
    "ClassifierCritic",
    "Combination",
    "CriticModel",
    "CriticWeights",
    "GenerativeVerifier",
    "HeadConfig",
    "LikelihoodCritic",
    "LogisticCritic",
    "ModelCritic",
    "PublicPRM",
    "RankAverageCritic",
    "RolloutCritic",
    "VerifierConfig",
    "WeightedCritic",
    "load_critic",
    "load_public",
]
