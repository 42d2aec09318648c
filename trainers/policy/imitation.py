"""Behaviour cloning of the policy: next-token loss on solutions, none on the question.

    sft        right solutions, all alike
    weighted   each solution with a weight w = min(exp((score - baseline) / beta), clip): advantage-weighted regression
               (Peng et al. 2019, arXiv 1910.00177), in which `trainers.data.imitation` makes the weights

The paper's advantages are those of single actions, with a learnt V(s); here a solution is one action, and V is the mean over
the question's solutions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_mcts.errors import DataError
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from trainers.data.encoding import Encoded, encode_solution, token_labels
from trainers.data.rows import SolutionRow
from trainers.fit.fit import TrainConfig, fit
from trainers.fit.language_model import load_policy, token_logits
from trainers.fit.losses import next_token_loss, weighted_next_token_loss
from trainers.fit.terms import tokens


def train_sft(
    rows: Sequence[SolutionRow],
    start: str,
    out: Path,
    config: TrainConfig,
    prompt: PromptConfig | None = None,
    seed: int = 0,
    logs: Path | None = None,
) -> dict[str, float]:
    """Fine-tune model `start` on `rows` and write it to `out`: the whole model, or with LoRA base and adapter merged.

    Track it in folder `logs`, if one is given.

    Raises:
        DataError: a row is labelled wrong, or has a weight; only right solutions are imitated, and all alike.
    """
    if wrong := [row for row in rows if row.label != 1]:
        raise DataError(
            f"a solution of question {wrong[0].question!r} is labelled {wrong[0].label}; expected right ones, label 1"
        )
    if weighted := [row for row in rows if row.weight != 1]:
        raise DataError(
            f"a solution of question {weighted[0].question!r} has weight {weighted[0].weight}; expected none: train weighted"
        )
    lm = load_policy(start, config, prompt, seed)
    encoded = [encode_solution(row, lm.fmt, lm.encode, lm.eos) for row in rows]

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return next_token_loss(token_logits(model, batch), token_labels(batch))

    metrics = fit(lm.model, encoded, batch_loss, lm.fitting(config), seed, lambda batch: (tokens(batch),), logs)
    lm.save(out)
    return metrics


def train_weighted(
    rows: Sequence[SolutionRow],
    start: str,
    out: Path,
    config: TrainConfig,
    prompt: PromptConfig | None = None,
    seed: int = 0,
    logs: Path | None = None,
) -> dict[str, float]:
    """`train_sft` with each solution counting by its weight; wrong ones too, where the rows hold some."""
    lm = load_policy(start, config, prompt, seed)
    encoded = [encode_weighted(row, lm.fmt, lm.encode, lm.eos) for row in rows]

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return weighted_next_token_loss(token_logits(model, batch), token_labels(batch), batch["weights"])

    metrics = fit(lm.model, encoded, batch_loss, lm.fitting(config), seed, lambda batch: (tokens(batch),), logs)
    lm.save(out)
    return metrics


def encode_weighted(row: SolutionRow, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """A solution for the policy, every token of it with the solution's weight."""
    encoded = encode_solution(row, fmt, encode, eos)
    return replace(encoded, weights=[row.weight if counts else 0.0 for counts in encoded.mask])
