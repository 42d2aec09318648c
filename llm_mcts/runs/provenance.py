"""Where a run's results come from: code, packages, questions, starting models, and every session that worked on it.

A session is one process's work on a run. Each is noted with what has changed since the one before, so that a run that was
resumed under another commit or package says so. Questions and starting models may not change: results of both would be mixed.
"""

import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_mcts.errors import ConfigError
from llm_mcts.models import EMBEDDED
from llm_mcts.types import Problem

PACKAGES = ("llm-mcts", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "numpy")
FIXED = ("data", "parents")
"""Facts that must stay as they were."""
_MODEL_FILES = ("*.safetensors", "*config.json", "critic.json", "tokenizer.json", "tokenizer.model")


FORMAT_VERSION = 1
"""Of a run's manifest, which stands for every file of the run."""


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hash_problems(problems: Iterable[Problem]) -> str:
    """SHA-256 over the questions' texts and gold answers, in their order; ids and reference solutions play no part."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.question, problem.gold], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def hash_model(model: str) -> str:
    """SHA-256 over a model folder's weights, configuration and tokenizer, by name; a hub id stands for itself."""
    folder = Path(__file__).parents[1] / "embedded" if model == EMBEDDED else Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


FORMAT_VERSION = 1
"""Of manifest.json and of what it stands for: the files of the folder it lies in."""


def code_commit() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout this package runs from; None where it is installed otherwise."""
    here = Path(__file__)
    if _git("ls-files", "--error-unmatch", here.name) is None:  # in site-packages inside somebody else's checkout
        return None
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit.strip(), "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    """What git says in the package's folder; None where it fails or is not there."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_session(settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """This process: when, where and with what; `settings` are those that differ from the run's own."""
    return {
        "started": now(),
        "ended": None,
        "outcome": None,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "code": code_commit(),
        "settings": dict(settings or {}),
    }


def next_manifest(before: Mapping[str, Any] | None, facts: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with one more session.

    Args:
        before: the manifest so far; None for a new run.
        facts: what the run is made from, such as {"seed", "data": {SPLIT: hash}, "parents": {NAME: hash}}.
        session: of `new_session`.

    Raises:
        ConfigError: questions or starting models are not those that the run began with; they are named.
    """
    if before is None:
        return {"version": FORMAT_VERSION, **facts, "sessions": [{**session, "changed": {}}]}
    for fact in FIXED:
        if moved := differences(before[fact], facts[fact], fact) if fact in before and fact in facts else {}:
            names = ", ".join(f"{name} (hash was {_short(was)}, now {_short(is_)})" for name, (was, is_) in moved.items())
            raise ConfigError(f"the run began with other {fact}: {names}; put them back, or choose another --out")
    last = before["sessions"][-1] if before.get("sessions") else session
    changed = {key: differences(last.get(key), session[key], key) for key in ("python", "platform", "versions", "code")}
    found = {name: pair for part in changed.values() for name, pair in part.items()}
    return {**before, **facts, "sessions": [*before.get("sessions", []), {**session, "changed": found}]}


def _short(digest: Any) -> str:
    return str(digest)[:12]


def differences(a: Any, b: Any, where: str = "") -> dict[str, list[Any]]:
    """Dotted names of what differs between two nested mappings, each with [former, present] value."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        parts = [differences(a.get(key), b.get(key), f"{where}.{key}" if where else key) for key in sorted({*a, *b})]
        return {name: pair for part in parts for name, pair in part.items()}
    return {} if a == b else {where: [a, b]}
