"""The weights in training: one iteration's samples become optimiser steps of AdamW.

`accelerate` carries device, precision and processes: each process samples and learns from its own share of the questions, and
a step's loss is the mean over the tokens of all of them. The Trainer's own loop wants its data before it starts, which
on-policy samples are not.
"""

import random
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm_mcts.errors import ConfigError, ModelError
from llm_mcts.models import load_causal_lm
from llm_mcts.prompts import PromptConfig
from llm_mcts.seeding import derive_seed
from trainers.data.encoding import Encoded, collate
from trainers.fit.fit import TrainConfig, last_tenth
from trainers.fit.language_model import load_policy, token_logits
from trainers.fit.losses import clipped_policy_gradient_loss, kl_penalty, policy_gradient_loss, token_logprobs
from trainers.fit.processes import launched_on_cpus, refuse_a_part
from trainers.fit.terms import check_weights
from trainers.policy.policy_gradient.config import PolicyGradientConfig

T = TypeVar("T")

MAX_NORM = 1.0
"""Gradients are clipped to this norm, as transformers' Trainer does by default."""
_NOTHING = Encoded([0], [False], {"advantage": [0.0]})
"""A row without a token to learn: keeps processes in step where one of them has fewer samples."""


class PolicyUpdate:
    """A policy, its optimiser, and what it started as."""

    def __init__(self, start: str, config: TrainConfig, pg: PolicyGradientConfig, prompt: PromptConfig, seed: int) -> None:
        """Load `start`; with LoRA its weights stay and an adapter learns."""
        self.config, self.pg, self.seed = config, pg, seed
        self.accelerator = Accelerator(cpu=launched_on_cpus())
        refuse_a_part(self.accelerator.num_processes)
        if (kind := self.accelerator.distributed_type) in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ConfigError(
                f"accelerate is set to {kind.value}, which spreads weights over processes; expected one process, or several "
                "with whole weights, for the engine samples with a copy of them"
            )
        self.policy = load_policy(start, config, prompt, seed)
        self._reference: Any = None
        if pg.kl_weight and not self.policy.adapted:
            self._reference = load_causal_lm(start, torch.float32, self.accelerator.device).requires_grad_(False)
        learning = [p for p in self.policy.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=config.weight_decay)
        # Evaluation mode, in which the engine samples: without dropout, so that pi is the distribution that was sampled.
        self.model, self.optimiser = self.accelerator.prepare(self.policy.model.eval(), optimiser)
        self.losses: list[float] = []
        """Of each optimiser step so far."""
        self._steps_in_all = 0

    def share(self, questions: Sequence[T]) -> list[T]:
        """This process's part of an iteration's questions.

        Raises:
            ConfigError: they cannot be divided evenly.
        """
        processes = self.accelerator.num_processes
        if len(questions) % processes:
            raise ConfigError(f"{len(questions)} questions an iteration for {processes} processes; expected a multiple of that")
        return list(questions[self.accelerator.process_index :: processes])

    def everywhere(self, values: list[float]) -> list[float]:
        """The values of all processes."""
        return list(gather_object(values)) if self.accelerator.num_processes > 1 else values

    def total(self, count: int) -> int:
        """The sum of the processes' counts."""
        return round(sum(self.everywhere([count])))

    def learn(self, rows: Sequence[Encoded], count: int, iteration: int) -> None:
        """`ppo_epochs` passes over rows with advantages; `count`: rows of every process, lacking ones are empty."""
        rows = [*rows, *[_NOTHING] * (count - len(rows))]
        old = self._old_logprobs(rows) if self.pg.ppo_clip else None
        size = self.config.batch_size * self.config.accumulation
        for epoch in range(self.pg.ppo_epochs):
            order = list(range(len(rows)))
            random.Random(derive_seed(self.seed, "batches", iteration, epoch)).shuffle(order)
            steps = [order[first : first + size] for first in range(0, len(order), size)]
            self._steps_in_all = self.pg.iterations * self.pg.ppo_epochs * len(steps)
            for chosen in steps:
                self._step(rows, old, chosen)

    def _old_logprobs(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """The log-probabilities [T] of each row's tokens by the weights that sampled them."""
        found: list[Tensor] = []
        for first in range(0, len(rows), self.config.batch_size):
            batch = self._batch(rows[first : first + self.config.batch_size])
            with torch.no_grad():
                logprobs = token_logprobs(token_logits(self.model, batch), batch["input_ids"], self.pg.temperature)
            found += [row[: len(r.ids)] for row, r in zip(logprobs, rows[first:], strict=False)]
        return found

    def _step(self, rows: Sequence[Encoded], old: list[Tensor] | None, chosen: Sequence[int]) -> None:
        """One step of the optimiser on the chosen rows; its loss is a mean over all their tokens, however many forwards."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self._warmth()
        tokens, loss = self.total(sum(sum(rows[i].mask) for i in chosen)), 0.0
        for first in range(0, len(chosen), self.config.batch_size):
            few = chosen[first : first + self.config.batch_size]
            batch = self._batch([rows[i] for i in few])
            if old is not None:
                batch["old"] = pad_sequence([old[i] for i in few], batch_first=True)
            part = self._loss(batch) * (int(batch["mask"].sum()) / max(tokens, 1))
            # Gradients are averaged over the processes; each part is a share of the mean over all of them.
            self.accelerator.backward(part * self.accelerator.num_processes)
            loss += float(part.detach())
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_NORM))
        self.losses.append(sum(self.everywhere([loss])))
        if not isfinite(norm) or not isfinite(self.losses[-1]):
            raise ModelError(
                f"the loss is {self.losses[-1]} and its gradient's norm {norm} in step {len(self.losses)}; expected numbers: "
                f"lower learning_rate ({self.config.learning_rate:g}), and look at the advantages"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _warmth(self) -> float:
        """The learning rate's share of its peak: rising over the warm-up's steps, then 1."""
        return min(1.0, (len(self.losses) + 1) / max(1.0, self.config.warmup * self._steps_in_all))

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = token_logits(self.model, batch)
        logprobs = token_logprobs(logits, batch["input_ids"], self.pg.temperature)
        advantages, mask = batch["advantage"], batch["mask"]
        if self.pg.ppo_clip:
            loss = clipped_policy_gradient_loss(logprobs, batch["old"], advantages, mask, self.pg.ppo_clip)
        else:
            loss = policy_gradient_loss(logprobs, advantages, mask)
        if self.pg.kl_weight:
            loss = loss + self.pg.kl_weight * kl_penalty(logits, self._start_logits(batch), mask, self.pg.temperature)
        return loss

    def _start_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Those of the policy that training started from."""
        with torch.no_grad():
            if self._reference is not None:
                return token_logits(self._reference, batch)
            with self.policy.model.disable_adapter():
                return token_logits(self.policy.model, batch)

    def _batch(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        return {name: tensor.to(self.accelerator.device) for name, tensor in collate(rows).items()}

    def metrics(self) -> dict[str, float]:
        """Steps so far, and the mean loss of their last tenth."""
        return {"steps": len(self.losses), "loss": last_tenth(self.losses)}

    def save(self, out: Path) -> None:
        """Write the policy, whole or not at all; it is not to be trained on afterwards.

        Raises:
            ModelError: the last step broke a weight.
        """
        check_weights(self.policy.model, len(self.losses), f"lower learning_rate ({self.config.learning_rate:g})")
        self.policy.save(out)
