"""Several critics as one: AlphaLLM's weighted sum, normalised to stay in [0, 1].

    unfinished:  s = (b_value v + b_prm PRM) / (b_value + b_prm)
    finished:    s = ORM, or where there is none the same sum

AlphaLLM's third term, the ORM's judgement of roll-outs, is the search's roll-out weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
        begun = [(critic, weight) for critic, weight in pairs if critic is not None and weight > 0]
        finished = [(orm, 1.0)] if orm is not None else begun
        if not finished:
            raise ConfigError("no critic with a weight above 0; expected a value model, a PRM or an ORM")
        begun = begun or finished
        # A PRM judges steps: before the first one it has nothing to say, if anybody else has.
        unbegun = [(value, 1.0)] if value is not None and weights.value > 0 else begun
        self._judges: dict[Stage, list[tuple[Critic, float]]] = {"unbegun": unbegun, "begun": begun, "finished": finished}

    async def score(self, states: Sequence[State]) -> list[float]:
        """The normalised weighted sum for each state."""
        stages = [_stage(state) for state in states]
        groups = {name: [s for s, stage in zip(states, stages, strict=True) if stage == name] for name in self._judges}
        scores = await gather_all([_weighted(self._judges[name], group) for name, group in groups.items()])
        left = {name: iter(found) for name, found in zip(groups, scores, strict=True)}
        return [next(left[stage]) for stage in stages]


Stage = Literal["unbegun", "begun", "finished"]


def _stage(state: State) -> Stage:
    return "finished" if state.terminal else "begun" if state.steps else "unbegun"


async def _weighted(critics: list[tuple[Critic, float]], states: Sequence[State]) -> list[float]:
    if not states:
        return []
    columns = await gather_all([critic_scores(critic, states) for critic, _ in critics])
    total = sum(weight for _, weight in critics)
    sums = [sum(weight * s for (_, weight), s in zip(critics, row, strict=True)) for row in zip(*columns, strict=True)]
    return [min(1.0, s / total) for s in sums]  # rounding alone can pass 1: each score was held to [0, 1]
