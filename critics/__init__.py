"""Critics: models that score partial and whole solutions in [0, 1]."""

from critics.base import AGGREGATES, ModelCritic
from critics.combine import CriticWeights, WeightedCritic
from critics.modeling import CriticModel, HeadConfig

__all__ = ["AGGREGATES", "CriticModel", "CriticWeights", "HeadConfig", "ModelCritic", "WeightedCritic"]
