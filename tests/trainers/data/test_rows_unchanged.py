"""Every kind of row of the golden trees, under several settings, as a hash: a change of any row is a change of what is learnt.

Where that is meant, the assertion's message has the new hash. Numbers are rounded to 9 decimals, because exp and log
differ in their last bit between machines.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.config import load_config
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tree import Tree
from llm_mcts.types import Problem
from trainers.data.config import RowsConfig
from trainers.data.critic_rows import critic_rows
from trainers.data.evidence import Evidence
from trainers.data.objectives import CriticLossConfig
from trainers.data.rows import row_to_dict
from trainers.loop.replay import trajectories
from trainers.policy.registry import policy_rows

FOLDER = Path(__file__).parents[2] / "golden"
METHODS = ("sft", "weighted", "distill", "dpo", "joint")
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "few": ({"sft_per_question": 1, "critic_per_question": 3, "pairs_per_question": 2, "targets": {"per_question": 1}}, {}),
    "selected": (
        {
            "min_score": 0.5,
            "negatives": "twins",
            "selection": {"dedupe": "equations", "length_ratio": 2.0, "prefer_short": True, "balance": "pass_rate"},
            "weighted": {"score": "critic", "wrong": True},
            "targets": {"target": "gumbel", "c_scale": 1.0},
            "preferences": {"by": "q"},
        },
        {"value": {"target": "tree_q"}, "prm": {"target": "pairwise"}, "orm": {"target": "pairwise"}},
    ),
    "outcomes": (
        {
            "weighted": {"wrong": True},
            "targets": {"target": "outcome", "outcomes_per_question": 9},
            "preferences": {"min_gap": 0.3},
        },
        {"value": {"target": "td_lambda"}, "prm": {"target": "hard"}},
    ),
}
HASHES = {
    "defaults": "4cf2f4d3b103b511",
    "few": "f41733ac5060fb0d",
    "selected": "186c6fc0d613d2bd",
    "outcomes": "ba9e4ad512a2d30f",
}


class Game(AnswerTask):
    name = "game"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return []


def trees() -> list[Tree]:
    files = sorted((FOLDER / "trees").glob("*.json"))
    return [Tree.from_dict(json.loads(file.read_text(encoding="utf-8"))["result"]["tree"]) for file in files]


def all_rows(rows: dict[str, Any], losses: dict[str, Any]) -> list[Any]:
    """The rows of all trees by trainer, and what was refused, by reason."""
    config, loss_config = load_config(RowsConfig, rows), load_config(CriticLossConfig, losses)
    found: list[Any] = []
    for i, tree in enumerate(trees()):
        evidence = Evidence.of(tree, Problem(f"p{i}", tree.question, "17"), Game())
        for method in METHODS:
            made, refused = policy_rows(method, evidence, config)
            found.append([method, [row_to_dict(row) for row in made], sorted(refused.items())])
        for kind, of_kind in critic_rows(evidence, config, loss_config).items():
            found.append([kind, [row_to_dict(row) for row in of_kind]])
        found.append(["trajectories", [one.to_dict() for one in trajectories(evidence, 1, "policy", "train")]])
    return found


def plain(value: Any) -> Any:
    """Rounded, and without the rows' format version."""
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key != "version"}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_what_they_were(name: str) -> None:
    found = plain(all_rows(*SETTINGS[name]))
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == HASHES[name]
