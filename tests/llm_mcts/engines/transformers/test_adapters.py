"""Policy and critics as adapters on one base: each gives what it gives alone, in any order, at once, and in little memory."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from critics import CriticModel, ModelCritic
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from llm_mcts import Solver
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.transformers.adapters import AdapterView, SharedBackbone
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.engines.transformers.packing import PackedLinear
from llm_mcts.errors import ConfigError, ModelError
from llm_mcts.models import adapter_base, load_causal_lm, load_tokenizer
from llm_mcts.types import State, Step

QUESTION = "Ann has 5 apples and buys 3 more. How many apples does Ann have now?"
STATES = [State(QUESTION), State(QUESTION, (Step("Ann has 5 + 3 = 8 apples."),)), State("7?", (Step("7"), Step("8")))]
REQUEST = Request((f"Question: {QUESTION}\nAnswer:\n",), 3, 10, 1.0, seed=1)


def shaken(model: Any, seed: int) -> Any:
    """Adapters begin as no change at all: give them one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, a value model and an ORM, each a LoRA adapter on the tiny model."""
    root = tmp_path_factory.mktemp("adapters")
    policy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    policy = get_peft_model(policy, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    shaken(policy, 0).save_pretrained(root / "policy")
    load_tokenizer(str(tiny_model)).save_pretrained(root / "policy")
    for seed, kind in enumerate(("value", "orm"), 1):
        critic = CriticModel.create(kind, str(tiny_model), HeadConfig(width=16), lora=LoraSpec(rank=4), seed=seed)  # type: ignore[arg-type]
        shaken(critic.backbone, seed)
        critic.save_pretrained(root / kind)
    return {name: root / name for name in ("policy", "value", "orm")}


def scores(folder: Path, shared: SharedBackbone | None = None) -> list[list[float]]:
    critic = ModelCritic(CriticModel.from_pretrained(folder, shared=shared))
    return asyncio.run(critic.step_scores(STATES))


def texts(engine: TransformersEngine) -> list[str]:
    return [c.text for c in asyncio.run(engine.generate(REQUEST))]


@pytest.fixture
def shared(tiny_model: Path) -> SharedBackbone:
    return SharedBackbone(load_causal_lm(str(tiny_model), torch.float32, torch.device("cpu")), str(tiny_model))


def test_each_adapter_gives_what_it_gives_alone(folders: dict[str, Path], shared: SharedBackbone, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    alone = {name: scores(folders[name]) for name in ("value", "orm")}
    policy_alone = texts(TransformersEngine(EngineConfig(str(folders["policy"]))))
    base_alone = texts(TransformersEngine(EngineConfig(str(tiny_model))))
    assert policy_alone != base_alone
    policy = TransformersEngine(model=shared.as_lm(shared.add(folders["policy"])), tokenizer=tokenizer)
    base = TransformersEngine(model=shared.as_lm(None), tokenizer=tokenizer)
    critics = {name: ModelCritic(CriticModel.from_pretrained(folders[name], shared=shared)) for name in alone}
    shared.pack()
    assert any(isinstance(module, PackedLinear) for module in shared.model.modules())

    async def at_once() -> tuple[list[Completion], list[Completion], list[list[float]], list[list[float]]]:
        """All four have work under way at the same time, so their adapters take turns between forwards."""
        return await asyncio.gather(
            policy.generate(REQUEST),
            base.generate(REQUEST),
            critics["value"].step_scores(STATES),
            critics["orm"].step_scores(STATES),
        )

    written, plain, value, orm = asyncio.run(at_once())
    assert [c.text for c in written] == policy_alone
    assert [c.text for c in plain] == base_alone
    for found, expected in ((value, alone["value"]), (orm, alone["orm"])):
        for row, wanted in zip(found, expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)
    assert value != orm


def test_the_solver_shares(folders: dict[str, Path], tiny_model: Path) -> None:
    settings: dict[str, Any] = {
        "engine": {"model": str(folders["policy"])},
        "critics": {"value": str(folders["value"]), "orm": str(folders["orm"])},
        "policy": {"max_step_tokens": 8, "max_solution_tokens": 24},
        "search": {"name": "mcts", "num_simulations": 6},
    }
    apart, together = Solver.from_config(settings), Solver.from_config({**settings, "share_backbone": True})
    a, b = apart.solve(QUESTION), together.solve(QUESTION)
    assert b.state == a.state
    assert [t.score for t in b.traces] == pytest.approx([t.score for t in a.traces], abs=1e-5)
    assert isinstance(together.engine, TransformersEngine)
    assert isinstance(together.engine.model, AdapterView)
    held = {id(p): p.nbytes for p in together.engine.model.parameters()}
    base = sum(p.nbytes for p in load_causal_lm(str(tiny_model), torch.float32, torch.device("cpu")).parameters())
    assert sum(held.values()) < 2 * base  # the tiny model's adapters are large beside it; packed weights are no parameters


def test_what_cannot_share_is_refused(
    folders: dict[str, Path], shared: SharedBackbone, tiny_model: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    CriticModel.create("orm", str(tiny_model), HeadConfig(width=16)).save_pretrained(whole)
    with pytest.raises(ModelError, match="not a LoRA adapter; expected one on"):
        CriticModel.from_pretrained(whole, shared=shared)
    other = SharedBackbone(load_causal_lm("embedded", torch.float32, torch.device("cpu")), "embedded")
    with pytest.raises(ModelError, match="expected one on embedded"):
        other.add(folders["policy"])
    assert adapter_base(folders["policy"]) == str(tiny_model)
    assert adapter_base(tiny_model) is None
    with pytest.raises(ConfigError, match="expected the transformers engine"):
        Solver.from_config({"share_backbone": True, "engine": {"name": "openai"}})


def test_the_right_adapter_is_on_whatever_was_loaded_in_between(
    folders: dict[str, Path], shared: SharedBackbone, tiny_model: Path
) -> None:
    ids = torch.arange(5, 25)[None]
    value = shared.as_backbone(shared.add(folders["value"]))
    alone = value(ids).last_hidden_state
    base = shared.as_backbone(None)(ids).last_hidden_state
    orm = shared.as_backbone(shared.add(folders["orm"]))  # loaded while all adapters are off
    assert not torch.allclose(orm(ids).last_hidden_state, base)
    assert torch.allclose(value(ids).last_hidden_state, alone)
    broken = tmp_copy(folders["value"], lambda config: config | {"r": 2})
    with pytest.raises(ModelError, match="does not fit the base model"):
        shared.add(broken)
    assert torch.allclose(value(ids).last_hidden_state, alone)
    assert torch.allclose(shared.as_backbone(None)(ids).last_hidden_state, base)
    dora = tmp_copy(folders["value"], lambda config: config | {"use_dora": True})
    with pytest.raises(ModelError, match="by low rank"):
        shared.add(dora)
    shared.pack()
    with pytest.raises(ModelError, match="expected all adapters before pack"):
        shared.add(folders["value"])


def tmp_copy(folder: Path, change: Any) -> Path:
    """A copy of an adapter with another configuration."""
    copy = folder.parent / f"{folder.name}-{len(list(folder.parent.iterdir()))}"
    shutil.copytree(folder, copy)
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return copy
