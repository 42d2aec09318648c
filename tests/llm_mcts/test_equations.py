"""Equations in texts, and the values of expressions."""

from fractions import Fraction

import pytest

from llm_mcts.tasks.equations import equations, evaluate, written_equations


def test_written_equations_by_hand() -> None:
    text = "He has 3.\n16 - 20 / 2 = 6 and (1,000 + 2) x 3 = 3,006.\n#### 6"
    assert written_equations(text) == ("16-20/2=6", "(1000+2)*3=3006")
    assert written_equations("Half: <<48/2=24>>24\n5 ÷ 2 = 2.5") == ("48/2=24", "5/2=2.5")
    assert written_equations("No sum.") == ()
    assert written_equations("1 + 2 = 3\n2 + 1 = 3") == ("1+2=3", "2+1=3")


def test_whole_equations_by_hand() -> None:
    assert equations("So 1,000 + 2 = 1002, and (3 - 1) * 2 = 4.") == [("1000 + 2", "1002"), ("(3 - 1) * 2", "4")]
    assert equations("3 + 4 = 7 = 2 + 5") == []  # each is a part of a longer one
    assert equations("50% * 4 = 2") == equations("2 * 3 = 60%") == []
    assert equations("x = 4 and 7 = 7") == []  # no operator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("7 / 2", Fraction(7, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("-3 - -4", 1),
        ("8 / 2 / 2", 2),
        ("1 / 0", None),
        ("2 ** 3", None),
        ("7 // 2", None),
        ("f(2)", None),
        ("1 2", None),
        ("(" * 500 + "1" + ")" * 500, None),
    ],
)
def test_values_by_hand(expression: str, value: Fraction | None) -> None:
    assert evaluate(expression) == value
