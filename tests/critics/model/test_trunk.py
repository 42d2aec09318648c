"""A head on the policy's own trunk: the head alone is trained and saved, and a step's score costs its last token."""

import asyncio
import json
from pathlib import Path

import pytest
import torch

from critics import CriticModel, ModelCritic, load_critic
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from llm_mcts import Solver
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError
from llm_mcts.policy import LMPolicy, PolicyConfig
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State, Step, metered
from trainers.critic.train import train_critic
from trainers.data.objectives import CriticLossConfig, ValueObjective
from trainers.data.rows import SolutionRow
from trainers.fit.fit import CriticTrainConfig, TrainCall, TrainConfig

QUESTION = "Ann has 5 apples and buys 3 more. How many?"
ROWS = [
    SolutionRow("p", QUESTION, ("Ann has 5 + 3 = 8 apples.", "#### 8"), 1.0),
    SolutionRow("p", QUESTION, ("Ann has 5 + 3 = 9 apples.", "#### 9"), 0.0),
]
STATES = [State(QUESTION, tuple(map(Step, row.steps))) for row in ROWS]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value head on the built-in model, trained to know two solutions apart."""
    out = tmp_path_factory.mktemp("trunk") / "value"
    config = CriticTrainConfig(epochs=150, learning_rate=1e-2, batch_size=2, trunk=True)
    train_critic("value", TrainCall(ROWS, "embedded", out, config, head=HeadConfig(width=32)))
    return out


def test_the_head_alone_is_trained_and_saved(head: Path) -> None:
    assert not list(head.glob("model*")) + list(head.glob("adapter*"))
    assert json.loads((head / "critic.json").read_text())["trunk"] is True
    before = CriticModel.create("value", "embedded", trunk=True).backbone.state_dict()
    model = CriticModel.from_pretrained(head)
    assert all(torch.equal(weight, before[name]) for name, weight in model.backbone.state_dict().items())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    right, wrong = asyncio.run(ModelCritic(model).score(STATES))
    assert right > 0.8
    assert wrong < 0.2


def test_it_reads_the_policys_hidden_states(head: Path, tiny_model: Path) -> None:
    engine = TransformersEngine(EngineConfig())
    apart, shared = load_critic(head), load_critic(head, policy=engine)
    assert isinstance(shared, ModelCritic)
    assert shared.batch is engine.batch
    expected = asyncio.run(apart.step_scores(STATES))
    for found, wanted in zip(asyncio.run(shared.step_scores(STATES)), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    other = TransformersEngine(EngineConfig(str(tiny_model)))
    alone = load_critic(head, policy=other)  # another model's policy: the base is loaded
    assert isinstance(alone, ModelCritic)
    assert alone.batch is not other.batch


def test_a_steps_score_costs_its_last_token(head: Path) -> None:
    """The policy wrote the step: all its keys but the last token's are in the cache."""
    engine = TransformersEngine(EngineConfig())
    critic = load_critic(head, policy=engine)
    policy = LMPolicy(engine, PromptFormat(PromptConfig()), PolicyConfig(temperature=1.0))

    async def run() -> tuple[int, int]:
        await critic.score([State(QUESTION)])
        steps = [s for s in await policy.propose(State(QUESTION), 8, 0) if not s.terminal]
        fresh = [State(QUESTION, (step,)) for step in steps]
        with metered() as usage:
            await critic.score(fresh)
        return usage.critic_tokens, len(fresh)

    tokens, states = asyncio.run(run())
    assert states >= 2
    # A step that was sampled in other tokens than its text's own is read anew from where they part; most are not.
    assert states <= tokens <= 4 * states


def test_a_search_with_a_value_for_free(head: Path) -> None:
    result = Solver.from_config({"critics": {"value": str(head)}, "search": {"name": "alphazero", "num_simulations": 8}}).solve(
        "Mia has 3 boxes with 4 shells each. How many shells does Mia have?"
    )
    assert result.usage.critic_calls >= 5
    assert result.usage.critic_tokens < 5 * result.usage.critic_calls


def test_what_contradicts_a_trunk_is_refused(head: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on the policy's trunk with lora\.rank 4"):
        CriticModel.create("value", "embedded", lora=LoraSpec(rank=4), trunk=True)
    with pytest.raises(ConfigError, match="was trained on a trunk and trunk is false"):
        train_critic("value", TrainCall(ROWS, str(head), tmp_path / "x", TrainConfig()))
    with pytest.raises(ConfigError, match="lm_weight is above 0 with trunk"):
        losses = CriticLossConfig(value=ValueObjective(lm_weight=0.1))
        train_critic("value", TrainCall(ROWS, "embedded", tmp_path / "x", CriticTrainConfig(trunk=True), losses))
