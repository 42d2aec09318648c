"""JSON-lines files that grow a record at a time, and are there under their own name only when they are complete."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.runs.durable import make_folder, sync_folder, write_atomically


class Journal:
    """A JSON-lines file that grows a record at a time in `PATH.part` and is renamed to PATH when complete."""

    def __init__(self, path: Path, remedy: str = "delete it to rebuild it") -> None:
        """`remedy`: what to do where the file is broken or gone."""
        self.path, self._remedy = path, remedy
        self._part = path.with_name(path.name + ".part")

    @property
    def complete(self) -> bool:
        """Whether `finish` was called."""
        return self.path.exists()

    @property
    def begun(self) -> bool:
        """Whether there is any record, or none and the file complete."""
        return self.complete or self._part.exists()

    def count(self) -> int:
        """How many whole records there are so far."""
        return len(self._lines())

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far, complete or not."""
        return list(self._parsed(self._lines()))

    def whole(self) -> list[dict[str, Any]]:
        """All records of a file that is complete.

        Raises:
            DataError: it is not there, or broken.
        """
        if not self.complete:
            raise DataError(f"{self.path} is gone, and its stage was finished; {self._remedy}")
        return self.read()

    def heads(self) -> list[dict[str, Any]]:
        """All whole records so far without their trees, which come last and are nearly all there is to read."""
        parts = (line.partition(b', "tree": {') for line in self._lines())
        return list(self._parsed(head + b"}" if cut else head for head, cut, _ in parts))

    def _lines(self) -> list[bytes]:
        """The whole lines so far; JSON has no newline inside them."""
        file = self.path if self.complete else self._part
        if not file.exists():
            return []
        try:
            raw = file.read_bytes()
            *lines, rest = (gzip.decompress(raw) if file.suffix == ".gz" else raw).split(b"\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file} is broken ({error}); {self._remedy}") from error
        if rest and self.complete:  # a file that is under way may end in half a record
            raise DataError(f"{file}:{len(lines) + 1}: half a record; {self._remedy}")
        return lines

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                file = self.path if self.complete else self._part
                remedy = self._remedy if self.complete else "delete the line to rebuild it"
                raise DataError(f"{file}:{number}: broken record ({error}); {remedy}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record and flush it to disk.

        Raises:
            DataError: the file is complete.
        """
        if self.complete:
            raise DataError(f"{self.path} is complete; expected no further record")
        if new := not self._part.exists():
            make_folder(self._part.parent)
        else:
            self._drop_torn_line()
        with self._part.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self._part.parent)

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
