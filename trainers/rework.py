"""A reference solution worked again with other numbers: whether a question still makes sense.

    48/2 = 24, 48+24 = 72  with 48 -> 60  gives  60/2 = 30, 60+30 = 90

Each number of an equation is an earlier result, a number of the question, or a constant of the solution's own (the 2 of a
half). One that could be two of these is not decided here: such a solution cannot be worked again. What comes out tells
whether the new numbers fit each other; it is not taken for the gold answer, for a 2 of the question and a 2 of "half" look
the same.
"""

import re
from fractions import Fraction

from llm_mcts.tasks.answers import parse_number
from trainers.rationales import equations, evaluate
from trainers.renumber import Changes

_ANNOTATED = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")


def reworked(solution: str, gold: str, changes: Changes) -> list[tuple[Fraction, Fraction]] | None:
    """The old and new result of every equation, in order.

    None where the solution cannot be worked again: its last equation does not give the gold answer, one does not hold, or a
    number could be an earlier result as well as one of the question's.
    """
    results: Changes = {}
    found: list[tuple[Fraction, Fraction]] = []
    for expression, stated in _equations(solution):
        old, new = parse_number(stated), _worked(expression, results, changes)
        if old is None or new is None or evaluate(expression) != old or results.get(old, new) != new:
            return None
        results[old] = new
        found.append((old, new))
    return found if found and found[-1][0] == parse_number(gold) else None


def _worked(expression: str, results: Changes, changes: Changes) -> Fraction | None:
    """The value with every number replaced by its new one; None where a number could have two."""
    known = {Fraction(n) for n in _NUMBER.findall(expression)}
    if any(n in results and n in changes and changes[n] != results[n] for n in known):
        return None
    new = {**changes, **results}
    return evaluate(_NUMBER.sub(lambda match: f"({new.get(Fraction(match[0]), Fraction(match[0]))})", expression))


def makes_sense(solution: str, gold: str, changes: Changes) -> bool:
    """Whether every result that was whole or positive still is; True where the solution cannot be worked again."""
    results = reworked(solution, gold, changes) or []
    return all((new > 0 or old <= 0) and (new.denominator == 1 or old.denominator > 1) for old, new in results)


def _equations(solution: str) -> list[tuple[str, str]]:
    """Expressions with their stated results: GSM8K's annotations where there are any, else the equations of the lines."""
    annotated = _ANNOTATED.findall(solution)
    return annotated or [pair for line in solution.split("\n") for pair in equations(line)]
