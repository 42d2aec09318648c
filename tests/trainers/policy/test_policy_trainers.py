"""The policy's trainers beside plain imitation: what counts, what moves, and what is learnt.

Masks are checked by hand with a tokenizer that makes a token of each character; checks are also applied to planted errors.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trainers.policy.distill
import trainers.policy.dpo
import trainers.policy.imitation
from critics.model.lora import LoraSpec
from llm_mcts.cli import main
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.search.expansion import priors
from llm_mcts.types import Step
from trainers.data.encoding import Encoded, EncodedGroup, EncodedPair, collate
from trainers.data.rows import PairRow, SolutionRow, TargetRow, row_to_dict
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.fit.language_model import load_policy, token_logits
from trainers.policy.distill import DistillConfig, encode_target, target_loss, train_distill
from trainers.policy.dpo import DPOConfig, encode_preference, preference_loss, train_dpo, with_reference
from trainers.policy.imitation import encode_weighted, train_sft, train_weighted

FORMAT = PromptFormat(PromptConfig())
EOS = 3
LORA = LoraSpec(rank=4, alpha=16)
FAST = TrainConfig(epochs=60, learning_rate=1e-2, batch_size=8)

QUESTIONS = [f"{i} apples and {i + 1} more?" for i in range(8)]
SUMS = [(f"{i} + {i + 1} = {2 * i + 1}", f"{i} + {i} = {2 * i}") for i in range(8)]
"""For each question a right first step and a wrong one."""
WEIGHTED = [
    SolutionRow(q, q, (right, "#### 1"), 1.0, 1.0 + i % 3)
    for i, (q, (right, _)) in enumerate(zip(QUESTIONS, SUMS, strict=True))
]
TARGETS = [TargetRow(q, q, (), both, (0.75, 0.25), 0.5) for q, both in zip(QUESTIONS, SUMS, strict=True)]
PAIRS = [PairRow(q, q, (right,), (wrong,)) for q, (right, wrong) in zip(QUESTIONS, SUMS, strict=True)]
H = -0.75 * log(0.75) - 0.25 * log(0.25)  # 0.562: what is left when a target is learnt
LEARNT = {"weighted": 1.0, "distill": 10.0, "siblings": H + 0.05, "dpo": 0.1}
"""Untrained: weighted about 2 x 6.3, distill 6.3 for each of a dozen tokens, siblings 0.69, dpo 0.69."""


def train(kind: str, start: Path | str, out: Path, config: TrainConfig = FAST) -> dict[str, float]:
    if kind == "weighted":
        return train_weighted(TrainCall(WEIGHTED, str(start), out, config))
    if kind == "dpo":
        return train_dpo(TrainCall(PAIRS, str(start), out, config, DPOConfig(beta=0.5)))
    return train_distill(
        TrainCall(TARGETS, str(start), out, config, DistillConfig("siblings" if kind == "siblings" else "sum"))
    )


@dataclass
class Fitted:
    """A model's parameters around its training, and the rows that it saw."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    rows: list[Any]

    def moved(self) -> set[str]:
        return {name for name, tensor in self.after.items() if not torch.equal(tensor, self.before[name])}


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    seen: list[Fitted] = []
    for module in (trainers.fit.language_model,):
        real = module.fit

        def spy(model: Any, rows: Any, *args: Any, real: Any = real) -> dict[str, float]:
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            metrics: dict[str, float] = real(model, rows, *args)
            seen.append(Fitted(before, {name: p.detach().clone() for name, p in model.named_parameters()}, list(rows)))
            return metrics

        monkeypatch.setattr(module, "fit", spy)
    return seen


def logprob(model: str | Path, question: str, prefix: Sequence[str], *continuations: Sequence[str]) -> list[list[float]]:
    """Token log-probabilities of continuations, as an engine scores them."""

    async def read() -> list[list[float]]:
        engine = TransformersEngine(EngineConfig(model=str(model), dtype="float32"))
        prompt = [FORMAT.question(question), *(FORMAT.step(text) for text in prefix)]
        return await engine.logprobs(prompt, [[FORMAT.step(text) for text in c] for c in continuations])

    return asyncio.run(read())


@pytest.mark.parametrize("kind", LEARNT)
def test_it_overfits_8_rows_and_every_parameter_moves(
    kind: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    metrics = train(kind, tiny_model, tmp_path / "out")
    assert metrics["loss"] < LEARNT[kind]
    assert (metrics["rows"], metrics["left_out"], metrics["steps"]) == (8, 0, 60)
    assert fitted[0].moved() == set(fitted[0].before)
    saved = load_causal_lm(str(tmp_path / "out"), torch.float32, torch.device("cpu"))
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, fitted[0].after[name]), name


@pytest.mark.parametrize("kind", LEARNT)
def test_with_lora_the_adapter_alone_moves(kind: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    train(kind, tiny_model, tmp_path / "out", replace(FAST, epochs=3, lora=LORA))
    assert fitted[0].moved() == {name for name in fitted[0].before if "lora_" in name}
    assert not (tmp_path / "out" / "adapter_config.json").exists()


# Masks


class Characters:
    """A tokenizer that makes a token of each character."""

    bos_token_id = None

    @dataclass
    class Output:
        input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> "Characters.Output":
        return self.Output([ord(c) for c in text])


def characters() -> Encoder:
    return Encoder(Characters())


def counted(part: Encoded) -> str:
    """The text of the tokens that count; the end of the text as a dollar."""
    ids = [token for token, counts in zip(part.ids, part.mask, strict=True) if counts]
    return "".join("$" if token == EOS else chr(token) for token in ids)


TARGET = TargetRow("p", "Q", ("a",), ("b", "#### 8", "c"), (0.25, 0.75, 0.0))


def check_target(encode: Callable[..., EncodedGroup]) -> None:
    """Each action's tokens count, with the action's own share; nothing of the prefix does."""
    found = encode(TARGET, DistillConfig(), FORMAT, characters(), EOS)
    assert [counted(part) for part in found.parts] == ["b\n", "#### 8\n$"]
    assert [sorted(set(part.columns["share"])) for part in found.parts] == [[0.0, 0.25], [0.0, 0.75]]
    for part in found.parts:
        assert [share > 0 for share in part.columns["share"]] == part.mask


def test_a_targets_mask() -> None:
    check_target(encode_target)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shifted_target_mask_is_caught(by: int) -> None:
    def shifted(*args: Any) -> EncodedGroup:
        return EncodedGroup(tuple(replace(p, mask=p.mask[-by:] + p.mask[:-by]) for p in encode_target(*args).parts))

    with pytest.raises(AssertionError):
        check_target(shifted)


def test_a_share_on_another_action_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_target(lambda row, *args: encode_target(replace(row, targets=(0.75, 0.25, 0.0)), *args))


def test_siblings_are_all_there_and_end_as_the_search_ends_them() -> None:
    found = encode_target(TARGET, DistillConfig("siblings"), FORMAT, characters(), EOS)
    assert [counted(part) for part in found.parts] == ["b\n", "#### 8\n", "c\n"]
    batch = collate([found, EncodedGroup(found.parts[:1])])
    assert batch["item"].tolist() == [0, 0, 0, 1]


def check_preference(encode: Callable[..., EncodedPair]) -> None:
    """What stands behind the shared steps counts, on both sides."""
    found = encode(PairRow("p", "Q", ("a", "b"), ("a", "#### 8")), FORMAT, characters(), EOS)
    assert [counted(part) for part in found.parts] == ["b\n", "#### 8\n$"]
    found = encode(PairRow("p", "Q", ("a", "b", "#### 8"), ("c", "#### 9")), FORMAT, characters(), EOS)
    assert [counted(part) for part in found.parts] == ["a\nb\n#### 8\n$", "c\n#### 9\n$"]


def test_a_preferences_mask() -> None:
    check_preference(encode_preference)


def test_a_preference_that_counts_the_prefix_is_caught() -> None:
    def planted(*args: Any) -> EncodedPair:
        pair = encode_preference(*args)
        sides = (replace(part, mask=[i >= 20 for i in range(len(part.ids))]) for part in pair.parts)
        return EncodedPair(*sides)

    with pytest.raises(AssertionError):
        check_preference(planted)


def test_a_side_that_begins_with_the_other_is_refused() -> None:
    with pytest.raises(DataError, match="begins with the other"):
        encode_preference(PairRow("p", "Q", ("a", "b"), ("a",)), FORMAT, characters(), EOS)


def test_a_weighted_solution() -> None:
    found = encode_weighted(SolutionRow("p", "Q", ("a", "#### 8"), 1.0, 2.5), FORMAT, characters(), EOS)
    assert counted(found) == "a\n#### 8\n$"
    assert found.columns["weight"] == [2.5 if counts else 0.0 for counts in found.mask]


# What is trained is what engines score


@pytest.fixture(scope="module")
def sharp_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights, so that its probabilities differ."""
    model, folder = load_causal_lm(str(tiny_model), torch.float32, torch.device("cpu")), tmp_path_factory.mktemp("sharp") / "m"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
    model.save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


SIBLINGS = TargetRow("p", "7 apples?", ("3 + 4 = 7",), ("7 - 1 = 6", "so there are 7", "#### 7"), (1.0, 0.0, 0.0))


def loss_of(row: TargetRow, model: Path, distill: DistillConfig) -> float:
    lm = load_policy(str(model), TrainConfig())
    batch = collate([encode_target(row, distill, lm.fmt, lm.encode, lm.eos)])
    with torch.no_grad():
        return float(target_loss(token_logits(lm.model, batch), batch, distill))


def test_siblings_probabilities_are_the_searchs_priors(sharp_model: Path) -> None:
    tokens = logprob(sharp_model, SIBLINGS.question, SIBLINGS.steps, *((action,) for action in SIBLINGS.actions))
    steps = [Step(text, sum(those), len(those)) for text, those in zip(SIBLINGS.actions, tokens, strict=True)]
    expected = priors(steps, 0.7)
    assert max(expected) - min(expected) > 0.05
    for i, prior in enumerate(expected):
        row = replace(SIBLINGS, targets=tuple(float(i == j) for j in range(3)))
        # A target of one action leaves -ln of its probability.
        assert exp(-loss_of(row, sharp_model, DistillConfig("siblings", 0.7))) == pytest.approx(prior, abs=1e-5)


def test_a_steps_probability_is_the_engines(sharp_model: Path) -> None:
    row = replace(SIBLINGS, actions=SIBLINGS.actions[:2], targets=(0.25, 0.75))
    first, second = logprob(sharp_model, row.question, row.steps, *((action,) for action in row.actions))
    expected = -0.25 * sum(first) - 0.75 * sum(second)
    assert loss_of(row, sharp_model, DistillConfig()) == pytest.approx(expected, rel=1e-5)


def test_the_reference_is_the_starting_model(sharp_model: Path) -> None:
    row = PairRow("p", "7 apples?", ("3 + 4 = 7", "7 - 1 = 6"), ("3 + 4 = 7", "so there are 7"))
    lm = load_policy(str(sharp_model), TrainConfig())
    [pair] = with_reference([encode_preference(row, lm.fmt, lm.encode, lm.eos)], lm, TrainConfig())
    tokens = logprob(sharp_model, row.question, row.chosen[:1], row.chosen[1:], row.rejected[1:])
    assert [sum(part.columns["reference"]) for part in pair.parts] == pytest.approx([sum(those) for those in tokens], rel=1e-5)
    # Nothing has moved: whatever beta, ln 2.
    batch = collate([pair])
    with torch.no_grad():
        logits = token_logits(lm.model, batch)
    assert float(preference_loss(logits, batch, DPOConfig(beta=0.7))) == pytest.approx(log(2), abs=1e-5)
    # With the chosen side's likelihood beside it: its mean per token.
    found = float(preference_loss(logits, batch, DPOConfig(beta=0.7, nll_weight=2.0)))
    assert found == pytest.approx(log(2) - 2 * sum(tokens[0]) / len(tokens[0]), rel=1e-5)


def margins(model: Path) -> list[float]:
    """For each pair log p of the better side less that of the worse one."""
    found = []
    for row in PAIRS:
        better, worse = logprob(model, row.question, (), row.chosen, row.rejected)
        found.append(sum(better) - sum(worse))
    return found


def check_preferred(start: Path, out: Path) -> None:
    train("dpo", start, out, replace(FAST, epochs=20))
    assert all(after > before + 1 for before, after in zip(margins(start), margins(out), strict=True))


def test_dpo_moves_every_pair_the_right_way(tiny_model: Path, tmp_path: Path) -> None:
    check_preferred(tiny_model, tmp_path / "out")


def test_policy_and_reference_swapped_are_caught(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainers.policy.dpo.dpo_loss
    monkeypatch.setattr(trainers.policy.dpo, "dpo_loss", lambda policy, reference, beta: real(reference, policy, beta))
    with pytest.raises(AssertionError):
        check_preferred(tiny_model, tmp_path / "out")


def shares(model: Path, row: TargetRow, per_token: bool) -> list[float]:
    """The model's probability of each action among the row's actions."""
    tokens = logprob(model, row.question, row.steps, *((action,) for action in row.actions))
    return priors([Step(str(i), sum(those), len(those) if per_token else 1) for i, those in enumerate(tokens)], 1.0)


def test_distillation_over_siblings_ends_at_pi(tiny_model: Path, tmp_path: Path) -> None:
    train("siblings", tiny_model, tmp_path / "out")
    for row in TARGETS:
        assert shares(tmp_path / "out", row, per_token=True) == pytest.approx(row.targets, abs=0.1)


def test_distillation_over_all_texts_ends_at_pi(tiny_model: Path, tmp_path: Path) -> None:
    config = replace(FAST, epochs=150)
    metrics = train_distill(TrainCall(TARGETS[:1], str(tiny_model), tmp_path / "out", config, DistillConfig()))
    assert metrics["loss"] < H + 0.1  # untrained 6.3 a token
    assert shares(tmp_path / "out", TARGETS[0], per_token=False) == pytest.approx((0.75, 0.25), abs=0.1)


# Rows and settings


def test_a_prefix_with_one_action_too_long_is_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    long = replace(TARGETS[0], actions=(TARGETS[0].actions[0], "1 2 3 4 5 6 7 8 9 " * 8))
    config = TrainConfig(max_length=60)
    metrics = train_distill(TrainCall([*TARGETS[1:], long], str(tiny_model), tmp_path / "distill", config))
    assert (metrics["rows"], metrics["left_out"]) == (7, 1)
    pair = replace(PAIRS[0], rejected=(long.actions[1],))
    metrics = train_dpo(TrainCall([*PAIRS[1:], pair], str(tiny_model), tmp_path / "dpo", config))
    assert (metrics["rows"], metrics["left_out"]) == (7, 1)


def test_rows_longer_than_the_models_context_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    long = SolutionRow("p", "7?", ("1 " * 300, "#### 7"))  # the tiny model's context is 256
    metrics = train_sft(
        TrainCall([*(replace(row, weight=1.0) for row in WEIGHTED), long], str(tiny_model), tmp_path / "out", TrainConfig())
    )
    assert (metrics["rows"], metrics["left_out"]) == (8, 1)


def test_plain_imitation_refuses_weights(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 2\.0; expected none: train weighted"):
        train_sft(TrainCall(WEIGHTED, str(tiny_model), tmp_path / "out", TrainConfig()))


@pytest.mark.parametrize(("kind", "rows"), [("weighted", WEIGHTED), ("distill", TARGETS), ("dpo", PAIRS)])
def test_the_command_trains_from_a_file(
    kind: str, rows: Sequence[Any], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row_to_dict(row)) + "\n" for row in rows))
    command = ["train", kind, str(file), "--start", str(tiny_model), "--json", "--train.epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8
    assert load_causal_lm(str(tmp_path / "out"), torch.float32, torch.device("cpu"))
    other = "dpo" if kind != "dpo" else "distill"
    assert main(["train", other, str(file), "--start", str(tiny_model), "--out", str(tmp_path / "other")]) == 2
    assert f"expected rows for {other}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (DistillConfig, {"over": "words"}),
        (DistillConfig, {"prior_temperature": 0.0}),
        (DPOConfig, {"beta": 0.0}),
        (DPOConfig, {"nll_weight": -1.0}),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        cls(**settings)
