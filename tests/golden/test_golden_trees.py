"""Whole trees, kept as JSON with what grew them: search, seed and configuration; all play the game in game.json.

A change of any number in a tree is a change of the algorithm. Where that is meant, rewrite the trees and read the
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

from llm_mcts.config import load_config
from llm_mcts.search import SEARCHES
from llm_mcts.tree import Tree
from tests.search_cases import TableCritic, check_idle, check_root_visits, check_value_sums, check_visits, run, scripted

FOLDER = Path(__file__).parent
GAME = json.loads((FOLDER / "game.json").read_text(encoding="utf-8"))
CASES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "trees").glob("*.json"))}
WITHOUT_A_TREE = {"greedy", "self_consistency", "best_of_n"}


def searched(case: dict[str, Any]) -> dict[str, Any]:
    """Run a file's search."""

    def script(prompt: str) -> list[tuple[str, float]]:
        return [(line, p) for line, p in GAME["script"].get(prompt.partition("Answer:\n")[2], [])]

    search, cls = SEARCHES[case["search"]]
    config = load_config(cls, case["config"])
    result = run(search(GAME["question"], scripted(script)[0], TableCritic(GAME["scores"]), config, case["seed"]))
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


def regenerate(name: str, case: dict[str, Any]) -> None:
    shown = copy.deepcopy(case)
    shown["result"] = searched(case)
    rows = {key: ",\n        ".join(map(json.dumps, shown["result"]["tree"][key])) for key in ("nodes", "rollouts")}
    shown["result"]["tree"] |= {"nodes": "NODES", "rollouts": "ROLLOUTS"}
    text = json.dumps(shown, indent=2)
    text = text.replace('"NODES"', f"[\n        {rows['nodes']}\n      ]")
    text = text.replace('"ROLLOUTS"', f"[\n        {rows['rollouts']}\n      ]" if rows["rollouts"] else "[]")
    (FOLDER / "trees" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def test_every_tree_search_has_a_golden_tree() -> None:
    assert {case["search"] for case in CASES.values()} == set(SEARCHES) - WITHOUT_A_TREE


@pytest.mark.parametrize("name", CASES)
def test_a_search_grows_the_golden_tree(name: str) -> None:
    case = CASES[name]
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        regenerate(name, case)
        pytest.fail(f"{name}.json was rewritten; read the difference, then run without REGENERATE_GOLDEN")
    check_same(searched(case), case["result"])


@pytest.mark.parametrize("name", CASES)
def test_a_golden_tree_is_sound(name: str) -> None:
    case = CASES[name]
    tree = Tree.from_dict(case["result"]["tree"])
    assert tree.to_dict() == case["result"]["tree"]
    assert len(tree) >= 10
    if case["search"] in ("beam", "dvts"):  # their root is not evaluated
        assert all(node.visit_count >= 1 and node.value is not None for node in tree.nodes() if node.parent)
        return
    check_root_visits(tree, case["config"]["num_simulations"], case["config"].get("num_parallel", 8))
    check_value_sums(tree)
    if "widening" not in case["config"]:  # a simulation whose new step was known already may end at an inner node
        check_visits(tree)


CHANGES: list[dict[str, Any]] = [
    {"c_puct": 5.0},
    {"virtual_loss": 0.0},
    {"rollout_weight": 0.3},
    {"prior_temperature": 0.3},
    {"c_scale": 1.0},
    {"num_candidates": 3},
]


PAIRS = [(name, change) for name, case in CASES.items() for change in CHANGES if change.keys() & case["config"].keys()]


@pytest.mark.parametrize(("name", "change"), PAIRS)
def test_another_configuration_is_another_tree(name: str, change: dict[str, Any]) -> None:
    case = CASES[name]
    with pytest.raises(AssertionError):
        check_same(searched(case | {"config": case["config"] | change}), case["result"])


@pytest.mark.parametrize("name", CASES)
def test_another_seed_is_another_tree(name: str) -> None:
    case = CASES[name]
    with pytest.raises(AssertionError):
        check_same(searched(case | {"seed": case["seed"] + 1}), case["result"])
