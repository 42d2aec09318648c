"""Named tree searches: `mcts` with the parts and hyper-parameters of a paper.

    alphago     PUCT, value and roll-out mixed, most visited step (Silver et al. 2016)
    alphazero   no roll-outs, growing exploration, Dirichlet noise at the root (Silver et al. 2018)
    alphallm    UCT, importance-weighted width, merged states, ORM-scored roll-outs (arXiv 2404.12253)
    rest_mcts   UCT over ReST-MCTS*'s step qualities (arXiv 2406.03816)

Values are in [0, 1] here, so a paper's constant for values in [-1, 1] explores twice as much as it did there.
"""

from dataclasses import dataclass, field
from typing import Literal

from llm_mcts.errors import ConfigError
from llm_mcts.result import SearchResult
from llm_mcts.search.expansion import MergeConfig, WideningConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, Policy


@dataclass(frozen=True)
class AlphaGoConfig(MCTSConfig):
    """AlphaGo's settings, with an expansion at the second visit instead of the 40th."""

    selection: Literal["puct", "uct", "alphago", "alphazero"] = "alphago"
    c_puct: float = 5.0
    first_play: float | None = 0.5
    prior_temperature: float = 0.67
    virtual_loss: float = 3.0
    answer: Literal["visits", "q", "best", "majority", "vote"] = "visits"


@dataclass(frozen=True)
class AlphaZeroConfig(MCTSConfig):
    """AlphaZero's settings. A leaf is valued at once and given its children when it is next reached, which is the same tree."""

    selection: Literal["puct", "uct", "alphago", "alphazero"] = "alphazero"
    c_puct: float = 1.25
    first_play: float | None = 0.5
    root_noise: float = 0.25
    rollouts: int = 0
    rollout_weight: float = 0.0
    answer: Literal["visits", "q", "best", "majority", "vote"] = "visits"


@dataclass(frozen=True)
class AlphaLLMConfig(MCTSConfig):
    """AlphaLLM's eta-MCTS: settings of its small budget on GSM8K."""

    selection: Literal["puct", "uct", "alphago", "alphazero"] = "uct"
    c_puct: float = 1.0
    widening: WideningConfig = field(default_factory=lambda: WideningConfig(kind="importance", alpha=10.0))
    merge: MergeConfig = field(default_factory=lambda: MergeConfig(kind="edit", distance=20, retries=5))
    max_depth: int = 10
    rollouts: int = 4
    rollout_weight: float = 1 / 3
    answer: Literal["visits", "q", "best", "majority", "vote"] = "best"


@dataclass(frozen=True)
class RestMCTSConfig(MCTSConfig):
    """ReST-MCTS*: the value of a step adds up the qualities of the steps before it. Needs a critic of steps, such as a PRM."""

    selection: Literal["puct", "uct", "alphago", "alphazero"] = "uct"
    leaf_value: Literal["mix", "quality"] = "quality"
    answer: Literal["visits", "q", "best", "majority", "vote"] = "best"


async def alphago(
    question: str, policy: Policy, critic: Critic | None, config: AlphaGoConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """AlphaGo: V = (1 - lambda) v + lambda z with z a roll-out judged by the critic, and the most visited step is played."""
    return await mcts(question, policy, critic, config, seed, tree)


async def alphazero(
    question: str, policy: Policy, critic: Critic | None, config: AlphaZeroConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """AlphaZero: the critic's value alone.

    Raises:
        ConfigError: there is no critic.
    """
    _require(critic, "alphazero")
    return await mcts(question, policy, critic, config, seed, tree)


async def alphallm(
    question: str, policy: Policy, critic: Critic | None, config: AlphaLLMConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """AlphaLLM: s = (b_v v + b_prm PRM + b_orm E[ORM]) / sum of b; the search grows where values differ.

    Raises:
        ConfigError: there is no critic.
    """
    _require(critic, "alphallm")
    return await mcts(question, policy, critic, config, seed, tree)


async def rest_mcts(
    question: str, policy: Policy, critic: Critic | None, config: RestMCTSConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """ReST-MCTS*: `mcts` over step qualities; the steps still missing are counted on a roll-out.

    Raises:
        ConfigError: there is no critic.
    """
    _require(critic, "rest_mcts")
    return await mcts(question, policy, critic, config, seed, tree)


def _require(critic: Critic | None, search: str) -> None:
    if critic is None:
        raise ConfigError(f"{search} has no critic to value steps by; give it one, or use mcts with roll-outs")
