"""How the policy is trained: one of several trainers, by name, each on rows of its own.

    sft              imitate right solutions (behaviour cloning, rejection sampling)
    weighted         the same, weighted by how much better than its question's mean a solution is (rows.weighted)
    distill          the search's own policy at every prefix (AlphaZero)
    dpo              better steps against worse ones behind the same prefix
    policy_gradient  on-policy samples and their rewards (REINFORCE and relatives); needs no rows
    joint            distill, and the value model on the same trunk (AlphaZero's loss)

`trainers.data.critic_rows.policy_rows` makes the rows of a searched tree that each of them takes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from critics.model.heads import HeadConfig
from llm_mcts.errors import ConfigError, suggest
from llm_mcts.settings import SolverConfig
from llm_mcts.tasks.base import Task
from llm_mcts.types import Problem, Usage
from trainers.fit.fit import TrainConfig
from trainers.policy.distill import DistillConfig, train_distill
from trainers.policy.dpo import DPOConfig, train_dpo
from trainers.policy.imitation import train_sft, train_weighted
from trainers.policy.joint import JointConfig, train_joint
from trainers.policy.policy_gradient.config import PolicyGradientConfig
from trainers.policy.policy_gradient.train import COUNTED, train_policy_gradient

PolicyMethod = Literal["sft", "weighted", "distill", "dpo", "policy_gradient", "joint"]


@dataclass(frozen=True)
class PolicyLossConfig:
    """What the policy learns."""

    method: PolicyMethod = "sft"
    """sft, weighted, distill, dpo, policy_gradient or joint."""
    start: Literal["last", "base"] = "last"
    """The weights a round's training starts from. last: the policy that stands, so that rounds add up and a round needs only
    its own rows (AlphaLLM); base: the policy that the run began with, so that errors do not add up either (STaR,
    ReST-EM), for which earlier rounds' rows are needed too: raise replay.rounds, and replay.share, which limits them."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """For distill; what the search's policy is taken to be stands in `rows.targets`."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    joint: JointConfig = field(default_factory=JointConfig)

    def __post_init__(self) -> None:
        if self.method not in get_args(PolicyMethod):
            raise ConfigError(f"policy_loss.method is '{self.method}'{suggest(self.method, get_args(PolicyMethod))}")
        if self.start not in ("last", "base"):
            raise ConfigError(f"policy_loss.start is '{self.start}'; expected last or base")


@dataclass(frozen=True)
class Lesson:
    """What a round teaches its policy with."""

    rows: Sequence[Any]
    problems: Sequence[Problem]
    """The round's questions that have an answer."""
    task: Task
    models: SolverConfig
    """The policy to start from, and what stands beside it."""
    seed: int
    logs: Path | None = None


def train_policy(
    loss: PolicyLossConfig, lesson: Lesson, out: Path, value_out: Path, config: TrainConfig, head: HeadConfig
) -> dict[str, Any]:
    """Train the policy into `out`, with joint its value model into `value_out`; return the trainer's metrics, and as "usage"
    what samples of its own have cost.

    Without rows where the trainer needs some nothing is written, and the metrics are empty.
    """
    rows, prompt, seed, logs = lesson.rows, lesson.models.prompt, lesson.seed, lesson.logs
    start, value = lesson.models.engine.model, lesson.models.critics.value
    if loss.method == "policy_gradient":
        metrics = train_policy_gradient(
            lesson.problems,
            lesson.task,
            start,
            out,
            config,
            loss.policy_gradient,
            lesson.models,
            seed,
            value=value if loss.policy_gradient.baseline == "value" else None,
        )
        usage = Usage(**{name: int(metrics.pop(name)) for name in COUNTED})
        return {**metrics, "usage": asdict(usage)}
    if not rows:
        return {}
    if loss.method == "joint":
        return train_joint(rows, start, out, value_out, config, loss.joint, head, prompt, seed, value, logs)
    if loss.method == "distill":
        return train_distill(rows, start, out, config, loss.distill, prompt, seed, logs)
    if loss.method == "dpo":
        return train_dpo(rows, start, out, config, loss.dpo, prompt, seed, logs)
    if loss.method == "weighted":
        return train_weighted(rows, start, out, config, prompt, seed, logs)
    return train_sft(rows, start, out, config, prompt, seed, logs)
