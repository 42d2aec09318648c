"""What a round's trainings are given, and the models that come of them; no model is trained here."""

from pathlib import Path
from typing import Any

import pytest

from llm_mcts.config import load_config
from llm_mcts.errors import DataError
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.tasks import get_task
from trainers.critic.registry import CRITIC_TRAINERS, CriticTrainer
from trainers.data.rows import SolutionRow, row_to_dict
from trainers.fit.fit import TrainCall
from trainers.loop.config import SelfImproveConfig
from trainers.loop.stages import Round
from trainers.loop.training import Training

START = SolverConfig(critics=CriticsConfig(value="old/value"))


def training(tmp_path: Path, **settings: Any) -> Training:
    return Training(load_config(SelfImproveConfig, settings), RunDirectory(tmp_path), get_task("arith"))


def current_round(made: Training, number: int) -> Round:
    return Round(number, made.directory.round(number), START)


def test_replayed_rows_are_the_latest_rounds_and_the_critic_goes_on_from_the_current_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[TrainCall] = []

    def train(call: TrainCall) -> dict[str, float]:
        calls.append(call)
        return {"loss": 0.5}

    for kind in ("value", "orm"):
        monkeypatch.setitem(CRITIC_TRAINERS, kind, CriticTrainer(train, lambda _: (SolutionRow,), {}))
    made = training(tmp_path, replay={"rounds": 2, "share": 0.5})
    for number in (1, 2, 3):
        rows = [row_to_dict(SolutionRow(f"p{number}", "q", (f"step {i}", "#### 1"))) for i in range(2)]
        for kind in ("value", "orm"):
            made.directory.round(number).rows(kind).write(rows)
    # Half of the rows may be old: 2 beside the 2 of round 3, and they are round 2's, although round 1 has some too.
    assert made.critic("value", current_round(made, 3)) == {"rows": 4, "replayed": 2, "loss": 0.5}
    assert [row.problem for row in calls[0].rows] == ["p3", "p3", "p2", "p2"]
    assert calls[0].start == "old/value"
    assert calls[0].out == tmp_path / "round_003" / "checkpoints" / "value"
    assert made.critic("orm", current_round(made, 1)) == {"rows": 2, "replayed": 0, "loss": 0.5}
    assert calls[1].start == "embedded"  # there is no ORM yet: from the policy


def test_a_critic_without_rows_is_not_trained(tmp_path: Path) -> None:
    made = training(tmp_path)
    made.directory.round(1).rows("prm").write([])
    assert made.critic("prm", current_round(made, 1)) == {"rows": 0, "replayed": 0}


def test_a_round_ends_with_what_it_trained_and_else_with_what_it_began_with(tmp_path: Path) -> None:
    made = training(tmp_path, critics=["value", "orm"])
    current = current_round(made, 1)
    assert made.models(current) == START
    for name in ("orm", "policy"):
        current.files.checkpoint(name).mkdir(parents=True)
    models = made.models(current)
    folder = tmp_path / "round_001" / "checkpoints"
    assert models.engine.model == str(folder / "policy")
    assert (models.critics.value, models.critics.prm, models.critics.orm) == ("old/value", None, str(folder / "orm"))
    current.files.note("value", {"loss": 0.1})  # trained, and its folder is gone
    with pytest.raises(DataError, match="value is gone, and stage value trained it"):
        made.models(current)


def test_joint_training_makes_the_value_model_too(tmp_path: Path) -> None:
    made = training(tmp_path, policy_loss={"method": "joint"}, critics=["orm"])
    current = current_round(made, 1)
    for name in ("policy", "value"):
        current.files.checkpoint(name).mkdir(parents=True)
    assert made.models(current).critics.value == str(tmp_path / "round_001" / "checkpoints" / "value")
