"""Several critics as one: AlphaLLM's weighted sum, normalised to stay in [0, 1], and a sum that is learned.

    unfinished:  s = (b_value v + b_prm PRM) / (b_value + b_prm)
    finished:    s = ORM, or where there is none the same sum
    learned:     s = sigmoid(b + sum of w_i logit(s_i)), fitted to outcomes on held-out questions; in the ORM's place
    ranks:       s = mean of the critics' ranks of the solution among those it is compared with, from 0 (worst) to 1 (best)

AlphaLLM's third term, the ORM's judgement of rollouts, is the search's rollout weight.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite, log
from pathlib import Path
from typing import Annotated, Literal

import torch

from critics.scoring.logistic import fit_logistic
from critics.scoring.trained import AGGREGATES
from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.runs.durable import write_atomically
from llm_mcts.search.contracts import critic_scores
from llm_mcts.types import Critic, State


@dataclass(frozen=True)
class CriticWeights(Settings, section="critics"):
    """How much each critic counts on unfinished solutions."""

    value: Annotated[float, AtLeast(0)] = 1.0
    """AlphaLLM: 1."""
    prm: Annotated[float, AtLeast(0)] = 1.0
    """AlphaLLM: 1."""


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


@dataclass(frozen=True)
class Combination:
    """Weights of a learned sum of critics."""

    weights: dict[str, float]
    """Critic -> weight of its logit: value, prm, orm or likelihood."""
    bias: float
    prm_aggregate: str = "min"
    """How the PRM's step scores became one where the weights were fitted."""

    def __call__(self, scores: Mapping[str, float]) -> float:
        """sigmoid(b + sum of w logit(s)) of the critics' scores."""
        x = self.bias + sum(weight * logit(scores[name]) for name, weight in self.weights.items())
        return 1 / (1 + exp(-x)) if x > -700 else 0.0

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> "Combination":
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, or holds no combination.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls({str(k): float(v) for k, v in data["weights"].items()}, float(data["bias"]), data["prm_aggregate"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} holds no combination of critics ({error}); expected what diagnose --fit wrote"
            ) from error
        if not found.weights or not isfinite(found.bias) or found.prm_aggregate not in AGGREGATES:
            raise ConfigError(f"{path} holds {found}; expected weights, a finite bias and one of {', '.join(AGGREGATES)}")
        if strange := set(found.weights) - set(COMBINABLE) or {n for n, w in found.weights.items() if not isfinite(w)}:
            raise ConfigError(f"{path} weighs {', '.join(sorted(strange))}; expected finite weights of {', '.join(COMBINABLE)}")
        return found


COMBINABLE = ("value", "prm", "orm", "likelihood")
"""Critics that a learned sum may have."""


def logit(score: float) -> float:
    """log(p / (1 - p)), p kept 1e-6 away from 0 and 1."""
    p = min(max(score, 1e-6), 1 - 1e-6)
    return log(p / (1 - p))


def fit_combination(
    rows: Sequence[Mapping[str, float]], outcomes: Sequence[bool], prm_aggregate: str = "min", ridge: float = 1e-3
) -> Combination:
    """Logistic regression of outcomes on the critics' logits (maximum likelihood with a small ridge), by Newton's method.

    Raises:
        DataError: the outcomes are all alike.
    """
    if len(set(outcomes)) < 2:
        raise DataError("all solutions have the same outcome; expected right and wrong ones to fit a combination to")
    names = list(rows[0])
    x = torch.tensor([[logit(row[name]) for name in names] for row in rows], dtype=torch.float64)
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-9)
    x = torch.cat([(x - mean) / scale, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    y = torch.tensor(outcomes, dtype=torch.float64)
    n = len(names)
    w = fit_logistic(x, y, [0.0] * (n + 1), [ridge] * n + [0.0], [True] * (n + 1))
    weights = w[:-1] / scale
    return Combination(dict(zip(names, weights.tolist(), strict=True)), float(w[-1] - weights @ mean), prm_aggregate)


class LogisticCritic:
    """A learned sum of critics, for finished solutions."""

    def __init__(self, critics: Mapping[str, Critic], combination: Combination) -> None:
        """`critics`: by the names in the combination.

        Raises:
            ConfigError: a critic that it weighs is not there.
        """
        if missing := [name for name in combination.weights if name not in critics]:
            raise ConfigError(f"the combination weighs {', '.join(missing)}, which is not among the critics; name its folder")
        self.critics, self.combination = critics, combination

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] a state."""
        names = list(self.combination.weights)
        columns = await gather_all([critic_scores(self.critics[name], states) for name in names])
        return [self.combination(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def rank_average(columns: Sequence[Sequence[float]]) -> list[float]:
    """For each candidate the mean over critics of (rank - 1) / (candidates - 1) in [0, 1], the best-scored ranked last.

    Args:
        columns: each critic's scores of all candidates. Equal scores share the mean of their ranks; one alone gets 0.5.
    """
    ranked = [_ranks(column) for column in columns]
    return [sum(row) / len(row) for row in zip(*ranked, strict=True)]


def _ranks(scores: Sequence[float]) -> list[float]:
    n = len(scores)
    if n == 1:
        return [0.5]
    below = [sum(other < score for other in scores) for score in scores]
    equal = [sum(other == score for other in scores) - 1 for score in scores]
    return [(b + e / 2) / (n - 1) for b, e in zip(below, equal, strict=True)]


class RankAverageCritic:
    """Several critics as one by their ranks, whatever the scale of each: nothing is fitted, nothing need be calibrated.

    A rank needs others to compare with: those are the states of one question that are asked together, in one call of `score`.
    So it suits searches that judge all candidates at once (best_of_n with num_parallel = num_samples, and a vote over them);
    scores of different calls must not be compared, as MCTS would.
    """

    def __init__(self, critics: Sequence[Critic]) -> None:
        """`critics`: at least one.

        Raises:
            ConfigError: none.
        """
        if not critics:
            raise ConfigError("no critic to average ranks of; expected at least one")
        self.critics = list(critics)

    async def score(self, states: Sequence[State]) -> list[float]:
        """The mean rank of each state among the states of its question in this call."""
        columns = await gather_all([critic_scores(critic, states) for critic in self.critics])
        groups: dict[str, list[int]] = {}
        for i, state in enumerate(states):
            groups.setdefault(state.question, []).append(i)
        found = [0.0] * len(states)
        for places in groups.values():
            for place, score in zip(places, rank_average([[c[i] for i in places] for c in columns]), strict=True):
                found[place] = score
        return found


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
