"""Behaviour cloning of the policy on chosen solutions: next-token loss on the solution, none on the question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_mcts.engines.transformers import load_causal_lm, load_tokenizer
from llm_mcts.errors import DataError
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat, chat_template_of
from trainers.base import TrainConfig, encode_solution, fit, save_atomically, token_labels
from trainers.datasets import SolutionRow
from trainers.losses import next_token_loss
from trainers.terms import tokens


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
        DataError: a row is labelled wrong; only right solutions are imitated.
    """
    if wrong := [row for row in rows if row.label != 1]:
        raise DataError(
            f"a solution of question {wrong[0].question!r} is labelled {wrong[0].label}; expected right ones, label 1"
        )
    tokenizer = load_tokenizer(start)
    model = load_causal_lm(start, torch.float32, torch.device("cpu"))
    if config.lora.rank > 0:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = config.lora.adapt(model, "CAUSAL_LM")
    fmt = PromptFormat(prompt or PromptConfig(), chat_template_of(tokenizer))
    encode = Encoder(tokenizer)
    encoded = [encode_solution(row, fmt, encode, tokenizer.eos_token_id) for row in rows]

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return next_token_loss(logits, token_labels(batch))

    metrics = fit(model, encoded, batch_loss, config, seed, lambda batch: (tokens(batch),), logs)

    def save(folder: Path) -> None:
        whole = model.merge_and_unload() if config.lora.rank > 0 else model
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    save_atomically(save, out)
    return metrics
