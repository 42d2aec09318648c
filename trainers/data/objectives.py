"""What each critic learns: targets and losses, chosen by name. The defaults are OVM, Math-Shepherd (soft) and a plain ORM.

    llm-mcts train value ROWS --out DIR --critic_loss.value.target prefix --critic_loss.value.prefixes 2

Rows must suit the target: `needed_rows` says which; the self-improvement loop writes those that its configuration needs.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from critics.kinds import Kind
from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings, Within
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TreeRow

Pointwise = Literal["mse", "cross_entropy"]
"""(sigmoid(logit) - y)^2, or -[y log p + (1 - y) log(1 - p)]: both are minimal at p = E[y]."""


def _check_lm_weight(section: str, weight: float, target: str) -> None:
    if weight and target == "pairwise":
        raise ConfigError(f"{section}.lm_weight is {weight} with target pairwise; expected 0, or solutions to judge")


@dataclass(frozen=True)
class ValueObjective(Settings, section="critic_loss.value"):
    """The value model's."""

    target: Literal["token", "prefix", "tree_q", "td_lambda"] = "token"
    """token: the outcome at every solution token (OVM); prefix: the outcome at step ends, the bare question's among them
    (AlphaLLM); tree_q: the tree's Q of each node once, weighted by its visits; td_lambda: the lambda-return at step ends."""
    loss: Pointwise = "mse"
    """OVM and AlphaLLM: mse."""
    prefixes: Annotated[int, AtLeast(0)] = 0
    """For target prefix: how many of a solution's prefixes, drawn by the seed; 0: all (AlphaLLM's paper).
    AlphaLLM's code: 2; AlphaGo: 1, for more of one game are alike and are memorised."""
    gamma: Annotated[float, Within(0, 1)] = 1.0
    """For td_lambda: discount per step. 1: the outcome counts alike however far away."""
    lam: Annotated[float, Within(0, 1)] = 0.95
    """For td_lambda: lambda; 1 is the outcome alone, 0 the next prefix's estimate alone. Schulman et al.: 0.95."""
    estimate: Literal["tree", "model"] = "tree"
    """For td_lambda: whose values the returns are made of: the tree's Q, or the value model that training starts from."""
    lm_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the next-token loss on the solutions, right and wrong, added to the value loss; 0: none.
    OVM's code: 1, but its squared errors are summed over a solution's tokens and ours averaged, so the same proportion is
    1 / tokens of a solution, about 0.01."""

    @property
    def asks_the_model(self) -> bool:
        """Whether targets are made of the current value model's scores."""
        return self.target == "td_lambda" and self.estimate == "model"


@dataclass(frozen=True)
class StepObjective(Settings, section="critic_loss.prm"):
    """The PRM's."""

    target: Literal["soft", "hard", "pairwise"] = "soft"
    """soft: the label as it is; hard: whether it is above `threshold`; pairwise: the better of two steps behind one prefix
    (rStar-Math's PPM)."""
    loss: Pointwise = "cross_entropy"
    """For soft and hard. Math-Shepherd: cross_entropy."""
    threshold: Annotated[float, Within(0, 1, open_high=True)] = 0.0
    """For hard: labels above this are 1, others 0. Math-Shepherd and OmegaPRM: 0, any right completion."""
    lm_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the next-token loss on right solutions alone; not with pairwise. It keeps the backbone a language
    model of right solutions, which a head of kind surprisal reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lm_weight(self.section, self.lm_weight, self.target)


@dataclass(frozen=True)
class OutcomeObjective(Settings, section="critic_loss.orm"):
    """The ORM's."""

    target: Literal["outcome", "pairwise"] = "outcome"
    """outcome: right or wrong at the last token; pairwise: the right one of two solutions of a question (Bradley-Terry)."""
    loss: Pointwise = "cross_entropy"
    """For outcome. Cobbe et al.: mse."""
    lm_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the next-token loss on right solutions alone; not with pairwise. It keeps the backbone a language
    model of right solutions, which a head of kind surprisal reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lm_weight(self.section, self.lm_weight, self.target)


@dataclass(frozen=True)
class CriticLossConfig:
    """What the three critics learn."""

    value: ValueObjective = field(default_factory=ValueObjective)
    prm: StepObjective = field(default_factory=StepObjective)
    orm: OutcomeObjective = field(default_factory=OutcomeObjective)


def needed_rows(kind: Kind, losses: CriticLossConfig) -> type[Row]:
    """The type of row that a critic's objective is trained on."""
    if kind == "value":
        wants_tree = losses.value.target == "tree_q" or (losses.value.target == "td_lambda" and losses.value.estimate == "tree")
        return TreeRow if wants_tree else SolutionRow
    if kind == "prm":
        return PairRow if losses.prm.target == "pairwise" else StepRow
    return PairRow if losses.orm.target == "pairwise" else SolutionRow
