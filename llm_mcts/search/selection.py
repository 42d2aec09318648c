"""Selection rules: which child of a node a simulation goes down to.

Pure functions of the counts, over the children that are open to a search. All take values in [0, 1]. A simulation in flight
counts as `virtual_loss` visits that lost (AlphaGo, Methods: virtual loss), so simulations under way at the same time spread
over the tree. One that is under way at a child is under way at its parent too, so where the parent has none the children
need not be asked.

Q normalisation (MuZero) divides Q by the span of values before the exploration term is added. The rules need not know:
argmax Q / span + c U is argmax Q + (c span) U, so the caller scales c.
"""

from collections.abc import Callable
from math import inf, log, sqrt

from llm_mcts.tree import Node

C_BASE = 19652
"""AlphaZero's pseudo-code: how slowly its exploration grows with the visits."""


def uct(node: Node, c: float, virtual_loss: float, first_play: float | None = None) -> Node:
    """UCB1 on trees (Kocsis and Szepesvári 2006): argmax Q + c sqrt(2 ln N / n); unvisited children come first, in order.

    N is the parent's count, n the child's. AlphaLLM's paper has the same formula, its code none of the 2: c / sqrt(2) here.
    """
    in_flight = node.in_flight
    total = node.visit_count + virtual_loss * in_flight
    scale = c * sqrt(2 * log(total)) if total > 1 else 0.0
    best, best_score = node.open[0], -inf
    for child in node.open:
        n: float = child.visit_count
        if in_flight:
            n += virtual_loss * child.in_flight
        if n == 0:
            return child
        score = child.value_sum / n + scale / sqrt(n)
        if score > best_score:
            best, best_score = child, score
    return best


def puct(node: Node, c: float, virtual_loss: float, first_play: float | None = None) -> Node:
    """PUCT as in AlphaZero's pseudo-code with a constant c: argmax Q + c P sqrt(N) / (1 + n).

    N is the parent's count, its own evaluation included, so the first choice follows the prior. An unvisited child is
    worth `first_play`; None gives it its parent's mean value: it is not known to be worse.
    """
    in_flight = node.in_flight
    scale = c * sqrt(node.visit_count + virtual_loss * in_flight)
    unvisited_value = node.q_value if first_play is None else first_play
    best, best_score = node.open[0], -inf
    for child in node.open:
        n: float = child.visit_count
        if in_flight:
            n += virtual_loss * child.in_flight
        score = (child.value_sum / n if n else unvisited_value) + scale * child.prior / (1 + n)
        if score > best_score:
            best, best_score = child, score
    return best


def alphago(node: Node, c: float, virtual_loss: float, first_play: float | None = None) -> Node:
    """AlphaGo's PUCT (Silver et al. 2016): argmax Q + c P sqrt(sum_b N_b) / (1 + n), the sum over the children alone.

    With no child visited all exploration terms are 0; the prior then decides, as it does for the smallest positive sum.
    """
    total = sum(child.visit_count + virtual_loss * child.in_flight for child in node.children)
    if total <= 0:
        return max(node.open, key=lambda child: child.prior)
    # puct has the parent's own count under its root.
    return puct(node, c * sqrt(total / (node.visit_count + virtual_loss * node.in_flight)), virtual_loss, first_play)


def alphazero(node: Node, c: float, virtual_loss: float, first_play: float | None = None) -> Node:
    """AlphaZero's PUCT (Silver et al. 2018): c grows as log((N + 19652 + 1) / 19652) + c."""
    total = node.visit_count + virtual_loss * node.in_flight
    return puct(node, log((total + C_BASE + 1) / C_BASE) + c, virtual_loss, first_play)


Rule = Callable[[Node, float, float, float | None], Node]

RULES: dict[str, Rule] = {"uct": uct, "puct": puct, "alphago": alphago, "alphazero": alphazero}
"""Selection rules by name."""


def siblings_span(node: Node) -> float:
    """Span of the mean values of a node and its visited children (mctx: parent and siblings); 1 where there is none.

    MuZero's other normalisation, over the whole tree, is `Tree.value_range`.
    """
    values = [child.value_sum / child.visit_count for child in node.children if child.visit_count]
    if node.visit_count:
        values.append(node.q_value)
    return (max(values) - min(values) if values else 0.0) or 1.0
