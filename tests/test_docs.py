"""What the documents name exists: files, presets and commands."""

import re
from pathlib import Path

import pytest

from llm_mcts.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/internals.md", "docs/algorithms.md"]
PATH = re.compile(r"(?<![\w./])((?:llm_mcts|critics|trainers|tests|scripts|configs|docs)/[\w./*-]*[\w*/])")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document: str) -> None:
    named = set(PATH.findall((ROOT / document).read_text()))
    assert named
    assert sorted(path for path in named if not list(ROOT.glob(path.rstrip("/")))) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_named_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    assert {name for name in re.findall(r"llm-mcts ([a-z][a-z-]*)\b", text)} <= {*COMMANDS}


def test_architecture_fits_two_screens() -> None:
    assert len((ROOT / "docs/architecture.md").read_text().splitlines()) <= 100
