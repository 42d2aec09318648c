"""The plain loop: backup and whole simulations traced by hand."""

from dataclasses import replace

import pytest

from llm_mcts.search.tree_search import backup
from llm_mcts.tree import Tree
from llm_mcts.types import Step
from tests.search_cases import PLAIN, statistics, traced_tree


def test_backup_by_hand() -> None:
    tree = Tree("q")
    tree.expand(tree.root, [Step("a"), Step("b")], [0.5, 0.5])
    a, b = tree.root.children
    tree.expand(a, [Step("c")], [1.0])
    (c,) = a.children
    c.value = 0.25
    backup(c)
    backup(c)
    b.value = 1.0
    backup(b)
    # root: 0.25 + 0.25 + 1 over 3 visits; a and c: 0.5 over 2; b: 1 over 1.
    assert [(n.visit_count, n.value_sum) for n in (tree.root, a, c, b)] == [(3, 1.5), (2, 0.5), (2, 0.5), (1, 1.0)]
    assert tree.root.q_value == 0.5


def test_puct_by_hand() -> None:
    """Three simulations with c = 1, each after the one before."""
    # The root alone is worth 0.5.
    # 1: the root is expanded. N = 1, q = 0.5: a 0.5 + 1*0.6 = 1.1, b 0.5 + 0.4 = 0.9. a, worth 0.2.
    # 2: N = 2, q = 0.35, sqrt 2 = 1.41421: a 0.2 + 1.41421*0.6/2 = 0.624, b 0.35 + 1.41421*0.4 = 0.916. b, worth 0.8.
    # 3: N = 3, sqrt 3 = 1.73205: a 0.2 + 1.73205*0.6/2 = 0.720, b 0.8 + 1.73205*0.4/2 = 1.146. b is expanded;
    #    N = 1, q = 0.8: #### 1 0.8 + 0.7, e 0.8 + 0.3. #### 1, worth 1.0.
    tree = traced_tree(PLAIN)
    assert statistics(tree) == {"": (4, 2.5), "0": (1, 0.2), "1": (2, 1.8), "1.0": (1, 1.0)}
    assert [n.prior for n in tree.nodes()] == pytest.approx([1.0, 0.6, 0.4, 0.7, 0.3])


def test_uct_by_hand() -> None:
    """Five simulations with c = 1, each after the one before."""
    # The root alone is worth 0.5. 1: unvisited a, 0.2. 2: unvisited b, 0.8.
    # 3: N = 3, sqrt(2 ln 3) = 1.482304: a 0.2 + 1.482 = 1.682, b 0.8 + 1.482. b is expanded: unvisited #### 1, 1.0.
    # 4: N = 4, sqrt(2 ln 4) = 1.665109: a 0.2 + 1.665 = 1.865, b 1.8/2 + 1.665/sqrt 2 = 0.9 + 1.177 = 2.077.
    #    Below b: unvisited e, 0.4.
    # 5: N = 5, sqrt(2 ln 5) = 1.794123: a 0.2 + 1.794 = 1.994, b 2.2/3 + 1.794/sqrt 3 = 0.733 + 1.036 = 1.769.
    #    a is expanded: unvisited c, 0.1.
    tree = traced_tree(replace(PLAIN, num_simulations=5, selection="uct"))
    assert statistics(tree) == {
        "": (6, 3.0),
        "0": (2, 0.3),
        "0.0": (1, 0.1),
        "1": (3, 2.2),
        "1.0": (1, 1.0),
        "1.1": (1, 0.4),
    }
