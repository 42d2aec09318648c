"""One process at a time in a run directory: a lock that the kernel holds, and gives back however the process ends.

`flock` on a file that also says who holds it. The file stays behind, and means nothing without the lock on it. Where the
system has no `flock` (Windows) nothing is locked.
"""

import errno
import json
import logging
import os
import socket
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_mcts.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_TRIES, _PAUSE = 5, 0.05
"""Somebody who only looks at the lock holds it for an instant."""
_HELD: "weakref.WeakValueDictionary[tuple[int, int], RunLock]" = weakref.WeakValueDictionary()
"""This process's locks by the file's device and number: whoever opens a run again here shares its lock."""


class RunLock:
    """A lock of this process; given back by the last `release`, when nobody refers to it any more, or at the process's end."""

    def __init__(self, descriptor: int) -> None:
        self._close = weakref.finalize(self, os.close, descriptor)
        self._users = 0

    def release(self) -> None:
        """One user fewer."""
        self._users -= 1
        if self._users <= 0:
            self._close()

    @property
    def held(self) -> bool:
        """Whether the lock still stands."""
        return bool(self._close.alive)


def take_lock(file: Path) -> RunLock:
    """Lock `file` for this process and write into it who we are.

    Raises:
        ConfigError: another process holds it; its number is named.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    status = os.fstat(descriptor)
    ours = _HELD.get((status.st_dev, status.st_ino))
    if ours is not None and ours.held:
        os.close(descriptor)
    else:
        try:
            _flock(descriptor, file)
            _sign(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        ours = _HELD[status.st_dev, status.st_ino] = RunLock(descriptor)
    ours._users += 1
    return ours


def holder(file: Path) -> dict[str, Any] | None:
    """Who holds the lock, {"pid", "host", "started"}; None where nobody does."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    except OSError:
        return None  # a file system without locks
    finally:
        os.close(descriptor)
    return None


def _flock(descriptor: int, file: Path) -> None:
    if fcntl is None:
        return
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            log.warning("%s cannot be locked (%s): see to it that one process alone works there", file, error.strerror)
            return
    raise ConfigError(f"{file.parent} is in use by {told(_read(descriptor))}; wait for its end or stop it, then go on")


def told(holder: Mapping[str, Any]) -> str:
    """For example "process 4711 on host since 2026-01-31T12:00:00+00:00"."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('started', '?')}"


def _sign(descriptor: int) -> None:
    who = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(who).encode() + b"\n")


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder wrote; nothing where it has only just taken the lock."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        who = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError):
        return {}
    return who if isinstance(who, dict) else {}
