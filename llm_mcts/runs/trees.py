"""Saved trees: one file a tree, whatever searched it."""

import gzip
import json
import zlib
from dataclasses import asdict
from pathlib import Path

from llm_mcts.errors import DataError
from llm_mcts.runs.durable import write_atomically
from llm_mcts.tree import Tree
from llm_mcts.types import Usage


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
