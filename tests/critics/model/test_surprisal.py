"""A head that judges by surprisal: its features by hand, the same scores with and without caches, its checkpoints."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from critics import CriticModel, ModelCritic, load_critic
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from critics.model.surprisal import Running, running, solution_features, surprisals
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.adapters import SharedBackbone
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, ModelError
from llm_mcts.models import load_causal_lm
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.types import State, Step, metered
from trainers.critic.train import train_critic
from trainers.data.encoding import Encoded
from trainers.data.objectives import CriticLossConfig, OutcomeObjective, StepObjective, ValueObjective
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow
from trainers.fit.fit import TrainCall, TrainConfig

HEAD = HeadConfig(width=8, kind="surprisal")
QUESTION = "Ann has 5 apples and buys 3 more. How many?"
RIGHT, WRONG = ("Ann has 5 + 3 = 8 apples.", "So 8.", "#### 8"), ("Ann has 5 + 3 = 9 apples.", "So 9.", "#### 9")
ROWS = [SolutionRow("p", QUESTION, RIGHT, 1.0), SolutionRow("p", QUESTION, WRONG, 0.0)]
STATES = [State(QUESTION, tuple(map(Step, steps))) for steps in (RIGHT, WRONG, RIGHT[:1], (*RIGHT[:1], "So 7."), ())]
SHORT = TrainConfig(epochs=4, learning_rate=3e-3, batch_size=2)


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose language-model head has weights of its own."""
    folder = tmp_path_factory.mktemp("models") / "untied"
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
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def shaken(model: CriticModel) -> CriticModel:
    """The model with every trainable weight moved, so that a fresh one cannot pass for it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def scores(critic: ModelCritic, states: list[State]) -> list[list[float]]:
    return asyncio.run(critic.step_scores(states))


# By hand

LOG = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()  # -0.6931, -1.3863, -2.0794, -2.0794


def test_a_tokens_log_probability_comes_from_the_position_before() -> None:
    # The "hidden states" choose a row of logits: state 0 gives 1/2, 1/4, 1/8, 1/8; state 1 the same backwards.
    head = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.stack([LOG, LOG.flip(0)], dim=1))
    hidden = torch.eye(2)[torch.tensor([[0, 0, 1, 0, 1]])]
    ids = torch.tensor([[3, 0, 0, 3, 1]])
    segments = torch.tensor([[0, 0, 1, 1, 0]])
    # Token 2 is a 0 behind state 0: 1/2. Token 3 is a 3 behind state 1: 1/2 too, behind state 0 it would be 1/8. Prompt (a 0
    # behind state 0) and padding count nothing.
    found = surprisals(hidden, ids, segments, head)
    assert found[0].tolist() == pytest.approx([0.0, 0.0, -0.693147, -0.693147, 0.0], abs=1e-5)
    other = surprisals(hidden, torch.tensor([[3, 0, 2, 0, 1]]), segments, head)  # 1/8, 1/8
    assert other[0].tolist() == pytest.approx([0.0, 0.0, -2.079442, -2.079442, 0.0], abs=1e-5)


def test_features_by_hand() -> None:
    logprobs = torch.tensor([[0.0, -1.0, -3.0, -2.0, 0.0], [0.0, 0.0, -4.0, -0.5, -1.5]])
    segments = torch.tensor([[0, 1, 1, 2, 0], [0, 0, 1, 2, 2]])
    found, solution = solution_features(logprobs, segments)
    # Row 0, third token of the solution (step 2): its own -2; sum -6, mean -2, least -3; in its step mean and least -2.
    # Scaled: own 1/2, sum 1/16, means 2, least 1/2.
    assert found[0, 3].tolist() == pytest.approx([-1.0, -0.375, -4.0, -1.5, -4.0, -1.0])
    # Row 0, second token (step 1): own -3; sum -4, mean -2, least -3; step the same.
    assert found[0, 2].tolist() == pytest.approx([-1.5, -0.25, -4.0, -1.5, -4.0, -1.5])
    # Row 1, last token (step 2): own -1.5; sum -6, mean -2, least -4; step: mean -1, least -1.5.
    assert found[1, 4].tolist() == pytest.approx([-0.75, -0.375, -4.0, -2.0, -2.0, -0.75])
    # Prompt and padding.
    assert found[0, 0].tolist() == found[0, 4].tolist() == found[1, 1].tolist() == [0.0] * 6
    assert [part[1].tolist() for part in solution] == [[0, 0, 1, 2, 3], [0, 0, -4, -4.5, -6], [0, 0, -4, -4, -4]]


def test_a_solution_is_read_on_from_where_it_was_left() -> None:
    logprobs = torch.tensor([[0.0, -1.0, -3.0, -2.0, -0.5]])
    segments = torch.tensor([[0, 1, 1, 2, 2]])
    whole, solution = solution_features(logprobs, segments)
    before = Running(*(part[:, 2:3] for part in solution))
    assert [part.item() for part in before] == [2, -4, -3]
    rest, end = solution_features(torch.tensor([[0.0, -2.0, -0.5]]), torch.tensor([[0, 2, 2]]), before)
    assert torch.allclose(rest[:, 1:], whole[:, 3:])
    assert [part[0, -1].item() for part in end] == [4, -6.5, -3]


def test_nothing_of_a_segment_reaches_another() -> None:
    found = running(torch.tensor([[-9.0, -1.0, -2.0]]), torch.tensor([[1, 2, 2]]))
    assert [part[0].tolist() for part in found] == [[1, 1, 2], [-9, -1, -3], [-9, -1, -2]]


def test_the_features_are_the_language_models(tiny_model: Path, untied: Path) -> None:
    """A head that passes the solution's sum on: its logit is the log-probability that the language model gives the solution."""
    for base in (tiny_model, untied):
        model = CriticModel.create("orm", str(base), HeadConfig(width=1, kind="surprisal"))
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.zero_()
            model.head[0].weight[0, 32 + 1] = -16.0  # the sum comes divided by 16; relu wants it positive
            model.head[3].weight.fill_(-1.0)
        engine = TransformersEngine(EngineConfig(str(base), device="cpu"))
        fmt = PromptFormat(PromptConfig())
        segments = fmt.segments(STATES[0])
        [logprobs] = asyncio.run(engine.logprobs(segments[:1], [segments[1:]]))
        found = torch.logit(torch.tensor(scores(ModelCritic(model), STATES[:1])[0][-1], dtype=torch.float64)).item()
        # The score is a sigmoid in float32: of e^-200 nothing is left to compare, so the sum is divided further.
        with torch.no_grad():
            model.head[0].weight.mul_(0.01)
        found = torch.logit(torch.tensor(scores(ModelCritic(model), STATES[:1])[0][-1], dtype=torch.float64)).item()
        assert found == pytest.approx(0.01 * sum(logprobs), abs=1e-4)  # through a float32 sigmoid and back


# Scoring


def check_orders(model: CriticModel) -> None:
    """One forward of the whole, and the scores read piece by piece in any order, with room for the cache and without."""
    fmt, encode = PromptFormat(model.prompt_config), Encoder(model.tokenizer)
    expected = []
    for state in STATES:
        segments = fmt.segments(state)
        ids, ends = encode(segments), encode.ends(segments)
        steps = [next((i for i, end in enumerate(ends) if at <= end), 0) for at in range(len(ids))]
        with torch.no_grad():
            logits = model(torch.tensor([ids]), segments=torch.tensor([steps]))
        assert isinstance(logits, torch.Tensor)
        expected.append(torch.sigmoid(logits[0, ends]).tolist())
    for states in (STATES, STATES[::-1]):
        for cache_mb in (64, 0):
            critic = ModelCritic(model, cache_mb=cache_mb)
            apart = [scores(critic, [state])[0] for state in states]
            for found in (scores(ModelCritic(model), states), apart, scores(critic, states)):
                for one, other in zip(found, expected if states is STATES else expected[::-1], strict=True):
                    assert one == pytest.approx(other, abs=1e-5)
    assert expected[0][-1] != pytest.approx(expected[1][-1], abs=1e-3)


def test_scores_are_those_of_one_forward(tiny_model: Path) -> None:
    check_orders(shaken(CriticModel.create("prm", str(tiny_model), HEAD)))


def test_padding_changes_nothing(tiny_model: Path) -> None:
    model = shaken(CriticModel.create("orm", str(tiny_model), HEAD))
    ids, segments = torch.tensor([[20, 30, 40, 50]]), torch.tensor([[0, 1, 1, 2]])
    padded = torch.tensor([[20, 30, 40, 50, 0, 0], [60, 61, 51, 41, 31, 21]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with torch.no_grad():
        alone = model(ids, torch.ones_like(ids), segments=segments)
        both = model(padded, mask, segments=torch.tensor([[0, 1, 1, 2, 0, 0], [0, 0, 1, 1, 1, 1]]))
    assert torch.allclose(both[0, :4], alone[0], atol=1e-5)  # type: ignore[index]


def test_a_new_step_costs_its_tokens_and_one(tiny_model: Path) -> None:
    critic = ModelCritic(shaken(CriticModel.create("value", str(tiny_model), HEAD)))
    encode = Encoder(critic.model.tokenizer)
    scores(critic, [STATES[0]])
    fresh = State(QUESTION, (*map(Step, RIGHT[:2]), Step("So it is 8.")))

    async def run() -> int:
        with metered() as usage:
            await critic.score([fresh])
        return usage.critic_tokens

    segments = PromptFormat(PromptConfig()).segments(fresh)
    common = len(encode(segments[:-1]))
    shared = len([0 for a, b in zip(encode(segments), encode(PromptFormat(PromptConfig()).segments(STATES[0])), strict=False)])
    assert (
        shared > common
    )  # the new step begins like the old one or not: at most its own tokens and the one before are computed
    assert asyncio.run(run()) <= len(encode(segments)) - common + 1


# Training


def overfit(kind: str, rows: list[Row], base: str, out: Path, config: TrainConfig, losses: CriticLossConfig) -> CriticModel:
    train_critic(kind, TrainCall(rows, base, out, config, losses, head=HEAD))  # type: ignore[arg-type]
    return CriticModel.from_pretrained(out)


def test_every_kind_trains_and_keeps_its_scores(tiny_model: Path, tmp_path: Path) -> None:
    steps = [StepRow("p", QUESTION, RIGHT, (1.0, 1.0, 1.0)), StepRow("p", QUESTION, WRONG, (0.0, 0.0, None))]
    pairs = [PairRow("p", QUESTION, RIGHT, WRONG)]
    cases: list[tuple[str, list[Row], CriticLossConfig]] = [
        ("value", list(ROWS), CriticLossConfig(value=ValueObjective(lm_weight=0.1))),
        ("prm", list(steps), CriticLossConfig(prm=StepObjective(lm_weight=0.1))),
        ("orm", list(ROWS), CriticLossConfig(orm=OutcomeObjective(lm_weight=0.1))),
        ("orm", list(pairs), CriticLossConfig(orm=OutcomeObjective(target="pairwise"))),
    ]
    config = TrainConfig(epochs=25, learning_rate=1e-2, batch_size=2)
    for i, (kind, rows, losses) in enumerate(cases):
        model = overfit(kind, rows, str(tiny_model), tmp_path / str(i), config, losses)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        right, wrong = asyncio.run(ModelCritic(model, "min").score(STATES[:2]))
        assert right > wrong + 0.25, (kind, losses)


def test_which_tokens_train_the_language_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Encoded]] = []
    monkeypatch.setattr("trainers.critic.train.fit", lambda model, rows, *_: seen.append(rows) or {})
    steps = [StepRow("p", QUESTION, RIGHT, (0.2, 0.6, 1.0)), StepRow("p", QUESTION, WRONG, (1.0, 0.6, 0.0))]
    losses = CriticLossConfig(ValueObjective(lm_weight=1.0), StepObjective(lm_weight=1.0), OutcomeObjective(lm_weight=1.0))
    for kind, rows in (("orm", ROWS), ("prm", steps), ("value", ROWS)):
        train_critic(kind, TrainCall(rows, str(tiny_model), tmp_path / kind, SHORT, losses, head=HEAD))  # type: ignore[arg-type]
    encode = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    for kind, encoded in zip(("orm", "prm", "value"), seen, strict=True):
        for row, steps_of, counts in zip(encoded, (RIGHT, WRONG), (True, kind == "value"), strict=True):
            segments = PromptFormat(PromptConfig()).segments(State(QUESTION, tuple(map(Step, steps_of))))
            prompt, *lengths = (len(encode([text])) for text in segments)
            total = sum(lengths)
            # Behind the solution stands the end of text, which a language model learns and no step contains.
            assert row.columns["written"] == [False] * prompt + [counts] * (total + 1), kind
            assert row.columns["segment"] == [0] * prompt + [1] * lengths[0] + [2] * lengths[1] + [3] * lengths[2] + [0]


@pytest.mark.parametrize("which", ["tied", "untied"])
@pytest.mark.parametrize("how", ["whole", "lora", "trunk"])
def test_round_trip(which: str, how: str, tiny_model: Path, untied: Path, tmp_path: Path) -> None:
    base = str(tiny_model if which == "tied" else untied)
    lora = LoraSpec(rank=2) if how == "lora" else None
    model = shaken(CriticModel.create("prm", base, HEAD, lora=lora, trunk=how == "trunk"))
    expected = scores(ModelCritic(model), STATES)
    model.save_pretrained(tmp_path / "critic")
    assert (tmp_path / "critic" / "lm_head.safetensors").exists() == (how == "whole" and which == "untied")
    loaded = CriticModel.from_pretrained(tmp_path / "critic")
    assert loaded.head_config == HEAD
    for one, other in zip(scores(ModelCritic(loaded), STATES), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    again = load_critic(tmp_path / "critic")
    assert isinstance(again, ModelCritic)
    for one, other in zip(scores(again, STATES), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)  # packed weights


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_on_the_policys_trunk(which: str, tiny_model: Path, untied: Path, tmp_path: Path) -> None:
    base = str(tiny_model if which == "tied" else untied)
    model = shaken(CriticModel.create("value", base, HEAD, trunk=True))
    model.save_pretrained(tmp_path / "critic")
    engine = TransformersEngine(EngineConfig(base, device="cpu"))
    critic = load_critic(tmp_path / "critic", policy=engine)
    assert isinstance(critic, ModelCritic)
    assert critic.batch is engine.batch
    for one, other in zip(scores(critic, STATES), scores(ModelCritic(model), STATES), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_on_a_shared_backbone(which: str, tiny_model: Path, untied: Path, tmp_path: Path) -> None:
    base = str(tiny_model if which == "tied" else untied)
    model = shaken(CriticModel.create("orm", base, HEAD, lora=LoraSpec(rank=2)))
    model.save_pretrained(tmp_path / "critic")
    shared = SharedBackbone(load_causal_lm(base, torch.float32, torch.device("cpu")), base)
    critic = load_critic(tmp_path / "critic", shared=shared)
    shared.pack()
    assert isinstance(critic, ModelCritic)
    for one, other in zip(scores(critic, STATES), scores(ModelCritic(model), STATES), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


# What does not fit


def test_a_head_of_another_kind_does_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    CriticModel.create("value", str(tiny_model), HEAD).save_pretrained(tmp_path / "critic")
    about = json.loads((tmp_path / "critic" / "critic.json").read_text())
    about["head"]["kind"] = "mlp"
    (tmp_path / "critic" / "critic.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(tmp_path / "critic")
    CriticModel.create("value", str(tiny_model), replace(HEAD, kind="mlp")).save_pretrained(tmp_path / "critic")
    about["head"]["kind"] = "surprisal"
    (tmp_path / "critic" / "critic.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="does not fit"):
        CriticModel.from_pretrained(tmp_path / "critic")


def test_a_checkpoint_without_its_language_head_is_refused(untied: Path, tmp_path: Path) -> None:
    CriticModel.create("value", str(untied), HEAD).save_pretrained(tmp_path / "critic")
    (tmp_path / "critic" / "lm_head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no lm_head\.safetensors"):
        CriticModel.from_pretrained(tmp_path / "critic")


@pytest.mark.parametrize(
    "objective", [lambda: OutcomeObjective("pairwise", lm_weight=1.0), lambda: StepObjective("pairwise", lm_weight=1.0)]
)
def test_a_language_loss_needs_solutions(objective: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"lm_weight is 1\.0 with target pairwise"):
        objective()
    with pytest.raises(ConfigError, match="lm_weight is -1; expected a number >= 0"):
        OutcomeObjective(lm_weight=-1)
