"""Every self-improvement configuration runs to its end, at a tiny scale."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.config import load_config
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.tasks import get_task
from trainers.loop.self_improve import SelfImproveConfig, self_improve

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = [CONFIGS / "quickstart.yaml", *sorted((CONFIGS / "self_improve").glob("*.yaml"))]
TINY: dict[str, Any] = {
    "num_rounds": 1,
    "train_questions": 6,
    "eval_questions": 2,
    "test_questions": 2,
    "concurrency": 8,
    "methods": {"greedy": "greedy"},
    "solver.search.num_simulations": 6,
    "solver.policy.max_solution_tokens": 60,
}
OF_EACH: dict[str, dict[str, Any]] = {
    "dpo": {"task.level": "medium", "train_questions": 12, "solver.search.num_simulations": 16},  # enough for pairs
    "imagine": {"imagined_questions": 4, "agreement.min_vote": 0.1, "agreement.min_score": 0.0},
    "policy_gradient": {
        "policy_loss.policy_gradient.iterations": 2,
        "policy_loss.policy_gradient.questions_per_iteration": 4,
        "policy_loss.policy_gradient.samples_per_question": 2,
    },
    "gsm8k": {"solver.engine.model": "embedded", "solver.prompt.style": "plain"},
}
ROWS = {"distill": "actions", "joint": "actions", "dpo": "chosen"}
"""File -> the key that tells its policy's rows; of the others: steps."""


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in GSM8K's format, of questions that the built-in model can answer; the last 500 are held out."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for split, n in (("train", 506), ("test", 2)):
        problems = get_task("arith", level="easy").load(split, n)
        lines = [json.dumps({"question": p.question, "answer": p.solution}) + "\n" for p in problems]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_tiny_run_of_each_configuration(file: Path, gsm8k: Path, tmp_path: Path) -> None:
    task = {"task.path": str(gsm8k)} if file.stem == "gsm8k" else {"task.level": "easy"}
    settings = {**TINY, **task, **OF_EACH.get(file.stem, {})}
    config = load_config(SelfImproveConfig, file, settings)
    report = self_improve(config, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    first = run.round(1)
    stages = [row["stage"] for row in first.metrics()]
    wanted = ["questions", "search", "rows", *(kind for kind in ("value", "prm", "orm") if kind in config.critics)]
    assert [stage for stage in stages if stage != "imagine"] == [*wanted, "policy", "evaluate", "gate", "test"]
    assert (first.checkpoint("policy") / "model.safetensors").exists()
    rows = first.rows("policy").read()
    assert all(ROWS.get(file.stem, "steps") in row for row in rows)
    assert bool(rows) is (file.stem != "policy_gradient")
    assert {row["method"].split()[-1] for row in report["scores"]} == {"greedy"}
    assert (run.path / "report.html").read_text().startswith("<!DOCTYPE html>")
    if file.stem == "imagine":
        assert any(row["source"] == "imagined" for row in first.questions.read())
    if file.stem == "policy_gradient":  # its samples are part of what the run has cost
        spent = {(row["round"], row["stage"]): row["usage"] for row in report["costs"]}
        assert spent[1, "policy"]["generated_tokens"] > 2 * 4 * 2  # more than a token a sample
    if file.stem == "joint":
        assert (first.checkpoint("value") / "head.safetensors").exists()
