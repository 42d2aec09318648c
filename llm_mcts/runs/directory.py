"""The run directory: the only module that knows the names of its files.

    RUN/config.yaml  manifest.json  lock  report.{json,md,html}  trees/ROUND_ID.html
    RUN/round_000/eval/METHOD.jsonl  test/METHOD.jsonl  metrics.jsonl                                   the start
    RUN/round_001/imagined.jsonl  questions.jsonl  trees.jsonl.gz  rows/TRAINER.jsonl  checkpoints/NAME/  logs/TRAINER/
                  eval/METHOD.jsonl  test/METHOD.jsonl  metrics.jsonl

Whatever is written is written whole (beside, flushed, renamed, the folder flushed) or appended a record at a time to a
`.part` file; a torn last line of a `.part` file is dropped on reading. A stage is done when its final file is there, so a run
resumes after a kill wherever it was. One process at a time works on a run: it holds RUN/lock.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs.durable import make_folder, write_atomically
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.locks import RunLock, holder, owner_file
from llm_mcts.runs.provenance import FORMAT_VERSION, differences, new_session, next_manifest, now

_REMEDY = "put it back, or delete it and, in metrics.jsonl beside it, its stage's line and all after that, and --resume"


@contextlib.contextmanager
def run_files(path: Path) -> Iterator[None]:
    """Reading the files of a run that somebody may have edited: valid JSON of another form ends in one line.

    Raises:
        DataError: a file has another form than a run gave it.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a file of the run {path} has another form than it was given ({type(error).__name__}: {error}); put it back as "
            "the run wrote it"
        ) from error


class RoundDirectory:
    """The files of one round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def imagined(self) -> Journal:
        """New questions, kept and refused: {"id", "question", "kind", "parent", "kept", "reason"}."""
        return Journal(self.path / "imagined.jsonl", _REMEDY)

    @property
    def questions(self) -> Journal:
        """What is searched: {"id", "question", "gold", "source", "pass_rate"}."""
        return Journal(self.path / "questions.jsonl", _REMEDY)

    @property
    def trees(self) -> Journal:
        """The searched trees, one a question: {**Record, "tree"}; a question that failed has no tree."""
        return Journal(self.path / "trees.jsonl.gz", _REMEDY)

    def rows(self, trainer: str) -> Journal:
        """The rows of one trainer."""
        return Journal(self.path / "rows" / f"{trainer}.jsonl", _REMEDY)

    def checkpoint(self, name: str) -> Path:
        """The folder of one trained model."""
        return self.path / "checkpoints" / name

    def evaluation(self, method: str) -> Journal:
        """The records of one method on the held-out questions."""
        return Journal(self.path / "eval" / f"{method}.jsonl", _REMEDY)

    def test(self, method: str) -> Journal:
        """The records of one method on the test questions, which the final report alone asks for."""
        return Journal(self.path / "test" / f"{method}.jsonl", _REMEDY)

    def methods(self, split: Literal["eval", "test"]) -> list[str]:
        """The methods with records on a split, begun or complete, by name."""
        files = (self.path / split).glob("*.jsonl*")
        return sorted({file.name.removesuffix(".part").removesuffix(".jsonl") for file in files if file.suffix != ".tmp"})

    def logs(self, trainer: str) -> Path:
        """The folder of one trainer's TensorBoard events."""
        return self.path / "logs" / trainer

    @property
    def metrics_file(self) -> Path:
        """What the finished stages noted, a line each."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """What the finished stages noted, the last word of each, in the order in which they finished first.

        Raises:
            DataError: the file is broken.
        """
        lines = [line for line in self.metrics_file.read_bytes().split(b"\n") if line] if self.metrics_file.exists() else []
        try:
            return list({row["stage"]: row for row in map(json.loads, lines)}.values())
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.metrics_file} is broken ({error}); repair the line, or delete it to do its stage again"
            ) from error

    def metric(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage noted down, or None."""
        return next((row for row in self.metrics() if row["stage"] == stage), None)

    def note(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Mark a stage finished, with its numbers."""
        before = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        if before and not before.endswith(b"\n"):  # edited by hand
            before += b"\n"
        write_atomically(self.metrics_file, before + json.dumps({"stage": stage, **metrics}).encode() + b"\n")


class RunDirectory:
    """A run on disk. As a context manager it notes how the session ended, and gives the lock back."""

    def __init__(self, path: Path) -> None:
        """For reading: nothing is locked."""
        self.path = path
        self._lock: RunLock | None = None
        self._session = False
        self._changed: dict[str, list[Any]] = {}

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], resume: bool, free: Collection[str] = ()) -> "RunDirectory":
        """Start a run, or resume one of the same configuration; no other process can until this one is done.

        Args:
            free: dotted keys that may have another value when a run is resumed, because results do not depend on them. The
                manifest tells of it.

        Raises:
            ConfigError: the folder holds a run and `resume` is off, or its configuration differs (the keys are named), or
                another process works on it.
        """
        run = cls(Path(path))
        run._refuse_foreign_folder()
        make_folder(run.path)
        run._lock = RunLock(run.lock_file)
        try:
            if run.config_file.exists():
                run._go_on(json.loads(json.dumps(config)), resume, free)  # tuples as lists
            else:
                plain = json.loads(json.dumps(config))
                write_atomically(run.config_file, yaml.safe_dump(plain, sort_keys=False).encode())
        except BaseException:
            run._lock.release()
            raise
        return run

    @classmethod
    def existing(cls, path: str | Path) -> "RunDirectory":
        """A run that was started before, for reading.

        Raises:
            ConfigError: the folder holds none.
        """
        run = cls(Path(path))
        if not run.config_file.is_file():
            raise ConfigError(f"{run.path} is not a run (no {run.config_file.name}); expected the --out folder of a run")
        return run

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; expected a folder for the run, choose another --out")
        ours = {self.config_file.name + ".tmp", self.lock_file.name, owner_file(self.lock_file).name}
        if not self.config_file.exists() and self.path.exists() and {file.name for file in self.path.iterdir()} - ours:
            raise ConfigError(f"{self.path} is not empty and is not a run; choose another --out")

    def _go_on(self, config: Mapping[str, Any], resume: bool, free: Collection[str]) -> None:
        if not resume:
            raise ConfigError(f"{self.path} holds a run already; add --resume to continue it, or choose another --out")
        different = differences(self.config(), config)
        if changed := {key: pair for key, pair in different.items() if key not in free}:
            keys = ", ".join(f"{key} (was {was!r}, now {now!r})" for key, (was, now) in changed.items())
            raise ConfigError(f"{self.path} was started with another configuration: {keys}; use its values or another --out")
        self._changed = different
        self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        """Remove what a kill left behind: halves of files, and records of journals that were just completed."""
        for scratch in self.path.rglob("*.*.tmp"):
            if scratch.is_file():
                scratch.unlink()
        for part in self.path.rglob("*.part"):
            if part.is_file() and part.with_suffix("").exists():
                part.unlink()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        outcome = "finished" if error is None else f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
        self.close("stopped" if isinstance(error, KeyboardInterrupt) else outcome)

    def close(self, outcome: str = "finished") -> None:
        """Note how this session ended and give the lock back."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # a full disk: the lock alone then shows that no process is at work
            self._end_session(outcome)
        self._lock.release()
        self._lock = None

    def _end_session(self, outcome: str) -> None:
        if self._session and (manifest := self.manifest()) and manifest.get("sessions"):
            manifest["sessions"][-1] |= {"ended": now(), "outcome": outcome}
            self._write_manifest(manifest)

    @property
    def config_file(self) -> Path:
        """The configuration the run was started with."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """What the run was made with."""
        return self.path / "manifest.json"

    @property
    def report_file(self) -> Path:
        """The summary for machines, written last."""
        return self.path / "report.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the process at work."""
        return self.path / "lock"

    @property
    def holder(self) -> dict[str, Any] | None:
        """The process at work, {"pid", "host", "started"}, or None."""
        return holder(self.lock_file)

    def config(self) -> Any:
        """The configuration the run was started with.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.config_file} is broken ({' '.join(str(error).split())}); restore it or begin another run"
            ) from error

    def manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote; None before that.

        Raises:
            DataError: the file cannot be read, or another release wrote it.
        """
        if not self.manifest_file.exists():
            return None
        try:
            found = json.loads(self.manifest_file.read_bytes())
        except ValueError as error:
            raise DataError(f"{self.manifest_file} is broken ({error}); restore it, or delete it to begin a new one") from error
        if not isinstance(found, dict):
            raise DataError(f"{self.manifest_file} holds a {type(found).__name__}; restore it, or delete it to begin a new one")
        if found.get("version") != FORMAT_VERSION:
            raise DataError(
                f"{self.manifest_file} has format version {found.get('version')}; expected {FORMAT_VERSION}: "
                "use the release of llm-mcts that began the run, or begin another"
            )
        return found

    def round(self, number: int) -> RoundDirectory:
        """Round 0 is the start; rounds 1, 2, … train."""
        return RoundDirectory(self.path / f"round_{number:03d}")

    def rounds(self) -> list[RoundDirectory]:
        """The rounds that have begun, the start first."""
        found = sorted(path for path in self.path.glob("round_*") if re.fullmatch(r"round_\d{3,}", path.name) and path.is_dir())
        return [RoundDirectory(path) for path in found]

    def tree_page(self, number: int, id_: str) -> Path:
        """The page of a round's tree; characters of the question's id that a file name should not have are replaced."""
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", id_)[:80]
        mark = "" if safe == id_ else f"_{hashlib.sha256(id_.encode(errors='replace')).hexdigest()[:8]}"
        return self.path / "trees" / f"{self.round(number).path.name}_{safe}{mark}.html"

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Begin a session: what the run is made from, and this process's code, packages and time, appended to those before.

        Args:
            facts: such as {"seed", "data": {SPLIT: `hash_problems`}, "parents": {NAME: `hash_model`}}.

        Raises:
            ConfigError: the run began with other data or parents.
        """
        config = hashlib.sha256(self.config_file.read_bytes()).hexdigest()
        self._write_manifest(next_manifest(self.manifest(), {"config": config, **facts}, new_session(self._changed)))
        self._session = True

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.manifest_file, json.dumps(manifest, indent=2).encode() + b"\n")

    def write_page(self, file: Path, page: str) -> None:
        """A page beside the report."""
        write_atomically(file, page.encode())

    def write_report(self, report: Mapping[str, Any], markdown: str, html: str | None = None) -> None:
        """The run's summary for people, then for machines."""
        write_atomically(self.path / "report.md", markdown.encode())
        if html is not None:
            write_atomically(self.path / "report.html", html.encode())
        write_atomically(self.report_file, json.dumps(report, indent=2).encode() + b"\n")
