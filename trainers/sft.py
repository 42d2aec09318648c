"""Behaviour cloning of the policy on chosen solutions: next-token loss on the solution, none on the question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_mcts.errors import DataError
from llm_mcts.prompts import PromptConfig
from trainers.base import TrainConfig, encode_solution, fit, token_labels
from trainers.language_model import load_policy, token_logits
from trainers.losses import next_token_loss
from trainers.rows import SolutionRow


def train_sft(
    rows: Sequence[SolutionRow],
    start: str,
    out: Path,
    config: TrainConfig,
    prompt: PromptConfig | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Fine-tune model `start` on `rows` and write it to `out`: the whole model, or with LoRA base and adapter merged.

    Raises:
        DataError: a row is labelled wrong; only right solutions are imitated.
    """
    if wrong := [row for row in rows if row.label != 1]:
        raise DataError(
            f"a solution of question {wrong[0].question!r} is labelled {wrong[0].label}; expected right ones, label 1"
        )
    lm = load_policy(start, config, prompt, seed)
    encoded = [encode_solution(row, lm.fmt, lm.encode, lm.eos) for row in rows]

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return next_token_loss(token_logits(model, batch), token_labels(batch))

    metrics = fit(lm.model, encoded, batch_loss, lm.fitting(config), seed)
    lm.save(out)
    return metrics
