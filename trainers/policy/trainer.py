"""What a policy trainer is: a function, the rows it takes, how they are made of a searched question, and its settings."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mcts.settings import SolverConfig
from llm_mcts.tasks.base import Task
from llm_mcts.types import Problem
from trainers.data.config import RowsConfig
from trainers.data.evidence import Evidence
from trainers.data.rows import Row
from trainers.fit.fit import Metrics, TrainCall

RowMaker = Callable[[Evidence, RowsConfig], tuple[Sequence[Row], Counter[str]]]
"""The rows of one searched question, and how many trajectories were refused, by reason."""


@dataclass(frozen=True)
class PolicyCall(TrainCall):
    """What a trainer of the policy may use besides."""

    problems: Sequence[Problem] = ()
    """Questions with answers, for a trainer that samples its own solutions."""
    task: Task | None = None
    """Marks these solutions."""
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy's engine and prompt, and the critics that exist."""
    value_out: Path | None = None
    """Folder of the value model, for a trainer that trains one along; None: `out`/value, and `out`/policy is the policy's."""
    value_start: str | None = None
    """A value model to start from, where there is one."""


@dataclass(frozen=True)
class PolicyTrainer:
    """One line of the table in `trainers.policy.registry`."""

    train: Callable[[Any], Metrics]
    """Takes a `TrainCall`, or a `PolicyCall` where it needs one."""
    row: type[Row] | None = None
    """The type of its rows; None: it samples its own data."""
    rows: RowMaker | None = None
    """Makes them."""
    settings: type[Any] | None = None
    """Its settings: a section of the configuration that bears the trainer's name."""
    trains_value: bool = False
    """Whether it trains a value model on the policy's trunk along."""
