"""Leaving explored branches alone (`revisit: false`, in no paper): each simulation evaluates something new.

A node is explored once everything below it has been evaluated; selection then chooses among its siblings, and a search whose
root is explored has seen the whole tree.
"""

from collections.abc import Sequence

from llm_mcts.tree import Node, Tree


class Unexplored:
    """The children below which there is something new; for trees whose nodes get all their children at once."""

    def __init__(self, tree: Tree, max_depth: int) -> None:
        self.max_depth = max_depth
        self._left: dict[Node, list[Node]] = {}
        """The unexplored children, of nodes that have an explored one."""
        for node in reversed(list(tree.nodes())):
            self.update(node)

    def children(self, node: Node) -> Sequence[Node]:
        """Those of the node's children that are not explored, in order."""
        return self._left.get(node, node.children)

    def explored(self, node: Node) -> bool:
        """Whether there is nothing new below `node`."""
        if node.children:
            return not self.children(node)
        return node.value is not None and (node.terminal or node.depth >= self.max_depth)

    def update(self, leaf: Node) -> None:
        """After a backup: take the leaf out if it is explored, and its parents if that was the last of their children."""
        node = leaf
        while node.parent is not None and self.explored(node):
            self._left[node.parent] = [child for child in self.children(node.parent) if child is not node]
            node = node.parent
