"""A round that learnt from wrong solutions, through the whole loop: the gate rejects it, and what stood goes on standing."""

from pathlib import Path
from typing import Any

import pytest

from llm_mcts.config import load_config
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.tasks import ArithTask
from llm_mcts.types import Problem
from trainers.loop.self_improve import SelfImproveConfig, self_improve

SETTINGS: dict[str, Any] = {
    "task": {"name": "arith", "level": "easy"},
    "num_rounds": 1,
    "train_questions": 16,
    "eval_questions": 24,
    "concurrency": 8,
    "solver": {
        "policy": {"temperature": 1.5, "max_step_tokens": 48, "max_solution_tokens": 120},
        "search": {"name": "mcts", "num_simulations": 8, "expansion_width": 4},
    },
    "methods": {"greedy": "greedy"},
    "critics": [],
    "policy": {"learning_rate": 3e-3, "epochs": 3, "batch_size": 4},  # hard enough to learn what is wrong
}
POISON = ".00"
"""Behind a training answer: the same number in another spelling, by which the checker knows it."""


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training answers that are judged the wrong way round; held-out ones are judged as ever."""
    true_load, true_check = ArithTask.load, ArithTask.check

    def load(self: ArithTask, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        problems = true_load(self, split, limit, seed)
        if split != "train":
            return problems
        return [Problem(p.id, p.question, f"{p.gold}{POISON}", p.solution) for p in problems]

    def check(self: ArithTask, solution_text: str, gold: str) -> bool:
        right = true_check(self, solution_text, gold)
        return not right if gold.endswith(POISON) else right

    monkeypatch.setattr(ArithTask, "load", load)
    monkeypatch.setattr(ArithTask, "check", check)


def test_a_poisoned_round_is_rejected_and_nothing_of_it_stands(poisoned: None, tmp_path: Path) -> None:
    report = self_improve(load_config(SelfImproveConfig, SETTINGS), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    before, after = (sum(record["correct"] for record in run.round(number).evaluation("greedy").read()) for number in (0, 1))
    assert after < before - 4
    verdict = run.round(1).metric("gate")
    assert verdict is not None
    assert verdict["accepted"] is False
    assert report["solver"]["engine"]["model"] == "embedded"
