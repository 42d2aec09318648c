"""Behaviour cloning of the policy: next-token loss on solutions, none on the question.

    sft        right solutions, all alike
    weighted   each solution with a weight w = min(exp((score - baseline) / beta), clip): advantage-weighted regression
               (Peng et al. 2019, arXiv 1910.00177), in which `trainers.data.imitation` makes the weights

The paper's advantages are those of single actions, with a learnt V(s); here a solution is one action, and V is the mean over
the question's solutions.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llm_mcts.errors import DataError
from llm_mcts.prompts import Encoder, PromptFormat
from trainers.data.encoding import Encoded, encode_solution, token_labels
from trainers.data.imitation import imitation_rows, weighted_rows
from trainers.data.rows import SolutionRow
from trainers.fit.fit import Metrics, TrainCall
from trainers.fit.language_model import TrainablePolicy, token_logits, train_language_model
from trainers.fit.losses import next_token_loss, weighted_next_token_loss
from trainers.fit.terms import Batch, Loss, tokens
from trainers.policy.trainer import PolicyTrainer


def train_sft(call: TrainCall) -> Metrics:
    """Fine-tune the policy on right solutions, all alike.

    Raises:
        DataError: a row is labelled wrong, or has a weight.
    """
    if wrong := [row for row in call.rows if row.label != 1]:
        raise DataError(
            f"a solution of question {wrong[0].question!r} is labelled {wrong[0].label}; expected right ones, label 1"
        )
    if weighted := [row for row in call.rows if row.weight != 1]:
        raise DataError(
            f"a solution of question {weighted[0].question!r} has weight {weighted[0].weight}; expected none: train weighted"
        )

    def batch_loss(model: Any, batch: Batch) -> Tensor:
        return next_token_loss(token_logits(model, batch), token_labels(batch))

    return _imitate(call, encode_solution, batch_loss)


def train_weighted(call: TrainCall) -> Metrics:
    """`train_sft` with each solution counting by its weight; wrong ones too, where the rows hold some."""

    def batch_loss(model: Any, batch: Batch) -> Tensor:
        return weighted_next_token_loss(token_logits(model, batch), token_labels(batch), batch["weight"])

    return _imitate(call, encode_weighted, batch_loss)


def _imitate(call: TrainCall, encode: Callable[[SolutionRow, PromptFormat, Encoder, int], Encoded], loss: Loss) -> Metrics:
    def encoded(lm: TrainablePolicy) -> list[Encoded]:
        return [encode(row, lm.fmt, lm.encode, lm.eos) for row in call.rows]

    return train_language_model(call, encoded, loss, lambda batch: (tokens(batch),))


def encode_weighted(row: SolutionRow, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """A solution for the policy, every token of it with the solution's weight."""
    encoded = encode_solution(row, fmt, encode, eos)
    return encoded.with_columns(weight=[float(row.weight) if counts else 0.0 for counts in encoded.mask])


SFT = PolicyTrainer(train_sft, SolutionRow, imitation_rows)
WEIGHTED = PolicyTrainer(train_weighted, SolutionRow, weighted_rows)
