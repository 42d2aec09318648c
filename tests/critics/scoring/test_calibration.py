"""Calibration against closed-form maxima of the likelihood, its files, and its use by the solver."""

import json
import random
from importlib.util import find_spec
from math import log
from pathlib import Path

import pytest

from critics.diagnosis.figures import check_calibration
from critics.metrics import Sample
from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.scoring.calibration import (
    CalibratedCritic,
    Calibration,
    Fitted,
    calibrated,
    cross_fitted,
    fit_calibration,
    head_hash,
    load_calibrations,
    save_calibrations,
)
from llm_mcts.cli import main
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.solver import Solver
from llm_mcts.types import State, Step
from tests.search_cases import TableCritic, run, solution

SIGMOID_1 = 0.7310585786300049  # logit of it is 1


def scored(score: float, right: int, wrong: int) -> list[Sample]:
    return [Sample(score, True)] * right + [Sample(score, False)] * wrong


def test_a_calibration_by_hand() -> None:
    # logit 0.8 = ln 4: 0.5 ln 4 + 0 = ln 2: 2 / 3. With b = ln 3: ln 6: 6 / 7.
    assert Calibration(0.5)(0.8) == pytest.approx(2 / 3)
    assert Calibration(0.5, log(3))(0.8) == pytest.approx(6 / 7)
    assert Calibration(1.0)(0.3) == pytest.approx(0.3)
    assert Calibration(0.0, log(3))(0.01) == pytest.approx(0.75)
    assert 0.0 <= Calibration(50.0)(0.0) < Calibration(50.0)(1.0) <= 1.0


def test_platt_by_hand() -> None:
    # Two scores, logits 1 and -1. Two free parameters fit both shares: a + b = logit 0.7 = ln(7/3), -a + b = logit 0.2 = -ln 4.
    # a = (0.847298 + 1.386294) / 2 = 1.116796, b = (0.847298 - 1.386294) / 2 = -0.269498.
    found = fit_calibration(scored(SIGMOID_1, 7, 3) + scored(1 - SIGMOID_1, 2, 8))
    assert found.scale == pytest.approx(1.116796, abs=1e-5)
    assert found.bias == pytest.approx(-0.269498, abs=1e-5)
    assert (found(SIGMOID_1), found(1 - SIGMOID_1)) == pytest.approx((0.7, 0.2), abs=1e-5)


def test_temperature_by_hand() -> None:
    # Logits +1 (7 of 10 right) and -1 (8 of 10 wrong): by symmetry one logit with 15 hits of 20: a = logit 0.75 = ln 3.
    found = fit_calibration(scored(SIGMOID_1, 7, 3) + scored(1 - SIGMOID_1, 2, 8), "temperature")
    assert found.scale == pytest.approx(log(3), abs=1e-5)
    assert found.bias == 0.0


def test_scores_that_tell_nothing_become_the_share_of_right_ones() -> None:
    # The higher score is right less often: a >= 0 leaves a = 0; of 20 solutions 5 are right.
    rows = scored(SIGMOID_1, 1, 9) + scored(1 - SIGMOID_1, 4, 6)
    assert (found := fit_calibration(rows)).scale == 0.0
    assert found(SIGMOID_1) == found(1 - SIGMOID_1) == pytest.approx(0.25, abs=1e-5)
    assert fit_calibration(rows, "temperature")(0.9) == 0.5


def test_it_recovers_what_spoiled_the_scores() -> None:
    draw = random.Random(0)
    truth = [draw.uniform(0.02, 0.98) for _ in range(20_000)]
    # Reported: sigmoid(3 logit p + 1); so logit p = (logit q - 1) / 3: a = 1/3, b = -1/3. Standard errors are below 0.01.
    rows = [Sample(Calibration(3.0, 1.0)(p), draw.random() < p) for p in truth]
    found = fit_calibration(rows)
    assert found.scale == pytest.approx(1 / 3, abs=0.03)
    assert found.bias == pytest.approx(-1 / 3, abs=0.06)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_separated_and_saturated_scores_have_a_finite_fit(method: str) -> None:
    found = fit_calibration(scored(1.0, 5, 0) + scored(0.0, 0, 5), method)  # type: ignore[arg-type]
    assert found(1.0) > 0.99
    assert found(0.0) < 0.01
    close = fit_calibration(scored(0.52, 5, 0) + scored(0.48, 0, 5), method)  # type: ignore[arg-type]
    assert close(0.52) > 0.9


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="all 4 solutions have the same outcome"):
        fit_calibration(scored(0.5, 4, 0))
    with pytest.raises(ConfigError, match="'isotonic'"):
        fit_calibration(scored(0.5, 4, 4), "isotonic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale=-1"):
        Calibration(-1.0)


def test_a_calibrated_critic_leaves_what_states_no_answer_at_0() -> None:
    critic = CalibratedCritic(TableCritic({"#### 1": 0.8, "x": 0.5}), Calibration(0.5, log(3)))
    states = [solution(answer="1"), solution(answer=None), State("Which way?", (Step("x"),))]
    # 6/7 as above; 0; logit 0.5 = 0: sigmoid(ln 3) = 3/4.
    assert run(critic.score(states)) == pytest.approx([6 / 7, 0.0, 0.75])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("critics")
    for seed, kind in enumerate(("value", "orm", "prm")):
        CriticModel.create(kind, str(tiny_model), HeadConfig(width=8), seed=seed).save_pretrained(folder / kind)  # type: ignore[arg-type]
    return {kind: folder / kind for kind in ("value", "orm", "prm")}


def fitted(folder: Path, scale: float, aggregate: str = "last") -> Fitted:
    return Fitted(Calibration(scale, 0.25), "platt", head_hash(folder), 20, 80, aggregate)


def test_files_by_kind(folders: dict[str, Path], tmp_path: Path) -> None:
    saved = {"orm": fitted(folders["orm"], 0.5), "prm": fitted(folders["prm"], 2.0, "min")}
    save_calibrations(saved, tmp_path / "below" / "c.json")  # type: ignore[arg-type]
    assert load_calibrations(tmp_path / "below" / "c.json") == saved
    critic, file = TableCritic({}, default=0.5), str(tmp_path / "c.json")
    made = calibrated(critic, "orm", str(folders["orm"]), file, saved, "last")  # type: ignore[arg-type]
    assert isinstance(made, CalibratedCritic)
    for kind, folder, aggregate, named in [
        ("value", "value", "last", "no calibration of the value critic"),
        ("orm", "prm", "last", "another orm checkpoint"),
        ("prm", "prm", "last", "fitted with prm_aggregate 'min'"),
    ]:
        with pytest.raises(ConfigError, match=named):
            calibrated(critic, kind, str(folders[folder]), file, saved, aggregate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"orm": {}}',
        '{"judge": 1}',
        '{"orm": {"calibration": {"scale": -1, "bias": 0}, "method": "platt", "head": "", "prm_aggregate": "min"}}',
        '{"judge": {"calibration": {"scale": 1, "bias": 0}, "method": "platt", "head": "", "questions": 1, "samples": 1, '
        '"prm_aggregate": "min"}}',
    ],
)
def test_broken_files_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.json (holds|calibrates)"):
        load_calibrations(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="nowhere"):
        load_calibrations(tmp_path / "nowhere.json")


def test_the_solver_calibrates(folders: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    states = [State("1 + 1?", (Step("1 + 1 = 2"),)), State("1 + 1?", (Step("x"), Step("#### 2", terminal=True, answer="2")))]
    file = tmp_path / "c.json"
    save_calibrations({"orm": fitted(folders["orm"], 0.0), "value": fitted(folders["value"], 2.0)}, file)
    source = {"engine": {"model": str(tiny_model)}, "critics": {"value": str(folders["value"]), "orm": str(folders["orm"])}}
    plain = Solver.from_config(source)
    source["critics"]["calibration"] = str(file)
    solver = Solver.from_config(source)
    assert plain.critic is not None
    assert solver.critic is not None
    before, after = run(plain.critic.score(states)), run(solver.critic.score(states))
    # Unfinished: the value model's, sigmoid(2 logit p + 1/4) = e^(1/4) o^2 / (1 + e^(1/4) o^2) with odds o. Finished: scale 0,
    # whatever the ORM says: sigmoid(1/4) = 0.562177.
    odds = 1.2840254 * (before[0] / (1 - before[0])) ** 2
    assert after == pytest.approx([odds / (1 + odds), 0.562177], abs=1e-5)


def test_diagnose_calibrates_on_other_questions(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "calibration.json", tmp_path / "out"
    argv = ["diagnose", str(folders["orm"]), str(folders["value"]), "--num_questions", "20", "--num_samples", "4"]
    argv += ["--solver.policy.max_solution_tokens", "120", "--out", str(out), "--calibrate", str(file), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    written = json.loads(file.read_text())
    assert set(written) == {"orm", "value"}
    assert written["orm"]["head"] == head_hash(folders["orm"])
    for kind in ("orm", "value"):
        found = report["calibration"][kind]
        # A random head knows nothing: calibrated it says the base rate, up to noise, and is no worse in the Brier score.
        figures = found["figures"]
        assert list(figures) == ["before", "platt", "temperature"]
        assert figures["platt"]["brier"] < figures["before"]["brier"] + 0.02
        assert written[kind]["method"] == found["chosen"] == "platt"
        assert written[kind]["calibration"] == found["fitted"]["platt"]
    answered = sum(s["answer"] is not None for row in rows(out) for s in row["samples"])
    prefixes = sum(len(s["steps"]) for row in rows(out) for s in row["samples"] if s["answer"] is not None)
    assert report["calibration"]["orm"]["samples"] == written["orm"]["samples"] == answered
    assert report["calibration"]["value"]["samples"] == prefixes
    assert "## Calibration" in (out / "report.md").read_text()
    assert (out / "calibration.png").exists() == (find_spec("matplotlib") is not None)  # an extra
    argv = ["diagnose", str(folders["orm"]), "--calibrate", str(file), "--calibration", "isotonic"]
    assert main(argv) == 2
    assert "isotonic" in capsys.readouterr().err


def rows(out: Path) -> list[dict[str, list[dict[str, object]]]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_each_half_is_calibrated_by_the_other() -> None:
    # Even questions: logit 1 right in 7 of 10, logit -1 in 2 of 10, as above. Odd ones: 9 of 10 and 5 of 10.
    even = scored(SIGMOID_1, 7, 3) + scored(1 - SIGMOID_1, 2, 8)
    odd = scored(SIGMOID_1, 9, 1) + scored(1 - SIGMOID_1, 5, 5)
    found = cross_fitted([even[:10], odd[:10], even[10:], odd[10:]], "platt")
    assert [len(group) for group in found] == [10] * 4
    assert [s.right for s in found[1]] == [s.right for s in odd[:10]]
    # The even questions get the odd ones' shares, and the other way round.
    assert [group[0].score for group in found] == pytest.approx([0.9, 0.7, 0.5, 0.2], abs=1e-4)
    check = check_calibration("orm", [even[:10], odd[:10], even[10:], odd[10:]], "temperature")
    # Brier of even logit 1: 0.9 against 7 of 10: (7 * 0.01 + 3 * 0.81) / 10 = 0.25; odd: 0.7 against 9 of 10: (0.81 + 0.49) /
    # 10 = 0.13; even logit -1: 0.5: 0.25; odd: 0.2 against 5 of 10: (5 * 0.64 + 5 * 0.04) / 10 = 0.34. Mean 0.2425.
    assert check.figures["platt"].brier == pytest.approx(0.2425, abs=1e-4)
    # The four scores lie in four bins, each 0.2 or 0.3 off: 0.2, 0.2, 0.3, 0.3.
    assert check.figures["platt"].calibration_error == pytest.approx(0.25, abs=1e-3)
    # All together: 16 of 20 and 7 of 20: a + b = ln 4, -a + b = ln(7/13): a = (1.386294 + 0.619039) / 2 = 1.002667.
    assert check.fitted["platt"].scale == pytest.approx(1.002667, abs=1e-4)
    assert (check.chosen, check.samples, check.questions) == ("temperature", 40, 4)
