"""Policy and value on one trunk, trained together on what the search found: AlphaZero's loss.

    L = (z - v)^2 - pi^T log p + c |theta|^2                                      (Silver et al. 2018, arXiv 1712.01815)

pi is the search's distribution over the steps behind a prefix, z the share of right ones among the solutions below it, p the
policy and v a head on the policy's hidden state at the prefix's last token. The policy's checkpoint is an ordinary one; the
value model's is a head that names it as its trunk, so that scoring a step costs its last token. Differences: z and v lie in
[0, 1]; p is over texts (`distill.py` says how); a state without a known z has no value term, one without compared steps (a
whole solution, or a prefix that the search tried once) no policy term; weight decay is AdamW's.

    llm-mcts train joint ROWS --out DIR        policy in DIR/policy, value model in DIR/value
"""

import shutil
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from critics.model.heads import HeadConfig
from critics.model.model import CriticModel, Trunk
from llm_mcts.engines.transformers.batching import backbone_of
from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from trainers.data.encoding import Encoded, EncodedGroup
from trainers.data.rows import TargetRow
from trainers.data.targets import joint_rows
from trainers.fit.fit import Metrics, fit, last_tenth, save_atomically
from trainers.fit.language_model import TrainablePolicy, load_policy
from trainers.fit.losses import joint_loss
from trainers.fit.terms import Batch
from trainers.policy.distill import DistillConfig, encode_target, target_loss
from trainers.policy.trainer import PolicyCall, PolicyTrainer


@dataclass(frozen=True)
class JointConfig(Settings, section="joint"):
    """How the two terms are weighed, and what the policy learns."""

    value_weight: Annotated[float, AtLeast(0)] = 4.0
    """Weight of the squared error of values. AlphaZero: 1 for values in [-1, 1], which is 4 for ours in [0, 1]."""
    policy: DistillConfig = field(default_factory=DistillConfig)
    """The policy's term: over all texts, or normalised over the steps that the search had sampled."""


class JointModel(nn.Module):
    """A language model and a value head on its last hidden states."""

    def __init__(self, policy: Any, head: nn.Module) -> None:
        super().__init__()
        self.policy, self.head = policy, head

    @property
    def config(self) -> Any:
        """The language model's configuration."""
        return self.policy.config

    @property
    def _no_split_modules(self) -> Any:
        """The language model's layers, which FSDP shards one by one."""
        return self.policy._no_split_modules

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next tokens [B, T, V] and of the value [B, T], of token ids [B, T]."""
        found = self.policy(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=True
        )  # its last hidden states are what the head of a language model reads, and critics on its trunk
        return found.logits, self.head(found.hidden_states[-1]).squeeze(-1)


def train_joint(call: PolicyCall) -> Metrics:
    """Train the policy and a value head on it; the policy goes to `out`, the head, whose trunk that is, to `value_out`.

    The head is written last, and an old one removed before the policy is replaced: where there is a head, it is the policy's.
    `batch_size` counts prefixes, each as many sequences as it has actions.

    Returns:
        `fit`'s metrics; policy_loss and value_loss, the terms of its last tenth, unweighted.

    Raises:
        ConfigError: `value_start` is not on a policy's trunk, or was trained in another prompt format.
        DataError: no row fits `max_length`.
    """
    joint = call.settings or JointConfig()
    out, value_out = (call.out, call.value_out) if call.value_out else (call.out / "policy", call.out / "value")
    lm = load_policy(call.start, call.config, call.prompt, call.seed)
    critic = _value_model(lm, call.head, call.prompt, call.seed, call.value_start)
    fmt, critic.base = critic.prompt_format, str(out)
    encoded: list[Any] = [encode_joint(row, joint, fmt, lm.encode, lm.eos) for row in call.rows]
    terms: list[tuple[float, float]] = []

    def batch_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, values = model(batch["input_ids"], batch["attention_mask"])
        policy = policy_term(logits, batch, joint.policy)
        loss = joint_loss(policy, values, batch["outcome"], batch["known"], joint.value_weight)
        terms.append((float(policy.detach()), float(loss.detach() - policy.detach())))
        return policy, loss - policy

    def batch_counts(batch: Batch) -> tuple[Tensor, Tensor]:
        compared = torch.unique(batch["item"][batch["mask"].any(1)])
        return torch.tensor(len(compared)), batch["known"].sum()

    model, config = JointModel(lm.model, critic.head), lm.fitting(call.config)
    metrics = fit(model, encoded, batch_loss, config, call.seed, batch_counts, call.logs)
    shutil.rmtree(value_out, ignore_errors=True)
    lm.save(out)
    save_atomically(critic.save_pretrained, value_out)
    policy_loss, value_loss = (last_tenth(column) for column in zip(*terms, strict=True))
    return {**metrics, "policy_loss": policy_loss, "value_loss": value_loss / (joint.value_weight or 1.0)}


def policy_term(logits: Tensor, batch: Batch, distill: DistillConfig) -> Tensor:
    """The policy's loss over those of a batch's states whose steps were compared; 0 where there is none. Logits [B, T, V]."""
    compared = batch["mask"].any(1)
    if not compared.any():
        return logits.sum() * 0.0
    rows = {name: batch[name][compared] for name in ("input_ids", "mask", "share", "item")}
    rows["item"] = torch.unique(rows["item"], return_inverse=True)[1]
    return target_loss(logits[compared], rows, distill)


def encode_joint(row: TargetRow, joint: JointConfig, fmt: PromptFormat, encode: Encoder, eos: int) -> EncodedGroup:
    """The policy's encoding, or the bare prefix where no steps were compared.

    In its first sequence z stands at the prefix's last token.
    """
    prefix = encode([fmt.question(row.question), *(fmt.step(text) for text in row.steps)])
    end = len(prefix) - 1
    bare = Encoded(prefix, [False] * len(prefix), {"share": [0.0] * len(prefix)})
    group = encode_target(row, joint.policy, fmt, encode, eos).parts if row.actions else (bare,)
    parts = [part.with_columns(outcome=[0.0] * len(part.ids), known=[False] * len(part.ids)) for part in group]
    if row.outcome is not None:
        parts[0].columns["outcome"][end], parts[0].columns["known"][end] = float(row.outcome), True
    return EncodedGroup(tuple(parts))


def _value_model(
    lm: TrainablePolicy, head: HeadConfig | None, prompt: PromptConfig | None, seed: int, value_start: str | None
) -> CriticModel:
    """A value model on the policy's backbone, its head new or `value_start`'s."""
    backbone = backbone_of(lm.model)
    if value_start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = CriticModel("value", "", backbone, lm.tokenizer, head or HeadConfig(), prompt or PromptConfig())
        critic.trunk = True
        return critic
    critic = CriticModel.from_pretrained(value_start, "value", trunk=Trunk(lm.model, backbone))
    if not critic.trunk:
        raise ConfigError(f"value model {value_start} has a backbone of its own; expected a head on a policy's trunk")
    if prompt is not None and prompt != critic.prompt_config:
        raise ConfigError(
            f"value model {value_start} was trained with {critic.prompt_config} and prompt is {prompt}; make them the same"
        )
    return critic


JOINT = PolicyTrainer(train_joint, TargetRow, joint_rows, JointConfig, trains_value=True)
