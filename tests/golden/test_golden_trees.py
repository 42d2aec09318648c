"""Whole trees, kept as JSON beside what made them: question, seed, configuration, script and scores.

A change of any number in a tree is a change of the algorithm. Where that is meant, write the trees anew and read the
difference before committing it:

    REGENERATE_GOLDEN=1 python -m pytest tests/golden

That run rewrites the files' `result` and fails; a run without the variable only reads.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from search_cases import TableCritic, check_idle, check_root_visits, check_value_sums, check_visits, run, scripted

from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree

FILES = sorted(Path(__file__).parent.glob("*.json"))


def searched(case: dict[str, Any]) -> dict[str, Any]:
    """Run a file's search."""

    def script(prompt: str) -> list[tuple[str, float]]:
        return [(line, p) for line, p in case["script"].get(prompt.partition("Answer:\n")[2], [])]

    critic = TableCritic(case["scores"])
    result = run(mcts(case["question"], scripted(script)[0], critic, MCTSConfig(**case["config"]), case["seed"]))
    assert result.tree is not None
    check_idle(result.tree)
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "steps": result.steps,
        "tree": result.tree.to_dict(),
    }


def check_same(found: Any, kept: Any, where: str = "") -> None:
    """Equal throughout; floating-point numbers to 1e-9, for exp and log differ in their last bit between machines."""
    assert type(found) is type(kept), f"{where}: {found!r}, kept {kept!r}"
    if isinstance(kept, dict):
        assert found.keys() == kept.keys(), where
        for key in kept:
            check_same(found[key], kept[key], f"{where}.{key}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), f"{where}: {len(found)} entries, kept {len(kept)}"
        for i, (a, b) in enumerate(zip(found, kept, strict=True)):
            check_same(a, b, f"{where}[{i}]")
    elif isinstance(kept, float):
        assert abs(found - kept) < 1e-9, f"{where}: {found}, kept {kept}"
    else:
        assert found == kept, f"{where}: {found!r}, kept {kept!r}"


def regenerate(path: Path, case: dict[str, Any]) -> None:
    case["result"] = searched(case)
    nodes = ",\n        ".join(json.dumps(node) for node in case["result"]["tree"]["nodes"])
    rollouts = ",\n        ".join(json.dumps(rollout) for rollout in case["result"]["tree"]["rollouts"])
    shown = copy.deepcopy(case)
    shown["result"]["tree"] |= {"nodes": "NODES", "rollouts": "ROLLOUTS"}
    script = ",\n    ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in case["script"].items())
    shown["script"] = "SCRIPT"
    text = json.dumps(shown, indent=2)
    text = text.replace('"SCRIPT"', f"{{\n    {script}\n  }}")
    text = text.replace('"NODES"', f"[\n        {nodes}\n      ]").replace('"ROLLOUTS"', f"[\n        {rollouts}\n      ]")
    path.write_text(text + "\n", encoding="utf-8")


def test_there_are_golden_trees() -> None:
    assert [path.stem for path in FILES] == ["puct", "uct"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_search_grows_the_golden_tree(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        regenerate(path, case)
        pytest.fail(f"{path.name} was written anew; read the difference, then run without REGENERATE_GOLDEN")
    check_same(searched(case), case["result"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_tree_is_sound(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    assert case["config"]["selection"] == path.stem
    tree = Tree.from_dict(case["result"]["tree"])
    assert tree.to_dict() == case["result"]["tree"]
    assert len(tree) >= 15
    assert tree.rollouts
    check_root_visits(tree, case["config"]["num_simulations"])
    check_visits(tree)
    check_value_sums(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "change", [{"c_puct": 5.0}, {"virtual_loss": 0.0}, {"rollout_weight": 0.3}, {"prior_temperature": 0.3}, "seed"]
)
def test_another_configuration_is_another_tree(path: Path, change: Any) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    if change == "seed":
        case["seed"] += 1
    else:
        case["config"] |= change
    with pytest.raises(AssertionError):
        check_same(searched(case), case["result"])
