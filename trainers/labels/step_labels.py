"""Automatic step labels: how likely a prefix still leads to the right answer, from a policy's completions of it.

    Math-Shepherd   `n` completions of every prefix; soft label the share of right ones, hard label whether there is one
                    (arXiv 2312.08935)
    OmegaPRM        binary search for the first step after which none is right: n log2(M) completions instead of n M; a pool of
                    wrong completions, the most telling first, is searched in turn (arXiv 2406.06592)

Every completion is counted (`Labeller.completions`), and their tokens are metered as always, so a label's price is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings, Within
from llm_mcts.search.contracts import completions
from llm_mcts.seeding import derive_seed
from llm_mcts.tasks.base import Task
from llm_mcts.types import Policy, Problem, State, Step
from trainers.data.evidence import Prefix
from trainers.data.rows import StepRow


@dataclass(frozen=True)
class Measured:
    """What the completions of one prefix showed."""

    right: int
    total: int
    wrong: tuple[Prefix, ...]
    """The wrong completions: the steps behind the prefix."""

    @property
    def value(self) -> float:
        """Monte-Carlo value: the share of right completions."""
        return self.right / self.total


class Labeller:
    """Measures prefixes of one problem's solutions, each once."""

    def __init__(self, policy: Policy, task: Task, problem: Problem, num_completions: int = 8, seed: int = 0) -> None:
        """`num_completions`: of each prefix. Math-Shepherd and OmegaPRM: 8.

        Raises:
            ConfigError: the problem has no gold answer, or num_completions is below 1.
        """
        if problem.gold is None or num_completions < 1:
            raise ConfigError(
                f"labels of question {problem.id} with gold {problem.gold!r} and {num_completions} completions; expected an "
                "answer, and at least 1"
            )
        self.policy, self.task, self.problem, self.gold = policy, task, problem, problem.gold
        self.num_completions, self.seed = num_completions, seed
        self.completions = 0
        """Solutions completed so far."""
        self.measured: dict[Prefix, Measured] = {}

    async def measure(self, prefix: Sequence[str]) -> Measured:
        """Complete a prefix and see how often the answer is right."""
        key = tuple(prefix)
        if key not in self.measured:
            ends = await self._complete(key, self.num_completions, 0)
            wrong = [end for end in ends if not self.is_right(end)]
            behind = tuple(tuple(step.text for step in end.steps[len(key) :]) for end in wrong)
            self.measured[key] = Measured(len(ends) - len(wrong), len(ends), behind)
        return self.measured[key]

    async def can_be_right(self, prefix: Sequence[str]) -> bool:
        """Whether a completion is right, asking for two, then twice as many, until one is or all have been made.

        That saves completions of good prefixes. It is no value: to stop at a success favours it.
        """
        made, n = 0, 2
        while made < self.num_completions:
            n = min(n, self.num_completions - made)
            if any(self.is_right(end) for end in await self._complete(tuple(prefix), n, made)):
                return True
            made, n = made + n, 2 * n
        return False

    async def _complete(self, prefix: Prefix, n: int, made: int) -> list[State]:
        state = State(self.problem.question, tuple(map(Step, prefix)))
        seed = derive_seed(self.seed, self.problem.question, *prefix, "label", made)
        ends = await completions(self.policy, state, n, seed)
        self.completions += len(ends)
        return ends

    def is_right(self, state: State) -> bool:
        """Whether a whole solution states the right answer."""
        return state.answer is not None and self.task.check(f"#### {state.answer}", self.gold)


async def math_shepherd(labeller: Labeller, steps: Sequence[str], right: bool, hard: bool = False) -> list[float]:
    """A label in [0, 1] for every step of a whole solution.

    Args:
        steps: the solution's lines; the last one states the answer.
        right: whether that answer is right, which is the last step's label and costs nothing.
        hard: 1 where any completion is right, else 0; soft labels are the share of right ones.
    """
    found = await gather_all([labeller.measure(steps[: i + 1]) for i in range(len(steps) - 1)])
    values = [float(m.right > 0) if hard else m.value for m in found]
    return [*values, float(right)]


async def first_wrong_step(
    labeller: Labeller, steps: Sequence[str], before: Sequence[str] = (), with_values: bool = False
) -> int:
    """Index in `steps` of the first one after which no completion is right, by binary search.

    A completion that succeeds shows that everything before it can be right; so halves can be left out. What comes `before`
    must have a right completion, and the solution `before` + `steps` must be wrong. `with_values` makes all completions of
    the prefixes it tries, so that each has a value; otherwise no more than are needed.
    """
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        prefix = [*before, *steps[:middle]]
        right = (await labeller.measure(prefix)).right > 0 if with_values else await labeller.can_be_right(prefix)
        if right:
            low = middle
        else:
            high = middle
    return high - 1


@dataclass(frozen=True)
class OmegaConfig(Settings, section="omega"):
    """OmegaPRM's search over rollouts."""

    num_searches: Annotated[int, AtLeast(1)] = 10
    """Wrong completions to be searched. Paper: until there are 100 labels per question."""
    alpha: Annotated[float, Within(0, 1, open_low=True)] = 0.5
    """Weight of prefixes that are often right: Q = alpha^(1 - MC) beta^(length / L). Paper: 0.5."""
    beta: Annotated[float, Within(0, 1, open_low=True)] = 0.9
    """Weight of short completions. Paper: 0.9."""
    length: Annotated[int, AtLeast(1)] = 500
    """L: length scale, in words (the paper counts tokens: 500)."""
    c_puct: Annotated[float, AtLeast(0)] = 0.125
    """Exploration: U = c sqrt(sum N) / (1 + N). Paper: 0.125."""


async def omega_prm(labeller: Labeller, config: OmegaConfig) -> list[StepRow]:
    """Search a question's wrong completions for their first wrong steps; every prefix measured on the way gives a soft label.

    Returns:
        One row for each longest measured prefix, with a label for every measured step on it and None for the others.
    """
    await labeller.measure(())
    visits: dict[Prefix, int] = {}
    searched: set[tuple[Prefix, Prefix]] = set()
    for _ in range(config.num_searches):
        pool = [
            (prefix, wrong)
            for prefix, found in labeller.measured.items()
            if 0 < found.right < found.total
            for wrong in dict.fromkeys(found.wrong)
            if (prefix, wrong) not in searched
        ]
        if not pool:
            break
        prefix, wrong = max(pool, key=lambda pair: rollout_score(labeller.measured[pair[0]].value, pair, visits, config))
        searched.add((prefix, wrong))
        visits[prefix] = visits.get(prefix, 0) + 1
        await first_wrong_step(labeller, wrong, prefix, with_values=True)
    prefixes = [p for p in labeller.measured if p]
    longest = [p for p in prefixes if not any(len(q) > len(p) and q[: len(p)] == p for q in prefixes)]
    return [_row(labeller, prefix) for prefix in longest]


def rollout_score(value: float, pair: tuple[Prefix, Prefix], visits: dict[Prefix, int], config: OmegaConfig) -> float:
    """Q(s, r) + U(s): a wrong completion tells most where right ones are common, and where it is short."""
    prefix, wrong = pair
    words = sum(len(text.split()) for text in wrong)
    quality = config.alpha ** (1 - value) * config.beta ** (words / config.length)
    explore: float = config.c_puct * math.sqrt(sum(visits.values())) / (1 + visits.get(prefix, 0))
    return float(quality) + explore


def _row(labeller: Labeller, steps: Prefix) -> StepRow:
    found = [labeller.measured.get(steps[: i + 1]) for i in range(len(steps))]
    labels = tuple(None if m is None else m.value for m in found)
    return StepRow(labeller.problem.id, labeller.problem.question, steps, labels)
