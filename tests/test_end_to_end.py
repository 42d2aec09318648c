"""The whole loop through the real command line; and every configuration file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from critics.diagnosis.command import DiagnoseConfig
from llm_mcts.config import load_config
from llm_mcts.evaluate import EvaluateConfig
from llm_mcts.serving.server import ServeConfig
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver
from trainers.labels.command import LabelConfig
from trainers.loop.self_improve import SelfImproveConfig
from trainers.loop.train_command import job_config
from trainers.questions.imagine.command import ImagineTaskConfig

CONFIGS = Path(__file__).parent.parent / "configs"
SETTINGS = {
    "task": {"name": "arith", "level": "easy"},
    "num_rounds": 1,
    "train_questions": 12,
    "eval_questions": 6,
    "concurrency": 4,
    "solver": {
        "policy": {"temperature": 1.0, "max_step_tokens": 48, "max_solution_tokens": 120},
        "search": {"name": "mcts", "num_simulations": 6, "expansion_width": 3},
    },
    "methods": {"greedy": "greedy", "mcts": {"name": "mcts", "num_simulations": 4}},
    "head": {"width": 16},
    "value": {"learning_rate": 1e-3},
    "prm": {"learning_rate": 1e-3},
    "orm": {"learning_rate": 1e-3},
    "policy": {"learning_rate": 1e-4},
    # With so few questions chance decides the comparison: the gate is told to let everything pass or fall.
    "gate": {"tolerance": 1.0},
}


def start(out: Path, config: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the self-improve command."""
    command = [sys.executable, "-m", "llm_mcts.cli", "self-improve", "--config", str(config), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def finish(process: subprocess.Popen[bytes]) -> str:
    """Wait for a command that must succeed; return its output."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(json.dumps(SETTINGS))
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    out = config.parent / "undisturbed"
    finish(start(out, config))
    return out


def test_a_round_leaves_everything_it_promises(undisturbed: Path) -> None:
    first = undisturbed / "round_001"
    for name in ("policy", "value", "prm", "orm", "trajectories"):
        assert (first / "rows" / f"{name}.jsonl").read_text()
    for name in ("value", "prm", "orm"):
        assert (first / "checkpoints" / name / "head.safetensors").exists()
    assert (first / "checkpoints" / "policy" / "model.safetensors").exists()
    stages = [json.loads(line)["stage"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["questions", "search", "rows", "value", "prm", "orm", "policy", "evaluate", "gate"]
    report = json.loads((undisturbed / "report.json").read_text())
    assert [score["method"] for score in report["scores"]] == [
        "round 0 greedy",
        "round 0 mcts",
        "round 1 greedy",
        "round 1 mcts",
    ]
    assert not list(undisturbed.rglob("*.part"))
    assert not list(undisturbed.rglob("*.tmp"))


def test_trained_models_answer_from_python(undisturbed: Path) -> None:
    checkpoints = undisturbed / "round_001" / "checkpoints"
    solver = Solver.from_pretrained(
        policy=str(checkpoints / "policy"),
        value=str(checkpoints / "value"),
        prm=str(checkpoints / "prm"),
        orm=str(checkpoints / "orm"),
        search={"name": "mcts", "num_simulations": 6},
    )
    result = solver.solve("Ben has 5 apples. Then Ben buys 4 more. Ben gives 2 to Mia. How many apples does Ben have now?")
    assert result.tree is not None
    assert result.usage.critic_calls > 0
    assert all(0.0 <= node.q_value <= 1.0 for node in result.tree.nodes())


CLASSES = {
    "search": SolverConfig,
    "evaluate": EvaluateConfig,
    "diagnose": DiagnoseConfig,
    "label": LabelConfig,
    "imagine": ImagineTaskConfig,
    "self_improve": SelfImproveConfig,
    "serve": ServeConfig,
    "configs": SelfImproveConfig,
}
"""Folder under configs (or configs itself) -> what its files configure."""


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_configuration_file_builds(file: Path) -> None:
    if file.parent.name == "accelerate":  # not ours to read
        settings = load_config_from_file(str(file)).__dict__
        assert settings["num_processes"] >= 2
        assert settings["distributed_type"] in (DistributedType.MULTI_GPU, DistributedType.FSDP)
        assert (settings["fsdp_config"].get("fsdp_version") == 2) == (file.stem == "fsdp")
    else:
        trained = re.search(r"llm-mcts train (\w+)", file.read_text()) if file.parent.name == "train" else None
        load_config(job_config(trained[1]) if trained else CLASSES[file.parent.name], file)
    assert file.read_text().startswith("# ")
