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
from dataclasses import dataclass
from typing import Literal

from llm_mcts.errors import ConfigError, DataError, suggest
from llm_mcts.tasks.answers import extract_answer
from llm_mcts.tasks.arith_steps import judge_lines
from llm_mcts.tasks.arith_stories import ENDINGS, EVENTS, LEVELS, NAMES, OPENINGS, THINGS, LevelSpec, Operand, Operation, Story
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.types import Problem

Level = Literal["easy", "medium", "hard"]
Split = Literal["train", "dev", "test"]


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
            return ArithProblem(" ".join(story.sentences), tuple(story.operations), signature)


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
        ConfigError: so many repetitions in a row that the level seems exhausted.
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
