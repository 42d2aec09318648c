"""Where a run stands, on run directories made by hand."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.cli import main
from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.status import find_runs, run_status
from llm_mcts.types import Usage

CONFIG = {"num_rounds": 3, "train_questions": 10, "eval_questions": 4, "methods": {"greedy": "greedy", "mcts": "mcts"}}
STAGES = ("questions", "search", "rows", "value", "prm", "orm", "policy", "evaluate", "gate")


def marked(marks: str) -> list[dict[str, Any]]:
    usage = Usage(generated_tokens=10, prefilled_tokens=5, critic_tokens=1)
    return [Record(f"q{i}", "1", mark == "+", usage=usage).to_dict() for i, mark in enumerate(marks)]


def start(run: RunDirectory) -> None:
    """Round 0, finished: greedy 1 of 4, mcts 2 of 4."""
    for label, marks in (("greedy", "+---"), ("mcts", "++--")):
        run.round(0).evaluation(label).write(marked(marks))
    run.round(0).note("evaluate", {"seconds": 8.0, "usage": {"generated_tokens": 100}})


def whole_round(run: RunDirectory, number: int, accepted: bool, seconds: float = 10.0) -> None:
    """A finished round: every stage took so many seconds."""
    here = run.round(number)
    for label, marks in (("greedy", "++--"), ("mcts", "+++-")):
        here.evaluation(label).write(marked(marks))
    for stage in STAGES:
        gate = {"accepted": accepted} if stage == "gate" else {}
        usage = {"usage": {"generated_tokens": 1000, "prefilled_tokens": 200}} if stage == "search" else {}
        here.note(stage, {"seconds": seconds, **usage, **gate})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    opened = RunDirectory.open(tmp_path / "first", CONFIG, resume=False)
    opened.write_manifest({"seed": 0})
    return opened


def test_a_run_that_has_just_begun(run: RunDirectory) -> None:
    found = run_status(run.path)
    assert (found.name, found.state, found.rounds_done, found.num_rounds) == ("first", "running", 0, 3)
    assert found.in_progress is not None
    assert (found.in_progress.name, found.in_progress.round, found.in_progress.done, found.in_progress.total) == (
        "evaluate",
        0,
        0,
        8,
    )
    assert (found.accuracy, found.tokens, found.seconds_left) == ({}, 0, None)


def test_the_first_round_is_estimated_by_the_rate_of_its_stage(run: RunDirectory) -> None:
    start(run)
    for stage in ("questions",):
        run.round(1).note(stage, {"seconds": 1.0})
    for record in marked("++-+"):
        run.round(1).trees.append({**record, "tree": {"question": ', "tree": {'}})
    ago = time.time() - 40
    os.utime(run.round(0).metrics_file, (ago, ago))
    os.utime(run.round(1).metrics_file, (ago, ago))
    found = run_status(run.path)
    assert found.in_progress is not None
    assert (found.in_progress.name, found.in_progress.done, found.in_progress.total) == ("search", 4, 10)
    assert found.in_progress.tokens == 4 * 16
    assert found.tokens == 100 + 64
    assert found.left_is_of == "stage"
    assert found.seconds_left == pytest.approx(60, abs=5)  # 4 in 40 s, so 6 more in 60 s
    assert found.accuracy == {"greedy": (0.25, 0.25), "mcts": (0.5, 0.5)}


def test_later_rounds_are_estimated_by_the_rounds_before(run: RunDirectory) -> None:
    start(run)
    whole_round(run, 1, accepted=True, seconds=10.0)
    here = run.round(2)
    here.note("questions", {"seconds": 30.0})
    here.questions.write([{"id": str(i), "question": f"{i}?"} for i in range(8)])
    for record in marked("++"):
        here.trees.append(record)
    found = run_status(run.path)
    assert found.in_progress is not None
    assert (found.in_progress.round, found.in_progress.done, found.in_progress.total) == (2, 2, 8)
    # search: 6 of 8 left of 10 s = 7.5; seven more stages at 10 = 70; round 3: questions (10 + 30) / 2 = 20, eight at 10 = 80
    assert found.seconds_left == pytest.approx(7.5 + 70 + 100)
    assert found.left_is_of == "run"
    assert (found.rounds_done, found.accepted) == (1, (1,))
    assert found.accuracy == {"greedy": (0.25, 0.5), "mcts": (0.5, 0.75)}


def test_what_a_rejected_round_reached_does_not_stand(run: RunDirectory) -> None:
    start(run)
    whole_round(run, 1, accepted=False)
    found = run_status(run.path)
    assert (found.rounds_done, found.accepted) == (1, ())
    assert found.accuracy == {"greedy": (0.25, 0.25), "mcts": (0.5, 0.5)}
    assert found.in_progress is not None
    assert (found.in_progress.round, found.in_progress.name) == (2, "questions")


def test_states(run: RunDirectory) -> None:
    start(run)
    run.close("failed: DataError: no rows")
    found = run_status(run.path)
    assert (found.state, found.about) == ("failed", "DataError: no rows")
    with RunDirectory.open(run.path, CONFIG, resume=True) as again:
        again.write_manifest({"seed": 0})
        assert run_status(run.path).state == "running"
        assert str(os.getpid()) in run_status(run.path).about
    assert run_status(run.path).state == "stopped"
    for number in (1, 2, 3):
        whole_round(run, number, accepted=True)
    assert run_status(run.path).in_progress is not None  # the report is still to come
    run.write_report({}, "")
    found = run_status(run.path)
    assert (found.state, found.in_progress, found.seconds_left) == ("finished", None, None)
    assert found.seconds == 8 + 3 * 9 * 10
    assert found.tokens == 100 + 3 * (1200 + 128)  # an evaluation that noted none: 2 methods x 4 questions x 16 tokens


def test_a_report_on_the_way_finishes_nothing(run: RunDirectory) -> None:
    start(run)
    run.write_report({}, "")
    run.close("failed: DataError: no rows")
    assert run_status(run.path).state == "failed"


def test_a_broken_run_does_not_hide_the_others(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(run)
    run.close()
    for name, file, text in (
        ("list", "config.yaml", "[1]"),
        ("noise", "config.yaml", "{"),
        ("sessions", "manifest.json", '{"version": 1, "sessions": [1]}'),
        ("bogus", "round_000/metrics.jsonl", '{"stage": "search", "usage": {"bogus": 1}}\n'),
    ):
        folder = tmp_path / name
        RunDirectory.open(folder, CONFIG, resume=False).close()
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "config.yaml").write_text("task: {}\n")
    states = {found.name: found.state for found in find_runs(tmp_path)}
    assert states == {"first": "stopped", **dict.fromkeys(("noise", "sessions", "bogus"), "broken")}  # a list is no run's
    assert main(["runs", str(tmp_path)]) == 0
    assert "broken" in capsys.readouterr().out
    for name in ("list", "noise", "sessions", "bogus"):
        assert main(["status", str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_critics_that_are_not_trained_are_not_waited_for(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", {**CONFIG, "critics": ["orm"]}, resume=False)
    start(run)
    for stage in ("questions", "search", "rows"):
        run.round(1).note(stage, {"seconds": 1.0})
    stage = run_status(run.path).in_progress
    assert stage is not None
    assert (stage.name, stage.done) == ("orm", None)


def test_looking_changes_nothing(run: RunDirectory) -> None:
    start(run)
    run.round(1).trees.append(marked("+")[0])
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    run_status(run.path)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_the_commands(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(run)
    whole_round(run, 1, accepted=True)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "config.yaml").write_text("split: test\n")
    (tmp_path / "notes.txt").touch()
    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for word in ("first", "running", "1 of 3", "2: questions", "greedy 25.0 % → 50.0 %", "mcts 50.0 % → 75.0 %", "1,428"):
        assert word in table
    assert "evaluation" not in table
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["first"]
    assert main(["status", str(run.path)]) == 0
    table = capsys.readouterr().out
    for word in ("first: running", "search", "in progress", "time left of the run: 3 min", "so far: 1,428 tokens, 2 min"):
        assert word in table
    assert main(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds_left"] == pytest.approx(180)
    assert [status.name for status in find_runs(tmp_path)] == ["first"]


@pytest.mark.parametrize("argv", [["status", "nowhere"], ["runs", "nowhere"], ["status"], ["runs", ".", "--steed", "3"]])
def test_mistakes_end_in_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_status_loads_no_torch(run: RunDirectory) -> None:
    code = f"import sys; from llm_mcts.cli import main; main(['status', {str(run.path)!r}, '--json']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "jsonargparse", "trainers"} & set(done.stdout.split()) == set()
