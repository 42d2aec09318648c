"""What all trainers share: the configuration, the collator and the call of transformers' Trainer.

The Trainer brings gradient accumulation, mixed precision, sharding (through `accelerate launch`), resuming and tracking.
Ours is the loss, in `losses.py`, and the rows, encoded exactly as the policy and the critics encode them.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from critics.modeling import LoraSpec
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.prompts import Encoder, PromptFormat
from trainers.datasets import SolutionRow, StepRow
from trainers.losses import IGNORE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one model."""

    epochs: float = 1.0
    """Passes over the rows, above 0. OVM: 1; AlphaLLM: at most 3."""
    learning_rate: float = 1e-4
    """Peak learning rate (AdamW). AlphaLLM: 5e-6 to 1e-6 on 70B; OVM: 1e-5; small models and LoRA want more."""
    batch_size: int = 16
    """Rows per device and forward, at least 1."""
    accumulation: int = 1
    """Forwards per optimiser step, at least 1."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises, in [0, 1). AlphaLLM: 0.1."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_length: int = 1024
    """Rows of more tokens are left out, and counted."""
    lora: LoraSpec = field(default_factory=lambda: LoraSpec(rank=0))
    """LoRA; rank 0 trains the whole model."""

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size", "accumulation", "max_length"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected above 0")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}; expected a share in [0, 1)")


@dataclass(frozen=True)
class Encoded:
    """One row: token ids [T], labels in [0, 1] [T] and the mask [T] of positions that count."""

    ids: list[int]
    labels: list[float]
    mask: list[bool]


def encode_solution(row: SolutionRow, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """For the policy: the steps' tokens and the closing end-of-text count; the token ids are their own labels."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    ids = [*ids, eos]
    return Encoded(ids, [row.label] * len(ids), [i > ends[0] for i in range(len(ids))])


def encode_outcome_everywhere(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the value model (OVM): the outcome labels every solution token, and the question's last: the empty prefix."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [row.label] * len(ids), [i >= ends[0] for i in range(len(ids))])


def encode_outcome_at_end(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the ORM: the outcome labels the last token."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [row.label] * len(ids), [i == ends[-1] for i in range(len(ids))])


def encode_steps(row: StepRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the PRM: each labelled step's label stands on the step's last token."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    labels, mask = [0.0] * len(ids), [False] * len(ids)
    for end, label in zip(ends[1:], row.labels, strict=True):
        if label is not None:
            labels[end], mask[end] = label, True
    return Encoded(ids, labels, mask)


def _ids_and_ends(row: SolutionRow | StepRow, fmt: PromptFormat, encode: Encoder) -> tuple[list[int], list[int]]:
    segments = [fmt.question(row.question), *(fmt.step(text) for text in row.steps)]
    return encode(segments), encode.ends(segments)


def collate(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Pad on the right: input_ids, attention_mask [B, T] long; labels [B, T] float; mask [B, T] boolean."""
    width = max(len(row.ids) for row in rows)

    def padded(values: Callable[[Encoded], list[Any]], fill: Any) -> Tensor:
        return torch.tensor([[*values(r), *([fill] * (width - len(r.ids)))] for r in rows])

    return {
        "input_ids": padded(lambda r: r.ids, 0),
        "attention_mask": padded(lambda r: [1] * len(r.ids), 0),
        "labels": padded(lambda r: r.labels, 0.0),
        "mask": padded(lambda r: r.mask, False),
    }


def token_labels(batch: dict[str, Tensor]) -> Tensor:
    """The labels of a policy batch as token ids [B, T], IGNORE where they do not count."""
    return torch.where(batch["mask"], batch["input_ids"], IGNORE)


def fit(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    loss: Callable[[torch.nn.Module, dict[str, Tensor]], Tensor],
    config: TrainConfig,
    seed: int,
) -> dict[str, float]:
    """Train `model` in place; return rows used and left out, steps, and the mean loss of the last tenth of the steps.

    Raises:
        DataError: no row fits `max_length`.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    kept = _usable(rows, config.max_length)
    losses: list[float] = []

    class LossTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            value = loss(model, inputs)
            losses.append(float(value.detach()))
            return (value, {}) if return_outputs else value

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulation,
            warmup_steps=config.warmup,
            weight_decay=config.weight_decay,
            lr_scheduler_type="linear",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=seed,
            data_seed=seed,
        )
        trainer = LossTrainer(model=model, args=arguments, train_dataset=kept, data_collator=collate)
        trainer.model_accepts_loss_kwargs = False  # our loss is a mean: let the Trainer divide it by the accumulation
        trainer.remove_callback(PrinterCallback)  # standard output belongs to the command's own result
        trainer.train()
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    steps = trainer.state.global_step
    return {"rows": len(kept), "left_out": len(rows) - len(kept), "steps": steps, "loss": sum(tail) / len(tail)}


def _usable(rows: Sequence[Encoded], max_length: int) -> list[Encoded]:
    """The rows that fit and have a label; how many do not is logged."""
    kept = [row for row in rows if len(row.ids) <= max_length and any(row.mask)]
    if not kept:
        raise DataError(
            f"none of {len(rows)} rows can be trained on; expected some of at most {max_length} tokens with a label"
        )
    if left_out := len(rows) - len(kept):
        log.warning("%d of %d rows left out: longer than %d tokens or without a label", left_out, len(rows), max_length)
    return kept


def save_atomically(save: Callable[[Path], None], folder: Path) -> None:
    """Write a checkpoint beside `folder`, then rename: the folder is whole or absent."""
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
