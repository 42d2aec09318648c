"""Two processes with batch B take the steps of one with batch 2 B, and so do two forwards of B; for every trainer.

The processes are real, started by `accelerate launch` with the configuration that is shipped. The rows differ in length, so
the mean of two processes' means is not the mean; and they fill no last batch, so that one process runs out of rows.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm_mcts.cli import main
from trainers.data.rows import PairRow, SolutionRow, StepRow, TargetRow, row_to_dict

ROOT = Path(__file__).parents[3]
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
ROWS = [
    SolutionRow(
        f"p{i}", f"{i} apples?", (*(f"{word} + {i} = {i}" for word in WORDS[: 1 + i * 5 % 7]), f"#### {i}"), float(i % 3 > 0)
    )
    for i in range(11)
]
"""Of 2 to 8 steps; 11 rows in steps of 4: the second process has one row in the last."""
RIGHT = [replace(row, label=1.0) for row in ROWS]
STEPS = [StepRow(r.problem, r.question, r.steps, tuple(j / len(r.steps) for j in range(len(r.steps)))) for r in ROWS]
PAIRS = [PairRow(r.problem, r.question, r.steps, (*r.steps[:-1], "#### no")) for r in ROWS]
WEIGHTED = [replace(row, weight=0.5 + i) for i, row in enumerate(RIGHT)]
TARGETS = [
    TargetRow(r.problem, r.question, r.steps[:-1], (r.steps[-1], *WORDS[: 1 + i % 3]), targets, None if i % 4 == 3 else r.label)
    for i, r in enumerate(ROWS)
    for targets in [tuple((2.0 if j == 0 else 1.0) / (3 + i % 3) for j in range(2 + i % 3))]
]
"""Of 2 to 4 actions, so that prefixes differ in their sequences; of some the outcome is not known."""
JOINT = [replace(row, actions=(), targets=(), outcome=0.0) if i in (1, 2, 5, 10) else row for i, row in enumerate(TARGETS)]
"""With some that tell the outcome alone, the only one of the second process's last step among them."""
PG = {"iterations": 2, "questions_per_iteration": 4, "samples_per_question": 2}
CASES: dict[str, tuple[str, Sequence[Any], list[str]]] = {
    "sft": ("sft", RIGHT, []),
    "sft_lora": ("sft", RIGHT, ["--train.lora.rank", "4"]),
    "sft_9_rows": ("sft", RIGHT[:9], []),  # the second process has no row at all in the last step
    "value": ("value", ROWS, []),
    "value_and_language": ("value", ROWS, ["--critic_loss.value.lm_weight", "0.5"]),
    "prm": ("prm", STEPS, []),
    "orm": ("orm", ROWS, []),
    "orm_pairs": ("orm", PAIRS, ["--critic_loss.orm.target", "pairwise"]),
    "weighted": ("weighted", WEIGHTED, []),
    "distill": ("distill", TARGETS, []),
    "siblings": ("distill", TARGETS, ["--distill.over", "siblings"]),
    "dpo": ("dpo", PAIRS, ["--dpo.nll_weight", "0.5"]),
    "joint": ("joint", JOINT, []),
    "genrm": ("genrm", ROWS[:6], []),  # 6 verdicts and the 4 right solutions among them
}


def arguments(name: str, folder: Path, model: Path, batch: int, accumulation: int = 1) -> list[str]:
    kind, rows, settings = CASES[name]
    file = folder / f"{name}.jsonl"
    folder.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row_to_dict(row)) + "\n" for row in rows))
    common = {
        "--out": folder / name,
        "--start": model,
        "--train.learning_rate": 1e-4,
        "--train.batch_size": batch,
        "--train.accumulation": accumulation,
        "--train.log_every": 1,
    }
    if kind in ("value", "prm", "orm", "joint"):
        common["--head.width"] = 8
    return ["train", kind, str(file), *settings, *(str(word) for pair in common.items() for word in pair), "--json"]


def launch(config: str, jobs: list[list[str]], folder: Path, *more: str, **more_environment: str) -> list[dict[str, float]]:
    """Run trainings on the processes of an accelerate configuration; return what they printed."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "configs" / "accelerate" / config),
    ]
    command += ["--main_process_port", "0", *more, str(Path(__file__).parent / "launched.py"), str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more_environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def step_losses(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "logs" / name))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.relative_to(folder)}:{k}": v for file in folder.rglob("*.safetensors") for k, v in load_file(file).items()}


def check_same(one: Path, other: Path, name: str, tolerance: float = 1e-5) -> None:
    """Losses of all steps and the trained weights agree: float32 sums in another order differ by less than 1e-5."""
    losses = step_losses(one, name)
    assert len(losses) == 3
    assert step_losses(other, name) == pytest.approx(losses, rel=tolerance)
    before, after = weights(one / name), weights(other / name)
    assert before.keys() == after.keys() and before
    for key, tensor in before.items():
        assert torch.allclose(tensor, after[key], rtol=0, atol=tolerance), (key, float((tensor - after[key]).abs().max()))


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every trainer's result with 4 rows a forward, on one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in CASES:
        assert main(arguments(name, folder, tiny_model, batch=4)) == 0
    return folder


@pytest.fixture(scope="module")
def launched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """Every trainer's result with 2 rows a forward, on two processes; and what was printed."""
    folder = tmp_path_factory.mktemp("launched")
    return folder, launch("cpu_2.yaml", [arguments(name, folder, tiny_model, batch=2) for name in CASES], folder)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(name: str, alone: Path, launched: tuple[Path, Any]) -> None:
    check_same(alone, launched[0], name)


def test_the_first_process_alone_prints_and_writes(launched: tuple[Path, list[dict[str, float]]]) -> None:
    folder, printed = launched
    assert len(printed) == len(CASES)
    for name, metrics in zip(CASES, printed, strict=True):
        # 11 or 9 rows in steps of 4; the loss that is returned is that of the last tenth of the steps, the third.
        assert metrics["steps"] == 3
        assert metrics["loss"] == pytest.approx(step_losses(folder, name)[-1], rel=1e-6)
        assert len(list((folder / "logs" / name).iterdir())) == 1
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("name", CASES)
def test_two_forwards_take_the_step_of_one(name: str, alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert main(arguments(name, tmp_path, tiny_model, batch=2, accumulation=2)) == 0
    check_same(alone, tmp_path, name)


def test_sharded_over_two_processes_the_steps_and_the_checkpoint_are_the_same(
    alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    names = ["sft", "sft_lora", "value_and_language"]
    jobs = [arguments(name, tmp_path, tiny_model, batch=2) for name in names]
    # bfloat16 would round what is compared
    launch("fsdp.yaml", jobs, tmp_path, "--num_processes", "2", "--mixed_precision", "no", FSDP_ON_CPU="1")
    for name in names:
        check_same(alone, tmp_path, name)


def rounds(name: str, out: Path, batch: int, **more: Any) -> list[str]:
    """Two small self-improvement rounds; `batch`: rows a process."""
    settings = {
        "task.level": "easy",
        "num_rounds": 2,
        "train_questions": 6,
        "eval_questions": 4,
        "test_questions": 2,
        "solver.search.num_simulations": 6,
        "solver.policy.max_solution_tokens": 60,
        **{f"{trained}.batch_size": batch for trained in ("policy", "value", "prm", "orm")},
        **more,
    }
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    return [
        "self-improve",
        "--config",
        str(ROOT / "configs" / "self_improve" / f"{name}.yaml"),
        "--out",
        str(out),
        *words,
        "--json",
    ]


def test_a_whole_run_on_two_processes_searches_on_the_first_and_learns_what_one_learns(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(rounds("sft", one, batch=8)) == 0
    printed = launch("cpu_2.yaml", [rounds("sft", two, batch=4)], tmp_path)
    (report,) = printed
    assert report["state"] == "Finished: round 1 accepted, round 2 accepted."
    for file in ("questions.jsonl", "rows/policy.jsonl", "rows/orm.jsonl"):
        assert (one / "round_001" / file).read_text() == (two / "round_001" / file).read_text(), file
    before, after = weights(one / "round_001" / "checkpoints"), weights(two / "round_001" / "checkpoints")
    assert {key.split("/")[0] for key in before} == {"policy", "value", "prm", "orm"} and before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.allclose(tensor, after[key], rtol=0, atol=1e-5), (key, float((tensor - after[key]).abs().max()))
    stages = [[json.loads(line)["stage"] for line in (run / "round_002" / "metrics.jsonl").open()] for run in (one, two)]
    assert stages[0] == stages[1] and {"policy", "gate", "test"} <= set(stages[0])
    manifest = json.loads((two / "manifest.json").read_text())
    assert [session["outcome"] for session in manifest["sessions"]] == ["finished"]


def test_on_policy_samples_are_shared_out_and_a_run_of_two_processes_goes_on(tmp_path: Path) -> None:
    settings = {f"policy_loss.policy_gradient.{k}": v for k, v in PG.items()}
    job = rounds("policy_gradient", tmp_path / "run", batch=4, **settings)
    launch("cpu_2.yaml", [job], tmp_path)
    found = [json.loads(line) for line in (tmp_path / "run" / "round_001" / "metrics.jsonl").read_text().splitlines()]
    (policy,) = [row for row in found if row["stage"] == "policy"]
    assert policy["rows"] + policy["left_out"] == PG["iterations"] * PG["questions_per_iteration"] * PG["samples_per_question"]
    lines = (tmp_path / "run" / "round_002" / "metrics.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    # killed after the value model of round 2
    (tmp_path / "run" / "round_002" / "metrics.jsonl").write_text("\n".join(lines[: stages.index("value") + 1]) + "\n")
    before = weights(tmp_path / "run" / "round_002" / "checkpoints")
    (printed,) = launch("cpu_2.yaml", [[*job, "--resume"]], tmp_path)
    assert printed["state"].startswith("Finished")
    after = weights(tmp_path / "run" / "round_002" / "checkpoints")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    # One process with all of an iteration's samples in its step learns the same: the loss is a mean over all tokens.
    assert main(rounds("policy_gradient", tmp_path / "alone", batch=8, **{**settings, "num_rounds": 1})) == 0
    one, two = (weights(tmp_path / run / "round_001" / "checkpoints" / "policy") for run in ("alone", "run"))
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], rtol=0, atol=1e-5), (key, float((tensor - two[key]).abs().max()))
