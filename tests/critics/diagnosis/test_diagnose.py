"""`llm-mcts diagnose` from critics' folders to a verdict, through the command line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from critics.diagnosis.command import judge
from critics.metrics import Sample
from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from llm_mcts.cli import main
from llm_mcts.runs.journal import Journal
from llm_mcts.tasks.arith import ArithTask

SMALL = [
    "--task.name",
    "arith",
    "--num_questions",
    "20",
    "--num_samples",
    "4",
    "--solver.policy.max_step_tokens",
    "48",
    "--solver.policy.max_solution_tokens",
    "120",
]


@pytest.fixture(scope="module")
def critics(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("critics")
    for kind in ("orm", "prm"):
        CriticModel.create(kind, str(tiny_model), HeadConfig(width=8), seed=3).save_pretrained(folder / kind)  # type: ignore[arg-type]
    return {kind: folder / kind for kind in ("orm", "prm")}


def same(a: Any, b: Any) -> None:
    """Two reports are the same up to the last bits of the likelihood, which depend on what the engine's cache held."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == (pytest.approx(b, abs=1e-6) if isinstance(b, float) else b)


def test_a_perfect_critic_and_a_blind_one() -> None:
    rows = [(True, "1"), (False, "2"), (False, "2"), (True, "1")]
    prefixes = [[[0.5, 0.5, 0.5]] * 4] * 20
    perfect = judge("orm", [[Sample(float(r), r, a) for r, a in rows]] * 20, prefixes)
    blind = judge("orm", [[Sample(0.5, r, a) for r, a in rows]] * 20, prefixes)
    backward = judge("orm", [[Sample(1.0 - r, r, a) for r, a in rows]] * 20, prefixes)
    assert perfect.auc_within is not None
    assert (perfect.auc_within.value, perfect.brier, perfect.calibration_error) == (1.0, 0.0, 0.0)
    assert perfect.by_n[4]["best"].value == 1.0
    assert "ranks within questions: 1.00" in perfect.verdict
    assert "no better than chance: 0.50" in blind.verdict
    assert blind.by_n[1]["best"].value == blind.by_n[4]["best"].value == 0.5
    assert "worse than chance: 0.00" in backward.verdict


def test_diagnosis_of_two_critics(
    critics: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "diagnosis"
    argv = ["diagnose", *map(str, critics.values()), *SMALL, "--out", str(out), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert list(report["critics"]) == ["orm", "prm", "likelihood"]
    assert list(report["agreement"]) == ["orm and prm", "orm and likelihood", "prm and likelihood"]
    assert report["questions"] == 20
    for row in report["critics"].values():
        ones, fours = row["by_n"]["1"], row["by_n"]["4"]
        # One sample leaves no choice: all ways are the mean accuracy. Four are all there are: none beats a perfect critic.
        assert ones["best"]["value"] == pytest.approx(ones["any"]["value"])
        assert all(found["value"] <= fours["any"]["value"] + 1e-9 for found in fours.values())
        assert 0 <= row["calibration_error"] <= 1
    samples = Journal(out / "samples.jsonl").read()
    right = [s["right"] for sample in samples for s in sample["samples"]]
    assert len(right) == 80
    assert report["critics"]["orm"]["by_n"]["1"]["best"]["value"] == pytest.approx(sum(right) / 80)
    assert "## orm (orm)" in (out / "report.md").read_text()
    # The task tells which steps are right: every sample is judged or counted as left out.
    assert list(report["steps"]) == ["prm"]
    steps = report["steps"]["prm"]
    assert steps["source"] == "the task's own truth (arith)"
    assert steps["solutions"] + steps["left_out"] == 80
    assert 0 < steps["faulty"] <= steps["solutions"]
    assert steps["at_half"]["f1"]["low"] <= steps["at_half"]["f1"]["value"] <= steps["at_half"]["f1"]["high"]
    assert "| first step below |" in (out / "report.md").read_text()

    # Once more: refused without --resume; with it nothing is sampled again.
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err

    def sampled(*args: object, **kwargs: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr("critics.diagnosis.command.Solver.asolve", sampled)
    assert main([*argv, "--resume"]) == 0
    same(json.loads(capsys.readouterr().out), report)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--num_samples", "1"], "num_samples is 1"),
        (["--num_questions", "1"], "num_questions is 1"),
        (["--prm_aggregate", "median"], "prm_aggregate' is 'median'; did you mean 'mean'"),
        (["--num_sample", "3"], "did you mean 'num_samples'"),
    ],
)
def test_bad_settings_end_in_one_line(
    critics: dict[str, Path], extra: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(critics["orm"]), *SMALL, *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in error


def test_a_folder_without_a_critic_is_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tiny_model), *SMALL]) == 2
    assert "is not a critic checkpoint" in capsys.readouterr().err


def test_an_answer_left_out_earns_a_critic_nothing() -> None:
    import random

    draw = random.Random(0)

    def group() -> list[Sample]:
        rows = [(draw.random() < 0.5, draw.random() < 0.7) for _ in range(16)]
        return [Sample(draw.random(), right, "1" if right else "2") if said else Sample(0.0, False) for right, said in rows]

    found = judge("orm", [group() for _ in range(100)])
    assert "no better than chance" in found.verdict
    assert found.auc_within is not None
    assert found.auc_within.value == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("name", ["likelihood", "combined", "rank_average"])
def test_names_that_the_report_uses_are_refused(
    name: str, critics: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(critics["orm"], tmp_path / name)
    assert main(["diagnose", str(tmp_path / name), *SMALL]) == 2
    assert "rename the folder" in capsys.readouterr().err


def test_a_failed_start_leaves_the_folder_free(
    critics: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["diagnose", str(critics["orm"]), *SMALL, "--out", str(tmp_path / "out")]
    assert main([*argv, "--solver.engine.model", str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["diagnose", str(critics["orm"]), *SMALL, "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_two_critics_of_one_name_are_refused(critics: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(critics["orm"]), str(critics["orm"]), *SMALL]) == 2
    assert "same name" in capsys.readouterr().err


def test_steps_are_judged_by_a_file_of_labels(
    critics: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [
        {"question": "1 + 1?", "steps": ["1 + 1 = 3", "#### 3"], "labels": [0.0, 0.0]},
        {"question": "1 + 1?", "steps": ["1 + 1 = 2", "#### 2"], "labels": [1.0, 1.0]},
        {"question": "2 + 2?", "steps": ["2 + 2 = 4", "so", "#### 5"], "labels": [0.75, 0.5, 0.25]},
        {"question": "2 + 2?", "steps": ["2 + 2 = 4", "so", "#### 5"], "labels": [0.75, None, 0.25]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["diagnose", str(critics["prm"]), *SMALL, "--labels", str(file), "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]["prm"]
    assert steps["source"] == f"the labels in {file}"
    assert (steps["solutions"], steps["faulty"], steps["left_out"]) == (3, 2, 1)
    assert steps["at_half"]["overall"]["questions"] == 2
    assert main(["diagnose", str(critics["orm"]), *SMALL, "--labels", str(file)]) == 2
    assert "no PRM among the critics (orm)" in capsys.readouterr().err
    file.write_text('{"question": "q", "steps": ["#### 1"], "label": 1.0}\n')
    assert main(["diagnose", str(critics["prm"]), *SMALL, "--labels", str(file)]) == 2
    assert f"{file}:1: a SolutionRow" in capsys.readouterr().err


def test_a_task_without_step_truth_says_so(
    critics: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.jsonl"
    problems = ArithTask("easy").load("dev", 20)
    file.write_text("".join(json.dumps({"question": p.question, "answer": p.gold}) + "\n" for p in problems))
    task = ["--task.name", "jsonl", "--task.path", str(file)]
    assert main(["diagnose", str(critics["prm"]), *SMALL[2:], *task]) == 0
    text = capsys.readouterr().out
    assert "the task 'jsonl' cannot say which are right; give labelled solutions with --labels FILE" in text
    # The verdict and the agreement are plain sentences.
    assert text.startswith("## prm (prm)\n\n**")
    assert re.search(r"\*\*(Ranks within questions.*: 0\.\d\d ± 0\.\d\d|Cannot be judged)", text)
    assert "Share of the pairs of one question that two critics order alike:" in text
    assert "- prm and likelihood: 0." in text
