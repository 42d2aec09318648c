"""Which lines of a solution are right: by hand, and against reference solutions of every granularity."""

import random
from fractions import Fraction

import pytest

from llm_mcts.errors import DataError
from llm_mcts.tasks.arith import ArithTask, distinct, stream
from llm_mcts.tasks.arith_steps import judge_lines, read_work
from llm_mcts.tasks.base import StepTask
from llm_mcts.tasks.gsm8k import GSM8KTask
from llm_mcts.types import Problem
from scripts.step_labels import faulty_solutions

REFERENCE = "Mia has 6 * 3 = 18 shells.\nThen Mia has 18 - 7 = 11 shells left.\nTogether they have 11 + 9 = 20 shells.\n#### 20"
PROBLEM = Problem("p", "?", "20", REFERENCE)


def test_work_is_read() -> None:
    [((numbers, operators, value), stated)] = read_work("Then Mia has (7 * 4 - 6) / 2 = 12 shells left.")
    assert (numbers, operators, value, stated) == ((2, 4, 6, 7), ("*", "-", "/"), Fraction(22, 2), 12)
    assert read_work("Mia has 12 shells.") == read_work("Mia has = 12") == read_work("Mia has 12 = 12.") == []
    assert [stated for _, stated in read_work("1 + 1 = 2, so 2 * 3.5 = 7.0.")] == [2, 7]
    for broken in ("1 / 0 = 3", "(1 + 2 = 3", "1 + * 2 = 3", "1 + 2) = 3"):
        assert [shape[2] for shape, _ in read_work(broken)] in ([None], [])


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("Mia has 6 * 3 = 18 shells.", True),
        ("Mia has 3 * 6 = 18 shells.", True),  # the same numbers, the same value
        ("Then Mia has 6 * 3 - 7 = 11 shells left.", True),  # two operations in one line
        ("Together they have (6 * 3 - 7) + 9 = 20 shells.", True),
        ("Together they have 18 - 7 + 9 = 20 shells.", True),
        ("Mia has 6 * 3 = 19 shells.", False),  # a slip
        ("Mia has 6 + 3 = 9 shells.", False),  # true, and not what the story says
        ("Then Mia has 7 - 18 = 11 shells left.", False),  # another value
        ("Then Mia has 19 - 7 = 12 shells left.", False),  # it follows from an error
        ("Then Mia has 6 * 3 = 18 and 18 - 7 = 12 shells.", False),  # one of two is wrong
        ("Let us think.", None),
    ],
)
def test_lines_by_hand(line: str, right: bool | None) -> None:
    assert judge_lines(REFERENCE, [line]) == [right]


def test_a_solution_is_judged_up_to_its_first_wrong_step() -> None:
    task = ArithTask()
    assert task.step_truth(PROBLEM, REFERENCE.split("\n")) == [True] * 4
    lines = [
        "Mia has 6 * 3 = 18 shells.",
        "Then Mia has 18 - 7 = 12 shells left.",
        "Together they have 12 + 9 = 20.",
        "#### 20",
    ]
    assert task.step_truth(PROBLEM, lines) == [True, False, None, None]
    assert task.step_truth(PROBLEM, ["So it is easy.", "#### 20"]) == [None, True]
    assert task.step_truth(PROBLEM, ["Mia has 6 * 3 = 18 shells.", "#### 18"]) == [True, False]
    assert task.step_truth(PROBLEM, ["the end"]) == [None]


def test_references_of_any_granularity_are_right_and_planted_errors_are_found() -> None:
    task, draw = ArithTask(), random.Random(0)
    for level in ("easy", "medium", "hard"):
        for found in distinct(stream("dev", level, 1), 60):  # type: ignore[arg-type]
            problem = Problem("p", found.question, found.gold, found.solution())
            for _ in range(3):
                shown = {i for i in range(len(found.operations)) if draw.random() < 0.5}
                lines = found.solution(shown).split("\n")
                assert task.step_truth(problem, lines) == [True] * len(lines)
    golds = {p.question: p.solution() for p in distinct(stream("dev", "hard", 0), 240)}
    for problem, lines, at in faulty_solutions("hard", 60):
        truth = task.step_truth(Problem("p", problem.question, problem.gold, golds[problem.question]), lines)
        assert truth == [True] * at + [False] + [None] * (len(lines) - at - 1)


def test_who_can_judge_steps() -> None:
    assert isinstance(ArithTask(), StepTask)
    assert not isinstance(GSM8KTask(), StepTask)
    with pytest.raises(DataError, match="question p has no reference solution"):
        ArithTask().step_truth(Problem("p", "?", "1"), ["#### 1"])
