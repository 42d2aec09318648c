"""From trees to better models: rows, trainers of policy and critics, and the self-improvement loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.critic.registry import CRITIC_TRAINERS, CriticTrainer
    from trainers.data.config import RowsConfig
    from trainers.data.evidence import Evidence
    from trainers.fit.fit import TrainCall, TrainConfig
    from trainers.loop.self_improve import SelfImproveConfig, self_improve
    from trainers.policy.registry import TRAINERS
    from trainers.policy.trainer import PolicyCall, PolicyTrainer

_HOMES = {
    "CRITIC_TRAINERS": "trainers.critic.registry",
    "CriticTrainer": "trainers.critic.registry",
    "Evidence": "trainers.data.evidence",
    "PolicyCall": "trainers.policy.trainer",
    "PolicyTrainer": "trainers.policy.trainer",
    "RowsConfig": "trainers.data.config",
    "SelfImproveConfig": "trainers.loop.self_improve",
    "TRAINERS": "trainers.policy.registry",
    "TrainCall": "trainers.fit.fit",
    "TrainConfig": "trainers.fit.fit",
    "self_improve": "trainers.loop.self_improve",
}
"""Name -> the module it is loaded from when it is asked for: they load torch."""
__all__ = [
    "CRITIC_TRAINERS",
    "TRAINERS",
    "CriticTrainer",
    "Evidence",
    "PolicyCall",
    "PolicyTrainer",
    "RowsConfig",
    "SelfImproveConfig",
    "TrainCall",
    "TrainConfig",
    "self_improve",
]


def __getattr__(name: str) -> Any:
    """Load what is in `_HOMES`."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainers' has no attribute '{name}'")
