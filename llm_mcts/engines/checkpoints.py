"""What a checkpoint is made of, read from its small files alone: base, adapter, shapes and end tokens.

An engine that takes over another checkpoint while it runs asks here first, so that a checkpoint which does not fit is
refused before a weight has been touched.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mcts.engines.transformers import first_line, model_folder
from llm_mcts.errors import ModelError

# Configuration entries that say where a checkpoint came from or how it was saved, not what it computes.
_ORIGIN = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


@dataclass(frozen=True)
class Checkpoint:
    """A model name resolved: a base model, perhaps with a LoRA adapter on it."""

    name: str
    """As it was asked for."""
    base: str
    """Folder or hub id of the whole weights."""
    adapter: str | None = None
    """Folder of the LoRA adapter."""
    rank: int = 0
    """The adapter's largest rank."""


def read_checkpoint(model: str) -> Checkpoint:
    """Resolve a model name; an adapter's base is the one that its adapter_config.json names.

    Raises:
        ModelError: the folder is incomplete, or its adapter is no plain LoRA.
    """
    folder = model_folder(model)
    file = Path(folder) / "adapter_config.json"
    if not file.exists():
        return Checkpoint(model, folder)
    adapter = _read_json(file)
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{file} names no base_model_name_or_path; expected the base model's folder or hub id")
    _check_plain_lora(model, adapter)
    rank = max([int(adapter["r"]), *map(int, (adapter.get("rank_pattern") or {}).values())])
    return Checkpoint(model, model_folder(str(base)), folder, rank)


def _check_plain_lora(model: str, adapter: dict[str, Any]) -> None:
    kind, saved = adapter.get("peft_type"), adapter.get("modules_to_save")
    wrong = [
        *([f"peft_type {kind}"] if kind != "LORA" else []),
        *([f"modules_to_save {saved}"] if saved else []),
        *(["use_dora"] if adapter.get("use_dora") else []),
        *([f"bias {adapter['bias']}"] if adapter.get("bias", "none") != "none" else []),
    ]
    if wrong:
        raise ModelError(
            f"adapter {model} has {' and '.join(wrong)}; expected a plain LoRA adapter: merge it into its base "
            "(peft's merge_and_unload) and use the whole model"
        )


def check_rank(checkpoint: Checkpoint, max_lora_rank: int) -> None:
    """Refuse an adapter that the running engine has no room for."""
    if checkpoint.adapter and checkpoint.rank > max_lora_rank:
        raise ModelError(
            f"adapter {checkpoint.name} has rank {checkpoint.rank}, but engine.vllm.max_lora_rank is {max_lora_rank}; "
            f"start the engine with max_lora_rank={checkpoint.rank} or more, or merge the adapter into its base"
        )


def check_same_shape(running: str, new: str) -> None:
    """Refuse whole weights that do not fit into the running model, by their configurations and their tensors.

    Raises:
        ModelError: something differs; the message names it.
    """
    old, other = (_config(model) for model in (running, new))
    differing = sorted(key for key in (old.keys() | other.keys()) - _ORIGIN if old.get(key) != other.get(key))
    if differing:
        shown = ", ".join(f"{key}: {old.get(key)!r} -> {other.get(key)!r}" for key in differing[:3])
        raise ModelError(
            f"cannot swap to {new}: its config differs in {len(differing)} entries ({shown}); expected a checkpoint of the "
            "running architecture and shape: start a new engine for this one"
        )
    shapes, found = _shapes(running), _shapes(new)
    if shapes is not None and found is not None and shapes != found:
        names = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise ModelError(
            f"cannot swap to {new}: {len(names)} tensors are missing, new or of another shape (such as {names[0]}); "
            "expected the running model's tensors: save the whole model with save_pretrained"
        )


def end_tokens(base: str, tokenizer: Any) -> list[int]:
    """The token ids that end a text: those of the generation config, or of the model's, and the tokenizer's."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # many folders have none; transformers then takes the model's config as well
        ids = _config(base).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def _config(model: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(model).to_dict()
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the config of '{model}': {first_line(error)}") from error
    return config


def _shapes(folder: str) -> dict[str, list[int]] | None:
    """Name and shape of every tensor of a folder's weights; None for a hub id, whose files are not here."""
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        return None
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"cannot read {file}: {first_line(error)}; expected whole safetensors weights") from error
    return shapes


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; expected JSON") from error
    return found
