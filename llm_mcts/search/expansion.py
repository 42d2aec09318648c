"""Expansion: how many children a node gets, and how likely the policy finds each.

    fixed         `expansion_width` children at once
    progressive   ceil(k N^alpha) children, one more at a time (Coulom 2007; Couëtoux et al. 2011)
    importance    max(c_min, min(floor(alpha I(s)) + 1, c_max)) children (AlphaLLM, arXiv 2404.12253, theorem 4.1)

Which steps count as one is in `merging`.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, floor, isfinite
from typing import Annotated, Literal

from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.fields import Above, AtLeast, Settings
from llm_mcts.search.contracts import proposals
from llm_mcts.search.merging import MergeConfig, distinct_steps, same_step
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Policy, Step


@dataclass(frozen=True)
class WideningConfig(Settings, section="widening"):
    """How many children a node may have."""

    kind: Literal["fixed", "progressive", "importance", "importance_code"] = "fixed"
    """fixed: the search's expansion_width, all at once. progressive: more with visits. importance: more where the children's
    values differ from their parent's (AlphaLLM's paper); importance_code: where they differ from their mean (its code)."""
    k: Annotated[float, Above(0)] = 1.0
    """progressive: factor k of k N^alpha."""
    alpha: Annotated[float, Above(0)] = 0.5
    """progressive: exponent, at most 1. importance: factor of I(s); AlphaLLM has 1 on its own scale of values, where values in
    [0, 1] want about 10: I(s) is at most 1 and 1 would never allow a third child. importance_code: 2 in the code."""
    min_children: Annotated[int, AtLeast(1)] = 2
    """importance: c_min below the root. AlphaLLM: 2 on GSM8K, 3 on MATH."""
    max_children: Annotated[int, AtLeast(1)] = 10
    """importance: c_max below the root. AlphaLLM: 10."""
    root_min_children: Annotated[int, AtLeast(1)] = 10
    """importance: c_min at the root. AlphaLLM: 10 or 40 on GSM8K, 10 or 20 on MATH."""
    root_max_children: Annotated[int, AtLeast(1)] = 60
    """importance: c_max at the root. AlphaLLM: 60."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "progressive" and self.alpha > 1:
            raise ConfigError(f"widening.alpha is {self.alpha}; expected at most 1 for progressive widening")
        if self.min_children > self.max_children or self.root_min_children > self.root_max_children:
            raise ConfigError(
                f"widening between {self.min_children} and {self.max_children} children, at the root between "
                f"{self.root_min_children} and {self.root_max_children}; expected no minimum above its maximum"
            )

    def width(self, node: Node, before: int = 0) -> int:
        """How many children `node` may have now, where it was `before`; not for the fixed kind."""
        if self.kind == "progressive":
            return progressive_width(node.visit_count, self.k, self.alpha)
        root = node.depth == 0  # the question; in a subtree the steps before it count
        low, high = (self.root_min_children, self.root_max_children) if root else (self.min_children, self.max_children)
        if self.kind == "importance":
            return importance_width(value_importance(node), self.alpha, low, high)
        return max(low, before, min(int(self.alpha * mean_importance(node)), high))


def progressive_width(visits: int, k: float, alpha: float) -> int:
    """Progressive widening: ceil(k N^alpha), at least 1."""
    return max(1, ceil(k * float(visits**alpha)))


def importance_width(importance: float, alpha: float, c_min: int, c_max: int) -> int:
    """AlphaLLM: n(s) = max(c_min, min(floor(alpha I(s)) + 1, c_max))."""
    return max(c_min, min(floor(alpha * importance) + 1, c_max))


def value_importance(node: Node) -> float:
    """AlphaLLM, equation 4: I(s) = max_i |v([s, o_i]) - v(s)| over the evaluated children; 0 without any."""
    assert node.value is not None
    return max((abs(child.value - node.value) for child in node.children if child.value is not None), default=0.0)


def mean_importance(node: Node) -> float:
    """AlphaLLM's code: max_i |Q_i - mean Q| over the visited children; 0 without any."""
    values = [child.q_value for child in node.children if child.visit_count]
    if not values:
        return 0.0
    mean = sum(values) / len(values)
    return max(abs(value - mean) for value in values)


_LOWEST_PRIOR = 1e-30
"""Relative to the most likely step; its logarithm must exist (Gumbel search)."""


def priors(steps: Sequence[Step], temperature: float) -> list[float]:
    """Softmax over the siblings' log-probability per token, at `temperature`; sums to 1, and none is 0.

    Dividing by the number of tokens keeps long steps from vanishing next to short ones.

    Raises:
        PolicyError: a log-probability is not finite.
    """
    if strange := [step for step in steps if not isfinite(step.logprob)]:
        raise PolicyError(f"policy proposed {strange[0].text!r} with log-probability {strange[0].logprob}; expected a number")
    logits = [step.logprob / step.num_tokens / temperature for step in steps]
    top = max(logits)
    weights = [max(exp(x - top), _LOWEST_PRIOR) for x in logits]
    total = sum(weights)
    return [w / total for w in weights]


def set_priors(node: Node, values: Sequence[float]) -> None:
    """Give the children their priors, in order."""
    for child, value in zip(node.children, values, strict=True):
        child.prior = value


def with_dirichlet_noise(values: Sequence[float], share: float, alpha: float, seed: int) -> list[float]:
    """AlphaZero's root priors: (1 - share) P + share Dir(alpha). A Dirichlet sample is normalised gamma samples."""
    draw = random.Random(seed)
    gammas = [draw.gammavariate(alpha, 1.0) for _ in values]
    total = sum(gammas)
    if total == 0.0:  # every gamma sample underflowed, as a very small alpha makes them: no noise to add
        return list(values)
    return [(1 - share) * p + share * g / total for p, g in zip(values, gammas, strict=True)]


@dataclass(kw_only=True)
class Expansion:
    """A leaf gets all its children at once, when it is visited again: the policy's next steps, its probabilities their priors.

    What is expanded in a `with` block is undone if the block fails or is cancelled.
    """

    tree: Tree
    policy: Policy
    seed: int
    width: Callable[[Node, int], int]
    """(node, its width before, 0 at first) -> how many children it may have."""
    max_depth: int
    """Nodes this deep get no children."""
    expand_visits: int = 1
    """Visits after which a leaf may have children."""
    prior_temperature: float = 1.0
    merge: MergeConfig = field(default_factory=MergeConfig)
    root_noise: float = 0.0
    """Share of Dirichlet noise in the root's priors."""
    root_noise_alpha: float = 0.3

    due: Callable[[Node], bool] | None = None
    """Whether a node that has children is due for another, so that a simulation stops there; None: none ever is."""

    def __post_init__(self) -> None:
        self._same = same_step(self.merge, self.policy)
        self._before: list[tuple[Node, list[float]]] = []
        """The nodes expanded in this block, with the priors of the children that they had."""
        if self.root_noise and self.tree.root.children:  # a subtree's root has no noise of its own yet
            self._set_priors(self.tree.root)

    def reserve(self, leaf: Node) -> bool:
        """Whether the simulation that stopped at `leaf` is to wait there for `expand`."""
        return not leaf.children and self.expandable(leaf)

    async def expand(self, leaf: Node) -> list[Node]:
        """Give `leaf` children; the new ones that waiting simulations go to, none where selection chooses.

        Raises:
            PolicyError: the policy proposed no step where there is none.
        """
        await self._add_children(leaf, self.width(leaf, 0), 0)
        return []

    def expandable(self, node: Node) -> bool:
        """Whether `node` may have children."""
        return node.visit_count >= self.expand_visits and not node.terminal and node.depth < self.max_depth

    async def _add_children(self, node: Node, n: int, requested: int) -> list[Node]:
        """Up to `n` more children; `requested`: how many it was to be given before, by which the draws are numbered."""
        have, state, draws = [child.step for child in node.children], self.tree.state(node), self.merge.retries + 1

        async def propose(n: int, draw: int) -> Sequence[Step]:
            seed = derive_seed(self.seed, self.tree.question, self.tree.place(node), "expand", draw)
            return await proposals(self.policy, state, n, seed)

        numbers = range(requested * draws, (requested + 1) * draws)
        steps = await distinct_steps(propose, state, have, n, numbers, self._same)
        if not steps and not have:
            raise PolicyError(f"policy proposed no step after '{node.key()}' of question {self.tree.question!r}")
        self._before.append((node, [child.prior for child in node.children]))
        new = [self.tree.add_child(node, step) for step in steps]
        self._set_priors(node)
        return new

    def _set_priors(self, node: Node) -> None:
        values = priors([child.step for child in node.children], self.prior_temperature)
        if self.root_noise and node is self.tree.root:
            seed = derive_seed(self.seed, self.tree.question, self.tree.place(node), "noise")
            values = with_dirichlet_noise(values, self.root_noise, self.root_noise_alpha, seed)
        set_priors(node, values)

    def __enter__(self) -> None:
        self._before.clear()

    def __exit__(self, error_type: object, error: object, traceback: object) -> None:
        if error_type is not None:
            for node, old in self._before:
                del node.children[len(old) :]
                set_priors(node, old)


@dataclass(kw_only=True)
class Widening(Expansion):
    """A node gets one more child for each simulation that comes while it has fewer than it may have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.due = self._due
        self._widths, self._requested = self.tree.annotations["width"], self.tree.annotations["asked"]
        """Children that a node may have at the latest visit, and was to be given so far, repetitions of others included."""
        self._reserved: Counter[Node] = Counter()
        """How many more the simulations under way wait for."""

    def _due(self, node: Node) -> bool:
        if not self.expandable(node):
            return False
        self._widths[node] = width = self.width(node, self._widths.get(node, 0))
        return self._requested.get(node, 0) + self._reserved[node] < width

    def reserve(self, leaf: Node) -> bool:
        """Ask for one more child of `leaf` if it may have one."""
        if due := self._due(leaf):
            self._reserved[leaf] += 1
        return due

    async def expand(self, leaf: Node) -> list[Node]:
        """Give `leaf` the children that were asked for: fewer, if the policy repeats itself."""
        return await self._add_children(leaf, self._reserved[leaf], self._requested.get(leaf, 0))

    def __exit__(self, error_type: object, error: object, traceback: object) -> None:
        super().__exit__(error_type, error, traceback)
        if error_type is None:
            for node, n in self._reserved.items():
                self._requested[node] = self._requested.get(node, 0) + n
        self._reserved.clear()
