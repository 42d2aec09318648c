"""What is read from checkpoints before an engine takes them over; real folders, made small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_mcts.errors import ModelError
from llm_mcts.models import Checkpoint, check_rank, check_same_shape, end_tokens, read_checkpoint


def model_like(tiny: Path, folder: Path, **changes: Any) -> str:
    """The tiny model's folder with other weights, and a changed configuration where told."""
    config = LlamaConfig.from_dict({**json.loads((tiny / "config.json").read_text()), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return str(folder)


def adapter(tiny: Path, folder: Path, **changes: Any) -> str:
    """A LoRA adapter's folder as peft writes it; its weights are not read here."""
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    (folder / "adapter_model.safetensors").touch()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny), "r": 4, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_whole_weights_are_their_own_base(tiny_model: Path) -> None:
    assert read_checkpoint(str(tiny_model)) == Checkpoint(str(tiny_model), str(tiny_model))


def test_an_adapter_names_its_base_and_largest_rank(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_model, tmp_path, rank_pattern={"q_proj": 12, "v_proj": 2})
    assert read_checkpoint(folder) == Checkpoint(folder, str(tiny_model), folder, 12)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias all"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "/no/such/base"}, "/no/such/base does not exist"),
    ],
)
def test_other_adapters_are_refused(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read_checkpoint(adapter(tiny_model, tmp_path, **changes))


def test_a_rank_without_room_is_refused_with_its_remedy(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(adapter(tiny_model, tmp_path, r=16))
    check_rank(checkpoint, 16)
    with pytest.raises(ModelError, match=r"rank 16, but engine\.vllm\.max_lora_rank is 8; .*max_lora_rank=16"):
        check_rank(checkpoint, 8)
    check_rank(Checkpoint("whole", "whole"), 0)


def test_other_weights_of_the_same_shape_fit(tiny_model: Path, tmp_path: Path) -> None:
    check_same_shape(str(tiny_model), model_like(tiny_model, tmp_path))


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"rms_norm_eps": 0.1}, {"intermediate_size": 96}])
def test_another_configuration_does_not_fit(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(changes))):
        check_same_shape(str(tiny_model), model_like(tiny_model, tmp_path, **changes))


def test_missing_tensors_do_not_fit_although_the_configuration_does(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(model_like(tiny_model, tmp_path))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors .*model\.norm\.weight"):
        check_same_shape(str(tiny_model), str(folder))


def test_cut_off_weights_do_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    file = Path(model_like(tiny_model, tmp_path)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        check_same_shape(str(tiny_model), str(tmp_path))


def test_end_tokens_with_and_without_a_generation_config(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = Path(model_like(tiny_model, tmp_path))
    assert end_tokens(str(folder), tokenizer) == [tokenizer.eos_token_id]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert end_tokens(str(folder), tokenizer) == sorted({5, 7, tokenizer.eos_token_id})
    (folder / "generation_config.json").unlink()
    assert end_tokens(str(folder), tokenizer) == [tokenizer.eos_token_id]
