"""Monte-Carlo tree search: select, expand, evaluate, back up, over and over (AlphaGo, AlphaZero).

    select     go down from the root to a leaf, at each node to the child that the selection rule prefers
    expand     ask the policy for the leaf's next steps, and go down to one of them
    evaluate   give that node its value
    back up    add the value to every node on the way to the root, as one visit

As in AlphaGo a leaf is expanded when it is visited again, so a simulation evaluates one new node. There is one player: values
are in [0, 1] and are not negated on the way up.

Everything else is a part that is passed in: the rule (`selection`), the children (`expansion`), the leaf's value (`evaluation`)
and what else learns from a backup (`explored`). `waves` runs several simulations at once.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llm_mcts.search.expansion import Expansion
from llm_mcts.search.selection import Select
from llm_mcts.tree import Node, Tree

Evaluate = Callable[[Sequence[Node]], Awaitable[None]]
"""Sets the value of each leaf."""


@dataclass
class TreeSearch:
    """A tree and the parts that grow it."""

    tree: Tree
    select: Select
    expansion: Expansion
    evaluate: Evaluate
    observers: Sequence[Callable[[Node], None]] = ()
    """Called with each leaf after its backup."""

    async def simulate(self) -> None:
        """One simulation. If it fails or is cancelled the tree is as if it had not begun."""
        leaf = self.descend(self.tree.root, self.expansion.due)
        with self.expansion:
            if self.expansion.reserve(leaf):
                leaf = await self.expand(leaf)
            if leaf.value is None:
                await self.evaluate([leaf])
        self.backup(leaf)

    def descend(self, node: Node, due: Callable[[Node], bool] | None = None) -> Node:
        """Select from `node` down to a leaf, or to a node that is due for another child."""
        while node.children and not (due and due(node)):
            node = self.select(node)
        return node

    async def expand(self, leaf: Node) -> Node:
        """Give `leaf` its children; the one to go to."""
        new = await self.expansion.expand(leaf)
        return new[0] if new else self.descend(leaf)

    def backup(self, leaf: Node) -> None:
        """Add the leaf's value to its path."""
        backup(leaf)
        for observe in self.observers:
            observe(leaf)

    async def evaluate_root(self) -> None:
        """Give a new tree's root its value: one visit that counts as no simulation."""
        root = self.tree.root
        if root.value is None:
            await self.evaluate([root])
            self.backup(root)


def backup(leaf: Node) -> None:
    """Add the leaf's value to every node from it to the root, as one visit."""
    value = leaf.value
    assert value is not None
    node: Node | None = leaf
    while node is not None:
        node.visit_count += 1
        node.value_sum += value
        node = node.parent
