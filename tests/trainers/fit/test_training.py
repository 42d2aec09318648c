"""Each trainer learns what its rows say, moves what it should, and counts the right tokens.

Masks are checked by hand with a tokenizer that makes a token of each character. The checks of masks, labels and padding
are functions that are also applied to code with a planted error, which they must reject.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

import trainers.critic.train
import trainers.policy.imitation
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from critics.model.model import CriticModel
from critics.scoring.trained import ModelCritic
from llm_mcts.errors import ConfigError, DataError, ModelError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.types import State, Step
from trainers.critic.train import train_critic
from trainers.data.encoding import (
    IGNORE,
    Encoded,
    collate,
    encode_outcome_at_end,
    encode_outcome_everywhere,
    encode_solution,
    encode_steps,
    token_labels,
)
from trainers.data.rows import SolutionRow, StepRow
from trainers.fit.fit import TrainCall, TrainConfig, save_atomically
from trainers.policy.imitation import train_sft

Row = SolutionRow | StepRow
LORA = LoraSpec(rank=4, alpha=16)
FAST = TrainConfig(epochs=40, learning_rate=1e-2, batch_size=8)

SOLUTIONS = [
    SolutionRow(f"p{i}", f"{i} apples and {i + 1} more?", (f"{i} + {i + 1} = {2 * i + 1}", f"#### {2 * i + 1}"), float(i % 2))
    for i in range(8)
]
RIGHT = [replace(row, label=1.0) for row in SOLUTIONS]
STEPS = [StepRow(r.problem, r.question, r.steps, (1.0 - r.label, r.label)) for r in SOLUTIONS]
ROWS: dict[str, Sequence[Row]] = {"sft": RIGHT, "value": SOLUTIONS, "prm": STEPS, "orm": SOLUTIONS}

# Untrained: sft about ln 566 = 6.3, value about 0.25, prm and orm about ln 2 = 0.69.
LEARNT = {"sft": 0.5, "value": 0.05, "prm": 0.1, "orm": 0.1}


def train(kind: str, start: Path, out: Path, config: TrainConfig = FAST, rows: Sequence[Row] | None = None) -> dict[str, float]:
    rows = ROWS[kind] if rows is None else rows
    if kind == "sft":
        return train_sft(TrainCall(rows, str(start), out, config))  # type: ignore[arg-type]
    return train_critic(kind, TrainCall(rows, str(start), out, config, head=HeadConfig(width=16)))  # type: ignore[arg-type]


@dataclass
class Fitted:
    """A model's parameters around its training, as seen by `fit`."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    trainable: set[str]
    rows: list[Encoded]

    def moved(self) -> set[str]:
        return {name for name, tensor in self.after.items() if not torch.equal(tensor, self.before[name])}


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    """What went through `fit`."""
    seen: list[Fitted] = []
    for module in (trainers.critic.train, trainers.fit.language_model):
        real = module.fit

        def spy(model: Any, rows: Any, *args: Any, real: Any = real) -> dict[str, float]:
            def copy() -> dict[str, Tensor]:
                return {name: p.detach().clone() for name, p in model.named_parameters()}

            before = copy()
            metrics: dict[str, float] = real(model, rows, *args)
            seen.append(Fitted(before, copy(), {n for n, p in model.named_parameters() if p.requires_grad}, list(rows)))
            return metrics

        monkeypatch.setattr(module, "fit", spy)
    return seen


# Learning


@pytest.mark.parametrize("kind", ROWS)
def test_it_overfits_8_rows_and_every_parameter_moves(
    kind: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    epochs = 120 if kind == "sft" else 40
    metrics = train(kind, tiny_model, tmp_path / "out", replace(FAST, epochs=epochs))
    assert metrics["loss"] < LEARNT[kind]
    assert (metrics["rows"], metrics["left_out"], metrics["steps"]) == (8, 0, epochs)
    assert fitted[0].moved() == set(fitted[0].before)
    if kind == "sft":
        saved = load_causal_lm(str(tmp_path / "out"), torch.float32, torch.device("cpu"))
        expected = {name: fitted[0].after[name] for name, _ in saved.named_parameters()}
    else:
        saved = CriticModel.from_pretrained(tmp_path / "out", kind)  # type: ignore[arg-type]
        expected = fitted[0].after
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("kind", ROWS)
def test_with_lora_adapter_and_head_move_and_none_of_the_base(
    kind: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    metrics = train(kind, tiny_model, tmp_path / "out", replace(FAST, epochs=6, lora=LORA))
    [seen] = fitted
    adapter = {name for name in seen.before if "lora_" in name}
    head = {name for name in seen.before if name.startswith("head.")}
    assert len(adapter) == 2 * 7 * 2  # two layers, seven linear maps, A and B
    assert len(head) == (0 if kind == "sft" else 4)
    assert seen.moved() == seen.trainable == adapter | head
    assert metrics["steps"] == 6


def test_a_policy_trained_with_lora_is_saved_whole(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    train("sft", tiny_model, tmp_path / "out", replace(FAST, epochs=6, lora=LORA))
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "out"))
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert set(merged) == set(base)
    linear = {name for name in base if "_proj" in name}
    assert len(linear) == 14
    assert {name for name in base if not torch.equal(base[name], merged[name])} == linear
    # W' = W + alpha / rank * B A, here 16 / 4 = 4
    stem = "base_model.model.model.layers.1.mlp.up_proj"
    a, b = (fitted[0].after[f"{stem}.lora_{half}.default.weight"] for half in "AB")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(merged[name], base[name] + 4 * b @ a, atol=1e-6)


def test_training_goes_on_from_a_critic_of_the_same_kind_alone(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    short = replace(FAST, epochs=2, lora=LORA)
    train("orm", tiny_model, tmp_path / "one", short)
    train("orm", tmp_path / "one", tmp_path / "two", short)
    first, second = fitted
    for name in first.trainable:
        assert torch.equal(second.before[name], first.after[name]), name
    assert second.moved() == first.trainable
    with pytest.raises(ModelError, match="kind 'orm'; expected 'prm'"):
        train("prm", tmp_path / "one", tmp_path / "three", short)
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("kind", ["sft", "orm"])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_seed_decides_everything(kind: str, rank: int, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, learning_rate=1e-2, batch_size=3, lora=LoraSpec(rank=rank))
    losses = []
    for name in ("one", "two"):
        torch.manual_seed(len(losses))  # what the process drew before must not matter
        losses.append(train(kind, tiny_model, tmp_path / name, config)["loss"])
    assert losses[0] == losses[1]
    weights = "model.safetensors" if (kind, rank) != ("orm", 4) else "adapter_model.safetensors"
    one, two = (load_file(tmp_path / name / weights) for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("kind", ["sft", "orm"])
def test_8_times_1_row_has_the_gradient_of_1_times_8(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one label a row, or as many tokens in each, the mean of means is the mean."""
    norms: list[float] = []

    def spy(_: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)
    rows = RIGHT[:1] * 8
    for batch, accumulation in ((8, 1), (1, 8)):
        config = TrainConfig(batch_size=batch, accumulation=accumulation)
        metrics = train(kind, tiny_model, tmp_path / f"{batch}", config, rows)
        assert metrics["steps"] == 1
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)  # float32 sums in another order


# Which rows


def test_rows_too_long_are_left_out_and_counted(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    encode = Encoder(load_tokenizer(str(tiny_model)))
    long = SolutionRow("p", "7?", ("1 2 3 4 5 6 7 8 9", "#### 7"))
    rows = [*RIGHT[:3], long]
    lengths = [
        len(encode((f"Question: {row.question}\nAnswer:\n", *(f"{line}\n" for line in row.steps)))) for row in [*rows[:3], long]
    ]
    limit = sorted(lengths)[2]
    expected = sum(length <= limit for length in lengths)
    config = TrainConfig(max_length=limit, batch_size=8)
    found = train("orm", tiny_model, tmp_path / "orm", config, rows)
    assert (found["rows"], found["left_out"]) == (expected, 4 - expected)
    # The policy's rows have one token more, the end of text.
    found = train("sft", tiny_model, tmp_path / "sft", config, rows)
    expected = sum(length + 1 <= limit for length in lengths)
    assert (found["rows"], found["left_out"]) == (expected, 4 - expected)


def test_rows_without_a_label_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    rows = [STEPS[0], replace(STEPS[1], labels=(None, None)), replace(STEPS[2], labels=(None, 1.0))]
    found = train("prm", tiny_model, tmp_path / "out", TrainConfig(), rows)
    assert (found["rows"], found["left_out"]) == (2, 1)


def test_nothing_to_train_on_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for rows, config in (([], TrainConfig()), (SOLUTIONS, TrainConfig(max_length=5))):
        with pytest.raises(DataError, match=f"none of {len(rows)} rows"):
            train("orm", tiny_model, tmp_path / "out", config, rows)
    assert not (tmp_path / "out").exists()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    save_atomically(lambda folder: (folder / "whole").touch(), tmp_path / "out")
    with pytest.raises(OSError, match="disk full"):
        save_atomically(broken, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
    save_atomically(lambda folder: (folder / "newer").touch(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["newer"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_single_step_learns(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    """A warm-up of one step would have no rate at all in it."""
    for name, epochs in (("one", 1.0), ("many", 8.0)):
        config = replace(FAST, epochs=epochs, batch_size=len(RIGHT), warmup=0.1)
        assert train("sft", tiny_model, tmp_path / name, config)["steps"] == epochs
        assert fitted[-1].moved()
        assert AutoConfig.from_pretrained(tmp_path / name).use_cache is True  # as the model that it started from


def test_configurations_out_of_range() -> None:
    for name in ("epochs", "learning_rate", "weight_decay"):
        for value in (nan, inf, -1.0):
            with pytest.raises(ConfigError, match=f"{name} is {value}"):
                TrainConfig(**{name: value})
    for name in ("epochs", "learning_rate", "batch_size", "accumulation", "max_length"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            TrainConfig(**{name: 0})
    for warmup in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="warmup"):
            TrainConfig(warmup=warmup)


# Masks by hand


class Characters:
    """A tokenizer that makes a token of each character."""

    bos_token_id = None

    @dataclass
    class Output:
        input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> "Characters.Output":
        return self.Output([ord(c) for c in text])


FORMAT = PromptFormat(PromptConfig())
EOS = 3
# "Question: Q\nAnswer:\n" is 10 + 1 + 1 + 7 + 1 = 20 characters, places 0 to 19; "a\n" 20 and 21; "bc\n" 22 to 24.
SMALL = SolutionRow("p", "Q", ("a", "bc"), 0.0)


def characters() -> Encoder:
    return Encoder(Characters())


def places(encoded: Encoded) -> list[int]:
    return [i for i, counts in enumerate(encoded.mask) if counts]


def test_the_policys_mask() -> None:
    encoded = encode_solution(SMALL, FORMAT, characters(), EOS)
    assert encoded.ids == [*map(ord, "Question: Q\nAnswer:\na\nbc\n"), EOS]
    assert places(encoded) == [20, 21, 22, 23, 24, 25]


def test_the_value_models_mask() -> None:
    encoded = encode_outcome_everywhere(SMALL, FORMAT, characters())
    assert encoded.ids == [*map(ord, "Question: Q\nAnswer:\na\nbc\n")]
    assert places(encoded) == [19, 20, 21, 22, 23, 24]
    assert encoded.columns == {"target": [0.0] * 25}


def test_the_orms_mask() -> None:
    encoded = encode_outcome_at_end(SMALL, FORMAT, characters())
    assert places(encoded) == [24]
    assert encoded.columns["target"][24] == 0.0
    assert encode_outcome_at_end(replace(SMALL, label=0.75), FORMAT, characters()).columns["target"][24] == 0.75


def test_the_prms_mask() -> None:
    encoded = encode_steps(StepRow("p", "Q", ("a", "bc"), (0.25, 1.0)), FORMAT, characters())
    assert places(encoded) == [21, 24]
    assert (encoded.columns["target"][21], encoded.columns["target"][24]) == (0.25, 1.0)
    partly = encode_steps(StepRow("p", "Q", ("a", "bc"), (None, 0.5)), FORMAT, characters())
    assert places(partly) == [24]


def test_the_batch_by_hand() -> None:
    columns: list[dict[str, list[Any]]] = [
        {"target": [0.0, 0.5, 1.0], "written": [False, True, True], "segment": [0, 1, 2]},
        {"target": [1.0], "written": [True], "segment": [3]},
    ]
    batch = collate([Encoded([5, 6, 7], [False, True, True], columns[0]), Encoded([8], [True], columns[1])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["target"].tolist() == [[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]]
    assert batch["written"].tolist() == [[False, True, True], [True, False, False]]
    assert batch["segment"].tolist() == [[0, 1, 2], [3, 0, 0]]
    assert [batch[name].dtype for name in ("target", "written", "segment")] == [torch.float32, torch.bool, torch.int64]
    assert batch["mask"].tolist() == [[False, True, True], [True, False, False]]
    assert token_labels(batch).tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]


# Checks, applied to the code and to planted errors

EncodeRow = Callable[..., Encoded]
Collate = Callable[[Sequence[Encoded]], dict[str, Tensor]]


def shifted(encode: EncodeRow, by: int) -> EncodeRow:
    """The encoding with its mask and labels moved along."""

    def planted(*args: Any) -> Encoded:
        row = encode(*args)
        n = len(row.ids)
        moved = {name: [values[(i - by) % n] for i in range(n)] for name, values in row.columns.items()}
        return Encoded(row.ids, [row.mask[(i - by) % n] for i in range(n)], moved)

    return planted


def check_policy_tokens(encode: EncodeRow) -> None:
    """What counts spells the solution and the end of text, nothing more and nothing less."""
    encoded = encode(SMALL, FORMAT, characters(), EOS)
    assert [token for token, counts in zip(encoded.ids, encoded.mask, strict=True) if counts] == [*map(ord, "a\nbc\n"), EOS]


def check_critic_positions(encode: EncodeRow, row: Row, model: CriticModel, first: int) -> None:
    """Labelled are the positions that the scorer reads, the first of them after `first` segments; each bears its label."""
    encoded = encode(row, model.prompt_format, Encoder(model.tokenizer))
    batch = collate([encoded])
    with torch.no_grad():
        trained = torch.sigmoid(model(batch["input_ids"], batch["attention_mask"]))[batch["mask"]].tolist()

    async def read() -> list[list[float]]:
        return await ModelCritic(model).step_scores([State(row.question, tuple(map(Step, row.steps)))])

    [scores] = asyncio.run(read())
    assert trained[0] == pytest.approx(scores[first], abs=1e-5)
    assert trained[-1] == pytest.approx(scores[-1], abs=1e-5)
    if isinstance(row, StepRow):
        assert trained == pytest.approx(scores[1:], abs=1e-5)
        assert batch["target"][batch["mask"]].tolist() == list(row.labels)
    else:
        assert set(batch["target"][batch["mask"]].tolist()) == {row.label}


def check_outcomes(encode: Callable[[Sequence[Row]], list[Encoded]]) -> None:
    """Every labelled token of a row bears its own row's outcome."""
    for row, encoded in zip(SOLUTIONS, encode(SOLUTIONS), strict=True):
        assert {label for label, counts in zip(encoded.columns["target"], encoded.mask, strict=True) if counts} == {row.label}


def check_padding(collate_rows: Collate) -> None:
    """A row's tokens, labels and mask stand at the same places in a batch with a longer row as alone."""
    short, long = (encode_outcome_everywhere(row, FORMAT, characters()) for row in (SMALL, replace(SMALL, question="QQQQ")))
    batch = collate_rows([short, long])
    alone = collate_rows([short])
    n = len(short.ids)
    for name, tensor in alone.items():
        assert torch.equal(batch[name][:1, :n], tensor), name
    assert batch["attention_mask"][0].tolist() == [1] * n + [0] * 3
    assert not batch["mask"][0, n:].any()


def test_the_policys_tokens() -> None:
    check_policy_tokens(encode_solution)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shifted_policy_mask_is_caught(by: int) -> None:
    with pytest.raises(AssertionError):
        check_policy_tokens(shifted(encode_solution, by))


@pytest.fixture(scope="module")
def critic(tiny_model: Path) -> CriticModel:
    model = CriticModel.create("prm", str(tiny_model), HeadConfig(width=16))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
    return model.eval()


CRITIC_CASES: list[tuple[EncodeRow, Row, int]] = [
    (encode_outcome_everywhere, SOLUTIONS[3], 0),  # from the question's last token on
    (encode_outcome_at_end, SOLUTIONS[3], 2),  # after both steps
    (encode_steps, StepRow("p", "7?", ("5 apples", "6", "#### 7"), (1.0, 0.5, 0.0)), 1),  # after the first step
]


@pytest.mark.parametrize(("encode", "row", "first"), CRITIC_CASES)
def test_critics_are_trained_where_they_are_read(encode: EncodeRow, row: Row, first: int, critic: CriticModel) -> None:
    check_critic_positions(encode, row, critic, first)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize(("encode", "row", "first"), CRITIC_CASES)
def test_a_shifted_critic_mask_is_caught(encode: EncodeRow, row: Row, first: int, critic: CriticModel, by: int) -> None:
    with pytest.raises(AssertionError):
        check_critic_positions(shifted(encode, by), row, critic, first)


OUTCOME_ENCODINGS = [encode_outcome_everywhere, encode_outcome_at_end]


@pytest.mark.parametrize("encode", OUTCOME_ENCODINGS)
def test_labels_are_the_rows_own(encode: EncodeRow) -> None:
    check_outcomes(lambda rows: [encode(row, FORMAT, characters()) for row in rows])


@pytest.mark.parametrize("encode", OUTCOME_ENCODINGS)
def test_a_label_of_another_trajectory_is_caught(encode: EncodeRow) -> None:
    def planted(rows: Sequence[Any]) -> list[Encoded]:
        own = [encode(row, FORMAT, characters()) for row in rows]
        return [
            row.with_columns(target=[other.columns["target"][0]] * len(row.ids))
            for row, other in zip(own, own[1:] + own[:1], strict=True)
            for row, other in zip(own, own[1:] + own[:1], strict=True)
        ]

    with pytest.raises(AssertionError):
        check_outcomes(planted)


def padded_left(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    right, width = collate(rows), max(len(row.ids) for row in rows)
    return {
        name: torch.stack([one.roll(width - len(row.ids)) for one, row in zip(tensor, rows, strict=True)])
        for name, tensor in right.items()
    }


def test_padding_stands_on_the_right() -> None:
    check_padding(collate)


def test_padding_on_the_left_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_padding(padded_left)


def test_padding_changes_no_logit(critic: CriticModel) -> None:
    encoded = [encode_outcome_everywhere(row, FORMAT, Encoder(critic.tokenizer)) for row in (SOLUTIONS[0], SOLUTIONS[7])]
    encoded[0] = encoded[0].to_length(len(encoded[0].ids) - 4)
    together = collate(encoded)
    with torch.no_grad():
        logits = critic(together["input_ids"], together["attention_mask"])
        for i, row in enumerate(encoded):
            assert torch.allclose(logits[i, : len(row.ids)], critic(torch.tensor([row.ids]))[0], atol=1e-4)


@pytest.mark.parametrize(("first", "then"), [(0, 2), (2, 0)])
def test_a_critic_is_not_trained_on_under_another_lora_setting(first: int, then: int, tiny_model: Path, tmp_path: Path) -> None:
    rows = [SolutionRow("p", "How many?", ("1 + 1 = 2", "#### 2"), 1.0)]
    start = tmp_path / "start"
    train_critic("orm", TrainCall(rows, str(tiny_model), start, TrainConfig(lora=LoraSpec(rank=first))))
    with pytest.raises(ConfigError, match=rf"lora\.rank is {then}"):
        train_critic("orm", TrainCall(rows, str(start), tmp_path / "next", TrainConfig(lora=LoraSpec(rank=then))))
    assert not (tmp_path / "next").exists()
