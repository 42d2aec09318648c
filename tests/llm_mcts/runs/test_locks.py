"""One process at a time: the kernel holds the lock and gives it back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.locks import RunLock, holder, owner_file

CONFIG = {"seed": 0}


@contextmanager
def at_work(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run open."""
    opened = f"run = RunDirectory.open({str(run)!r}, {CONFIG!r}, resume=True)"
    code = f"from llm_mcts.runs.directory import RunDirectory; {opened}; print(1, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with at_work(run) as process:
        assert (holder(run / "lock") or {})["pid"] == process.pid
        with pytest.raises(ConfigError, match=f"in use by process {process.pid} on ") as caught:
            RunDirectory.open(run, CONFIG, resume=True)
        assert "\n" not in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(run / "lock") is None
        RunDirectory.open(run, CONFIG, resume=True).close()


def test_the_lock_goes_with_the_run(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    assert (run.holder or {})["pid"] == os.getpid()
    again = RunDirectory.open(tmp_path / "run", CONFIG, resume=True)  # the same process shares it
    again.close()
    assert run.holder is not None
    run.close()
    assert run.holder is None
    with RunDirectory.open(tmp_path / "run", CONFIG, resume=True) as third:
        assert third.holder is not None
    assert third.holder is None
    RunDirectory.open(tmp_path / "run", CONFIG, resume=True)  # nobody keeps it
    assert third.holder is None


def test_a_refused_run_is_not_locked(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG, resume=False).close()
    with pytest.raises(ConfigError, match="seed"):
        RunDirectory.open(tmp_path / "run", {"seed": 1}, resume=True)
    assert RunDirectory(tmp_path / "run").holder is None


def test_looking_at_a_lock_neither_makes_nor_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert holder(file) is None
    assert not file.exists()
    lock = RunLock(file)
    assert (holder(file) or {})["pid"] == os.getpid()
    assert set(json.loads(owner_file(file).read_text())) == {"pid", "host", "started"}
    lock.release()
    assert holder(file) is None
    RunLock(file).release()
