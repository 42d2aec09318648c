"""The self-improvement loop: search, learn from the trees, and keep what is not worse.

    round 0: evaluate the start
    round k: search training questions -> trees -> rows -> value model, PRM, ORM -> policy (SFT)
             -> evaluate both on held-out training questions -> gate -> round k + 1

Each stage leaves its result in the run directory and is skipped when it is there, so a killed run goes on where it was.
Only mechanics live here: searches, losses, rows and file names have their own modules.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from critics.modeling import KINDS, HeadConfig, Kind
from llm_mcts.engines.base import Swaps
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.evaluate import PairedDifference, Score, check_methods, paired_difference, solve_into, to_markdown
from llm_mcts.progress import Reporter
from llm_mcts.runner import Record
from llm_mcts.seeding import derive_seed
from llm_mcts.solver import Solver, SolverConfig
from llm_mcts.store import Journal, RoundDirectory, RunDirectory, versions
from llm_mcts.tasks import TaskConfig
from llm_mcts.tree import Tree
from llm_mcts.types import Problem
from trainers.base import TrainConfig
from trainers.critic import train_critic
from trainers.datasets import RowsConfig, row_from_dict, row_to_dict, rows_from_tree
from trainers.objectives import CriticLossConfig
from trainers.sft import train_sft


@dataclass(frozen=True)
class GateConfig:
    """When a round's policy and critics replace the former ones."""

    tolerance: float = 0.02
    """No method's held-out accuracy may fall by more than this, and their mean may not fall at all; in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"gate.tolerance is {self.tolerance}; expected within [0, 1]")


@dataclass(frozen=True)
class SelfImproveConfig:
    """A self-improvement run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy to start from, and the search that gathers trajectories."""
    num_rounds: int = 2
    """Rounds of search and training, at least 1."""
    train_questions: int = 200
    """Training questions searched per round, new ones each round while there are any; at least 1."""
    eval_questions: int = 200
    """Held-out training questions (split `dev`) that every method answers before and after each round."""
    methods: dict[str, Any] = field(default_factory=lambda: {"greedy": "greedy", "mcts": "mcts"})
    """What is evaluated: a label for each search with its settings."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    """The new critics' heads."""
    critic_loss: CriticLossConfig = field(default_factory=CriticLossConfig)
    """What the critics learn, and so which rows are made of the trees."""
    value: TrainConfig = field(default_factory=TrainConfig)
    prm: TrainConfig = field(default_factory=TrainConfig)
    orm: TrainConfig = field(default_factory=TrainConfig)
    sft: TrainConfig = field(default_factory=TrainConfig)
    critics: tuple[str, ...] = KINDS
    """Which critics are trained: any of value, prm, orm."""
    gate: GateConfig = field(default_factory=GateConfig)
    concurrency: int = 64
    """Questions searched at once, at least 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_rounds", "train_questions", "eval_questions", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.methods:
            raise ConfigError("methods is empty; expected a label for each search, such as greedy: greedy")
        check_methods(self.methods)
        if self.solver.engine.name == "openai":
            raise ConfigError(
                "solver.engine.name is 'openai', whose servers do not get the weights that are trained; "
                "expected transformers, vllm or openvino"
            )
        fixed = self.solver.critics
        if self.critics and fixed.calibration:
            raise ConfigError(
                f"solver.critics.calibration is {fixed.calibration} and the critics ({', '.join(self.critics)}) are "
                "trained anew each round; drop it, and calibrate the last round's"
            )
        if "value" in self.critics and fixed.rollouts:
            raise ConfigError(
                f"solver.critics.rollouts is {fixed.rollouts} and a value model, whose place they take, is trained; drop one"
            )
        if unknown := set(self.critics) - set(KINDS):
            raise ConfigError(f"critics holds {', '.join(sorted(unknown))}; expected any of {', '.join(KINDS)}")
        if "value" in self.critics and self.critic_loss.value.asks_the_model and not self.solver.critics.value:
            raise ConfigError(
                "critic_loss.value.estimate is 'model', and the run starts without a value model; name one in "
                "solver.critics.value, or use estimate: tree"
            )


def self_improve(
    config: SelfImproveConfig, out: Path, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the loop in directory `out`; return the report that also stands in `report.json`.

    Raises:
        ConfigError: `out` holds another run, or this one without `resume`.
    """
    run = RunDirectory.open(out, asdict(config), resume)
    run.write_manifest({"versions": versions(), "seed": config.seed})
    with closing(_Loop(config, run, reporter or Reporter(quiet=True))) as loop:
        return loop.run()


class _Loop:
    """A run under way."""

    def __init__(self, config: SelfImproveConfig, run: RunDirectory, reporter: Reporter) -> None:
        self.config, self.directory, self.reporter = config, run, reporter
        self.task = config.task.build()
        self.held_out = self.task.load("dev", config.eval_questions)
        self.models = config.solver
        """The solver configuration that stands: its policy and critics passed the gate."""
        self._loaded: tuple[SolverConfig, Solver] | None = None

    def run(self) -> dict[str, Any]:
        """All rounds, then the report."""
        started = time.perf_counter()
        self._evaluate(self.directory.round(0), self.models)
        for number in range(1, self.config.num_rounds + 1):
            self._round(number)
        report = self._report()
        seconds = time.perf_counter() - started
        self.reporter.say(f"{seconds:.0f} s in this process; the report is in {self.directory.path}/report.md")
        return report

    def _round(self, number: int) -> None:
        here = self.directory.round(number)
        problems = self._training_problems(number)
        self._search(here, number, problems)
        self._rows(here, problems)
        candidate = self._train(here, number)
        self._evaluate(here, candidate)
        if self._gate(here, number):
            self.models = candidate

    def _training_problems(self, number: int) -> list[Problem]:
        """This round's questions: the next ones of the training split, from the start again when it is used up."""
        n = self.config.train_questions
        pool = self.task.load("train", n * self.config.num_rounds)
        unlabelled = [p.id for p in pool if p.gold is None]
        if unlabelled:
            raise DataError(f"training question {unlabelled[0]} has no answer; expected one for every training question")
        start = (number - 1) * n
        return [pool[(start + i) % len(pool)] for i in range(min(n, len(pool)))]

    def _solver(self, models: SolverConfig) -> Solver:
        """The solver of `models`, loaded once. An engine that can take over another checkpoint does; others are closed."""
        if self._loaded is not None and self._loaded[0] != models:
            former, solver = self._loaded
            self._loaded = None
            if isinstance(solver.engine, Swaps) and replace(former.engine, model=models.engine.model) == models.engine:
                asyncio.run(solver.engine.swap(models.engine.model))
                self._loaded = (models, Solver(models, engine=solver.engine))
            else:
                solver.close()
        if self._loaded is None:
            self._loaded = (models, Solver(models))
        return self._loaded[1]

    def close(self) -> None:
        """Give back what the models hold."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def _search(self, here: RoundDirectory, number: int, problems: list[Problem]) -> None:
        """Stage 1: a tree for every training question."""
        if here.trees.complete:
            return
        seed = derive_seed(self.config.seed, "search", number)
        self._solve_into(here.trees, replace(self.models, seed=seed), self.models.search, problems, f"round {number} search")

    def _evaluate(self, here: RoundDirectory, models: SolverConfig) -> None:
        """Every method on the held-out questions."""
        seed = derive_seed(self.config.seed, "evaluate")
        for label, search in self.config.methods.items():
            if not here.evaluation(label).complete:
                title = f"{here.path.name} evaluate {label}"
                self._solve_into(here.evaluation(label), replace(models, seed=seed), search, self.held_out, title)

    def _solve_into(
        self, journal: Journal, models: SolverConfig, search: str | Mapping[str, Any], problems: list[Problem], title: str
    ) -> None:
        """Solve what the journal does not hold yet, then complete it."""
        solve = partial(self._solver(replace(models, seed=0)).asolve, search=search, seed=models.seed)
        keep_trees = journal.path.name.startswith("trees")
        solve_into(journal, problems, solve, self.task.check, self.config.concurrency, self.reporter, title, keep_trees)

    def _rows(self, here: RoundDirectory, problems: list[Problem]) -> None:
        """Stage 2: trees become the trainers' rows."""
        if here.metric("rows"):
            return
        gold = {p.id: p for p in problems}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("sft", *KINDS)}
        searched = [record for record in here.trees.read() if "tree" in record]
        for record in searched:
            problem = gold[record["id"]]
            tree = Tree.from_dict(record["tree"])
            made = rows_from_tree(tree, problem, self.task, self.config.rows, self.config.critic_loss)
            for name, found in made.items():
                rows[name].extend({"id": f"{problem.id}/{i}", **row_to_dict(row)} for i, row in enumerate(found))
        for name, found_rows in rows.items():
            here.rows(name).write(found_rows)
        solved = len({row["problem"] for row in rows["sft"]})
        counts = {name: len(found_rows) for name, found_rows in rows.items()}
        here.note("rows", {"searched": len(searched), "failed": len(problems) - len(searched), "solved": solved, **counts})
        self.reporter.say(f"{here.path.name} rows: {solved} of {len(problems)} questions solved; {counts}")

    def _train(self, here: RoundDirectory, number: int) -> SolverConfig:
        """Stages 3 and 4: critics, then the policy. Returns the candidate."""
        trained: dict[str, Any] = {
            kind: str(self._train_critic(here, number, kind)) for kind in KINDS if kind in self.config.critics
        }
        critics = replace(self.models.critics, **trained)
        policy = here.checkpoint("policy")
        if not here.metric("sft"):
            started = time.perf_counter()
            rows: Sequence[Any] = [row_from_dict(r) for r in here.rows("sft").read()]
            if not rows:
                raise DataError(f"{here.path} has no right solution to learn from; search more questions, or easier ones")
            seed = derive_seed(self.config.seed, "sft", number) % 2**31
            metrics = train_sft(rows, self.models.engine.model, policy, self.config.sft, self.models.prompt, seed)
            self._trained(here, "sft", metrics, started)
        return replace(self.models, engine=replace(self.models.engine, model=str(policy)), critics=critics)

    def _train_critic(self, here: RoundDirectory, number: int, kind: Kind) -> Path:
        folder = here.checkpoint(kind)
        if not here.metric(kind):
            started = time.perf_counter()
            rows: Sequence[Any] = [row_from_dict(r) for r in here.rows(kind).read()]
            start = getattr(self.models.critics, kind) or self.models.engine.model
            config: TrainConfig = getattr(self.config, kind)
            seed = derive_seed(self.config.seed, kind, number) % 2**31
            head, losses = self.config.head, self.config.critic_loss
            metrics = train_critic(kind, rows, start, folder, config, head, self.models.prompt, seed, losses)
            self._trained(here, kind, metrics, started)
        return folder

    def _trained(self, here: RoundDirectory, stage: str, metrics: Mapping[str, float], started: float) -> None:
        seconds = time.perf_counter() - started
        here.note(stage, {**metrics, "seconds": round(seconds, 1)})
        self.reporter.say(
            f"{here.path.name} train {stage}: {metrics['rows']} rows, loss {metrics['loss']:.4f}, {seconds:.0f} s"
        )

    def _gate(self, here: RoundDirectory, number: int) -> bool:
        """Accept the candidate unless it is worse on the held-out questions than what stands."""
        if not (verdict := here.metric("gate")):
            before = self._standing(number)
            changes = {label: self._compare(before, here, label) for label in self.config.methods}
            worst = min(change.difference for change in changes.values())
            mean = sum(change.difference for change in changes.values()) / len(changes)
            accepted = worst >= -self.config.gate.tolerance and mean >= 0
            verdict = {"accepted": accepted, **{label: str(change) for label, change in changes.items()}}
            here.note("gate", verdict)
        told = "; ".join(f"{label} {verdict[label]}" for label in self.config.methods)
        self.reporter.say(f"{here.path.name} gate: {'accepted' if verdict['accepted'] else 'REJECTED'} ({told})")
        return bool(verdict["accepted"])

    def _standing(self, number: int) -> RoundDirectory:
        """The last accepted round before `number`, or the start."""
        for earlier in range(number - 1, 0, -1):
            verdict = self.directory.round(earlier).metric("gate")
            if verdict and verdict["accepted"]:
                return self.directory.round(earlier)
        return self.directory.round(0)

    def _records(self, here: RoundDirectory, label: str) -> list[Record]:
        return [Record.from_dict(row) for row in here.evaluation(label).read()]

    def _compare(self, a: RoundDirectory, b: RoundDirectory, label: str) -> PairedDifference:
        return paired_difference(self._records(a, label), self._records(b, label))

    def _gains(self) -> dict[str, PairedDifference]:
        """What the accepted rounds brought, and how far the methods lie apart before and after them."""
        start, last = self.directory.round(0), self._standing(self.config.num_rounds + 1)
        first, *others = self.config.methods
        accepted = [] if last.path == start.path else [("last accepted round", last)]
        gains = {
            f"{label}: {when} against the start": self._compare(start, here, label)
            for label in self.config.methods
            for when, here in accepted
        }
        for when, here in [("the start", start), *accepted]:
            for other in others:
                pair = paired_difference(self._records(here, first), self._records(here, other))
                gains[f"{other} against {first}, {when}"] = pair
        return gains

    def _report(self) -> dict[str, Any]:
        """Accuracy by round and method, with intervals and paired differences."""
        rounds = [self.directory.round(i) for i in range(self.config.num_rounds + 1)]
        scores = [
            Score.of(f"round {i} {label}", self._records(here, label))
            for i, here in enumerate(rounds)
            for label in self.config.methods
        ]
        gains = self._gains()
        verdicts = [here.metric("gate") for here in rounds[1:]]
        lines = [f"- {name}: {gain}" for name, gain in gains.items()]
        lines += [f"- round {i}: {'accepted' if v and v['accepted'] else 'rejected'}" for i, v in enumerate(verdicts, 1)]
        markdown = (
            f"{to_markdown(scores)}\nPaired on the same {len(self.held_out)} held-out questions, 95 % intervals:\n\n"
            + "\n".join(lines)
            + "\n"
        )
        report = {
            "scores": [score.to_dict() for score in scores],
            "differences": {name: {**asdict(gain), "difference": gain.difference} for name, gain in gains.items()},
            "rounds": verdicts,
            "solver": asdict(self.models),
        }
        self.directory.write_report(report, markdown)
        return {**report, "markdown": markdown}
