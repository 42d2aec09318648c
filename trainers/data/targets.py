"""What a search tree teaches the policy about single steps: improved distributions (AlphaZero) and preferences (DPO).

    visits    pi(a) ~ N(a)^(1 / temperature)                                          AlphaZero (Silver et al. 2018)
    gumbel    pi = softmax(log prior + sigma(completed Q))                            Gumbel AlphaZero (Danihelka et al. 2022)
    outcome   pi ~ prior exp(c share), share = right ones among the whole solutions below a step     in neither paper

Visits and Q say what the search believed. Its values may be no more than agreement among roll-outs, and then they teach the
policy to agree with itself; in training the answer is known, and `outcome` uses it in the place of Q, with the form of the
Gumbel improvement. A step below which no solution ended counts as its prefix does. Nodes of equal steps count together, and
steps that end the solution without an answer are left out. AlphaZero takes each position that was played; here every prefix
that was compared is one.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from math import exp, inf, log
from typing import Literal

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.search.gumbel import improved_policy
from llm_mcts.seeding import derive_seed
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem, Step
from trainers.data.evidence import PER_SIDE, Found, Prefix, node_statistics, statistics_of, step_pairs, unanswered
from trainers.data.rows import PairRow, TargetRow

Target = list[float] | str
"""pi of a prefix's steps, or why there is none."""


@dataclass(frozen=True)
class TargetConfig:
    """How a prefix's target pi is made, and of which prefixes."""

    target: Literal["visits", "gumbel", "outcome"] = "visits"
    """visits: AlphaZero; gumbel: completed Q; outcome: the share of right solutions below each step."""
    temperature: float = 1.0
    """visits: tau of N^(1 / tau), above 0. AlphaZero: 1."""
    c_visit: float = 50.0
    """gumbel: sigma's visit offset, at least 0; the search's own. Paper: 50."""
    c_scale: float = 0.1
    """gumbel: sigma's factor, at least 0. mctx: 0.1; paper: 1."""
    c_outcome: float = 5.0
    """outcome: c, at least 0; gumbel's (c_visit + max N) c_scale is 5 and more."""
    min_visits: int = 2
    """Prefixes with fewer visits of their steps together are left out, at least 1; for outcome, with fewer solutions."""
    min_outcome: float = 0.0
    """Prefixes of which a smaller share of solutions is right are left out, in [0, 1]; 0: none, as in AlphaZero. A little above
    0 leaves out what the search never solved, whose visits and Q say little to the policy; a value model that is trained
    along learns of it all the same."""
    per_question: int = 16
    """Prefixes kept of a question, those with most visits first, at least 1."""
    outcomes_per_question: int = 2
    """Joint training: so many prefixes more of a question for the value alone, at least 0. They make batches larger and the
    policy's share of each smaller: with many of them let a step hold more rows, or the policy takes more and noisier steps."""

    def __post_init__(self) -> None:
        if self.target not in ("visits", "gumbel", "outcome"):
            raise ConfigError(f"targets.target is '{self.target}'; expected visits, gumbel or outcome")
        if not 0 < self.temperature < inf:
            raise ConfigError(f"targets.temperature is {self.temperature}; expected above 0")
        for name in ("c_visit", "c_scale", "c_outcome"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"targets.{name} is {getattr(self, name)}; expected a finite number, at least 0")
        if self.outcomes_per_question < 0:
            raise ConfigError(f"targets.outcomes_per_question is {self.outcomes_per_question}; expected at least 0")
        if self.min_visits < 1 or self.per_question < 1 or not 0 <= self.min_outcome <= 1:
            raise ConfigError(
                f"targets with min_visits={self.min_visits}, per_question={self.per_question}, min_outcome={self.min_outcome}; "
                "expected at least 1, at least 1, and within [0, 1]"
            )

    @property
    def asks_the_answer(self) -> bool:
        """Whether targets are made with the gold answer."""
        return self.target == "outcome" or self.min_outcome > 0


@dataclass(frozen=True)
class PreferenceConfig:
    """Which steps a policy that learns from preferences compares."""

    by: Literal["outcome", "q"] = "outcome"
    """outcome: the share of right ones among the whole solutions below a step, roll-outs' steps included; q: the tree's Q, as
    for a process preference model (rStar-Math), whole solutions across the tree among them."""
    min_gap: float = 0.0
    """outcome: shares must differ by more than this, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.by not in ("outcome", "q") or not 0 <= self.min_gap < 1:
            raise ConfigError(
                f"preferences with by={self.by}, min_gap={self.min_gap}; expected outcome or q, and within [0, 1)"
            )


def target_rows(
    tree: Tree, problem: Problem, task: Task, config: TargetConfig, outcomes: int = 0
) -> tuple[list[TargetRow], Counter[str]]:
    """A row for each prefix of which the search compared steps, the most visited first; and what was refused, by reason.

    A question whose answer is not known gives rows without an outcome.

    Args:
        outcomes: so many rows more, at most, that tell an outcome alone: a value model that is trained along must see lost
            prefixes and whole solutions too. Drawn evenly from all prefixes, those of roll-outs among them, without a row.

    Raises:
        DataError: target outcome, or min_outcome, of a question whose answer is not known.
    """
    if problem.gold is None and config.asks_the_answer:
        raise DataError(
            f"targets by outcome for question {problem.question!r}, whose answer is not known; expected target visits or "
            "gumbel, and min_outcome 0"
        )
    found = node_statistics(tree) if problem.gold is None else statistics_of(tree, problem, task)
    hopeless = unanswered(tree)
    children: dict[Prefix, list[Prefix]] = defaultdict(list)
    for steps, here in found.items():
        if any(node.parent is not None for node in here.nodes) and steps not in hopeless:
            children[steps[:-1]].append(steps)
    rows: list[tuple[int, TargetRow]] = []
    refused: Counter[str] = Counter()
    for prefix, steps_below in children.items():
        pi = _target(found[prefix], [found[steps] for steps in steps_below], config)
        if isinstance(pi, str):
            refused[pi] += 1
            continue
        actions = tuple(steps[-1] for steps in steps_below)
        visits = sum(found[steps].visits for steps in steps_below)
        row = TargetRow(problem.id, problem.question, prefix, actions, tuple(pi), _outcome(found[prefix]))
        rows.append((visits, row))
    rows.sort(key=lambda pair: -pair[0])
    refused["over the limit"] += max(0, len(rows) - config.per_question)
    kept = [row for _, row in rows[: config.per_question]]
    return kept + _outcome_rows(found, problem, {row.steps for row in kept}, outcomes), refused


def _outcome_rows(found: dict[Prefix, Found], problem: Problem, taken: set[Prefix], limit: int) -> list[TargetRow]:
    left = [(steps, z) for steps, here in found.items() if steps not in taken and (z := _outcome(here)) is not None]
    drawn = random.Random(derive_seed(0, "outcomes", problem.id)).sample(left, min(limit, len(left)))
    return [TargetRow(problem.id, problem.question, steps, (), (), z) for steps, z in drawn]


def _target(here: Found, steps: list[Found], config: TargetConfig) -> Target:
    outcome = _outcome(here)
    by_outcome = config.target == "outcome"
    if len(steps) < 2:
        return "one step alone"
    if sum(step.right + step.wrong if by_outcome else step.visits for step in steps) < config.min_visits:
        return "few visits"
    if config.min_outcome > 0 and (outcome is None or outcome < config.min_outcome):
        return "low outcome"
    if config.target == "visits":
        return _softmax([log(step.visits) / config.temperature if step.visits else -inf for step in steps])
    node = _merged(here, steps)
    if by_outcome:
        assert outcome is not None
        shares = [outcome if (share := _outcome(step)) is None else share for step in steps]
        logits = [log(child.prior) + config.c_outcome * x for child, x in zip(node.children, shares, strict=True)]
        return _softmax(logits) if min(shares) < max(shares) else "all alike"
    if node.value is None:
        return "not valued"
    return improved_policy(node, config.c_visit, config.c_scale)


def _outcome(here: Found) -> float | None:
    """z: share of right ones among the whole solutions below; None without any."""
    ends = here.right + here.wrong
    return here.right / ends if ends else None


def _merged(here: Found, steps: list[Found]) -> Node:
    """A node that stands for all nodes of a prefix: its children's visits, values and priors added up, its value their mean."""
    node = Node(Step(""))
    values = [one.value for one in here.nodes if one.value is not None]
    node.value = sum(values) / len(values) if values else None
    priors = [sum(one.prior for one in step.nodes) for step in steps]
    for i, (step, prior) in enumerate(zip(steps, priors, strict=True)):
        child = Node(step.nodes[0].step, prior / sum(priors), node, i)
        child.visit_count, child.value_sum = step.visits, step.value_sum
        node.children.append(child)
    return node


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def policy_pairs(
    tree: Tree, problem: Problem, task: Task, limit: int, config: PreferenceConfig | None = None
) -> tuple[list[PairRow], Counter[str]]:
    """Better and worse steps for a policy, at most `limit`, and what was refused, by reason.

    outcome: of the steps behind one prefix the two best against the two worst, those behind the prefix with most solutions
    first. Solutions without an answer are on neither side.
    """
    config = config or PreferenceConfig()
    found = statistics_of(tree, problem, task)
    for steps in unanswered(tree):
        found.pop(steps, None)
    if config.by == "q":
        pairs = [pair for pair in step_pairs(found, problem, len(found) ** 2) if _part(pair.chosen, pair.rejected)]
    else:
        pairs = _pairs_by_outcome(found, problem, config.min_gap)
    return pairs[:limit], Counter({"over the limit": max(0, len(pairs) - limit)})


def _pairs_by_outcome(found: dict[Prefix, Found], problem: Problem, min_gap: float) -> list[PairRow]:
    groups: dict[Prefix, list[tuple[float, Prefix]]] = defaultdict(list)
    for steps, here in found.items():
        if steps and (share := _outcome(here)) is not None:
            groups[steps[:-1]].append((share, steps))
    ends = {prefix: sum(found[steps].right + found[steps].wrong for _, steps in group) for prefix, group in groups.items()}
    pairs = []
    for prefix in sorted(groups, key=lambda prefix: -ends[prefix]):
        ranked = sorted(groups[prefix], key=lambda pair: -pair[0])
        pairs += [
            PairRow(problem.id, problem.question, better, worse)
            for high, better in ranked[:PER_SIDE]
            for low, worse in ranked[: -PER_SIDE - 1 : -1]
            if high - low > min_gap
        ]
    return pairs


def _part(a: Prefix, b: Prefix) -> bool:
    """Whether neither begins with the other."""
    n = min(len(a), len(b))
    return a[:n] != b[:n]
