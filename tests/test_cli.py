"""The command line on bad input: one clear line, exit status 2, no traceback, nothing lost; and on good input, JSON."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mcts.cli import main
from llm_mcts.runs.trees import load_tree, save_tree
from llm_mcts.search import tree_search
from llm_mcts.tree import Node, Tree

SMALL_SEARCH = ["--search.name", "mcts", "--search.num_simulations", "2", "--policy.max_solution_tokens", "16"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must fail; return its one line on standard error."""

    def run(argv: list[str]) -> str:
        assert main(argv) == 2
        output = capsys.readouterr()
        assert output.out == ""
        lines = output.err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("llm-mcts: ")
        return lines[0]

    return run


def test_unknown_command_is_suggested(refused: Callable[[list[str]], str]) -> None:
    assert "did you mean 'solve'" in refused(["slove", "question"])


def test_unknown_setting_is_suggested(refused: Callable[[list[str]], str]) -> None:
    assert "did you mean 'search'" in refused(["solve", "question", "--serach.name", "greedy"])


def test_unknown_key_in_a_file_is_suggested(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("engine: {max_bach: 4}\n")
    line = refused(["solve", "question", "--config", str(file)])
    assert "engine.max_bach" in line
    assert "did you mean 'max_batch'" in line


def test_unknown_search_setting_is_suggested(refused: Callable[[list[str]], str]) -> None:
    line = refused(["solve", "question", "--search.name", "mcts", "--search.num_simulation", "4"])
    assert "did you mean 'num_simulations'" in line


@pytest.mark.parametrize(
    ("setting", "value"),
    [("--search.num_simulations", "0"), ("--engine.max_batch", "-1"), ("--policy.temperature", "0"), ("--seed", "x")],
)
def test_unusable_value_is_named(refused: Callable[[list[str]], str], setting: str, value: str) -> None:
    line = refused(["solve", "question", setting, value])
    assert value in line
    assert setting.rsplit(".", 1)[-1].lstrip("-") in line


def test_setting_without_value(refused: Callable[[list[str]], str]) -> None:
    assert "--seed has no value" in refused(["solve", "question", "--seed"])


def test_missing_configuration_file(refused: Callable[[list[str]], str]) -> None:
    assert "nowhere.yaml" in refused(["solve", "question", "--config", "nowhere.yaml"])


def test_missing_data_file(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    assert str(file) in refused(["evaluate", "--task.name", "jsonl", "--task.path", str(file)])


def test_broken_data_line_names_file_and_line(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": \n')
    line = refused(["evaluate", "--task.name", "jsonl", "--task.path", str(file)])
    assert f"{file}:2" in line
    assert "expected" in line


def test_question_without_answer_cannot_be_evaluated(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"id": "first", "question": "1 + 1?"}\n')
    assert "first" in refused(["evaluate", "--task.name", "jsonl", "--task.path", str(file)])


@pytest.mark.parametrize(
    ("missing", "named"), [("model.safetensors", "weights"), ("tokenizer", "tokenizer"), ("config.json", "config.json")]
)
def test_incomplete_model_folder(
    refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path, missing: str, named: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for file in folder.glob(f"{missing}*"):
        file.unlink()
    line = refused(["solve", "question", "--engine.model", str(folder)])
    assert str(folder) in line
    assert named in line


def test_model_folder_that_does_not_exist(refused: Callable[[list[str]], str]) -> None:
    assert "/nowhere/model" in refused(["solve", "question", "--engine.model", "/nowhere/model"])


def test_empty_question(refused: Callable[[list[str]], str]) -> None:
    assert "empty" in refused(["solve", "  "])


def test_question_longer_than_the_context(refused: Callable[[list[str]], str], tiny_model: Path) -> None:
    line = refused(["solve", "word " * 400, "--engine.model", str(tiny_model)])
    assert "256" in line
    assert "context" in line


def test_critic_of_another_kind(refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path) -> None:
    from critics import CriticModel

    CriticModel.create("orm", str(tiny_model)).save_pretrained(tmp_path / "critic")
    line = refused(["solve", "question", "--critics.value", str(tmp_path / "critic")])
    assert "'orm'" in line
    assert "'value'" in line


def test_run_directory_of_another_configuration(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    from dataclasses import asdict

    from llm_mcts.config import load_config
    from llm_mcts.runs.directory import RunDirectory
    from trainers.loop.self_improve import SelfImproveConfig

    out = tmp_path / "run"
    RunDirectory.open(out, asdict(load_config(SelfImproveConfig)), resume=False)
    before = (out / "config.yaml").read_bytes()
    line = refused(["self-improve", "--out", str(out), "--resume", "--seed", "7"])
    assert "seed (was 0, now 7)" in line
    assert "--resume" in refused(["self-improve", "--out", str(out)])
    assert (out / "config.yaml").read_bytes() == before


def test_rows_of_another_trainer(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "q", "steps": ["#### 1"], "label": 1.0}\n')
    line = refused(["train", "prm", str(file), "--out", str(tmp_path / "out")])
    assert f"{file}:1" in line
    assert not (tmp_path / "out").exists()


def test_solve_prints_json(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    assert main(["solve", "How many?", "--json", "--engine.model", str(tiny_model), *SMALL_SEARCH]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["question"] == "How many?"
    assert result["usage"]["generated_tokens"] > 0


def outline(file: Path) -> list[tuple[str, str, int]]:
    """A saved tree without its floating-point numbers, whose last bits depend on the batch."""
    return [(node.key(), node.step.text, node.visit_count) for node in load_tree(file).nodes()]


def solve_into(file: Path, tiny_model: Path, *extra: str) -> list[str]:
    return ["solve", "What is 1 + 1?", "--engine.model", str(tiny_model), *SMALL_SEARCH, "--tree", str(file), *extra]


@pytest.mark.parametrize("name", ["tree.json", "tree.json.gz"])
def test_solve_keeps_a_tree_and_goes_on_with_it(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    file, whole = tmp_path / name, tmp_path / "whole.json"
    more = ("--search.num_simulations", "9", "--search.num_parallel", "2", "--json")
    assert main(solve_into(file, tiny_model, "--search.num_parallel", "2")) == 0
    first = load_tree(file)
    capsys.readouterr()
    assert main(solve_into(file, tiny_model, *more)) == 0
    continued = json.loads(capsys.readouterr().out)
    assert main(solve_into(whole, tiny_model, *more)) == 0
    at_once = json.loads(capsys.readouterr().out)
    assert (continued["answer"], continued["steps"]) == (at_once["answer"], at_once["steps"])
    again = load_tree(file)
    assert outline(file) == outline(whole)
    assert again.root.visit_count > first.root.visit_count
    assert again.usage.generated_tokens == at_once["usage"]["generated_tokens"] > first.usage.generated_tokens


def test_a_tree_of_another_question(refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path) -> None:
    save_tree(Tree("Another?"), tmp_path / "tree.json")
    assert "of question 'Another?'" in refused(solve_into(tmp_path / "tree.json", tiny_model))


def test_a_broken_tree_file(refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text("{")
    assert "tree.json holds no whole tree" in refused(solve_into(file, tiny_model))
    assert file.read_text() == "{"


def test_a_tree_for_a_search_without_one(refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    argv = ["solve", "What is 1 + 1?", "--engine.model", str(tiny_model), "--search", "greedy", "--tree", str(file)]
    assert "greedy grows no tree" in refused(argv)
    assert not file.exists()


def test_an_interrupted_search_keeps_its_tree(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_backup, count = tree_search.backup, iter(range(10**6))

    def interrupted(leaf: Node) -> None:
        true_backup(leaf)
        if next(count) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(tree_search, "backup", interrupted)
    more = ("--search.num_simulations", "20", "--search.num_parallel", "1")
    assert main(solve_into(tmp_path / "tree.json", tiny_model, *more)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert load_tree(tmp_path / "tree.json").root.visit_count == 5
    monkeypatch.setattr(tree_search, "backup", true_backup)
    for file in ("tree.json", "whole.json"):
        assert main(solve_into(tmp_path / file, tiny_model, *more)) == 0
    assert outline(tmp_path / "tree.json") == outline(tmp_path / "whole.json")


@pytest.mark.parametrize("command", ["solve", "evaluate"])
def test_a_place_that_cannot_be_written_to(
    command: str, refused: Callable[[list[str]], str], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / "below" / "tree.json"
    if command == "solve":
        line = refused(solve_into(place, tiny_model))
    else:
        line = refused(["evaluate", "--solver.engine.model", str(tiny_model), "--out", str(place)])
    assert "choose another" in line


def test_settings_may_stand_before_the_question(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    settings = ["--engine.model", str(tiny_model), *SMALL_SEARCH]
    answers = []
    for argv in (
        ["What is 1 + 1?", *settings],
        [*settings, "What is 1 + 1?"],
        [settings[0], settings[1], "What is 1 + 1?", *settings[2:]],
    ):
        assert main(["solve", "--json", *argv]) == 0
        answers.append(json.loads(capsys.readouterr().out)["steps"])
    assert answers[0] == answers[1] == answers[2]


def test_a_negative_value_is_a_value(refused: Callable[[list[str]], str]) -> None:
    assert "num_simulations is -1" in refused(["solve", "--search.num_simulations", "-1", "Q?"])


def test_resume_needs_a_folder(refused: Callable[[list[str]], str]) -> None:
    assert "--resume needs --out" in refused(["evaluate", "--resume"])


def test_evaluate_writes_table_json_and_csv(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    argv = ["evaluate", "--num_questions", "3", "--solver.engine.model", str(tiny_model), "--out", str(out)]
    argv += ["--methods", "{greedy: greedy, vote: {name: self_consistency, num_samples: 2}}"]
    assert main([*argv, "--solver.policy.max_solution_tokens", "16"]) == 0
    assert "| vote | 3 |" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert [score["method"] for score in report["scores"]] == ["greedy", "vote"]
    assert (out / "report.csv").read_text().count("\n") == 3
    assert len((out / "vote.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "command", ["solve", "evaluate", "self-improve", "report", "train", "label", "imagine", "diagnose", "serve"]
)
def test_help_lists_the_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert "settings:" in text
