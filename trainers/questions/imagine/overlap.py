"""Whether a question is near another one: the share of word n-grams that two questions have in common.

    share(a, b) = |A & B| / min(|A|, |B|),  A and B the sets of n-grams of a and b (overlap coefficient)

Why not Jaccard: an imagined question often is an old one with a sentence more or less. Divided by the smaller set, a
held-out question that is swallowed whole counts as 1, and so does a part of one; Jaccard falls with every word added.
Language-model papers look for one common n-gram of 8 to 13 words; the templates of word problems share those by chance.

Words are lower case, without punctuation; numbers in figures and words are one ("three" is "3", "1,200" is "1200"). As many
words with the very same numbers at the same places are the same question with names or things exchanged: a share of 1.

With `mask_numbers` all numbers are the same word: the story alone is compared. That is right against held-out questions
that people wrote, where the same story with other numbers gives the method away. It is wrong for questions from
templates, whose stories are all in the held-out set. Shares of questions that are near a dev one, with n = 4 and a
threshold of 0.5 (200 training questions of arith, 2000 of GSM8K; against 200 and 500):

                                              arith easy   medium    hard    GSM8K
    training questions, numbers masked              37.0 %   24.0 %  16.5 %    0.1 %
    training questions, numbers kept                12.5 %    2.5 %   0.5 %    0.1 %
    dev ones with other numbers, masked              100 %    100 %   100 %    100 %
    dev ones with other numbers, kept                 60 %     53 %    41 %     94 %
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from llm_mcts.fields import AtLeast, Settings, Within

_WORD = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBER = "#"
_MOST_DIGITS = 100
"""A longer run of digits is compared as it is written."""
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NAMED = {word: str(i) for i, word in enumerate(f"{_ONES} eighteen nineteen".split())}
_NAMED |= {word: str(10 * i) for i, word in enumerate(_TENS.split(), 2)}


@dataclass(frozen=True)
class OverlapConfig(Settings, section="overlap"):
    """When a question is too near to others."""

    ngram: Annotated[int, AtLeast(1)] = 4
    """Words per n-gram."""
    threshold: Annotated[float, Within(0, 1, open_low=True)] = 0.5
    """Share of common n-grams from which on a question is near a held-out one."""
    mask_numbers: bool = True
    """Against held-out questions, take all numbers for the same: a story with other numbers is then near. Turn it off for
    questions from templates (arith), whose stories all are in the held-out set."""
    duplicate: Annotated[float, Within(0, 1, open_low=True)] = 0.8
    """Share of common n-grams from which on a question with the very same numbers is a duplicate of a known one. One with
    other numbers never is."""


class OverlapIndex:
    """Questions by their n-grams: the nearest of thousands is found without comparing with each."""

    def __init__(self, questions: Iterable[str], ngram: int = 4, mask_numbers: bool = True, same_numbers: bool = False) -> None:
        """`same_numbers`: only questions with the very same numbers are compared, however many there are of others."""
        self.ngram, self.mask_numbers, self.same_numbers = ngram, mask_numbers, same_numbers
        self._holders: dict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        self._numbers: list[tuple[str, ...]] = []
        self._twins: dict[tuple[int, tuple[tuple[int, str], ...]], int] = {}
        for question in questions:
            self.add(question)

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, question: str) -> None:
        """Take in one more question; its place is the number of those before it."""
        grams = self._grams(question)
        for gram in grams:
            self._holders[gram].append(len(self._sizes))
        self._sizes.append(len(grams))
        self._numbers.append(numbers_of(question))
        if (outline := _outline(question))[1]:
            self._twins.setdefault(outline, len(self._sizes) - 1)

    def nearest(self, question: str) -> tuple[float, int | None]:
        """The largest share that `question` has in common with one question, and that one's place; (0.0, None): none."""
        if (twin := self._twins.get(_outline(question))) is not None:
            return 1.0, twin
        grams = self._grams(question)
        common = Counter(holder for gram in grams for holder in self._holders.get(gram, ()))
        numbers = numbers_of(question)
        shares = [
            (n / min(len(grams), self._sizes[i]), -i)
            for i, n in common.items()
            if not self.same_numbers or self._numbers[i] == numbers
        ]
        share, place = max(shares, default=(0.0, 1))
        return share, None if place > 0 else -place

    def _grams(self, question: str) -> set[int]:
        """Hashes of the n-grams; a text shorter than one is a single n-gram."""
        words = words_of(question, self.mask_numbers)
        n = min(self.ngram, max(1, len(words)))
        return {_hash(" ".join(words[i : i + n])) for i in range(len(words) - n + 1)}


def words_of(question: str, mask_numbers: bool = False) -> list[str]:
    """The words that are compared: lower case, numbers in one spelling, or all alike where masked."""
    words = [_NAMED.get(word, word) for word in _WORD.findall(question.lower())]
    return [_spelt(word, mask_numbers) if word[0].isdecimal() else word for word in words]


def numbers_of(question: str) -> tuple[str, ...]:
    """All numbers of a question in one spelling, sorted, without 1 ("one of them" is none)."""
    return tuple(sorted(word for word in words_of(question) if word[0].isdecimal() and word != "1"))


def _outline(question: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    """How many words there are, and which numbers stand where."""
    words = words_of(question)
    return len(words), tuple((i, word) for i, word in enumerate(words) if word[0].isdecimal())


def _spelt(number: str, mask: bool) -> str:
    return _NUMBER if mask else str(Fraction(number.replace(",", ""))) if len(number) <= _MOST_DIGITS else number


def _hash(gram: str) -> int:
    return int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
