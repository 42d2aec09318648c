"""Selection rules: which child of a node a simulation goes down to.

Pure functions of the counts. All take values in [0, 1]. A simulation in flight counts as `virtual_loss` visits that
lost (AlphaGo, Methods: virtual loss), so simulations under way at the same time spread over the tree.
"""

from collections.abc import Callable
from math import inf, log, sqrt

from llm_mcts.tree import Node


def uct(node: Node, c: float, virtual_loss: float) -> Node:
    """UCB1 on trees (Kocsis and Szepesvári 2006): argmax Q + c sqrt(2 ln N / n); unvisited children come first, in order.

    N is the parent's count, n the child's.
    """
    total = node.visit_count + virtual_loss * node.in_flight
    scale = c * sqrt(2 * log(total)) if total > 1 else 0.0
    best, best_score = node.children[0], -inf
    for child in node.children:
        n = child.visit_count + virtual_loss * child.in_flight
        if n == 0:
            return child
        score = child.value_sum / n + scale / sqrt(n)
        if score > best_score:
            best, best_score = child, score
    return best


def puct(node: Node, c: float, virtual_loss: float) -> Node:
    """PUCT (AlphaGo, Silver et al. 2016): argmax Q + c P sqrt(N) / (1 + n).

    N is the parent's count, its own evaluation included, as in AlphaZero's pseudo-code, so the first choice follows the
    prior. An unvisited child is given its parent's mean value: it is not known to be worse.
    """
    scale = c * sqrt(node.visit_count + virtual_loss * node.in_flight)
    parent_value = node.q_value
    best, best_score = node.children[0], -inf
    for child in node.children:
        n = child.visit_count + virtual_loss * child.in_flight
        score = (child.value_sum / n if n else parent_value) + scale * child.prior / (1 + n)
        if score > best_score:
            best, best_score = child, score
    return best


Rule = Callable[[Node, float, float], Node]

RULES: dict[str, Rule] = {"uct": uct, "puct": puct}
"""Selection rules by name."""
