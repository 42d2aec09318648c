"""Gumbel search: policy improvement by planning with few simulations (Danihelka et al. 2022; LLM steps: ReSCALE).

Root: the m steps of highest g + logits (g Gumbel noise) share the simulations by Sequential Halving: each phase gives every
step still considered floor(n / (log2(m) considered)) visits and keeps the better half by g + logits + sigma(q).
Inside: argmax pi'(a) - N(a) / (1 + sum N), pi' = softmax(logits + sigma(completed q)). sigma(q) = (c_visit + max N) c_scale q.

Steps of one round lie in different subtrees, so all of them are simulated at once and nothing is lost by it. Logits are the
log-priors of the sampled siblings. Values are in [0, 1] as they are; mctx also stretches them to the range of the siblings.
The plan depends on num_simulations and begins at the question: a stopped search resumes under the same settings only, and a
tree that did not grow by its plan is refused.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, log, log2
from typing import Annotated, Literal

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.fields import AtLeast
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import limited
from llm_mcts.search.expansion import Expansion
from llm_mcts.search.mcts import TreeConfig, evaluation
from llm_mcts.search.path import decide
from llm_mcts.search.tree_search import TreeSearch
from llm_mcts.search.waves import simulate_together
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy


@dataclass(frozen=True)
class GumbelConfig(TreeConfig, section="gumbel"):
    """Gumbel top-m with Sequential Halving."""

    num_considered: Annotated[int, AtLeast(1)] = 8
    """m: steps at the root that enter Sequential Halving. mctx: 16."""
    root_width: Annotated[int, AtLeast(1)] = 8
    """Next steps sampled at the root, at least num_considered; expansion_width of them elsewhere."""
    c_visit: Annotated[float, AtLeast(0)] = 50.0
    """sigma's visit offset. Paper: 50."""
    c_scale: Annotated[float, AtLeast(0)] = 0.1
    """sigma's factor. mctx: 0.1; paper: 1."""
    answer: Literal["path", "best", "majority", "vote"] = "path"
    """path: the step that Sequential Halving chose, then the most visited ones; the others decide among all solutions seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_considered > self.root_width:
            raise ConfigError(
                f"gumbel.num_considered is {self.num_considered} of root_width {self.root_width} steps; expected at most that"
            )


async def gumbel(
    question: str, policy: Policy, critic: Critic | None, config: GumbelConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Search `question`; `early_stop` has no effect: the plan is what chooses.

    Raises:
        ConfigError: there is neither a critic nor a rollout to value a leaf by.
        PolicyError: the policy proposed no step where one was due.
        CriticError: the critic broke its contract.
        DataError: `tree` was not grown by these settings.
    """
    config.check_critic(critic, config.answer)
    tree = Tree.of(question, tree, "agreement" if critic is None else "critic")
    root = tree.root
    expansion = Expansion(
        tree=tree,
        policy=policy,
        seed=seed,
        max_depth=config.max_depth,
        prior_temperature=config.prior_temperature,
        width=lambda node, before: config.root_width if node is root else config.expansion_width,
    )
    search = TreeSearch(tree, lambda node: select(node, config), expansion, evaluation(tree, policy, critic, config, seed))
    with limited(config, tree) as limits:
        await search.evaluate_root()
        if not limits.exhausted() and expansion.reserve(root):
            await expansion.expand(root)
        plan = RootPlan(tree, config, seed)
        for steps in plan.rounds():
            if limits.exhausted():
                break
            await simulate_together(search, steps)
        choice = None if config.answer == "path" else config.answer
        return await decide(tree, choice, plan.preference, policy, critic, seed)


def select(node: Node, config: GumbelConfig) -> Node:
    """Inside the tree: argmax pi'(a) - N(a) / (1 + sum N)."""
    target = improved_policy(node, config.c_visit, config.c_scale)
    total = 1 + sum(child.visit_count for child in node.children)
    return max(node.children, key=lambda child: target[child.index] - child.visit_count / total)


class RootPlan:
    """Which steps of the root are simulated, round by round, and which of them is the best."""

    def __init__(self, tree: Tree, config: GumbelConfig, seed: int) -> None:
        """Draws g: one Gumbel sample per step of the root, -log of an exponential one."""
        self.root, self.config = tree.root, config
        draw = random.Random(derive_seed(seed, tree.question, tree.place(tree.root), "gumbel"))
        self.noise = {step: -log(draw.expovariate(1.0)) for step in tree.root.children}

    def rounds(self) -> Iterator[list[Node]]:
        """The steps to visit in each round that is left, chosen by what the rounds before it found."""
        considered = min(self.config.num_considered, len(self.root.children))
        rounds = list(sequential_halving(considered, self.config.num_simulations))
        for num_steps, visits in rounds[self._rounds_done(rounds) :]:
            ready = [step for step in self.root.children if step.visit_count == visits]
            yield sorted(ready, key=self.score, reverse=True)[:num_steps]

    def _rounds_done(self, rounds: list[tuple[int, int]]) -> int:
        """How many rounds of the plan the tree has behind it."""
        planned = [0] * len(self.root.children)
        visits = sorted((step.visit_count for step in self.root.children), reverse=True)
        for number, (num_steps, _) in enumerate(rounds):
            if planned == visits:
                return number
            planned[:num_steps] = [n + 1 for n in planned[:num_steps]]  # the most visited steps are the ones still considered
        if planned != visits:
            raise DataError(
                f"the tree's first steps have {visits} visits, which is no stage of this plan; expected a tree that gumbel "
                "grew from the question with the same settings"
            )
        return len(rounds)

    def score(self, step: Node) -> float:
        """g + logits + sigma(q) of a step of the root."""
        values = completed_sigma(self.root, self.config.c_visit, self.config.c_scale)
        return self.noise[step] + log(step.prior) + values[step.index]

    def preference(self, child: Node) -> tuple[float, ...]:
        """The most visited step; at the root the best-scored of the most visited ones."""
        return (child.visit_count, self.score(child)) if child.parent is self.root else (child.visit_count,)


def sequential_halving(num_considered: int, num_simulations: int) -> Iterator[tuple[int, int]]:
    """The rounds of Sequential Halving: (steps to visit once each, visits that each of them has before).

    The last round is cut to what is left. Where log2(m) is not an integer it is rounded up, as in mctx.
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
