"""Where models are found and loaded: names to folders, devices and dtypes, tokenizers, weights, adapters, end-of-text ids.

A checkpoint's small files are read before a weight is touched, so that an engine which takes over another checkpoint while
it runs can refuse one that does not fit.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mcts.errors import ModelError, first_line

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded"
"""The name of the small model that comes with the package."""

# Configuration entries that say where a checkpoint came from or how it was saved, not what it computes.
_ORIGIN = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def model_folder(model: str) -> str:
    """The folder or hub id that a model name stands for; a folder must hold a config, weights and a tokenizer."""
    if model == EMBEDDED:
        return str(Path(__file__).parent / "embedded")
    path = Path(model)
    if path.is_dir():
        adapter = (path / "adapter_config.json").exists()
        wanted = {
            "adapter_config.json" if adapter else "config.json": ["adapter_config.json" if adapter else "config.json"],
            "weights (*.safetensors)": ["adapter_model.safetensors"] if adapter else ["model*.safetensors"],
            "tokenizer": ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"],
        }
        for what, patterns in wanted.items():
            if not any(next(path.glob(p), None) for p in patterns):
                raise ModelError(f"model folder {path} has no {what}; expected a folder written by save_pretrained")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model folder {model} does not exist; expected '{EMBEDDED}', a folder or a hub id")
    return model


def apply_umask(folder: Path) -> None:
    """Give the files of a folder the mode that `open` would have given them; safetensors writes them for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~umask)


def same_model(a: str, b: str) -> bool:
    """Whether two names stand for one model, however a folder's path is written."""
    folders = [Path(model_folder(name)) for name in (a, b)]
    return folders[0] == folders[1] or (all(f.is_dir() for f in folders) and folders[0].resolve() == folders[1].resolve())


def resolve_device(device: str) -> "torch.device":
    """The torch device of a name; "auto" is the first GPU, else the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype(dtype: str, device: "torch.device") -> "torch.dtype":
    """The torch dtype of a name; "auto" avoids bfloat16 wherever it is emulated."""
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load_tokenizer(model: str) -> Any:
    """Load a tokenizer; every failure is a ModelError that names the model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_folder(model))
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer for '{model}': {first_line(error)}") from error


def load_causal_lm(model: str, dtype: "torch.dtype", device: "torch.device") -> Any:
    """Load a causal language model for inference; a folder with a LoRA adapter is loaded with its base and merged."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = model_folder(model)
    try:
        if (Path(folder) / "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype).merge_and_unload()
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load model '{model}': {first_line(error)}") from error
    return loaded.to(device).eval()


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
        ModelError: the folder is incomplete, or its adapter is not a plain LoRA.
    """
    folder = model_folder(model)
    base = adapter_base(folder)
    if base is None:
        return Checkpoint(model, folder)
    adapter = _read_json(Path(folder) / "adapter_config.json")
    _check_plain_lora(model, adapter)
    rank = max([int(adapter["r"]), *map(int, (adapter.get("rank_pattern") or {}).values())])
    return Checkpoint(model, model_folder(base), folder, rank)


def adapter_base(folder: str | Path) -> str | None:
    """The base model that a LoRA folder names, or None for a folder or hub id without an adapter.

    Raises:
        ModelError: the adapter names none.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.exists():
        return None
    base = _read_json(file).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{file} names no base_model_name_or_path; expected the base model's folder or hub id")
    return str(base)


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Of a decoder's keys and values: layers, heads, and the size of a head."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers), int(heads), int(size)


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
    old_shapes, new_shapes = _shapes(running), _shapes(new)
    if old_shapes is not None and new_shapes is not None and old_shapes != new_shapes:
        names = sorted(n for n in old_shapes.keys() | new_shapes.keys() if old_shapes.get(n) != new_shapes.get(n))
        raise ModelError(
            f"cannot swap to {new}: {len(names)} tensors are missing, new or of another shape (such as {names[0]}); "
            "expected the running model's tensors: save the whole model with save_pretrained"
        )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The token ids that end a text: those of the generation config, or of the model's, and the tokenizer's.

    `model` is a loaded model, or its folder or hub id.
    """
    from transformers import GenerationConfig

    if not isinstance(model, str):
        ids = getattr(model.generation_config, "eos_token_id", None)
    else:
        try:
            ids = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # many folders have none; transformers then takes the model's config as well
            ids = _config(model).get("eos_token_id")
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
    """Name and shape of every tensor of a folder's weights; None for a hub id, whose files are not at hand."""
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
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; expected JSON") from error
    return content
