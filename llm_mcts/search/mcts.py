"""Monte-Carlo tree search over reasoning steps.

Four steps, repeated: selection (UCT or PUCT) goes down to a leaf; expansion asks the policy for next steps; evaluation
gives the leaf a value from the critic, roll-outs, or AlphaGo's mix of both; backup adds the value to every node on the
way. As in AlphaGo, a leaf is expanded when it is visited again, so a simulation evaluates one new node.

`num_parallel` simulations are under way at once: they select one after the other, each seeing the others' virtual loss,
then expand and evaluate together, then back up in order. The tree therefore depends on the configuration and the seed,
not on how fast the replies came.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError, PolicyError, suggest
from llm_mcts.search.evaluation import Agreement, completions, critic_scores, evaluate_leaves, tree_traces
from llm_mcts.search.expansion import priors
from llm_mcts.search.sampling import choose
from llm_mcts.search.selection import RULES
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, SearchResult, Trace


@dataclass(frozen=True)
class MCTSConfig:
    """Monte-Carlo tree search."""

    num_simulations: int = 32
    """Simulations, the root's own evaluation included; at least 1."""
    selection: Literal["puct", "uct"] = "puct"
    """puct weighs exploration by the policy's prior (AlphaGo), uct does not (AlphaLLM)."""
    c_puct: float = 1.25
    """Exploration constant of either rule, at least 0; values are in [0, 1]. AlphaZero starts at 1.25."""
    expansion_width: int = 4
    """Next steps sampled for a node, at least 1; equal ones are merged."""
    prior_temperature: float = 1.0
    """Temperature of the softmax over the siblings' log-probabilities per token, above 0. AlphaGo: 0.67."""
    max_depth: int = 16
    """Nodes this deep are not expanded; roll-outs still run from them."""
    rollouts: int = 1
    """Completions sampled from each evaluated leaf, at least 0. AlphaLLM: 4."""
    rollout_weight: float = 0.5
    """lambda in V = (1 - lambda) v + lambda z, in [0, 1]. AlphaGo: 0.5. Without a critic it is 1."""
    num_parallel: int = 4
    """Simulations under way at once, at least 1."""
    virtual_loss: float = 1.0
    """Lost visits that a simulation under way counts for, at least 0. AlphaGo: 3."""
    answer: Literal["vote", "value", "visits"] = "vote"
    """vote: largest sum of scores over all solutions seen; value: best-scored solution; visits: the most visited path."""

    def __post_init__(self) -> None:
        if self.selection not in RULES:
            raise ConfigError(f"mcts.selection is '{self.selection}'{suggest(self.selection, RULES)}")
        if self.answer not in ("vote", "value", "visits"):
            raise ConfigError(f"mcts.answer is '{self.answer}'; expected vote, value or visits")
        for name in ("num_simulations", "expansion_width", "max_depth", "num_parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mcts.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("c_puct", "rollouts", "virtual_loss"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"mcts.{name} is {getattr(self, name)}; expected a finite number, at least 0")
        if not 0 <= self.rollout_weight <= 1 or not 0 < self.prior_temperature < inf:
            raise ConfigError(
                f"mcts with rollout_weight={self.rollout_weight}, prior_temperature={self.prior_temperature}; "
                "expected rollout_weight in [0, 1] and prior_temperature above 0"
            )
        if self.rollout_weight > 0 and self.rollouts == 0:
            raise ConfigError("mcts.rollouts is 0 while rollout_weight is above 0; set rollout_weight to 0 or rollouts to 1")


async def mcts(question: str, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int) -> SearchResult:
    """Search `question`; the same arguments give the same tree.

    Raises:
        ConfigError: there is neither a critic nor a roll-out to value a leaf by.
        PolicyError: the policy proposed no step where one was due.
        CriticError: the critic broke its contract.
    """
    if critic is None and config.answer == "value":
        raise ConfigError("mcts.answer is 'value' and there is no critic to choose by; give it one, or set answer to vote")
    if critic is None and config.rollouts == 0:
        raise ConfigError("mcts has no critic and mcts.rollouts is 0; give it a critic or set rollouts to at least 1")
    search = _Search(Tree(question), policy, critic, config, seed)
    done = await search.simulate(1)  # the root is evaluated alone
    while done < config.num_simulations:
        done += await search.simulate(min(config.num_parallel, config.num_simulations - done))
    return await search.result()


class _Search:
    """One search under way."""

    def __init__(self, tree: Tree, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int) -> None:
        self.tree, self.policy, self.config, self.seed = tree, policy, config, seed
        self.judged = critic is not None
        self.critic: Critic = critic or Agreement()
        self.rollout_weight = config.rollout_weight if self.judged else 1.0
        self.select = RULES[config.selection]

    async def simulate(self, wave: int) -> int:
        """Run up to `wave` simulations together: selection, expansion, evaluation, backup. Returns how many were run.

        Of several that reach the same new leaf one counts; the others are taken back, as if they had not begun.
        """
        leaves = [self._enter(self.tree.root) for _ in range(wave)]
        await gather_all(self._expand(leaf) for leaf in _distinct(leaves) if self._expandable(leaf))
        for i, leaf in enumerate(leaves):
            if leaf.children:
                _in_flight(leaf, -1)
                leaves[i] = self._enter(leaf)
        new = [leaf for leaf in _distinct(leaves) if leaf.value is None]
        rollouts, weight = self.config.rollouts, self.rollout_weight
        await evaluate_leaves(self.tree, new, self.policy, self.critic, rollouts, weight, self.seed)
        counted = [leaf for i, leaf in enumerate(leaves) if leaf not in new or leaf not in leaves[:i]]
        for leaf in leaves:
            _in_flight(leaf, -1)
        for leaf in counted:
            backup(leaf)
        return len(counted)

    def _enter(self, node: Node) -> Node:
        """Selection: go down from `node` to a leaf and leave a virtual loss on the whole way from the root."""
        c, virtual_loss = self.config.c_puct, self.config.virtual_loss
        while node.children:
            node = self.select(node, c, virtual_loss)
        _in_flight(node, +1)
        return node

    def _expandable(self, node: Node) -> bool:
        return node.visit_count > 0 and not node.terminal and node.depth < self.config.max_depth

    async def _expand(self, node: Node) -> None:
        """Expansion: the policy's next steps become children, its probabilities their priors."""
        seed = derive_seed(self.seed, self.tree.question, node.key(), "expand")
        steps = await self.policy.propose(self.tree.state(node), self.config.expansion_width, seed)
        if not steps:
            raise PolicyError(f"policy proposed no step after '{node.key()}' of question {self.tree.question!r}")
        self.tree.expand(node, steps, priors(steps, self.config.prior_temperature))

    async def result(self) -> SearchResult:
        """The answer by the configured choice, with every solution seen."""
        traces = tree_traces(self.tree, scored=self.judged)
        if self.config.answer == "visits":
            result = await self._most_visited(traces)
        else:
            result = choose(self.tree.question, traces, self.config.answer)
        result.tree = self.tree
        return result

    async def _most_visited(self, traces: list[Trace]) -> SearchResult:
        """Play the most visited child down to the end; where the tree ends first, the policy completes greedily."""
        node = self.tree.root
        while node.children:
            node = max(node.children, key=lambda child: child.visit_count)
        state = self.tree.state(node)
        if not state.terminal:
            (state,) = await completions(self.policy, state, 1, self.seed, temperature=0.0)
            scores = await critic_scores(self.critic, [state]) if self.judged else [None]
            traces.append(Trace(state, scores[0]))
        same = sum(n.visit_count for n in self.tree.nodes() if n.terminal and n.step.answer == state.answer)
        ends = sum(n.visit_count for n in self.tree.nodes() if n.terminal)
        confidence = same / ends if ends and state.answer is not None else 0.0
        return SearchResult(self.tree.question, state.answer, state, confidence, traces)


def backup(leaf: Node) -> None:
    """Add the leaf's value to every node from it to the root, as one visit."""
    assert leaf.value is not None
    node: Node | None = leaf
    while node is not None:
        node.visit_count += 1
        node.value_sum += leaf.value
        node = node.parent


def _in_flight(node: Node | None, change: int) -> None:
    """Mark or unmark a simulation on the way from `node` to the root."""
    while node is not None:
        node.in_flight += change
        node = node.parent


def _distinct(nodes: list[Node]) -> list[Node]:
    """The nodes without repetition, in order."""
    return list(dict.fromkeys(nodes))
