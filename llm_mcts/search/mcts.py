"""Monte-Carlo tree search over reasoning steps: its settings, and the parts that they stand for.

The loop is `tree_search`; the parts come from `selection`, `explored`, `expansion`, `evaluation`, `waves`,
`path` and `voting`. `alphago`, `alphazero`, `alphallm` and `rest_mcts` are this search with other settings (`presets`).
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Within
from llm_mcts.result import SearchResult
from llm_mcts.search.budget import SearchConfig, limited
from llm_mcts.search.evaluation import Agreement, MixedValue, StepQuality
from llm_mcts.search.expansion import Expansion, Widening, WideningConfig
from llm_mcts.search.explored import Unexplored
from llm_mcts.search.merging import MergeConfig
from llm_mcts.search.path import by_value, by_visits, decide, leads_throughout
from llm_mcts.search.selection import RULES, TreeSpan, selector, siblings_span
from llm_mcts.search.tree_search import Evaluate, TreeSearch
from llm_mcts.search.voting import settled
from llm_mcts.search.waves import simulate_together
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, Policy


@dataclass(frozen=True)
class TreeConfig(SearchConfig):
    """What mcts and gumbel have in common."""

    needs_critic: ClassVar[bool] = False
    """Whether the search makes no sense with rollouts alone."""

    num_simulations: Annotated[int, AtLeast(1)] = 32
    """Simulations after the root's own evaluation; mcts: up to num_parallel - 1 more, because a wave is never cut."""
    expansion_width: Annotated[int, AtLeast(1)] = 4
    """Next steps sampled for a node at once; equal ones are merged."""
    prior_temperature: Annotated[float, AtLeast(0.01)] = 1.0
    """Temperature of the softmax over the siblings' log-probabilities per token. AlphaGo: 0.67."""
    max_depth: Annotated[int, AtLeast(1)] = 16
    """Nodes this deep are not expanded; rollouts still run from them."""
    rollouts: Annotated[int, AtLeast(0)] = 1
    """Completions sampled from each evaluated leaf. AlphaLLM: 4."""
    rollout_weight: Annotated[float, Within(0, 1)] = 0.5
    """lambda in V = (1 - lambda) v + lambda z. AlphaGo: 0.5. Without a critic it is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts == 0 and self.rollout_weight > 0:
            raise ConfigError(
                f"{self.section}.rollouts is 0 while rollout_weight is {self.rollout_weight}; set rollouts to 1, or "
                "rollout_weight to 0"
            )

    def check_critic(self, critic: Critic | None, answer: str, leaf_value: str = "mix") -> None:
        """Refuse a search without a critic that has nothing else to value leaves by, or to answer by.

        Raises:
            ConfigError: it says what to change.
        """
        if critic is None and (self.needs_critic or self.rollouts == 0 or leaf_value == "quality" or answer == "best"):
            raise ConfigError(
                f"{self.section} has no critic, while rollouts={self.rollouts}, leaf_value={leaf_value}, answer={answer}; give "
                "it one, or use mcts with rollouts at least 1, leaf_value mix and answer vote"
            )


@dataclass(frozen=True)
class MCTSConfig(TreeConfig, section="mcts"):
    """Monte-Carlo tree search."""

    selection: Literal["puct", "uct", "alphago", "alphazero"] = "puct"
    """puct weighs exploration by the policy's prior; alphago and alphazero are its forms in those papers; uct has no prior
    (AlphaLLM, ReST-MCTS*)."""
    c_puct: Annotated[float, AtLeast(0)] = 1.25
    """Exploration constant of any rule; values are in [0, 1]. AlphaGo: 5 and AlphaZero: 1.25, in [-1, 1]."""
    first_play: Annotated[float, Within(0, 1)] | None = None
    """First-play urgency: the value that an unvisited child is taken to have; None: its parent's mean. AlphaGo and AlphaZero: 0
    of [-1, 1], which is 0.5 here. UCT visits it anyway."""
    normalise: Literal["none", "tree", "siblings"] = "none"
    """Divide values by their span before exploration is added: over the tree, or over parent and siblings (MuZero)."""
    widening: WideningConfig = field(default_factory=WideningConfig)
    """How many children a node may have, where that is not fixed."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    """When two steps count as one."""
    expand_visits: Annotated[int, AtLeast(1)] = 1
    """Visits after which a leaf is expanded. AlphaGo: 40; each visit of an LM step repays its expansion."""
    root_noise: Annotated[float, Within(0, 1)] = 0.0
    """Share of Dirichlet noise in the root's priors. AlphaZero: 0.25. Only for fixed expansion."""
    root_noise_alpha: Annotated[float, AtLeast(0.01)] = 0.3
    """The noise's concentration. AlphaZero: 0.3 for chess's 35 moves, more for fewer."""
    leaf_value: Literal["mix", "quality"] = "mix"
    """mix: V = (1 - lambda) v + lambda z. quality: ReST-MCTS*'s sum of step qualities, from a critic of steps."""
    revisit: bool = True
    """Whether a simulation may end at a solution evaluated before, as in the papers, where that weighs the visits. If not, a
    step is left for good once everything below it is evaluated: each simulation sees something new. Not with answer visits."""
    num_parallel: Annotated[int, AtLeast(1)] = 4
    """Simulations under way at once."""
    virtual_loss: Annotated[float, AtLeast(0)] = 1.0
    """Lost visits that a simulation under way counts for. AlphaGo: 3."""
    answer: Literal["visits", "q", "best", "majority", "vote"] = "vote"
    """visits: down the most visited path; q: down the path of highest mean value; best: the best-scored solution seen;
    majority: the most frequent answer; vote: the answer with the largest sum of scores. The first two complete their path
    greedily where it ends before the solution does, and so do the others down the most visited path if none was seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.revisit and self.answer == "visits":
            raise ConfigError("mcts.revisit is false with answer visits, which counts them; set answer to vote, best or q")
        if not self.revisit and (self.widening.kind != "fixed" or self.expand_visits != 1):
            raise ConfigError(
                f"mcts.revisit is false with {self.widening.kind} widening and expand_visits {self.expand_visits}; "
                "expected fixed and 1, or revisit true"
            )
        if self.rollouts == 0 and self.leaf_value == "quality":
            raise ConfigError(
                "mcts.rollouts is 0 while leaf_value quality counts steps on one; set rollouts to 1, or leaf_value to mix"
            )
        if self.root_noise > 0 and self.widening.kind != "fixed":
            raise ConfigError(f"mcts.root_noise is {self.root_noise} with {self.widening.kind} widening; expected 0, or fixed")


async def mcts(
    question: str, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int, tree: Tree | None = None
) -> SearchResult:
    """Search `question`; the same arguments give the same tree. A `tree` from before is searched further.

    Raises:
        ConfigError: there is neither a critic nor a rollout to value a leaf by.
        PolicyError: the policy proposed no step where one was due.
        CriticError: the critic broke its contract.
        DataError: `tree` is another question's, or was scored by other means.
    """
    config.check_critic(critic, config.answer, config.leaf_value)
    tree = Tree.of(question, tree, "agreement" if critic is None else "critic")
    unexplored = None if config.revisit else Unexplored(tree, config.max_depth)
    search = build(tree, policy, critic, config, seed, unexplored)
    with limited(config, tree) as limits:
        await search.evaluate_root()
        while not (limits.exhausted() or _finished(tree, config, unexplored)):
            if config.num_parallel == 1:
                await search.simulate()
            else:
                await simulate_together(search, [tree.root] * config.num_parallel)
        preference = by_value if config.answer == "q" else by_visits
        choice = None if config.answer == "visits" or config.answer == "q" else config.answer
        return await decide(tree, choice, preference, policy, critic, seed)


def build(
    tree: Tree, policy: Policy, critic: Critic | None, config: MCTSConfig, seed: int, unexplored: Unexplored | None
) -> TreeSearch:
    """The search that a configuration describes, on a tree. `unexplored`: what to choose among; None: all children."""
    span = {"none": None, "tree": TreeSpan(tree), "siblings": siblings_span}[config.normalise]
    candidates = unexplored.children if unexplored else None
    select = selector(RULES[config.selection], config.c_puct, config.virtual_loss, config.first_play, span, candidates)
    observers = [part.update for part in (unexplored, span) if isinstance(part, Unexplored | TreeSpan)]
    evaluate = evaluation(tree, policy, critic, config, seed)
    return TreeSearch(tree, select, expansion(tree, policy, config, seed), evaluate, observers)


def expansion(tree: Tree, policy: Policy, config: MCTSConfig, seed: int) -> Expansion:
    """How nodes get children: all at once, or with time."""
    fixed = config.widening.kind == "fixed"
    return (Expansion if fixed else Widening)(
        tree=tree,
        policy=policy,
        seed=seed,
        width=(lambda node, before: config.expansion_width) if fixed else config.widening.width,
        max_depth=config.max_depth,
        expand_visits=config.expand_visits,
        prior_temperature=config.prior_temperature,
        merge=config.merge,
        root_noise=config.root_noise,
        root_noise_alpha=config.root_noise_alpha,
    )


def evaluation(tree: Tree, policy: Policy, critic: Critic | None, config: TreeConfig, seed: int) -> Evaluate:
    """How leaves get values. Without a critic solutions judge each other, and the rollouts have all the weight."""
    if critic is None:
        return MixedValue(tree, policy, Agreement(tree.traces()), config.rollouts, seed, 1.0)
    if isinstance(config, MCTSConfig) and config.leaf_value == "quality":
        return StepQuality(tree, policy, critic, config.rollouts, seed)
    return MixedValue(tree, policy, critic, config.rollouts, seed, config.rollout_weight)


def _finished(tree: Tree, config: MCTSConfig, unexplored: Unexplored | None) -> bool:
    """Whether all simulations are done, or no further one can change the answer."""
    left = config.num_simulations - (tree.root.visit_count - 1)  # the root's own evaluation is no simulation
    if left <= 0 or (unexplored and unexplored.explored(tree.root)):
        return True
    if not config.early_stop or config.answer == "q" or config.answer == "best":
        return False
    left += config.num_parallel - 1  # the last wave may run so many more
    if config.answer == "visits":
        return config.widening.kind == "fixed" and leads_throughout(tree.root, left)
    return settled(tree.traces(), config.answer, left * max(1, config.rollouts))
