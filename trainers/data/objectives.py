"""What each critic learns: targets and losses, chosen by name. The defaults are OVM, Math-Shepherd (soft) and a plain ORM.

    llm-mcts train value ROWS --out DIR --critic_loss.value.target prefix --critic_loss.value.prefixes 2

Rows must suit the target: `needed_rows` says which; the self-improvement loop writes those that its configuration needs.
"""

from dataclasses import dataclass, field
from typing import Literal

from critics.kinds import Kind
from llm_mcts.errors import ConfigError
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TreeRow

Pointwise = Literal["mse", "cross_entropy"]
"""(sigmoid(logit) - y)^2, or -[y log p + (1 - y) log(1 - p)]: both are least at p = E[y]."""


def _check(where: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"critic_loss.{where} is '{value}'; expected one of {', '.join(known)}")


def _check_lm_weight(where: str, weight: float, target: str) -> None:
    if not weight >= 0:
        raise ConfigError(f"critic_loss.{where}.lm_weight is {weight}; expected at least 0")
    if weight and target == "pairwise":
        raise ConfigError(f"critic_loss.{where}.lm_weight is {weight} with target pairwise; expected 0, or solutions to judge")


def _check_share(where: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"critic_loss.{where} is {value}; expected within [0, 1]")


@dataclass(frozen=True)
class ValueObjective:
    """The value model's."""

    target: Literal["token", "prefix", "tree_q", "td_lambda"] = "token"
    """token: the outcome at every solution token (OVM); prefix: the outcome at step ends, the bare question's among them
    (AlphaLLM); tree_q: the tree's Q of each node once, weighted by its visits; td_lambda: the lambda-return at step ends."""
    loss: Pointwise = "mse"
    """OVM and AlphaLLM: mse."""
    prefixes: int = 0
    """For target prefix: how many of a solution's prefixes, drawn by the seed, at least 0; 0: all (AlphaLLM's paper).
    AlphaLLM's code: 2; AlphaGo: 1, for more of one game are alike and get learnt by heart."""
    gamma: float = 1.0
    """For td_lambda: discount a step, in [0, 1]. 1: the outcome counts alike however far away."""
    lam: float = 0.95
    """For td_lambda: lambda in [0, 1]; 1 is the outcome alone, 0 the next prefix's estimate alone. Schulman et al.: 0.95."""
    estimate: Literal["tree", "model"] = "tree"
    """For td_lambda: whose values the returns are made of: the tree's Q, or the value model that training starts from."""
    lm_weight: float = 0.0
    """Weight of the next-token loss on the solutions, right and wrong, beside the value loss, at least 0; 0: none.
    OVM's code: 1, but its squared errors are summed over a solution's tokens and ours averaged, so the same proportion is
    1 / tokens of a solution, about 0.01."""

    def __post_init__(self) -> None:
        _check("value.target", self.target, ("token", "prefix", "tree_q", "td_lambda"))
        _check("value.loss", self.loss, ("mse", "cross_entropy"))
        _check("value.estimate", self.estimate, ("tree", "model"))
        _check_share("value.gamma", self.gamma)
        _check_share("value.lam", self.lam)
        for name in ("prefixes", "lm_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"critic_loss.value.{name} is {getattr(self, name)}; expected at least 0")

    @property
    def asks_the_model(self) -> bool:
        """Whether targets are made of the current value model's scores."""
        return self.target == "td_lambda" and self.estimate == "model"


@dataclass(frozen=True)
class StepObjective:
    """The PRM's."""

    target: Literal["soft", "hard", "pairwise"] = "soft"
    """soft: the label as it is; hard: whether it is above `threshold`; pairwise: the better of two steps behind one prefix
    (rStar-Math's PPM)."""
    loss: Pointwise = "cross_entropy"
    """For soft and hard. Math-Shepherd: cross_entropy."""
    threshold: float = 0.0
    """For hard: labels above this are 1, others 0; in [0, 1). Math-Shepherd and OmegaPRM: 0, any right completion."""
    lm_weight: float = 0.0
    """Weight of the next-token loss on right solutions alone, at least 0; not with pairwise. It keeps the backbone a language
    model of right solutions, which a head of kind surprisal reads."""

    def __post_init__(self) -> None:
        _check("prm.target", self.target, ("soft", "hard", "pairwise"))
        _check("prm.loss", self.loss, ("mse", "cross_entropy"))
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"critic_loss.prm.threshold is {self.threshold}; expected within [0, 1)")
        _check_lm_weight("prm", self.lm_weight, self.target)


@dataclass(frozen=True)
class OutcomeObjective:
    """The ORM's."""

    target: Literal["outcome", "pairwise"] = "outcome"
    """outcome: right or wrong at the last token; pairwise: the right one of two solutions of a question (Bradley-Terry)."""
    loss: Pointwise = "cross_entropy"
    """For outcome. Cobbe et al.: mse."""
    lm_weight: float = 0.0
    """Weight of the next-token loss on right solutions alone, at least 0; not with pairwise. It keeps the backbone a language
    model of right solutions, which a head of kind surprisal reads."""

    def __post_init__(self) -> None:
        _check("orm.target", self.target, ("outcome", "pairwise"))
        _check("orm.loss", self.loss, ("mse", "cross_entropy"))
        _check_lm_weight("orm", self.lm_weight, self.target)


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
