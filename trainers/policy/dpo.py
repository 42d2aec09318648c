"""Step-level preference optimisation: of two steps behind one prefix the better one gains on the worse one.

    L = mean of -log sigmoid(beta [(log p(y+) - log p_ref(y+)) - (log p(y-) - log p_ref(y-))])
        + nll_weight * -log p(y+) / |y+|

DPO: Rafailov et al. 2023, arXiv 2305.18290; on single steps: Step-DPO, arXiv 2406.18629, and on pairs of a search tree:
arXiv 2405.00451; the second term: Pang et al. 2024, arXiv 2404.19733, for DPO alone may lower both sides' probability.
The reference is the model that training starts from; its log-probabilities are computed once, in front of the first step,
so that no second copy of the weights is held. Only what stands behind the pair's common prefix counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any

import torch
from torch import Tensor

from llm_mcts.errors import DataError
from llm_mcts.fields import Above, AtLeast, Settings
from llm_mcts.models import resolve_device
from llm_mcts.prompts import Encoder, PromptFormat
from trainers.data.encoding import Encoded, EncodedPair, collate, encode_next
from trainers.data.preferences import preference_rows
from trainers.data.rows import PairRow
from trainers.fit.fit import Metrics, TrainCall, TrainConfig
from trainers.fit.language_model import TrainablePolicy, token_logits, train_language_model
from trainers.fit.losses import dpo_loss, sequence_logprobs
from trainers.fit.terms import Batch
from trainers.policy.trainer import PolicyTrainer


@dataclass(frozen=True)
class DPOConfig(Settings, section="dpo"):
    """How preferences are learnt."""

    beta: Annotated[float, Above(0)] = 0.1
    """The price of a departure from the starting model (the KL penalty's weight). DPO: 0.1; Step-DPO: 0.5."""
    nll_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the chosen side's next-token loss per token; 0: plain DPO. Pang et al.: 1."""


def train_dpo(call: TrainCall) -> Metrics:
    """Train the policy on the rows' preferences. `batch_size` counts pairs, each of them two sequences.

    Raises:
        DataError: no row fits `max_length`, or one side of a pair is a beginning of the other.
    """
    dpo = call.settings or DPOConfig()

    def encoded(lm: TrainablePolicy) -> list[EncodedPair]:
        pairs = [encode_preference(row, lm.fmt, lm.encode, lm.eos) for row in call.rows]
        return with_reference(pairs, lm, lm.fitting(call.config))

    def batch_loss(model: Any, batch: Batch) -> Tensor:
        return preference_loss(token_logits(model, batch), batch, dpo)

    return train_language_model(call, encoded, batch_loss)


def encode_preference(row: PairRow, fmt: PromptFormat, encode: Encoder, eos: int) -> EncodedPair:
    """Both sides, of which what stands behind the steps that they share counts."""
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(row.chosen, row.rejected, strict=False)))
    prefix = row.chosen[:shared]
    if shared == min(len(row.chosen), len(row.rejected)):
        raise DataError(
            f"a pair of question {row.question!r} has one side that begins with the other; expected sides that part"
        )
    chosen, rejected = (
        encode_next(row.question, prefix, side[shared:], fmt, encode, eos) for side in (row.chosen, row.rejected)
    )
    return EncodedPair(chosen, rejected)


def with_reference(pairs: Sequence[EncodedPair], lm: TrainablePolicy, config: TrainConfig) -> list[EncodedPair]:
    """The pairs with the model's log-probability of each side as its reference.

    Pairs that are too long to be trained on stay as they are.
    """
    device = resolve_device("auto")
    lm.model.to(device).eval()
    fitting = [i for i, pair in enumerate(pairs) if all(len(part.ids) <= config.max_length for part in pair.parts)]
    found = list(pairs)
    for first in range(0, len(fitting), config.batch_size):
        numbers = fitting[first : first + config.batch_size]
        batch = {name: tensor.to(device) for name, tensor in collate([pairs[i] for i in numbers]).items()}
        with torch.no_grad():
            known = sequence_logprobs(token_logits(lm.model, batch), batch["input_ids"], batch["mask"]).view(-1, 2).tolist()
        for i, (better, worse) in zip(numbers, known, strict=True):
            found[i] = EncodedPair(_with_reference(pairs[i].chosen, better), _with_reference(pairs[i].rejected, worse))
    return found


def _with_reference(part: Encoded, logprob: float) -> Encoded:
    reference = [0.0] * len(part.ids)
    reference[part.mask.index(True)] = logprob
    return part.with_columns(reference=reference)


def preference_loss(logits: Tensor, batch: dict[str, Tensor], dpo: DPOConfig) -> Tensor:
    """The loss of a batch of pairs with their reference; logits [2 P, T, V]."""
    logprobs = sequence_logprobs(logits, batch["input_ids"], batch["mask"])
    loss = dpo_loss(logprobs, batch["reference"].sum(1), dpo.beta)
    if dpo.nll_weight == 0:
        return loss
    per_token = logprobs / batch["mask"].sum(1)
    return loss - dpo.nll_weight * per_token[::2].mean()


DPO = PolicyTrainer(train_dpo, PairRow, preference_rows, DPOConfig)
