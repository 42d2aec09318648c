"""A policy under training: what all trainers of language models load, write their rows with, and save.

    metrics = train_language_model(call, encode, loss)

Weights are float32 while they are trained. With LoRA only the adapter moves; the checkpoint is the base with the adapter
merged, so that every engine loads it, or on request the adapter alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat, chat_template_of
from trainers.fit.fit import Metrics, TrainCall, TrainConfig, fit, save_atomically
from trainers.fit.terms import Counts, Loss


@dataclass(frozen=True)
class TrainablePolicy:
    """A causal language model with its tokenizer and the written form of its rows."""

    model: Any
    tokenizer: Any
    fmt: PromptFormat
    encode: Encoder
    adapted: bool
    """Whether a LoRA adapter is what moves."""

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def context(self) -> int:
        """Tokens that the model was made for; without a limit in its configuration, any number."""
        return context_length(self.model)

    def fitting(self, config: TrainConfig) -> TrainConfig:
        """`config` with no row longer than the model's context."""
        return replace(config, max_length=min(config.max_length, self.context))

    def save(self, out: Path, merge: bool = True, also: Callable[[Path], None] | None = None) -> None:
        """Write the checkpoint to `out`, whole or not at all; its model is not to be trained on afterwards.

        Args:
            merge: with LoRA, base and adapter as one model; else the adapter alone, which names its base.
            also: writes what else belongs into the folder.
        """

        def write(folder: Path) -> None:
            whole = self.model.merge_and_unload() if self.adapted and merge else self.model
            whole.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if also is not None:
                also(folder)

        save_atomically(write, out)


def load_policy(start: str, config: TrainConfig, prompt: PromptConfig | None = None, seed: int = 0) -> TrainablePolicy:
    """Load model `start` (`embedded`, a folder or a hub id) for training, with a new adapter where `config.lora` asks for one.

    Raises:
        ModelError: there is no such model.
        ConfigError: the prompt's style does not suit the tokenizer, or LoRA the model.
    """
    # The Trainer moves it: every process of a launch has a device of its own.
    tokenizer, model = load_tokenizer(start), load_causal_lm(start, torch.float32, torch.device("cpu"))
    if adapted := config.lora.rank > 0:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = config.lora.adapt(model, "CAUSAL_LM")
    fmt = PromptFormat(prompt or PromptConfig(), chat_template_of(tokenizer))
    return TrainablePolicy(model, tokenizer, fmt, Encoder(tokenizer), adapted)


def token_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits [B, T, V] of a batch; `model` is what the Trainer hands to the loss, which may be wrapped."""
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits


def context_length(model: Any) -> int:
    """Tokens that a model was made for; without a limit in its configuration, any number."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def train_language_model(
    call: TrainCall, encode: Callable[[TrainablePolicy], Any], loss: Loss, counts: Counts | None = None
) -> Metrics:
    """Load the policy, fit it to the rows that `encode` makes of the call's, and save it, with LoRA merged."""
    lm = load_policy(call.start, call.config, call.prompt, call.seed)
    metrics = fit(lm.model, encode(lm), loss, lm.fitting(call.config), call.seed, counts, call.logs)
    lm.save(call.out)
    return metrics
