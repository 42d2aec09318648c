"""What earlier rounds left: every whole solution with its provenance, and rows that are trained on again.

    RUN/round_001/rows/trajectories.jsonl    one a solution: question, steps, outcome, score; round, policy and source of it

Replay adds rows of earlier rounds to a round's own (experience replay, as AlphaZero trains on its latest games): the latest
rounds first, so that at most `share` of what is trained on is old.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from llm_mcts.fields import AtLeast, Settings, Within
from llm_mcts.seeding import derive_seed
from trainers.data.evidence import Evidence
from trainers.questions.curriculum import PassRate, Source


@dataclass(frozen=True)
class ReplayConfig(Settings, section="replay"):
    """How much of the past a round trains on."""

    rounds: Annotated[int, AtLeast(0)] = 0
    """Earlier rounds whose rows are used again; 0: none."""
    share: Annotated[float, Within(0, 1, open_high=True)] = 0.5
    """At most this share of the rows is from earlier rounds."""


@dataclass(frozen=True)
class Trajectory:
    """A whole solution that a search found, rollouts included, and where it came from."""

    problem: str
    question: str
    steps: tuple[str, ...]
    right: bool
    """Whether its answer is the gold one; for questions without one, the agreed one."""
    score: float | None
    """The critic's score in [0, 1], or None where no critic was asked."""
    round: int
    policy: str
    """The model that wrote it."""
    source: Source
    """Where the question came from."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def trajectories(evidence: Evidence, round: int, policy: str, source: Source) -> list[Trajectory]:
    """Every whole solution of a searched question, as often as it was found."""
    problem, found = evidence.problem, []
    for trace in evidence.traces:
        steps, score = tuple(step.text for step in trace.state.steps), trace.score if evidence.scored else None
        right = evidence.is_right(trace)
        found.append(Trajectory(problem.id, problem.question, steps, right, score, round, policy, source))
    return found


def pass_rates(rounds: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, PassRate]:
    """The pass rate of each question in the latest of the rounds, given in order as their trajectories."""
    rates: dict[str, PassRate] = {}
    for found in rounds:
        counts: dict[str, list[int]] = {}
        for row in found:
            count = counts.setdefault(row["problem"], [0, 0])
            count[0] += row["right"]
            count[1] += 1
        rates |= {id_: PassRate(right, total) for id_, (right, total) in counts.items()}
    return rates


def replayed(
    fresh: Sequence[Mapping[str, Any]], earlier: Sequence[Sequence[Mapping[str, Any]]], config: ReplayConfig, seed: int
) -> list[Mapping[str, Any]]:
    """Rows of earlier rounds to be trained on beside the fresh ones.

    Args:
        fresh: this round's rows.
        earlier: the rows of the rounds before, the latest first.
        config: from how many rounds, and how many at most.
        seed: draws rows where a round has more than there is room for.
    """
    room = int(len(fresh) * config.share / (1 - config.share))
    taken: list[Mapping[str, Any]] = []
    for age, rows in enumerate(earlier[: config.rounds]):
        left = room - len(taken)
        drawn = rows if len(rows) <= left else random.Random(derive_seed(seed, "replay", age)).sample(list(rows), left)
        taken.extend(drawn)
    return taken
