"""Monte-Carlo tree search over reasoning steps.

Four steps, repeated: selection goes down to a leaf; expansion asks the policy for next steps; evaluation gives the leaf a
value from the critic, roll-outs, or a mix of both; backup adds the value to every node on the way. As in AlphaGo, a leaf
is expanded when it is visited again, so a simulation evaluates one new node.

The parts come from `selection`, `expansion`, `evaluation` and `voting`; `alphago`, `alphazero`, `alphallm` and `rest_mcts` are
this search with other parts (`variants.py`).

`num_parallel` simulations are under way at once: they select one after the other, each seeing the others' virtual loss,
then expand and evaluate together, then back up in order. The tree therefore depends on the configuration and the seed,
not on how fast the replies came. A wave is never cut, and taken back whole if it is cancelled: a tree that was stopped and
is searched on becomes the tree that an unstopped search would have grown.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, get_args

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError, PolicyError, suggest
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import Limits, SearchConfig, check_counts, limited
from llm_mcts.search.contracts import completions, critic_scores, proposals
from llm_mcts.search.evaluation import Agreement, evaluate_leaves, evaluate_quality
from llm_mcts.search.expansion import (
    MergeConfig,
    Same,
    WideningConfig,
    distinct_steps,
    edit_distance,
    priors,
    set_priors,
    with_dirichlet_noise,
)
from llm_mcts.search.selection import RULES, siblings_span
from llm_mcts.search.voting import Choice, check_choice, choose, settled
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, Step, Trace


@dataclass(frozen=True)
class MCTSConfig(SearchConfig):
    """Monte-Carlo tree search."""

    num_simulations: int = 32
    """Simulations after the root's own evaluation, at least 1; up to num_parallel - 1 more, for a wave is never cut."""
    selection: Literal["puct", "uct", "alphago", "alphazero"] = "puct"
    """puct weighs exploration by the policy's prior; alphago and alphazero are its forms in those papers; uct has no prior
    (AlphaLLM, ReST-MCTS*)."""
    c_puct: float = 1.25
    """Exploration constant of any rule, at least 0; values are in [0, 1]. AlphaGo: 5 and AlphaZero: 1.25, in [-1, 1]."""
    first_play: float | None = None
    """What an unvisited child is taken to be worth, in [0, 1]; None: its parent's mean. AlphaGo and AlphaZero: 0 of [-1, 1],
    which is 0.5 here. UCT visits it anyway."""
    normalise: Literal["none", "tree", "siblings"] = "none"
    """Divide values by their span before exploration is added: over the tree, or over parent and siblings (MuZero)."""
    expansion_width: int = 4
    """Next steps sampled for a node at once, at least 1; equal ones are merged."""
    widening: WideningConfig = field(default_factory=WideningConfig)
    """How many children a node may have, where that is not fixed."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    """When two steps count as one."""
    expand_visits: int = 1
    """Visits after which a leaf is expanded, at least 1. AlphaGo: 40; each visit of an LM step is worth its expansion."""
    prior_temperature: float = 1.0
    """Temperature of the softmax over the siblings' log-probabilities per token, at least 0.01. AlphaGo: 0.67."""
    root_noise: float = 0.0
    """Share of Dirichlet noise in the root's priors, in [0, 1]. AlphaZero: 0.25. Only for fixed expansion."""
    root_noise_alpha: float = 0.3
    """The noise's concentration, at least 0.01. AlphaZero: 0.3 for chess's 35 moves, more for fewer."""
    max_depth: int = 16
    """Nodes this deep are not expanded; roll-outs still run from them."""
    leaf_value: Literal["mix", "quality"] = "mix"
    """mix: V = (1 - lambda) v + lambda z. quality: ReST-MCTS*'s sum of step qualities, from a critic of steps."""
    rollouts: int = 1
    """Completions sampled from each evaluated leaf, at least 0. AlphaLLM: 4."""
    rollout_weight: float = 0.5
    """lambda in V = (1 - lambda) v + lambda z, in [0, 1]. AlphaGo: 0.5. Without a critic it is 1."""
    revisit: bool = True
    """Whether a simulation may end at a solution evaluated before, as in the papers, where that weighs the visits. If not, a
    step is left for good once everything below it is evaluated: each simulation sees something new. Not with answer visits."""
    num_parallel: int = 4
    """Simulations under way at once, at least 1."""
    virtual_loss: float = 1.0
    """Lost visits that a simulation under way counts for, at least 0. AlphaGo: 3."""
    answer: Literal["visits", "q", "best", "majority", "vote"] = "vote"
    """visits: down the most visited path; q: down the path of highest mean value; best: the best-scored solution seen;
    majority: the most frequent answer; vote: the answer with the largest sum of scores. The first two complete their path
    greedily where it ends before the solution does, and so do the others down the most visited path if none was seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in RULES:
            raise ConfigError(f"mcts.selection is '{self.selection}'{suggest(self.selection, RULES)}")
        for name, choices in (("normalise", ("none", "tree", "siblings")), ("leaf_value", ("mix", "quality"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"mcts.{name} is '{getattr(self, name)}'; expected {' or '.join(choices)}")
        check_choice("mcts", self.answer, ("visits", "q", *get_args(Choice)))
        self._check_ranges()
        if not self.revisit and self.answer == "visits":
            raise ConfigError("mcts.revisit is false with answer visits, which counts them; set answer to vote, best or q")
        if not self.revisit and (self.widening.kind != "fixed" or self.expand_visits != 1):
            raise ConfigError(
                f"mcts.revisit is false with {self.widening.kind} widening and expand_visits {self.expand_visits}; "
                "expected fixed and 1, or revisit true"
            )
        if self.rollouts == 0 and (self.rollout_weight > 0 or self.leaf_value == "quality"):
            needs = "rollout_weight is above 0" if self.leaf_value == "mix" else "leaf_value quality counts steps on one"
            raise ConfigError(
                f"mcts.rollouts is 0 while {needs}; set rollouts to 1, or rollout_weight to 0 and leaf_value to mix"
            )
        if self.root_noise > 0 and self.widening.kind != "fixed":
            raise ConfigError(f"mcts.root_noise is {self.root_noise} with {self.widening.kind} widening; expected 0, or fixed")

    def _check_ranges(self) -> None:
        check_counts("mcts", self, ("num_simulations", "expansion_width", "expand_visits", "max_depth", "num_parallel"))
        if not isinstance(self.rollouts, int):
            raise ConfigError(f"mcts.rollouts is {self.rollouts}; expected a whole number")
        for name in ("c_puct", "rollouts", "virtual_loss"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"mcts.{name} is {getattr(self, name)}; expected a finite number, at least 0")
        for name in ("first_play", "rollout_weight", "root_noise"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise ConfigError(f"mcts.{name} is {getattr(self, name)}; expected within [0, 1]")
        for name in ("prior_temperature", "root_noise_alpha"):
            if not 0.01 <= getattr(self, name) < inf:
                raise ConfigError(f"mcts.{name} is {getattr(self, name)}; expected at least 0.01")


async def mcts(
    question: str, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Search `question`; the same arguments give the same tree. A `tree` from before is searched on.

    Raises:
        ConfigError: there is neither a critic nor a roll-out to value a leaf by.
        PolicyError: the policy proposed no step where one was due.
        CriticError: the critic broke its contract.
    """
    search = TreeSearch(Tree.of(question, tree), policy, critic, config, seed)
    size = search.tree.size
    with limited(config, search.tree.usage) as limits:
        await search.evaluate_root()
        while not search.finished(limits):
            await search.simulate([search.tree.root] * config.num_parallel)
        result = await search.result()
    limits.check_counted(search.tree.size > size)
    return result


class TreeSearch:
    """One search under way: a tree, the models that grow and judge it, and what a simulation does."""

    def __init__(self, tree: Tree, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int) -> None:
        if critic is None and (config.rollouts == 0 or config.leaf_value == "quality" or config.answer == "best"):
            raise ConfigError(
                f"no critic, while rollouts={config.rollouts}, leaf_value={config.leaf_value}, answer={config.answer}; "
                "give it one, or set rollouts to at least 1, leaf_value to mix and answer to vote"
            )
        if config.merge.kind == "judge" and not hasattr(policy, "equivalent"):
            raise ConfigError("mcts.merge.kind is 'judge' and the policy cannot judge; expected it to have `equivalent`")
        self.tree, self.policy, self.config, self.seed = tree, policy, config, seed
        self.judged = critic is not None
        tree.scored_by = "critic" if self.judged else "agreement"
        self.critic: Critic = critic or Agreement(tree.traces())
        self.rollout_weight = config.rollout_weight if self.judged else 1.0
        self.select = RULES[config.selection]
        self.widens = config.widening.kind != "fixed"
        self.normalises = config.normalise != "none"
        self.done = max(0, tree.root.visit_count - 1)
        """Simulations done so far, also by earlier searches of the same tree; the root's own evaluation is none."""
        self._growing: Counter[Node] = Counter()
        """How many children the wave under way will add to each node that widens."""
        self.closes = not config.revisit
        for node in tree.nodes():
            node.open = node.children
        if self.closes:
            for node in reversed(list(tree.nodes())):
                self._close(node)

    def finished(self, limits: Limits) -> bool:
        """Whether a budget is used up, or nothing can change the answer any more."""
        left = self.config.num_simulations - self.done
        if left <= 0 or limits.reached() or (self.closes and self._explored(self.tree.root)):
            return True
        return self.config.early_stop and self._settled(left + self.config.num_parallel - 1)

    async def evaluate_root(self) -> None:
        """Give a new tree's root its value: one visit that counts as no simulation."""
        root = self.tree.root
        if root.value is None:
            await self._evaluate([root])
            self._backup(root)
            self.done = root.visit_count - 1
        if self.config.root_noise and root.children:  # a subtree's root has no noise of its own yet
            self._set_priors(root)

    async def simulate(self, starts: Sequence[Node]) -> None:
        """Run a wave of simulations together, one from each start: selection, expansion, evaluation, backup.

        Of several that reach the same new leaf one counts; the others are taken back, as if they had not begun.
        """
        self._growing.clear()
        leaves = [self._enter(start) for start in starts]
        growing = [leaf for leaf in _distinct(leaves) if self._grows(leaf)]
        before = [(node, [child.prior for child in node.children], node.asked) for node in growing]
        try:
            if growing:
                await gather_all([self._grow(node) for node in growing])
                leaves = self._descend_further(leaves, {node: node.children[len(old) :] for node, old, _ in before})
            new = [leaf for leaf in _distinct(leaves) if leaf.value is None]
            if new:
                await self._evaluate(new)
        except BaseException:
            for node, old, asked in before:
                del node.children[len(old) :]
                set_priors(node, old)
                node.asked = asked
            raise
        finally:
            for leaf in leaves:
                _leave(leaf)
        counted = [leaf for i, leaf in enumerate(leaves) if leaf not in new or leaf not in leaves[:i]]
        for leaf in counted:
            self._backup(leaf)
        self.done += len(counted)

    # Selection

    def _enter(self, start: Node) -> Node:
        """Begin a simulation at `start`, which may lie below the root."""
        node = start.parent
        while node is not None:
            node.in_flight += 1
            node = node.parent
        return self._descend(start)

    def _descend(self, node: Node, widen: bool = True) -> Node:
        """Go down from `node` to a leaf, or to a node that may have one more child; leave a virtual loss on the way."""
        c, virtual_loss, first_play = self.config.c_puct, self.config.virtual_loss, self.config.first_play
        widen = widen and self.widens
        while node.children and not (widen and self._widens_at(node)):
            if self.normalises:
                c = self.config.c_puct * self._span(node)
            child = self.select(node, c, virtual_loss, first_play)
            node.in_flight += 1
            node = child
        node.in_flight += 1
        if widen and self._widens_at(node):
            self._growing[node] += 1
        return node

    def _descend_further(self, leaves: list[Node], grown: dict[Node, list[Node]]) -> list[Node]:
        """Simulations that waited for children go on: to the one they asked for, or by selection.

        One whose new step turned out to be known already goes where selection takes it.
        """
        further = []
        for leaf in leaves:
            if leaf not in grown:
                further.append(leaf)
            elif self.widens and grown[leaf]:
                child = grown[leaf].pop(0)
                child.in_flight += 1
                further.append(child)
            else:
                leaf.in_flight -= 1
                further.append(self._descend(leaf, widen=False))
        return further

    def _span(self, node: Node) -> float:
        """What values are divided by before exploration is added."""
        if self.config.normalise == "siblings":
            return siblings_span(node)
        low, high = self.tree.value_range or (0.0, 0.0)
        return high - low or 1.0

    # Expansion

    def _expandable(self, node: Node) -> bool:
        return node.visit_count >= self.config.expand_visits and not node.terminal and node.depth < self.config.max_depth

    def _grows(self, leaf: Node) -> bool:
        """Whether a simulation that stopped here waits for children."""
        return self._growing[leaf] > 0 if self.widens else not leaf.children and self._expandable(leaf)

    def _widens_at(self, node: Node) -> bool:
        """Whether the node may have a child more than it was given and is about to be."""
        if not self._expandable(node):
            return False
        node.width = self.config.widening.width(node)
        return node.asked + self._growing[node] < node.width

    async def _grow(self, node: Node) -> None:
        """The policy's next steps become children, its probabilities their priors."""
        have = [child.step for child in node.children]
        wanted = self._growing[node] if self.widens else self._width(node)
        chances = self.config.merge.retries + 1
        draws = range(node.asked * chances, node.asked * chances + chances)
        steps = await distinct_steps(lambda n, draw: self._propose(node, n, draw), have, wanted, draws, self._same(node))
        if not steps and not have:
            raise PolicyError(f"policy proposed no step after '{node.key()}' of question {self.tree.question!r}")
        if self.widens:
            node.asked += wanted
        for step in steps:
            self.tree.add_child(node, step)
        self._set_priors(node)

    def _width(self, node: Node) -> int:
        return self.config.expansion_width

    async def _propose(self, node: Node, n: int, draw: int) -> Sequence[Step]:
        seed = derive_seed(self.seed, self.tree.question, self.tree.place(node), "expand", draw)
        return await proposals(self.policy, self.tree.state(node), n, seed)

    def _set_priors(self, node: Node) -> None:
        """The children's priors, with AlphaZero's noise at the root."""
        values = priors([child.step for child in node.children], self.config.prior_temperature)
        if self.config.root_noise and node is self.tree.root:
            seed = derive_seed(self.seed, self.tree.question, self.tree.place(node), "noise")
            values = with_dirichlet_noise(values, self.config.root_noise, self.config.root_noise_alpha, seed)
        set_priors(node, values)

    def _same(self, node: Node) -> Same | None:
        """When steps of different texts count as one."""
        merge, state = self.config.merge, self.tree.state(node)

        async def near(a: Step, b: Step) -> bool:
            return edit_distance(a.text, b.text, merge.distance) < merge.distance

        async def equivalent(a: Step, b: Step) -> bool:
            return bool(await self.policy.equivalent(state, a, b))  # type: ignore[attr-defined]

        return {"exact": None, "edit": near, "judge": equivalent}[merge.kind]

    # Evaluation and backup

    async def _evaluate(self, leaves: Sequence[Node]) -> None:
        rollouts = self.config.rollouts
        if self.config.leaf_value == "quality":
            await evaluate_quality(self.tree, leaves, self.policy, self.critic, rollouts, self.seed)
        else:
            await evaluate_leaves(self.tree, leaves, self.policy, self.critic, rollouts, self.rollout_weight, self.seed)

    def _explored(self, node: Node) -> bool:
        """Whether there is nothing new below `node`."""
        if node.children:
            return not node.open
        return node.value is not None and (node.terminal or node.depth >= self.config.max_depth)

    def _close(self, node: Node | None) -> None:
        """Leave `node` for good if it is explored, and its parents if that was the last of their children."""
        while node is not None and node.parent is not None and self._explored(node):
            node.parent.open = [child for child in node.parent.open if child is not node]
            node = node.parent

    def _backup(self, leaf: Node) -> None:
        backup(leaf)
        if self.closes:
            self._close(leaf)
        if self.config.normalise == "tree":
            means = [node.q_value for node in leaf.path()]
            low, high = self.tree.value_range or (1.0, 0.0)
            self.tree.value_range = min(low, *means), max(high, *means)

    # The answer

    async def result(self) -> SearchResult:
        """The answer by the configured choice, with every solution seen."""
        traces = self.tree.traces()
        if self.config.answer in ("visits", "q") or not traces:
            result = await self._play(traces)
        else:
            result = choose(self.tree.question, traces, self.config.answer)  # type: ignore[arg-type]
        result.tree = self.tree
        return result

    async def _play(self, traces: list[Trace]) -> SearchResult:
        """Go down by visits or by mean value; where the tree ends before the solution, the policy completes it greedily."""
        node = self.tree.root
        while visited := [child for child in node.children if child.visit_count]:
            node = max(visited, key=self._preference)
        state = self.tree.state(node)
        if not state.terminal:
            (state,) = await completions(self.policy, state, 1, self.seed, temperature=0.0)
            scores = await critic_scores(self.critic, [state]) if self.judged else [None]
            traces.append(Trace(state, scores[0]))
        return SearchResult(self.tree.question, state.answer, state, self._confidence(state.answer), traces)

    def _preference(self, child: Node) -> tuple[float, ...]:
        return (child.q_value,) if self.config.answer == "q" else (child.visit_count,)

    def _confidence(self, answer: str | None) -> float:
        """The answer's share of the visits to finished solutions; 0 where there is none."""
        ends = [node for node in self.tree.nodes() if node.terminal]
        total = sum(node.visit_count for node in ends)
        same = sum(node.visit_count for node in ends if node.step.answer == answer)
        return same / total if total and answer is not None else 0.0

    def _settled(self, left: int) -> bool:
        """Whether `left` more simulations cannot change the answer."""
        if self.config.answer == "q" or self.config.answer == "best":
            return False
        if self.config.answer == "visits":
            return not self.widens and _leads_throughout(self.tree.root, left)
        most = left * max(1, self.config.rollouts)
        return settled(self.tree.traces(), self.config.answer, most)


def backup(leaf: Node) -> None:
    """Add the leaf's value to every node from it to the root, as one visit."""
    value = leaf.value
    assert value is not None
    node: Node | None = leaf
    while node is not None:
        node.visit_count += 1
        node.value_sum += value
        node = node.parent


def _leave(node: Node | None) -> None:
    """Undo a simulation's virtual loss, from where it is to the root."""
    while node is not None:
        node.in_flight -= 1
        node = node.parent


def _leads_throughout(node: Node, left: int) -> bool:
    """Whether the most visited path ends in a solution and no sibling on it can overtake within `left` visits."""
    while node.children:
        node, *others = sorted(node.children, key=lambda child: -child.visit_count)
        if others and node.visit_count - others[0].visit_count <= left:
            return False
    return node.terminal


def _distinct(nodes: list[Node]) -> list[Node]:
    """The nodes without repetition, in order."""
    return list(dict.fromkeys(nodes))
