"""transformers' Trainer with a loss of our own, normalised over the whole optimiser step (`trainers.fit.terms`).

The Trainer's data-parallel reduction averages gradients over W processes, so each forward's backward takes W times its
share of the step's loss. Then 2 processes with B rows each, 2 forwards of B rows and 1 forward of 2 B rows take the same step.
Two more things the Trainer leaves open:

the last rows of an epoch   accelerate fills the processes' last batches up with rows from the epoch's beginning; here they
                            do not count
a NaN or infinite loss      ends the training, on all processes, before it reaches the weights
"""

import os
from collections.abc import Iterator
from itertools import islice
from math import ceil, isfinite
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PrinterCallback, Trainer

from llm_mcts.errors import ConfigError, ModelError
from trainers.fit.processes import make_whole, refuse_a_part
from trainers.fit.terms import Batch, Counts, Loss, check_weights, share

SUPPORTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP}
COUNTS = "counts of the loss's means"
"""Where a batch carries them from its drawing to its forward."""


class LossTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for `loss`, whose means are over `counts`."""

    def __init__(self, loss: Loss, counts: Counts, **given: Any) -> None:
        self._model_config: Any = getattr(given["model"], "config", None)
        self._use_cache = getattr(self._model_config, "use_cache", None)
        super().__init__(**given)
        self.loss, self.counts = loss, counts
        self.step_losses: list[float] = []
        """The loss of each step so far, over the rows of all processes."""
        # Says that the loss is normalised already: the Trainer must not divide it by the accumulation.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)  # standard output belongs to the command's own result
        self._part = torch.zeros(())
        self._drawn = 0

    def run(self) -> list[float]:
        """Train; the loss of each step. The model comes back whole on the first process.

        Raises:
            ConfigError: the launcher distributes the model in a way in which it could not be saved whole.
            ModelError: the loss or a weight is NaN or infinite, or memory ran out.
        """
        self._check_launch()
        try:
            self.train()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise ModelError(
                f"memory ran out in step {len(self.step_losses) + 1} with batch_size {self.args.per_device_train_batch_size}; "
                "expected room for one forward and backward: lower batch_size and raise accumulation as much, or lower "
                "max_length, or set lora.rank above 0"
            ) from error
        remedy = f"lower learning_rate ({self.args.learning_rate:g}), and look at the rows' labels and weights"
        check_weights(self.model, len(self.step_losses), remedy)
        if self._use_cache is not None:  # the Trainer turns it off, and a checkpoint would say so for good
            self._model_config.use_cache = self._use_cache
        if self.accelerator.distributed_type is DistributedType.FSDP:
            make_whole(self.model)
        return self.step_losses

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule; where the warm-up's share is less than one step there is none.

        transformers rounds it up to one step, whose rate is 0: a training of a single step would change nothing.
        """
        if self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _check_launch(self) -> None:
        kind = self.accelerator.distributed_type
        sharding = self.accelerator.state.fsdp_plugin if kind is DistributedType.FSDP else None
        refuse_a_part(self.accelerator.num_processes)
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not sharding:
            raise ConfigError(
                "FSDP was launched and no GPU was found to shard over; expected one: see configs/accelerate/cpu_2.yaml"
            )
        if kind not in SUPPORTED or (sharding and sharding.fsdp_version != 2):
            what = "FSDP with fsdp_version 1" if kind is DistributedType.FSDP else kind.value
            raise ConfigError(
                f"accelerate launched with distributed_type {what}; expected several GPUs or CPU processes, or FSDP with "
                "fsdp_version 2: see configs/accelerate"
            )

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> tuple[list[Batch], Tensor]:
        """The batches of one optimiser step, and what its means are over: [K], over all of them, on all processes."""
        batches: list[Batch] = list(islice(epoch_iterator, num_batches))
        for batch in batches:
            self._drawn += 1
            own = self._own_rows()
            kept = int((batch["item"] < max(own, 1)).sum()) if "item" in batch else max(own, 1)
            for name, tensor in batch.items():
                batch[name] = tensor[:kept]
            counts = torch.stack([count.float() for count in self.counts(batch)])
            # A process without a row of its own takes part in the forward, with a repeated row that counts nothing.
            batch[COUNTS] = counts if own else torch.zeros_like(counts)
        return batches, self.accelerator.reduce(torch.stack([batch[COUNTS] for batch in batches]).sum(0), "sum")

    def _own_rows(self) -> int:
        """How many rows of the batch drawn last are this process's own; the others repeat the epoch's first."""
        size: int = self.args.train_batch_size
        processes, me = self.accelerator.num_processes, self.accelerator.process_index
        rows = len(self.train_dataset)
        per_epoch = ceil(rows / (size * processes))
        if self._drawn % per_epoch:
            return size
        own: int = min(max(rows - ((per_epoch - 1) * processes + me) * size, 0), size)
        return own

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """W times this forward's share of the step's loss."""
        assert num_items_in_batch is not None
        counts = inputs.pop(COUNTS)
        means = self.loss(model, inputs)
        terms = torch.stack([means] if isinstance(means, Tensor) else list(means))
        value = share(terms.float(), counts, num_items_in_batch)
        self._part = self._part.to(value.device) + value.detach()
        value = value * self.accelerator.num_processes
        return (value, {}) if return_outputs else value

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Forward and backward; with a step's last, the step's loss is summed up and checked, before it moves a weight."""
        part: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            loss = float(self.accelerator.reduce(self._part, "sum"))
            if not isfinite(loss):
                raise ModelError(
                    f"the loss is {loss} in step {len(self.step_losses) + 1} of {self.state.max_steps}; expected a number: "
                    f"lower learning_rate ({self.args.learning_rate:g}), and look at the rows' labels and weights"
                )
            self.step_losses.append(loss)
            self._part = torch.zeros_like(self._part)
        return part


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
