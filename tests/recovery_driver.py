"""Runs the self-improvement loop in children of one process, and kills them at named points.

One JSON object a line on standard input, {"out", "config", "kill": null or {"at", "path", "n"}}; one line a run on standard
output: the number of the signal that ended it, or 0. Libraries are imported once and every run is a forked child, so that a
kill is a real SIGKILL, and the next run starts from nothing but the files. Points are functions that every stage goes through:

    append-before, append-torn, append-after   a record of a journal whose name ends in "path"
    write-before, write-torn, write-after      a file written whole
    save-torn, save-after                      a checkpoint folder: written and not yet in place; in place and not noted
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_mcts.runs.directory
import llm_mcts.runs.journal
import trainers.fit.fit
from llm_mcts.config import load_config
from llm_mcts.runs.journal import Journal

Kill = dict[str, Any]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Counts what passes the point and dies at the n-th."""

    def __init__(self, kill: Kill) -> None:
        self.point, self.path, self.left = kill["at"], kill["path"], kill["n"]

    def springs(self, kind: str, path: Path) -> bool:
        """Whether this is the call to die at."""
        if not self.point.startswith(kind) or not path.as_posix().endswith(self.path):
            return False
        self.left -= 1
        return bool(self.left == 0)

    def around(self, kind: str, path: Path, act: Callable[[], Any], tear: Callable[[], Any]) -> None:
        """Act, dying before, in the middle or after it."""
        if not self.springs(kind, path):
            act()
        elif self.point.endswith("before"):
            die()
        elif self.point.endswith("torn"):
            tear()
            die()
        else:
            act()
            die()


def set_trap(kill: Kill) -> None:
    """Put the trap into the functions that everything on disk goes through."""
    trap = Trap(kill)
    append, write, save = Journal.append, llm_mcts.runs.directory.write_atomically, trainers.fit.fit.save_atomically

    def trapped_append(self: Journal, record: Any) -> None:
        def tear() -> None:
            line = json.dumps(record).encode()
            with self.path.with_name(self.path.name + ".part").open("ab") as file:
                file.write(line[: len(line) // 2])

        trap.around("append", self.path, lambda: append(self, record), tear)

    def trapped_write(path: Path, data: bytes) -> None:
        def tear() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])

        trap.around("write", path, lambda: write(path, data), tear)

    def trapped_save(save_files: Callable[[Path], None], folder: Path) -> None:
        def tear() -> None:
            save(lambda scratch: (save_files(scratch), die())[0], folder)

        trap.around("save", folder, lambda: save(save_files, folder), tear)

    Journal.append = trapped_append  # type: ignore[method-assign]
    llm_mcts.runs.directory.write_atomically = llm_mcts.runs.journal.write_atomically = trapped_write
    trainers.fit.fit.save_atomically = trapped_save
    for module in list(sys.modules.values()):  # those that imported the function by name
        if getattr(module, "save_atomically", None) is save:
            module.save_atomically = trapped_save  # type: ignore[attr-defined]


def child(job: dict[str, Any]) -> None:
    """One run; ends the process."""
    from trainers.loop.self_improve import SelfImproveConfig, self_improve

    if job["kill"]:
        set_trap(job["kill"])
    try:
        self_improve(load_config(SelfImproveConfig, job["config"]), Path(job["out"]), resume=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """A child for every line."""
    import trainers.loop.self_improve  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(job)
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    main()
