"""`llm-mcts label`: automatic labels for a task's training questions; `llm-mcts train` takes them.

    outcome        sample solutions and check their answers: rows for value, orm and genrm
    math_shepherd  sample solutions, complete every prefix of each (arXiv 2312.08935)
    omega_prm      binary search for the first wrong steps of a pool of wrong completions (arXiv 2406.06592)
    tree           the share of right solutions below each step of trees that a search left behind: nothing is sampled

    OUT/config.yaml  questions.jsonl (a record a question)  report.json
    OUT/prm.jsonl (labels of steps) or solutions.jsonl (labels of solutions)

Gold answers decide which completions are right, so questions of the test split are refused.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.runner import Record, attempt
from llm_mcts.runs.job import open_job
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.runs.trees import load_tree
from llm_mcts.search.contracts import completions
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.base import StepTask, Task, require_answers
from llm_mcts.tree import Tree
from llm_mcts.types import Policy, Problem, State, Usage, meter
from trainers.data.config import RowsConfig
from trainers.data.critic_rows import balanced, critic_rows
from trainers.data.evidence import Evidence
from trainers.data.rows import SolutionRow, StepRow, row_to_dict
from trainers.labels.step_labels import Labeller, OmegaConfig, math_shepherd, omega_prm

log = logging.getLogger(__name__)

Method = Literal["outcome", "math_shepherd", "omega_prm", "tree"]
METHODS: tuple[Method, ...] = ("outcome", "math_shepherd", "omega_prm", "tree")


@dataclass(frozen=True)
class LabelConfig(Settings):
    """Which questions are labelled, and how."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy that writes solutions and completions; its search and critics are not used."""
    method: Method = "math_shepherd"
    """outcome, math_shepherd, omega_prm or tree."""
    split: str = "train"
    """Split of the task; never test."""
    num_questions: Annotated[int, AtLeast(1)] = 200
    """How many questions."""
    num_solutions: Annotated[int, AtLeast(1)] = 4
    """outcome, math_shepherd: solutions sampled per question; equal ones are labelled once. OVM: 100."""
    balance: bool = False
    """outcome: keep at most rows.critic_per_question solutions of a question, half of them right where there are enough of
    both; false: keep all."""
    num_completions: Annotated[int, AtLeast(1)] = 8
    """Completions of a prefix. Math-Shepherd and OmegaPRM: 8."""
    hard: bool = False
    """math_shepherd: label 1 where any completion is right, else 0, in place of the share of right ones."""
    omega: OmegaConfig = field(default_factory=OmegaConfig)
    """omega_prm: its search over completions."""
    trees: str | None = None
    """tree: the trees of a run (RUN/round_001/trees.jsonl.gz), or one tree that solve --tree saved."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    """tree, and outcome with balance: how many solutions of a question become rows (critic_per_question)."""
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Questions labelled at once."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == "test":
            raise ConfigError("split is 'test'; expected train: what is trained on test questions cannot be tested on them")
        if self.balance and self.method != "outcome":
            raise ConfigError(f"balance is true and method is '{self.method}'; expected it with outcome alone")
        if (self.method == "tree") != (self.trees is not None):
            raise ConfigError(
                f"method is '{self.method}' and trees is {self.trees!r}; expected a file with tree, and only there"
            )


Found = tuple[Sequence[StepRow | SolutionRow], int]
"""A question's rows, and how many completions they took."""


def rows_file(method: Method) -> str:
    """The name of the file that holds the rows."""
    return "solutions.jsonl" if method == "outcome" else "prm.jsonl"


def _labels(row: Mapping[str, Any]) -> list[float]:
    """The labels that a row of either type holds."""
    return [x for x in row["labels"] if x is not None] if "labels" in row else [row["label"]]


def label(config: LabelConfig, out: Path, resume: bool = False, reporter: Reporter | None = None) -> dict[str, Any]:
    """Label the questions into folder `out`; return the report that also stands in `report.json`.

    A question that fails is a record with its error, and the others go on.

    Raises:
        ConfigError: `out` holds other labels, or these without `resume`.
        DataError: questions without answers, trees of other questions, or no label at all.
    """
    reporter = reporter or Reporter(quiet=True)
    task = config.task.build()
    problems = task.load(config.split, config.num_questions)
    require_answers(problems, f"of split {config.split}")
    with ExitStack() as held:
        if config.trees is not None:
            trees = _read_trees(Path(config.trees), problems)
            problems = [p for p in problems if p.id in trees]
            work = _from_trees(trees, task, config)
        else:
            solver = held.enter_context(Solver(replace(config.solver, critics=CriticsConfig())))
            work = _by_completions(solver.policy, task, config)
        job = held.enter_context(open_job(out, asdict(config), resume, reporter, {"seed": config.seed}))
        title = f"labels by {config.method}"
        records = job.each_question("questions.jsonl", problems, partial(_label_one, work=work), config.concurrency, title)
        rows = [{"id": f"{r['id']}/{i}", **row} for r in records for i, row in enumerate(r["rows"])]
        if not rows:
            why = next((f"; question {r['id']}: {r['error']}" for r in records if r["error"]), "")
            raise DataError(f"none of {len(records)} questions gave a label{why}; try more questions, or easier ones")
        Journal(out / rows_file(config.method)).write(rows)
        report = summary(config.method, records) | {"agreement_with_truth": _agreement(records, problems, task)}
        job.write_report(report)
    return report


def summary(method: Method, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and costs. Of trees, the cost is what their search had cost: labels from them add nothing."""
    labels = [x for r in records for row in r["rows"] for x in _labels(row)]
    usage = Usage()
    for record in records:
        usage += Usage(**record["usage"])
    return {
        "method": method,
        "questions": len(records),
        "failed": sum(r["error"] is not None for r in records),
        "without_rows": sum(r["error"] is None and not r["rows"] for r in records),
        "rows": sum(len(r["rows"]) for r in records),
        "labels": len(labels),
        "mean_label": fmean(labels),
        "completions": sum(r["completions"] for r in records),
        "generated_tokens": usage.generated_tokens,
        "computed_tokens": usage.total_tokens,
        "tokens_per_label": usage.generated_tokens / len(labels),
        "computed_tokens_per_label": usage.total_tokens / len(labels),
    }


def _agreement(records: Sequence[Mapping[str, Any]], problems: Sequence[Problem], task: Task) -> float | None:
    """Share of the labels, up to each solution's first wrong step, that say what the task's own truth says (at least 0.5:
    right); None where the task does not tell."""
    if not isinstance(task, StepTask):
        return None
    by_id = {p.id: p for p in problems}
    agree = [
        (label >= 0.5) == right
        for record in records
        for row in record["rows"]
        if "labels" in row
        for label, right in zip(row["labels"], task.step_truth(by_id[record["id"]], row["steps"]), strict=True)
        if label is not None and right is not None
    ]
    return fmean(agree) if agree else None


def summary_text(report: Mapping[str, Any], out: Path) -> str:
    """The report in two or three lines."""
    r = report
    paid = " (the search had paid for them)" if r["method"] == "tree" else ""
    truth = r["agreement_with_truth"]
    agree = "" if truth is None else f"\n{100 * truth:.1f} % of them agree with the task's own truth about steps"
    return (
        f"{out}/{rows_file(r['method'])}: {r['labels']} labels (mean {r['mean_label']:.3f}) on {r['rows']} solutions of "
        f"{r['questions']} questions, {r['failed']} failed, {r['without_rows']} without labels\n"
        f"cost: {r['tokens_per_label']:.1f} tokens sampled and {r['computed_tokens_per_label']:.1f} computed a label; "
        f"{r['generated_tokens']} sampled{paid}, {r['completions']} completions{agree}"
    )


async def _label_one(problem: Problem, work: Callable[[Problem], Awaitable[Found]]) -> tuple[dict[str, Any], Record]:
    """One question's rows, completions and cost."""
    found, error, usage = await attempt(problem, lambda: work(problem))
    rows, count = found or ((), 0)
    made = [row_to_dict(row) for row in rows]
    row = {"id": problem.id, "rows": made, "completions": count, "error": error, "usage": asdict(usage)}
    return row, Record(problem.id, error=error, usage=usage)


def _by_completions(policy: Policy, task: Task, config: LabelConfig) -> Callable[[Problem], Awaitable[Found]]:
    """Labels by completing prefixes."""

    async def work(problem: Problem) -> Found:
        labeller = Labeller(policy, task, problem, config.num_completions, config.seed)
        if config.method == "omega_prm":
            return await omega_prm(labeller, config.omega), labeller.completions
        seed = derive_seed(config.seed, problem.question, "solutions")
        solutions = await completions(policy, State(problem.question), config.num_solutions, seed)
        distinct = {end.text: end for end in solutions if end.answer is not None}
        if config.method == "outcome":
            return _outcomes(distinct.values(), labeller, config), len(solutions)
        rows: list[StepRow] = []
        for end in distinct.values():  # one after the other: a prefix that two share is completed once
            steps = tuple(step.text for step in end.steps)
            labels = await math_shepherd(labeller, steps, labeller.is_right(end), config.hard)
            rows.append(StepRow(problem.id, problem.question, steps, tuple(labels)))
        return rows, labeller.completions + len(solutions)

    return work


def _outcomes(ends: Iterable[State], labeller: Labeller, config: LabelConfig) -> list[SolutionRow]:
    """Solutions with their outcome; where they are to be balanced, right ones first."""
    problem = labeller.problem
    rows = [
        SolutionRow(problem.id, problem.question, tuple(step.text for step in end.steps), float(labeller.is_right(end)))
        for end in ends
    ]
    if not config.balance:
        return rows
    right, wrong = ([row for row in rows if row.label == label] for label in (1.0, 0.0))
    return balanced(right, wrong, config.rows.critic_per_question)


# Trees


@dataclass(frozen=True)
class Searched:
    """What a search left of one question."""

    tree: Tree | None
    error: str | None
    usage: Usage


def _from_trees(trees: Mapping[str, Searched], task: Task, config: LabelConfig) -> Callable[[Problem], Awaitable[Found]]:
    """Labels from saved trees; the search's cost is counted as theirs."""

    async def work(problem: Problem) -> Found:
        found = trees[problem.id]
        usage = meter()
        usage += found.usage
        if found.tree is None:
            raise DataError(f"its search left no tree ({found.error})")
        rows = critic_rows(Evidence.of(found.tree, problem, task), config.rows)["prm"]
        return [row for row in rows if isinstance(row, StepRow)], 0

    return work


def _read_trees(path: Path, problems: Sequence[Problem]) -> dict[str, Searched]:
    """The trees of a file by question's id.

    Raises:
        DataError: no tree, or one of a question that is not among the problems.
    """
    by_question = {p.question: p.id for p in problems}
    by_id = {p.id: p.question for p in problems}
    found: dict[str, Searched] = {}
    for name, one in _saved(path):
        id_ = by_question.get(one.tree.question) if one.tree else name
        if id_ is None or id_ not in by_id:
            raise DataError(
                f"{path} has a tree of question {name!r}, which is not among the first {len(problems)} of the split; "
                "expected trees of these questions, or more num_questions"
            )
        found[id_] = one
    if not found:
        raise DataError(f"{path} is not a saved tree; expected RUN/round_001/trees.jsonl.gz, or a tree that solve --tree saved")
    return found


def _saved(path: Path) -> list[tuple[str, Searched]]:
    """Every tree of a file with its name."""
    if path.name.endswith((".json", ".json.gz")):
        tree = load_tree(path)
        return [(tree.question, Searched(tree, None, tree.usage))]
    try:
        return [
            (row["id"], Searched(Tree.from_dict(row["tree"]) if "tree" in row else None, row["error"], Usage(**row["usage"])))
            for row in Journal(path).read()
        ]
    except (DataError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no trees ({error!r}); expected what a self-improvement run writes") from error
