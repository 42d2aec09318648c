"""One process at a time in a run directory: a lock of the operating system, which is released however the process ends.

The lock file stays behind and means nothing by itself; a file next to it says who holds the lock.
"""

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_mcts.errors import ConfigError

_PATIENCE = 0.25
"""Seconds to wait: a process that only asks who holds the lock has it for an instant."""


class RunLock:
    """A lock of this process: whoever opens a run again here shares it. Released by the last `release`."""

    def __init__(self, file: Path) -> None:
        """Lock `file` and write down who we are.

        Raises:
            ConfigError: another process holds it; its number is named.
        """
        self._lock = FileLock(file, is_singleton=True, mode=0o644)
        try:
            self._lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            owner = owner_text(_owner(file))
            raise ConfigError(f"{file.parent} is in use by {owner}; wait until it ends or stop it, then resume") from error
        who = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
        owner_file(file).write_text(json.dumps(who) + "\n", encoding="utf-8")

    def release(self) -> None:
        """One user fewer."""
        self._lock.release()


def owner_file(file: Path) -> Path:
    """Where the holder of a lock file is written down."""
    return file.with_name(file.name + ".json")


def holder(file: Path) -> dict[str, Any] | None:
    """Who holds the lock, {"pid", "host", "started"}; None if nobody does."""
    if not file.exists():
        return None
    look = FileLock(file, mode=0o644)
    with suppress(Timeout, OSError):
        look.acquire(timeout=0)
        look.release()
        return None
    return _owner(file)


def owner_text(owner: Mapping[str, Any]) -> str:
    """For example "process 4711 on host since 2026-01-31T12:00:00+00:00"."""
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('started', '?')}"


def _owner(file: Path) -> dict[str, Any]:
    """What the holder wrote; empty if it has only just taken the lock."""
    try:
        who = json.loads(owner_file(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return who if isinstance(who, dict) else {}
