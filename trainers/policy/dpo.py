"""Step-level preference optimisation: of two steps behind one prefix the better one gains on the worse one.

    L = mean of -log sigmoid(beta [(log p(y+) - log p_ref(y+)) - (log p(y-) - log p_ref(y-))])
        + nll_weight * -log p(y+) / |y+|

DPO: Rafailov et al. 2023, arXiv 2305.18290; on single steps: Step-DPO, arXiv 2406.18629, and on pairs of a search tree:
arXiv 2405.00451; the second term: Pang et al. 2024, arXiv 2404.19733, for DPO alone may lower both sides' probability.
The reference is the model that training starts from; its log-probabilities are computed once, in front of the first step,
so that no second copy of the weights is held. Only what stands behind the pair's common prefix counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.models import resolve_device
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from trainers.data.encoding import Encoded, EncodedPair, collate, encode_next
from trainers.data.rows import PairRow, check_row
from trainers.fit.fit import TrainConfig, fit
from trainers.fit.language_model import TrainablePolicy, load_policy, token_logits
from trainers.fit.losses import dpo_loss, sequence_logprobs


@dataclass(frozen=True)
class DPOConfig:
    """How preferences are learnt."""

    beta: float = 0.1
    """How dearly a departure from the starting model is paid for, above 0. DPO: 0.1; Step-DPO: 0.5."""
    nll_weight: float = 0.0
    """Weight of the chosen side's next-token loss per token, at least 0; 0: plain DPO. Pang et al.: 1."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < inf or not 0 <= self.nll_weight < inf:
            raise ConfigError(f"dpo with beta={self.beta}, nll_weight={self.nll_weight}; expected above 0, and at least 0")


def train_dpo(
    rows: Sequence[PairRow],
    start: str,
    out: Path,
    config: TrainConfig,
    dpo: DPOConfig | None = None,
    prompt: PromptConfig | None = None,
    seed: int = 0,
    logs: Path | None = None,
) -> dict[str, float]:
    """Train model `start` on the rows' preferences and write it to `out`, with LoRA merged.

    `batch_size` counts pairs, each of them two sequences.

    Raises:
        DataError: no row fits `max_length`, or one side of a pair is a beginning of the other.
    """
    dpo = dpo or DPOConfig()
    lm = load_policy(start, config, prompt, seed)
    config = lm.fitting(config)
    pairs = [encode_preference(row, lm.fmt, lm.encode, lm.eos) for row in rows]
    encoded = with_reference(pairs, lm, config)

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return preference_loss(token_logits(model, batch), batch, dpo)

    metrics = fit(lm.model, encoded, batch_loss, config, seed, None, logs)
    lm.save(out)
    return metrics


def encode_preference(row: PairRow, fmt: PromptFormat, encode: Encoder, eos: int) -> EncodedPair:
    """Both sides, of which what stands behind the steps that they share counts."""
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(row.chosen, row.rejected, strict=False)))
    check_row(row)
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
    """The pairs with the model's log-probability of each side as the label of its first counted token.

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
            found[i] = EncodedPair(_labelled(pairs[i].chosen, better), _labelled(pairs[i].rejected, worse))
    return found


def _labelled(part: Encoded, logprob: float) -> Encoded:
    labels = [0.0] * len(part.ids)
    labels[part.mask.index(True)] = logprob
    return replace(part, labels=labels)


def preference_loss(logits: Tensor, batch: dict[str, Tensor], dpo: DPOConfig) -> Tensor:
    """The loss of a batch of pairs with their reference; logits [2 P, T, V]."""
    logprobs = sequence_logprobs(logits, batch["input_ids"], batch["mask"])
    loss = dpo_loss(logprobs, batch["labels"].sum(1), dpo.beta)
    if dpo.nll_weight == 0:
        return loss
    per_token = logprobs / batch["mask"].sum(1)
    return loss - dpo.nll_weight * per_token[::2].mean()
