r"""Finding and comparing final answers, exactly and without evaluating any text.

A stated answer is looked for in this order: the last `#### x`, the last `\boxed{x}`, the last "the answer is x", the
last line `A: x`. Numbers compare as exact rationals ("1,200.00" equals "1200", "1/2" equals "0.5", "50%" equals "50"),
other answers as normalised text. There is no tolerance: 3.33 is not 10/3.
"""

import re
from fractions import Fraction

_MARKERS = [
    re.compile(r"####"),
    None,  # \boxed{...}, found by matching braces
    re.compile(r"\b(?:final\s+)?answer\s*(?:is\b|:|=)\s*:?", re.IGNORECASE),
    re.compile(r"^[ \t]*A:", re.MULTILINE),
]
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_CURRENCY = "$€£¥"
_MOST_DIGITS = 1000
"""A longer run of digits is text, not a number."""
_UNIT = re.compile(rf"\s*[%{_CURRENCY}°]?(?:(?:[a-z]{{2,}}|[mghs]\b|\s|\.|,|;|:|!).*)?", re.IGNORECASE | re.DOTALL)
"""What may stand behind a number: a sign, or words; "5x" and "5½" are not numbers."""
_FACTORS = re.compile(r"\b(?:dozens?|hundreds?|thousands?|[mbtr]+illions?|half|halves|thirds?|quarters?|or|k)\b", re.IGNORECASE)
"""Words that change a number instead of naming its unit."""


def extract_answer(text: str) -> str | None:
    """Return the normalised final answer that `text` states, or None where it states none."""
    for marker in _MARKERS:
        stated = [_last_boxed(text)] if marker is None else _statements(text, marker)
        for candidate in reversed(stated):
            if candidate is not None and (answer := normalise_answer(candidate)):
                return answer
    return None


def _statements(text: str, marker: re.Pattern[str]) -> list[str | None]:
    """What follows each occurrence of `marker`, up to the next one or the end of the line."""
    found = list(marker.finditer(text))
    stops = [*(match.start() for match in found[1:]), len(text)]
    return [text[match.end() : stop].lstrip(" \t").split("\n", 1)[0] for match, stop in zip(found, stops, strict=False)]


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
    before, text = None, answer
    while text != before:
        before, text = text, _normalise_once(text)
    return text


def _normalise_once(text: str) -> str:
    """Take one layer of dress off: boxes, LaTeX, emphasis, closing punctuation."""
    boxed = _last_boxed(text)
    text = text if boxed is None else boxed
    for dress, plain in (("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("$$", ""), ("\u2212", "-")):
        text = text.replace(dress, plain)
    text = re.sub(r"\\[!,()\[\]]", "", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = text.strip().strip("*`").strip().rstrip(".,;:!").strip()
    number = parse_number(text)
    return " ".join(text.lower().split()) if number is None else format_number(number)


def parse_number(text: str) -> Fraction | None:
    r"""Read a number with optional currency sign, thousands commas, percent sign, unit words, or a simple fraction.

    Returns None for anything else, such as two numbers, a formula, or a number with a factor: "3 or 4" and "5 million"
    are not numbers here.
    """
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text.strip())
    signed_currency = re.match(rf"(-?)\s*[{_CURRENCY}]\s*", text)
    negative = bool(signed_currency and signed_currency.group(1))
    text = text[signed_currency.end() :] if signed_currency else text
    match = _NUMBER.match(text)
    if not match or len(match.group()) > _MOST_DIGITS or (negative and match.group()[0] in "+-"):
        return None
    value = Fraction(match.group().replace(",", ""))
    rest = text[match.end() :]
    if fraction := re.match(r"\s*/\s*(\d{1,1000})(?![\d.,]*\d)", rest):
        if int(fraction.group(1)) == 0:
            return None
        value /= int(fraction.group(1))
        rest = rest[fraction.end() :]
    if re.search(r"[\d+*/=^\\<>()\-]", rest) or not _UNIT.fullmatch(rest) or _FACTORS.search(rest):
        return None
    return -value if negative else value


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
