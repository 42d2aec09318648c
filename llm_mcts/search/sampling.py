"""Searches without a tree: greedy decoding, self-consistency and best-of-N.

They are the baselines any tree search must beat at equal cost, so they share its policy, critics and accounting.
"""

from dataclasses import dataclass
from typing import Literal

from llm_mcts.errors import ConfigError
from llm_mcts.search.evaluation import completions, critic_scores
from llm_mcts.search.voting import best_trace, vote
from llm_mcts.seeding import derive_seed
from llm_mcts.types import Critic, Policy, SearchResult, State, Trace


@dataclass(frozen=True)
class GreedyConfig:
    """Greedy decoding has nothing to set."""


@dataclass(frozen=True)
class SelfConsistencyConfig:
    """Majority vote over samples."""

    num_samples: int = 16
    """Independent solutions, at least 1."""

    def __post_init__(self) -> None:
        _require_samples("self_consistency", self.num_samples)


@dataclass(frozen=True)
class BestOfNConfig:
    """Critic's choice among samples."""

    num_samples: int = 16
    """Independent solutions, at least 1."""
    answer: Literal["value", "vote"] = "value"
    """value: the best-scored solution; vote: the answer with the largest sum of scores."""

    def __post_init__(self) -> None:
        _require_samples("best_of_n", self.num_samples)
        if self.answer not in ("value", "vote"):
            raise ConfigError(f"best_of_n.answer is '{self.answer}'; expected value or vote")


def _require_samples(search: str, n: int) -> None:
    if n < 1:
        raise ConfigError(f"{search}.num_samples is {n}; expected at least 1")


async def greedy(question: str, policy: Policy, critic: Critic | None, config: GreedyConfig, seed: int) -> SearchResult:
    """The most likely token at every place. A critic, if given, only says how sure it is."""
    (state,) = await completions(policy, State(question), 1, seed, temperature=0.0)
    trace = Trace(state, (await critic_scores(critic, [state]))[0] if critic else None)
    confidence = float(state.answer is not None) if trace.score is None else trace.score
    return SearchResult(question, state.answer, state, confidence, [trace])


async def self_consistency(
    question: str, policy: Policy, critic: Critic | None, config: SelfConsistencyConfig, seed: int
) -> SearchResult:
    """The most frequent answer of `num_samples` solutions (Wang et al. 2022). No critic is asked."""
    states = await completions(policy, State(question), config.num_samples, derive_seed(seed, question, "samples"))
    traces = [Trace(state) for state in states]
    return choose(question, traces, "vote")


async def best_of_n(question: str, policy: Policy, critic: Critic | None, config: BestOfNConfig, seed: int) -> SearchResult:
    """The solution, of `num_samples`, that the critic likes best, or the answer it votes for.

    The samples are those of `self_consistency` with the same seed.

    Raises:
        ConfigError: there is no critic.
    """
    if critic is None:
        raise ConfigError("best_of_n has no critic to choose by; give it one, or use self_consistency")
    states = await completions(policy, State(question), config.num_samples, derive_seed(seed, question, "samples"))
    scores = await critic_scores(critic, states)
    return choose(question, [Trace(s, v) for s, v in zip(states, scores, strict=True)], config.answer)


def choose(question: str, traces: list[Trace], answer: Literal["value", "vote"]) -> SearchResult:
    """The result of deciding among whole solutions by best score or by vote."""
    voted, share = vote(traces)
    trace = voted if answer == "vote" else best_trace(traces)
    if trace is None:
        return SearchResult(question, None, State(question), 0.0, traces)
    confidence = share if answer == "vote" or trace.score is None else trace.score
    return SearchResult(question, trace.state.answer, trace.state, confidence, traces)
