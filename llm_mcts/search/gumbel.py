"""Gumbel search: policy improvement by planning with few simulations (Danihelka et al. 2022; LLM steps: ReSCALE).

Root: the m steps of largest g + logits (g Gumbel noise) share the simulations by Sequential Halving: each phase gives every
step still considered floor(n / (log2(m) considered)) visits and keeps the better half by g + logits + sigma(q).
Inside: argmax pi'(a) - N(a) / (1 + sum N), pi' = softmax(logits + sigma(completed q)). sigma(q) = (c_visit + max N) c_scale q.

Steps of one round lie in different subtrees, so all of them are simulated at once and nothing is lost by it. Logits are the
log-priors of the sampled siblings. Values are in [0, 1] as they are; mctx also stretches them to the range of the siblings.
The plan depends on num_simulations and begins at the question: a stopped search goes on under the same settings only, and a
tree that did not grow by its plan is refused.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, inf, log, log2
from typing import Literal, get_args

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import Limits, SearchConfig, check_counts, limited
from llm_mcts.search.mcts import MCTSConfig, TreeSearch
from llm_mcts.search.voting import Choice, check_choice
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy


@dataclass(frozen=True)
class GumbelConfig(SearchConfig):
    """Gumbel top-m with Sequential Halving."""

    num_simulations: int = 32
    """Simulations after the root's own evaluation, at least 1."""
    num_considered: int = 8
    """m: steps at the root that enter Sequential Halving, at least 1. mctx: 16."""
    root_width: int = 8
    """Next steps sampled at the root, at least num_considered."""
    expansion_width: int = 4
    """Next steps sampled elsewhere, at least 1."""
    c_visit: float = 50.0
    """sigma's visit offset, at least 0. Paper: 50."""
    c_scale: float = 0.1
    """sigma's factor, at least 0. mctx: 0.1; paper: 1."""
    prior_temperature: float = 1.0
    """Temperature of the softmax over the siblings' log-probabilities per token, above 0."""
    max_depth: int = 16
    """Nodes this deep are not expanded."""
    rollouts: int = 1
    """Completions sampled from each evaluated leaf, at least 0."""
    rollout_weight: float = 0.5
    """lambda in V = (1 - lambda) v + lambda z, in [0, 1]. Without a critic it is 1."""
    answer: Literal["path", "best", "majority", "vote"] = "path"
    """path: the step that Sequential Halving chose, then the most visited ones; the others look at all solutions seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("gumbel", self.answer, ("path", *get_args(Choice)))
        check_counts("gumbel", self, ("num_considered", "root_width"))
        if self.num_considered > self.root_width:
            raise ConfigError(
                f"gumbel.num_considered is {self.num_considered} of root_width {self.root_width} steps; expected at most that"
            )
        for name in ("c_visit", "c_scale"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"gumbel.{name} is {getattr(self, name)}; expected a finite number, at least 0")
        self.shared()

    def shared(self) -> MCTSConfig:
        """What a simulation has in common with mcts."""
        names = ("num_simulations", "expansion_width", "prior_temperature", "max_depth", "rollouts", "rollout_weight")
        choice = "visits" if self.answer == "path" else self.answer
        return MCTSConfig(**{name: getattr(self, name) for name in names}, virtual_loss=0.0, answer=choice)


async def gumbel(
    question: str, policy: Policy, critic: Critic | None, config: GumbelConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Search `question`; `early_stop` has no effect: the plan is what chooses.

    Raises:
        ConfigError: there is neither a critic nor a roll-out to value a leaf by.
        PolicyError: the policy proposed no step where one was due.
        CriticError: the critic broke its contract.
        DataError: `tree` was not grown by these settings.
    """
    search = _GumbelSearch(Tree.of(question, tree), policy, critic, config, seed)
    size = search.tree.size
    with limited(config, search.tree.usage) as limits:
        await search.run(limits)
        result = await search.result()
    limits.check_counted(search.tree.size > size)
    return result


class _GumbelSearch(TreeSearch):
    """A tree search whose root follows a plan."""

    def __init__(self, tree: Tree, policy: Policy, critic: Critic | None, config: GumbelConfig, seed: int) -> None:
        super().__init__(tree, policy, critic, config.shared(), seed)
        self.gumbel = config
        self.select = self._select
        self.noise: dict[Node, float] = {}

    async def run(self, limits: Limits) -> None:
        """Evaluate and expand the root, then simulate round by round."""
        root = self.tree.root
        await self.evaluate_root()
        if not root.children and self._expandable(root) and not limits.reached():
            await self._grow(root)
        self._draw_noise(root)
        considered = min(self.gumbel.num_considered, len(root.children))
        rounds = list(sequential_halving(considered, self.gumbel.num_simulations))
        for steps, visits in rounds[self._rounds_done(rounds) :]:
            if limits.reached():
                return
            ready = [step for step in root.children if step.visit_count == visits]
            await self.simulate(sorted(ready, key=self.score, reverse=True)[:steps])

    def _rounds_done(self, rounds: list[tuple[int, int]]) -> int:
        """How many rounds of the plan the tree has behind it."""
        planned = [0] * len(self.tree.root.children)
        found = sorted((step.visit_count for step in self.tree.root.children), reverse=True)
        for number, (steps, _) in enumerate(rounds):
            if planned == found:
                return number
            planned[:steps] = [n + 1 for n in planned[:steps]]  # the most visited steps are the ones still considered
        if planned != found:
            raise DataError(
                f"the tree's first steps have {found} visits, which is no stage of this plan; expected a tree that gumbel grew "
                "from the question with the same settings"
            )
        return len(rounds)

    def _width(self, node: Node) -> int:
        return self.gumbel.root_width if node is self.tree.root else self.gumbel.expansion_width

    def _draw_noise(self, root: Node) -> None:
        """g: one Gumbel draw a step of the root, -log of an exponential one."""
        draw = random.Random(derive_seed(self.seed, self.tree.question, self.tree.place(root), "gumbel"))
        self.noise = {step: -log(draw.expovariate(1.0)) for step in root.children}

    def score(self, step: Node) -> float:
        """g + logits + sigma(q) of a step of the root."""
        values = self._completed(self.tree.root)
        return self.noise[step] + log(step.prior) + values[step.index]

    def _completed(self, node: Node) -> list[float]:
        """sigma(completed q) of the children."""
        return completed_sigma(node, self.gumbel.c_visit, self.gumbel.c_scale)

    def _select(self, node: Node, c: float, virtual_loss: float, first_play: float | None) -> Node:
        """Inside the tree: argmax pi'(a) - N(a) / (1 + sum N)."""
        target = improved_policy(node, self.gumbel.c_visit, self.gumbel.c_scale)
        total = 1 + sum(child.visit_count for child in node.children)
        return max(node.children, key=lambda child: target[child.index] - child.visit_count / total)

    def _preference(self, child: Node) -> tuple[float, ...]:
        """At the root the best-scored of the most visited steps."""
        return (child.visit_count, self.score(child)) if child.parent is self.tree.root else (child.visit_count,)


def sequential_halving(num_considered: int, num_simulations: int) -> Iterator[tuple[int, int]]:
    """The rounds of Sequential Halving: (steps to visit once each, visits that each of them has before).

    The last round is cut to what is left. Where log2(m) is no integer it is rounded up, as in mctx.
    """
    considered, visits, left = num_considered, 0, num_simulations
    phases = max(1, ceil(log2(max(1, num_considered))))
    while left > 0 and considered > 0:
        for _ in range(max(1, num_simulations // (phases * considered))):
            yield min(considered, left), visits
            visits, left = visits + 1, left - considered
            if left <= 0:
                return
        considered = max(min(2, considered), considered // 2)


def completed_sigma(node: Node, c_visit: float, c_scale: float) -> list[float]:
    """sigma(q) = (c_visit + max N) c_scale q for each child; an unvisited one's q is v_mix."""
    most = max(child.visit_count for child in node.children)
    unvisited = mixed_value(node)
    values = [child.q_value if child.visit_count else unvisited for child in node.children]
    return [(c_visit + most) * c_scale * q for q in values]


def mixed_value(node: Node) -> float:
    """v_mix = (v + sum N (sum_visited pi q / sum_visited pi)) / (1 + sum N), the value of what was not tried."""
    assert node.value is not None
    visited = [child for child in node.children if child.visit_count]
    if not visited:
        return node.value
    total = sum(child.visit_count for child in visited)
    mean = sum(child.prior * child.q_value for child in visited) / sum(child.prior for child in visited)
    return (node.value + total * mean) / (1 + total)


def improved_policy(node: Node, c_visit: float = 50.0, c_scale: float = 0.1) -> list[float]:
    """pi' = softmax(logits + sigma(completed q)) over the children: the target that a policy can be trained on."""
    logits = [log(child.prior) + x for child, x in zip(node.children, completed_sigma(node, c_visit, c_scale), strict=True)]
    top = max(logits)
    weights = [exp(x - top) for x in logits]
    total = sum(weights)
    return [w / total for w in weights]
