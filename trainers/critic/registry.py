"""The trainers of the critics, by name. A kind of critic is one line here: its trainer, the rows it takes, its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from critics.kinds import KINDS, Kind
from critics.model.heads import HeadConfig
from trainers.critic.generative import GenRMConfig, train_genrm
from trainers.critic.train import train_critic
from trainers.data.objectives import CriticLossConfig, needed_rows
from trainers.data.rows import Row, SolutionRow, StepRow, VerdictRow
from trainers.fit.fit import CriticTrainConfig, Metrics, TrainCall, TrainConfig


@dataclass(frozen=True)
class CriticTrainer:
    """One line of the table."""

    train: Callable[[TrainCall], Metrics]
    rows: Callable[[Any], tuple[type[Row], ...]]
    """Of the settings: the types of rows it takes."""
    sections: dict[str, type[Any]]
    """Its sections of the configuration; the first holds its own settings."""
    config: type[TrainConfig] = CriticTrainConfig


def _with_a_head(kind: Kind) -> CriticTrainer:
    return CriticTrainer(
        partial(train_critic, kind),
        lambda losses: (needed_rows(kind, losses),),
        {"critic_loss": CriticLossConfig, "head": HeadConfig},
    )


CRITIC_TRAINERS: dict[str, CriticTrainer] = {
    **{kind: _with_a_head(kind) for kind in KINDS},
    "genrm": CriticTrainer(train_genrm, lambda _: (SolutionRow, StepRow, VerdictRow), {"genrm": GenRMConfig}, TrainConfig),
}
