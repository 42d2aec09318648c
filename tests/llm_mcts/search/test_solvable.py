"""Every search on a task whose best of 16,384 solutions is known (scripts/solvable.py), with fixed seeds.

Margins are wide: what is asked is that more search comes nearer to the truth, and which searches recover from a policy or a
critic that misleads. Means over 12 games.
"""

from functools import cache
from statistics import mean

import pytest

from scripts.solvable import NAMES, StepGame, Variant, regrets

GAMES = 12
TREES = ["mcts_puct", "mcts_uct", "alphago", "alphazero", "gumbel", "rest_mcts"]


@cache
def regret(name: str, variant: Variant, budget: int) -> float:
    return mean(regrets(name, variant, budget, GAMES))


def test_the_truth_is_enumerated() -> None:
    game = StepGame(3, depth=3, width=2)
    sums = {}
    for a in "ab":
        for b in "ab":
            for c in "ab":
                sums[a + b + c] = game.amount(a) + game.amount(a + b) + game.amount(a + b + c)
    best, worst = max(sums, key=sums.__getitem__), min(sums, key=sums.__getitem__)
    assert (game.value(best), game.value(worst)) == (pytest.approx(1.0), pytest.approx(0.0))
    other = next(path for path in sums if path not in (best, worst))
    assert game.value(other) == pytest.approx((sums[other] - sums[worst]) / (sums[best] - sums[worst]))
    assert StepGame(0).width ** StepGame(0).depth > 10**4


@pytest.mark.parametrize("name", TREES)
def test_regret_falls_to_nearly_nothing(name: str) -> None:
    few, many = regret(name, "plain", 16), regret(name, "plain", 1024)
    assert few > 0.04
    assert many < 0.015


@pytest.mark.parametrize("name", ["best_of_n", "beam", "dvts", "alphallm"])
def test_regret_falls_where_steps_are_sampled(name: str) -> None:
    # These see samples only, or not every step of a place, so they come near the best without always finding it.
    few, many = regret(name, "plain", 16), regret(name, "plain", 1024)
    assert many < 0.6 * few
    assert many < 0.06


def test_what_asks_no_critic_does_not_get_there() -> None:
    assert regret("greedy", "plain", 1024) == regret("greedy", "plain", 16) > 0.08
    assert regret("self_consistency", "plain", 1024) > 0.08


@pytest.mark.parametrize("name", ["mcts_puct", "mcts_uct", "rest_mcts", "gumbel"])
def test_a_misleading_prior_is_overcome(name: str) -> None:
    few, many = regret(name, "misleading prior", 16), regret(name, "misleading prior", 1024)
    assert many < 0.5 * few
    assert regret("greedy", "misleading prior", 1024) > 0.8


def test_best_of_n_is_stuck_with_a_misleading_prior() -> None:
    assert regret("best_of_n", "misleading prior", 1024) > 1.5 * regret("mcts_uct", "misleading prior", 1024)


@pytest.mark.parametrize("name", ["mcts_puct", "mcts_uct", "alphago", "gumbel"])
def test_a_misleading_value_is_overcome_by_rollouts(name: str) -> None:
    assert regret(name, "misleading value", 1024) < 0.05


def test_leaving_what_is_explored_finds_more_with_many_simulations() -> None:
    assert regret("mcts_explore", "misleading prior", 1024) < 0.8 * regret("mcts_puct", "misleading prior", 1024)
    assert regret("mcts_explore", "plain", 1024) < 0.015


@pytest.mark.parametrize("name", ["beam", "dvts", "alphazero"])
def test_a_misleading_value_misleads_what_trusts_it_alone(name: str) -> None:
    assert regret(name, "misleading value", 256) > 0.1


def test_simulations_in_parallel_cost_little_strength() -> None:
    alone = mean(regrets("mcts_puct", "plain", 128, 24))
    parallel = mean(regrets("mcts_puct", "plain", 128, 24, num_parallel=8))
    assert parallel < alone + 0.02


def test_every_search_is_played() -> None:
    from llm_mcts.search import SEARCHES

    assert {"mcts" if name.startswith("mcts_") else name for name in NAMES} == set(SEARCHES)
