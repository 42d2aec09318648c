"""Which trajectories become training rows: the settings of every row maker."""

from dataclasses import dataclass, field
from math import exp, log
from typing import Annotated, Literal

from llm_mcts.errors import ConfigError
from llm_mcts.fields import Above, AtLeast, Settings, Within


@dataclass(frozen=True)
class SelectionConfig(Settings, section="selection"):
    """Which of a question's right solutions are imitated."""

    dedupe: Literal["text", "equations"] = "text"
    """Which solutions count as one. text: equal texts; equations: equal equations in equal order, whatever the words are
    (a solution without any: equal texts). Of those that count as one the best is kept."""
    length_ratio: Annotated[float, AtLeast(0)] = 0.0
    """Solutions longer than this times the question's shortest right one, in characters, are left out; at least 1, or 0 for no
    limit. Long ones tend to hold detours that the answer hides."""
    prefer_short: bool = False
    """Of equally scored solutions the shorter first, else in the order in which the search found them."""
    balance: Literal["none", "pass_rate"] = "none"
    """none: k solutions per question. pass_rate: ceil(k (1 - p)), at least 1, where p is the share of right ones among all that
    the search found: a hard question keeps up to k, one that is always solved keeps one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.length_ratio < 1:
            raise ConfigError(f"selection.length_ratio is {self.length_ratio}; expected at least 1, or 0 for no limit")


@dataclass(frozen=True)
class WeightedConfig(Settings, section="weighted"):
    """How much each solution counts: w = min(exp((score - baseline) / beta), clip)."""

    beta: Annotated[float, AtLeast(0.01)] = 0.5
    """Temperature; scores are in [0, 1]. Large: all count alike, small: the best alone. Authors' code: 1, of
    advantages that it divides by their deviation, which of outcomes is at most 0.5."""
    clip: Annotated[float, AtLeast(1)] = 20.0
    """Largest weight. Authors' code: 20."""
    score: Literal["outcome", "critic"] = "outcome"
    """outcome: 1 for a right solution, 0 for a wrong one, so that rare right ones count most; critic: what the critics said of
    it. The baseline is the mean over all whole solutions of the question."""
    wrong: bool = False
    """Imitate wrong solutions too, with the small weight that they have; as many at most as right ones."""

    def weight(self, score: float, baseline: float) -> float:
        """w of a solution; both arguments in [0, 1]."""
        return exp(min((score - baseline) / self.beta, log(self.clip)))


@dataclass(frozen=True)
class TargetConfig(Settings, section="targets"):
    """How a prefix's target pi is made, and of which prefixes."""

    target: Literal["visits", "gumbel", "outcome"] = "visits"
    """visits: AlphaZero; gumbel: completed Q; outcome: the share of right solutions below each step."""
    temperature: Annotated[float, Above(0)] = 1.0
    """visits: tau of N^(1 / tau). AlphaZero: 1."""
    c_visit: Annotated[float, AtLeast(0)] = 50.0
    """gumbel: sigma's visit offset; the search's own. Paper: 50."""
    c_scale: Annotated[float, AtLeast(0)] = 0.1
    """gumbel: sigma's factor. mctx: 0.1; paper: 1."""
    c_outcome: Annotated[float, AtLeast(0)] = 5.0
    """outcome: c; gumbel's (c_visit + max N) c_scale is 5 and more."""
    min_visits: Annotated[int, AtLeast(1)] = 2
    """Prefixes with fewer visits of their steps together are left out; for outcome, with fewer solutions."""
    min_outcome: Annotated[float, Within(0, 1)] = 0.0
    """Prefixes of which a smaller share of solutions is right are left out; 0: none, as in AlphaZero. A little above
    0 leaves out what the search never solved, whose visits and Q say little to the policy; a value model that is trained
    along learns of it all the same."""
    per_question: Annotated[int, AtLeast(1)] = 16
    """Prefixes kept per question, those with most visits first."""
    outcomes_per_question: Annotated[int, AtLeast(0)] = 2
    """Joint training: number of further prefixes per question for the value alone. They make batches larger and the
    policy's share of each smaller: with many of them let a step hold more rows, or the policy takes more and noisier steps."""

    @property
    def asks_the_answer(self) -> bool:
        """Whether targets are made with the gold answer."""
        return self.target == "outcome" or self.min_outcome > 0


@dataclass(frozen=True)
class PreferenceConfig(Settings, section="preferences"):
    """Which steps a policy that learns from preferences compares."""

    by: Literal["outcome", "q"] = "outcome"
    """outcome: the share of right ones among the whole solutions below a step, rollouts' steps included; q: the tree's Q, as
    for a process preference model (rStar-Math), whole solutions across the tree among them."""
    min_gap: Annotated[float, Within(0, 1, open_high=True)] = 0.0
    """outcome: shares must differ by more than this."""


@dataclass(frozen=True)
class RowsConfig(Settings, section="rows"):
    """Which trajectories become training rows."""

    sft_per_question: Annotated[int, AtLeast(1)] = 4
    """Right solutions kept for the policy; `selection.balance` may lower it."""
    critic_per_question: Annotated[int, AtLeast(2)] = 8
    """Solutions kept for each critic, half of them right where there are enough of both."""
    min_score: Annotated[float, Within(0, 1)] = 0.0
    """Right solutions that the critics scored below this are not imitated. It is not used without critics.
    AlphaLLM: gamma."""
    negatives: Literal["found", "twins"] = "found"
    """Which solutions critics get where there are more than enough. found: the first that the search found; twins: a wrong one
    that shares as long a beginning as possible with a right one, and that right one, so that style cannot tell them apart."""
    pairs_per_question: Annotated[int, AtLeast(1)] = 16
    """Step pairs kept for a PRM, or a policy, that is trained on pairs."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Which right solutions the policy imitates (sft, weighted)."""
    weighted: WeightedConfig = field(default_factory=WeightedConfig)
    """How much each of them counts (weighted)."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """What the search made of the policy (distill, joint)."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Which steps are compared (dpo)."""
