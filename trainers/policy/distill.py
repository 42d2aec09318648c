"""AlphaZero's policy step for steps of reasoning: the policy learns what the search made of it at each prefix.

    L = mean over states s of - sum_a pi(a | s) log p(a | s)                      (Silver et al. 2018; its policy term)

    sum        log p(a | s) is the sum of the step's token log-probabilities, its newline included and, behind an answer, the
               end of the text: pi is an improved policy over all texts that happens to sit on the sampled ones
    siblings   p(a | s) is the softmax over the sampled steps of log p per token / temperature, exactly as a search makes
               priors: only the order among the sampled steps is learnt, and the policy keeps what it gives to all others

AlphaZero's actions are all legal moves, ours a sample of texts; both readings of that are offered. Its value term is the
value model's training, its weight decay the optimiser's. `trainers.data.targets` makes the rows.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from llm_mcts.fields import Above, Settings
from llm_mcts.prompts import Encoder, PromptFormat
from trainers.data.encoding import Encoded, EncodedGroup, encode_next
from trainers.data.rows import TargetRow
from trainers.data.targets import distill_rows
from trainers.fit.fit import Metrics, TrainCall
from trainers.fit.language_model import TrainablePolicy, token_logits, train_language_model
from trainers.fit.losses import distillation_loss, sequence_logprobs, sibling_distillation_loss
from trainers.fit.terms import Batch
from trainers.policy.trainer import PolicyTrainer


@dataclass(frozen=True)
class DistillConfig(Settings, section="distill"):
    """What is learnt of a target row."""

    over: Literal["sum", "siblings"] = "sum"
    """sum: the probability of each step among all texts; siblings: among the steps that the search had sampled."""
    prior_temperature: Annotated[float, Above(0)] = 1.0
    """siblings: temperature of the softmax; the search's own (prior_temperature)."""


def train_distill(call: TrainCall) -> Metrics:
    """Train the policy towards the rows' targets.

    `batch_size` counts prefixes; each is as many sequences as it has actions. One too long action leaves out its prefix. Rows
    with an outcome alone are skipped.

    Raises:
        DataError: no row fits `max_length`.
    """
    distill = call.settings or DistillConfig()

    def encoded(lm: TrainablePolicy) -> list[EncodedGroup]:
        return [encode_target(row, distill, lm.fmt, lm.encode, lm.eos) for row in call.rows if row.actions]

    def batch_loss(model: Any, batch: Batch) -> Tensor:
        return target_loss(token_logits(model, batch), batch, distill)

    return train_language_model(call, encoded, batch_loss)


def encode_target(row: TargetRow, distill: DistillConfig, fmt: PromptFormat, encode: Encoder, eos: int) -> EncodedGroup:
    """A sequence for each action behind the prefix; pi stands at each of the action's tokens.

    sum: actions without a share of pi are left out, for they add nothing. siblings: all actions, without the end of the text:
    a search stops at the answer's line, so its priors do not hold it.
    """
    siblings = distill.over == "siblings"
    parts = []
    for action, share in zip(row.actions, row.targets, strict=True):
        if siblings or share > 0:
            part = encode_next(row.question, row.steps, (action,), fmt, encode, eos)
            parts.append(_with_share(_without_end(part, eos) if siblings else part, share))
    return EncodedGroup(tuple(parts))


def _with_share(part: Encoded, share: float) -> Encoded:
    return part.with_columns(share=[float(share) if counts else 0.0 for counts in part.mask])


def _without_end(part: Encoded, eos: int) -> Encoded:
    return part.to_length(len(part.ids) - (part.ids[-1] == eos))


def target_loss(logits: Tensor, batch: dict[str, Tensor], distill: DistillConfig) -> Tensor:
    """The loss of a batch of encoded targets; logits [B, T, V]."""
    mask = batch["mask"]
    logprobs = sequence_logprobs(logits, batch["input_ids"], mask)
    targets = batch["share"].amax(1)  # the same number at each of an action's tokens, 0 elsewhere
    if distill.over == "sum":
        return distillation_loss(logprobs, targets, batch["item"])
    return sibling_distillation_loss(logprobs, mask.sum(1), targets, batch["item"], distill.prior_temperature)


DISTILL = PolicyTrainer(train_distill, TargetRow, distill_rows, DistillConfig)
