"""The whole loop through the real command line, undisturbed and killed; and every configuration file."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from critics.diagnose import DiagnoseConfig
from llm_mcts.config import load_config
from llm_mcts.evaluate import EvaluateConfig
from llm_mcts.server import ServeConfig
from llm_mcts.solver import Solver, SolverConfig
from trainers.label import LabelConfig
from trainers.self_improve import SelfImproveConfig
from trainers.train import TrainJob

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
    "sft": {"learning_rate": 1e-4},
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


def fingerprints(run: Path) -> dict[str, str]:
    """Hashes of everything in a run that must not depend on interruptions: not its timings."""
    wanted = [*run.rglob("rows/*.jsonl"), *run.rglob("*.safetensors")]
    found = {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in wanted}
    for file in run.rglob("eval/*.jsonl"):
        answers = [(r["id"], r["answer"], r["correct"]) for r in map(json.loads, file.read_text().splitlines())]
        found[str(file.relative_to(run))] = json.dumps(answers)
    return found


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
    for name in ("sft", "value", "prm", "orm"):
        assert (first / "rows" / f"{name}.jsonl").read_text()
    for name in ("value", "prm", "orm"):
        assert (first / "checkpoints" / name / "head.safetensors").exists()
    assert (first / "checkpoints" / "policy" / "model.safetensors").exists()
    stages = [json.loads(line)["stage"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["rows", "value", "prm", "orm", "sft", "gate"]
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


KILLS: dict[str, Callable[[Path], bool]] = {
    "search": lambda run: _lines(run / "round_001" / "trees.jsonl.gz.part") >= 2,
    "training": lambda run: (run / "round_001" / "checkpoints" / "value").exists(),
    "evaluation": lambda run: _lines(run / "round_001" / "eval" / "mcts.jsonl.part") >= 1,
}
"""Stage -> whether a run has reached it."""


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("stage", KILLS)
def test_killed_and_resumed_run_ends_the_same(stage: str, undisturbed: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, config)
    deadline = time.monotonic() + 240
    while not KILLS[stage](out):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "report.json").exists()
    finish(start(out, config, "--resume"))
    assert fingerprints(out) == fingerprints(undisturbed)


CLASSES = {
    "search": SolverConfig,
    "train": TrainJob,
    "evaluate": EvaluateConfig,
    "diagnose": DiagnoseConfig,
    "label": LabelConfig,
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
        load_config(CLASSES[file.parent.name], file)
    assert file.read_text().startswith("# ")
