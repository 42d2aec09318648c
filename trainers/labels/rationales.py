"""Rationales for a verifier to learn from: why a solution is right or wrong, ending in a verdict known to be true.

model        a language model criticises the solution with a reference solution in view; kept when its verdict is the label
             (GenRM, arXiv 2408.15240, reference-guided critiques)
arithmetic   the written equations are worked out again, without a model: for tasks whose steps are equations (the paper,
             too, writes rationales by program where a task allows it)

Every refusal has a reason, and reasons are counted. `llm-mcts rationales ROWS --out FILE` runs either.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from critics.scoring.generative import VERDICTS
from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Engine, Request
from llm_mcts.errors import ConfigError, DataError, QuestionError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.prompts import PromptFormat
from llm_mcts.runs.durable import make_folder
from llm_mcts.runs.journal import Journal
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.equations import equations, evaluate
from llm_mcts.types import State, Step, metered
from trainers.data.rows import VerdictRow, row_to_dict


@dataclass(frozen=True)
class RationalesConfig(Settings):
    """Who writes the rationales."""

    source: Literal["arithmetic", "model"] = "arithmetic"
    """arithmetic: equations are worked out again; model: `solver`'s model criticises with a reference solution in view."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """model: where the reference solutions are; they are found by the rows' questions."""
    split: str = "train"
    """model: split of the task; never test."""
    solver: SolverConfig = field(default_factory=SolverConfig)
    """model: its engine and prompt."""
    per_row: Annotated[int, AtLeast(1)] = 1
    """model: critiques sampled per row; those with a wrong verdict are refused."""
    max_tokens: Annotated[int, AtLeast(1)] = 256
    """model: longest critique."""
    temperature: Annotated[float, AtLeast(0)] = 0.7
    """model: of sampling."""
    seed: int = 0
    """model: same seed, same critiques."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "test":
            raise ConfigError("split is 'test'; expected train: what is trained on test questions cannot be tested on them")


def write_rationales(rows: Sequence[VerdictRow], out: Path, config: RationalesConfig) -> dict[str, Any]:
    """Write the rows that got a rationale to the file `out`; return how many, the refused by reason, and the tokens sampled.

    Raises:
        ConfigError: `out` exists.
        DataError: no row got one.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another --out")
    refused: Counter[str] = Counter()
    with metered() as usage:
        if config.source == "arithmetic":
            written = [(row, arithmetic_rationale(row)) for row in rows]
            kept = [replace(row, rationale=rationale) for row, rationale in written if rationale]
            refused["arithmetic against the label"] = len(rows) - len(kept)
        else:
            solved = config.task.build().load(config.split)
            references = {problem.question: problem.solution for problem in solved if problem.solution}
            with Solver(replace(config.solver, critics=CriticsConfig())) as solver:
                engine, prompt = solver.policy.engine, solver.policy.prompt
                kept, refused = asyncio.run(model_rationales(rows, references, engine, prompt, config))
    if not kept:
        raise DataError(f"none of {len(rows)} rows got a rationale ({dict(refused)}); try a larger model or more per_row")
    make_folder(out.parent)
    Journal(out).write([row_to_dict(row) for row in kept])
    return {"rows": len(kept), "refused": dict(+refused), "generated_tokens": usage.generated_tokens}


def arithmetic_rationale(row: VerdictRow) -> str | None:
    """One line an equation, up to the first that is wrong; where all hold, whether the steps follow from the question.

    None where the equations speak against the label: a right solution with an equation that does not hold as it is read here.
    """
    lines: list[str] = []
    for text in row.steps:
        for expression, stated in equations(text):
            value = evaluate(expression)
            if value is None:
                continue
            if not _same(value, stated):
                return None if row.right else "\n".join([*lines, f"{expression} = {_shown(value)}, not {stated}."])
            lines.append(f"{expression} = {stated}.")
    return "\n".join([*lines, "Each step follows." if row.right else "A step does not follow."])


def _same(value: Fraction, stated: str) -> bool:
    """Whether a value is the stated number, or rounds to its decimals."""
    decimals = len(stated.partition(".")[2])
    return value == Fraction(stated) or (decimals > 0 and abs(value - Fraction(stated)) <= Fraction(1, 2 * 10**decimals))


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.6g}"


async def model_rationales(
    rows: Sequence[VerdictRow],
    references: Mapping[str, str],
    engine: Engine,
    prompt: PromptFormat,
    config: RationalesConfig,
) -> tuple[list[VerdictRow], Counter[str]]:
    """Rows with critiques that a model wrote with the reference solution in view, and why others were refused.

    Args:
        rows: verdicts without rationale.
        references: question -> a right solution.
        engine: runs the model that writes them.
        prompt: its format.
        config: how they are sampled.
    """
    found = await gather_all([_criticise(row, references.get(row.question), engine, prompt, config) for row in rows])
    reasons: Counter[str] = Counter()
    kept = []
    for accepted, refused in found:
        kept += accepted
        reasons.update(refused)
    return kept, reasons


async def _criticise(
    row: VerdictRow, reference: str | None, engine: Engine, prompt: PromptFormat, config: RationalesConfig
) -> tuple[list[VerdictRow], list[str]]:
    """One row's critiques whose verdict is its label, and the reasons against the others."""
    n = config.per_row
    if reference is None:
        return [], ["no reference solution"] * n
    verdict = VERDICTS["genrm"]
    state = State(row.question, tuple(Step(text) for text in row.steps))
    opening = prompt.critique(state, reference, verdict.question)
    seed, stop = derive_seed(config.seed, "critique", row.question, *row.steps), (verdict.question,)
    try:
        replies = await engine.generate(Request(opening, n, config.max_tokens, config.temperature, stop, seed))
    except QuestionError:
        return [], ["too long for the model's context"] * n
    kept, refused = [], []
    for reply in replies:
        rationale = reply.text.strip()
        if reply.finish_reason != "stop" or not rationale:
            refused.append("no verdict")
            continue
        asked = (*opening, f"{rationale}\n", verdict.question)
        try:
            yes, no = (sum(logprobs) for logprobs in await engine.logprobs(asked, [(verdict.yes,), (verdict.no,)]))
        except QuestionError:
            refused.append("too long for the model's context")
            continue
        if (yes > no) == row.right:
            kept.append(replace(row, rationale=rationale))
        else:
            refused.append("verdict against the label")
    return kept, refused
