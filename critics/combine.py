"""Several critics as one: AlphaLLM's weighted sum, normalised to stay in [0, 1].

    unfinished:  s = (b_value v + b_prm PRM) / (b_value + b_prm)
    finished:    s = ORM, or where there is none the same sum

AlphaLLM's third term, the ORM's judgement of roll-outs, is the search's roll-out weight.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError
from llm_mcts.search.evaluation import critic_scores
from llm_mcts.types import Critic, State


@dataclass(frozen=True)
class CriticWeights:
    """How much each critic counts on unfinished solutions."""

    value: float = 1.0
    """AlphaLLM: 1."""
    prm: float = 1.0
    """AlphaLLM: 1."""

    def __post_init__(self) -> None:
        if self.value < 0 or self.prm < 0:
            raise ConfigError(f"critic weights value={self.value}, prm={self.prm}; expected at least 0")


class WeightedCritic:
    """The value model and the PRM on the way, the ORM at the end."""

    def __init__(
        self,
        value: Critic | None = None,
        prm: Critic | None = None,
        orm: Critic | None = None,
        weights: CriticWeights | None = None,
    ) -> None:
        """At least one critic; a finished solution falls back on value and PRM where there is no ORM, an unfinished one on
        the ORM where there is nothing else.

        Raises:
            ConfigError: no critic at all.
        """
        weights = weights or CriticWeights()
        pairs = [(value, weights.value), (prm, weights.prm)]
        self._partial = [(critic, weight) for critic, weight in pairs if critic is not None and weight > 0]
        self._whole = [(orm, 1.0)] if orm is not None else self._partial
        self._partial = self._partial or self._whole
        if not self._whole:
            raise ConfigError("no critic with a weight above 0; expected a value model, a PRM or an ORM")

    async def score(self, states: Sequence[State]) -> list[float]:
        """The normalised weighted sum for each state."""
        finished = [s for s in states if s.terminal]
        unfinished = [s for s in states if not s.terminal]
        whole, partial = await asyncio.gather(_weighted(self._whole, finished), _weighted(self._partial, unfinished))
        left, right = iter(whole), iter(partial)
        return [next(left) if s.terminal else next(right) for s in states]


async def _weighted(critics: list[tuple[Critic, float]], states: Sequence[State]) -> list[float]:
    if not states:
        return []
    columns = await gather_all(critic_scores(critic, states) for critic, _ in critics)
    total = sum(weight for _, weight in critics)
    sums = [sum(weight * s for (_, weight), s in zip(critics, row, strict=True)) for row in zip(*columns, strict=True)]
    return [min(1.0, s / total) for s in sums]  # rounding alone can pass 1: each score was held to [0, 1]
