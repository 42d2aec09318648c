"""`llm-mcts diagnose`: samples of a policy on held-out questions, judged by one or several critics."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from critics.base import AGGREGATES, ModelCritic
from critics.classifier import ClassifierCritic
from critics.combine import Combination, fit_combination
from critics.diagnostics import (
    Estimate,
    Group,
    Sample,
    agreement,
    any_of,
    auc,
    best_of,
    brier,
    calibration_error,
    mean_over,
    prefix_groups,
    reliability,
    verdict,
    voted,
    within_question_auc,
)
from critics.likelihood import LikelihoodCritic
from critics.modeling import CriticModel
from critics.public import PublicPRM, open_critic
from llm_mcts.engines.transformers import resolve_device
from llm_mcts.errors import ConfigError, DataError, LLMMCTSError, suggest
from llm_mcts.evaluate import check_label
from llm_mcts.progress import Reporter
from llm_mcts.runner import run_questions
from llm_mcts.solver import CriticsConfig, Solver, SolverConfig
from llm_mcts.store import Journal, RunDirectory, write_atomically
from llm_mcts.tasks import TaskConfig
from llm_mcts.types import Critic, SearchResult, State, Step


@dataclass(frozen=True)
class DiagnoseConfig:
    """On what critics are judged."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy that writes the solutions; its search and critics are not used."""
    split: str = "dev"
    """Split of the task: questions that no critic was trained on."""
    num_questions: int = 200
    """How many questions, at least 20."""
    num_samples: int = 16
    """Solutions a question, at least 2."""
    prm_aggregate: str = "min"
    """How a PRM's step scores become one: min (Math-Shepherd), last, mean or prod."""
    concurrency: int = 64
    """Questions sampled at once, at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("num_questions", 20), ("num_samples", 2), ("concurrency", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.prm_aggregate not in AGGREGATES:
            raise ConfigError(f"prm_aggregate is '{self.prm_aggregate}'{suggest(self.prm_aggregate, AGGREGATES)}")


@dataclass(frozen=True)
class Diagnosis:
    """What is known of one critic."""

    kind: str
    verdict: str
    auc_within: Estimate | None
    """AUC over pairs of one question: what a search needs."""
    auc_over_all: float | None
    """AUC over all samples; it also counts that easy questions have more right ones."""
    brier: float
    calibration_error: float
    reliability: list[dict[str, float]]
    by_n: dict[int, dict[str, Estimate]]
    """n -> share right of: best (by this critic), vote (weighted by it), majority, any (a perfect critic)."""
    prefixes: dict[int, Estimate]
    """steps -> AUC within questions of unfinished solutions of that many steps against their outcome."""


def diagnose(
    folders: Mapping[str, Path],
    config: DiagnoseConfig,
    reporter: Reporter,
    out: Path | None = None,
    resume: bool = False,
    fit: Path | None = None,
) -> dict[str, Any]:
    """Judge critic checkpoints by label, and the policy's own likelihood; with a folder, samples and a report are kept there.

    With `fit`, a learned sum of the critics and the likelihood is written to that file and judged as `combined`: on each half
    of the questions by the weights fitted on the other half.

    Raises:
        ModelError: a folder holds no critic.
        DataError: questions without answers.
    """
    for label in folders:
        check_label(label)
        if label in ("likelihood", "combined"):
            raise ConfigError(f"critic folder named '{label}', which the report uses itself; rename the folder")
    device = resolve_device("auto")
    models = {label: open_critic(folder, config.prm_aggregate) for label, folder in folders.items()}
    kinds = [model.kind for model in models.values()]
    if fit and len(set(kinds)) < len(kinds):
        raise ConfigError(
            f"two critics of one kind ({', '.join(kinds)}) with --fit; expected at most one value model, PRM and ORM"
        )
    solver = Solver(replace(config.solver, critics=CriticsConfig()))
    if out:
        RunDirectory.open(out, {**asdict(config), "critics": {k: str(v) for k, v in folders.items()}}, resume)
    rows = _sample(config, solver, reporter, Journal(out / "samples.jsonl") if out else None)
    states = [[_state(row["question"], s) for s in row["samples"]] for row in rows]
    diagnoses: dict[str, Diagnosis] = {}
    scored: dict[str, list[list[Sample]]] = {}
    for label, model in models.items():
        critic = ModelCritic(model.to(device), config.prm_aggregate) if isinstance(model, CriticModel) else model
        prefixes = asyncio.run(_scores(critic, states))
        scored[label] = _groups(rows, [[critic.aggregate(p[1:]) for p in found] for found in prefixes])
        diagnoses[label] = judge(model.kind, scored[label], prefixes)
        reporter.say(f"{label}: {diagnoses[label].verdict}")
    likelihood = LikelihoodCritic(solver.engine, solver.policy.prompt)
    scored["likelihood"] = _groups(rows, asyncio.run(_every(likelihood, states)))
    diagnoses["likelihood"] = judge("policy", scored["likelihood"])
    reporter.say(f"likelihood: {diagnoses['likelihood'].verdict}")
    if fit:
        named = {model.kind: scored[label] for label, model in models.items()} | {"likelihood": scored["likelihood"]}
        scored["combined"] = _cross_fitted(named, rows, config.prm_aggregate)
        _fit(named, list(range(len(rows))), config.prm_aggregate).save(fit)
        diagnoses["combined"] = judge("learned sum", scored["combined"])
        reporter.say(f"combined: {diagnoses['combined'].verdict}; its weights are in {fit}")
    agreements = {f"{a} and {b}": agreement(scored[a], scored[b]) for i, a in enumerate(scored) for b in list(scored)[i + 1 :]}
    report = {
        "questions": len(rows),
        "critics": {label: asdict(diagnosis) for label, diagnosis in diagnoses.items()},
        "agreement": {pair: asdict(found) if found else None for pair, found in agreements.items()},
        "markdown": to_markdown(diagnoses, agreements),
    }
    if out:
        plain = {key: value for key, value in report.items() if key != "markdown"}
        write_atomically(out / "report.json", json.dumps(plain, indent=2).encode() + b"\n")
        write_atomically(out / "report.md", str(report["markdown"]).encode())
        _plot(diagnoses, out / "reliability.png", reporter)
    return report


def _groups(rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]) -> list[list[Sample]]:
    """The samples with their scores. One that states no answer is worth 0 by definition, as in every search."""
    return [
        [
            Sample(score if s["answer"] is not None else 0.0, s["right"], s["answer"])
            for score, s in zip(found, row["samples"], strict=True)
        ]
        for found, row in zip(scores, rows, strict=True)
    ]


def _fit(named: Mapping[str, Sequence[Group]], questions: Sequence[int], prm_aggregate: str) -> Combination:
    """The learned sum on these questions' answered samples."""
    first = next(iter(named.values()))
    places = [(q, i) for q in questions for i, sample in enumerate(first[q]) if sample.answer is not None]
    scores = [{name: groups[q][i].score for name, groups in named.items()} for q, i in places]
    return fit_combination(scores, [first[q][i].right for q, i in places], prm_aggregate)


def _cross_fitted(
    named: Mapping[str, Sequence[Group]], rows: Sequence[Mapping[str, Any]], prm_aggregate: str
) -> list[list[Sample]]:
    """The learned sum's scores of each half of the questions by the weights of the other half."""
    halves = [list(range(0, len(rows), 2)), list(range(1, len(rows), 2))]
    fitted = [_fit(named, halves[1], prm_aggregate), _fit(named, halves[0], prm_aggregate)]
    scores = [
        [fitted[q % 2]({name: groups[q][i].score for name, groups in named.items()}) for i in range(len(row["samples"]))]
        for q, row in enumerate(rows)
    ]
    return _groups(rows, scores)


def judge(kind: str, groups: Sequence[Group], prefixes: Sequence[Sequence[Sequence[float]]] = ()) -> Diagnosis:
    """All figures of one critic's scores; of unfinished solutions too where `prefixes` has their scores."""
    # What states no answer is worth 0 to every search; a critic earns nothing by ranking it last.
    answered = [[sample for sample in group if sample.answer is not None] for group in groups]
    everything = [sample for group in answered for sample in group]
    size = min(map(len, groups))
    numbers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < size] + [size]
    by_n = {
        n: {
            "best": mean_over(groups, lambda g, n=n: best_of(g, n)),  # type: ignore[misc]
            "vote": mean_over(groups, lambda g, n=n: voted(g, n, weighted=True)),  # type: ignore[misc]
            "majority": mean_over(groups, lambda g, n=n: voted(g, n, weighted=False)),  # type: ignore[misc]
            "any": mean_over(groups, lambda g, n=n: any_of(g, n)),  # type: ignore[misc]
        }
        for n in numbers
    }
    within = within_question_auc(answered)
    gain = mean_over(groups, lambda g: best_of(g, size) - voted(g, size, weighted=False))
    vote_gain = mean_over(groups, lambda g: voted(g, size, weighted=True) - voted(g, size, weighted=False))
    by_steps = {k: within_question_auc(found) for k, found in (prefix_groups(prefixes, groups) if prefixes else {}).items()}
    return Diagnosis(
        kind,
        verdict(within, gain, vote_gain, size),
        within,
        auc(everything),
        brier(everything),
        calibration_error(everything),
        [asdict(b) for b in reliability(everything)],
        by_n,
        {k: found for k, found in by_steps.items() if found},
    )


def _sample(config: DiagnoseConfig, solver: Solver, reporter: Reporter, journal: Journal | None) -> list[dict[str, Any]]:
    """For each question {"id", "question", "samples": [{"steps", "answer", "right"}]}; kept in the journal."""
    task = config.task.build()
    problems = {p.id: p for p in task.load(config.split, config.num_questions)}
    unlabelled = [p.id for p in problems.values() if p.gold is None]
    if unlabelled:
        raise DataError(f"question {unlabelled[0]} has no answer; expected one for every question")
    rows = {row["id"]: row for row in journal.read()} if journal else {}
    left = [p for p in problems.values() if p.id not in rows]
    failed: list[str] = []

    def on_done(record: Any, result: SearchResult | None) -> None:
        problem = problems[record.id]
        if result is None:
            failed.append(f"question {record.id}: {record.error}")
            return
        samples = []
        for trace in result.traces:
            answer, gold = trace.state.answer, problem.gold
            right = answer is not None and gold is not None and task.check(f"#### {answer}", gold)
            samples.append({"steps": [s.text for s in trace.state.steps], "answer": answer, "right": right})
        rows[record.id] = {"id": record.id, "question": problem.question, "samples": samples}
        if journal:
            journal.append(rows[record.id])

    if left:
        search = {"name": "self_consistency", "num_samples": config.num_samples, "num_parallel": config.num_samples}

        async def solve(question: str) -> SearchResult:
            return await solver.asolve(question, search)

        with reporter.stage("sampling", len(left)) as meter:
            asyncio.run(run_questions(left, solve, task.check, config.concurrency, on_done, meter))
    if failed:
        raise DataError(f"{len(failed)} questions could not be sampled, the first: {failed[0]}")
    if journal and not journal.complete:
        journal.finish(list(problems))
    return [rows[id_] for id_ in problems]


def _state(question: str, sample: Mapping[str, Any]) -> State:
    *before, last = sample["steps"]
    return State(question, (*(Step(text) for text in before), Step(last, terminal=True, answer=sample["answer"])))


async def _every(critic: Critic, states: Sequence[Sequence[State]]) -> list[list[float]]:
    return [await critic.score(group) for group in states]


async def _scores(
    critic: ModelCritic | PublicPRM | ClassifierCritic, states: Sequence[Sequence[State]]
) -> list[list[list[float]]]:
    """The scores of all prefixes; a solution that the critic cannot read is an error that names its question."""
    found = []
    for group in states:
        try:
            found.append(await critic.step_scores(group))
        except LLMMCTSError as error:
            raise DataError(f"question {group[0].question!r}: {error}") from error
    return found


def to_markdown(diagnoses: Mapping[str, Diagnosis], agreements: Mapping[str, Estimate | None]) -> str:
    """The report for people."""
    lines = []
    for label, d in diagnoses.items():
        over_all = "–" if d.auc_over_all is None else f"{d.auc_over_all:.3f}"
        lines += [
            f"## {label} ({d.kind})",
            "",
            f"**{d.verdict[0].upper()}{d.verdict[1:]}.**",
            "",
            f"- AUC within questions {d.auc_within or '–'}; over all samples {over_all} (flatters)",
            f"- Brier score {d.brier:.3f}, expected calibration error {d.calibration_error:.3f}",
            "",
            "| n | best by this critic | weighted vote | majority | any right |",
            "|---:|---|---|---|---|",
        ]
        for n, row in d.by_n.items():
            cells = (f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]" for e in row.values())
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
        if d.prefixes:
            lines += ["", "| steps written | AUC within questions against the outcome | questions |", "|---:|---|---:|"]
            lines += [f"| {k} | {found} | {found.questions} |" for k, found in d.prefixes.items()]
        lines.append("")
    if agreements:
        lines += ["## Agreement", "", "Share of the pairs of one question that two critics order alike:", ""]
        lines += [f"- {pair}: {found or '–'}" for pair, found in agreements.items()]
        lines.append("")
    return "\n".join(lines)


def _plot(diagnoses: Mapping[str, Diagnosis], path: Path, reporter: Reporter) -> None:
    """Reliability: share right against score, one line a critic."""
    try:
        import matplotlib
    except ImportError:
        reporter.say(f"{path.name} is left out: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 5.5))
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for label, d in diagnoses.items():
        x, y = [b["score"] for b in d.reliability], [b["right"] for b in d.reliability]
        axis.plot(x, y, marker="o", markersize=4, label=f"{label} (error {d.calibration_error:.2f})")
    axis.set(xlabel="score", ylabel="share right", xlim=(0, 1), ylim=(0, 1), title="Reliability")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
