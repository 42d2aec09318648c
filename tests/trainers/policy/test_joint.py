"""Policy and value on one trunk: the loss by hand, what learns what, and a critic that reads what was trained."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trainers.policy.joint
from critics import CriticModel, ModelCritic, load_critic
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from llm_mcts import Solver
from llm_mcts.cli import main
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.types import State, Step
from trainers.critic.train import train_critic
from trainers.data.encoding import EncodedGroup, collate
from trainers.data.rows import SolutionRow, TargetRow, row_to_dict
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.fit.losses import joint_loss
from trainers.policy.distill import DistillConfig
from trainers.policy.joint import JointConfig, encode_joint, train_joint
from trainers.policy.trainer import PolicyCall

HEAD = HeadConfig(width=16)
SIBLINGS = JointConfig(policy=DistillConfig(over="siblings"))
FAST = TrainConfig(epochs=60, learning_rate=1e-2, batch_size=4)
ROWS = [
    TargetRow("p", "1 + 2?", (), ("1 + 2 = 3", "1 + 2 = 4"), (0.9, 0.1), 0.75),
    TargetRow("p", "1 + 2?", ("1 + 2 = 3",), ("#### 3", "#### 4"), (0.8, 0.2), 1.0),
    TargetRow("p", "1 + 2?", ("1 + 2 = 4",), ("#### 4", "#### 3"), (0.3, 0.7), 0.0),
    TargetRow("p", "5 + 5?", (), ("5 + 5 = 10",), (1.0,), None),
]


def train(
    out: Path, start: Path, joint: JointConfig | None = None, config: TrainConfig = FAST, rows: Any = ROWS, **how: Any
) -> Any:
    return train_joint(PolicyCall(rows, str(start), out / "policy", config, joint, value_out=out / "value", head=HEAD, **how))


@dataclass
class Fitted:
    """The model that went through `fit`, and what it was before."""

    model: Any
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    rows: list[EncodedGroup]

    def moved(self) -> set[str]:
        return {name for name, tensor in self.after.items() if not torch.equal(tensor, self.before[name])}


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    seen: list[Fitted] = []
    real = trainers.policy.joint.fit

    def spy(model: Any, rows: Any, *args: Any) -> dict[str, float]:
        def copy() -> dict[str, Tensor]:
            return {name: p.detach().clone() for name, p in model.named_parameters()}

        before = copy()
        metrics: dict[str, float] = real(model, rows, *args)
        seen.append(Fitted(model, before, copy(), list(rows)))
        return metrics

    monkeypatch.setattr(trainers.policy.joint, "fit", spy)
    return seen


def of(state: TargetRow) -> State:
    return State(state.question, tuple(map(Step, state.steps)))


def values(folder: Path, engine: TransformersEngine | None = None) -> list[float]:
    """What the value model says of the rows' prefixes."""
    critic = load_critic(folder / "value", ("value",), policy=engine)
    return asyncio.run(critic.score([of(row) for row in ROWS]))


# The loss


def test_the_loss_by_hand() -> None:
    # v = sigmoid(ln 3) = 3/4 against 1, sigmoid(0) = 1/2 against 0; the third does not count:
    # 2 + 4 (1/16 + 1/4) / 2 = 2.625
    logits, outcomes = torch.tensor([[log(3), 0.0, 9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert joint_loss(torch.tensor(2.0), logits, outcomes, mask, 4.0).item() == pytest.approx(2.625, abs=1e-6)
    assert joint_loss(torch.tensor(2.0), logits, outcomes, ~mask & False, 4.0).item() == 2.0
    assert joint_loss(torch.tensor(2.0), logits, outcomes, mask, 0.0).item() == 2.0


def test_the_loss_pulls_both_terms_down() -> None:
    policy, logits = torch.tensor(2.0, requires_grad=True), torch.tensor([[0.0]], requires_grad=True)
    joint_loss(policy, logits, torch.tensor([[1.0]]), torch.tensor([[True]]), 4.0).backward()
    assert policy.grad is not None
    assert logits.grad is not None
    # 4 * 2 (v - z) v (1 - v) = 8 * -1/2 * 1/4 = -1: v rises towards z
    assert (policy.grad.item(), logits.grad.item()) == (1.0, pytest.approx(-1.0, abs=1e-6))


# The rows


class Characters:
    """A tokenizer that makes a token of each character."""

    bos_token_id = None

    @dataclass
    class Output:
        input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> "Characters.Output":
        return self.Output([ord(c) for c in text])


def encoded(outcome: float | None, joint: JointConfig | None = None) -> EncodedGroup:
    row = TargetRow("p", "Q", ("a",), ("bc", "d", "e"), (0.75, 0.25, 0.0), outcome)
    return encode_joint(row, joint or JointConfig(), PromptFormat(PromptConfig()), Encoder(Characters()), 3)


def test_z_stands_at_the_prefixs_last_token_of_the_first_sequence() -> None:
    # "Question: Q\nAnswer:\n" is 20 characters, places 0 to 19; "a\n" 20 and 21; then "bc\n" or "d\n".
    first, second = encoded(0.5).parts
    assert first.columns == {
        "share": [0.0] * 22 + [0.75] * 3,
        "outcome": [0.0] * 21 + [0.5] + [0.0] * 3,
        "known": [False] * 21 + [True] + [False] * 3,
    }
    assert first.mask == [False] * 22 + [True] * 3
    assert second.columns == {"share": [0.0] * 22 + [0.25] * 2, "outcome": [0.0] * 24, "known": [False] * 24}
    assert len(encoded(0.5, SIBLINGS).parts) == 3


def test_an_unknown_z_has_no_weight() -> None:
    assert not any(any(part.columns["known"]) for part in encoded(None).parts)
    batch = collate([encoded(None), encoded(0.0)])
    assert batch["known"].nonzero().tolist() == [[2, 21]]
    assert batch["item"].tolist() == [0, 0, 1, 1]


def test_a_row_without_actions_is_the_bare_prefix() -> None:
    row = TargetRow("p", "Q", ("a",), (), (), 0.0)
    (part,) = encode_joint(row, JointConfig(), PromptFormat(PromptConfig()), Encoder(Characters()), 3).parts
    assert (len(part.ids), any(part.mask), part.columns["share"]) == (22, False, [0.0] * 22)
    assert part.columns["known"] == [False] * 21 + [True]


@pytest.mark.parametrize("joint", [JointConfig(), SIBLINGS], ids=["sum", "siblings"])
def test_the_policys_term_passes_over_rows_without_actions(joint: JointConfig) -> None:
    alone = encode_joint(
        TargetRow("p", "Q", ("z",), (), (), 0.0), joint, PromptFormat(PromptConfig()), Encoder(Characters()), 3
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = torch.randn(8, 25, 128, requires_grad=True)
    group = encoded(0.5, joint)
    n, batch = len(group.parts), collate([encoded(0.5, joint), alone, encoded(1.0, joint)])
    width = batch["input_ids"].shape[1]
    rows = [*range(n), *range(n + 1, 2 * n + 1)]
    without = collate([encoded(0.5, joint), encoded(1.0, joint)])
    expected = trainers.policy.joint.target_loss(logits[rows, :width], without, joint.policy)
    mixed = trainers.policy.joint.policy_term(logits[: 2 * n + 1, :width], batch, joint.policy)
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = collate([alone])
    loss = trainers.policy.joint.policy_term(logits[:1, : nothing["input_ids"].shape[1]], nothing, joint.policy)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and not logits.grad.any()


# Learning


@pytest.mark.parametrize("joint", [JointConfig(), SIBLINGS], ids=["sum", "siblings"])
def test_it_overfits_and_the_critic_reads_what_was_trained(
    joint: JointConfig, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    metrics = train(tmp_path, tiny_model, joint)
    assert (metrics["rows"], metrics["left_out"], metrics["steps"]) == (4, 0, 60)
    # The entropies of pi are 0.325, 0.500, 0.611 and 0: the policy's term cannot fall below their mean, 0.359. Untrained, each
    # token costs ln 566 = 6.3 over all texts, and a choice of two ln 2 = 0.69 among the siblings.
    assert 0.358 < metrics["policy_loss"] < (4.0 if joint is not SIBLINGS else 0.45)
    assert metrics["value_loss"] < 0.02
    assert metrics["loss"] == pytest.approx(metrics["policy_loss"] + 4 * metrics["value_loss"], rel=1e-4)
    assert fitted[0].moved() == set(fitted[0].before)
    engine = TransformersEngine(EngineConfig(str(tmp_path / "policy")))
    critic = load_critic(tmp_path / "value", policy=engine)
    assert isinstance(critic, ModelCritic)
    assert critic.batch is engine.batch  # a head on the policy's own hidden states
    found = values(tmp_path, engine)
    assert found[:3] == pytest.approx([0.75, 1.0, 0.0], abs=0.2)
    batch = collate(fitted[0].rows)
    with torch.no_grad():
        forward = torch.sigmoid(fitted[0].model.eval()(batch["input_ids"], batch["attention_mask"])[1])
    assert found[:3] == pytest.approx(forward[batch["known"]].tolist(), abs=1e-4)
    assert values(tmp_path)[:3] == pytest.approx(found[:3], abs=1e-4)  # also with the trunk loaded from its base


def shares(folder: Path) -> list[float]:
    """The first action's share of the probability of a row's actions."""
    engine, fmt = TransformersEngine(EngineConfig(str(folder / "policy"))), PromptFormat(PromptConfig())

    async def one(row: TargetRow) -> float:
        found = await engine.logprobs(fmt.segments(of(row)), [[fmt.step(action)] for action in row.actions])
        odds = [sum(logprobs) for logprobs in found]
        return float(torch.tensor(odds).softmax(0)[0])

    return [asyncio.run(one(row)) for row in ROWS[:3]]


def learns(tmp_path: Path, start: Path) -> bool:
    """Whether values and probabilities come near their targets."""
    train(tmp_path, start)
    near_values = all(abs(v - z) < 0.2 for v, z in zip(values(tmp_path), (0.75, 1.0, 0.0), strict=False))
    return near_values and all(abs(p - pi) < 0.15 for p, pi in zip(shares(tmp_path), (0.9, 0.8, 0.3), strict=True))


def test_it_learns_pi_and_z(tiny_model: Path, tmp_path: Path) -> None:
    assert learns(tmp_path, tiny_model)


def test_outcomes_alone_teach_the_value_model(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    rows = [ROWS[0], ROWS[3], *(replace(row, actions=(), targets=()) for row in ROWS[1:3])]
    metrics = train(tmp_path, tiny_model, rows=rows)
    assert (metrics["rows"], metrics["left_out"]) == (4, 0)
    assert values(tmp_path)[:3] == pytest.approx([0.75, 1.0, 0.0], abs=0.2)


def _others_z(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainers.policy.joint.encode_joint
    wrong = {row: other.outcome for row, other in zip(ROWS, ROWS[1:] + ROWS[:1], strict=True)}
    monkeypatch.setattr(trainers.policy.joint, "encode_joint", lambda row, *more: real(replace(row, outcome=wrong[row]), *more))


def _policy_away(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainers.policy.joint.target_loss
    monkeypatch.setattr(trainers.policy.joint, "target_loss", lambda *args: -0.01 * real(*args))


def _z_a_token_early(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainers.policy.joint.encode_joint

    def shifted(*args: Any) -> EncodedGroup:
        parts = real(*args).parts
        early = {name: [*values[1:], type(values[0])()] for name, values in parts[0].columns.items()}
        return EncodedGroup((replace(parts[0], columns=early, mask=[*parts[0].mask[1:], False]), *parts[1:]))

    monkeypatch.setattr(trainers.policy.joint, "encode_joint", shifted)


@pytest.mark.parametrize("planted", [_others_z, _policy_away, _z_a_token_early])
def test_planted_errors_are_seen(
    planted: Callable[[pytest.MonkeyPatch], None], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch)
    assert not learns(tmp_path, tiny_model)


def test_without_outcomes_the_head_stays(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    config = replace(FAST, epochs=2)
    metrics = train(tmp_path, tiny_model, config=config, rows=[replace(row, outcome=None) for row in ROWS])
    assert metrics["value_loss"] == 0
    head = {name for name in fitted[0].before if name.startswith("head.")}
    assert len(head) == 4
    assert fitted[0].moved() == set(fitted[0].before) - head


def test_with_lora_adapter_and_head_move_and_the_policy_is_whole(
    tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    train(tmp_path, tiny_model, config=replace(FAST, epochs=6, lora=LoraSpec(rank=4)))
    assert all("lora_" in name or name.startswith("head.") for name in fitted[0].moved())
    assert len(fitted[0].moved()) == 2 * 7 * 2 + 4
    assert not (tmp_path / "policy" / "adapter_config.json").exists()
    batch = collate(fitted[0].rows)
    # Merged in place when it was saved: its forward is that of the checkpoint.
    engine = TransformersEngine(EngineConfig(str(tmp_path / "policy")))
    with torch.no_grad():
        forward = torch.sigmoid(fitted[0].model.eval()(batch["input_ids"], batch["attention_mask"])[1])
    assert values(tmp_path, engine)[:3] == pytest.approx(forward[batch["known"]].tolist(), abs=1e-4)


def test_the_seed_decides_everything(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        torch.manual_seed(len(found))
        train(tmp_path / name, tiny_model, config=replace(FAST, epochs=2), seed=seed)
        found.append(values(tmp_path / name))
    assert found[0] == found[1] != found[2]


def test_a_value_model_is_trained_on(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    train(tmp_path / "one", tiny_model, config=replace(FAST, epochs=20))
    start = tmp_path / "one" / "policy"
    train(tmp_path / "two", start, config=replace(FAST, epochs=1), value_start=str(tmp_path / "one" / "value"))
    first, second = fitted
    assert all(torch.equal(second.before[name], tensor) for name, tensor in first.after.items())
    assert json.loads((tmp_path / "two" / "value" / "critic.json").read_text())["base"] == str(tmp_path / "two" / "policy")


def test_value_models_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    short = replace(FAST, epochs=1)
    train(tmp_path / "one", tiny_model, config=short)
    with pytest.raises(ConfigError, match=r"shots=2.*make them the same"):
        train(tmp_path / "x", tiny_model, value_start=str(tmp_path / "one" / "value"), prompt=PromptConfig(shots=2))
    rows = [SolutionRow("p", "1 + 2?", ("#### 3",), 1.0)]
    train_critic("value", TrainCall(rows, str(tiny_model), tmp_path / "own", short, head=HEAD))
    with pytest.raises(ConfigError, match="a backbone of its own"):
        train(tmp_path / "x", tiny_model, value_start=str(tmp_path / "own"))
    with pytest.raises(ConfigError, match=r"value_weight is -1\.0"):
        JointConfig(value_weight=-1.0)
    assert not (tmp_path / "x").exists()


def test_a_crash_between_the_checkpoints_is_mended_by_running_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(FAST, epochs=1)
    train(tmp_path, tiny_model, config=config)

    def broken(self: CriticModel, folder: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(CriticModel, "save_pretrained", broken)
        with pytest.raises(OSError, match="disk full"):
            train(tmp_path, tiny_model, config=config, seed=1)
    assert (tmp_path / "policy").exists()
    assert not (tmp_path / "value").exists()  # never another policy's head
    train(tmp_path, tiny_model, config=config, seed=1)
    train(tmp_path / "again", tiny_model, config=config, seed=1)
    assert values(tmp_path) == values(tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "policy", "value"]


# From the command line


def test_from_the_command_line(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "models"
    file.write_text("".join(json.dumps(row_to_dict(row)) + "\n" for row in ROWS))
    argv = ["train", "joint", str(file), "--out", str(out), "--config", "configs/train/joint.yaml", "--start", str(tiny_model)]
    (out / "policy").mkdir(parents=True)  # left by a run that was stopped
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["steps"]) == (4, 1)
    config = {"engine": {"model": str(out / "policy")}, "critics": {"value": str(out / "value")}}
    solver = Solver.from_config({**config, "policy": {"max_solution_tokens": 8, "max_step_tokens": 4}})
    result = solver.solve("1 + 2?", {"name": "alphazero", "num_simulations": 4})
    assert result.usage.critic_calls > 0
    assert main(argv) == 2
    assert f"{out / 'value'} exists already" in capsys.readouterr().err
