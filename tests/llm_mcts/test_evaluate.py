"""Accuracy with intervals worked by hand, and the shape of every report."""

import csv
import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.evaluate import EvaluateConfig, Evaluation, evaluate_methods
from llm_mcts.runner import Record
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.scores import Score, paired_difference, to_csv, to_markdown
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.stats import PairedDifference, wilson
from llm_mcts.tasks import TaskConfig
from llm_mcts.types import Usage

quick = settings(max_examples=50)


def records(outcomes: str, **usage: Any) -> list[Record]:
    """One record a letter: + right, - wrong, x failed."""
    kinds: dict[str, dict[str, Any]] = {
        "+": {"correct": True, "answer": "1"},
        "-": {"correct": False, "answer": "0"},
        "x": {"error": "QuestionError: too long"},
    }
    return [Record(f"q{i}", usage=Usage(**usage), **kinds[letter]) for i, letter in enumerate(outcomes)]


# Wilson


def test_wilson_by_hand() -> None:
    # z^2 = 3.841459; p = 8/10: centre (0.8 + 0.1920729) / 1.3841459 = 0.7167402,
    # half 1.959964 / 1.3841459 * sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) = 1.4160096 * 0.1600114 = 0.2265777.
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)


def test_wilson_at_the_edges() -> None:
    # p = 0: both terms are z^2/2n / (1 + z^2/n), so the interval is [0, z^2 / (n + z^2)] = [0, 3.841459 / 13.841459].
    low, high = wilson(0, 10)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(0.2775328, abs=1e-6)
    low, high = wilson(10, 10)
    assert low == pytest.approx(0.7224672, abs=1e-6)
    assert high == pytest.approx(1.0, abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


@quick
@given(st.integers(1, 2000), st.data())
def test_wilson_holds_the_proportion_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n + 1e-12  # rounding at k = 0 and k = n
    assert k / n - 1e-12 <= high <= 1.0
    mirrored = wilson(n - k, n)
    assert mirrored == (pytest.approx(1 - high, abs=1e-9), pytest.approx(1 - low, abs=1e-9))


# Paired differences


def test_agresti_min_by_hand() -> None:
    # n = 100, 12 gained, 5 lost. Half a count more in each cell: 12.5, 5.5, of 102.
    # centre 7 / 102 = 0.0686275; half 1.959964 * sqrt(18 - 49 / 102) / 102 = 1.959964 * 4.1856426 / 102 = 0.0804285.
    a = records("-" * 12 + "+" * 5 + "+" * 60 + "-" * 23)
    b = records("+" * 12 + "-" * 5 + "+" * 60 + "-" * 23)
    found = paired_difference(a, b)
    assert (found.n, found.gained, found.lost) == (100, 12, 5)
    assert found.difference == pytest.approx(0.07, abs=1e-12)
    assert found.low == pytest.approx(-0.0118011, abs=1e-6)
    assert found.high == pytest.approx(0.1490560, abs=1e-6)
    assert str(found) == "+7.0 points [-1.2, +14.9]"


def test_agresti_min_without_a_difference_is_no_point() -> None:
    # n = 3, none gained, none lost: centre 0, half 1.959964 * sqrt(1) / 5 = 0.3919928.
    found = paired_difference(records("+-+"), records("+-+"))
    assert (found.gained, found.lost, found.difference) == (0, 0, 0.0)
    assert found.low == pytest.approx(-0.3919928, abs=1e-6)
    assert found.high == pytest.approx(0.3919928, abs=1e-6)


def test_agresti_min_with_as_many_gained_as_lost() -> None:
    # n = 20, 3 and 3: centre 0, half 1.959964 * sqrt(7) / 22 = 0.2357081.
    found = paired_difference(records("---+++" + "+" * 14), records("+++---" + "+" * 14))
    assert found.low == pytest.approx(-0.2357081, abs=1e-6)
    assert found.high == pytest.approx(0.2357081, abs=1e-6)


@quick
@given(st.lists(st.tuples(st.sampled_from("+-x"), st.sampled_from("+-x")), max_size=30))
def test_paired_difference_is_antisymmetric_and_in_range(pairs: list[tuple[str, str]]) -> None:
    a, b = records("".join(x for x, _ in pairs)), records("".join(y for _, y in pairs))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert (there.low, there.high) == (pytest.approx(-back.high, abs=1e-12), pytest.approx(-back.low, abs=1e-12))
    assert -1.0 <= there.low < there.high <= 1.0
    assert there.gained == sum(y == "+" and x != "+" for x, y in pairs)


def test_a_failed_question_is_not_right_in_a_pair() -> None:
    found = paired_difference(records("x+x"), records("+xx"))
    assert (found.n, found.gained, found.lost) == (3, 1, 1)


def test_pairs_must_be_of_the_same_questions_in_the_same_order() -> None:
    for other in (records("++-")[::-1], records("++"), records("++-+")):
        with pytest.raises(DataError, match="different questions"):
            paired_difference(records("++-"), other)


# Scores and tables


def test_score_of_records() -> None:
    score = Score.of("mcts", records("++-x", generated_tokens=10, lm_calls=3, seconds=0.5))
    assert (score.method, score.n, score.correct, score.failed) == ("mcts", 4, 2, 1)
    assert score.accuracy == 0.5
    assert score.usage == Usage(generated_tokens=40, lm_calls=12, seconds=2.0)
    row = score.to_dict()
    assert row["generated_tokens_per_question"] == 10
    assert row["lm_calls_per_question"] == 3
    assert row["seconds_per_question"] == 0.5
    # p = 1/2, n = 4: centre 1/2, half 1.959964 / 1.9603648 * sqrt(1/16 + 3.841459 / 64) = 0.9997956 * 0.3500325 = 0.3499609.
    assert row["low"] == pytest.approx(0.150039, abs=2e-6)  # rows are rounded to six places
    assert row["high"] == pytest.approx(0.849961, abs=2e-6)


def test_score_of_nothing() -> None:
    score = Score.of("none", [])
    assert (score.n, score.accuracy, score.interval) == (0, 0.0, (0.0, 1.0))
    assert score.to_dict()["generated_tokens_per_question"] == 0


def test_scoring_leaves_the_records_as_they_are() -> None:
    rows = records("++", generated_tokens=5)
    Score.of("a", rows)
    Score.of("b", rows)
    assert [r.usage.generated_tokens for r in rows] == [5, 5]


COLUMNS = ["method", "n", "correct", "failed", "accuracy", "low", "high", *(f"{f.name}_per_question" for f in fields(Usage))]


def test_csv_reads_back() -> None:
    scores = [Score.of("greedy", records("+-")), Score.of('best, of "16"', records("++"))]
    rows = list(csv.DictReader(io.StringIO(to_csv(scores))))
    assert list(rows[0]) == COLUMNS
    assert [r["method"] for r in rows] == ["greedy", 'best, of "16"']
    assert [float(r["accuracy"]) for r in rows] == [0.5, 1.0]
    assert to_csv(scores).count("\n") == 3


def test_markdown_by_hand() -> None:
    # 8 of 10: the interval is that of test_wilson_by_hand; costs are means of 10 questions.
    table = to_markdown(
        [Score.of("mcts", records("+" * 8 + "-x", generated_tokens=100, lm_calls=2, critic_calls=1, seconds=0.25))]
    )
    header, rule, row = table.strip().split("\n")
    assert header.count("|") == rule.count("|") == row.count("|") == 10
    assert row == "| mcts | 10 | 80.0 % | 49.0 – 94.3 | 100 | 2.0 | 1.0 | 0.25 | 1 |"


def test_report_shape() -> None:
    evaluation = Evaluation({"greedy": records("+--"), "mcts": records("++-"), "vote": records("+-x")})
    report = json.loads(json.dumps(evaluation.to_dict()))
    assert [list(row) for row in report["scores"]] == [COLUMNS] * 3
    assert list(report["differences"]) == ["mcts against greedy", "vote against greedy"]
    assert report["differences"]["mcts against greedy"]["gained"] == 1
    assert report["differences"]["mcts against greedy"]["difference"] == pytest.approx(1 / 3, abs=1e-12)
    assert {f.name for f in fields(PairedDifference)} | {"difference"} == set(report["differences"]["vote against greedy"])
    assert "- mcts against greedy: +33.3 points" in evaluation.markdown


def test_a_single_method_has_no_differences() -> None:
    evaluation = Evaluation({"greedy": records("+-")})
    assert evaluation.differences == {}
    assert "Paired" not in evaluation.markdown


def test_files_of_a_report() -> None:
    evaluation = Evaluation({"greedy": records("+-"), "mcts": records("++")})
    files = evaluation.files()
    assert sorted(files) == ["report.csv", "report.json", "report.md"]
    assert json.loads(files["report.json"]) == evaluation.to_dict()


# The whole comparison, with a scripted model that always says 7


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    def scripted(config: SolverConfig) -> Solver:
        return Solver(config, engine=ScriptedEngine(lambda prompt: [] if prompt.endswith("#### 7\n") else [("#### 7", 1.0)]))

    monkeypatch.setattr("llm_mcts.evaluate.Solver", scripted)
    file = tmp_path / "questions.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"{i}?", "answer": gold}) + "\n" for i, gold in enumerate(["7", "8", "7.0"]))
    )
    methods = {"one": "greedy", "many": {"name": "self_consistency", "num_samples": 4}}
    return EvaluateConfig(TaskConfig("jsonl", str(file)), methods=methods)


def test_evaluate_methods(config: EvaluateConfig) -> None:
    evaluation = evaluate_methods(config, Reporter(quiet=True))
    assert list(evaluation.records) == ["one", "many"]
    assert [[r.correct for r in rows] for rows in evaluation.records.values()] == [[True, False, True]] * 2
    assert [score.correct for score in evaluation.scores] == [2, 2]
    assert evaluation.differences["many against one"].difference == 0.0


def test_evaluate_counts_what_each_method_cost(config: EvaluateConfig) -> None:
    one, many = evaluate_methods(config, Reporter(quiet=True)).scores
    assert (one.usage.lm_calls, one.usage.generated_tokens) == (3, 3)
    assert (many.usage.lm_calls, many.usage.generated_tokens) == (3, 12)


def test_a_question_without_an_answer_is_refused(config: EvaluateConfig) -> None:
    with Path(str(config.task.path)).open("a") as file:
        file.write('{"question": "open?", "id": "unsolved"}\n')
    with pytest.raises(DataError, match="unsolved"):
        evaluate_methods(config, Reporter(quiet=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_questions": 0}, "num_questions is 0"),
        ({"concurrency": -1}, "concurrency is -1"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"a": "gredy"}}, "did you mean 'greedy'"),
        ({"methods": {"a": {"name": "mcts", "num_simulatons": 3}}}, "did you mean 'num_simulations'"),
    ],
)
def test_settings_are_checked_before_anything_runs(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EvaluateConfig(**change)


@pytest.mark.parametrize("method", [None, 5])
def test_a_method_must_be_a_name_or_a_mapping(method: object) -> None:
    with pytest.raises(ConfigError):
        EvaluateConfig(methods={"a": method})


def test_a_bar_in_a_label_keeps_the_table_whole() -> None:
    row = to_markdown([Score.of("a|b", records("+"))]).strip().split("\n")[-1]
    assert row.replace("\\|", "").count("|") == 10


def test_a_label_cannot_leave_the_folder(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match="outside"):
        replace(config, methods={"../outside": "greedy"})


def test_an_evaluation_leaves_its_records(config: EvaluateConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluation = evaluate_methods(config, Reporter(quiet=True), out)
    names = [
        "config.yaml",
        "lock",
        "lock.json",
        "manifest.json",
        "many.jsonl",
        "one.jsonl",
        "report.csv",
        "report.json",
        "report.md",
    ]
    assert sorted(p.name for p in out.iterdir()) == names
    read = [Record.from_dict(json.loads(line)) for line in (out / "many.jsonl").read_text().splitlines()]
    assert read == evaluation.records["many"]


def test_an_evaluation_that_was_stopped_goes_on(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    true_append, appended = Journal.append, []

    def failing(self: Journal, record: Any) -> None:
        if len(appended) == 4:
            raise Stopped
        appended.append(record["id"])
        true_append(self, record)

    whole = evaluate_methods(config, Reporter(quiet=True), tmp_path / "whole")
    monkeypatch.setattr(Journal, "append", failing)
    with pytest.raises(Stopped):
        evaluate_methods(config, Reporter(quiet=True), tmp_path / "cut")
    monkeypatch.setattr(Journal, "append", true_append)
    with pytest.raises(ConfigError, match="--resume"):
        evaluate_methods(config, Reporter(quiet=True), tmp_path / "cut")
    with pytest.raises(ConfigError, match="num_questions"):
        evaluate_methods(replace(config, num_questions=2), Reporter(quiet=True), tmp_path / "cut", resume=True)
    asked: list[str] = []
    solve = Solver.asolve

    async def counting(self: Solver, question: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(question)
        return await solve(self, question, *args, **kwargs)

    monkeypatch.setattr(Solver, "asolve", counting)
    again = evaluate_methods(config, Reporter(quiet=True), tmp_path / "cut", resume=True)
    assert len(asked) == 2  # of six: one method was complete, one question of the other was there
    assert [[r.correct for r in rows] for rows in again.records.values()] == [
        [r.correct for r in rows] for rows in whole.records.values()
    ]
    assert (tmp_path / "cut" / "report.md").exists()
