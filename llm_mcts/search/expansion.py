"""What a node's children are: how many, which, and how likely the policy finds each.

    fixed         `expansion_width` children at once
    progressive   ceil(k N^alpha) children, one more at a time (Coulom 2007; Couëtoux et al. 2011)
    importance    max(c_min, min(floor(alpha I(s)) + 1, c_max)) children (AlphaLLM, arXiv 2404.12253, theorem 4.1)

Steps that say the same become one: equal texts always (the policy merges them), and with `merge` also texts at a small edit
distance, or those that a judge finds equivalent; another step is then sampled in their place.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, inf, isfinite
from typing import Literal

from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.tree import Node
from llm_mcts.types import Step


@dataclass(frozen=True)
class WideningConfig:
    """How many children a node may have."""

    kind: Literal["fixed", "progressive", "importance", "importance_code"] = "fixed"
    """fixed: the search's expansion_width, all at once. progressive: more with visits. importance: more where the children's
    values differ from their parent's (AlphaLLM's paper); importance_code: where they differ from their mean (its code)."""
    k: float = 1.0
    """progressive: factor k of k N^alpha, above 0."""
    alpha: float = 0.5
    """progressive: exponent in (0, 1]. importance: factor of I(s), above 0; AlphaLLM has 1 on its own scale of values, where
    values in [0, 1] want about 10: I(s) is at most 1 and 1 would never allow a third child. importance_code: 2 in the code."""
    min_children: int = 2
    """importance: c_min below the root. AlphaLLM: 2 on GSM8K, 3 on MATH."""
    max_children: int = 10
    """importance: c_max below the root. AlphaLLM: 10."""
    root_min_children: int = 10
    """importance: c_min at the root. AlphaLLM: 10 or 40 on GSM8K, 10 or 20 on MATH."""
    root_max_children: int = 60
    """importance: c_max at the root. AlphaLLM: 60."""

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "progressive", "importance", "importance_code"):
            raise ConfigError(f"widening.kind is '{self.kind}'; expected fixed, progressive, importance or importance_code")
        for name in ("k", "alpha", "min_children", "max_children", "root_min_children", "root_max_children"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"widening.{name} is {getattr(self, name)}; expected above 0")
        if self.kind == "progressive" and self.alpha > 1:
            raise ConfigError(f"widening.alpha is {self.alpha}; expected at most 1 for progressive widening")
        if self.min_children > self.max_children or self.root_min_children > self.root_max_children:
            raise ConfigError(
                f"widening between {self.min_children} and {self.max_children} children, at the root between "
                f"{self.root_min_children} and {self.root_max_children}; expected no minimum above its maximum"
            )

    def width(self, node: Node) -> int:
        """How many children `node` may have now; not for the fixed kind."""
        if self.kind == "progressive":
            return progressive_width(node.visit_count, self.k, self.alpha)
        root = node.depth == 0  # the question; in a subtree the steps before it count
        least, most = (self.root_min_children, self.root_max_children) if root else (self.min_children, self.max_children)
        if self.kind == "importance":
            return importance_width(value_importance(node), self.alpha, least, most)
        return max(least, node.width, min(int(self.alpha * mean_importance(node)), most))


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


@dataclass(frozen=True)
class MergeConfig:
    """When two steps count as one."""

    kind: Literal["exact", "edit", "judge"] = "exact"
    """exact: equal texts. edit: a small edit distance. judge: the policy's model is asked whether they are equivalent."""
    distance: int = 20
    """edit: steps nearer than this many insertions, deletions and substitutions of characters merge. AlphaLLM: 20 or 50."""
    retries: int = 0
    """How often another step is sampled in place of merged ones, at least 0. AlphaLLM: 5."""

    def __post_init__(self) -> None:
        if self.kind not in ("exact", "edit", "judge"):
            raise ConfigError(f"merge.kind is '{self.kind}'; expected exact, edit or judge")
        numbers = isinstance(self.distance, int) and isinstance(self.retries, int)
        if not numbers or self.distance < 1 or self.retries < 0:
            raise ConfigError(
                f"merge with distance={self.distance}, retries={self.retries}; expected whole numbers from 1 and 0"
            )


def edit_distance(a: str, b: str, limit: int) -> int:
    """Levenshtein's distance of two texts, or `limit` where it is at least that: rows stop once they cannot come below."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y)))
        if min(row) >= limit:
            return limit
        previous = row
    return min(previous[-1], limit)


_LEAST_PRIOR = 1e-30
"""Beside the most likely step; its logarithm must exist (Gumbel search)."""

Same = Callable[[Step, Step], Awaitable[bool]]
Propose = Callable[[int, int], Awaitable[Sequence[Step]]]


async def distinct_steps(
    propose: Propose, siblings: Sequence[Step], n: int, draws: Sequence[int], same: Same | None
) -> list[Step]:
    """Up to `n` new steps, none the same as another or as a sibling.

    Args:
        propose: (number of steps, draw) -> steps.
        draws: numbers of the draws that may be made; each after the first asks for what is still missing.
        same: whether two steps of different texts count as one; None: never.
    """
    known = list(siblings)
    for draw in draws:
        for step in await propose(n + len(siblings) - len(known), draw):
            if not await _is_known(step, known, same):
                known.append(step)
        if len(known) >= n + len(siblings):
            break
    return known[len(siblings) :]


async def _is_known(step: Step, known: Sequence[Step], same: Same | None) -> bool:
    """Whether a step repeats one of those known. Steps that state different answers never do."""
    if step in known:
        return True
    for other in known:
        if same and step.answer == other.answer and await same(step, other):
            return True
    return False


def priors(steps: Sequence[Step], temperature: float) -> list[float]:
    """Softmax over the siblings' log-probability per token, at `temperature`; sums to 1, and none is 0.

    Dividing by the number of tokens keeps long steps from vanishing beside short ones.

    Raises:
        PolicyError: a log-probability is not finite.
    """
    if strange := [step for step in steps if not isfinite(step.logprob)]:
        raise PolicyError(f"policy proposed {strange[0].text!r} with log-probability {strange[0].logprob}; expected a number")
    logits = [step.logprob / step.num_tokens / temperature for step in steps]
    top = max(logits)
    weights = [max(exp(x - top), _LEAST_PRIOR) for x in logits]
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
