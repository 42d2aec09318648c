"""Low-rank adaptation of a model's linear layers, by PEFT."""

from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings, Within


@dataclass(frozen=True)
class LoraSpec(Settings, section="lora"):
    """Low-rank adaptation of the linear layers (PEFT)."""

    rank: Annotated[int, AtLeast(0)] = 16
    """Rank of the update; 0 trains the whole model."""
    alpha: Annotated[int, AtLeast(1)] = 32
    """Scale of the update is alpha / rank."""
    dropout: Annotated[float, Within(0, 1, open_high=True)] = 0.0
    """Dropout on the adapter's input."""
    layers: Annotated[int, AtLeast(0)] = 0
    """Number of transformer layers to adapt, the last ones; 0: all. The gradient stops below them, so a step through
    8 of 24 layers costs little more than half of one through all."""

    def adapt(self, model: Any, task_type: str) -> Any:
        """`model` with a new adapter for `task_type` (CAUSAL_LM or FEATURE_EXTRACTION), random by torch's generator.

        Raises:
            ConfigError: the model has fewer layers than are to be adapted.
        """
        from peft import LoraConfig, get_peft_model

        targets: str | list[str] = "all-linear"
        if self.layers:
            count = model.config.get_text_config().num_hidden_layers
            if self.layers > count:
                raise ConfigError(f"lora.layers is {self.layers} and the model has {count}; expected at most that")
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            targets = [name for name in linear if layer_of(name) >= count - self.layers]
        return get_peft_model(
            model,
            LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets, task_type=task_type
            ),
        )


def layer_of(module: str) -> int:
    """The index of the transformer layer that a module's dotted name lies in; -1 outside all layers."""
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)
