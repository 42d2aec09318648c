"""MuZero's normalisation: spans by hand, and a choice that they change."""

from dataclasses import replace

import pytest

from llm_mcts.search.selection import TreeSpan, siblings_span
from llm_mcts.tree import Tree
from tests.search_cases import PLAIN, parent, statistics, traced_tree


def test_the_span_of_parent_and_siblings() -> None:
    # Means 0.6, 0.7, 0.2 of the visited children and 5.2/9 = 0.578 of the node itself: 0.7 - 0.2 = 0.5.
    node = parent(9, 5.2, [(4, 2.4, 0.5), (3, 2.1, 0.25), (1, 0.2, 0.15), (0, 0.0, 0.1)])
    assert siblings_span(node) == pytest.approx(0.5)
    node.value_sum = 8.1  # its mean 0.9: 0.9 - 0.2
    assert siblings_span(node) == pytest.approx(0.7)
    alone = parent(1, 0.4, [(0, 0.0, 1.0)])
    assert siblings_span(alone) == 1.0  # no span: nothing to divide by


def test_the_span_of_the_tree_keeps_what_earlier_paths_showed() -> None:
    # The trace of test_tree_search. Means after each backup: the root 0.5; then 0.35 and a 0.2; then 0.5 and b 0.8; then 0.625,
    # b 0.9, #### 1 1.0. Range: a's 0.2 to 1.0, though the last path shows 0.625 at the lowest.
    tree = traced_tree(replace(PLAIN, normalise="tree"))
    assert statistics(tree) == {"": (4, 2.5), "0": (1, 0.2), "1": (2, 1.8), "1.0": (1, 1.0)}
    assert tree.value_range == pytest.approx((0.2, 1.0))
    assert TreeSpan(tree)(tree.root) == pytest.approx(0.8)
    assert TreeSpan(Tree("q"))(tree.root) == 1.0  # nothing met yet


def test_exploration_is_scaled_by_the_span_of_the_tree() -> None:
    # c = 4, third simulation, N = 3: a 0.2 + 4 * 1.73205 * 0.6 / 2 = 2.278, b 0.8 + 4 * 1.73205 * 0.4 / 2 = 2.186: a.
    # Range 0.2 to 0.8, span 0.6: a 0.2 + 0.6 * 2.078 = 1.447, b 0.8 + 0.6 * 1.386 = 1.631: b.
    config = replace(PLAIN, c_puct=4.0)
    assert [node.visit_count for node in traced_tree(config).root.children] == [2, 1]
    assert [node.visit_count for node in traced_tree(replace(config, normalise="tree")).root.children] == [1, 2]


def test_exploration_is_scaled_by_the_span_of_parent_and_siblings() -> None:
    # As above: a's 0.2, b's 0.8 and the root's 0.5 span 0.6.
    config = replace(PLAIN, c_puct=4.0, normalise="siblings")
    assert [node.visit_count for node in traced_tree(config).root.children] == [1, 2]
