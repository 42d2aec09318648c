"""Widths, merged steps and Dirichlet noise against hand-computed cases."""

import random
from collections.abc import Sequence
from math import inf, nan
from typing import Any

import pytest

from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.search.expansion import (
    WideningConfig,
    importance_width,
    mean_importance,
    priors,
    progressive_width,
    value_importance,
    with_dirichlet_noise,
)
from llm_mcts.tree import Node
from llm_mcts.types import Step


def node_with(value: float, children: Sequence[tuple[float | None, int, float]], visits: int = 9) -> Node:
    """A node of this value whose children have (own value, visits, value sum)."""
    node = Node(Step(""))
    node.value, node.visit_count = value, visits
    for i, (own, n, w) in enumerate(children):
        child = Node(Step("abcdef"[i]), 0.5, node, i)
        child.value, child.visit_count, child.value_sum = own, n, w
        node.children.append(child)
    return node


@pytest.mark.parametrize(
    ("visits", "k", "alpha", "width"),
    [
        (1, 1.0, 0.5, 1),  # ceil(1)
        (2, 1.0, 0.5, 2),  # ceil(1.414)
        (4, 1.0, 0.5, 2),
        (5, 1.0, 0.5, 3),  # ceil(2.236)
        (9, 2.0, 0.5, 6),
        (10, 2.0, 0.5, 7),  # ceil(6.325)
        (8, 1.5, 1 / 3, 3),  # 1.5 * 2
        (7, 1.0, 1.0, 7),
        (3, 0.1, 0.5, 1),  # ceil(0.173)
    ],
)
def test_progressive_width_by_hand(visits: int, k: float, alpha: float, width: int) -> None:
    assert progressive_width(visits, k, alpha) == width
    node = node_with(0.5, [], visits)
    assert WideningConfig(kind="progressive", k=k, alpha=alpha).width(node) == width


@pytest.mark.parametrize(
    ("importance", "alpha", "c_min", "c_max", "width"),
    [
        (0.0, 10.0, 2, 10, 2),  # floor(0) + 1 = 1, raised to 2
        (0.19, 10.0, 2, 10, 2),  # floor(1.9) + 1
        (0.2, 10.0, 2, 10, 3),
        (0.55, 10.0, 2, 10, 6),
        (1.0, 10.0, 2, 10, 10),  # 11, cut to 10
        (1.0, 1.0, 1, 10, 2),  # with alpha 1 values in [0, 1] never allow a third child
        (0.99, 1.0, 1, 10, 1),
        (0.9, 100.0, 10, 60, 60),
    ],
)
def test_importance_width_by_hand(importance: float, alpha: float, c_min: int, c_max: int, width: int) -> None:
    assert importance_width(importance, alpha, c_min, c_max) == width


def test_importance_is_the_largest_difference_from_the_parent() -> None:
    # |0.9 - 0.5| = 0.4, |0.3 - 0.5| = 0.2; the third child has not been evaluated.
    node = node_with(0.5, [(0.9, 3, 0.0), (0.3, 1, 0.0), (None, 0, 0.0)])
    assert value_importance(node) == pytest.approx(0.4)
    assert value_importance(node_with(0.5, [(None, 0, 0.0)])) == 0.0
    assert value_importance(node_with(0.5, [])) == 0.0


def test_the_codes_importance_is_the_largest_difference_from_the_mean() -> None:
    # Q: 1.8/2 = 0.9, 0.6/3 = 0.2, 0.4/1 = 0.4, mean 0.5: |0.9 - 0.5| = 0.4, |0.2 - 0.5| = 0.3. Unvisited: left out.
    node = node_with(0.1, [(0.9, 2, 1.8), (0.3, 3, 0.6), (0.4, 1, 0.4), (None, 0, 0.0)])
    assert mean_importance(node) == pytest.approx(0.4)
    assert mean_importance(node_with(0.5, [])) == 0.0


def test_the_widening_takes_the_bounds_of_its_depth() -> None:
    bounds = {"min_children": 2, "max_children": 4, "root_min_children": 5, "root_max_children": 9}
    widening = WideningConfig(kind="importance", alpha=10.0, **bounds)  # type: ignore[arg-type]
    root = node_with(0.5, [(0.5, 1, 0.5)])
    assert widening.width(root) == 5  # I = 0
    root.children[0].value = 1.0  # I = 0.5: floor(5) + 1
    assert widening.width(root) == 6
    root.value = 0.0  # I = 1: 11, cut to 9
    assert widening.width(root) == 9
    below = root.children[0]
    below.value = 0.0
    assert widening.width(below) == 2
    grandchild = Node(Step("x"), 0.5, below, 0)
    grandchild.value = 0.9  # floor(9) + 1 = 10, cut to 4
    below.children.append(grandchild)
    assert widening.width(below) == 4


def test_the_codes_width_is_only_ever_raised() -> None:
    widening = WideningConfig(kind="importance_code", alpha=10.0, root_min_children=1, root_max_children=8)
    node = node_with(0.5, [(0.9, 2, 1.8), (0.3, 3, 0.6), (0.4, 1, 0.4)])
    assert widening.width(node) == 4  # int(10 * 0.4)
    node.children[0].value_sum = 0.6  # Q 0.3, 0.2, 0.4: at most 0.1 from their mean 0.3, int(1) = 1
    assert widening.width(node, before=4) == 4
    assert widening.width(node) == 1


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "narrow"}, "widening.kind is 'narrow'"),
        ({"alpha": 0.0}, "widening.alpha is 0.0"),
        ({"k": nan}, "widening.k is nan"),
        ({"kind": "progressive", "alpha": 1.5}, "alpha is 1.5"),
        ({"min_children": 0}, "min_children is 0"),
        ({"min_children": 11}, "between 11 and 10"),
        ({"root_min_children": 61}, "between 61 and 60"),
    ],
)
def test_widening_settings_are_checked(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WideningConfig(**values)


def test_a_log_probability_that_is_no_number_is_an_error() -> None:
    for logprob in (-inf, nan):
        with pytest.raises(PolicyError, match="log-probability"):
            priors([Step("a", -1.0), Step("b", logprob)], 1.0)


def test_dirichlet_noise_by_hand() -> None:
    # A Dirichlet draw is independent gamma draws divided by their sum; the seed's own stream gives them.
    draw = random.Random(7)
    gammas = [draw.gammavariate(0.3, 1.0) for _ in range(3)]
    noise = [g / sum(gammas) for g in gammas]
    mixed = with_dirichlet_noise([0.5, 0.3, 0.2], 0.25, 0.3, 7)
    assert mixed == pytest.approx([0.75 * p + 0.25 * n for p, n in zip([0.5, 0.3, 0.2], noise, strict=True)])
    assert with_dirichlet_noise([0.5, 0.5], 0.0, 0.3, 7) == [0.5, 0.5]


def test_dirichlet_noise_has_the_right_mean_and_spread() -> None:
    # Dir(0.3, 0.3, 0.3): each mean 1/3, variance (1/3)(2/3) / (0.9 + 1) = 0.116959.
    draws = [with_dirichlet_noise([1.0, 0.0, 0.0], 1.0, 0.3, seed) for seed in range(4000)]
    for i in range(3):
        column = [d[i] for d in draws]
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        assert mean == pytest.approx(1 / 3, abs=0.02)
        assert variance == pytest.approx(0.116959, abs=0.006)
    assert all(sum(d) == pytest.approx(1.0) for d in draws)


def test_noise_that_underflows_is_left_out() -> None:
    # Gamma samples of shape 1e-300 are 0 in floating point.
    assert with_dirichlet_noise([0.7, 0.3], 0.25, 1e-300, 1) == [0.7, 0.3]
