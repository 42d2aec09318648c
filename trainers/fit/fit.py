"""What all trainers share: the configuration, and the call of transformers' Trainer.

The Trainer brings gradient accumulation, mixed precision, sharding (through `accelerate launch`) and tracking. Ours is the
loss, in `losses.py`, its normalisation over a step, in `terms.py` and `loss_trainer.py`, and the rows, in `encoding.py`.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from llm_mcts.errors import DataError
from llm_mcts.fields import Above, AtLeast, Settings, Within
from llm_mcts.models import apply_umask
from llm_mcts.prompts import PromptConfig
from llm_mcts.runs.durable import place_folder
from trainers.data.encoding import Encoded, EncodedGroup, EncodedPair, collate
from trainers.fit.processes import is_main_process, launched_on_cpus, wait_for_all
from trainers.fit.terms import Counts, Loss, counted, items
from trainers.fit.tracking import Tracking, tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig(Settings, section="train"):
    """Optimisation of one model."""

    epochs: Annotated[float, Above(0)] = 1.0
    """Passes over the rows. OVM: 1; AlphaLLM: at most 3."""
    learning_rate: Annotated[float, Above(0)] = 1e-4
    """Peak learning rate (AdamW). AlphaLLM: 5e-6 to 1e-6 on 70B; OVM: 1e-5; small models and LoRA want more."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Rows per device and forward."""
    accumulation: Annotated[int, AtLeast(1)] = 1
    """Forwards per optimiser step."""
    warmup: Annotated[float, Within(0, 1, open_high=True)] = 0.1
    """Share of the steps in which the learning rate rises from 0; less than one step: it does not. AlphaLLM: 0.1."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    """AdamW's weight decay."""
    max_length: Annotated[int, AtLeast(1)] = 1024
    """Rows of more tokens are left out, and counted."""
    lora: LoraSpec = field(default_factory=lambda: LoraSpec(rank=0))
    """LoRA; rank 0 trains the whole model."""
    tracking: Tracking = "tensorboard"
    """Where loss, gradient norm and learning rate go: tensorboard, wandb (Weights & Biases) or none."""
    log_every: Annotated[int, AtLeast(1)] = 10
    """Steps from one tracked value to the next; a value is the mean of its steps."""


@dataclass(frozen=True)
class CriticTrainConfig(TrainConfig):
    """Optimisation of a critic."""

    trunk: bool = False
    """Train the head alone, on the backbone of `start` as it is. A policy with these weights then scores its own steps for the
    price of their last tokens (AlphaZero's shared trunk)."""


@dataclass(frozen=True)
class TrainCall:
    """What every trainer is given."""

    rows: Sequence[Any]
    start: str
    """The model to start from: `embedded`, a folder or a hub id; for a critic also a critic of the same kind."""
    out: Path
    """Folder of the checkpoint; it is there whole or not at all."""
    config: TrainConfig
    settings: Any = None
    """The trainer's own section of the configuration; None: its defaults."""
    prompt: PromptConfig | None = None
    """Prompt format; None: the default, or that of the critic that training starts from."""
    seed: int = 0
    logs: Path | None = None
    """Folder for what is tracked; None: nothing is."""
    head: HeadConfig | None = None
    """Head of a new critic, or of joint training's new value model."""


Metrics = dict[str, Any]
"""What a trainer returns: rows used and left out, steps, the mean loss of the last tenth of the steps, and its own figures."""


def last_tenth(values: Sequence[float]) -> float:
    """The mean of the last tenth of some values, at least of the last one."""
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail)


def fit(
    model: torch.nn.Module,
    rows: Sequence[Encoded] | Sequence[EncodedPair] | Sequence[EncodedGroup],
    loss: Loss,
    config: TrainConfig,
    seed: int,
    counts: Counts | None = None,
    logs: Path | None = None,
) -> dict[str, float]:
    """Train `model` in place; return rows used and left out, steps, and the mean loss of the last tenth of the steps.

    Under `accelerate launch` every process calls it alike, and the model comes back whole on the first one.

    Args:
        loss: a mean over what counts in a batch, or several such means that are added.
        counts: what these means are over, one each, so that a step's loss does not depend on how its rows are dealt out to
            forwards and processes. None, for a single mean: over items where they are pairs, by the weights where they
            have weights, else over the positions of the mask.
        logs: folder for what is tracked; None: nothing is.

    Raises:
        ConfigError: tracking wants a package that is not there, or the launcher shards in a way that is not supported.
        DataError: no row fits `max_length`.
        ModelError: the loss or a weight is NaN or infinite, or memory ran out.
    """
    kept = _usable(rows, config.max_length)
    with tempfile.TemporaryDirectory() as scratch, tracker(config.tracking, logs) as callbacks:
        losses = _run_trainer(model, kept, loss, counts or _one_count(kept), config, seed, scratch, callbacks)
    model.eval()
    return {"rows": len(kept), "left_out": len(rows) - len(kept), "steps": len(losses), "loss": last_tenth(losses)}


def _run_trainer(
    model: torch.nn.Module,
    rows: Sequence[Encoded | EncodedPair | EncodedGroup],
    loss: Loss,
    counts: Counts,
    config: TrainConfig,
    seed: int,
    scratch: str,
    callbacks: list[Any],
) -> list[float]:
    """Train; the loss of each step."""
    from transformers import TrainingArguments

    from trainers.fit.loss_trainer import LossTrainer

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
        logging_strategy="steps" if callbacks else "no",
        logging_steps=config.log_every,
        report_to=[],  # the callbacks are ours to make: they know the folder
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=launched_on_cpus(),
        seed=seed,
        data_seed=seed,
    )
    trainer = LossTrainer(
        loss, counts, model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks
    )
    return trainer.run()


def _one_count(rows: Sequence[Encoded | EncodedPair | EncodedGroup]) -> Counts:
    count = counted if isinstance(rows[0], Encoded) else items
    return lambda batch: (count(batch),)


def _usable(
    rows: Sequence[Encoded] | Sequence[EncodedPair] | Sequence[EncodedGroup], max_length: int
) -> list[Encoded | EncodedPair | EncodedGroup]:
    """The rows that fit and have a label, pairs with both sides; how many do not is logged."""
    kept: list[Encoded | EncodedPair | EncodedGroup] = [
        row for row in rows if row.parts and all(len(part.ids) <= max_length and part.counts for part in row.parts)
    ]
    if not kept:
        raise DataError(
            f"none of {len(rows)} rows can be trained on; expected some of at most {max_length} tokens with a label"
        )
    if left_out := len(rows) - len(kept):
        log.warning("%d of %d rows left out: longer than %d tokens or without a label", left_out, len(rows), max_length)
    return kept


def save_atomically(save: Callable[[Path], None], folder: Path) -> None:
    """Write a checkpoint beside `folder`, flush it to disk, then rename: the folder is whole or absent.

    Of several processes the first one writes, and all return when it is there.
    """
    if is_main_process():
        scratch = folder.with_name(folder.name + ".part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save(scratch)
        apply_umask(scratch)
        place_folder(scratch, folder)
    wait_for_all()
