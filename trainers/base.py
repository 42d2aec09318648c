"""What all trainers share: the configuration, the collator and the call of transformers' Trainer.

The Trainer brings gradient accumulation, mixed precision, sharding (through `accelerate launch`) and tracking. Ours is the
loss, in `losses.py`, its normalisation over a step, in `terms.py` and `loss_trainer.py`, and the rows, encoded exactly as the
policy and the critics encode them.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from critics.modeling import LoraSpec
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.prompts import Encoder, PromptFormat
from llm_mcts.store import place_folder
from trainers.losses import IGNORE
from trainers.processes import is_main_process, launched_processes, wait_for_all
from trainers.rows import PairRow, SolutionRow, StepRow, TreeRow
from trainers.terms import Counts, Loss, counted, items
from trainers.tracking import Tracking, tracker

log = logging.getLogger(__name__)

SolutionBased = SolutionRow | StepRow | TreeRow
"""Rows of one path of steps."""


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
    trunk: bool = False
    """Critics: train the head alone, on the backbone of `start` as it is. A policy with these weights then scores its own
    steps for the price of their last tokens (AlphaZero's shared trunk)."""
    tracking: Tracking = "tensorboard"
    """Where loss, gradient norm and learning rate go: tensorboard, wandb (Weights & Biases) or none."""
    log_every: int = 10
    """Steps from one tracked value to the next, at least 1; a value is the mean of its steps."""

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size", "accumulation", "max_length", "log_every"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected above 0")
        if self.tracking not in get_args(Tracking):
            raise ConfigError(f"tracking is '{self.tracking}'; expected one of {', '.join(get_args(Tracking))}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}; expected a share in [0, 1)")


@dataclass(frozen=True)
class Encoded:
    """One row: token ids [T], labels in [0, 1] [T] and the mask [T] of positions that count."""

    ids: list[int]
    labels: list[float]
    mask: list[bool]
    weights: list[float] | None = None
    """How much a position that counts does so [T], above 0 there; None: all alike."""
    written: list[bool] | None = None
    """Which tokens the policy wrote [T], for a language-model loss beside the score's; None: there is none."""
    segments: list[int] | None = None
    """The step that each token belongs to [T], from 1, and 0 outside the solution; None: the critic's head does not ask."""

    @property
    def parts(self) -> "tuple[Encoded, ...]":
        """The row itself."""
        return (self,)


@dataclass(frozen=True)
class EncodedPair:
    """Two rows that are compared, the better one first."""

    chosen: Encoded
    rejected: Encoded

    @property
    def parts(self) -> tuple[Encoded, ...]:
        """Both rows, in the order in which the loss wants them."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class EncodedGroup:
    """Rows that one loss looks at together, such as the steps behind one prefix: a batch holds all of them or none."""

    parts: tuple[Encoded, ...]


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
    return encode_prefixes(row, (None, *row.labels), None, fmt, encode)


def encode_prefixes(
    row: SolutionBased,
    targets: Sequence[float | None],
    weights: Sequence[float] | None,
    fmt: PromptFormat,
    encode: Encoder,
) -> Encoded:
    """For anything that judges prefixes: each target stands on the last token of its prefix, the bare question's first.

    Args:
        row: what the steps are taken from.
        targets: one a prefix, in [0, 1]; None where it does not count.
        weights: one a prefix, or None; a prefix of weight 0 does not count.
    """
    ids, ends = _ids_and_ends(row, fmt, encode)
    labels, mask, weighing = [0.0] * len(ids), [False] * len(ids), [0.0] * len(ids)
    for end, target, weight in zip(ends, targets, weights or [1.0] * len(ends), strict=True):
        if target is not None and weight > 0:
            labels[end], mask[end], weighing[end] = target, True, weight
    return Encoded(ids, labels, mask, None if weights is None else weighing)


def encode_next(
    question: str, prefix: Sequence[str], steps: Sequence[str], fmt: PromptFormat, encode: Encoder, eos: int
) -> Encoded:
    """For the policy, what comes behind a prefix: the tokens of `steps` count, newlines included.

    Behind a line that states the answer the end-of-text counts too, as in `encode_solution`.
    """
    ids, ends = _ids_and_ends(SolutionRow("", question, (*prefix, *steps)), fmt, encode)
    ids = [*ids, eos] if fmt.states_answer(steps[-1]) else ids
    return Encoded(ids, [0.0] * len(ids), [i > ends[len(prefix)] for i in range(len(ids))])


def encode_pair(row: PairRow, fmt: PromptFormat, encode: Encoder) -> EncodedPair:
    """For critics that learn from comparisons: the last tokens of both sides are compared."""
    sides = (SolutionRow(row.problem, row.question, steps, label) for steps, label in ((row.chosen, 1.0), (row.rejected, 0.0)))
    chosen, rejected = (encode_outcome_at_end(side, fmt, encode) for side in sides)
    return EncodedPair(chosen, rejected)


def with_language_labels(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """The row with the closing end-of-text, which no score is asked for, and the tokens of the language-model loss marked."""
    start = _ids_and_ends(row, fmt, encode)[1][0] + 1
    return Encoded(
        [*encoded.ids, eos],
        [*encoded.labels, 0.0],
        [*encoded.mask, False],
        None if encoded.weights is None else [*encoded.weights, 0.0],
        [i >= start for i in range(len(encoded.ids) + 1)],
    )


def with_segments(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """The row with the number of each token's step, for a head that judges by surprisal."""
    ends = _ids_and_ends(row, fmt, encode)[1]
    steps = [0] * (ends[0] + 1) + [i for i in range(1, len(ends)) for _ in range(ends[i] - ends[i - 1])]
    return replace(encoded, segments=[*steps, *([0] * (len(encoded.ids) - len(steps)))])


def _ids_and_ends(row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> tuple[list[int], list[int]]:
    segments = [fmt.question(row.question), *(fmt.step(text) for text in row.steps)]
    return encode(segments), encode.ends(segments)


def collate(batch: Sequence[Encoded | EncodedPair | EncodedGroup]) -> dict[str, Tensor]:
    """Pad on the right: input_ids, attention_mask [B, T] long; labels [B, T] float; mask [B, T] boolean.

    Where the rows have them also weights [B, T] float, written [B, T] boolean and segments [B, T] long. A pair makes two rows,
    a group several, and item [B] long says which of the batch's items a row is of.
    """
    rows = [part for item in batch for part in item.parts]
    width = max(len(row.ids) for row in rows)

    def padded(values: Callable[[Encoded], list[Any]], fill: Any) -> Tensor:
        return torch.tensor([[*values(r), *([fill] * (width - len(r.ids)))] for r in rows])

    tensors = {
        "input_ids": padded(lambda r: r.ids, 0),
        "attention_mask": padded(lambda r: [1] * len(r.ids), 0),
        "labels": padded(lambda r: r.labels, 0.0),
        "mask": padded(lambda r: r.mask, False),
    }
    if not isinstance(batch[0], Encoded):
        tensors["item"] = torch.tensor([i for i, item in enumerate(batch) for _ in item.parts])
    if rows[0].weights is not None:
        tensors["weights"] = padded(lambda r: r.weights or [], 0.0)
    if rows[0].written is not None:
        tensors["written"] = padded(lambda r: r.written or [], False)
    if rows[0].segments is not None:
        tensors["segments"] = padded(lambda r: r.segments or [], 0)
    return tensors


def token_labels(batch: dict[str, Tensor], which: str = "mask") -> Tensor:
    """The token ids of a batch as labels [B, T], IGNORE where they do not count; `which` mask says so."""
    return torch.where(batch[which], batch["input_ids"], IGNORE)


def fit(
    model: torch.nn.Module,
    rows: Sequence[Encoded] | Sequence[EncodedPair],
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
        ModelError: the loss or a weight is no number, or memory ran out.
    """
    kept = _usable(rows, config.max_length)
    with tempfile.TemporaryDirectory() as scratch, tracker(config.tracking, logs) as callbacks:
        losses = _run_trainer(model, kept, loss, counts or _one_count(kept), config, seed, scratch, callbacks)
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return {"rows": len(kept), "left_out": len(rows) - len(kept), "steps": len(losses), "loss": sum(tail) / len(tail)}


def _run_trainer(
    model: torch.nn.Module,
    rows: Sequence[Encoded | EncodedPair],
    loss: Loss,
    counts: Counts,
    config: TrainConfig,
    seed: int,
    scratch: str,
    callbacks: list[Any],
) -> list[float]:
    """Train; the loss of each step."""
    from transformers import TrainingArguments

    from trainers.loss_trainer import LossTrainer

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
        # Without being told, processes that find no accelerator would each train alone.
        use_cpu=launched_processes() > 1 and not torch.accelerator.is_available(),
        seed=seed,
        data_seed=seed,
    )
    trainer = LossTrainer(
        loss, counts, model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks
    )
    return trainer.run()


def _one_count(rows: Sequence[Encoded | EncodedPair]) -> Counts:
    count = counted if isinstance(rows[0], Encoded) else items
    return lambda batch: (count(batch),)


def _usable(rows: Sequence[Encoded] | Sequence[EncodedPair], max_length: int) -> list[Encoded | EncodedPair]:
    """The rows that fit and have a label, pairs with both sides; how many do not is logged."""
    kept = [row for row in rows if all(len(part.ids) <= max_length and any(part.mask) for part in row.parts)]
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
        place_folder(scratch, folder)
    wait_for_all()
