"""Files: the run directory and saved trees. The only module that knows their names and formats.

    RUN/config.yaml  manifest.json
    RUN/round_000/trees.jsonl.gz  rows/TRAINER.jsonl  checkpoints/NAME/  eval/METHOD.jsonl  metrics.jsonl
                  imagined.jsonl  questions.jsonl  test/METHOD.jsonl
    RUN/report.json  report.md  report.html  trees/ROUND_ID.html

Whatever is written is written whole (beside, flushed, renamed) or appended a record at a time to a `.part` file; a torn
last line of a `.part` file is dropped on reading. A stage is done when its final file is there, so a run goes on after a
kill wherever it was.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.tree import Tree
from llm_mcts.types import Usage


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a neighbour, flushed to disk, renamed."""
    make_folder(path.parent)
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ConfigError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make folder {path}: {error.strerror}; choose another place to write to") from error


def save_tree(tree: Tree, path: Path) -> None:
    """Write a tree and what it has cost so far as JSON, compressed where the name ends in .gz."""
    data = json.dumps({"tree": tree.to_dict(), "usage": asdict(tree.usage)}, ensure_ascii=False).encode()
    write_atomically(path, gzip.compress(data, compresslevel=5, mtime=0) if path.suffix == ".gz" else data)


def load_tree(path: Path) -> Tree:
    """Read what `save_tree` wrote.

    Raises:
        DataError: the file cannot be read, or holds no tree.
    """
    try:
        raw = path.read_bytes()
        data = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        tree = Tree.from_dict(data["tree"])
        tree.usage = Usage(**data["usage"])
    except OSError as error:
        raise DataError(f"cannot read tree {path}: {error.strerror or error}; expected a file that a search saved") from error
    except (DataError, EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise DataError(f"{path} holds no whole tree ({error}); expected a file that a search saved") from error
    return tree


class Journal:
    """A JSON-lines file that grows a record at a time in `PATH.part` and is renamed to PATH when complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")

    @property
    def complete(self) -> bool:
        """Whether `finish` was called."""
        return self.path.exists()

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far, complete or not."""
        if self.complete:
            raw = self.path.read_bytes()
            text = gzip.decompress(raw) if self.path.suffix == ".gz" else raw
            return [json.loads(line) for line in text.splitlines()]
        return list(self._partial()) if self._part.exists() else []

    def _partial(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._part.read_bytes().split(b"\n")[:-1], 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{self._part}:{number}: broken record ({error}); delete the line to make it anew") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record and flush it to disk.

        Raises:
            DataError: the file is complete.
        """
        if self.complete:
            raise DataError(f"{self.path} is complete; expected no further record")
        if not self._part.exists():
            self._part.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._drop_torn_line()
        with self._part.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_torn_line(self) -> None:
        with self._part.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def finish(self, order: list[str] | None = None) -> None:
        """Complete the file; `order` sorts the records by their "id", so that it does not tell who came first."""
        records = self.read()
        if order is not None:
            place = {id_: i for i, id_ in enumerate(order)}
            records.sort(key=lambda r: place[r["id"]])
        self.write(records)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the complete file at once."""
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        write_atomically(self.path, gzip.compress(data, mtime=0) if self.path.suffix == ".gz" else data)
        self._part.unlink(missing_ok=True)


class RoundDirectory:
    """The files of one round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def trees(self) -> Journal:
        """The searched trees, one a training question: {"id", "tree", "record"}."""
        return Journal(self.path / "trees.jsonl.gz")

    def rows(self, trainer: str) -> Journal:
        """The rows of one trainer."""
        return Journal(self.path / "rows" / f"{trainer}.jsonl")

    def checkpoint(self, name: str) -> Path:
        """The folder of one trained model."""
        return self.path / "checkpoints" / name

    def evaluation(self, method: str) -> Journal:
        """The records of one method on the held-out questions."""
        return Journal(self.path / "eval" / f"{method}.jsonl")

    def test(self, method: str) -> Journal:
        """The records of one method on the test questions."""
        return Journal(self.path / "test" / f"{method}.jsonl")

    def methods(self, split: Literal["eval", "test"]) -> list[str]:
        """The methods with records on a split, begun or complete, by name."""
        files = (self.path / split).glob("*.jsonl*")
        return sorted({file.name.removesuffix(".part").removesuffix(".jsonl") for file in files if file.suffix != ".tmp"})

    @property
    def questions(self) -> Journal:
        """What is searched, or in round 0 what is evaluated: {"id", "question", "gold", "source", "pass_rate"}."""
        return Journal(self.path / "questions.jsonl")

    @property
    def imagined(self) -> Journal:
        """Questions made of others, a record a candidate: {"id", "question", "kind", "parent", "kept", "reason"}."""
        return Journal(self.path / "imagined.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """What the finished stages noted down, in order."""
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def metric(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage noted down, or None."""
        found = [row for row in self.metrics() if row["stage"] == stage]
        return found[-1] if found else None

    def note(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Mark a stage finished, with its numbers."""
        file = self.path / "metrics.jsonl"
        before = file.read_bytes() if file.exists() else b""
        write_atomically(file, before + json.dumps({"stage": stage, **metrics}).encode() + b"\n")


class RunDirectory:
    """A self-improvement run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], resume: bool) -> "RunDirectory":
        """Start a run, or go on with one of the same configuration.

        Raises:
            ConfigError: the folder holds a run and `resume` is off, or its configuration differs; the keys are named.
        """
        run = cls(Path(path))
        if run.config_file.exists():
            if not resume:
                raise ConfigError(f"{run.path} holds a run already; add --resume to go on with it, or choose another --out")
            try:
                before = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{run.config_file} is broken ({' '.join(str(error).split())}); restore it or start anew"
                ) from error
            if changed := _differences(before, json.loads(json.dumps(config))):
                keys = ", ".join(changed)
                raise ConfigError(f"{run.path} was started with another configuration: {keys}; use its values or another --out")
            return run
        if run.path.exists() and not run.path.is_dir():
            raise ConfigError(f"{run.path} is a file; expected a folder for the run, choose another --out")
        if run.path.exists() and any(file.name != "config.yaml.tmp" for file in run.path.iterdir()):
            raise ConfigError(f"{run.path} is not empty and holds no run; choose another --out")
        plain = json.loads(json.dumps(config))  # tuples as lists
        write_atomically(run.config_file, yaml.safe_dump(plain, sort_keys=False).encode())
        return run

    @property
    def config_file(self) -> Path:
        """The configuration the run was started with."""
        return self.path / "config.yaml"

    def round(self, number: int) -> RoundDirectory:
        """Round 0 is the start; rounds 1, 2, … train."""
        return RoundDirectory(self.path / f"round_{number:03d}")

    @classmethod
    def existing(cls, path: str | Path) -> "RunDirectory":
        """A run that was started before.

        Raises:
            ConfigError: the folder holds none.
        """
        run = cls(Path(path))
        if not run.config_file.is_file():
            raise ConfigError(f"{run.path} holds no run (no {run.config_file.name}); expected the --out folder of a run")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was started with, as plain data; empty where it was not kept."""
        if not self.config_file.exists():
            return {}
        try:
            return dict(yaml.safe_load(self.config_file.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
            raise DataError(f"{self.config_file} is broken ({' '.join(str(error).split())}); restore it") from error

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run was made with; empty where it was not kept."""
        file = self.path / "manifest.json"
        return dict(json.loads(file.read_bytes())) if file.exists() else {}

    def rounds(self) -> list[int]:
        """The numbers of the rounds on disk, in order."""
        names = (re.fullmatch(r"round_(\d{3,})", folder.name) for folder in self.path.glob("round_*"))
        return sorted(int(name[1]) for name in names if name)

    def tree_page(self, number: int, id_: str) -> Path:
        """The page of a round's tree; characters of the question's id that a file name should not have are replaced."""
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", id_)[:80]
        mark = "" if safe == id_ else f"_{sha256(id_.encode(errors='replace')).hexdigest()[:8]}"
        return self.path / "trees" / f"{self.round(number).path.name}_{safe}{mark}.html"

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """What the run was made with: versions, seeds, hashes."""
        write_atomically(self.path / "manifest.json", json.dumps(facts, indent=2).encode() + b"\n")

    def write_page(self, file: Path, page: str) -> None:
        """A page beside the report."""
        write_atomically(file, page.encode())

    def write_report(self, report: Mapping[str, Any], markdown: str, page: str | None = None) -> None:
        """The run's summary for machines and people."""
        write_atomically(self.path / "report.json", json.dumps(report, indent=2).encode() + b"\n")
        write_atomically(self.path / "report.md", markdown.encode())
        if page is not None:
            write_atomically(self.path / "report.html", page.encode())


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted names of what differs between two configurations."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [d for k in sorted({*a, *b}) for d in _differences(a.get(k), b.get(k), f"{where}.{k}" if where else k)]
    return [] if a == b else [f"{where} (was {a!r}, now {b!r})"]


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in ("llm-mcts", "torch", "transformers", "accelerate", "peft", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
