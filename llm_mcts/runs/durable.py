"""Files that a kill or a power failure leaves whole: flushed to disk before they get their names, and the names flushed too."""

import errno
import os
import shutil
from pathlib import Path

from llm_mcts.errors import ConfigError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a neighbour, flushed to disk, renamed, and the folder flushed."""
    make_folder(path.parent)
    scratch = path.with_name(path.name + ".tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:  # on a full disk the half of a file is in the way
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, to stay.

    Raises:
        ConfigError: that is not possible.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:
            sync_folder(folder.parent)
    except OSError as error:
        raise ConfigError(f"cannot make folder {path}: {error.strerror}; choose another place to write to") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, without which a power failure can undo a rename."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that flushes names by itself
            raise
    finally:
        os.close(descriptor)


def place_folder(scratch: Path, folder: Path) -> None:
    """Put a finished folder in its place, for good: everything in it flushed to disk, then renamed."""
    for path in sorted(scratch.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    sync_folder(folder.parent)
