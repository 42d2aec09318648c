"""The trainers of the policy, by name. A trainer is one file and one line of the table.

sft              imitate right solutions (behaviour cloning, rejection sampling)
weighted         the same, weighted by how much better than its question's mean a solution is (rows.weighted)
distill          the search's own policy at every prefix (AlphaZero)
dpo              better steps against worse ones behind the same prefix
policy_gradient  on-policy samples and their rewards (REINFORCE and relatives); needs no rows
joint            distill, and the value model on the same trunk (AlphaZero's loss)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from llm_mcts.errors import ConfigError, suggest
from llm_mcts.fields import Settings
from trainers.data.config import RowsConfig
from trainers.data.evidence import Evidence
from trainers.data.rows import Row
from trainers.fit.fit import Metrics
from trainers.policy.distill import DISTILL
from trainers.policy.dpo import DPO
from trainers.policy.imitation import SFT, WEIGHTED
from trainers.policy.joint import JOINT
from trainers.policy.policy_gradient.train import POLICY_GRADIENT
from trainers.policy.trainer import PolicyCall, PolicyTrainer

TRAINERS: dict[str, PolicyTrainer] = {
    "sft": SFT,
    "weighted": WEIGHTED,
    "distill": DISTILL,
    "dpo": DPO,
    "policy_gradient": POLICY_GRADIENT,
    "joint": JOINT,
}


@dataclass(frozen=True)
class PolicyLoss(Settings, section="policy_loss"):
    """What the policy learns; each trainer that has settings has a section of its own name here."""

    method: str = "sft"
    """sft, weighted, distill, dpo, policy_gradient or joint."""
    start: Literal["last", "base"] = "last"
    """The weights a round's training starts from. last: the current best policy, so that rounds add up and a round needs only
    its own rows (AlphaLLM); base: the policy that the run began with, so that errors do not add up either (STaR,
    ReST-EM), for which earlier rounds' rows are needed too: raise replay.rounds, and replay.share, which limits them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in TRAINERS:
            raise ConfigError(f"policy_loss.method is '{self.method}'{suggest(self.method, TRAINERS)}")

    @property
    def trainer(self) -> PolicyTrainer:
        """The method's entry in the table."""
        return TRAINERS[self.method]

    @property
    def settings(self) -> Any:
        """The method's own section; None where it has none."""
        return getattr(self, self.method, None)


def policy_loss_config() -> type[PolicyLoss]:
    """`PolicyLoss` with a section for every trainer in the table that has settings."""
    sections = [
        (name, trainer.settings, field(default_factory=trainer.settings))
        for name, trainer in TRAINERS.items()
        if trainer.settings
    ]
    return make_dataclass(
        "PolicyLossConfig",
        sections,
        bases=(PolicyLoss,),
        frozen=True,
        namespace={"__doc__": PolicyLoss.__doc__, "__module__": __name__},
    )


PolicyLossConfig: Any = policy_loss_config()


def policy_rows(method: str, evidence: Evidence, config: RowsConfig) -> tuple[Sequence[Row], dict[str, int]]:
    """A trainer's rows of one searched question, and how many trajectories were refused, by reason.

    A question whose answer is not known gives rows only to those trainers that do not need it.
    """
    make = TRAINERS[method].rows
    if make is None:
        return [], {}
    rows, refused = make(evidence, config)
    return rows, {reason: n for reason, n in refused.items() if n}


def train_policy(method: str, call: PolicyCall) -> Metrics:
    """Train the policy; nothing is written, and the metrics are empty, without rows where the trainer needs some."""
    trainer = TRAINERS[method]
    return {} if trainer.row and not call.rows else trainer.train(call)
