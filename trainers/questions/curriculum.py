"""Which questions a round searches: fresh ones, and earlier ones that are neither settled nor hopeless.

A question's pass rate p is the share of right ones among the whole solutions of its latest search. What a search can teach
is greatest where p (1 - p) is: questions that always succeed or never do give the policy and the critics nothing to tell apart.

    n questions a round = revisit * n of earlier rounds with 0 < p < 1, largest p (1 - p) first, + the next fresh ones
    where no fresh ones are left: further earlier ones, unsettled first, then never solved, then always solved
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from llm_mcts.fields import Settings, Within
from llm_mcts.seeding import derive_seed
from llm_mcts.types import Problem

Source = Literal["train", "revisited", "imagined", "unlabelled"]


@dataclass(frozen=True)
class CurriculumConfig(Settings, section="curriculum"):
    """How much of a round goes to questions of earlier rounds."""

    revisit: Annotated[float, Within(0, 1)] = 0.0
    """Share of a round's questions that were searched before and are not settled; 0: fresh ones, if any."""


@dataclass(frozen=True)
class PassRate:
    """What the latest search of a question found."""

    right: int
    total: int
    """Whole solutions, at least 1."""

    @property
    def value(self) -> float:
        """Share of right ones, in [0, 1]."""
        return self.right / self.total

    @property
    def information(self) -> float:
        """p (1 - p): the variance of an outcome, at most 0.25; 0 where there is nothing to tell apart."""
        return self.value * (1 - self.value)


@dataclass(frozen=True)
class Chosen:
    """A question of a round."""

    problem: Problem
    source: Source
    pass_rate: float | None = None
    """Of its latest search in an earlier round; None for one that was never searched."""


def choose(pool: Sequence[Problem], rates: Mapping[str, PassRate], n: int, config: CurriculumConfig, seed: int) -> list[Chosen]:
    """At most `n` questions of the pool, each once: revisited ones first, then fresh ones in the pool's order.

    Args:
        pool: the training split.
        rates: the pass rates of the questions that earlier rounds searched, by id.
        n: how many.
        config: how many of them are to be earlier ones.
        seed: breaks ties between equal pass rates.
    """
    earlier = _by_promise([p for p in pool if p.id in rates], rates, seed)
    unsettled = [p for p in earlier if rates[p.id].information > 0]
    again = unsettled[: round(config.revisit * n)]
    fresh = [p for p in pool if p.id not in rates][: n - len(again)]
    taken = {p.id for p in again}
    again += [p for p in earlier if p.id not in taken][: n - len(again) - len(fresh)]
    return [*(Chosen(p, "revisited", rates[p.id].value) for p in again), *(Chosen(p, "train") for p in fresh)]


def _by_promise(problems: Sequence[Problem], rates: Mapping[str, PassRate], seed: int) -> list[Problem]:
    """Largest p (1 - p) first; of the settled ones those never solved before those always solved."""
    drawn = {p.id: random.Random(derive_seed(seed, p.id, "curriculum")).random() for p in problems}
    return sorted(problems, key=lambda p: (-rates[p.id].information, rates[p.id].value, drawn[p.id]))
