"""The built-in task's stories solved from their text alone: a second opinion for questions that nobody has an answer of."""

import re
from fractions import Fraction

_TWO = {"doubles": 2, "triples": 3}
_SENTENCES = [
    (r"(\w+) has (\d+) (?:boxes|bags|packs|trays) with (\d+) \w+ each\.", lambda t, m: Fraction(m[2]) * Fraction(m[3])),
    (r"(\w+) has (\d+) times as many \w+ as \w+\.", lambda t, m: t * Fraction(m[2])),
    (r"(\w+) has (\d+) more \w+ than \w+\.", lambda t, m: t + Fraction(m[2])),
    (
        r"Then (\w+) buys (\d+) (?:boxes|bags|packs|trays) with (\d+) \w+ each\.",
        lambda t, m: t + Fraction(m[2]) * Fraction(m[3]),
    ),
    (r"Then (\w+) buys (\d+) more\.", lambda t, m: t + Fraction(m[2])),
    (r"(\w+) gives \w+ (\d+) more\.", lambda t, m: t + Fraction(m[2])),
    (r"(\w+) gives (\d+) to each of (\d+) friends\.", lambda t, m: t - Fraction(m[2]) * Fraction(m[3])),
    (r"(\w+) gives (\d+) to \w+\.", lambda t, m: t - Fraction(m[2])),
    (r"(\w+) loses (\d+) of them\.", lambda t, m: t - Fraction(m[2])),
    (r"Then the number of \w+ (doubles|triples)\.", lambda t, m: t * _TWO[m[1]]),
    (r"(\w+) gives half of them away\.", lambda t, m: t / 2),
    (r"(\w+) keeps 1 of (\d+) equal parts\.", lambda t, m: t / Fraction(m[2])),
    (r"(\w+) sells them all for (\d+) dollars each\.", lambda t, m: t * Fraction(m[2])),
    (r"Now (\w+) has (\d+) more than \w+\.", lambda t, m: t + t + Fraction(m[2])),
    (r"(\w+) has (\d+) \w+\.", lambda t, m: Fraction(m[2])),
]


def amounts(question: str) -> list[Fraction]:
    """What there is after each sentence of a story; the last is its answer."""
    told: list[Fraction] = [Fraction(0)]
    for sentence in re.split(r"(?<=[.?]) ", question):
        if not sentence.endswith("?"):
            told.append(next(work(told[-1], m) for p, work in _SENTENCES if (m := re.fullmatch(p, sentence))))
    return told[1:]
