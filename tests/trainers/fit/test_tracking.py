"""What is seen of a training, and what ends one: a loss that is no number, memory that runs out."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import trainers.fit.tracking
import trainers.policy.imitation
from llm_mcts.errors import ConfigError, ModelError
from trainers.data.rows import SolutionRow
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.policy.imitation import train_sft

ROWS = [SolutionRow(f"p{i}", f"{i} apples?", (f"{i} + 1 = {i + 1}", f"#### {i + 1}"), 1.0) for i in range(6)]
CONFIG = TrainConfig(epochs=2, batch_size=2, warmup=0.0, log_every=2)  # 6 steps


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_event_file_holds_the_loss_and_the_learning_rate(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    real = trainers.policy.imitation.next_token_loss

    def spy(logits: Tensor, labels: Tensor) -> Tensor:
        losses.append(float((loss := real(logits, labels)).detach()))
        return loss

    monkeypatch.setattr(trainers.policy.imitation, "next_token_loss", spy)
    for _ in range(2):  # the second training's events replace the first one's
        losses.clear()
        train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", CONFIG, logs=tmp_path / "logs"))
    tracked = scalars(tmp_path / "logs", "train/loss")
    assert [step for step, _ in tracked] == [2, 4, 6]
    # Each is the mean of two steps, which had one forward each.
    expected = [(losses[i] + losses[i + 1]) / 2 for i in (0, 2, 4)]
    assert [value for _, value in tracked] == pytest.approx(expected, rel=1e-6)
    # Linear from 1e-4 to 0 in 6 steps: step i + 1 is taken at 1e-4 * (1 - i / 6), here i = 1, 3, 5.
    rates = [1e-4 * (1 - i / 6) for i in (1, 3, 5)]
    assert [value for _, value in scalars(tmp_path / "logs", "train/learning_rate")] == pytest.approx(rates, rel=1e-6)


def test_nothing_is_written_where_nothing_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", replace(CONFIG, tracking="none"), logs=tmp_path / "logs"))
    train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", CONFIG))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_package_is_named_with_the_remedy(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.fit.tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", replace(CONFIG, tracking="wandb"), logs=tmp_path / "logs"))
    assert list(tmp_path.iterdir()) == []


def test_settings_of_tracking_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"train\.tracking is 'mlflow'; expected one of none, tensorboard, wandb"):
        TrainConfig(tracking="mlflow")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="log_every is 0"):
        TrainConfig(log_every=0)


def spoilt(call: int, how: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The next-token loss, spoilt in forward number `call`."""
    calls = 0
    real = trainers.policy.imitation.next_token_loss

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = real(logits, labels)
        return how(value) if calls == call else value

    return loss


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training(
    factor: float, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers.policy.imitation, "next_token_loss", spoilt(3, lambda loss: loss * factor))
    with pytest.raises(ModelError, match=rf"the loss is {factor} in step 3 of 6; expected a number: lower learning_rate"):
        train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_no_number_leaves_no_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the last step: sqrt(0) is a number, its derivative is not.
    monkeypatch.setattr(trainers.policy.imitation, "next_token_loss", spoilt(6, lambda loss: loss + (loss - loss).sqrt()))
    with pytest.raises(ModelError, match="is NaN or infinite after 6 steps"):
        train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_told_with_the_remedy(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(loss: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainers.policy.imitation, "next_token_loss", spoilt(2, too_large))
    with pytest.raises(ModelError, match=r"memory ran out in step 2 with batch_size 2; .*lower batch_size"):
        train_sft(TrainCall(ROWS, str(tiny_model), tmp_path / "out", CONFIG))
    assert list(tmp_path.iterdir()) == []
