"""How a command ends before its time: one line that says what happened, that nothing is lost, and what to type next.

SIGTERM and SIGHUP (a scheduler's time limit, a closed terminal) end a command as Ctrl-C does: an exception in the main thread,
so that locks, trees and sessions are put in order on the way out. A signal that the caller ignores (nohup) stays ignored.
"""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from llm_mcts.errors import exhausted

USER_ERROR = 2
"""Exit status of an error that the user can fix."""
RESUMABLE = ("self-improve", "evaluate", "label", "imagine", "diagnose")
"""Commands with --resume: they keep what they have done in --out."""
_REMEDY = {
    "disk": "the disk is full",
    "memory": "out of memory",
}


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise `Interrupted` in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)  # Windows has no SIGHUP
        if signum is not None and signal.getsignal(signum) == signal.SIG_DFL:
            former[signum] = signal.signal(signum, _raise)
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def end(error: BaseException, argv: Sequence[str]) -> int | None:
    """Tell on standard error why the command `argv` ended and how to go on; return its exit status.

    None: the error is neither a signal nor a machine that ran out of something, and nothing was reported.
    """
    if isinstance(error, KeyboardInterrupt):
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the tasks that were cut would tell of it as well
        if os.environ.get("RANK", "0") == "0":  # of several processes that a launcher started the first one tells
            tell(f"interrupted ({signal.Signals(signum).name}); {what_next(argv)}")
        return 128 + int(signum)
    if (what := exhausted(error)) is None:
        return None
    tell(f"{_REMEDY[what]} ({_first_line(error)}); {what_next(argv, _MAKE_ROOM[what])}")
    return USER_ERROR


_MAKE_ROOM = {
    "disk": "make room on it, then ",
    "memory": "end other programs or take a larger machine, then ",
}


def what_next(argv: Sequence[str], first: str = "") -> str:
    """What was kept, and the command that resumes; `first` is what must be done before."""
    command, rest = argv[0], list(argv[1:])
    if command in RESUMABLE and any(word == "--out" or word.startswith("--out=") for word in rest):
        again = rest if "--resume" in rest else [*rest, "--resume"]
        return f"what was finished is kept; {first}resume with: {shlex.join(['llm-mcts', command, *again])}"
    kept = "the tree is kept" if command == "solve" and "--tree" in rest else "nothing was kept, and nothing older was touched"
    return f"{kept}; {first}start again with: {shlex.join(['llm-mcts', *argv])}"


def tell(text: str) -> None:
    """One line on standard error, if anybody still listens there."""
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"llm-mcts: {text}", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    """The error in brief; torch's messages end with a stack."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
