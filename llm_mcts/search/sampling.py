"""Searches without a tree: greedy decoding, self-consistency and best-of-N.

They are the baselines any tree search must beat at equal cost, so they share its policy, critics and accounting.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import SearchConfig, limited
from llm_mcts.search.contracts import completions, critic_scores
from llm_mcts.search.voting import Choice, choose, settled
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, Policy, State, Trace


@dataclass(frozen=True)
class GreedyConfig(SearchConfig):
    """Greedy decoding has nothing to set; it is one call, whatever the limits."""


@dataclass(frozen=True)
class SelfConsistencyConfig(SearchConfig, section="self_consistency"):
    """Majority vote over samples."""

    num_samples: Annotated[int, AtLeast(1)] = 16
    """Independent solutions."""
    num_parallel: Annotated[int, AtLeast(1)] = 16
    """Solutions asked for at once; limits and early stop are checked in between."""


@dataclass(frozen=True)
class BestOfNConfig(SelfConsistencyConfig, section="best_of_n"):
    """Critic's choice among samples."""

    answer: Literal["best", "vote"] = "best"
    """best: the best-scored solution; vote: the answer with the largest sum of scores."""


async def greedy(
    question: str, policy: Policy, critic: Critic | None, config: GreedyConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """The most likely token at every place. A critic, if given, only says how sure it is."""
    _refuse(tree, "greedy")
    (state,) = await completions(policy, State(question), 1, seed, temperature=0.0)
    trace = Trace(state, (await critic_scores(critic, [state]))[0] if critic else None)
    confidence = float(state.answer is not None) if trace.score is None else trace.score
    return SearchResult(question, state.answer, state, confidence, [trace])


async def self_consistency(
    question: str, policy: Policy, critic: Critic | None, config: SelfConsistencyConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """The most frequent answer of `num_samples` solutions (Wang et al. 2022). No critic is asked."""
    _refuse(tree, "self_consistency")
    traces = await _sample(question, policy, None, config, seed, "majority")
    return choose(question, traces, "majority")


async def best_of_n(
    question: str, policy: Policy, critic: Critic | None, config: BestOfNConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """The solution, of `num_samples`, that the critic likes best, or the answer it votes for.

    The samples are those of `self_consistency` with the same seed and `num_parallel`.

    Raises:
        ConfigError: there is no critic.
    """
    _refuse(tree, "best_of_n")
    if critic is None:
        raise ConfigError("best_of_n has no critic to choose by; give it one, or use self_consistency")
    traces = await _sample(question, policy, critic, config, seed, config.answer)
    return choose(question, traces, config.answer)


async def _sample(
    question: str,
    policy: Policy,
    critic: Critic | None,
    config: SelfConsistencyConfig,
    seed: int,
    choice: Choice,
) -> list[Trace]:
    """Solutions, a batch at a time until there are enough, a limit is reached, or the choice among them is settled."""
    traces: list[Trace] = []
    with limited(config) as limits:
        while (left := config.num_samples - len(traces)) > 0:
            # Each batch has a seed of its own; how many came before names it.
            batch_seed = derive_seed(seed, question, "samples", len(traces))
            states = await completions(policy, State(question), min(left, config.num_parallel), batch_seed)
            scores = await critic_scores(critic, states) if critic else [None] * len(states)
            traces += [Trace(state, score) for state, score in zip(states, scores, strict=True)]
            left -= len(states)
            # A best score can be equalled but not passed above 1, and the first of equals is chosen.
            if limits.exhausted() or (config.early_stop and settled(traces, choice, left)):
                break
        return traces


def _refuse(tree: Tree | None, search: str) -> None:
    if tree is not None:
        raise ConfigError(f"{search} grows no tree and cannot search one further; use a tree search such as mcts")
