"""Critics and verifiers of another release are refused by name, before their weights are used."""

import json
from pathlib import Path
from typing import Any

import pytest

from critics.assemble.loading import VERIFIER_FILE, load_critic
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from critics.model.model import CriticModel
from llm_mcts.errors import ModelError
from trainers.critic.generative import train_genrm
from trainers.data.rows import VerdictRow
from trainers.fit.fit import TrainCall, TrainConfig

ROWS = [VerdictRow("p", f"What is {i} + 1?", (f"#### {i + 1}",), True) for i in range(4)]


def rewritten(file: Path, version: int | None) -> None:
    """The file with another version, or with none."""
    about: dict[str, Any] = json.loads(file.read_text())
    assert about.pop("version") == 1
    file.write_text(json.dumps(about if version is None else {**about, "version": version}))


@pytest.mark.parametrize("version", [None, 0, 2])
def test_a_critic_of_another_release(version: int | None, tiny_model: Path, tmp_path: Path) -> None:
    CriticModel.create("orm", str(tiny_model), HeadConfig(width=8), None, LoraSpec(), 0, False).save_pretrained(
        tmp_path / "orm"
    )
    assert CriticModel.from_pretrained(tmp_path / "orm").kind == "orm"
    rewritten(tmp_path / "orm" / "critic.json", version)
    with pytest.raises(ModelError, match=f"format version {version}; expected 1: train the critic again"):
        CriticModel.from_pretrained(tmp_path / "orm")


@pytest.mark.parametrize("version", [None, 2])
def test_a_verifier_of_another_release(version: int | None, tiny_model: Path, tmp_path: Path) -> None:
    train_genrm(TrainCall(ROWS, str(tiny_model), tmp_path / "genrm", TrainConfig(epochs=1, batch_size=4)))
    assert load_critic(tmp_path / "genrm").kind == "genrm"
    rewritten(tmp_path / "genrm" / VERIFIER_FILE, version)
    with pytest.raises(ModelError, match=f"format version {version}; expected 1: train the verifier again"):
        load_critic(tmp_path / "genrm")
