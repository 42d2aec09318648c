"""`llm-mcts diagnose`: samples of a policy on held-out questions, judged by one or several critics.

scores   every critic's, and the policy's own likelihood: do they rank within questions, are they calibrated?
steps    of a PRM: does it find the first wrong step? By the task's own truth, or by a file of labelled solutions
fits     a learned sum of the critics, and calibrations: judged on questions that they were not fitted to
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from critics.assemble.loading import ROLES, StepCritic, load_critic
from critics.diagnosis.figures import (
    CalibrationCheck,
    Diagnosis,
    judge,
    plot_calibration,
    plot_reliability,
    to_markdown,
)
from critics.diagnosis.fits import Prefixes, calibrate, judge_sums, samples_of
from critics.metrics import Group, agreement
from critics.scoring.calibration import Method
from critics.scoring.likelihood import LikelihoodCritic
from critics.step_metrics import Labelled, StepCase, StepDiagnosis, judge_steps, truth_of_labels
from critics.step_metrics import to_markdown as steps_to_markdown
from llm_mcts.errors import ConfigError, DataError, LLMMCTSError
from llm_mcts.evaluate import check_label
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.runner import Record, solve_one
from llm_mcts.runs.job import Job, open_job
from llm_mcts.runs.progress import Reporter
from llm_mcts.settings import Aggregate, CriticsConfig, SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.base import StepTask, require_answers
from llm_mcts.types import Critic, Problem, State, Step

RESERVED = ("likelihood", "combined", "rank_average")
"""Labels that the report uses itself."""


@dataclass(frozen=True)
class DiagnoseConfig(Settings):
    """On what critics are judged."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy that writes the solutions; its search and critics are not used."""
    split: str = "dev"
    """Split of the task: questions that no critic was trained on."""
    num_questions: Annotated[int, AtLeast(20)] = 200
    """How many questions."""
    num_samples: Annotated[int, AtLeast(2)] = 16
    """Solutions per question."""
    prm_aggregate: Aggregate = "min"
    """How a PRM's step scores become one: min (Math-Shepherd), last, mean or prod."""
    calibration: Method = "platt"
    """The calibration that --calibrate saves: platt (scale and bias) or temperature (scale only). Both are reported."""
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Questions sampled at once."""


@dataclass(frozen=True)
class Requests:
    """What a diagnosis is asked for besides the report."""

    fit: Path | None = None
    """File for a learned sum of the critics and the likelihood."""
    calibrate: Path | None = None
    """File for the critics' calibrations."""
    labels: tuple[str, Sequence[Labelled]] | None = None
    """Where labelled solutions come from, and the solutions: what a PRM's steps are judged by in place of the task's truth."""


def diagnose(
    folders: Mapping[str, Path],
    config: DiagnoseConfig,
    reporter: Reporter,
    out: Path | None = None,
    resume: bool = False,
    requests: Requests | None = None,
) -> dict[str, Any]:
    """Judge critic checkpoints by label, and the policy's own likelihood; with a folder, samples and a report are kept there.

    With `requests.fit`, the learned sum is judged as `combined`: on each half of the questions by the weights fitted on the
    other half; and beside it, as `rank_average`, the mean of the critics' ranks, which needs no fit. Calibrations are judged
    the same way.

    Raises:
        ModelError: a folder is not a critic checkpoint.
        DataError: questions without answers.
    """
    requests = requests or Requests()
    critics = _load(folders, config, requests)
    settings = {**asdict(config), "critics": {label: str(place) for label, place in folders.items()}}
    with ExitStack() as loaded:
        solver = loaded.enter_context(Solver(replace(config.solver, critics=CriticsConfig())))  # before the folder is made
        with open_job(out, settings, resume, reporter, {"seed": config.solver.seed}) as job:
            with loaded.pop_all():
                rows = _sample(config, solver, job)
                likelihoods = asyncio.run(_every(LikelihoodCritic(solver.engine, solver.policy.prompt), _states(rows)))
            return _judge(rows, likelihoods, critics, folders, config, requests, job)


def _judge(
    rows: Sequence[Mapping[str, Any]],
    likelihoods: Sequence[Sequence[float]],
    critics: Mapping[str, StepCritic],
    folders: Mapping[str, Path],
    config: DiagnoseConfig,
    requests: Requests,
    job: Job,
) -> dict[str, Any]:
    """The critics' scores of the samples, and all that is made of them."""
    kinds = {label: ROLES[critic.kind] for label, critic in critics.items()}
    states = _states(rows)
    prefixes = {label: asyncio.run(_scores(critic, states)) for label, critic in critics.items()}
    scored = {
        label: samples_of(rows, [[critic.aggregate(p[1:] or p) for p in found] for found in prefixes[label]])
        for label, critic in critics.items()
    }
    diagnoses = {
        label: judge(kinds[label], scored[label], found if critics[label].kind != "genrm" else ())
        for label, found in prefixes.items()
    }
    scored["likelihood"] = samples_of(rows, likelihoods)
    diagnoses["likelihood"] = judge("policy", scored["likelihood"])
    if requests.fit:
        diagnoses |= judge_sums(kinds, scored, rows, config.prm_aggregate, requests.fit)
    for label, diagnosis in diagnoses.items():
        job.reporter.say(f"{label}: {diagnosis.verdict}")
    prms = {label: critic for label, critic in critics.items() if kinds[label] == "prm"}
    steps = {label: _judge_steps(critic, config, rows, prefixes[label], requests) for label, critic in prms.items()}
    checks = {}
    if requests.calibrate:
        checks = calibrate(folders, kinds, scored, prefixes, config.calibration, config.prm_aggregate, requests.calibrate)
    return _report(diagnoses, scored, steps, checks, config, job)


def _load(folders: Mapping[str, Path], config: DiagnoseConfig, requests: Requests) -> dict[str, StepCritic]:
    """The critics by label.

    Raises:
        ConfigError: a label or a combination of critics that cannot be reported or fitted.
    """
    for label in folders:
        check_label(label)
        if label in RESERVED:
            raise ConfigError(f"critic folder named '{label}', which the report uses itself; rename the folder")
    critics = {label: load_critic(folder, (), config.prm_aggregate) for label, folder in folders.items()}
    kinds = [ROLES[critic.kind] for critic in critics.values()]
    for option, asked in (("--fit", requests.fit), ("--calibrate", requests.calibrate)):
        if asked and len(set(kinds)) < len(kinds):
            raise ConfigError(
                f"two critics of one kind ({', '.join(kinds)}) with {option}; expected at most one value model, PRM and ORM"
            )
    if requests.labels and "prm" not in kinds:
        raise ConfigError(f"step labels and no PRM among the critics ({', '.join(kinds)}); name a PRM's folder")
    return critics


def _judge_steps(
    critic: StepCritic, config: DiagnoseConfig, rows: Sequence[Mapping[str, Any]], prefixes: Prefixes, requests: Requests
) -> StepDiagnosis | None:
    """A PRM's step scores against the labelled solutions, or the task's truth; None where there is neither."""
    if requests.labels:
        source, solutions = requests.labels
        by_question: dict[str, list[Labelled]] = {}
        for solution in solutions:
            by_question.setdefault(solution.question, []).append(solution)
        states = [[State(x.question, tuple(map(Step, x.steps))) for x in group] for group in by_question.values()]
        scores = asyncio.run(_scores(critic, states))
        truths = [[truth_of_labels(x.labels) for x in group] for group in by_question.values()]
        return judge_steps(_step_cases(scores, truths), f"the labels in {source}")
    task = config.task.build()
    if not isinstance(task, StepTask):
        return None
    problems = _problems(config)
    found = [[tuple(task.step_truth(problems[r["id"]], s["steps"])) for s in r["samples"]] for r in rows]
    return judge_steps(_step_cases(prefixes, found), f"the task's own truth ({task.name})")


def _step_cases(scores: Prefixes, truths: Sequence[Sequence[tuple[bool | None, ...]]]) -> list[list[StepCase]]:
    return [
        [StepCase(tuple(s[1:]), t) for s, t in zip(group, truth, strict=True)]
        for group, truth in zip(scores, truths, strict=True)
    ]


def _report(
    diagnoses: Mapping[str, Diagnosis],
    scored: Mapping[str, Sequence[Group]],
    steps: Mapping[str, StepDiagnosis | None],
    checks: Mapping[str, CalibrationCheck],
    config: DiagnoseConfig,
    job: Job,
) -> dict[str, Any]:
    agreements = {f"{a} and {b}": agreement(scored[a], scored[b]) for i, a in enumerate(scored) for b in list(scored)[i + 1 :]}
    no_truth = [
        "",
        f"Steps: the task '{config.task.name}' cannot say which are right; give labelled solutions with --labels FILE",
    ]
    step_sections = {label: steps_to_markdown(found) if found else no_truth for label, found in steps.items()}
    report = {
        "questions": len(next(iter(scored.values()))),
        "critics": {label: asdict(diagnosis) for label, diagnosis in diagnoses.items()},
        "steps": {label: asdict(found) if found else None for label, found in steps.items()},
        "calibration": {label: asdict(check) for label, check in checks.items()},
        "agreement": {pair: asdict(found) if found else None for pair, found in agreements.items()},
        "markdown": to_markdown(diagnoses, agreements, step_sections, checks),
    }
    job.write_report({key: value for key, value in report.items() if key != "markdown"})
    job.write("report.md", str(report["markdown"]))
    if job.out:
        plot_reliability(diagnoses, job.out / "reliability.png", job.reporter)
        if checks:
            plot_calibration(checks, job.out / "calibration.png", job.reporter)
    return report


def _states(rows: Sequence[Mapping[str, Any]]) -> list[list[State]]:
    return [[_state(row["question"], s) for s in row["samples"]] for row in rows]


def _problems(config: DiagnoseConfig) -> dict[str, Problem]:
    """The questions by id."""
    problems = config.task.build().load(config.split, config.num_questions)
    require_answers(problems, f"of split {config.split}")
    return {problem.id: problem for problem in problems}


def _sample(config: DiagnoseConfig, solver: Solver, job: Job) -> list[dict[str, Any]]:
    """For each question {"id", "question", "samples": [{"steps", "answer", "right"}]}; kept in the journal."""
    task, problems = config.task.build(), list(_problems(config).values())
    search = {"name": "self_consistency", "num_samples": config.num_samples, "num_parallel": config.num_samples}
    failed: list[str] = []

    async def work(problem: Problem) -> tuple[dict[str, Any] | None, Record]:
        record, result = await solve_one(problem, partial(solver.asolve, search=search), task.check)
        if result is None:
            failed.append(f"question {problem.id}: {record.error}")
            return None, record
        samples = []
        for trace in result.traces:
            answer, gold = trace.state.answer, problem.gold
            right = answer is not None and gold is not None and task.check(f"#### {answer}", gold)
            samples.append({"steps": [s.text for s in trace.state.steps], "answer": answer, "right": right})
        return {"id": problem.id, "question": problem.question, "samples": samples}, record

    rows = job.each_question("samples.jsonl", problems, work, config.concurrency, "sampling")
    if failed:
        raise DataError(f"{len(failed)} questions could not be sampled, the first: {failed[0]}")
    return rows


def _state(question: str, sample: Mapping[str, Any]) -> State:
    *before, last = sample["steps"]
    return State(question, (*(Step(text) for text in before), Step(last, terminal=True, answer=sample["answer"])))


async def _every(critic: Critic, states: Sequence[Sequence[State]]) -> list[list[float]]:
    return [await critic.score(group) for group in states]


async def _scores(critic: StepCritic, states: Sequence[Sequence[State]]) -> list[list[list[float]]]:
    """The scores of all prefixes; a solution that the critic cannot read is an error that names its question."""
    found = []
    for group in states:
        try:
            found.append(await critic.step_scores(group))
        except LLMMCTSError as error:
            raise DataError(f"question {group[0].question!r}: {error}") from error
    return found
