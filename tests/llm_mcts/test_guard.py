"""Test questions stay closed until the report opens them."""

import json
from pathlib import Path

import pytest

from llm_mcts.errors import DataError
from llm_mcts.tasks import ArithTask, GSM8KTask, JsonlTask
from llm_mcts.tasks.base import StepTask, Task
from llm_mcts.tasks.guard import GuardedTask, TestSplitClosed


@pytest.fixture
def task(tmp_path: Path) -> GuardedTask:
    for split, answer in (("train", 1), ("dev", 2), ("test", 3)):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": f"a {split} question", "answer": answer}) + "\n")
    return GuardedTask(JsonlTask(str(tmp_path)))


def test_train_and_dev_pass(task: GuardedTask) -> None:
    assert [p.gold for split in ("train", "dev") for p in task.load(split)] == ["1", "2"]
    assert (task.name, task.check("#### 4", "4"), task.check("#### 5", "4")) == ("jsonl", True, False)


def test_test_is_closed_until_it_is_opened(task: GuardedTask) -> None:
    with pytest.raises(TestSplitClosed, match=r"before the final report; expected train or dev"):
        task.load("test")
    with pytest.raises(TestSplitClosed):
        task.load(split="test", limit=1, seed=3)
    task.open_test()
    assert [p.gold for p in task.load("test")] == ["3"]


@pytest.mark.parametrize(
    "split",
    ["./test", "Test", "TEST", " test", "test ", "test\n", "dev/../test", "ｔｅｓｔ", "test\0", "x/../test", "", "tést"],
)
def test_no_other_spelling_leads_there(task: GuardedTask, split: str) -> None:
    with pytest.raises(DataError, match="no plain name"):
        task.load(split)


def test_texts_without_answers(task: GuardedTask) -> None:
    assert task.texts_only("test") == ["a test question"]
    with pytest.raises(TestSplitClosed):
        task.load("test")


def test_the_guard_is_a_task_and_judges_steps_only_where_its_task_does() -> None:
    arith, gsm8k = GuardedTask(ArithTask("easy")), GuardedTask(GSM8KTask("nowhere"))
    assert isinstance(arith, Task)
    assert isinstance(arith, StepTask)
    assert not isinstance(gsm8k, StepTask)
    problem = arith.load("train", 1)[0]
    lines = (problem.solution or "").split("\n")
    assert arith.step_truth(problem, lines) == ArithTask("easy").step_truth(problem, lines)
    assert arith.load("dev", 3, 1) == ArithTask("easy").load("dev", 3, 1)


def test_nothing_of_the_task_shows_through(task: GuardedTask) -> None:
    assert [name for name in dir(task) if not name.startswith("_")] == ["check", "load", "name", "open_test", "texts_only"]
