#!/usr/bin/env python3
"""Time another library's tree search on the game of bench_tree.py; run by it in the peers' virtual environment.

    .venv-peers/bin/python scripts/bench_tree_peers.py treequest 1000

Prints JSON: microseconds and evaluator calls. Every library gets 4 children a node, depth 8, a value drawn from a fixed
stream for each new node, and as many evaluator calls as asked for.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

BRANCHING, DEPTH = 4, 8


def treequest(calls: int) -> Callable[[], int]:
    """TreeQuest's standard MCTS; a step generates and scores one node."""
    import treequest as tq

    draw = random.Random(0)

    def generate(parent: Any) -> tuple[int, float]:
        return (parent or 0) + 1, draw.random()

    def search() -> int:
        algorithm = tq.StandardMCTS(samples_per_action=BRANCHING)
        tree = algorithm.init_tree()
        deadline = time.perf_counter() + LIMIT
        for done in range(calls):
            if time.perf_counter() > deadline:
                return done
            tree = algorithm.step(tree, {"step": generate}, inplace=True)
        return calls

    return search


def mctx(calls: int) -> Callable[[], int]:
    """mctx's MuZero policy, batch size 1, compiled before the clock starts."""
    import jax
    import jax.numpy as jnp
    import mctx

    def recurrent(params: Any, key: Any, action: Any, depth: Any) -> Any:
        value = jax.random.uniform(key, depth.shape)
        alive = jnp.where(depth + 1 < DEPTH, 1.0, 0.0)
        logits = jnp.zeros((*depth.shape, BRANCHING))
        output = mctx.RecurrentFnOutput(reward=jnp.zeros_like(value), discount=alive, prior_logits=logits, value=value)
        return output, depth + 1

    @jax.jit
    def run(key: Any) -> Any:
        root = mctx.RootFnOutput(
            prior_logits=jnp.zeros((1, BRANCHING)), value=jnp.full((1,), 0.5), embedding=jnp.zeros((1,), jnp.int32)
        )
        return mctx.muzero_policy(None, key, root, recurrent, calls, max_depth=DEPTH, dirichlet_fraction=0.0).action_weights

    key = jax.random.PRNGKey(0)
    run(key).block_until_ready()

    def search() -> int:
        run(key).block_until_ready()
        return calls

    return search


def open_spiel(calls: int) -> Callable[[], int]:
    """OpenSpiel's Python MCTS bot on a game of its own kind, written in Python."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    kind = pyspiel.GameType(
        short_name="bench_tree",
        long_name="bench_tree",
        dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
        chance_mode=pyspiel.GameType.ChanceMode.DETERMINISTIC,
        information=pyspiel.GameType.Information.PERFECT_INFORMATION,
        utility=pyspiel.GameType.Utility.GENERAL_SUM,
        reward_model=pyspiel.GameType.RewardModel.TERMINAL,
        max_num_players=1,
        min_num_players=1,
        provides_information_state_string=False,
        provides_information_state_tensor=False,
        provides_observation_string=False,
        provides_observation_tensor=False,
        parameter_specification={},
    )
    info = pyspiel.GameInfo(
        num_distinct_actions=BRANCHING,
        max_chance_outcomes=0,
        num_players=1,
        min_utility=0.0,
        max_utility=1.0,
        utility_sum=None,
        max_game_length=DEPTH,
    )
    draw = random.Random(0)

    class Game(pyspiel.Game):  # type: ignore[misc]
        def __init__(self, params: Any = None) -> None:
            super().__init__(kind, info, params or {})

        def new_initial_state(self) -> "Position":
            return Position(self)

    class Position(pyspiel.State):  # type: ignore[misc]
        def __init__(self, game: Game) -> None:
            super().__init__(game)
            self.steps = 0

        def current_player(self) -> int:
            return pyspiel.PlayerId.TERMINAL if self.steps == DEPTH else 0

        def _legal_actions(self, player: int) -> list[int]:
            return list(range(BRANCHING))

        def _apply_action(self, action: int) -> None:
            self.steps += 1

        def is_terminal(self) -> bool:
            return self.steps == DEPTH

        def returns(self) -> list[float]:
            return [draw.random()]

    class Values(mcts.Evaluator):  # type: ignore[misc]
        def evaluate(self, state: Any) -> list[float]:
            return [draw.random()]

        def prior(self, state: Any) -> list[tuple[int, float]]:
            return [(action, 1 / BRANCHING) for action in range(BRANCHING)]

    pyspiel.register_game(kind, Game)

    def search() -> int:
        game = Game()
        bot = mcts.MCTSBot(game, 4.0, calls, Values(), solve=False, child_selection_fn=mcts.SearchNode.puct_value)
        bot.mcts_search(game.new_initial_state())
        return calls

    return search


def llm_reasoners(calls: int) -> Callable[[], int]:
    """LLM Reasoners' MCTS; an iteration runs to the end of the solution, so iterations are fewer than evaluations."""
    from reasoners import SearchConfig, WorldModel
    from reasoners.algorithm import MCTS

    draw = random.Random(0)

    def search() -> int:
        counter = count(1)
        done = 0

        class World(WorldModel):  # type: ignore[misc]
            def init_state(self) -> int:
                return 0

            def step(self, state: int, action: int) -> tuple[int, dict[str, Any]]:
                return state + 1, {}

            def is_terminal(self, state: int) -> bool:
                return state == DEPTH

        class Config(SearchConfig):  # type: ignore[misc]
            def get_actions(self, state: int) -> list[int]:
                return list(range(BRANCHING))

            def reward(self, state: int, action: int, **kwargs: Any) -> tuple[float, dict[str, Any]]:
                nonlocal done
                done = next(counter)
                return draw.random(), {}

        # Mean rewards and exploration above its default, or it soon goes down one path only and evaluates nothing new.
        search = MCTS(depth_limit=DEPTH, w_exp=4.0, cum_reward=lambda rewards: sum(rewards) / len(rewards))
        search.world_model, search.search_config, search.n_iters = World(), Config(), 0
        search.search()
        deadline = time.perf_counter() + LIMIT
        while done < calls and time.perf_counter() < deadline:
            search.iterate(search.root)
        return done

    return search


LIMIT = 5.0
"""Seconds after which a search that can be stopped is; its figure is then that of the calls it made."""

PEERS = {"treequest": treequest, "mctx": mctx, "open_spiel": open_spiel, "llm-reasoners": llm_reasoners}


def main() -> None:
    """Run one search and print its time."""
    name, calls = sys.argv[1], int(sys.argv[2])
    search = PEERS[name](calls)
    started = time.perf_counter()
    done = search()
    print(json.dumps({"microseconds": (time.perf_counter() - started) * 1e6, "calls": done}))


if __name__ == "__main__":
    main()
