"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.assemble.loading import load_critic
from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.published.classifier import ClassifierCritic
from critics.published.prm import PublicPRM, load_public
from critics.scoring.calibration import CalibratedCritic, Calibration
from critics.scoring.combine import Combination, CriticWeights, LogisticCritic, RankAverageCritic, WeightedCritic
from critics.scoring.generative import GenerativeVerifier, VerifierConfig
from critics.scoring.likelihood import LikelihoodCritic
from critics.scoring.rollout import RolloutCritic
from critics.scoring.trained import AGGREGATES, ModelCritic

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
