"""What a search tree teaches the policy about single steps: improved distributions (AlphaZero).

    visits    pi(a) ~ N(a)^(1 / temperature)                                          AlphaZero (Silver et al. 2018)
    gumbel    pi = softmax(log prior + sigma(completed Q))                            Gumbel AlphaZero (Danihelka et al. 2022)
    outcome   pi ~ prior exp(c share), share = right ones among the whole solutions below a step     in neither paper

Visits and Q say what the search believed. Its values may be no more than agreement among rollouts, and then they teach the
policy to agree with itself; in training the answer is known, and `outcome` uses it in the place of Q, with the form of the
Gumbel improvement. A step below which no solution ended counts as its prefix does. Nodes of equal steps count together, and
steps that end the solution without an answer are left out. AlphaZero takes each position that was played; here every prefix
that was compared is one.
"""

import random
from collections import Counter, defaultdict
from math import exp, inf, log

from llm_mcts.errors import DataError
from llm_mcts.search.gumbel import improved_policy
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node
from llm_mcts.types import Problem, Step
from trainers.data.config import RowsConfig, TargetConfig
from trainers.data.evidence import Evidence, Prefix, PrefixStatistics, unanswered
from trainers.data.rows import NO_GOLD, TargetRow

Target = list[float] | str
"""pi of a prefix's steps, or why there is none."""


def distill_rows(evidence: Evidence, config: RowsConfig) -> tuple[list[TargetRow], Counter[str]]:
    """The rows of distillation, and what was refused, by reason."""
    if not evidence.answer_known and config.targets.asks_the_answer:
        return [], Counter({NO_GOLD: 1})
    return target_rows(evidence, config.targets)


def joint_rows(evidence: Evidence, config: RowsConfig) -> tuple[list[TargetRow], Counter[str]]:
    """The rows of joint training: distillation's, and some for the value alone."""
    if not evidence.answer_known and config.targets.asks_the_answer:
        return [], Counter({NO_GOLD: 1})
    return target_rows(evidence, config.targets, config.targets.outcomes_per_question)


def target_rows(evidence: Evidence, config: TargetConfig, outcomes: int = 0) -> tuple[list[TargetRow], Counter[str]]:
    """A row for each prefix of which the search compared steps, the most visited first; and what was refused, by reason.

    A question whose answer is not known gives rows without an outcome.

    Args:
        outcomes: the most further rows that tell an outcome alone: a value model that is trained along must see lost
            prefixes and whole solutions too. Drawn evenly from all prefixes, those of rollouts among them, without a row.

    Raises:
        DataError: target outcome, or min_outcome, of a question whose answer is not known.
    """
    problem = evidence.problem
    if not evidence.answer_known and config.asks_the_answer:
        raise DataError(
            f"targets by outcome for question {problem.question!r}, whose answer is not known; expected target visits or "
            "gumbel, and min_outcome 0"
        )
    found, hopeless = evidence.prefixes, unanswered(evidence.tree)
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
        row = TargetRow(problem.id, problem.question, prefix, actions, tuple(pi), found[prefix].outcome)
        rows.append((visits, row))
    rows.sort(key=lambda pair: -pair[0])
    refused["over the limit"] += max(0, len(rows) - config.per_question)
    kept = [row for _, row in rows[: config.per_question]]
    return kept + _outcome_rows(found, problem, {row.steps for row in kept}, outcomes), refused


def _outcome_rows(found: dict[Prefix, PrefixStatistics], problem: Problem, taken: set[Prefix], limit: int) -> list[TargetRow]:
    left = [(steps, z) for steps, here in found.items() if steps not in taken and (z := here.outcome) is not None]
    drawn = random.Random(derive_seed(0, "outcomes", problem.id)).sample(left, min(limit, len(left)))
    return [TargetRow(problem.id, problem.question, steps, (), (), z) for steps, z in drawn]


def _target(here: PrefixStatistics, steps: list[PrefixStatistics], config: TargetConfig) -> Target:
    outcome = here.outcome
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
        shares = [outcome if (share := step.outcome) is None else share for step in steps]
        logits = [log(child.prior) + config.c_outcome * x for child, x in zip(node.children, shares, strict=True)]
        return _softmax(logits) if min(shares) < max(shares) else "all alike"
    if node.value is None:
        return "not valued"
    return improved_policy(node, config.c_visit, config.c_scale)


def _merged(here: PrefixStatistics, steps: list[PrefixStatistics]) -> Node:
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
