"""Two runs side by side: what is compared, and what is refused."""

import json
from pathlib import Path

import pytest

from llm_mcts.cli import main
from llm_mcts.errors import DataError
from llm_mcts.runs.reading import read_run
from tests.trainers.report_cases import make_run
from trainers.report.compare import compare_runs

CONFIG = "num_rounds: 1\nmethods: {greedy: greedy, mcts: mcts}\n"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """B gains two of five questions and loses one with greedy in round 1; mcts was evaluated by A alone."""
    a = {0: {"greedy": "+----"}, 1: {"greedy": "+--+-", "mcts": "+++++"}}
    b = {0: {"greedy": "+----"}, 1: {"greedy": "+++--"}}
    for name, found in (("a", a), ("b", b)):
        make_run(tmp_path / name, CONFIG, found)
    return tmp_path / "a", tmp_path / "b"


def test_rounds_are_compared_question_by_question(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--json"]) == 0
    start, first = json.loads(capsys.readouterr().out)
    assert (start["round"], start["method"], start["difference"], start["verdict"]) == (
        0,
        "greedy",
        0.0,
        "not distinguishable from no change",
    )
    assert {k: first[k] for k in ("split", "round", "a", "b", "n", "gained", "lost")} == {
        "split": "eval",
        "round": 1,
        "a": 0.4,
        "b": 0.6,
        "n": 5,
        "gained": 2,
        "lost": 1,
    }
    # Agresti and Min by hand: (2.5 - 1.5) / 7 +- 1.96 sqrt(4 - 1/7) / 7
    assert first["low"] == pytest.approx(1 / 7 - 1.959964 * (4 - 1 / 7) ** 0.5 / 7, abs=1e-6)
    assert first["high"] == pytest.approx(1 / 7 + 1.959964 * (4 - 1 / 7) ** 0.5 / 7, abs=1e-6)


def test_the_table_names_both_runs(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs)]) == 0
    text = capsys.readouterr().out
    assert "| held-out | 5 | round 1 | greedy | 40.0 % | 60.0 % | +20.0 [−40.7, +69.3] | not distinguishable" in text
    assert "A: a" in text and "B: b" in text and "another seed" in text


def test_test_questions_are_compared_too(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", CONFIG, {0: {"greedy": "-" * 20}}, split="test")
    b = make_run(tmp_path / "b", CONFIG, {0: {"greedy": "+" * 20}}, split="test")
    (found,) = compare_runs(read_run(a), read_run(b))
    assert (found.split, found.found.difference) == ("test", 1.0) and found.to_dict()["verdict"] == "better"


def test_runs_on_other_questions_are_refused(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", CONFIG, {0: {"greedy": "+-"}})
    with pytest.raises(DataError, match="different held-out questions"):
        compare_runs(read_run(other), read_run(make_run(tmp_path / "c", CONFIG, {0: {"greedy": "+--"}})))


def test_equal_ids_of_other_questions_are_refused_and_other_settings_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text, config in (("a", "one?", CONFIG), ("b", "two?", CONFIG), ("c", "one?", CONFIG.replace("mcts}", "beam}"))):
        run = make_run(tmp_path / name / "run", config, {0: {"greedy": "+", "mcts": "+"}})
        run.round(0).questions.write([{"id": "dev-0", "question": text, "gold": "1"}])
    a, b, c = (str(tmp_path / name / "run") for name in "abc")
    assert main(["compare", a, b]) == 2
    assert "different held-out questions" in capsys.readouterr().err
    assert main(["compare", a, c]) == 0
    told = capsys.readouterr().out
    assert f"A: {a}" in told.replace("\\", "") and "other settings for mcts:" in told


def test_without_an_evaluation_in_common_there_is_nothing_to_compare(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "other", CONFIG, {0: {"mcts": "+----"}})
    assert main(["compare", str(runs[0]), str(tmp_path / "other")]) == 2
    assert "no evaluation in common" in capsys.readouterr().err
    assert main(["compare", str(runs[0]), str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
