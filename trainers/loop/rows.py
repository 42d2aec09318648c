"""The stage that turns a round's trees into the trainers' rows, with where each comes from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from critics.kinds import KINDS
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Tree
from llm_mcts.types import Problem
from trainers.data.critic_rows import critic_rows
from trainers.data.evidence import Evidence
from trainers.data.rows import Row, row_to_dict
from trainers.loop.config import SelfImproveConfig
from trainers.loop.questions import chosen_questions
from trainers.loop.replay import trajectories
from trainers.loop.stages import Facts, Round
from trainers.policy.registry import policy_rows
from trainers.questions.agreement import agreed_answer
from trainers.questions.curriculum import Source

Dicts = list[dict[str, Any]]
NAMES = ("policy", *KINDS, "trajectories")
"""The files that are written."""


def write_rows(current: Round, config: SelfImproveConfig, task: Task) -> Facts:
    """Write every trainer's rows, and all trajectories; note how many, and how many trajectories were refused, by reason."""
    chosen = {one.problem.id: one for one in chosen_questions(current.files)}
    rows: dict[str, Dicts] = {name: [] for name in NAMES}
    refused: Counter[str] = Counter()
    searched = [record for record in current.files.trees.whole() if "tree" in record]
    for record in searched:
        question, tree = chosen[record["id"]], Tree.from_dict(record["tree"])
        problem, reason = _with_answer(question.problem, tree, config)
        if reason:
            refused[reason] += 1
            continue
        of_question, reasons = _rows_of(Evidence.of(tree, problem, task), current, question.source, config)
        refused.update(reasons)
        origin = {"round": current.number, "policy": current.start.engine.model, "source": question.source}
        for name, of_trainer in of_question.items():
            rows[name].extend({"id": f"{problem.id}/{i}", **row, **origin} for i, row in enumerate(of_trainer))
    for name in NAMES:
        current.files.rows(name).write(rows[name])
    return {
        "searched": len(searched),
        "failed": len(chosen) - len(searched),
        "solved": len({row["problem"] for row in rows["trajectories"] if row["right"]}),
        "refused": dict(sorted(refused.items())),
        **{name: len(rows[name]) for name in NAMES},
    }


def rows_message(facts: Mapping[str, Any]) -> str:
    """How many questions were solved, and the facts."""
    return f"rows: {facts['solved']} of {facts['searched'] + facts['failed']} questions solved; {facts}"


def _with_answer(problem: Problem, tree: Tree, config: SelfImproveConfig) -> tuple[Problem, str | None]:
    """The question with the answer that vote and critics agree on, where it has none; or why it has none."""
    if problem.gold is not None:
        return problem, None
    agreed = agreed_answer(tree, config.agreement)
    return replace(problem, gold=agreed.answer), agreed.reason if agreed.answer is None else None


def _rows_of(
    evidence: Evidence, current: Round, source: Source, config: SelfImproveConfig
) -> tuple[dict[str, Dicts], dict[str, int]]:
    """All rows of one searched question by trainer, and why trajectories did not become the policy's."""
    policy, refused = policy_rows(config.policy_loss.method, evidence, config.rows)
    rows: dict[str, Sequence[Row]] = {"policy": policy}
    rows.update(critic_rows(evidence, config.rows, config.critic_loss).items())
    as_dicts = {name: [row_to_dict(row) for row in of_trainer] for name, of_trainer in rows.items()}
    found = trajectories(evidence, current.number, current.start.engine.model, source)
    return {**as_dicts, "trajectories": [trajectory.to_dict() for trajectory in found]}, refused
