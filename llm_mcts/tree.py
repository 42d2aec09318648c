"""The search tree: nodes with visit counts, value sums, priors and links; paths; JSON.

Index convention: a node stands for the state after its step; its statistics are those of the edge that leads to it, as
seen from its parent. The root stands for the question and has an empty step.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from llm_mcts.errors import DataError
from llm_mcts.types import State, Step, Trace, Usage

FORMAT_VERSION = 1
"""Of a saved tree; a record with another one is refused."""
Scorer = Literal["critic", "agreement"]
_ROOT_STEP = Step("")
_STATISTICS = {"visits": "visit_count", "value_sum": "value_sum", "value": "value"}
"""JSON key -> attribute of a node."""
_ANNOTATIONS = ("draw", "width", "asked")


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
        """Steps before and including this one."""
        self.children: list[Node] = []
        self.visit_count = 0
        self.value_sum = 0.0
        self.in_flight = 0
        """Simulations that went through here and have not been backed up yet. Not saved: a saved tree has none."""
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
        nodes = [self]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        return nodes[::-1]

    def key(self) -> str:
        """The place in the tree as child indices, such as "0.2.1"; empty for the root."""
        return ".".join([str(node.index) for node in self.path()[1:]])


class Tree:
    """A tree of steps below one question, or below some first steps of its solution."""

    def __init__(self, question: str, prefix: tuple[Step, ...] = (), origin: str = "") -> None:
        """`prefix`: steps that stand before the root; `origin`: the root's place in the tree it was taken from."""
        self.question, self.prefix, self.origin = question, prefix, origin
        self.root = Node(prefix[-1] if prefix else _ROOT_STEP)
        self.root.depth = len(prefix)
        self.rollouts: list[tuple[Node, State, float | None]] = []
        """Solutions completed outside the tree: (from which node, whole solution, critic's score)."""
        self.usage = Usage()
        """What the searches that grew this tree have cost, all together."""
        self.scored_by: Scorer = "critic"
        """Who gave the scores: a critic, or agreement with the other solutions, which is a count of votes and no score."""
        self.value_range: tuple[float, float] | None = None
        """Minimum and maximum of the mean values met so far, where a search keeps them (MuZero's normalisation)."""
        self.annotations: dict[str, dict[Node, int]] = {name: {} for name in _ANNOTATIONS}
        """Counts that parts of a search keep for some nodes and that are saved with them; 0 where there is none. draw: which of
        the parent's proposals brought the step (dvts). width, asked: children that a node may have, and was to be given so
        far (widening)."""

    @classmethod
    def of_samples(cls, question: str, traces: Sequence[Trace]) -> "Tree":
        """A tree of whole solutions alone, as if each had been completed from the question."""
        tree = cls(question)
        tree.rollouts = [(tree.root, trace.state, trace.score) for trace in traces]
        return tree

    @classmethod
    def of(cls, question: str, tree: "Tree | None" = None, scored_by: Scorer = "critic") -> "Tree":
        """A tree from an earlier search of `question`, or a new one, that is to be scored by `scored_by`.

        Raises:
            DataError: the tree is another question's, or has scores of another kind, which must not be mixed.
        """
        tree = cls(question) if tree is None else tree
        if tree.question != question:
            raise DataError(f"the tree is of question {tree.question!r}; expected one of {question!r}")
        if tree.scored_by != scored_by and tree.has_scores():
            remedy = "give it a critic" if tree.scored_by == "critic" else "search it without a critic"
            raise DataError(
                f"the tree was scored by {tree.scored_by}, and this search scores by {scored_by}; {remedy}, or start a new tree"
            )
        tree.scored_by = scored_by
        return tree

    def has_scores(self) -> bool:
        """Whether any node or rollout has been scored."""
        return any(node.value is not None for node in self.nodes()) or any(score is not None for _, _, score in self.rollouts)

    def state(self, node: Node) -> State:
        """The question and the steps on the way to `node`."""
        steps: list[Step] = []
        while (parent := node.parent) is not None:
            steps.append(node.step)
            node = parent
        return State(self.question, (*self.prefix, *steps[::-1]))

    def place(self, node: Node) -> str:
        """The node's place counted from the question: it stays the same in a subtree. Seeds derive from it."""
        return ".".join(filter(None, (self.origin, node.key())))

    def find(self, key: str) -> Node:
        """The node at a place such as "0.2.1", counted from this root.

        Raises:
            DataError: there is none.
        """
        node = self.root
        for index in filter(None, key.split(".")):
            if not index.isdecimal() or int(index) >= len(node.children):
                raise DataError(f"the tree has no node '{key}'; '{node.key()}' has {len(node.children)} children")
            node = node.children[int(index)]
        return node

    def expand(self, node: Node, steps: Sequence[Step], priors: Sequence[float]) -> None:
        """Give a leaf its children, in order."""
        if node.children:
            raise ValueError(f"node '{node.key()}' has children already; expand a leaf")
        node.children += [Node(s, p, node, i) for i, (s, p) in enumerate(zip(steps, priors, strict=True))]

    def add_child(self, node: Node, step: Step) -> Node:
        """One more child; its prior is for the caller to set."""
        child = Node(step, 1.0, node, len(node.children))
        node.children.append(child)
        return child

    def subtree(self, node: Node) -> "Tree":
        """The tree below `node` with all its statistics, as a copy: what is left once this step has been chosen.

        Continued with the same search and seed it draws what it would have drawn in the whole tree.
        """
        steps = tuple(n.step for n in node.path()[1:])
        part = Tree(self.question, self.prefix + steps, self.place(node))
        part.value_range, part.scored_by = self.value_range, self.scored_by
        copies = {node: part.root}
        for original in _below(node):
            if original is not node:
                copies[original] = part.add_child(copies[original.parent], original.step)  # type: ignore[index]
                copies[original].prior = original.prior
            for name in _STATISTICS.values():
                setattr(copies[original], name, getattr(original, name))
        for name, counts in self.annotations.items():
            part.annotations[name] = {copies[n]: count for n, count in counts.items() if n in copies}
        part.annotations["draw"].pop(part.root, None)  # it has no siblings here
        part.rollouts = [(copies[n], state, score) for n, state, score in self.rollouts if n in copies]
        return part

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before children, siblings in order."""
        return _below(self.root)

    def traces(self, votes: bool = False) -> list[Trace]:
        """Every whole solution, the evaluated terminal nodes first, then the rollouts.

        Their scores are the critic's; those that agreement gave, which are shares of votes, only with `votes`.
        """
        scored = votes or self.scored_by == "critic"
        ends = [Trace(self.state(n), n.value if scored else None) for n in self.nodes() if n.terminal and n.visit_count]
        return ends + [Trace(state, score if scored else None) for _, state, score in self.rollouts]

    @property
    def size(self) -> int:
        """Nodes and rollouts: what a policy has written here."""
        return len(self) + len(self.rollouts)

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy of what the tree is, without what it cost: equal searches write equal records."""
        number: dict[Node | None, int] = {node: i for i, node in enumerate(self.nodes())}
        rows = []
        for node in self.nodes():
            row = {"parent": number.get(node.parent), **_step_to_dict(node.step), "prior": node.prior}
            row |= {key: getattr(node, name) for key, name in _STATISTICS.items()}
            rows.append(row | {name: counts[node] for name, counts in self.annotations.items() if counts.get(node)})
        rollouts = [
            {"node": number[node], "steps": [_step_to_dict(s) for s in state.steps[node.depth :]], "score": score}
            for node, state, score in self.rollouts
        ]
        data: dict[str, Any] = {"version": FORMAT_VERSION, "question": self.question, "scored_by": self.scored_by}
        data |= {"nodes": rows, "rollouts": rollouts}
        if self.prefix:
            data |= {"prefix": [_step_to_dict(step) for step in self.prefix], "origin": self.origin}
        if self.value_range:
            data["value_range"] = list(self.value_range)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Tree":
        """Rebuild a tree that `to_dict` wrote.

        Raises:
            DataError: the record does not have that form.
        """
        if isinstance(data, dict) and data.get("version") != FORMAT_VERSION:
            raise DataError(
                f"a tree record has format version {data.get('version')}; expected {FORMAT_VERSION}: search the question again"
            )
        try:
            prefix = tuple(_step_from_dict(row) for row in data.get("prefix", ()))
            tree = cls(data["question"], prefix, data.get("origin", ""))
            tree.scored_by = data["scored_by"]
            if tree.scored_by not in get_args(Scorer):
                raise ValueError(f"scored_by is {tree.scored_by!r}")
            if "value_range" in data:
                low, high = data["value_range"]
                tree.value_range = low, high
            if not data["nodes"]:
                raise DataError("a tree record is broken (no node); expected at least the root")
            nodes: list[Node] = []
            for i, row in enumerate(data["nodes"]):
                nodes.append(node := tree._read_child(row, nodes) if i else tree.root)
                for key, name in _STATISTICS.items():
                    setattr(node, name, row[key])
                for name in tree.annotations.keys() & row.keys():
                    tree.annotations[name][node] = row[name]
            for row in data["rollouts"]:
                node = nodes[row["node"]]
                steps = tuple(_step_from_dict(s) for s in row["steps"])
                tree.rollouts.append((node, tree.state(node).then(*steps), row["score"]))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"a tree record is broken ({error!r}); expected what Tree.to_dict writes") from error
        return tree

    def _read_child(self, row: dict[str, Any], nodes: Sequence[Node]) -> Node:
        """The node of a row that is not the first, below its parent, which is one of `nodes`."""
        if not 0 <= row["parent"] < len(nodes):
            raise DataError(f"a tree record is broken (node {len(nodes)} has parent {row['parent']}); expected an earlier one")
        child = self.add_child(nodes[row["parent"]], _step_from_dict(row))
        child.prior = row["prior"]
        return child


def _below(node: Node) -> Iterator[Node]:
    """`node` and all below it, parents before children, siblings in order."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def _step_to_dict(step: Step) -> dict[str, Any]:
    """A step as JSON fields."""
    fields: dict[str, Any] = {"text": step.text, "logprob": step.logprob, "tokens": step.num_tokens}
    if step.terminal:
        fields |= {"terminal": True, "answer": step.answer}
    return fields


def _step_from_dict(row: dict[str, Any]) -> Step:
    """The step that `_step_to_dict` wrote."""
    return Step(row["text"], row["logprob"], row["tokens"], row.get("terminal", False), row.get("answer"))
