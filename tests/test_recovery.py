"""Killed anywhere and resumed, a run ends with the same rows, marks, verdicts and weights as an undisturbed one."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.runs.journal import Journal

SETTINGS = {
    "task": {"name": "arith", "level": "easy"},
    "num_rounds": 1,
    "train_questions": 8,
    "eval_questions": 4,
    "concurrency": 4,
    "solver": {
        "policy": {"temperature": 1.0, "max_step_tokens": 48, "max_solution_tokens": 120},
        "search": {"name": "mcts", "num_simulations": 6, "expansion_width": 3},
    },
    "methods": {"greedy": "greedy", "mcts": {"name": "mcts", "num_simulations": 3}},
    "head": {"width": 16},
    "gate": {"tolerance": 1.0},
}
TIMES = {"seconds", "usage"}
"""What a resumed run measures anew."""

# name -> (where to die, the end of the path, at which call, what is on disk then and what is not)
KILLS: dict[str, tuple[str, str, int, str, str]] = {
    "start, evaluation": ("append-after", "round_000/eval/greedy.jsonl", 2, "round_000/eval", "round_000/eval/greedy.jsonl"),
    "start, between the methods": ("append-before", "eval/mcts.jsonl", 1, "round_000/eval/greedy.jsonl", "round_001"),
    "search, first tree": ("append-after", "trees.jsonl.gz", 1, "round_001/trees.jsonl.gz.part", "round_001/trees.jsonl.gz"),
    "search, a torn tree": ("append-torn", "trees.jsonl.gz", 5, "round_001/trees.jsonl.gz.part", "round_001/trees.jsonl.gz"),
    "search, not completed": ("write-torn", "trees.jsonl.gz", 1, "round_001/trees.jsonl.gz.tmp", "round_001/trees.jsonl.gz"),
    "rows, half of them": ("write-before", "rows/prm.jsonl", 1, "round_001/rows", "round_001/rows/prm.jsonl"),
    "rows, not noted": ("write-torn", "round_001/metrics.jsonl", 3, "round_001/metrics.jsonl.tmp", "round_001/checkpoints"),
    "value model, not noted": (
        "save-after",
        "checkpoints/value",
        1,
        "round_001/checkpoints/value",
        "round_001/checkpoints/prm",
    ),
    "PRM, in the middle of saving": (
        "save-torn",
        "checkpoints/prm",
        1,
        "round_001/checkpoints/prm.part",
        "round_001/checkpoints/prm",
    ),
    "ORM, not noted": ("save-after", "checkpoints/orm", 1, "round_001/checkpoints/orm", "round_001/checkpoints/policy"),
    "policy, in the middle of saving": (
        "save-torn",
        "checkpoints/policy",
        1,
        "round_001/checkpoints/policy.part",
        "round_001/checkpoints/policy",
    ),
    "candidate, first method": (
        "append-torn",
        "round_001/eval/greedy.jsonl",
        3,
        "round_001/checkpoints/policy",
        "round_001/eval/greedy.jsonl",
    ),
    "candidate, second method": (
        "append-after",
        "round_001/eval/mcts.jsonl",
        4,
        "round_001/eval/greedy.jsonl",
        "round_001/eval/mcts.jsonl",
    ),
    "report": ("write-torn", "report.json", 1, "report.json.tmp", "report.json"),
}


class Driver:
    """`recovery_driver.py` at work."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "tiny.yaml"
        self.config.write_text(json.dumps(SETTINGS))
        # One thread: children of a fork have none of their parent's, and sums come out the same every time.
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("recovery_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def run(self, out: Path, kill: tuple[str, str, int] | None = None) -> int:
        """Start the run in `out` or go on with it; the signal that ended it, 0 for none, below 0 after an error."""
        trap = dict(zip(("at", "path", "n"), kill, strict=True)) if kill else None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"out": str(out), "config": str(self.config), "kill": trap}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert driver.run(out) == 0
    return out


def without_times(value: Any) -> Any:
    """JSON without what the clock or the batch decides."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and not k.endswith("_per_question")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def findings(run: Path) -> dict[str, Any]:
    """Everything in a run that must not depend on interruptions."""
    found: dict[str, Any] = {}
    for file in [*run.rglob("rows/*.jsonl"), *run.rglob("*.safetensors"), *run.rglob("questions.jsonl")]:
        found[str(file.relative_to(run))] = hashlib.sha256(file.read_bytes()).hexdigest()
    for file in run.rglob("eval/*.jsonl"):
        records = map(json.loads, file.read_text().splitlines())
        found[str(file.relative_to(run))] = [(r["id"], r["answer"], r["correct"], r["solution"]) for r in records]
    for file in run.rglob("metrics.jsonl"):
        found[str(file.relative_to(run))] = [without_times(json.loads(line)) for line in file.read_text().splitlines()]
    report = json.loads((run / "report.json").read_text())
    found["report"] = {key: without_times(report[key]) for key in ("scores", "differences") if key in report}
    return json.loads(json.dumps(found).replace(str(run), "RUN"))


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed: Path) -> None:
    found = findings(undisturbed)
    assert {f"round_001/rows/{name}.jsonl" for name in ("policy", "value", "prm", "orm")} <= set(found)
    assert sum(name.endswith(".safetensors") for name in found) >= 4
    assert [note["stage"] for note in found["round_001/metrics.jsonl"]][-1] == "gate"


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed(name: str, driver: Driver, undisturbed: Path, tmp_path: Path) -> None:
    point, path, n, there, missing = KILLS[name]
    out = tmp_path / "run"
    assert driver.run(out, (point, path, n)) == signal.SIGKILL
    assert (out / there).exists()
    assert not (out / missing).exists()
    assert driver.run(out) == 0
    assert findings(out) == findings(undisturbed)
    assert not [*out.rglob("*.part"), *out.rglob("*.tmp")]


def test_killed_three_times(driver: Driver, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in ("search, a torn tree", "PRM, in the middle of saving", "candidate, second method"):
        assert driver.run(out, KILLS[name][:3]) == signal.SIGKILL
    assert driver.run(out) == 0
    assert findings(out) == findings(undisturbed)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_command_in_one_line(signum: signal.Signals, status: int, driver: Driver, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["self-improve", "--config", str(driver.config), "--out", str(out)]
    command = [sys.executable, "-m", "llm_mcts.cli", *words, "--train_questions", "500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=driver.environment)
    deadline = time.monotonic() + 240
    while not (out / "round_001" / "trees.jsonl.gz.part").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (status, "")
    told = [line for line in errors.splitlines() if line.startswith("llm-mcts: ")]
    again = shlex.join(["llm-mcts", *words, "--train_questions", "500", "--resume"])
    assert told == [f"llm-mcts: interrupted ({signum.name}); what was finished is kept; resume with: {again}"]
    assert errors.splitlines()[-1] == told[0]
    assert "Traceback" not in errors
    assert Journal(out / "round_001" / "trees.jsonl.gz").read()


def test_a_finished_run_stays_as_it_is(driver: Driver, undisturbed: Path) -> None:
    before = findings(undisturbed)
    assert driver.run(undisturbed) == 0
    assert findings(undisturbed) == before
