"""Explored branches are left alone (`revisit: false`)."""

from dataclasses import replace
from math import log
from typing import Any

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.explored import Unexplored
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree
from llm_mcts.types import Step
from tests.search_cases import (
    PLAIN,
    QUESTION,
    ListedPolicy,
    NoiseCritic,
    check_idle,
    check_value_sums,
    check_visits,
    noise_script,
    run,
    scripted,
    traced_tree,
)


def test_what_is_explored_by_hand() -> None:
    tree = Tree("q")
    tree.expand(tree.root, [Step("a"), Step("#### 1", terminal=True, answer="1")], [0.5, 0.5])
    a, end = tree.root.children
    tree.expand(a, [Step("c"), Step("d")], [0.5, 0.5])
    c, d = a.children
    left = Unexplored(tree, max_depth=2)
    assert [list(left.children(node)) for node in (tree.root, a)] == [[a, end], [c, d]]
    c.value = 0.5  # as deep as allowed: nothing below it
    left.update(c)
    assert [list(left.children(node)) for node in (tree.root, a)] == [[a, end], [d]]
    d.value = 0.5  # the last below a, so a is left too
    left.update(d)
    assert [list(left.children(node)) for node in (tree.root, a)] == [[end], []]
    assert not left.explored(tree.root)
    end.value = 1.0
    left.update(end)
    assert left.explored(tree.root)
    # The same of a tree that was grown before.
    assert Unexplored(tree, max_depth=2).explored(tree.root)
    assert not Unexplored(tree, max_depth=3).explored(tree.root)


def test_without_revisits_every_simulation_evaluates_a_new_node() -> None:
    for parallel in (1, 3):
        for seed in range(5):
            policy, _ = scripted(noise_script(width=3, depth=3))
            config = MCTSConfig(num_simulations=200, num_parallel=parallel, expansion_width=8, c_puct=0.3, revisit=False)
            tree = run(mcts(QUESTION, policy, NoiseCritic(), config, seed)).tree
            assert tree is not None
            assert all(node.visit_count == 1 for node in tree.nodes() if not node.children)
            # All there is has been seen, well below 200 simulations, and the search ended there.
            assert all(node.visit_count for node in tree.nodes())
            assert len(tree) == tree.root.visit_count < 150
            check_visits(tree)
            check_value_sums(tree)
            check_idle(tree)


def test_with_revisits_the_best_solution_draws_the_visits() -> None:
    policy, _ = scripted(noise_script(width=3, depth=3))
    config = MCTSConfig(num_simulations=200, num_parallel=1, expansion_width=8, c_puct=0.3)
    tree = run(mcts(QUESTION, policy, NoiseCritic(), config, 0)).tree
    assert tree is not None
    assert max(node.visit_count for node in tree.nodes() if node.terminal) > 20
    assert len(tree) < 150


def test_until_a_solution_is_met_again_revisits_change_nothing() -> None:
    trees = []
    for revisit in (True, False):
        config = replace(PLAIN, num_simulations=6, revisit=revisit)
        trees.append(traced_tree(config, scripted(noise_script(width=4, depth=6))[0], NoiseCritic()).to_dict())
    assert trees[0] == trees[1]


def test_revisits_cannot_be_left_out_where_visits_choose() -> None:
    with pytest.raises(ConfigError, match=r"revisit.*visits"):
        MCTSConfig(revisit=False, answer="visits")


@pytest.mark.parametrize("values", [{"widening": WideningConfig(kind="progressive")}, {"expand_visits": 2}])
def test_revisits_cannot_be_left_out_where_nodes_grow_later(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="revisit is false"):
        MCTSConfig(revisit=False, **values)


def test_a_depth_limit_ends_what_there_is_to_see() -> None:
    class Endless(ListedPolicy):
        async def propose(self, state: Any, n: int, seed: int) -> list[Step]:
            return [Step(f"{len(state.steps)}{x}", log(0.5)) for x in "ab"]

    config = replace(PLAIN, num_simulations=100, max_depth=3, revisit=False)
    tree = traced_tree(config, Endless({}), NoiseCritic())
    assert len(tree) == tree.root.visit_count == 1 + 2 + 4 + 8
