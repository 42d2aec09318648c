"""The built-in task: templated word problems in GSM8K's format, made on the spot, offline, in any number.

A problem is a short story whose events are 2 to 5 arithmetic operations. The reference solution works one operation a
line and ends in `#### N`, as GSM8K's do. Splits are disjoint by construction: the template and its numbers are hashed,
and the hash, not the seed, decides whether a problem belongs to train, dev or test.

    easy    2 operations, numbers to 12, results to 50
    medium  3 operations, numbers to 20, results to 99
    hard    4 or 5 operations, numbers to 35, results to 110
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_mcts.errors import ConfigError, DataError, suggest
from llm_mcts.tasks.answers import extract_answer
from llm_mcts.tasks.arith_steps import judge_lines
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.types import Problem

Level = Literal["easy", "medium", "hard"]
Split = Literal["train", "dev", "test"]

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jack",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Zoe",
]
THINGS = ["apples", "marbles", "stickers", "coins", "cards", "books", "pencils", "shells", "stamps", "beads"]
BOXES = ["boxes", "bags", "packs", "trays"]


@dataclass(frozen=True)
class LevelSpec:
    """How hard one level is."""

    operations: tuple[int, ...]
    """How many operations a problem may have."""
    largest_start: int
    """The largest number a story starts from."""
    largest_total: int
    """No intermediate result exceeds this."""


LEVELS: dict[str, LevelSpec] = {
    "easy": LevelSpec((2,), 12, 50),
    "medium": LevelSpec((3,), 20, 99),
    "hard": LevelSpec((4, 5), 35, 110),
}


@dataclass(frozen=True)
class Ref:
    """An operand that is the result of an earlier operation."""

    index: int


Operand = int | Ref


@dataclass(frozen=True)
class Operation:
    """One arithmetic operation of a story: `left symbol right = result`, and the sentence that reports it."""

    symbol: str
    left: Operand
    right: Operand
    result: int
    sentence: str
    """The worked line, with `{work}` where "expression = result" belongs."""


@dataclass
class Story:
    """A problem under construction: the sentences told so far and the operations they imply."""

    rng: random.Random
    spec: LevelSpec
    name: str
    friend: str
    thing: str
    told: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    template: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    total: Operand = 0
    """The quantity the story is about: a literal, or the operation that computed it last."""

    def value(self, operand: Operand) -> int:
        """The number an operand stands for."""
        return self.operations[operand.index].result if isinstance(operand, Ref) else operand

    def add(self, symbol: str, left: Operand, right: Operand, sentence: str) -> Ref:
        """Append an operation and return a reference to its result."""
        a, b = self.value(left), self.value(right)
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[symbol]
        self.operations.append(Operation(symbol, left, right, result, sentence))
        return Ref(len(self.operations) - 1)

    def tell(self, kind: str, text: str, *numbers: int) -> None:
        """Append a sentence; its kind and numbers become part of the problem's identity."""
        self.told.append(text)
        self.template.append(kind)
        self.numbers.extend(numbers)


# Each opening sets `story.total`, each event changes it, each ending asks for it. The number beside an event or ending in
# the tables below is how many operations it costs.


def _open_plain(s: Story) -> None:
    a = s.rng.randint(3, s.spec.largest_start)
    s.tell("has", f"{s.name} has {a} {s.thing}.", a)
    s.total = a


def _open_boxes(s: Story) -> None:
    k, m = s.rng.randint(2, 9), s.rng.randint(2, max(4, s.spec.largest_start // 3))
    s.tell("boxes", f"{s.name} has {k} {s.rng.choice(BOXES)} with {m} {s.thing} each.", k, m)
    s.total = s.add("*", k, m, f"{s.name} has {{work}} {s.thing}.")


def _open_more(s: Story) -> None:
    a, b = s.rng.randint(3, s.spec.largest_start), s.rng.randint(2, s.spec.largest_start)
    s.tell("more", f"{s.friend} has {a} {s.thing}. {s.name} has {b} more {s.thing} than {s.friend}.", a, b)
    s.total = s.add("+", a, b, f"{s.name} has {{work}} {s.thing}.")


def _open_times(s: Story) -> None:
    a, k = s.rng.randint(3, max(4, s.spec.largest_start // 2)), s.rng.randint(2, 5)
    s.tell("times", f"{s.friend} has {a} {s.thing}. {s.name} has {k} times as many {s.thing} as {s.friend}.", a, k)
    s.total = s.add("*", a, k, f"{s.name} has {{work}} {s.thing}.")


def _buy(s: Story) -> None:
    b = s.rng.randint(2, s.spec.largest_start)
    s.tell("buy", s.rng.choice([f"Then {s.name} buys {b} more.", f"{s.friend} gives {s.name} {b} more."]), b)
    s.total = s.add("+", s.total, b, f"Then {s.name} has {{work}} {s.thing}.")


def _give(s: Story) -> None:
    most = min(s.value(s.total) - 1, s.spec.largest_start)
    b = s.rng.randint(1, most) if most >= 1 else 0
    s.tell("give", s.rng.choice([f"{s.name} gives {b} to {s.friend}.", f"{s.name} loses {b} of them."]), b)
    s.total = s.add("-", s.total, b, f"Then {s.name} has {{work}} {s.thing} left.")


def _double(s: Story) -> None:
    k = s.rng.choice([2, 3])
    s.tell("multiply", f"Then the number of {s.thing} {'doubles' if k == 2 else 'triples'}.", k)
    s.total = s.add("*", s.total, k, f"Then {s.name} has {{work}} {s.thing}.")


def _share(s: Story) -> None:
    divisors = [k for k in (2, 3, 4, 5, 6) if s.value(s.total) % k == 0 and s.value(s.total) > k]
    k = s.rng.choice(divisors) if divisors else 1
    half = f"{s.name} gives half of them away." if k == 2 else f"{s.name} keeps 1 of {k} equal parts."
    s.tell("share", half, k)
    s.total = s.add("/", s.total, k, f"Then {s.name} has {{work}} {s.thing} left.")


def _buy_boxes(s: Story) -> None:
    k, m = s.rng.randint(2, 9), s.rng.randint(2, max(4, s.spec.largest_start // 4))
    box = s.rng.choice(BOXES)
    s.tell("buy boxes", f"Then {s.name} buys {k} {box} with {m} {s.thing} each.", k, m)
    bought = s.add("*", k, m, f"The {box} hold {{work}} {s.thing}.")
    s.total = s.add("+", s.total, bought, f"Then {s.name} has {{work}} {s.thing}.")


def _give_friends(s: Story) -> None:
    k = s.rng.randint(2, 6)
    m = s.rng.randint(1, max(1, min(s.spec.largest_start, (s.value(s.total) - 1) // k)))
    s.tell("give friends", f"{s.name} gives {m} to each of {k} friends.", m, k)
    given = s.add("*", m, k, f"{s.name} gives away {{work}} {s.thing}.")
    s.total = s.add("-", s.total, given, f"Then {s.name} has {{work}} {s.thing} left.")


OPENINGS = [_open_plain, _open_boxes, _open_more, _open_times]
EVENTS = [(_buy, 1), (_give, 1), (_double, 1), (_share, 1), (_buy_boxes, 2), (_give_friends, 2)]


def _end_count(s: Story) -> None:
    s.tell("count", f"How many {s.thing} does {s.name} have now?")


def _end_sell(s: Story) -> None:
    p = s.rng.randint(2, 9)
    s.tell("sell", f"{s.name} sells them all for {p} dollars each. How many dollars does {s.name} get?", p)
    s.total = s.add("*", s.total, p, f"{s.name} gets {{work}} dollars.")


def _end_together(s: Story) -> None:
    c = s.rng.randint(1, s.spec.largest_start)
    s.tell("together", f"Now {s.friend} has {c} more than {s.name}. How many {s.thing} do they have together?", c)
    other = s.add("+", s.total, c, f"{s.friend} has {{work}} {s.thing}.")
    s.total = s.add("+", s.total, other, f"Together they have {{work}} {s.thing}.")


ENDINGS = [(_end_count, 0), (_end_sell, 1), (_end_together, 2)]


@dataclass(frozen=True)
class ArithProblem:
    """A finished story with its operations, from which solutions of any granularity can be written."""

    question: str
    operations: tuple[Operation, ...]
    signature: str
    """Template and numbers: what decides the split."""

    @property
    def gold(self) -> str:
        """The answer, an integer as text."""
        return str(self.operations[-1].result)

    def solution(self, shown: set[int] | None = None) -> str:
        """The worked lines and the answer line.

        `shown` holds the operations that get a line of their own (default: all); any other is worked inside the line
        that uses its result, as a hasty solver would.
        """
        last = len(self.operations) - 1
        shown = set(range(last + 1)) if shown is None else shown | {last}
        lines = [
            op.sentence.format(work=f"{self._expression(i, shown)} = {op.result}")
            for i, op in enumerate(self.operations)
            if i in shown
        ]
        return "\n".join([*lines, f"#### {self.gold}"])

    def _expression(self, index: int, shown: set[int]) -> str:
        def operand(x: Operand, parent: str, right: bool) -> str:
            if isinstance(x, int):
                return str(x)
            if x.index in shown:
                return str(self.operations[x.index].result)
            inner = self._expression(x.index, shown)
            loose = self.operations[x.index].symbol in "+-"
            needs_brackets = (loose and parent in "*/") or (right and (parent == "/" or (parent == "-" and loose)))
            return f"({inner})" if needs_brackets else inner

        op = self.operations[index]
        return f"{operand(op.left, op.symbol, False)} {op.symbol} {operand(op.right, op.symbol, True)}"


def draw(rng: random.Random, spec: LevelSpec) -> ArithProblem:
    """Draw one problem; redraws until its operation count and sizes fit `spec`."""
    while True:
        name, friend = rng.sample(NAMES, 2)
        story = Story(rng, spec, name, friend, rng.choice(THINGS))
        target = rng.choice(spec.operations)
        ending, ending_cost = rng.choice(ENDINGS)
        rng.choice(OPENINGS)(story)
        while (room := target - len(story.operations) - ending_cost) > 0:
            event, _ = rng.choice([e for e in EVENTS if e[1] <= room])
            event(story)
        ending(story)
        results = [op.result for op in story.operations]
        proper = all(op.symbol != "/" or story.value(op.right) > 1 for op in story.operations)
        if len(results) == target and proper and min(story.numbers) > 0 and all(1 <= r <= spec.largest_total for r in results):
            signature = f"{' '.join(story.template)}|{' '.join(map(str, story.numbers))}"
            return ArithProblem(" ".join(story.told), tuple(story.operations), signature)


def split_of(signature: str) -> Split:
    """The split a problem belongs to: 80 % train, 10 % dev, 10 % test, by the hash of template and numbers."""
    bucket = int.from_bytes(hashlib.sha256(signature.encode()).digest()[:8], "big") % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def stream(split: Split, level: Level, seed: int, spec: LevelSpec | None = None) -> Iterator[ArithProblem]:
    """Yield problems of a split and level without end, repetitions included; the same arguments give the same problems.

    `spec` takes the place of the level's own.
    """
    if level not in LEVELS:
        raise ConfigError(f"arith has no level '{level}'{suggest(level, LEVELS)}")
    rng = random.Random(f"arith/{split}/{level}/{seed}")
    while True:
        problem = draw(rng, spec or LEVELS[level])
        if split_of(problem.signature) == split:
            yield problem


def distinct(problems: Iterator[ArithProblem], n: int) -> Iterator[ArithProblem]:
    """The first `n` problems that differ in template or numbers.

    Raises:
        ConfigError: so many repetitions in a row that the level seems used up.
    """
    seen: set[str] = set()
    repeated = 0
    for problem in problems:
        if len(seen) == n:
            return
        repeated = repeated + 1 if problem.signature in seen else 0
        if repeated > 10_000:
            raise ConfigError(
                f"arith has no {n} distinct problems of this level and split, only about {len(seen)}; ask for fewer"
            )
        if not repeated:
            seen.add(problem.signature)
            yield problem


@dataclass(frozen=True)
class ArithTask(AnswerTask):
    """Built-in word problems; see the module's docstring for levels and splits."""

    level: Level = "hard"
    """easy, medium or hard."""
    name: str = "arith"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        """Return `limit` (default 200) problems of a split (train, dev or test)."""
        if split not in ("train", "dev", "test"):
            raise ConfigError(f"arith has no split '{split}'{suggest(split, ['train', 'dev', 'test'])}")
        problems = distinct(stream(split, self.level, seed), 200 if limit is None else limit)  # type: ignore[arg-type]
        return [
            Problem(f"arith-{self.level}-{split}-{seed}-{i}", p.question, p.gold, p.solution()) for i, p in enumerate(problems)
        ]

    def step_truth(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """For each line whether it is right, by arithmetic (`arith_steps`); the answer line is right when the answer is.

        Raises:
            DataError: the problem has no reference solution or answer.
        """
        if problem.solution is None or problem.gold is None:
            raise DataError(f"question {problem.id} has no reference solution; expected one to judge steps by")
        truth = judge_lines(problem.solution, steps)
        for i, line in enumerate(steps):
            if truth[i] is None and extract_answer(line) is not None and "####" in line:
                truth[i] = self.check(line, problem.gold)
            if truth[i] is False:
                return truth[: i + 1] + [None] * (len(steps) - i - 1)
        return truth
