"""The self-improvement loop: search, learn from the trees, and keep what is not worse.

    round 0: evaluate the start
    round k: choose questions (fresh, revisited, imagined, unlabelled) -> search -> trees -> rows
             -> value model, PRM, ORM -> policy -> evaluate on held-out training questions -> gate -> round k + 1
    at last: test questions, where asked for, with every round's models; the report

Each stage leaves its result in the run directory and is skipped when it is there, so a killed run goes on where it was.
Under `accelerate launch` the processes train together; all else is the first one's, whose files the others wait for.
Only mechanics live here: searches, losses, rows and file names have their own modules.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from critics.kinds import KINDS, Kind
from llm_mcts.engines.base import Swaps
from llm_mcts.errors import DataError, ModelError
from llm_mcts.evaluate import solve_into
from llm_mcts.policy import LMPolicy
from llm_mcts.runner import Record
from llm_mcts.runs.directory import Journal, RoundDirectory, RunDirectory
from llm_mcts.runs.progress import Reporter
from llm_mcts.runs.provenance import hash_model, hash_problems
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks.base import require_answers
from llm_mcts.tasks.guard import GuardedTask
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Usage
from trainers.critic.registry import CRITIC_TRAINERS
from trainers.data.critic_rows import critic_rows
from trainers.data.evidence import Evidence
from trainers.data.rows import Row, row_from_dict, row_to_dict
from trainers.fit.fit import TrainCall
from trainers.fit.processes import is_main_process
from trainers.fit.tracking import check_tracking
from trainers.loop.config import SelfImproveConfig
from trainers.loop.gate import GateDecision, decide, should_stop
from trainers.loop.questions import Questions
from trainers.loop.replay import replayed, trajectories
from trainers.policy.registry import policy_rows, train_policy
from trainers.policy.trainer import PolicyCall
from trainers.questions.agreement import agreed_answer
from trainers.questions.curriculum import Chosen, Source
from trainers.questions.imagine.imagine import counts, spent
from trainers.report.report import write_reports

__all__ = ["SelfImproveConfig", "self_improve"]

_LOOK_AGAIN = 0.5  # seconds between two looks at the first process's files
HOW_MUCH_AT_ONCE = ("concurrency", "solver.engine.max_batch", "solver.engine.cache_mb")
"""Settings that a run that was short of memory may go on with at other values: its results do not depend on them."""


def self_improve(
    config: SelfImproveConfig, out: Path, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the loop in directory `out`; return the report that also stands in `report.json`.

    Under `accelerate launch` every process calls it alike, with `out` on a disk that all of them see; the report is the first
    one's, the others return an empty one.

    Raises:
        ConfigError: `out` holds another run, or this one without `resume`.
        DataError: the questions are other ones than when the run was started.
    """
    if not is_main_process():
        _Loop(config, RunDirectory(out), Reporter(quiet=True)).take_part()
        return {}
    with (
        RunDirectory.open(out, asdict(config), resume, free=HOW_MUCH_AT_ONCE) as run,
        closing(_Loop(config, run, reporter or Reporter(quiet=True))) as loop,
    ):
        return loop.run()


@dataclass(frozen=True)
class _Candidate:
    """A round and the models that it was evaluated with."""

    here: RoundDirectory
    models: SolverConfig


class _Loop:
    """A run under way."""

    def __init__(self, config: SelfImproveConfig, run: RunDirectory, reporter: Reporter) -> None:
        self.config, self.directory, self.reporter = config, run, reporter
        self.task = GuardedTask(config.task.build())
        self.held_out = self.task.load("dev", config.eval_questions)
        self.questions = Questions(config, self.task, run, reporter)
        self.models = config.solver
        """The solver configuration that stands: its policy and critics passed the gate."""
        self._loaded: tuple[SolverConfig, Solver] | None = None
        self._launcher = os.getppid()

    def run(self) -> dict[str, Any]:
        """All rounds, then the test and the report."""
        started = time.perf_counter()
        self._begin()
        candidates = self._rounds()
        self._test(candidates)
        report = write_reports(self.directory)
        seconds = time.perf_counter() - started
        self.reporter.say(f"{seconds:.0f} s in this process; the report is in {self.directory.path}/report.html")
        return report

    def take_part(self) -> None:
        """What a process beside the first one does: its share of every training."""
        self._rounds()

    def _rounds(self) -> list[_Candidate]:
        """The start and every round, each with its models."""
        standing = _Candidate(self.directory.round(0), self.models)
        self._evaluate(standing)
        candidates, verdicts = [standing], []
        for number in range(1, self.config.num_rounds + 1):
            candidate = self._round(number)
            verdict = self._gate(standing.here, candidate.here)
            candidates.append(candidate)
            verdicts.append(verdict)
            if verdict.accepted:
                standing, self.models = candidate, candidate.models
            if reason := should_stop(verdicts, self.config.gate):
                self.reporter.say(f"stopped after round {number}: {reason}")
                if is_main_process():
                    candidate.here.note("stop", {"reason": reason})
                break
        return candidates

    def _begin(self) -> None:
        """Say what the run is made from, and refuse to go on with other questions or models than it began with."""
        data = {"train": hash_problems(self.questions.pool), "dev": hash_problems(self.held_out)}
        solver = self.config.solver
        critics = solver.critics
        models = {"policy": solver.engine.model, "value": critics.value, "prm": critics.prm, "orm": critics.orm}
        parents = {name: hash_model(model) for name, model in models.items() if model}
        self.directory.write_manifest({"seed": self.config.seed, "data": data, "parents": parents})
        self._check_beforehand()
        start = self.directory.round(0)
        if not start.questions.complete:
            start.questions.write(_question_row(problem, "held-out", None) for problem in self.held_out)

    def _check_beforehand(self) -> None:
        """Find out now what would end the run hours later."""
        self.questions.refuse_known()
        require_answers(self.held_out, "of split dev")
        self.questions.check_unlabelled()
        for kind in (*self.config.critics, "policy"):
            check_tracking(getattr(self.config, kind).tracking)

    def _round(self, number: int) -> _Candidate:
        """All that a round does up to its gate."""
        here = self.directory.round(number)
        questions = self._questions(here, number)
        self._search(here, number, [chosen.problem for chosen in questions])
        self._rows(here, number, questions)
        trained = {kind: self._train_critic(here, number, kind) for kind in KINDS if kind in self.config.critics}
        places: dict[str, Any] = {kind: str(folder) for kind, folder in trained.items() if folder}
        critics = replace(self.models.critics, **places)
        models = self._train_policy(here, number, replace(self.models, critics=critics), questions)
        candidate = _Candidate(here, models)
        self._evaluate(candidate)
        return candidate

    # Questions

    def _questions(self, here: RoundDirectory, number: int) -> list[Chosen]:
        """Stage 1: what this round searches."""
        if not self._done(here, "questions"):
            with self._stage(here, "questions") as facts:
                chosen = self.questions.given(number)
                chosen += self._imagined(here, number, [one.problem for one in chosen])
                chosen += self.questions.unlabelled(number)
                here.questions.write(_question_row(one.problem, one.source, one.pass_rate) for one in chosen)
                facts |= Counter(one.source for one in chosen)
        return [
            Chosen(Problem(row["id"], row["question"], row["gold"]), row["source"], row["pass_rate"])
            for row in here.questions.whole()
        ]

    def _imagined(self, here: RoundDirectory, number: int, parents: list[Problem]) -> list[Chosen]:
        """New questions made of this round's."""
        if not self.config.imagined_questions:
            return []
        with self._stage(here, "imagine") as facts, self._writer() as policy:
            made = self.questions.imagined(here, number, parents, policy)
            candidates = here.imagined.read()
            facts |= counts(candidates)
            if policy:
                facts["usage"] = asdict(spent(candidates))
        return made

    @contextmanager
    def _writer(self) -> Iterator[LMPolicy | None]:
        """What writes imagined questions: another model where one is named, else the policy; None where rules do."""
        imagine = self.config.imagine
        if not imagine.asks_a_model:
            yield None
        elif imagine.model is None:
            yield self._solver(self.models).policy
        else:
            with Solver(replace(self.models, engine=replace(self.models.engine, model=imagine.model))) as solver:
                yield solver.policy

    # Search and rows

    def _search(self, here: RoundDirectory, number: int, problems: list[Problem]) -> None:
        """Stage 2: a tree for every question."""
        if self._done(here, "search"):
            return
        seed = derive_seed(self.config.seed, "search", number)
        with self._stage(here, "search") as facts:
            title = f"round {number} search"
            records = self._solve_into(here.trees, self.models, seed, self.models.search, problems, title)
            facts |= {"questions": len(records), "usage": _usage(records)}

    def _rows(self, here: RoundDirectory, number: int, questions: Sequence[Chosen]) -> None:
        """Stage 3: trees become the trainers' rows."""
        if self._done(here, "rows"):
            return
        with self._stage(here, "rows") as facts:
            by_id = {chosen.problem.id: chosen for chosen in questions}
            names = ("policy", *KINDS, "trajectories")
            rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            refused: Counter[str] = Counter()
            searched = [record for record in here.trees.whole() if "tree" in record]
            for record in searched:
                chosen, tree = by_id[record["id"]], Tree.from_dict(record["tree"])
                problem, reason = self._with_answer(chosen.problem, tree)
                if reason:
                    refused[reason] += 1
                    continue
                origin = {"round": number, "policy": self.models.engine.model, "source": chosen.source}
                made, why = self._rows_of(Evidence.of(tree, problem, self.task), number, chosen.source)
                refused.update(why)
                for name, of_trainer in made.items():
                    rows[name].extend({"id": f"{problem.id}/{i}", **row, **origin} for i, row in enumerate(of_trainer))
            for name in names:
                here.rows(name).write(rows[name])
            facts |= {"searched": len(searched), "failed": len(questions) - len(searched)}
            facts |= {"solved": len({row["problem"] for row in rows["trajectories"] if row["right"]})}
            facts |= {"refused": dict(sorted(refused.items())), **{name: len(rows[name]) for name in names}}
        self.reporter.say(f"{here.path.name} rows: {facts['solved']} of {len(questions)} questions solved; {facts}")

    def _with_answer(self, problem: Problem, tree: Tree) -> tuple[Problem, str | None]:
        """The question with the answer that vote and critics agree on, where it has none; or why it has none."""
        if problem.gold is not None:
            return problem, None
        agreed = agreed_answer(tree, self.config.agreement)
        return replace(problem, gold=agreed.answer), agreed.reason if agreed.answer is None else None

    def _rows_of(
        self, evidence: Evidence, number: int, source: Source
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
        """All rows of one searched question by trainer, and why trajectories did not become the policy's."""
        config = self.config
        policy, refused = policy_rows(config.policy_loss.method, evidence, config.rows)
        rows: dict[str, Sequence[Row]] = {"policy": policy}
        rows.update({kind: made for kind, made in critic_rows(evidence, config.rows, config.critic_loss).items()})
        found = trajectories(evidence, number, self.models.engine.model, source)
        as_dicts = {name: [row_to_dict(row) for row in of_trainer] for name, of_trainer in rows.items()}
        return {**as_dicts, "trajectories": [trajectory.to_dict() for trajectory in found]}, refused

    # Training

    def _train_critic(self, here: RoundDirectory, number: int, kind: Kind) -> Path | None:
        """Stages 4 to 6: a critic, from the one that stands or else from the policy; None where there is nothing to learn."""
        folder = here.checkpoint(kind)
        if not here.metric(kind):
            with self._stage(here, kind) as facts:
                rows, old = self._training_rows(here, number, kind)
                facts |= {"rows": len(rows), "replayed": old}
                if rows:
                    start = getattr(self.models.critics, kind) or self.models.engine.model
                    seed = derive_seed(self.config.seed, kind, number) % 2**31
                    given: dict[str, Any] = {
                        "prompt": self.models.prompt,
                        "seed": seed,
                        "logs": here.logs(kind),
                        "head": self.config.head,
                    }
                    call = TrainCall(rows, start, folder, getattr(self.config, kind), self.config.critic_loss, **given)
                    facts |= CRITIC_TRAINERS[kind].train(call)
            self._told(here, kind, facts)
        return self._trained(here, kind, kind)

    def _train_policy(
        self, here: RoundDirectory, number: int, models: SolverConfig, questions: Sequence[Chosen]
    ) -> SolverConfig:
        """Stage 7: the policy; `models` with its new weights, and with the value model that joint training made."""
        folder, value, loss = here.checkpoint("policy"), here.checkpoint("value"), self.config.policy_loss
        if not here.metric("policy"):
            with self._stage(here, "policy") as facts:
                rows, old = self._training_rows(here, number, "policy")
                facts |= {"rows": len(rows), "replayed": old}
                engine = (self.config.solver if loss.start == "base" else self.models).engine
                labelled = [one.problem for one in questions if one.problem.gold is not None]
                seed = derive_seed(self.config.seed, "policy", number) % 2**31
                call = PolicyCall(
                    rows,
                    engine.model,
                    folder,
                    self.config.policy,
                    loss.settings,
                    models.prompt,
                    seed,
                    here.logs("policy"),
                    self.config.head,
                    problems=labelled,
                    task=self.task,
                    solver=replace(models, engine=engine),
                    value_out=value,
                    value_start=models.critics.value,
                )
                facts |= train_policy(loss.method, call)
            self._told(here, "policy", facts)
        if not self._trained(here, "policy", "policy"):
            return models
        if loss.trainer.trains_value and self._trained(here, "policy", "value"):
            models = replace(models, critics=replace(models.critics, value=str(value)))
        return replace(models, engine=replace(models.engine, model=str(folder)))

    def _trained(self, here: RoundDirectory, stage: str, name: str) -> Path | None:
        """The checkpoint that a finished stage left; None where it had nothing to learn from."""
        folder = here.checkpoint(name)
        if not folder.exists() and "loss" in (here.metric(stage) or {}):
            raise DataError(
                f"{folder} is gone, and stage {stage} trained it; put it back, or delete the stage's line and all after it in "
                f"{here.metrics_file}, and --resume"
            )
        return folder if folder.exists() else None

    def _training_rows(self, here: RoundDirectory, number: int, name: str) -> tuple[list[Any], int]:
        """A trainer's rows, this round's and earlier ones; how many are earlier ones."""
        fresh = here.rows(name).whole()
        oldest = max(1, number - self.config.replay.rounds)
        earlier = [self.directory.round(i).rows(name).whole() for i in range(number - 1, oldest - 1, -1)]
        old = replayed(fresh, earlier, self.config.replay, derive_seed(self.config.seed, "replay", name, number))
        return [row_from_dict(dict(row)) for row in (*fresh, *old)], len(old)

    def _told(self, here: RoundDirectory, stage: str, facts: Mapping[str, Any]) -> None:
        what = f"loss {facts['loss']:.4f}, {facts['seconds']:.0f} s" if "loss" in facts else "nothing to learn from"
        self.reporter.say(f"{here.path.name} train {stage}: {facts['rows']} rows, {what}")

    # Evaluation

    def _evaluate(self, candidate: _Candidate) -> None:
        """Every method on the held-out questions."""
        here = candidate.here
        if self._done(here, "evaluate"):
            return
        seed = derive_seed(self.config.seed, "evaluate")
        with self._stage(here, "evaluate") as facts:
            records = []
            for label, search in self.config.methods.items():
                title = f"{here.path.name} evaluate {label}"
                found = self._solve_into(here.evaluation(label), candidate.models, seed, search, self.held_out, title)
                records += found
            facts |= {"usage": _usage(records)}

    def _gate(self, before: RoundDirectory, here: RoundDirectory) -> GateDecision:
        """Accept the candidate unless it is worse on the held-out questions than what stands."""
        if not (noted := self._done(here, "gate")):
            with self._stage(here, "gate") as facts:
                verdict = decide(self._records(before), self._records(here), self.config.gate)
                facts |= verdict.to_dict()
            noted = facts
        verdict = GateDecision.from_dict(noted)
        self.reporter.say(f"{here.path.name} gate: {'accepted' if verdict.accepted else 'REJECTED'} ({verdict.reason})")
        return verdict

    def _records(self, here: RoundDirectory) -> dict[str, list[Record]]:
        """What every method answered on the held-out questions."""
        return {label: [Record.from_dict(row) for row in here.evaluation(label).whole()] for label in self.config.methods}

    def _test(self, candidates: Sequence[_Candidate]) -> None:
        """The last stage: test questions, read here for the first time, with the models of every round."""
        if not self.config.test_questions:
            return
        self.task.open_test()
        problems = self.task.load("test", self.config.test_questions)
        require_answers(problems, "of split test")
        asked = [(problem, "held-out") for problem in self.held_out] + [(problem, "test") for problem in problems]
        self.directory.round(0).questions.write(_question_row(problem, source, None) for problem, source in asked)
        seed = derive_seed(self.config.seed, "test")
        for candidate in candidates:
            here = candidate.here
            if here.metric("test"):
                continue
            with self._stage(here, "test") as facts:
                records = []
                for label, search in self.config.methods.items():
                    title = f"{here.path.name} test {label}"
                    records += self._solve_into(here.test(label), candidate.models, seed, search, problems, title)
                facts |= {"usage": _usage(records)}

    # Models and files

    def _solve_into(
        self,
        journal: Journal,
        models: SolverConfig,
        seed: int,
        search: str | Mapping[str, Any],
        problems: list[Problem],
        title: str,
    ) -> list[Record]:
        """Solve what the journal does not hold yet, then complete it."""
        solve = partial(self._solver(models).asolve, search=search, seed=seed)
        keep_trees = journal.path.name.startswith("trees")
        return solve_into(journal, problems, solve, self.task.check, self.config.concurrency, self.reporter, title, keep_trees)

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

    def _done(self, here: RoundDirectory, name: str) -> dict[str, Any] | None:
        """What a stage noted; None where it is to be done, which is the first process's part: the others wait for it."""
        while not (noted := here.metric(name)) and not is_main_process():
            if os.getppid() != self._launcher:
                raise ModelError("the launcher of this process is gone; expected it alive: start again with --resume")
            time.sleep(_LOOK_AGAIN)
        return noted

    @contextmanager
    def _stage(self, here: RoundDirectory, name: str) -> Iterator[dict[str, Any]]:
        """A stage whose facts are noted, and which so counts as done, when its block ends without an error."""
        facts: dict[str, Any] = {}
        started = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - started, 1)
        if is_main_process():
            here.note(name, facts)


def _question_row(problem: Problem, source: str, pass_rate: float | None) -> dict[str, Any]:
    row = {"id": problem.id, "question": problem.question, "gold": problem.gold}
    return {**row, "source": source, "pass_rate": pass_rate}


def _usage(records: Sequence[Record]) -> dict[str, Any]:
    """What all records cost together."""
    total = Usage()
    for record in records:
        total += record.usage
    return asdict(total)
