"""Checkpoints as OpenVINO models: exported once, kept in a folder named by a hash of what they were made from.

transformers' own OpenVINO exporter turns the model into a graph with its key/value cache inside (stateful), nncf stores
the weights in 8 or 4 bits. No tokenizer is converted: prompts reach the engine as token ids. An export is written to a
scratch folder and then renamed, so that a half-written one is never found; its files' digests are checked whenever it is
loaded, and a damaged export is rebuilt.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_mcts.engines.base import OpenVINOConfig
from llm_mcts.errors import ConfigError, ModelError, first_line
from llm_mcts.models import adapter_base, cache_shape, end_tokens, load_causal_lm, load_tokenizer, model_folder

log = logging.getLogger(__name__)

GRAPH, WEIGHTS, MANIFEST = "openvino_model.xml", "openvino_model.bin", "export.json"
# Raised when exports are made differently, so that older ones are not taken for new ones.
_FORMAT = 2
# What a checkpoint's meaning may depend on; optimizer states, logs and the like do not count.
_HASHED = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "token*", "special_tokens_map.json")


@dataclass(frozen=True)
class Export:
    """A model that openvino-genai can run, and what an engine must know about it."""

    folder: Path
    eos: tuple[int, ...]
    """Tokens that end a text."""
    context: int
    """Longest text, in tokens."""
    cache_values: int
    """Numbers that the cache holds of one token."""


def require(package: str) -> ModuleType:
    """Import a package of the `openvino` extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"engine 'openvino' cannot import {package} ({first_line(error)}); expected openvino-genai, nncf and "
            "transformers >= 5.23: pip install 'llm-mcts[openvino]'"
        ) from error


def export_model(model: str, config: OpenVINOConfig) -> Export:
    """The export of a checkpoint, built now if there is none or if it is damaged.

    Raises:
        ConfigError: a package is missing.
        ModelError: the checkpoint cannot be read or converted.
    """
    exports = Path(config.exports).expanduser()
    target = exports / export_key(model, config.weights)
    if (export := _read(target)) is not None:
        return export
    exports.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=exports))
    try:
        _write(model, config.weights, scratch)
        _put(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if (export := _read(target)) is None:
        raise ModelError(f"the export {target} changed while it was written; expected a folder that only exports write to")
    return export


def export_key(model: str, weights: str) -> str:
    """A name for an export: a hash of the checkpoint's files, how the weights are stored, and the version of OpenVINO."""
    digest = hashlib.blake2b(digest_size=16)
    for path in _checkpoint_files(_local(model)):
        digest.update(f"{path.name}\0{_digest(path)}\0".encode())
    digest.update(f"{weights}\0{require('openvino').__version__}\0{_FORMAT}".encode())
    return f"{digest.hexdigest()}-{weights}"


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files that make a checkpoint, those of a LoRA adapter's base included."""
    files = sorted({path for pattern in _HASHED for path in folder.glob(pattern) if path.is_file()})
    base = adapter_base(folder)
    return files if base is None else files + _checkpoint_files(_local(base))


def _local(model: str) -> Path:
    """The folder of a model; a hub id's files are fetched as transformers would."""
    folder = Path(model_folder(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "token*"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"no files for model '{model}': {first_line(error)}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read(folder: Path) -> Export | None:
    """An export whose files are as they were written; None if there is none, or it is damaged."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        changed = [name for name, digest in manifest["files"].items() if _digest(folder / name) != digest]
        export = Export(folder, tuple(manifest["eos"]), manifest["context"], manifest["cache_values"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the export %s is damaged (%s); it is rebuilt", folder, first_line(error))
        return None
    if changed:
        log.warning("the export %s is damaged (%s); it is rebuilt", folder, ", ".join(changed))
        return None
    return export


def _put(written: Path, target: Path) -> None:
    """Give a finished export its name; a damaged one in its place goes, a sound one that another process wrote stays."""
    try:
        written.rename(target)
    except OSError:
        if _read(target) is None:
            shutil.rmtree(target)
            written.rename(target)


def _write(model: str, weights: str, folder: Path) -> None:
    """Convert a checkpoint into a folder; its manifest comes last."""
    import torch

    openvino = require("openvino")
    loaded = load_causal_lm(model, torch.float32, torch.device("cpu"))
    tokenizer = load_tokenizer(model)
    try:
        with redirect_stdout(sys.stderr):  # nncf prints tables and progress
            graph = _compress(_convert(loaded), weights, loaded.config)
    except Exception as error:  # both libraries raise whatever a stage of theirs raised
        if isinstance(error, ConfigError):
            raise
        kind = loaded.config.model_type
        raise ModelError(
            f"cannot convert model '{model}' of type '{kind}' for OpenVINO: {type(error).__name__}: {first_line(error)}; "
            "expected a decoder as of the Llama family: use the transformers engine"
        ) from error
    _check_state(graph, model, loaded.config)
    openvino.save_model(graph, str(folder / GRAPH), compress_to_fp16=False)
    layers, heads, size = cache_shape(loaded.config)
    manifest = {
        "eos": end_tokens(loaded, tokenizer),
        "context": int(loaded.config.max_position_embeddings),
        "cache_values": 2 * layers * heads * size,
        "files": {name: _digest(folder / name) for name in (GRAPH, WEIGHTS)},
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _convert(model: Any) -> Any:
    """A graph of the model with its cache inside, traced with two texts of 4 known and 3 new tokens."""
    import torch

    exporters = require("transformers.exporters.exporter_openvino")
    ids = torch.ones(2, 7, dtype=torch.long)
    model.config.use_cache = True  # which a training may have left off, and the exporter's forward goes by
    with torch.no_grad():
        outputs = model(ids[:, :4], use_cache=True)
    # What goes in and comes out under one name becomes state: "cache" since transformers 5.24, "past_key_values" before.
    name = "cache" if "cache" in outputs else "past_key_values"
    inputs = {
        "input_ids": ids[:, 4:],
        "attention_mask": ids,
        "position_ids": torch.arange(4, 7).repeat(2, 1),
        name: outputs[name],
    }
    return exporters.OpenVINOExporter().export(model, inputs, config=exporters.OpenVINOConfig(dynamic=True)).program


def _check_state(graph: Any, model: str, config: Any) -> None:
    """Refuse a graph that hands its keys and values out in place of keeping them: openvino-genai cannot run it."""
    import transformers

    count, expected = len(graph.get_variables()), 2 * int(config.num_hidden_layers)
    if count != expected:
        raise ModelError(
            f"transformers {transformers.__version__} exports model '{model}' with {count} variables for its cache; expected "
            f"{expected}, keys and values of each layer: use transformers 5.23 or 5.24, or the transformers engine"
        )


def _compress(graph: Any, weights: str, config: Any) -> Any:
    """Store the weights in 8 bits a channel, or in 4 bits a group of at most 128."""
    if weights == "float32":
        return graph
    nncf = require("nncf")
    modes = nncf.CompressWeightsMode
    if weights == "int8":
        return nncf.compress_weights(graph, mode=modes.INT8_ASYM)
    widths = (config.hidden_size, config.intermediate_size)
    group = next((g for g in (128, 64, 32) if all(width % g == 0 for width in widths)), -1)
    return nncf.compress_weights(graph, mode=modes.INT4_ASYM, group_size=group)
