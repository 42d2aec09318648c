"""Several simulations of one tree at once: the steps of `tree_search`, each done for the whole wave before the next.

The simulations select one after the other, each seeing the others' virtual loss (AlphaGo), then expand and evaluate together,
then back up in order. The tree therefore depends on the configuration and the seed, not on how fast the replies came. A wave
is never cut, and undone whole if it fails or is cancelled: a tree that was stopped and is searched further becomes the tree
that an unstopped search would have grown.
"""

from collections.abc import Iterable, Sequence

from llm_mcts.concurrency import gather_all
from llm_mcts.search.tree_search import TreeSearch
from llm_mcts.tree import Node


async def simulate_together(search: TreeSearch, starts: Sequence[Node]) -> None:
    """Run a wave of simulations, one from each start, which may lie below the root.

    Of several that reach the same new leaf one counts; the others are undone, as if they had not begun.
    """
    leaves, growing = [], []
    for start in starts:
        leaf = search.descend(start)
        apply_virtual_loss(leaf)
        leaves.append(leaf)
        if search.expansion.reserve(leaf):
            growing.append(leaf)
    try:
        with search.expansion:
            if growing:
                leaves = await _expand(search, leaves, _distinct(growing))
            new = [leaf for leaf in _distinct(leaves) if leaf.value is None]
            if new:
                await search.evaluate(new)
    finally:
        for leaf in leaves:
            undo_virtual_loss(leaf)
    for i, leaf in enumerate(leaves):
        if leaf not in new or leaf not in leaves[:i]:
            search.backup(leaf)


async def _expand(search: TreeSearch, leaves: Sequence[Node], growing: Sequence[Node]) -> list[Node]:
    """Expand the nodes that are growing; the simulations that stopped there go down to a child, the others stay."""
    grown = dict(zip(growing, await gather_all([search.expansion.expand(node) for node in growing]), strict=True))
    return [_resume(search, leaf, grown[leaf]) if leaf in grown else leaf for leaf in leaves]


def _resume(search: TreeSearch, node: Node, new: list[Node]) -> Node:
    """Go from an expanded node to the next of its new children, or where selection leads if none is left."""
    if new:
        child = new.pop(0)
        child.in_flight += 1
        return child
    undo_virtual_loss(node)  # a simulation does not see its own virtual loss
    leaf = search.descend_to_leaf(node)
    apply_virtual_loss(leaf)
    return leaf


def apply_virtual_loss(leaf: Node) -> None:
    """Count a simulation as in flight from `leaf` to the root."""
    node: Node | None = leaf
    while node is not None:
        node.in_flight += 1
        node = node.parent


def undo_virtual_loss(leaf: Node) -> None:
    """Take back what `apply_virtual_loss` did."""
    node: Node | None = leaf
    while node is not None:
        node.in_flight -= 1
        node = node.parent


def _distinct(nodes: Iterable[Node]) -> list[Node]:
    """The nodes without repetition, in order."""
    return list(dict.fromkeys(nodes))
