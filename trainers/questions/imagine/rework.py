"""A reference solution worked again with other numbers: whether a question still makes sense.

    48/2 = 24, 48+24 = 72  with 48 -> 60  gives  60/2 = 30, 60+30 = 90

Each number of an equation is an earlier result (the last one that was so much), a number of the question, or a constant of
the solution's own (the 2 of a half). Where it could be both of the first two, nothing is decided from there on. What comes
out tells whether the new numbers fit each other; it is not taken for the gold answer, for the 2 of "2 boxes" and the 2 of
"half" look the same.
"""

import re
from fractions import Fraction

from llm_mcts.tasks.answers import parse_number
from llm_mcts.tasks.equations import equations, evaluate
from trainers.questions.imagine.renumber import Changes

_ANNOTATED = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GRAINS = (Fraction(1), Fraction(1, 100))
"""Whole things and cents: what was a multiple of one has to remain one."""


def reworked(solution: str, changes: Changes) -> list[tuple[Fraction, Fraction]]:
    """The old and new result of each equation in order, up to the first that cannot be worked again."""
    results: Changes = {}
    found: list[tuple[Fraction, Fraction]] = []
    for expression, stated in equations_of(solution):
        old, new = parse_number(stated), _worked(expression, results, changes)
        if old is None or new is None or evaluate(expression) != old:
            break
        results[old] = new
        found.append((old, new))
    return found


def makes_sense(solution: str, changes: Changes) -> bool:
    """Whether every result, as far as the solution can be worked again, is positive, whole, or a whole number of cents, if
    it was before."""
    return all(
        (new > 0 or old <= 0) and all((new / grain).denominator == 1 for grain in _GRAINS if (old / grain).denominator == 1)
        for old, new in reworked(solution, changes)
    )


def equations_of(solution: str) -> list[tuple[str, str]]:
    """Expressions with their stated results: GSM8K's annotations where there are any, else the equations of the lines."""
    annotated: list[tuple[str, str]] = _ANNOTATED.findall(solution)
    return annotated or [pair for line in solution.split("\n") for pair in equations(line)]


def _worked(expression: str, results: Changes, changes: Changes) -> Fraction | None:
    """The value with every number replaced by its new one; None where a number could have two."""
    known = {Fraction(n) for n in _NUMBER.findall(expression)}
    if any(n in results and n in changes and changes[n] != results[n] for n in known):
        return None
    new = {**changes, **results}
    return evaluate(_NUMBER.sub(lambda match: f"({new.get(Fraction(match[0]), Fraction(match[0]))})", expression))
