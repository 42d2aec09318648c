"""The stories of the built-in task: how one opens, what happens in it, and what it asks at the end."""

import random
from dataclasses import dataclass, field

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
    """A problem under construction: its sentences so far and the operations they imply."""

    rng: random.Random
    spec: LevelSpec
    name: str
    friend: str
    thing: str
    sentences: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    template: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    total: Operand = 0
    """The quantity the story is about: a literal, or the operation that computed it last."""

    def value(self, operand: Operand) -> int:
        """The number an operand stands for."""
        return self.operations[operand.index].result if isinstance(operand, Ref) else operand

    def add_operation(self, symbol: str, left: Operand, right: Operand, sentence: str) -> Ref:
        """Append an operation and return a reference to its result."""
        a, b = self.value(left), self.value(right)
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[symbol]
        self.operations.append(Operation(symbol, left, right, result, sentence))
        return Ref(len(self.operations) - 1)

    def add_sentence(self, kind: str, text: str, *numbers: int) -> None:
        """Append a sentence; its kind and numbers become part of the problem's identity."""
        self.sentences.append(text)
        self.template.append(kind)
        self.numbers.extend(numbers)


# Each opening sets `story.total`, each event changes it, each ending asks for it. The number beside an event or ending in
# the tables below is how many operations it costs.


def _open_plain(s: Story) -> None:
    a = s.rng.randint(3, s.spec.largest_start)
    s.add_sentence("has", f"{s.name} has {a} {s.thing}.", a)
    s.total = a


def _open_boxes(s: Story) -> None:
    k, m = s.rng.randint(2, 9), s.rng.randint(2, max(4, s.spec.largest_start // 3))
    s.add_sentence("boxes", f"{s.name} has {k} {s.rng.choice(BOXES)} with {m} {s.thing} each.", k, m)
    s.total = s.add_operation("*", k, m, f"{s.name} has {{work}} {s.thing}.")


def _open_more(s: Story) -> None:
    a, b = s.rng.randint(3, s.spec.largest_start), s.rng.randint(2, s.spec.largest_start)
    s.add_sentence("more", f"{s.friend} has {a} {s.thing}. {s.name} has {b} more {s.thing} than {s.friend}.", a, b)
    s.total = s.add_operation("+", a, b, f"{s.name} has {{work}} {s.thing}.")


def _open_times(s: Story) -> None:
    a, k = s.rng.randint(3, max(4, s.spec.largest_start // 2)), s.rng.randint(2, 5)
    s.add_sentence("times", f"{s.friend} has {a} {s.thing}. {s.name} has {k} times as many {s.thing} as {s.friend}.", a, k)
    s.total = s.add_operation("*", a, k, f"{s.name} has {{work}} {s.thing}.")


def _buy(s: Story) -> None:
    b = s.rng.randint(2, s.spec.largest_start)
    s.add_sentence("buy", s.rng.choice([f"Then {s.name} buys {b} more.", f"{s.friend} gives {s.name} {b} more."]), b)
    s.total = s.add_operation("+", s.total, b, f"Then {s.name} has {{work}} {s.thing}.")


def _give(s: Story) -> None:
    most = min(s.value(s.total) - 1, s.spec.largest_start)
    b = s.rng.randint(1, most) if most >= 1 else 0
    s.add_sentence("give", s.rng.choice([f"{s.name} gives {b} to {s.friend}.", f"{s.name} loses {b} of them."]), b)
    s.total = s.add_operation("-", s.total, b, f"Then {s.name} has {{work}} {s.thing} left.")


def _double(s: Story) -> None:
    k = s.rng.choice([2, 3])
    s.add_sentence("multiply", f"Then the number of {s.thing} {'doubles' if k == 2 else 'triples'}.", k)
    s.total = s.add_operation("*", s.total, k, f"Then {s.name} has {{work}} {s.thing}.")


def _share(s: Story) -> None:
    divisors = [k for k in (2, 3, 4, 5, 6) if s.value(s.total) % k == 0 and s.value(s.total) > k]
    k = s.rng.choice(divisors) if divisors else 1
    half = f"{s.name} gives half of them away." if k == 2 else f"{s.name} keeps 1 of {k} equal parts."
    s.add_sentence("share", half, k)
    s.total = s.add_operation("/", s.total, k, f"Then {s.name} has {{work}} {s.thing} left.")


def _buy_boxes(s: Story) -> None:
    k, m = s.rng.randint(2, 9), s.rng.randint(2, max(4, s.spec.largest_start // 4))
    box = s.rng.choice(BOXES)
    s.add_sentence("buy boxes", f"Then {s.name} buys {k} {box} with {m} {s.thing} each.", k, m)
    bought = s.add_operation("*", k, m, f"The {box} hold {{work}} {s.thing}.")
    s.total = s.add_operation("+", s.total, bought, f"Then {s.name} has {{work}} {s.thing}.")


def _give_friends(s: Story) -> None:
    k = s.rng.randint(2, 6)
    m = s.rng.randint(1, max(1, min(s.spec.largest_start, (s.value(s.total) - 1) // k)))
    s.add_sentence("give friends", f"{s.name} gives {m} to each of {k} friends.", m, k)
    given = s.add_operation("*", m, k, f"{s.name} gives away {{work}} {s.thing}.")
    s.total = s.add_operation("-", s.total, given, f"Then {s.name} has {{work}} {s.thing} left.")


OPENINGS = [_open_plain, _open_boxes, _open_more, _open_times]
EVENTS = [(_buy, 1), (_give, 1), (_double, 1), (_share, 1), (_buy_boxes, 2), (_give_friends, 2)]


def _end_count(s: Story) -> None:
    s.add_sentence("count", f"How many {s.thing} does {s.name} have now?")


def _end_sell(s: Story) -> None:
    p = s.rng.randint(2, 9)
    s.add_sentence("sell", f"{s.name} sells them all for {p} dollars each. How many dollars does {s.name} get?", p)
    s.total = s.add_operation("*", s.total, p, f"{s.name} gets {{work}} dollars.")


def _end_together(s: Story) -> None:
    c = s.rng.randint(1, s.spec.largest_start)
    s.add_sentence("together", f"Now {s.friend} has {c} more than {s.name}. How many {s.thing} do they have together?", c)
    other = s.add_operation("+", s.total, c, f"{s.friend} has {{work}} {s.thing}.")
    s.total = s.add_operation("+", s.total, other, f"Together they have {{work}} {s.thing}.")


ENDINGS = [(_end_count, 0), (_end_sell, 1), (_end_together, 2)]
