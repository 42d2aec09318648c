"""`llm-mcts diagnose` from critics' folders to a verdict, through the command line."""

import json
import shutil
from pathlib import Path

import pytest

from critics.diagnose import judge
from critics.diagnostics import Sample
from critics.modeling import CriticModel, HeadConfig
from llm_mcts.cli import main
from llm_mcts.store import Journal

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

    # Once more: refused without --resume; with it nothing is sampled again.
    assert main(argv) == 2
    assert "--resume" in capsys.readouterr().err

    def sampled(*args: object, **kwargs: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr("critics.diagnose.Solver.asolve", sampled)
    assert main([*argv, "--resume"]) == 0
    # In other batches, sums of float32 differ in the last digits.
    rounded = [
        json.loads(text, parse_float=lambda x: round(float(x), 5)) for text in (capsys.readouterr().out, json.dumps(report))
    ]
    assert rounded[0] == rounded[1]


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--num_samples", "1"], "num_samples is 1"),
        (["--num_questions", "1"], "num_questions is 1"),
        (["--prm_aggregate", "median"], "prm_aggregate is 'median'"),
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
    assert "is no critic checkpoint" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["likelihood", "combined"])
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
