"""The searches by name. Each is `async (question, policy, critic, config, seed, tree=None) -> SearchResult`.

With a `tree` from an earlier search of the same question it resumes where that one stopped.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from llm_mcts.result import SearchResult
from llm_mcts.search import beam, gumbel, mcts, presets, sampling

SEARCHES: dict[str, tuple[Callable[..., Awaitable[SearchResult]], type[Any]]] = {
    "greedy": (sampling.greedy, sampling.GreedyConfig),
    "self_consistency": (sampling.self_consistency, sampling.SelfConsistencyConfig),
    "best_of_n": (sampling.best_of_n, sampling.BestOfNConfig),
    "beam": (beam.beam, beam.BeamConfig),
    "dvts": (beam.dvts, beam.DVTSConfig),
    "mcts": (mcts.mcts, mcts.MCTSConfig),
    **{name: (mcts.mcts, config) for name, config in presets.PRESETS.items()},
    "gumbel": (gumbel.gumbel, gumbel.GumbelConfig),
}
"""name -> (search, its configuration)"""
