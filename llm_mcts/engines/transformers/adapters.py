"""One base model in memory for policy and critics that are LoRA adapters on it.

A `SharedBackbone` holds the base model and any number of adapters. `as_lm` and `as_backbone` give it the look of an ordinary
model with one adapter on: a callable that turns its adapter on before each forward. So each of policy, value model, PRM, ORM
and verifier has its own batch and its own prefix tree (their keys and values differ), and all have the same weights.
"""

import warnings
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import ModelError, first_line
from llm_mcts.models import adapter_base, same_model

_UNKNOWN = object()
REWRITES = ("pissa", "olora", "loftq", "corda")
"""Ways to initialise an adapter that change the base's own weights, which others share."""


class SharedBackbone:
    """A causal language model whose adapters take turns."""

    def __init__(self, model: Any, name: str) -> None:
        """`model`: the base model, as `load_causal_lm` gives it; it is changed in place. `name`: its folder or hub id."""
        self.model, self.name = model.eval(), name
        self._layers: list[BaseTunerLayer] = []
        self._active: object = None
        self._packed = False
        self.adapters: list[str] = []

    def add(self, folder: str | Path) -> str:
        """Load a LoRA adapter of this base, trained on the whole model or on its backbone; return its name.

        Raises:
            ModelError: the folder is not a LoRA adapter, or one that does not fit or changes more than linear layers.
        """
        folder, name = Path(folder), f"adapter{len(self.adapters)}"
        if self._packed:
            raise ModelError(f"the adapter in {folder} came after the base was packed; expected all adapters before pack()")
        base = adapter_base(folder)
        if base is None or not same_model(base, self.name):
            raise ModelError(
                f"{folder} is {f'an adapter on {base}' if base else 'not a LoRA adapter'}; expected one on {self.name}, whose "
                "backbone is to be shared: train it with LoRA on that base, or leave share_backbone off"
            )
        self._inject(folder, name, *_read_adapter(folder, f"{self.model.base_model_prefix}."))
        self.adapters.append(name)
        self.model.base_model.to(next(self.model.parameters()).device).eval()
        return name

    def _inject(self, folder: Path, name: str, config: LoraConfig, weights: dict[str, Any]) -> None:
        """Put the adapter's matrices into the backbone."""
        backbone = self.model.base_model
        self._active = _UNKNOWN  # injection turns the new adapter on, in whatever layers it reaches
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are the point
                inject_adapter_in_model(config, backbone, name)
            loaded = set_peft_model_state_dict(backbone, weights, adapter_name=name)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the adapter in {folder} does not fit the base model: {first_line(error)}") from error
        finally:
            self._layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
        if odd := [*(key for key in loaded.missing_keys if f".{name}." in key), *loaded.unexpected_keys]:
            raise ModelError(f"the adapter in {folder} does not fit the base model, for example at {odd[0]}")

    def pack(self) -> None:
        """Pack the base weights for the CPU, once all adapters are loaded."""
        self._packed = True
        pack_linears(self.model)

    def turn_on(self, adapter: str | None) -> None:
        """Make the next forward one with this adapter; None: of the base model alone."""
        if adapter == self._active:
            return
        for layer in self._layers:
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter([adapter])
        self._active = adapter

    def as_lm(self, adapter: str | None) -> "AdapterView":
        """The language model with an adapter on."""
        return AdapterView(self, self.model, adapter)

    def as_backbone(self, adapter: str | None) -> "AdapterView":
        """The model without its language-model head, with an adapter on."""
        return AdapterView(self, self.model.base_model, adapter)


class AdapterView:
    """A model of a SharedBackbone with one of its adapters on: what `BatchedModel` and engines take as a model."""

    def __init__(self, shared: SharedBackbone, model: Any, adapter: str | None) -> None:
        self.shared, self.model, self.adapter = shared, model, adapter
        self.config = model.config
        self.generation_config = getattr(model, "generation_config", None)

    @property
    def base_model(self) -> "AdapterView":
        """This view without the language-model head."""
        return AdapterView(self.shared, self.model.base_model, self.adapter)

    def parameters(self) -> Any:
        """The shared weights."""
        return self.model.parameters()

    def eval(self) -> "AdapterView":
        """Itself: it always is in evaluation mode."""
        return self

    @property
    def forward(self) -> Any:
        """A call of this view, with the signature of the model's own forward."""

        @wraps(self.model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        return forward

    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward with the adapter on."""
        self.shared.turn_on(self.adapter)
        return self.model(*args, **kwargs)


def _read_adapter(folder: Path, prefix: str) -> tuple[LoraConfig, dict[str, Any]]:
    """An adapter's configuration and weights, their names without `prefix`: those of the backbone."""
    try:
        config = LoraConfig.from_pretrained(folder)
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} is not a LoRA adapter ({error}); expected what save_pretrained wrote") from error
    rewritten = isinstance(config.init_lora_weights, str) and config.init_lora_weights in REWRITES
    if config.modules_to_save or config.bias != "none" or config.use_dora or rewritten:
        raise ModelError(
            f"the adapter in {folder} changes more than linear layers by low rank (modules_to_save, bias, DoRA, or base "
            "weights rewritten at its start); merge it instead of sharing its base"
        )
    config.init_lora_weights = True
    if not isinstance(config.target_modules, str):
        config.target_modules = {target.removeprefix(prefix) for target in config.target_modules or ()}
    for pattern in ("rank_pattern", "alpha_pattern"):
        setattr(config, pattern, {key.removeprefix(prefix): n for key, n in (getattr(config, pattern) or {}).items()})
    return config, {key.removeprefix("base_model.model.").removeprefix(prefix): w for key, w in weights.items()}
