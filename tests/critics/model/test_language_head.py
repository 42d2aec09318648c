"""OVM's head, and the language-model head that a critic keeps for its training alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM

from critics.model.heads import HeadConfig
from critics.model.language_head import attach_language_head
from critics.model.lora import LoraSpec
from critics.model.model import CriticModel
from critics.scoring.trained import ModelCritic
from llm_mcts.errors import ConfigError, ModelError
from llm_mcts.models import load_causal_lm
from trainers.critic.train import train_critic
from trainers.data.objectives import CriticLossConfig, ValueObjective
from trainers.data.rows import SolutionRow
from trainers.fit.fit import TrainCall, TrainConfig

IDS = torch.tensor([[20, 30, 40, 50, 60], [61, 51, 41, 31, 21]])
ROWS = [SolutionRow("p", f"{i} + 1?", (f"{i} + 1 = {i + 1}", f"#### {i + 1}"), float(i % 2)) for i in range(4)]
WITH_LANGUAGE = CriticLossConfig(value=ValueObjective(lm_weight=0.5))
SHORT = TrainConfig(epochs=3, learning_rate=1e-2, batch_size=4)


def saved_like(tiny_model: Path, folder: Path, model: object) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose head has weights of its own."""
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_model)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return saved_like(tiny_model, tmp_path_factory.mktemp("models") / "untied", LlamaForCausalLM(config))


def language_logits(model: CriticModel) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(IDS, with_language=True)[1]
    assert isinstance(found, torch.Tensor)
    return found


def train(start: Path, out: Path, config: TrainConfig = SHORT, losses: CriticLossConfig = WITH_LANGUAGE) -> Path:
    train_critic("value", TrainCall(ROWS, str(start), out, config, losses, head=HeadConfig(width=8)))
    return out


# OVM's head


def test_ovms_head_by_hand(tiny_model: Path) -> None:
    """logit = w . (gain h + bias)"""
    model = CriticModel.create("value", str(tiny_model), HeadConfig(kind="ovm", dropout=0.2)).eval()
    assert [type(layer).__name__ for layer in model.head] == ["GainAndBias", "Dropout", "Linear"]
    assert model.head[1].p == 0.2
    # gain, bias and one weight for each of 32 hidden units; the linear map has no bias.
    assert sum(p.numel() for p in model.head.parameters()) == 1 + 1 + 32
    with torch.no_grad():
        model.head[0].gain.fill_(2.0)
        model.head[0].bias.fill_(0.5)
        model.head[2].weight.zero_()
        model.head[2].weight[0, :2] = torch.tensor([3.0, -1.0])
        hidden = torch.zeros(2, 32)
        hidden[0, :2] = torch.tensor([1.0, 4.0])  # 3 (2 * 1 + 0.5) - (2 * 4 + 0.5) = 7.5 - 8.5 = -1
        hidden[1, :2] = torch.tensor([0.0, 0.0])  # 3 * 0.5 - 0.5 = 1
        assert model.logits(hidden).tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)


def test_ovms_dropout_works_in_training_alone(tiny_model: Path) -> None:
    model = CriticModel.create("value", str(tiny_model), HeadConfig(kind="ovm", dropout=0.5))
    hidden = torch.ones(1, 32)
    torch.manual_seed(0)
    assert len({model.train().logits(hidden).item() for _ in range(8)}) > 1
    assert len({model.eval().logits(hidden).item() for _ in range(8)}) == 1


def test_round_trip_of_ovms_head(tiny_model: Path, tmp_path: Path) -> None:
    model = CriticModel.create("value", str(tiny_model), HeadConfig(kind="ovm", dropout=0.2)).eval()
    with torch.no_grad():
        model.head[0].gain.fill_(1.5)
        model.head[0].bias.fill_(-0.25)
    model.save_pretrained(tmp_path / "critic")
    loaded = CriticModel.from_pretrained(tmp_path / "critic", "value")
    assert loaded.head_config == HeadConfig(kind="ovm", dropout=0.2)
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))


def test_a_head_of_another_kind_does_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    CriticModel.create("value", str(tiny_model), HeadConfig(kind="ovm")).save_pretrained(tmp_path / "critic")
    about = json.loads((tmp_path / "critic" / "critic.json").read_text())
    about["head"]["kind"] = "mlp"
    (tmp_path / "critic" / "critic.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(tmp_path / "critic")


def test_a_checkpoint_from_before_there_were_kinds_has_the_mlp(tiny_model: Path, tmp_path: Path) -> None:
    model = CriticModel.create("value", str(tiny_model), HeadConfig(width=8)).eval()
    model.save_pretrained(tmp_path / "critic")
    about = json.loads((tmp_path / "critic" / "critic.json").read_text())
    del about["head"]["kind"]
    (tmp_path / "critic" / "critic.json").write_text(json.dumps(about))
    with torch.no_grad():
        assert torch.equal(CriticModel.from_pretrained(tmp_path / "critic")(IDS), model(IDS))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"head\.kind is 'linear'; expected one of mlp, ovm, surprisal"):
        HeadConfig(kind="linear")  # type: ignore[arg-type]


# The language-model head


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)])
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_its_logits_are_the_language_models(which: str, lora: LoraSpec | None, tiny_model: Path, untied: Path) -> None:
    base = tiny_model if which == "tied" else untied
    model = CriticModel.create("value", str(base), lora=lora)
    assert model.lm_head is None
    attach_language_head(model)
    with torch.no_grad():
        expected = load_causal_lm(str(base), torch.float32, torch.device("cpu"))(input_ids=IDS).logits
    assert torch.allclose(language_logits(model), expected, atol=1e-5)
    assert model.lm_head is not None
    assert {p.requires_grad for p in model.lm_head.parameters()} == {lora is None}


def test_a_tied_head_is_the_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    out = train(tiny_model, tmp_path / "out")
    assert not (out / "lm_head.safetensors").exists()
    model = CriticModel.from_pretrained(out, trainable=True)
    attach_language_head(model, out)
    assert model.lm_head is not None
    assert model.lm_head.weight is model.backbone.embed_tokens.weight
    before = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(model.lm_head.weight, before)


def test_a_head_of_its_own_is_trained_saved_and_taken_up_again(untied: Path, tmp_path: Path) -> None:
    one = train(untied, tmp_path / "one")
    first = load_file(one / "lm_head.safetensors")["weight"]
    assert not torch.equal(first, load_file(untied / "model.safetensors")["lm_head.weight"])
    model = CriticModel.from_pretrained(one, trainable=True)
    attach_language_head(model, one)
    assert model.lm_head is not None
    assert torch.equal(model.lm_head.weight, first)  # type: ignore[arg-type]
    two = train(one, tmp_path / "two")
    assert not torch.equal(load_file(two / "lm_head.safetensors")["weight"], first)


def test_under_lora_the_bases_head_stays_as_it_is(untied: Path, tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, learning_rate=1e-2, batch_size=4, lora=LoraSpec(rank=2))
    out = train(untied, tmp_path / "out", config)
    assert not (out / "lm_head.safetensors").exists()
    model = CriticModel.from_pretrained(out, trainable=True)
    attach_language_head(model, out)
    assert model.lm_head is not None
    assert torch.equal(model.lm_head.weight, load_file(untied / "model.safetensors")["lm_head.weight"])  # type: ignore[arg-type]
    train(out, tmp_path / "next", config)


def test_scoring_takes_none_of_it(untied: Path, tmp_path: Path) -> None:
    out = train(untied, tmp_path / "out")
    with_it = CriticModel.from_pretrained(out, "value")
    assert with_it.lm_head is None
    (out / "lm_head.safetensors").unlink()
    with torch.no_grad():
        assert torch.equal(CriticModel.from_pretrained(out, "value")(IDS), with_it(IDS))
    ModelCritic(with_it)


def test_the_language_loss_teaches_the_language(tiny_model: Path, tmp_path: Path) -> None:
    """With the loss the solutions become likelier than without it."""

    def loss_of(weight: float) -> float:
        config = TrainConfig(epochs=20, learning_rate=1e-2, batch_size=4)
        out = train(tiny_model, tmp_path / str(weight), config, CriticLossConfig(value=ValueObjective(lm_weight=weight)))
        model = CriticModel.from_pretrained(out, trainable=True)
        attach_language_head(model, out)
        ids = torch.tensor([model.tokenizer("3 + 1 = 4\n#### 4\n").input_ids])
        with torch.no_grad():
            logits = model.eval()(ids, with_language=True)[1]
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()

    assert loss_of(1.0) < 3.0 < 5.0 < loss_of(0.0)  # untrained: ln 566 = 6.3


def test_a_checkpoint_without_one_is_refused(untied: Path, tmp_path: Path) -> None:
    plain = train(untied, tmp_path / "plain", losses=CriticLossConfig())
    with pytest.raises(ModelError, match=r"holds no lm_head\.safetensors .* or lm_weight 0"):
        train(plain, tmp_path / "next")
    torch.save({"weight": torch.zeros(1)}, plain / "lm_head.safetensors")
    with pytest.raises(ModelError, match=r"holds no lm_head\.safetensors"):
        train(plain, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_a_head_of_another_size_is_refused(untied: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    out = train(untied, tmp_path / "out")
    save_file({"weight": torch.zeros(3, 32)}, out / "lm_head.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        train(out, tmp_path / "next")


def test_a_model_that_changes_its_logits_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Gemma 2 bounds its logits by 30 tanh(x / 30): its head's output is not its logits."""
    config = Gemma2Config(
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_model)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.1,
    )
    base = saved_like(tiny_model, tmp_path / "capped", Gemma2ForCausalLM(config))
    with pytest.raises(ModelError, match="lm_weight 0"):
        train(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
