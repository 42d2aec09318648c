"""The search tree: nodes with visit counts, value sums, priors and links; paths; JSON.

Index convention: a node stands for the state after its step; its statistics are those of the edge that leads to it, as
seen from its parent. The root stands for the question and has an empty step.
"""

from collections.abc import Iterator
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.types import State, Step

_ROOT_STEP = Step("")


class Node:
    """One reasoning step in the tree."""

    __slots__ = ("children", "depth", "in_flight", "index", "parent", "prior", "step", "value", "value_sum", "visit_count")

    def __init__(self, step: Step, prior: float = 1.0, parent: "Node | None" = None, index: int = 0) -> None:
        self.step = step
        self.prior = prior
        self.parent = parent
        self.index = index
        """Position among the siblings."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: list[Node] = []
        self.visit_count = 0
        self.value_sum = 0.0
        self.in_flight = 0
        """Simulations that went through here and have not been backed up yet."""
        self.value: float | None = None
        """The node's own leaf value in [0, 1], once evaluated."""

    @property
    def q_value(self) -> float:
        """Mean of the values backed up through here; 0 before the first."""
        return self.value_sum / self.visit_count if self.visit_count else 0.0

    @property
    def terminal(self) -> bool:
        """Whether the solution ends with this step."""
        return self.step.terminal

    def path(self) -> list["Node"]:
        """The nodes from the root to here, both included."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def key(self) -> str:
        """The place in the tree as child indices, such as "0.2.1"; empty for the root."""
        return ".".join(str(node.index) for node in self.path()[1:])


class Tree:
    """A tree of steps below one question."""

    def __init__(self, question: str) -> None:
        self.question = question
        self.root = Node(_ROOT_STEP)
        self.rollouts: list[tuple[Node, State, float | None]] = []
        """Solutions completed outside the tree: (from which node, whole solution, critic's score)."""

    def state(self, node: Node) -> State:
        """The question and the steps on the way to `node`."""
        return State(self.question, tuple(n.step for n in node.path()[1:]))

    def expand(self, node: Node, steps: list[Step], priors: list[float]) -> None:
        """Give a leaf its children, in order."""
        if node.children:
            raise ValueError(f"node '{node.key()}' has children already; expand a leaf")
        node.children = [Node(s, p, node, i) for i, (s, p) in enumerate(zip(steps, priors, strict=True))]

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before children, siblings in order."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        number: dict[int, int] = {}
        rows = []
        for i, node in enumerate(self.nodes()):
            number[id(node)] = i
            rows.append(
                {
                    "parent": number[id(node.parent)] if node.parent else None,
                    **_step_to_dict(node.step),
                    "prior": node.prior,
                    "visits": node.visit_count,
                    "value_sum": node.value_sum,
                    "value": node.value,
                }
            )
        rollouts = [
            {
                "node": number[id(node)],
                "steps": [_step_to_dict(s) for s in state.steps[node.depth :]],
                "score": score,
            }
            for node, state, score in self.rollouts
        ]
        return {"question": self.question, "nodes": rows, "rollouts": rollouts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Tree":
        """Rebuild a tree that `to_dict` wrote.

        Raises:
            DataError: the record does not have that form.
        """
        try:
            tree = cls(data["question"])
            if not data["nodes"]:
                raise DataError("a tree record is broken (no node); expected at least the root")
            nodes: list[Node] = []
            for i, row in enumerate(data["nodes"]):
                if i == 0:
                    node = tree.root
                else:
                    if not 0 <= row["parent"] < i:
                        raise DataError(
                            f"a tree record is broken (node {i} has parent {row['parent']}); expected an earlier one"
                        )
                    parent = nodes[row["parent"]]
                    node = Node(_step_from_dict(row), row["prior"], parent, len(parent.children))
                    parent.children.append(node)
                node.visit_count, node.value_sum, node.value = row["visits"], row["value_sum"], row["value"]
                nodes.append(node)
            for row in data["rollouts"]:
                node = nodes[row["node"]]
                steps = tuple(_step_from_dict(s) for s in row["steps"])
                tree.rollouts.append((node, tree.state(node).then(*steps), row["score"]))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"a tree record is broken ({error!r}); expected what Tree.to_dict writes") from error
        return tree


def _step_to_dict(step: Step) -> dict[str, Any]:
    """A step as JSON fields."""
    fields: dict[str, Any] = {"text": step.text, "logprob": step.logprob, "tokens": step.num_tokens}
    if step.terminal:
        fields |= {"terminal": True, "answer": step.answer}
    return fields


def _step_from_dict(row: dict[str, Any]) -> Step:
    """The step that `_step_to_dict` wrote."""
    return Step(row["text"], row["logprob"], row["tokens"], row.get("terminal", False), row.get("answer"))
