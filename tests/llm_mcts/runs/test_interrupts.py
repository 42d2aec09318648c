"""A full disk, a full memory and signals: one line, the right exit status, and nothing half-written taken for whole."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_mcts import cli
from llm_mcts.errors import DataError, EngineError, exhausted
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.runs import durable
from llm_mcts.runs.durable import place_folder, write_atomically
from llm_mcts.runs.interrupts import Interrupted, signals_raise, what_next
from llm_mcts.runs.journal import Journal
from llm_mcts.types import Problem

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (FULL, "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
        (caused(EngineError("failed on question"), FULL), "disk"),
        (MemoryError(), "memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (caused(EngineError("x"), caused(ValueError("y"), MemoryError())), "memory"),
        (OSError(errno.ENOENT, "no such file"), None),
        (RuntimeError("out of memory cells"), None),
        (DataError("a question about memory"), None),
    ],
)
def test_what_ran_out(error: Exception, what: str | None) -> None:
    assert exhausted(error) == what


ARGV = ["self-improve", "--config", "a b.yaml", "--out", "runs/x", "--seed", "3"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Interrupted(signal.SIGTERM), 143, ["interrupted (SIGTERM)"]),
        (Interrupted(signal.SIGHUP), 129, ["interrupted (SIGHUP)"]),
        (KeyboardInterrupt(), 130, ["interrupted (SIGINT)"]),
        (FULL, 2, ["disk is full (", "make room on it, then resume with"]),
        (caused(EngineError("x"), FULL), 2, ["disk is full"]),
        (MemoryError("first line\nsecond line"), 2, ["out of memory (first line)", "larger machine, then resume with"]),
    ],
)
def test_the_last_line_names_the_command_that_resumes(
    error: BaseException, status: int, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "self-improve", fail)
    assert cli.main(ARGV) == status
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in [*words, "what was finished is kept"]:
        assert word in told
    assert told.endswith("resume with: llm-mcts self-improve --config 'a b.yaml' --out runs/x --seed 3 --resume\n")


def test_other_errors_stay_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "self-improve", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(ARGV)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["self-improve", "--out", "r", "--resume"], "is kept; resume with: llm-mcts self-improve --out r --resume"),
        (["evaluate", "--out=r"], "is kept; resume with: llm-mcts evaluate --out=r --resume"),
        (["evaluate"], "nothing was kept"),
        (["solve", "Q?", "--tree", "t.json"], "the tree is kept; start again with: llm-mcts solve 'Q?' --tree t.json"),
        (
            ["train", "orm", "rows", "--out", "m"],
            "nothing older was touched; start again with: llm-mcts train orm rows --out m",
        ),
    ],
)
def test_what_comes_next(argv: list[str], told: str) -> None:
    assert told in what_next(argv)


def test_signals_raise_inside_the_block_alone() -> None:
    former = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)]
    for signum in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(Interrupted) as caught, signals_raise():
            os.kill(os.getpid(), signum)
            time.sleep(5)
        assert caught.value.signum == signum
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)] == former


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_other_threads_may_run_commands() -> None:
    seen: list[str] = []

    def work() -> None:
        with signals_raise():
            seen.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["worked"]


async def _raise(error: Exception) -> SearchResult:
    raise error


@pytest.mark.parametrize("error", [MemoryError(), FULL, caused(EngineError("x"), OutOfMemoryError())])
def test_what_ran_out_is_no_questions_failure(error: Exception) -> None:
    with pytest.raises(type(error)):
        asyncio.run(run_questions([Problem("1", "a", "1")], lambda _: _raise(error), lambda a, b: True))


class FullDisk:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.file.write(data[: self.room])
        self.file.flush()
        if len(data) > self.room:
            raise FULL
        self.room -= len(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """While its list holds a number, every file that is written to takes that many bytes."""
    room: list[int] = []
    true_open = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = true_open(self, mode, *args, **kwargs)
        return FullDisk(file, room[0]) if room and mode in ("ab", "wb") else file

    monkeypatch.setattr(Path, "open", opened)
    yield room


def test_a_full_disk_in_the_middle_of_a_record(tmp_path: Path, full_disk: list[int]) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.append({"id": "1", "text": "whole"})
    full_disk.append(9)
    with pytest.raises(OSError, match="No space"):
        journal.append({"id": "2", "text": "torn"})
    part = tmp_path / "log.jsonl.part"
    assert part.read_bytes().endswith(b'\n{"id": "2')
    assert journal.read() == [{"id": "1", "text": "whole"}]
    full_disk.clear()
    journal.append({"id": "2", "text": "again"})
    assert [r["text"] for r in journal.read()] == ["whole", "again"]


def test_a_full_disk_in_the_middle_of_a_file(tmp_path: Path, full_disk: list[int]) -> None:
    file = tmp_path / "metrics.jsonl"
    write_atomically(file, b"old\n")
    full_disk.append(2)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"old\nnew\n")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("metrics.jsonl", b"old\n")]


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, folder = tmp_path / "model.part", tmp_path / "model"
    (scratch / "adapter").mkdir(parents=True)
    for name in ("a.safetensors", "adapter/b.json"):
        (scratch / name).write_text(name)
    folder.mkdir()
    (folder / "old").touch()
    synced: list[str] = []
    true_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path)))
        true_fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", fsync)
    place_folder(scratch, folder)
    inside = ["model.part/a.safetensors", "model.part/adapter", "model.part/adapter/b.json", "model.part"]
    assert synced == [*inside, "."]
    assert sorted(p.name for p in folder.rglob("*")) == ["a.safetensors", "adapter", "b.json"]
    assert not scratch.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if sys.platform != "linux" or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


QUESTIONS = 6


def evaluate_command(questions: Path, model: Path, out: Path) -> list[str]:
    return [
        *(
            "evaluate",
            "--task.name",
            "jsonl",
            "--task.path",
            str(questions),
            "--num_questions",
            str(QUESTIONS),
            "--out",
            str(out),
        ),
        *("--solver.engine.model", str(model), "--solver.policy.max_solution_tokens", "8", "--concurrency", "1"),
        *("--methods", "{greedy: greedy, many: {name: self_consistency, num_samples: 4}}"),
    ]


def test_a_disk_that_is_really_full(
    small_disk: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out, filler = tmp_path / "questions.jsonl", small_disk / "out", small_disk / "filler"
    questions.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": i + 1}) + "\n" for i in range(QUESTIONS)))
    argv = evaluate_command(questions, tiny_model, out)
    filler.write_bytes(b"x" * (256 - 20) * 1024)  # the configuration, the lock and one method's records need no more
    status = cli.main(argv)
    told = capsys.readouterr().err
    assert status == 2
    assert told.splitlines()[-1].startswith("llm-mcts: the disk is full (")
    assert told.splitlines()[-1].endswith(" --resume")
    filler.unlink()
    assert cli.main([*argv, "--resume"]) == 0
    capsys.readouterr()
    assert cli.main(evaluate_command(questions, tiny_model, tmp_path / "whole")) == 0
    for name in ("greedy.jsonl", "many.jsonl"):
        found, whole = ([json.loads(line) for line in (d / name).read_text().splitlines()] for d in (out, tmp_path / "whole"))
        assert [(r["id"], r["answer"], r["solution"]) for r in found] == [(r["id"], r["answer"], r["solution"]) for r in whole]
