r"""Finding and comparing final answers, exactly and without evaluating any text.

A stated answer is looked for in this order: the last `#### x`, the last `\boxed{x}`, the last "the answer is x", the
last line `A: x`. Numbers compare as exact rationals ("1,200.00" equals "1200", "1/2" equals "0.5", "50%" equals "50"),
other answers as normalised text. There is no tolerance: 3.33 is not 10/3.
"""

import re
from fractions import Fraction

_MARKERS = [
    re.compile(r"####[ \t]*([^\n]*)"),
    None,  # \boxed{...}, found by matching braces
    re.compile(r"\b(?:final\s+)?answer\s*(?:is|:|=)\s*:?[ \t]*([^\n]*)", re.IGNORECASE),
    re.compile(r"^[ \t]*A:[ \t]*([^\n]*)", re.MULTILINE),
]
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_CURRENCY = "$€£¥"


def extract_answer(text: str) -> str | None:
    """Return the normalised final answer that `text` states, or None where it states none."""
    for marker in _MARKERS:
        stated = _last_boxed(text) if marker is None else (marker.findall(text) or [None])[-1]
        if stated is not None and (answer := normalise_answer(stated)):
            return answer
    return None


def _last_boxed(text: str) -> str | None:
    r"""The contents of the last complete `\boxed{...}`, with nested braces."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for i in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : i]
        start = text.rfind("\\boxed{", 0, start)
    return None


def normalise_answer(answer: str) -> str:
    """One spelling for each answer: plain numbers without commas, currency, units or trailing zeros; else lower case.

    Idempotent. An empty string means that nothing was stated.
    """
    text = answer.strip()
    boxed = _last_boxed(text)
    if boxed is not None:
        text = boxed
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\!", "").replace("\\,", "").replace("\u2212", "-")
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = text.strip().strip("*`").strip()
    text = text.rstrip(".,;:!").strip()
    number = parse_number(text)
    if number is not None:
        return format_number(number)
    return " ".join(text.lower().split())


def parse_number(text: str) -> Fraction | None:
    """Read a number with optional currency sign, thousands commas, percent sign, unit words or a simple fraction.

    Returns None for anything else, such as two numbers or a formula: "3 or 4" is no number.
    """
    text = text.strip()
    text = re.sub(r"\\d?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)
    sign = -1 if re.match(rf"-\s*[{_CURRENCY}]", text) else 1
    text = re.sub(rf"^-?\s*[{_CURRENCY}]\s*", "", text) if sign == -1 else re.sub(rf"^[{_CURRENCY}]\s*", "", text)
    match = _NUMBER.match(text)
    if not match:
        return None
    value = Fraction(match.group().replace(",", ""))
    rest = text[match.end() :].strip()
    if fraction := re.match(r"/\s*(\d+)(?![\d.,]*\d)", rest):
        if int(fraction.group(1)) == 0:
            return None
        value /= int(fraction.group(1))
        rest = rest[fraction.end() :].strip()
    # What may follow is a unit: words and signs without any digit or operator.
    if re.search(r"[\d+*/=^\\<>()\-]", rest.replace("-", "", 0)) or " or " in f" {rest.lower()} ":
        return None
    return sign * value


def format_number(value: Fraction) -> str:
    """The canonical text of a rational: an integer, a finite decimal, or else a reduced fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are equal after normalisation; an empty one equals nothing."""
    left, right = normalise_answer(a), normalise_answer(b)
    return bool(left) and left == right
