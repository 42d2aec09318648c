"""A resumable command: its lock while it works, its session's end in the manifest, and what its journal holds."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.cli import COMMANDS, main
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.interrupts import RESUMABLE
from llm_mcts.runs.job import Job, Row, open_job
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.types import Problem

QUIET = Reporter(quiet=True)
PROBLEMS = [Problem(name, f"Question {name}?", "1") for name in "abc"]


class Worker:
    """Answers every question but those in `fails`, which raise."""

    def __init__(self, **fails: BaseException) -> None:
        self.fails, self.asked = fails, list[str]()

    async def __call__(self, problem: Problem) -> tuple[Row | None, Record]:
        await asyncio.sleep(0.001 if problem.id == "a" else 0)  # replies come in another order than questions
        self.asked.append(problem.id)
        if problem.id in self.fails:
            raise self.fails[problem.id]
        return {"id": problem.id, "text": problem.question}, Record(problem.id)


def rows(job: Job, worker: Worker, concurrency: int = 2) -> list[Row]:
    return job.each_question("rows.jsonl", PROBLEMS, worker, concurrency, "work")


def outcome(folder: Path) -> str | None:
    manifest = RunDirectory(folder).manifest()
    assert manifest is not None
    found: str | None = manifest["sessions"][-1]["outcome"]
    return found


def test_rows_come_in_order_and_the_session_ends_finished(tmp_path: Path) -> None:
    with open_job(tmp_path / "out", {"n": 1}, False, QUIET, {"seed": 5}) as job:
        assert RunDirectory(tmp_path / "out").holder is not None
        assert outcome(tmp_path / "out") is None
        assert [row["id"] for row in rows(job, Worker())] == ["a", "b", "c"]
        job.write_report({"questions": 3})
    assert RunDirectory(tmp_path / "out").holder is None
    assert outcome(tmp_path / "out") == "finished"
    assert [row["id"] for row in Journal(tmp_path / "out" / "rows.jsonl").whole()] == ["a", "b", "c"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == {"questions": 3}
    assert RunDirectory(tmp_path / "out").manifest()["seed"] == 5  # type: ignore[index]


@pytest.mark.parametrize(
    ("error", "ending"),
    [(KeyboardInterrupt(), "stopped"), (ValueError("no\nluck"), "failed: ValueError: no luck")],
)
def test_what_was_done_is_not_done_again(error: BaseException, ending: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), open_job(tmp_path / "out", {}, False, QUIET) as job:
        rows(job, Worker(c=error), concurrency=1)
    assert outcome(tmp_path / "out") == ending
    with pytest.raises(ConfigError, match="--resume"), open_job(tmp_path / "out", {}, False, QUIET):
        pass
    again = Worker()
    with open_job(tmp_path / "out", {}, True, QUIET) as job:
        assert [row["id"] for row in rows(job, again)] == ["a", "b", "c"]
    assert again.asked == ["c"]
    assert outcome(tmp_path / "out") == "finished"


def test_a_question_without_a_row_is_left_for_a_later_session(tmp_path: Path) -> None:
    async def skipping(problem: Problem) -> tuple[Row | None, Record]:
        return None if problem.id == "b" else {"id": problem.id}, Record(problem.id)

    with open_job(tmp_path / "out", {}, False, QUIET) as job:
        found = job.each_question("rows.jsonl", PROBLEMS, skipping, 2, "work")
    assert [row["id"] for row in found] == ["a", "c"]
    assert not Journal(tmp_path / "out" / "rows.jsonl").complete
    again = Worker()
    with open_job(tmp_path / "out", {}, True, QUIET) as job:
        assert [row["id"] for row in rows(job, again)] == ["a", "b", "c"]
    assert again.asked == ["b"]


def test_other_questions_in_the_journal_are_refused(tmp_path: Path) -> None:
    with open_job(tmp_path / "out", {}, False, QUIET) as job:
        rows(job, Worker())
        with pytest.raises(DataError, match="has question b, which is not among the questions now"):
            job.each_question("rows.jsonl", PROBLEMS[:1], Worker(), 1, "work")


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_job(None, {}, False, QUIET) as job:
        assert [row["id"] for row in rows(job, Worker())] == ["a", "b", "c"]
        job.write_report({})
    assert list(tmp_path.iterdir()) == []


def test_at_most_so_many_at_once(tmp_path: Path) -> None:
    now = most = 0

    async def work(problem: Problem) -> tuple[Row | None, Record]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return {"id": problem.id}, Record(problem.id)

    with open_job(None, {}, False, QUIET) as job:
        job.each_question("", PROBLEMS, work, 2, "work")
        assert most == 2
        with pytest.raises(ConfigError, match="concurrency is 0; expected at least 1"):
            job.each_question("", PROBLEMS, work, 0, "work")


# The commands

TINY = ["--task.level", "easy", "--num_questions", "2"]
ONE_ROLLOUT = ["--num_completions", "2", "--num_solutions", "2"]
EACH: dict[str, list[str]] = {
    "evaluate": [*TINY, "--methods", '{"greedy": "greedy"}'],
    "label": [*TINY, *ONE_ROLLOUT],
    "imagine": TINY,
    "diagnose": ["--task.level", "easy", "--num_questions", "20", "--num_samples", "2"],
}


def command(name: str, out: Path, critic: Path) -> list[str]:
    return [name, *([str(critic)] if name == "diagnose" else []), *EACH[name], "--out", str(out)]


@pytest.fixture(scope="module")
def critic(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from critics.model.heads import HeadConfig
    from critics.model.model import CriticModel

    folder = tmp_path_factory.mktemp("critics") / "orm"
    CriticModel.create("orm", str(tiny_model), HeadConfig(width=8)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", EACH)
def test_every_command_closes_its_session(name: str, critic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(name, out, critic)) == 0
    assert outcome(out) == "finished"
    assert RunDirectory(out).holder is None
    assert main([*command(name, out, critic), "--resume"]) == 0
    assert len(RunDirectory(out).manifest()["sessions"]) == 2  # type: ignore[index]


@pytest.mark.parametrize("name", EACH)
def test_every_command_holds_the_lock_and_says_how_to_go_on(
    name: str, critic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, held = tmp_path / "out", list[Any]()

    def stopped(*_: object) -> None:
        held.append(RunDirectory(out).holder)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", stopped)
    assert main(command(name, out, critic)) == 130
    assert held[0] is not None
    assert outcome(out) == "stopped"
    message = capsys.readouterr().err.splitlines()[-1]
    assert "what was finished is kept; resume with: llm-mcts" in message
    assert message.endswith("--resume")
    monkeypatch.undo()
    assert main([*command(name, out, critic), "--resume"]) == 0


def test_every_command_with_resume_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    resumable = set()
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        if re.search(r"--resume\b", capsys.readouterr().out):
            resumable.add(name)
    assert resumable == set(RESUMABLE)
