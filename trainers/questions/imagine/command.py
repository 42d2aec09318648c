"""`llm-mcts imagine`: new questions from a task's training questions, as a file that the `jsonl` task reads.

    OUT/config.yaml  imagined.jsonl (a record a candidate)  questions.jsonl (the kept ones)  report.json

`trainers.questions.imagine.imagine` says how they are made. Questions of the test split are refused as a source.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.policy import LMPolicy
from llm_mcts.runs.job import open_job
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks import TaskConfig
from trainers.questions.imagine.imagine import ImagineConfig, counts, held_out_questions, imagine_questions, spent


@dataclass(frozen=True)
class ImagineTaskConfig(Settings):
    """Which task's questions new ones are made from, and how."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy whose model writes rephrased and evolved questions, unless imagine.model names another."""
    imagine: ImagineConfig = field(default_factory=ImagineConfig)
    split: str = "train"
    """Split of the task that they are made from; never test."""
    num_questions: Annotated[int, AtLeast(1)] = 200
    """How many of its questions."""
    held_out: tuple[str, ...] = ("dev", "test")
    """Splits whose questions nothing imagined may be near. Only their texts are read. Empty: nothing is kept out, for a
    file of your own without held-out questions."""
    num_held_out: Annotated[int, AtLeast(1)] | None = None
    """Questions of each held-out split, as many as are evaluated; None: all (arith: 200)."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "test" or self.split in self.held_out:
            raise ConfigError(
                f"split is '{self.split}' and held_out is {list(self.held_out)}; expected train, and held-out others"
            )


def imagine_from_task(
    config: ImagineTaskConfig, out: Path, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Imagine questions into folder `out`; return the report that also stands in `report.json`.

    Raises:
        ConfigError: `out` holds other questions, or these without `resume`; or the task has no held-out questions.
        DataError: no candidate was kept.
    """
    task = config.task.build()
    problems = task.load(config.split, config.num_questions)
    held_out = held_out_questions(task, config.held_out, config.num_held_out)
    if held_out and {p.question for p in problems} <= set(held_out):
        raise ConfigError(
            f"the {len(problems)} questions of split '{config.split}' are all held out as well; expected a folder with a "
            "file for each split, or held_out: []"
        )
    reporter = reporter or Reporter(quiet=True)
    with open_job(out, asdict(config), resume, reporter, {"seed": config.seed}) as job:
        journal = Journal(out / "imagined.jsonl")
        with writer(config.imagine, config.solver) as policy:
            kept = imagine_questions(problems, config.imagine, policy, held_out, problems, journal, config.seed, reporter)
        records = journal.read()
        found = counts(records)
        if not kept:
            raise DataError(
                f"none of {len(records)} candidates was kept ({found['refused']}); try other kinds or more questions"
            )
        answers = [{} if p.gold is None else {"answer": p.gold} for p in kept]
        Journal(out / "questions.jsonl").write(
            {"id": p.id, "question": p.question, **answer} for p, answer in zip(kept, answers, strict=True)
        )
        tokens = spent(records).generated_tokens
        report = {"questions": len(problems), "held_out": len(held_out), **found, "generated_tokens": tokens}
        job.write_report(report)
    return report


@contextmanager
def writer(config: ImagineConfig, solver: SolverConfig) -> Iterator[LMPolicy | None]:
    """The policy that writes the kinds which need a model, loaded for as long as the block lasts; None: no kind does."""
    if not config.asks_a_model:
        yield None
        return
    model = solver.engine.model if config.model is None else config.model
    plain = replace(solver, engine=replace(solver.engine, model=model), critics=CriticsConfig(), rollout_model=None)
    with Solver(plain) as loaded:
        yield loaded.policy


def summary_text(report: dict[str, Any], out: Path) -> str:
    """The report in two lines."""
    made, kept = sum(report["candidates"].values()), report["kept"]
    shown = ", ".join(f"{n} {kind}" for kind, n in kept.items())
    refused = ", ".join(f"{n} {reason}" for reason, n in report["refused"].items()) or "none"
    return f"{out}/questions.jsonl: {sum(kept.values())} of {made} candidates kept ({shown})\nrefused: {refused}"
