"""Critic checkpoints: what is saved comes back, and what does not fit is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from critics.kinds import KINDS, Kind
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from critics.model.model import CriticModel
from llm_mcts.errors import ConfigError, ModelError
from llm_mcts.models import load_tokenizer
from llm_mcts.prompts import PromptConfig

IDS = torch.tensor([[20, 30, 40, 50, 60], [61, 51, 41, 31, 21]])
HEAD = HeadConfig(width=12, dropout=0.1)
PROMPT = PromptConfig(style="few_shot", shots=2, answer_markers=("####", "Therefore"))


def logits(model: CriticModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS)


def shaken(model: CriticModel) -> CriticModel:
    """The model with every trainable weight moved, so that a fresh one cannot pass for it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def saved(tiny_model: Path, tmp_path: Path) -> tuple[CriticModel, Path]:
    model = shaken(CriticModel.create("prm", str(tiny_model), HEAD, PROMPT))
    model.save_pretrained(tmp_path / "critic")
    return model, tmp_path / "critic"


@pytest.fixture
def saved_lora(tiny_model: Path, tmp_path: Path) -> tuple[CriticModel, Path]:
    model = shaken(CriticModel.create("value", str(tiny_model), HEAD, PROMPT, LoraSpec(rank=4, alpha=8)))
    model.save_pretrained(tmp_path / "critic")
    return model, tmp_path / "critic"


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_critic(tiny_model: Path, kind: Kind) -> None:
    model = CriticModel.create(kind, str(tiny_model), HEAD)
    assert model.kind == kind
    assert logits(model).shape == IDS.shape
    # Two linear layers: 32 x 12 + 12, 12 + 1.
    assert sum(p.numel() for p in model.head.parameters()) == 32 * 12 + 12 + 12 + 1
    assert model.head[2].p == 0.1
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_by_hand(tiny_model: Path) -> None:
    """logit = w2 . relu(W1 h + b1) + b2"""
    model = CriticModel.create("value", str(tiny_model), HeadConfig(width=2)).eval()
    with torch.no_grad():
        model.head[0].weight.zero_()
        model.head[0].weight[0, 0], model.head[0].weight[1, 1] = 2.0, -1.0
        model.head[0].bias.copy_(torch.tensor([0.5, 0.0]))
        model.head[3].weight.copy_(torch.tensor([[3.0, 10.0]]))
        model.head[3].bias.fill_(-1.0)
        hidden = torch.zeros(1, 2, 32)
        hidden[0, 0, :2] = torch.tensor([1.0, 4.0])  # relu(2.5), relu(-4): 3 * 2.5 + 0 - 1 = 6.5
        hidden[0, 1, :2] = torch.tensor([-1.0, -0.2])  # relu(-1.5), relu(0.2): 0 + 10 * 0.2 - 1 = 1
        assert model.logits(hidden).tolist() == [pytest.approx([6.5, 1.0], abs=1e-5)]


def test_the_seed_decides_the_head(tiny_model: Path) -> None:
    one, same, other = (CriticModel.create("orm", str(tiny_model), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.head[0].weight, same.head[0].weight)
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


def test_the_seed_decides_the_adapter(tiny_model: Path) -> None:
    one, same = (CriticModel.create("orm", str(tiny_model), lora=LoraSpec(rank=2), seed=3) for _ in range(2))
    for (name, p), (_, q) in zip(one.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)])
def test_creating_leaves_the_global_generator_alone(tiny_model: Path, lora: LoraSpec | None) -> None:
    before = torch.random.get_rng_state()
    CriticModel.create("orm", str(tiny_model), lora=lora)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_with_lora_only_adapter_and_head_train(tiny_model: Path) -> None:
    model = CriticModel.create("prm", str(tiny_model), HEAD, lora=LoraSpec(rank=2))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trainable if not name.startswith("head.")} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    assert {name for name in trainable if name.startswith("head.")} == {
        "head.0.weight",
        "head.0.bias",
        "head.3.weight",
        "head.3.bias",
    }
    # 2 layers of 7 linear maps (q, k, v, o, gate, up, down), an A and a B each.
    assert len(trainable) == 2 * 7 * 2 + 4


def test_an_untrained_adapter_changes_nothing(tiny_model: Path) -> None:
    plain = CriticModel.create("prm", str(tiny_model), HEAD)
    adapted = CriticModel.create("prm", str(tiny_model), HEAD, lora=LoraSpec(rank=2))
    adapted.head.load_state_dict(plain.head.state_dict())
    assert torch.allclose(logits(plain), logits(adapted), atol=1e-6)


def test_round_trip_of_a_whole_model(saved: tuple[CriticModel, Path]) -> None:
    model, folder = saved
    loaded = CriticModel.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.kind, loaded.head_config, loaded.prompt_config, loaded.base) == ("prm", HEAD, PROMPT, model.base)
    assert not loaded.training
    assert loaded.tokenizer("5 apples").input_ids == model.tokenizer("5 apples").input_ids
    again = folder.parent / "again"
    loaded.save_pretrained(again)
    assert torch.equal(logits(CriticModel.from_pretrained(again, "prm")), logits(model))


def test_round_trip_of_an_adapter(saved_lora: tuple[CriticModel, Path], tiny_model: Path) -> None:
    model, folder = saved_lora
    assert not torch.allclose(logits(model), logits(CriticModel.create("value", str(tiny_model), HEAD)), atol=1e-3)
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    loaded = CriticModel.from_pretrained(folder, "value")
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.backbone.parameters())
    trainable = CriticModel.from_pretrained(folder, "value", trainable=True)
    assert {n for n, p in trainable.backbone.named_parameters() if p.requires_grad} == {
        n for n, _ in trainable.backbone.named_parameters() if "lora_" in n
    }


def test_the_file_that_describes_it(saved: tuple[CriticModel, Path], tiny_model: Path) -> None:
    about = json.loads((saved[1] / "critic.json").read_text())
    assert about["kind"] == "prm"
    assert about["base"] == str(tiny_model)
    assert about["head"] == {"width": 12, "dropout": 0.1, "kind": "mlp"}
    assert about["prompt"]["style"] == "few_shot"
    assert about["prompt"]["answer_markers"] == ["####", "Therefore"]


def test_another_kind_is_refused(saved: tuple[CriticModel, Path]) -> None:
    with pytest.raises(ModelError, match=r"kind 'prm'; expected 'orm'"):
        CriticModel.from_pretrained(saved[1], "orm")


def test_an_unknown_kind_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="'judge'; expected one of value, prm, orm"):
        CriticModel.create("judge", str(tiny_model))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["head.safetensors", "critic.json", "config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_by_a_model_error(saved: tuple[CriticModel, Path], name: str) -> None:
    (saved[1] / name).unlink()
    if name == "tokenizer.json":
        (saved[1] / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=str(saved[1])):
        CriticModel.from_pretrained(saved[1])


def test_a_language_model_is_no_critic(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="not a critic checkpoint"):
        CriticModel.from_pretrained(tiny_model)


def test_a_head_of_another_width_is_refused(saved: tuple[CriticModel, Path]) -> None:
    about = json.loads((saved[1] / "critic.json").read_text())
    about["head"]["width"] = 13
    (saved[1] / "critic.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(saved[1])


def test_a_head_for_another_backbone_is_refused(saved: tuple[CriticModel, Path], tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    for name in ("config.json", "model.safetensors"):
        (saved[1] / name).write_bytes((tmp_path / "narrow" / name).read_bytes())
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(saved[1])


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_head_with_other_tensors_is_refused(saved: tuple[CriticModel, Path], change: str) -> None:
    weights = load_file(saved[1] / "head.safetensors")
    if change == "missing":
        del weights["0.bias"]
    else:
        weights["9.bias"] = torch.zeros(1)
    save_file(weights, saved[1] / "head.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(saved[1])


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "name",
    ["model", "head"],
)
def test_pickled_weights_are_refused_unread(saved: tuple[CriticModel, Path], tmp_path: Path, name: str) -> None:
    if name == "model":
        (saved[1] / "model.safetensors").unlink()
    target = saved[1] / ("pytorch_model.bin" if name == "model" else "head.safetensors")
    torch.save({"x": Bomb(tmp_path / "exploded")}, target)
    with pytest.raises(ModelError):
        CriticModel.from_pretrained(saved[1])
    assert not (tmp_path / "exploded").exists()


def test_a_pickled_adapter_is_refused(saved_lora: tuple[CriticModel, Path]) -> None:
    folder = saved_lora[1]
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError):
        CriticModel.from_pretrained(folder)


@pytest.mark.parametrize("cut", ["head.safetensors", "model.safetensors"])
def test_a_file_cut_short_is_refused(saved: tuple[CriticModel, Path], cut: str) -> None:
    path = saved[1] / cut
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError):
        CriticModel.from_pretrained(saved[1])


@pytest.mark.parametrize("key", ["kind", "base", "head", "prompt"])
def test_an_incomplete_description_is_refused(saved: tuple[CriticModel, Path], key: str) -> None:
    about = json.loads((saved[1] / "critic.json").read_text())
    del about[key]
    (saved[1] / "critic.json").write_text(json.dumps(about))
    with pytest.raises(ModelError):
        CriticModel.from_pretrained(saved[1], "prm")


def test_heads_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"head\.width is 0"):
        HeadConfig(width=0)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"head\.dropout is"):
            HeadConfig(dropout=dropout)


def test_an_adapter_on_the_last_layer_alone(tiny_model: Path, tmp_path: Path) -> None:
    model = shaken(CriticModel.create("orm", str(tiny_model), HEAD, lora=LoraSpec(rank=2, layers=1)))
    adapted = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 7  # A and B of four projections of attention and three of the MLP
    assert all("layers.1." in name for name in adapted)
    # The layer below needs no gradient, so its activations are not kept.
    model.train()(IDS).sum().backward()
    assert all(p.grad is None for name, p in model.backbone.named_parameters() if "layers.0." in name)
    model.save_pretrained(tmp_path / "critic")
    assert torch.equal(logits(CriticModel.from_pretrained(tmp_path / "critic", "orm")), logits(model))


@pytest.mark.parametrize(("layers", "message"), [(3, "has 2; expected at most that"), (-1, "expected a whole number >= 0")])
def test_an_adapter_on_layers_that_there_are_not(tiny_model: Path, layers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CriticModel.create("orm", str(tiny_model), HEAD, lora=LoraSpec(rank=2, layers=layers))
