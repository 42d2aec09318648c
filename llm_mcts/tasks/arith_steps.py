"""Which lines of a solution to a built-in problem are right, by arithmetic alone.

A line works something out: "Then Mia has 3 * 4 - 5 = 7 shells left." It is right when it combines the numbers that one of the
reference's operations combines, some of its operands worked out inside the line or not, with the same operators to the same
value, and states that value. Words are not read: the right sum about the wrong person is right. A line without any work is
nothing that arithmetic can judge.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

from llm_mcts.tasks.equations import evaluate

# A model's line may break off anywhere: less is asked of an expression than where a true equation is wanted.
_WORK = re.compile(r"([\d(][\d\s+\-*/().]*?)\s*=\s*(-?\d+(?:\.\d+)?)")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/()]")

Shape = tuple[tuple[Fraction, ...], tuple[str, ...], Fraction | None]
"""The numbers and operators of an expression, sorted, and its value; None where it has none."""


def read_work(line: str) -> list[tuple[Shape, Fraction]]:
    """The expressions with an operator that a line works out, each with the result that it states."""
    found = []
    for expression, stated in _WORK.findall(line):
        tokens = _TOKEN.findall(expression)
        if any(token in "+-*/" for token in tokens):
            found.append((_shape(tokens), Fraction(stated)))
    return found


def right_shapes(solution: str) -> set[Shape]:
    """Every expression that a right line may have, from a reference solution with one operation a line.

    An operand that equals an earlier result may stand as a number or be worked out on the spot.
    """
    shapes: list[tuple[Fraction, list[Shape]]] = []
    for line in solution.split("\n"):
        for (numbers, operators, value), stated in read_work(line):
            assert value == stated, "a reference solution is right"
            operands = [[_literal(n), *(s for result, known in shapes if result == n for s in known)] for n in numbers]
            shapes.append((stated, [_joined(chosen, operators, stated) for chosen in product(*operands)]))
    return {shape for _, known in shapes for shape in known}


def judge_lines(solution: str, lines: Sequence[str]) -> list[bool | None]:
    """For each line whether its work is right; None for one without any. What stands behind a wrong line is judged too."""
    known = right_shapes(solution)
    works = [read_work(line) for line in lines]
    return [all(shape in known and shape[2] == stated for shape, stated in work) if work else None for work in works]


def _literal(number: Fraction) -> Shape:
    return (number,), (), number


def _joined(operands: Sequence[Shape], operators: tuple[str, ...], value: Fraction) -> Shape:
    numbers = sorted(n for operand in operands for n in operand[0])
    signs = sorted([*operators, *(o for operand in operands for o in operand[1])])
    return tuple(numbers), tuple(signs), value


def _shape(tokens: Sequence[str]) -> Shape:
    numbers = sorted(Fraction(token) for token in tokens if token[0].isdigit())
    value = evaluate(" ".join(token.lstrip("0") or "0" for token in tokens))
    return tuple(numbers), tuple(sorted(t for t in tokens if t in "+-*/")), value
