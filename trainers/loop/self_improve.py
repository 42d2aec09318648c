"""The self-improvement loop: search, learn from the trees, and keep what is not worse.

    round 0: evaluate the start
    round k: choose questions (fresh, revisited, imagined, unlabelled) -> search -> trees -> rows
             -> value model, PRM, ORM -> policy -> evaluate on held-out training questions -> gate -> round k + 1
    at last: test questions, where asked for, with every round's models; the report

Each stage leaves its result in the run directory and is skipped when it is there, so a killed run resumes where it was.
Only mechanics are here: searches, losses, rows, file names and who does a stage (`stages`) have their own modules.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llm_mcts.evaluate import solve_into
from llm_mcts.policy import LMPolicy
from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.runs.provenance import hash_model, hash_problems
from llm_mcts.runs.stages import StageName
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import SolverConfig
from llm_mcts.tasks.base import require_answers
from llm_mcts.tasks.guard import GuardedTask
from llm_mcts.types import Problem, Usage
from trainers.fit.processes import is_main_process
from trainers.fit.tracking import check_tracking
from trainers.loop.config import SelfImproveConfig
from trainers.loop.gate import GateDecision, decide, should_stop
from trainers.loop.questions import Questions, chosen_questions, question_row
from trainers.loop.rows import rows_message, write_rows
from trainers.loop.solvers import LoadedSolver
from trainers.loop.stages import Facts, Round, Stage, StageRunner
from trainers.loop.training import Training, training_message
from trainers.questions.imagine.command import writer
from trainers.questions.imagine.imagine import counts, spent
from trainers.report.report import write_reports

__all__ = ["SelfImproveConfig", "self_improve"]

HOW_MUCH_AT_ONCE = ("concurrency", "solver.engine.max_batch", "solver.engine.cache_mb")
"""Settings that may have other values when a run that was short of memory resumes: its results do not depend on them."""


def self_improve(
    config: SelfImproveConfig, out: Path, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the loop in directory `out`; return the report, which `report.json` has too.

    Under `accelerate launch` every process calls it alike, with `out` on a disk that all of them see; the report is the first
    one's, the others return an empty one.

    Raises:
        ConfigError: `out` holds another run, or this one without `resume`.
        DataError: the questions are other ones than when the run was started.
    """
    if not is_main_process():
        Loop(config, RunDirectory(out), Reporter(quiet=True)).rounds()
        return {}
    with (
        RunDirectory.open(out, asdict(config), resume, free=HOW_MUCH_AT_ONCE) as run,
        closing(Loop(config, run, reporter or Reporter(quiet=True))) as loop,
    ):
        return loop.run()


class Loop:
    """A run in progress."""

    def __init__(self, config: SelfImproveConfig, run: RunDirectory, reporter: Reporter) -> None:
        self.config, self.directory, self.reporter = config, run, reporter
        self.task = GuardedTask(config.task.build())
        self.held_out = self.task.load("dev", config.eval_questions)
        self.questions = Questions(config, self.task, run, reporter)
        self.training = Training(config, run, self.task)
        self.solvers = LoadedSolver()
        self.once = StageRunner(reporter).once

    def run(self) -> dict[str, Any]:
        """All rounds, then the test and the report."""
        started = time.perf_counter()
        self._begin()
        self._test(self.rounds())
        report = write_reports(self.directory)
        seconds = time.perf_counter() - started
        self.reporter.say(f"{seconds:.0f} s in this process; the report is in {self.directory.path}/report.html")
        return report

    def close(self) -> None:
        """Free what the models occupy."""
        self.solvers.close()

    def rounds(self) -> list[Round]:
        """The start and every round. Processes other than the first one take part in its trainings, and else wait for it."""
        models = self.config.solver
        incumbent = Round(0, self.directory.round(0), models)
        self.once(Stage("evaluate", self._evaluate), incumbent)
        rounds, decisions = [incumbent], []
        for number in range(1, self.config.num_rounds + 1):
            current = Round(number, self.directory.round(number), models)
            for stage in self.stages():
                self.once(stage, current)
            chosen_questions(current.files)  # both raise where what a finished stage left is gone
            candidate = self.training.models(current)
            rounds.append(current)
            decisions.append(self.gate(incumbent, current))
            if decisions[-1].accepted:
                incumbent, models = current, candidate
            if reason := should_stop(decisions, self.config.gate):
                self.reporter.say(f"stopped after round {number}: {reason}")
                if is_main_process():
                    current.files.note("stop", {"reason": reason})
                break
        return rounds

    def stages(self) -> list[Stage]:
        """A round up to its gate."""
        rows = partial(write_rows, config=self.config, task=self.task)
        train: dict[StageName, Callable[[Round], Facts]] = {
            kind: partial(self.training.critic, kind) for kind in self.training.critics
        }
        train["policy"] = self.training.policy
        return [
            *([Stage("imagine", self._imagine)] if self.config.imagined_questions else []),
            Stage("questions", self._choose),
            Stage("search", self._search),
            Stage("rows", rows, rows_message),
            *(Stage(name, run, partial(training_message, name), together=True) for name, run in train.items()),
            Stage("evaluate", self._evaluate),
        ]

    def gate(self, incumbent: Round, current: Round) -> GateDecision:
        """Accept a round unless it is worse on the held-out questions than the incumbent."""

        def compare(current: Round) -> Facts:
            return decide(self._records(incumbent), self._records(current), self.config.gate).to_dict()

        decision = GateDecision.from_dict(self.once(Stage("gate", compare), current))
        self.reporter.say(f"{current.name} gate: {'accepted' if decision.accepted else 'REJECTED'} ({decision.reason})")
        return decision

    # Before the first round

    def _begin(self) -> None:
        """Write what the run is made from, refusing other questions or models than it began with; find other errors now."""
        data = {"train": hash_problems(self.questions.pool), "dev": hash_problems(self.held_out)}
        solver = self.config.solver
        critics = solver.critics
        models = {"policy": solver.engine.model, "value": critics.value, "prm": critics.prm, "orm": critics.orm}
        parents = {name: hash_model(model) for name, model in models.items() if model}
        self.directory.write_manifest({"seed": self.config.seed, "data": data, "parents": parents})
        self.questions.refuse_known()
        require_answers(self.held_out, "of split dev")
        self.questions.check_unlabelled()
        for kind in (*self.config.critics, "policy"):
            check_tracking(getattr(self.config, kind).tracking)
        start = self.directory.round(0)
        if not start.questions.complete:
            start.questions.write(question_row(problem, "held-out") for problem in self.held_out)

    # Stages

    def _imagine(self, current: Round) -> Facts:
        """New questions made of this round's."""
        with self._writer(current.start) as policy:
            self.questions.imagine(current.number, current.files.imagined, policy)
        candidates = current.files.imagined.whole()
        cost = {"usage": asdict(spent(candidates))} if self.config.imagine.asks_a_model else {}
        return counts(candidates) | cost

    @contextmanager
    def _writer(self, models: SolverConfig) -> Iterator[LMPolicy | None]:
        """What writes imagined questions: the policy, or another model where one is named; None where rules do."""
        imagine = self.config.imagine
        if imagine.asks_a_model and imagine.model is None:
            yield self.solvers.of(models).policy
        else:
            with writer(imagine, models) as policy:
                yield policy

    def _choose(self, current: Round) -> Facts:
        """What this round searches."""
        chosen = self.questions.choose(current.number, current.files.imagined)
        current.files.questions.write(question_row(one.problem, one.source, one.pass_rate) for one in chosen)
        return dict(Counter(one.source for one in chosen))

    def _search(self, current: Round) -> Facts:
        """A tree for every question."""
        problems = [chosen.problem for chosen in chosen_questions(current.files)]
        seed = derive_seed(self.config.seed, "search", current.number)
        models, title = current.start, f"round {current.number} search"
        records = self._solve(current.files.trees, models, seed, models.search, problems, title, keep_trees=True)
        return {"questions": len(records), "usage": _usage(records)}

    def _evaluate(self, current: Round) -> Facts:
        """Every method on the held-out questions."""
        return self._answer("evaluate", current, current.files.evaluation, self.held_out)

    def _test(self, rounds: Sequence[Round]) -> None:
        """The last stage: test questions, read here for the first time, with the models of every round."""
        if not self.config.test_questions:
            return
        self.task.open_test()
        problems = self.task.load("test", self.config.test_questions)
        require_answers(problems, "of split test")
        asked = [(problem, "held-out") for problem in self.held_out] + [(problem, "test") for problem in problems]
        self.directory.round(0).questions.write(question_row(problem, source) for problem, source in asked)
        for current in rounds:
            self.once(Stage("test", lambda done: self._answer("test", done, done.files.test, problems)), current)

    # Answers

    def _answer(self, name: StageName, current: Round, journal: Callable[[str], Journal], problems: Sequence[Problem]) -> Facts:
        """Every method's answers with the models that a round ends with, a journal for each."""
        models, seed = self.training.models(current), derive_seed(self.config.seed, name)
        records = []
        for label, search in self.config.methods.items():
            records += self._solve(journal(label), models, seed, search, problems, f"{current.name} {name} {label}")
        return {"usage": _usage(records)}

    def _solve(
        self,
        journal: Journal,
        models: SolverConfig,
        seed: int,
        search: str | Mapping[str, Any],
        problems: Sequence[Problem],
        title: str,
        keep_trees: bool = False,
    ) -> list[Record]:
        """Solve what the journal does not have yet, then complete it."""
        solve = partial(self.solvers.of(models).asolve, search=search, seed=seed)
        return solve_into(journal, problems, solve, self.task.check, self.config.concurrency, self.reporter, title, keep_trees)

    def _records(self, current: Round) -> dict[str, list[Record]]:
        """What every method answered on the held-out questions."""
        return {
            label: [Record.from_dict(row) for row in current.files.evaluation(label).whole()] for label in self.config.methods
        }


def _usage(records: Sequence[Record]) -> dict[str, Any]:
    """What all records cost together."""
    total = Usage()
    for record in records:
        total += record.usage
    return asdict(total)
