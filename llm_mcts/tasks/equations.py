"""Reads the equations that a line of a solution states, and works out expressions of numbers; nothing is ever executed."""

import ast
import re
from fractions import Fraction

EQUATION = re.compile(r"(-?[\d(][\d\s.+\-*/()]{0,200}?)\s*=\s*(-?\d{1,15}(?:\.\d{1,10})?)(?!\d)")
"""An expression in figures and what it is said to be."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPERATOR = re.compile(r"[\d)]\s*[+\-*/]\s*[\d(]")
_WRITTEN = re.compile(r"[\d(][\d \t.,+\-*/()%$]*=[ \t]*-?\$?\d[\d,]*(?:\.\d+)?")
_SAME_SIGN = str.maketrans({"×": "*", "x": "*", "·": "*", "÷": "/", "−": "-"})
# What in front of an expression makes it part of another one, and what behind its result.
_BEFORE, _BEHIND = "+-*/=%$,×÷^", "+-*/=%×÷^"


def equations(text: str) -> list[tuple[str, str]]:
    """The whole equations in figures that a line holds, without those that are part of longer ones or hold a percentage."""
    text = _THOUSANDS.sub("", text)
    found = []
    for match in EQUATION.finditer(text):
        before, behind = text[: match.start()], text[match.end() :]
        part = before[-1:].isalnum() or before.rstrip()[-1:] in tuple(_BEFORE) or before.rstrip()[-2:] in (" x", " X")
        if not part and behind.lstrip()[:1] not in tuple(_BEHIND) and _OPERATOR.search(match[1]):
            found.append((match[1].strip(), match[2]))
    return found


def written_equations(text: str) -> tuple[str, ...]:
    """Whatever is written as an equation, percentages and parts of longer ones too, in order; without blanks, currency and
    thousands separators. It tells whether two solutions do the same sums, not whether a sum is right."""
    return tuple(re.sub(r"[\s$,]", "", found) for found in _WRITTEN.findall(text.translate(_SAME_SIGN)))


def evaluate(expression: str) -> Fraction | None:
    """The value of an expression of numbers, + - * / and brackets; None for anything else, or a division by zero."""
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.Div):
            return a / b
    raise ValueError("not an expression of numbers")
