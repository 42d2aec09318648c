"""The numbers of a question: which may change, other ones of similar size, or one of them hidden. By rule, without a model.

Left as they are: 0 and 1, numbers in words, fractions, ratios and times of the day ("1/2", "2:3", "7:30", "9 am"), numbers
with letters ("2nd", "5kg"), years and dates, names ("Grade 5"), 100 %, and what a calendar or clock fixes ("7 days a week").

A changed number keeps its form: decimals, thousands commas, roundness (300 becomes 250, not 317). Equal numbers stay equal.
What held between the old numbers is kept where some draw keeps it: their order, which divides which, that the others do not
sum up to more than the largest. Where the question speaks of a half or a third, what could be halved still can.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, inf, lcm
from typing import Annotated

from llm_mcts.fields import Above, AtLeast, Settings, Within
from llm_mcts.tasks.answers import format_number, parse_number

Changes = dict[Fraction, Fraction]
"""Old value -> new value."""

_FIGURES = re.compile(r"(?<![\w.,:/])(?<!\w-)(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|[.,:/]\d)")
_MOST_DIGITS = 100
"""A longer run of digits is no number."""
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_NAME = "Grade|Room|Chapter|Level|Route|Day|Week|Year|Highway|Number|No\\.|Section|Part|Gate|Apartment"
_NAMED = re.compile(rf"\b(?:{_MONTH}|{_NAME})\s+$")
_CLOCK = re.compile(r"\s*(?:[ap]\.?m\b|o['’]clock)|(?:st|nd|rd|th)\b|\s+(?:of\s+)?(?:" + _MONTH + r")\b", re.IGNORECASE)
_YEAR_BEFORE = re.compile(rf"\b(?:in|since|year|until|till|by|during|from|{_MONTH})\s+$", re.IGNORECASE)
_PERCENT = re.compile(r"\s*%|[\s-]percent\b", re.IGNORECASE)
_A = r"(?:\s+|-)(?:out\s+of\s+the|of\s+the|in\s+an?|in\s+each|an?|per|each|every)\s+"
_BOUNDS = [
    (re.compile(rf"[\s-]+{unit}{_A}{whole}\b", re.IGNORECASE), bound)
    for unit, whole, bound in (
        ("days?", "week", 7),
        ("hours?", "day", 24),
        ("hours?", "night", 12),
        ("hours?", "week", 80),
        ("months?", "year", 12),
        ("weeks?", "year", 52),
        ("weeks?", "month", 4),
        ("days?", "month", 30),
        ("days?", "year", 365),
        ("minutes?", "hour", 60),
        ("seconds?", "minute", 60),
        ("inches", "foot", 12),
        ("feet", "yard", 3),
        ("ounces", "pound", 16),
        ("cents", "dollar", 100),
    )
]
"""What a longer span of time or a larger unit holds at most; a number that is the bound itself is a fact and stays."""
_PARTS = {
    2: r"\bhal(?:f|ves|ved?)\b|\b50\s*%",
    3: r"\bthirds?\b",
    4: r"\bquarters?\b|\bfourths?\b|\b[27]5\s*%",
    5: r"\bfifths?\b",
}
_FRACTION = re.compile(r"\b\d+/(\d{1,2})\b")


@dataclass(frozen=True)
class NumbersConfig(Settings, section="numbers"):
    """How numbers are changed."""

    low: Annotated[float, Within(0, 1, open_low=True, open_high=True)] = 0.5
    """A new number is at least this times the old one."""
    high: Annotated[float, Above(1)] = 2.0
    """A new number is at most this times the old one."""
    draws: Annotated[int, AtLeast(1)] = 50
    """Sets of new numbers drawn per question, the best of which is taken."""


@dataclass(frozen=True)
class Number:
    """A number of a question that may change."""

    start: int
    end: int
    text: str
    percent: bool
    bound: float
    """It cannot be more than this."""

    @property
    def value(self) -> Fraction:
        """What it stands for."""
        return Fraction(self.text.replace(",", ""))


def numbers_in(question: str) -> list[Number]:
    """The numbers that may change, in order. A value that has to stay in one place stays in all."""
    matches = [match for match in _FIGURES.finditer(question) if len(match.group()) <= _MOST_DIGITS]
    found = [(_value(match), _changeable(question, match)) for match in matches]
    fixed = {value for value, number in found if number is None}
    return [number for value, number in found if number is not None and value not in fixed]


def _changeable(question: str, match: re.Match[str]) -> Number | None:
    """The number, or None where it has to stay."""
    before, behind, text = question[: match.start()], question[match.end() :], match.group()
    percent = _PERCENT.match(behind) is not None
    bound = min((float(bound) for unit, bound in _BOUNDS if unit.match(behind)), default=inf)
    number = Number(match.start(), match.end(), text, percent, bound)
    fixed = (
        number.value in (0, 1)
        or number.value == bound
        or (percent and number.value == 100)
        or _CLOCK.match(behind)
        or _NAMED.search(before)
        or (text.isdigit() and len(text) == 4 and _is_year(int(text), before))
        or (text.isdigit() and text.startswith("0"))
    )
    return None if fixed else number


def _is_year(value: int, before: str) -> bool:
    return 1800 <= value < 2100 and not before.endswith("$") and (value % 100 != 0 or _YEAR_BEFORE.search(before) is not None)


def change_numbers(
    question: str, config: NumbersConfig, seed: int, sound: Callable[[Changes], bool] = lambda _: True
) -> tuple[str, Changes] | None:
    """The question with other numbers, and which became which; None where no number may change, or no draw is `sound`.

    Of all draws that are sound, the one that breaks the fewest relations between the old numbers is taken.
    """
    numbers = numbers_in(question)
    parts = _parts_of(question)
    options = {n.value: _options(_tightest(n.value, numbers), parts, config) for n in numbers}
    options = {value: found for value, found in options.items() if found}
    if not options:
        return None
    rng = random.Random(seed)
    draws = [{value: rng.choice(found) for value, found in options.items()} for _ in range(config.draws)]
    for changes in sorted(draws, key=_broken):
        if sound(changes):
            return _written(question, numbers, changes), changes
    return None


def _tightest(value: Fraction, numbers: Sequence[Number]) -> Number:
    """Of the places where a value stands, the one with the least room: all of them get the same new value."""
    same = [n for n in numbers if n.value == value]
    return min(same, key=lambda n: (100.0 if n.percent and n.value < 100 else n.bound, len(n.text.partition(".")[2])))


def _parts_of(question: str) -> list[int]:
    """The parts that the question speaks of: 2 for a half, 3 for a third."""
    named = {n for n, words in _PARTS.items() if re.search(words, question, re.IGNORECASE)}
    return sorted(named | {int(n) for n in _FRACTION.findall(question) if int(n) > 1})


def _options(number: Number, parts: Sequence[int], config: NumbersConfig) -> list[Fraction]:
    """All values that may take a number's place, as round as it is where there are at least three such."""
    places = len(number.text.partition(".")[2])
    old = int(number.value * 10**places)
    low = max(2 if places == 0 else 1, ceil(old * Fraction(config.low)))
    high = old * Fraction(config.high)
    if number.bound < inf:
        high = min(high, Fraction(number.bound) * 10**places)
    if number.percent and number.value < 100:
        high = min(high, Fraction(100 * 10**places - 1))
    divisors = [] if number.percent or places else [n for n in parts if old % n == 0]
    found: list[int] = []
    for step in _steps(old, places, number.percent):
        found = [n for n in _spread(low, floor(high), lcm(step, *divisors)) if n != old]
        if places and old % 10:
            found = [n for n in found if n % 10]
        if len(found) >= 3:
            break
    return [Fraction(n, 10**places) for n in found]


def _spread(low: int, high: int, step: int) -> range:
    """The multiples of `step` from `low` to `high`, thinned out evenly where there are more than about a thousand."""
    stride = max(1, (high - low) // step // 1000)
    while stride % 2 == 0 or stride % 5 == 0:  # so that every last digit comes up
        stride += 1
    return range(-(-low // step) * step, high + 1, step * stride)


def _steps(old: int, places: int, percent: bool) -> list[int]:
    """Distances between possible values, the roundest first."""
    whole = percent and not places
    tens = [] if whole else [10**k for k in range(len(str(old)) - 1, 0, -1) if old % 10**k == 0]
    halves = [size for ten in tens for size in (ten, ten // 2)]
    cents = [size for size in (50, 25) if places == 2 and old % size == 0]
    fives = [5] if (places or whole) and old % 5 == 0 else []
    return sorted({*halves, *cents, *fives, 1}, reverse=True)


def _broken(changes: Changes) -> int:
    """How many relations between the old numbers do not hold between the new ones."""
    old = sorted(changes)
    broken = sum(changes[a] >= changes[b] for a, b in pairwise(old))
    broken += sum((changes[b] / changes[a]).denominator != 1 for a in old for b in old if a < b and (b / a).denominator == 1)
    if len(old) > 2 and sum(old[:-1]) <= old[-1]:
        broken += sum(changes[n] for n in old[:-1]) > changes[old[-1]]
    return broken


def _written(question: str, numbers: Sequence[Number], changes: Changes) -> str:
    """The question with the new numbers in the old ones' form."""
    for number in reversed(numbers):
        if number.value in changes:
            places = len(number.text.partition(".")[2])
            comma = "," if "," in number.text or (changes[number.value] >= 10_000 and len(number.text) < 5) else ""
            whole, part = divmod(int(changes[number.value] * 10**places), 10**places)
            new = f"{whole:{comma}}" + (f".{part:0{places}}" if places else "")
            question = question[: number.start] + new + question[number.end :]
    return question


def hide_number(question: str, answer: str, seed: int, index: int) -> tuple[str, str] | None:
    """FOBAR's backward question (as in MetaMath, arXiv 2309.12284) and its answer, the hidden number.

    The number stands in the question once and is not the answer told, or it would not be hidden; of those the `index`-th in a
    drawn order. None where there are not so many. The paper's wording: "If we know the answer to the above question is A,
    what is the value of unknown variable x?"
    """
    numbers = numbers_in(question)
    values = Counter(n.value for n in numbers)
    once = [n for n in numbers if values[n.value] == 1 and n.value != parse_number(answer)]
    letters = [c for c in "xyzn" if not re.search(rf"\b{c}\b", question, re.IGNORECASE)]
    if index >= len(once) or not letters:
        return None
    number = random.Random(seed).sample(once, len(once))[index]
    hidden = question[: number.start] + letters[0] + question[number.end :]
    asked = f"If we know the answer to the above question is {answer}, what is the value of unknown variable {letters[0]}?"
    return f"{hidden} {asked}", format_number(number.value)


def _value(match: re.Match[str]) -> Fraction:
    return Fraction(match.group().replace(",", ""))
