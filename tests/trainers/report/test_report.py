"""The report of a run: its numbers against hand-made records, and what may be absent."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.cli import main
from llm_mcts.runs.directory import RunDirectory
from tests.trainers.report_cases import asked, make_run, records, scored_tree, searched
from trainers.report.report import ReportConfig, write_reports

CONFIG = "num_rounds: 2\nmethods: {greedy: greedy, mcts: mcts}\ntask: {name: arith}\n"
QUESTION = "How many are 0 + 1?"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Round 1 is accepted, round 2 rejected."""
    marks = {
        0: {"greedy": "++--", "mcts": "+++-"},
        1: {"greedy": "+++-", "mcts": "+++-"},
        2: {"greedy": "+---", "mcts": "++++"},
    }
    made = make_run(tmp_path / "run", CONFIG, marks)
    made.round(1).note("gate", {"accepted": True, "reason": "greedy rose", "changes": {"greedy": {"p_value": 0.25}}})
    made.round(2).note("gate", {"accepted": False, "reason": "greedy fell"})
    return made


def page(run: RunDirectory) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


def lines(markdown: str, *cells: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("| " + " | ".join(cells) + " |")]


def test_accuracies_and_intervals(run: RunDirectory) -> None:
    report = write_reports(run)
    # Wilson at 2 of 4: centre 1/2, half 1.95996 / 1.96036 sqrt(1/16 + 3.84146 / 64) = 0.34996; at 3 of 4: 0.62753 ± 0.32688.
    assert lines(report["markdown"], "start", "greedy", "4", "50.0 %", "15.0 – 85.0")
    assert lines(report["markdown"], "round 1 (accepted)", "greedy", "4", "75.0 %", "30.1 – 95.4")
    assert lines(report["markdown"], "round 2 (rejected)", "greedy", "4", "25.0 %", "4.6 – 69.9")  # 1 of 4: 1 - that of 3 of 4
    assert "round 1, greedy: 75.0 % [30.1 – 95.4], n = 4" in page(run)
    found = {row["method"]: row["correct"] for row in report["scores"]}
    assert list(found) == [f"round {r} {m}" for r in (0, 1, 2) for m in ("greedy", "mcts")]
    assert list(found.values()) == [2, 3, 3, 3, 1, 4]


def test_a_rejected_round_is_measured_against_what_stood_and_is_not_the_last(run: RunDirectory) -> None:
    report = write_reports(run)
    # One gained of 4, none lost: (1.5 - 0.5) / 6 = 16.7, half 1.95996 sqrt(2 - 1 / 6) / 6 = 44.2.
    told = "not distinguishable from no change"
    assert lines(report["markdown"], "greedy", "50.0 %", "75.0 %", "+25.0 [−27.6, +60.9]", told)  # round 1, not round 2
    assert lines(report["markdown"], "round 1", "start", "greedy", "+25.0 [−27.6, +60.9]", "1", "0", "4", "0.250", told)
    # Two lost: (0.5 - 2.5) / 6 = -33.3, half 1.95996 sqrt(3 - 4 / 6) / 6 = 49.9.
    assert lines(report["markdown"], "round 2", "round 1", "greedy", "−50.0 [−83.2, +16.6]", "0", "2", "4", "–", told)
    assert lines(report["markdown"], "round 2", "rejected", "round 1", "greedy fell")
    assert report["state"] == "Finished: round 1 accepted, round 2 rejected."
    assert [verdict["accepted"] for verdict in report["rounds"]] == [True, False]
    change = report["differences"]["greedy: last accepted round against the start"]
    assert (change["gained"], change["lost"], change["difference"]) == (1, 0, 0.25)
    assert report["differences"]["mcts against greedy, the start"]["gained"] == 1


def test_a_clear_change_is_called_better_or_worse(tmp_path: Path) -> None:
    made = make_run(tmp_path, CONFIG, {0: {"greedy": "-" * 20, "mcts": "+" * 20}, 1: {"greedy": "+" * 20, "mcts": "-" * 20}})
    made.round(1).note("gate", {"accepted": True})
    markdown = write_reports(made)["markdown"]
    assert lines(
        markdown, "greedy", "0.0 %", "100.0 %", "+100.0 [+76.0, +100.0]", "better"
    )  # (20 - 1.95996 sqrt(21 - 400 / 22)) / 22
    assert lines(markdown, "mcts", "100.0 %", "0.0 %", "−100.0 [−100.0, −76.0]", "worse")
    assert '<td class="good">better</td>' in page(made)
    assert '<td class="bad">worse</td>' in page(made)


def test_without_an_accepted_round_nothing_is_called_an_improvement(tmp_path: Path) -> None:
    made = make_run(tmp_path, CONFIG, {0: {"greedy": "--"}, 1: {"greedy": "++"}})
    made.round(1).note("gate", {"accepted": False})
    report = write_reports(made)
    assert lines(report["markdown"], "greedy", "0.0 %", "–", "–", "no round accepted")
    assert "greedy: last accepted round against the start" not in report["differences"]


def test_the_test_split_is_told_apart(run: RunDirectory) -> None:
    assert "test questions" not in write_reports(run)["markdown"]
    for number, marks in ((0, "---"), (1, "+--"), (2, "++-")):
        run.round(number).test("greedy").write(records(marks))
    report = write_reports(run)
    assert "## Accuracy on 4 held-out questions" in report["markdown"]
    assert "## Accuracy on 3 test questions" in report["markdown"]
    assert lines(report["markdown"], "greedy", "0.0 %", "33.3 %")  # the accepted round 1
    assert [row["n"] for row in report["test_scores"]] == [3, 3, 3]
    assert {"Held-out accuracy", "Test accuracy"} <= set(page(run).replace("<", ">").split(">"))


def test_what_is_under_way_is_shown_as_such_and_not_scored(run: RunDirectory) -> None:
    part = run.round(3).evaluation("greedy")
    part.append(records("+")[0])
    report = write_reports(run)
    assert report["state"].startswith("In progress: round 1 accepted, round 2 rejected; round 3 is in progress")
    assert lines(report["markdown"], "round 3 (in progress)", "greedy", "1", "in progress", "–")
    assert lines(report["markdown"], "round 3", "in progress", "round 1", "–")
    assert [row["method"] for row in report["scores"]][-1] == "round 2 mcts"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    made = make_run(tmp_path, CONFIG, {})
    report = write_reports(made)
    assert report["state"] == "In progress: no round has been judged yet; the next round has not started."
    assert (report["scores"], report["differences"], report["rounds"]) == ([], {}, [None, None])
    assert "No stage is finished yet." in page(made)


def test_a_method_without_records(run: RunDirectory) -> None:
    run.round(0).evaluation("vote").write([])
    report = write_reports(run)
    assert lines(report["markdown"], "start", "vote", "0", "no records", "–")
    assert not any("vote" in row["method"] for row in report["scores"])


def test_costs_are_added_up_from_notes_or_records(run: RunDirectory) -> None:
    spent = {"generated_tokens": 1000, "prefilled_tokens": 200, "critic_tokens": 30, "lm_calls": 7}
    run.round(1).note("search", {"seconds": 90.0, "usage": spent})
    run.round(1).note("value", {"seconds": 30.0, "rows": 5, "left_out": 1, "steps": 2, "loss": 0.125})
    run.round(2).evaluation("mcts").write(records("++++", generated_tokens=6, reused_tokens=50))
    report = write_reports(run)
    assert lines(report["markdown"], "round 1", "search", "1.50", "1,000", "200", "0", "30", "7", "0")
    assert lines(report["markdown"], "round 2", "evaluate", "–", "24", "0", "200", "0", "0", "0")  # 4 records
    assert lines(report["markdown"], "all", "", "2.00", "1,024", "200", "200", "30", "7", "0")
    # 1000 + 200 + 30 + 24; what a cache held is not computed.
    assert "1,254 tokens were computed, 1,024 of them sampled, in 2.0 minutes of work (without evaluate," in report["markdown"]
    assert lines(report["markdown"], "round 1", "value", "–", "5", "1", "2", "0.1250")


def test_rows_kept_and_refused(run: RunDirectory) -> None:
    refused = {"wrong": 3, "sft": {"too | long": 2}}
    run.round(1).note("rows", {"searched": 9, "failed": 1, "solved": 4, "refused": refused, "sft": 6, "value": 8, "seconds": 2})
    run.round(1).questions.write([asked("a", "?"), asked("b", "?", source="revisited"), asked("c", "?")])
    kept = {"id": "i", "question": "?", "kind": "varied", "parent": "a", "kept": True, "reason": None}
    run.round(1).imagined.write([kept, {**kept, "kept": False, "reason": "no agreement"}])
    report = write_reports(run)
    told = ("round 1", "2 train, 1 revisited", "9", "1", "4", "3 wrong, 2 sft: too \\| long")
    assert lines(report["markdown"], *told)
    assert lines(report["markdown"], "round 1", "varied", "2", "1", "1 no agreement")
    assert lines(report["markdown"], "round 1", "sft", "6", "–", "–", "–", "–")
    assert report["refused"]["round_001"] == {"wrong": 3, "sft: too | long": 2}


def with_search(run: RunDirectory, critic_calls: int = 3) -> None:
    ends = [("#### 1", "1", 0.8), ("so\n#### 2", "2", 0.4), ("#### 3", "3", 0.8), ("none", None, 0.0)]
    here = run.round(1)
    here.questions.write([asked("t-0", QUESTION), asked("t-1", QUESTION, "2", "imagined")])
    here.trees.write([searched(id_, scored_tree(QUESTION, ends), id_ == "t-0", critic_calls) for id_ in ("t-0", "t-1")])


def test_scores_that_guided_a_search_against_outcomes(run: RunDirectory) -> None:
    with_search(run)
    report = write_reports(run)
    # Right 0.8 against wrong 0.4 and a tie at 0.8: AUC (1 + 1/2) / 2. Brier (0.2^2 + 0.4^2 + 0.8^2) / 3 = 0.28.
    # ECE: one sample at 0.4, right 0; two at 0.8, right 1/2: (0.4 + 2 * 0.3) / 3. The imagined question does not count.
    assert lines(report["markdown"], "round 1", "new", "0.750 [0.750, 0.750]", "1", "0.750", "0.280", "0.333", "3")
    assert "Critics in search" in page(run)
    assert "had not been trained on new questions; revisited ones it may have seen" in page(run)


def test_a_search_without_a_model_critic_or_gold_answers(run: RunDirectory) -> None:
    with_search(run, critic_calls=0)
    assert "Round 1 was searched without a model critic." in write_reports(run)["markdown"]
    with_search(run)
    run.round(1).questions.path.unlink()
    assert "Round 1 cannot be judged: the run keeps no gold answers" in write_reports(run)["markdown"]


def test_examples_show_both_solutions(run: RunDirectory) -> None:
    run.round(0).questions.write([asked("dev-2", "Is it <right>?", "7")])
    run.round(0).evaluation("greedy").write(records("++--", "first\nsecond"))
    run.round(1).evaluation("greedy").write(records("+++-", "first\nother"))
    report = write_reports(run)
    assert report["exchanges"][0] == {"round": 1, "since": 0, "method": "greedy", "gained": ["dev-2"], "lost": []}
    text = page(run)
    assert "Round 1 against start, greedy: 1 gained, 0 lost" in text
    assert "Is it &lt;right&gt;?" in text
    assert "Gold answer: 7" in text
    assert '<div class="line text">first</div>' in text
    assert '<div class="line text differs">second -</div><div class="line text differs">other +</div>' in text
    write_reports(run, ReportConfig(examples_per_method=0))
    assert "1 more are in report.json" in page(run)


def test_trees_have_pages_and_their_number_is_limited(run: RunDirectory) -> None:
    with_search(run)
    report = write_reports(run)
    found = [tree["href"] for tree in report["searches"][0]["trees"]]
    assert found == ["trees/round_001_t-0.html", "trees/round_001_t-1.html"]
    assert all((run.path / href).is_file() and f'href="{href}"' in page(run) for href in found)
    limited = write_reports(run, ReportConfig(trees_per_round=1))
    assert len(limited["searches"][0]["trees"]) == 1
    assert limited["searches"][0]["trees"][0]["nodes"] == 5


def test_the_same_run_gives_the_same_bytes(run: RunDirectory) -> None:
    with_search(run)

    def written() -> dict[str, bytes]:
        write_reports(run)
        return {str(file): file.read_bytes() for file in sorted(run.path.rglob("*")) if file.is_file()}

    first = written()
    assert {"report.html", "report.md", "report.json", "round_001_t-0.html"} <= {Path(name).name for name in first}
    assert written() == first


def test_the_solver_that_stands(run: RunDirectory) -> None:
    settings = "solver: {engine: {model: base, dtype: auto}, critics: {orm: null}}\n"
    run.config_file.write_text(CONFIG + settings)
    for number in (1, 2):  # round 2 was rejected
        for name in ("policy", "orm"):
            run.round(number).checkpoint(name).mkdir(parents=True)
    solver = write_reports(run)["solver"]
    folder = run.path / "round_001" / "checkpoints"
    assert solver == {
        "engine": {"model": str(folder / "policy"), "dtype": "auto"},
        "critics": {"orm": str(folder / "orm")},
    }


def test_report_json_is_what_is_returned(run: RunDirectory) -> None:
    with_search(run)
    report = write_reports(run, note="A note.")
    markdown = report.pop("markdown")
    assert json.loads((run.path / "report.json").read_text()) == report
    assert (run.path / "report.md").read_text(encoding="utf-8") == markdown
    assert "A note." in markdown
    assert "<p>A note.</p>" in page(run)


def test_the_command_writes_the_report_anew(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--trees_per_round", "1"]) == 0
    assert "round 2 rejected" in capsys.readouterr().out
    assert main(["report", str(run.path), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out))[:4] == ["scores", "differences", "rounds", "solver"]


@pytest.mark.parametrize(("argv", "told"), [([], "is not a run"), (["--trees_per_round", "-1"], "trees_per_round is -1")])
def test_the_command_refuses(argv: list[str], told: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["report", str(tmp_path), *argv]) == 2
    assert told in capsys.readouterr().err


def test_new_and_revisited_questions_are_judged_apart(run: RunDirectory) -> None:
    with_search(run)
    run.round(1).questions.write([asked("t-0", QUESTION), asked("t-1", QUESTION, "2", "revisited")])
    markdown = write_reports(run)["markdown"]
    # With gold 2 the right one has 0.4 and both wrong ones 0.8: AUC 0; Brier (0.6^2 + 2 * 0.8^2) / 3 = 0.547.
    assert lines(markdown, "round 1", "new", "0.750 [0.750, 0.750]", "1", "0.750", "0.280")
    assert lines(markdown, "round 1", "revisited", "0.000 [0.000, 0.000]", "1", "0.000", "0.547")
    # Together 1.5 of 4 pairs in order, and (0.84 + 1.64) / 6.
    assert [line.split(" | ")[2][:5] for line in lines(markdown, "round 1", "all")] == ["0.375"]
    assert "| 0.413 |" in lines(markdown, "round 1", "all")[0]


def test_a_broken_configuration_is_named(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run.config_file.write_text("a: [")
    assert main(["report", str(run.path)]) == 2
    assert "config.yaml is broken" in capsys.readouterr().err
