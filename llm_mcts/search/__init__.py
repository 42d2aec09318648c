"""The searches by name. Each is `async (question, policy, critic, config, seed, tree=None) -> SearchResult`.

With a `tree` from an earlier search of the same question it goes on where that one stopped.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from llm_mcts.result import SearchResult
from llm_mcts.search.beam import BeamConfig, DVTSConfig, beam, dvts
from llm_mcts.search.gumbel import GumbelConfig, gumbel
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.sampling import (
    BestOfNConfig,
    GreedyConfig,
    SelfConsistencyConfig,
    best_of_n,
    greedy,
    self_consistency,
)
from llm_mcts.search.variants import (
    AlphaGoConfig,
    AlphaLLMConfig,
    AlphaZeroConfig,
    RestMCTSConfig,
    alphago,
    alphallm,
    alphazero,
    rest_mcts,
)

SEARCHES: dict[str, tuple[Callable[..., Awaitable[SearchResult]], type[Any]]] = {
    "greedy": (greedy, GreedyConfig),
    "self_consistency": (self_consistency, SelfConsistencyConfig),
    "best_of_n": (best_of_n, BestOfNConfig),
    "beam": (beam, BeamConfig),
    "dvts": (dvts, DVTSConfig),
    "mcts": (mcts, MCTSConfig),
    "alphago": (alphago, AlphaGoConfig),
    "alphazero": (alphazero, AlphaZeroConfig),
    "alphallm": (alphallm, AlphaLLMConfig),
    "gumbel": (gumbel, GumbelConfig),
    "rest_mcts": (rest_mcts, RestMCTSConfig),
}
"""name -> (search, its configuration)"""
