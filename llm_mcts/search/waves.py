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
    expansion, leaves, growing = search.expansion, list[Node](), list[Node]()
    for start in starts:
        leaf = search.descend(start, expansion.due)
        apply_virtual_loss(leaf)
        leaves.append(leaf)
        if expansion.reserve(leaf):
            growing.append(leaf)
    try:
        with expansion:
            if growing:
                growing = _distinct(growing)
                new = await gather_all([expansion.expand(node) for node in growing])
                leaves = _resume(search, leaves, dict(zip(growing, new, strict=True)))
            unvalued = _distinct(leaf for leaf in leaves if leaf.value is None)
            if unvalued:
                await search.evaluate(unvalued)
    finally:
        for leaf in leaves:
            undo_virtual_loss(leaf)
    counted: set[Node] = set()
    for leaf in leaves:
        if leaf not in counted:
            search.backup(leaf)
        if leaf in unvalued:
            counted.add(leaf)


def _resume(search: TreeSearch, leaves: Sequence[Node], grown: dict[Node, list[Node]]) -> list[Node]:
    """Simulations that stopped at a node that has grown go to the next of its new children, or where selection leads."""
    resumed = []
    for leaf in leaves:
        if leaf not in grown:
            resumed.append(leaf)
        elif grown[leaf]:
            resumed.append(grown[leaf].pop(0))
            resumed[-1].in_flight += 1
        else:
            undo_virtual_loss(leaf)  # a simulation does not see its own virtual loss
            resumed.append(search.descend(leaf))
            apply_virtual_loss(resumed[-1])
    return resumed


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
