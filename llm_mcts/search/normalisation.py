"""Q normalisation (MuZero, Schrittwieser et al. 2020): the span of values that Q is divided by, over siblings or the tree."""

from llm_mcts.tree import Node, Tree


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
