"""The searches by name. Each is `async (question, policy, critic, config, seed) -> SearchResult`."""

from collections.abc import Awaitable, Callable
from typing import Any

from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.sampling import (
    BestOfNConfig,
    GreedyConfig,
    SelfConsistencyConfig,
    best_of_n,
    greedy,
    self_consistency,
)
from llm_mcts.types import SearchResult

SEARCHES: dict[str, tuple[Callable[..., Awaitable[SearchResult]], type[Any]]] = {
    "greedy": (greedy, GreedyConfig),
    "self_consistency": (self_consistency, SelfConsistencyConfig),
    "best_of_n": (best_of_n, BestOfNConfig),
    "mcts": (mcts, MCTSConfig),
}
"""name -> (search, its configuration)"""
