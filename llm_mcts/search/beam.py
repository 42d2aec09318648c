"""Beam searches guided by a critic: OVM's value-guided beam (arXiv 2311.09724) and DVTS.

    beam   K candidate steps in all, b beams: each beam samples K / b next steps, the b best-valued of all are kept
    dvts   n / m independent subtrees, each keeps the best of m candidate steps: less greedy on the whole, so more diverse

A finished solution keeps its place among the candidates. Both grow a tree, and what a tree holds already is neither sampled
nor scored again: a search that was stopped resumes by starting over on its tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError, DataError, PolicyError
from llm_mcts.fields import AtLeast
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import Limits, SearchConfig, limited
from llm_mcts.search.contracts import critic_scores, proposals
from llm_mcts.search.expansion import priors, set_priors
from llm_mcts.search.tree_search import backup
from llm_mcts.search.voting import Choice, choose, settled
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, Step, Trace


@dataclass(frozen=True)
class _StepConfig(SearchConfig):
    """What beam and dvts have in common."""

    num_candidates: Annotated[int, AtLeast(1)] = 20
    """K: steps sampled at each depth, all beams together; a multiple of beam_width. OVM: 20 or 100."""
    max_depth: Annotated[int, AtLeast(1)] = 10
    """Steps of a solution; what is unfinished then has no answer. OVM: 10."""
    answer: Choice = "best"
    """best: the finished beam (subtree) of highest value; majority or vote: over the finished ones."""

    def _check_multiple(self, name: str) -> None:
        if self.num_candidates % (width := getattr(self, name)):
            raise ConfigError(
                f"{self.section}.num_candidates is {self.num_candidates} with {name} {width}; expected a multiple of it"
            )


@dataclass(frozen=True)
class BeamConfig(_StepConfig, section="beam"):
    """Value-guided beam search."""

    beam_width: Annotated[int, AtLeast(1)] = 10
    """b: beams kept at each depth. OVM: 10 or 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_multiple("beam_width")


@dataclass(frozen=True)
class DVTSConfig(_StepConfig, section="dvts"):
    """Diverse verifier tree search."""

    num_candidates: Annotated[int, AtLeast(1)] = 16
    """n: steps sampled at each depth, all subtrees together; a multiple of subtree_width."""
    subtree_width: Annotated[int, AtLeast(1)] = 4
    """m: candidate steps of a subtree; n / m is the number of subtrees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_multiple("subtree_width")


async def beam(
    question: str, policy: Policy, critic: Critic | None, config: BeamConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Keep the `beam_width` best-valued of all candidates at each depth. With K = b = 1 each step is one sample.

    Raises:
        ConfigError: there is no critic.
        PolicyError: the policy proposed no step.
        CriticError: the critic broke its contract.
        DataError: `tree` has steps that no critic scored.
    """
    search = _StepSearch(Tree.of(question, tree), policy, critic, seed, "beam")
    with limited(config, search.tree) as limits:
        beams = [search.tree.root]
        for _ in range(search.tree.root.depth, config.max_depth):
            # The first depth has one beam only, which samples all K.
            share = config.num_candidates // (1 if beams == [search.tree.root] else config.beam_width)
            requests = [(node, share, 0) for node in beams]
            if search.stops(requests, limits):
                break
            groups = await search.candidates(requests)
            beams = best_valued([node for group in groups for node in group], config.beam_width)
        return search.result(beams, config.answer)


async def dvts(
    question: str, policy: Policy, critic: Critic | None, config: DVTSConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Grow n / m subtrees side by side, each by the best of its own m candidates.

    Raises:
        ConfigError: there is no critic.
        PolicyError: the policy proposed no step.
        CriticError: the critic broke its contract.
        DataError: `tree` has steps that no critic scored.
    """
    search = _StepSearch(Tree.of(question, tree), policy, critic, seed, "dvts")
    with limited(config, search.tree) as limits:
        paths = [search.tree.root] * (config.num_candidates // config.subtree_width)
        for _ in range(search.tree.root.depth, config.max_depth):
            # At the root each subtree draws for itself; further down their nodes differ.
            requests = [(node, config.subtree_width, i if node is search.tree.root else 0) for i, node in enumerate(paths)]
            if search.stops(requests, limits) or (config.early_stop and search.settled(paths, config.answer)):
                break
            paths = [best_valued(group, 1)[0] for group in await search.candidates(requests)]
        return search.result(paths, config.answer)


Request = tuple[Node, int, int]
"""A node, how many next steps of it, and by which draw."""


def best_valued(nodes: Sequence[Node], n: int) -> list[Node]:
    """The `n` nodes of highest value, the first of equals first."""
    return sorted(nodes, key=lambda node: -(node.value or 0.0))[:n]


class _StepSearch:
    """What the two share: steps sampled and scored into a tree, a depth at a time."""

    def __init__(self, tree: Tree, policy: Policy, critic: Critic | None, seed: int, name: str) -> None:
        if critic is None:
            raise ConfigError(f"{name} has no critic to choose steps by; give it one, or use mcts with rollouts")
        if any(node.value is None for node in tree.nodes() if node is not tree.root):
            raise DataError(f"the tree has steps without a value; expected one that {name} grew, with the same settings")
        self.tree, self.policy, self.critic, self.seed = tree, policy, critic, seed
        self.draws = tree.annotations["draw"]
        """Which of its parent's proposals, counted from 0, brought a step."""
        self.limited = False

    def stops(self, requests: Sequence[Request], limits: Limits) -> bool:
        """Whether all nodes are finished solutions, or a limit forbids the sampling that is due. What is there is free."""
        if all(node.terminal for node, _, _ in requests):
            return True
        self.limited = bool(self._missing(requests)) and limits.exhausted()
        return self.limited

    def settled(self, nodes: Sequence[Node], answer: Choice) -> bool:
        """Whether the paths that are not finished, one vote each, can change the answer."""
        unfinished = sum(not node.terminal for node in nodes)
        return answer != "best" and settled(self._traces(nodes), answer, unfinished)

    def _traces(self, nodes: Sequence[Node]) -> list[Trace]:
        return [Trace(self.tree.state(node), node.value) for node in nodes if node.terminal]

    def _missing(self, requests: Sequence[Request]) -> list[Request]:
        return [(node, n, draw) for node, n, draw in requests if not self._drawn(node, draw) and not node.terminal]

    async def candidates(self, requests: Sequence[Request]) -> list[list[Node]]:
        """For each (node, number of steps, draw) the scored children of that draw; a finished node stands for itself."""
        missing = self._missing(requests)
        proposed = await gather_all([self._propose(node, n, draw) for node, n, draw in missing])
        added = []
        for (node, _, draw), steps in zip(missing, proposed, strict=True):
            for step in steps:
                added.append(self.tree.add_child(node, step))
                self.draws[added[-1]] = draw
        try:
            scores = await critic_scores(self.critic, [self.tree.state(node) for node in added])
        except BaseException:
            for node in added:
                node.parent.children.remove(node)  # type: ignore[union-attr]
            raise
        for node, node.value in zip(added, scores, strict=True):
            backup(node)
        for parent in dict.fromkeys(node for node, _, _ in missing):
            set_priors(parent, priors([child.step for child in parent.children], temperature=1.0))
        return [[node] if node.terminal else self._drawn(node, draw) for node, _, draw in requests]

    def _drawn(self, node: Node, draw: int) -> list[Node]:
        return [child for child in node.children if self.draws.get(child, 0) == draw]

    async def _propose(self, node: Node, n: int, draw: int) -> Sequence[Step]:
        seed = derive_seed(self.seed, self.tree.question, self.tree.place(node), "expand", draw)
        steps = await proposals(self.policy, self.tree.state(node), n, seed)
        if not steps:
            raise PolicyError(f"policy proposed no step after '{node.key()}' of question {self.tree.question!r}")
        return steps

    def result(self, nodes: Sequence[Node], answer: Choice) -> SearchResult:
        """The choice among the finished ones of `nodes`; of all finished ones seen, where a limit ended the search."""
        seen = self.tree.traces()
        result = choose(self.tree.question, seen if self.limited else self._traces(nodes), answer)
        result.traces, result.tree = seen, self.tree
        return result
