"""The benchmark scripts run, and what they measure stays far from what would be a mistake; exact figures are for docs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.search.mcts import MCTSConfig
from llm_mcts.tasks.arith import ArithTask

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_time_per_simulation_does_not_grow_with_the_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = load("bench_tree")
    monkeypatch.setattr(bench, "PEER_PYTHON", tmp_path / "none")
    rows = {(r["name"], r["simulations"]): r for r in bench.time_searches([200, 6000], repeats=3)}
    assert {name for name, _ in rows} == {"llm-mcts", "llm-mcts, 8 in parallel"}
    small, large = rows["llm-mcts", 200], rows["llm-mcts", 6000]
    assert large["calls"] >= 0.95 * 6000
    assert large["microseconds"] < 2 * small["microseconds"]
    assert large["microseconds"] < 150


def test_a_large_tree_fits_in_memory_and_is_saved_in_seconds() -> None:
    found = load("bench_tree").measure_memory(100_000)
    assert found["nodes"] == 100_000
    assert found["memory_mb"] < 150
    assert found["save_seconds"] < 5
    assert found["load_seconds"] < 5


def test_importing_needs_no_torch() -> None:
    found = load("bench_tree").time_import(3)
    assert not found["torch"]
    assert found["seconds"] < 0.3


def test_many_searches_keep_the_batches_full() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench_latency.py"), "--json", "--questions", "32", "--simulations", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(run.stdout)
    assert report["together"]["rows_per_batch"] > 40
    assert report["together"]["over_bound"] < 1.6  # a small run has a tail of half-empty batches
    assert report["one_at_a_time"]["rows_per_batch"] < 4
    assert report["speedup"]["simulations_per_second"] > 4


def test_the_engine_computes_shared_tokens_once() -> None:
    bench = load("bench_engine")
    questions = [problem.question for problem in ArithTask().load("train", 12)]
    found = bench.count_work("embedded", questions, MCTSConfig(num_simulations=4, num_parallel=2), 256)
    assert found["search"]["questions"] == 12
    for name in ("policy", "value", "prm", "orm"):
        assert found[name]["prefilled_tokens"] > 0
        assert found[name]["prefilled_per_distinct"] <= 1.02
    assert 0 < found["policy"]["occupancy_until_last_tenth"] <= 1
