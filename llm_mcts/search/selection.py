"""Selection rules: which child of a node a simulation goes down to.

Pure functions of the counts; values are in [0, 1]. A simulation in flight counts as `virtual_loss` visits that lost (AlphaGo,
Methods: virtual loss), so simulations under way at the same time spread over the tree. One that is under way at a child is
under way at its parent too, so where the parent has none the children need not be asked.

Arguments of every rule:
    node          the parent, whose counts the exploration term needs
    children      the children to choose among: all, or those that are not fully explored
    c             exploration constant, >= 0
    virtual_loss  lost visits that a simulation in flight counts for, >= 0
    fpu           first-play urgency: the value of an unvisited child, in [0, 1]; None: its parent's mean

Q normalisation (MuZero) divides Q by the span of values before the exploration term is added. The rules need not know:
argmax Q / span + c U is argmax Q + (c span) U, so `selector` scales c.
"""

from collections.abc import Callable, Sequence
from math import inf, log, sqrt

from llm_mcts.tree import Node, Tree

C_BASE = 19652
"""AlphaZero's pseudo-code: how slowly its exploration grows with the visits."""


def uct(node: Node, children: Sequence[Node], c: float, virtual_loss: float, fpu: float | None = None) -> Node:
    """UCB1 on trees (Kocsis and Szepesvári 2006): argmax Q + c sqrt(2 ln N / n).

    N is the parent's count, n the child's. Unvisited children come first, in order, whatever `fpu` is. AlphaLLM's paper has the
    same formula, its code none of the 2: c / sqrt(2) here.
    """
    in_flight = node.in_flight
    total = node.visit_count + virtual_loss * in_flight
    scale = c * sqrt(2 * log(total)) if total > 1 else 0.0
    best, best_score = children[0], -inf
    for child in children:
        n: float = child.visit_count
        if in_flight:
            n += virtual_loss * child.in_flight
        if n == 0:
            return child
        score = child.value_sum / n + scale / sqrt(n)
        if score > best_score:
            best, best_score = child, score
    return best


def puct(node: Node, children: Sequence[Node], c: float, virtual_loss: float, fpu: float | None = None) -> Node:
    """PUCT as in AlphaZero's pseudo-code with a constant c: argmax Q + c P sqrt(N) / (1 + n).

    N is the parent's count, its own evaluation included, so the first choice follows the prior.
    """
    in_flight = node.in_flight
    scale = c * sqrt(node.visit_count + virtual_loss * in_flight)
    unvisited_value = node.q_value if fpu is None else fpu
    best, best_score = children[0], -inf
    for child in children:
        n: float = child.visit_count
        if in_flight:
            n += virtual_loss * child.in_flight
        score = (child.value_sum / n if n else unvisited_value) + scale * child.prior / (1 + n)
        if score > best_score:
            best, best_score = child, score
    return best


def alphago(node: Node, children: Sequence[Node], c: float, virtual_loss: float, fpu: float | None = None) -> Node:
    """AlphaGo's PUCT (Silver et al. 2016): argmax Q + c P sqrt(sum_b N_b) / (1 + n), the sum over all the node's children.

    With no child visited all exploration terms are 0; the prior then decides, as it does for the smallest positive sum.
    """
    total = sum(child.visit_count + virtual_loss * child.in_flight for child in node.children)
    if total <= 0:
        return max(children, key=lambda child: child.prior)
    # puct has the parent's own count under its root.
    scaled = c * sqrt(total / (node.visit_count + virtual_loss * node.in_flight))
    return puct(node, children, scaled, virtual_loss, fpu)


def alphazero(node: Node, children: Sequence[Node], c: float, virtual_loss: float, fpu: float | None = None) -> Node:
    """AlphaZero's PUCT (Silver et al. 2018): c grows as log((N + 19652 + 1) / 19652) + c."""
    total = node.visit_count + virtual_loss * node.in_flight
    return puct(node, children, log((total + C_BASE + 1) / C_BASE) + c, virtual_loss, fpu)


Rule = Callable[[Node, Sequence[Node], float, float, float | None], Node]
RULES: dict[str, Rule] = {"uct": uct, "puct": puct, "alphago": alphago, "alphazero": alphazero}
"""Selection rules by name."""

Select = Callable[[Node], Node]
"""The child of a node with children that a simulation goes down to."""


def selector(
    rule: Rule,
    c: float,
    virtual_loss: float,
    fpu: float | None,
    span: Callable[[Node], float] | None = None,
    candidates: Callable[[Node], Sequence[Node]] | None = None,
) -> Select:
    """A rule with its constants.

    Args:
        span: what Q is divided by at a node; None: nothing.
        candidates: the children to choose among (`explored`); None: all.
    """
    if span is None and candidates is None:
        return lambda node: rule(node, node.children, c, virtual_loss, fpu)

    def select(node: Node) -> Node:
        children = candidates(node) if candidates else node.children
        return rule(node, children, c * span(node) if span else c, virtual_loss, fpu)

    return select


def siblings_span(node: Node) -> float:
    """Span of the mean values of a node and its visited children (mctx: parent and siblings); 1 where there is none."""
    values = [child.value_sum / child.visit_count for child in node.children if child.visit_count]
    if node.visit_count:
        values.append(node.q_value)
    return (max(values) - min(values) if values else 0.0) or 1.0


class TreeSpan:
    """Span of all mean values met so far, kept in `Tree.value_range` (MuZero's MinMaxStats); 1 where there is none."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def __call__(self, node: Node) -> float:
        """The span, at any node."""
        low, high = self.tree.value_range or (0.0, 0.0)
        return high - low or 1.0

    def update(self, leaf: Node) -> None:
        """After a backup: widen the range by the means on the leaf's path."""
        means = [node.q_value for node in leaf.path()]
        low, high = self.tree.value_range or (1.0, 0.0)
        self.tree.value_range = min(low, *means), max(high, *means)
