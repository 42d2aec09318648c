"""The self-improvement loop: search, learn from the trees, and keep what is not worse.

    round 0: evaluate the start
    round k: choose questions (fresh, revisited, imagined, unlabelled) -> search -> trees -> rows
             -> value model, PRM, ORM -> policy -> evaluate on held-out training questions -> gate -> round k + 1
    at last: test questions, where asked for, with every round's models; the report

Each stage leaves its result in the run directory and is skipped when it is there, so a killed run goes on where it was.
Only mechanics live here: searches, losses, rows and file names have their own modules.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from critics.modeling import KINDS, Kind
from llm_mcts.engines.base import Swaps
from llm_mcts.errors import DataError
from llm_mcts.evaluate import solve_into
from llm_mcts.progress import Reporter
from llm_mcts.runner import Record
from llm_mcts.seeding import derive_seed
from llm_mcts.solver import Solver, SolverConfig
from llm_mcts.store import Journal, RoundDirectory, RunDirectory
from llm_mcts.tasks.guard import GuardedTask
from llm_mcts.tasks.jsonl import JsonlTask
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Usage
from trainers.agreement import agreed_answer
from trainers.base import TrainConfig
from trainers.critic import train_critic
from trainers.curriculum import Chosen, choose
from trainers.datasets import critic_rows, row_from_dict, row_to_dict
from trainers.gate import Verdict, decide, should_stop
from trainers.imagine import imagine_questions
from trainers.policy import Lesson, train_policy
from trainers.replay import pass_rates, replayed, trajectories
from trainers.report import write_reports
from trainers.run_config import SelfImproveConfig

__all__ = ["SelfImproveConfig", "self_improve"]


def self_improve(
    config: SelfImproveConfig, out: Path, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the loop in directory `out`; return the report that also stands in `report.json`.

    Raises:
        ConfigError: `out` holds another run, or this one without `resume`.
        DataError: the questions are other ones than when the run was started.
    """
    run = RunDirectory.open(out, asdict(config), resume)
    with closing(_Loop(config, run, reporter or Reporter(quiet=True))) as loop:
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
        self.models = config.solver
        """The solver configuration that stands: its policy and critics passed the gate."""
        self._loaded: tuple[SolverConfig, Solver] | None = None

    def run(self) -> dict[str, Any]:
        """All rounds, then the test and the report."""
        started = time.perf_counter()
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
                break
        self._test(candidates)
        report = write_reports(self.directory)
        seconds = time.perf_counter() - started
        self.reporter.say(f"{seconds:.0f} s in this process; the report is in {self.directory.path}/report.html")
        return report

    def _round(self, number: int) -> _Candidate:
        """All that a round does up to its gate."""
        here = self.directory.round(number)
        questions = self._questions(here, number)
        self._search(here, number, [chosen.problem for chosen in questions])
        self._rows(here, number, questions)
        critics = {kind: self._train_critic(here, number, kind) for kind in KINDS if kind in self.config.critics}
        models = self._train_policy(here, number, [chosen.problem for chosen in questions])
        trained = {kind: str(folder) for kind, folder in critics.items() if folder}
        candidate = _Candidate(here, replace(models, critics=replace(models.critics, **trained)))
        self._evaluate(candidate)
        return candidate

    # Questions

    def _questions(self, here: RoundDirectory, number: int) -> list[Chosen]:
        """Stage 1: what this round searches."""
        if not here.metric("questions"):
            with self._stage(here, "questions") as facts:
                chosen = self._training_questions(number)
                chosen += [Chosen(p, "imagined") for p in self._imagined(here, number, [c.problem for c in chosen])]
                chosen += [Chosen(p, "unlabelled") for p in self._unlabelled(number)]
                here.questions.write(_question_row(one) for one in chosen)
                facts |= Counter(one.source for one in chosen)
        return [
            Chosen(Problem(row["id"], row["question"], row["gold"]), row["source"], row["pass_rate"])
            for row in here.questions.read()
        ]

    def _training_questions(self, number: int) -> list[Chosen]:
        n = self.config.train_questions
        pool = self.task.load("train", n * self.config.num_rounds)
        unlabelled = [p.id for p in pool if p.gold is None]
        if unlabelled:
            raise DataError(
                f"training question {unlabelled[0]} has no answer; expected one for every training question (questions "
                "without answers go into the file `unlabelled`)"
            )
        rates = pass_rates(self.directory.round(i).rows("trajectories").read() for i in range(1, number))
        return choose(pool, rates, n, self.config.curriculum, derive_seed(self.config.seed, "questions", number))

    def _imagined(self, here: RoundDirectory, number: int, parents: list[Problem]) -> list[Problem]:
        """New questions from this round's, none of them near a held-out or a test question."""
        if not self.config.imagined_questions:
            return []
        kept_away = [*(p.question for p in self.held_out), *self.task.texts_only("dev"), *self.task.texts_only("test")]
        seed = derive_seed(self.config.seed, "imagine", number)
        with self._stage(here, "imagine") as facts:
            solver = self._solver(self.models)
            made, refused = imagine_questions(
                parents, self.config.imagined_questions, self.config.imagine, solver, kept_away, here.imagined, seed
            )
            facts |= {"made": len(made), "refused": refused}
        return made

    def _unlabelled(self, number: int) -> list[Problem]:
        """The next of the user's questions without answers; answers that the file has all the same are not looked at."""
        if self.config.unlabelled is None:
            return []
        n = self.config.unlabelled_questions
        found = JsonlTask(self.config.unlabelled).load("train", n * number)
        return [Problem(f"unlabelled-{p.id}", p.question) for p in found[n * (number - 1) :]]

    # Search and rows

    def _search(self, here: RoundDirectory, number: int, problems: list[Problem]) -> None:
        """Stage 2: a tree for every question."""
        if here.metric("search"):
            return
        seed = derive_seed(self.config.seed, "search", number)
        with self._stage(here, "search") as facts:
            title = f"round {number} search"
            records = self._solve_into(here.trees, self.models, seed, self.models.search, problems, title)
            facts |= {"questions": len(records), "usage": _usage(records)}

    def _rows(self, here: RoundDirectory, number: int, questions: Sequence[Chosen]) -> None:
        """Stage 3: trees become the trainers' rows."""
        if here.metric("rows"):
            return
        with self._stage(here, "rows") as facts:
            by_id = {chosen.problem.id: chosen for chosen in questions}
            names = ("policy", *KINDS, "trajectories")
            rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            refused: Counter[str] = Counter()
            searched = [record for record in here.trees.read() if "tree" in record]
            for record in searched:
                chosen, tree = by_id[record["id"]], Tree.from_dict(record["tree"])
                problem, reason = self._with_answer(chosen.problem, tree)
                if reason:
                    refused[reason] += 1
                    continue
                origin = {"round": number, "policy": self.models.engine.model, "source": chosen.source}
                for name, made in self._rows_of(tree, problem, chosen, number, refused).items():
                    start = f"{problem.id}/"
                    rows[name].extend({"id": f"{start}{i}", **row, **origin} for i, row in enumerate(made))
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
        self, tree: Tree, problem: Problem, chosen: Chosen, number: int, refused: Counter[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """All rows of one tree."""
        config, task = self.config, self.task
        policy, policy_refused = policy_rows(tree, problem, task, config.rows, config.policy_loss)
        refused.update(policy_refused)
        made: dict[str, list[dict[str, Any]]] = {"policy": [row_to_dict(row) for row in policy]}
        for kind, found in critic_rows(tree, problem, task, config.rows, config.critic_loss).items():
            made[kind] = [row_to_dict(row) for row in found]
        all_found = trajectories(tree, problem, task, number, self.models.engine.model, chosen.source)
        return {**made, "trajectories": [one.to_dict() for one in all_found]}

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
                    config: TrainConfig = getattr(self.config, kind)
                    seed = derive_seed(self.config.seed, kind, number) % 2**31
                    head, losses, prompt = self.config.head, self.config.critic_loss, self.models.prompt
                    facts |= train_critic(kind, rows, start, folder, config, head, prompt, seed, losses, logs=here.logs(kind))
            self._told(here, kind, facts)
        return folder if folder.exists() else None

    def _train_policy(self, here: RoundDirectory, number: int, problems: list[Problem]) -> SolverConfig:
        """Stage 7: the policy; what stands with its new weights, and with the value model that joint training made."""
        folder, value = here.checkpoint("policy"), here.checkpoint("value")
        loss = self.config.policy_loss
        if not here.metric("policy"):
            with self._stage(here, "policy") as facts:
                rows, old = self._training_rows(here, number, "policy")
                facts |= {"rows": len(rows), "replayed": old}
                standing = self.config.solver if loss.start == "base" else self.models
                labelled = [p for p in problems if p.gold is not None]
                models = replace(self.models, engine=standing.engine)
                seed = derive_seed(self.config.seed, "policy", number) % 2**31
                lesson = Lesson(rows, labelled, self.task, models, seed, here.logs("policy"))
                facts |= train_policy(loss, lesson, folder, value, self.config.policy, self.config.head)
            self._told(here, "policy", facts)
        if not folder.exists():
            return self.models
        critics = replace(self.models.critics, value=str(value)) if loss.method == "joint" else self.models.critics
        return replace(self.models, engine=replace(self.models.engine, model=str(folder)), critics=critics)

    def _training_rows(self, here: RoundDirectory, number: int, name: str) -> tuple[list[Any], int]:
        """A trainer's rows, this round's and earlier ones; how many are earlier ones."""
        fresh = here.rows(name).read()
        earlier = [self.directory.round(i).rows(name).read() for i in range(number - 1, 0, -1)]
        old = replayed(fresh, earlier, self.config.replay, derive_seed(self.config.seed, "replay", name, number))
        return [row_from_dict(dict(row)) for row in (*fresh, *old)], len(old)

    def _told(self, here: RoundDirectory, stage: str, facts: Mapping[str, Any]) -> None:
        what = f"loss {facts['loss']:.4f}, {facts['seconds']:.0f} s" if "loss" in facts else "nothing to learn from"
        self.reporter.say(f"{here.path.name} train {stage}: {facts['rows']} rows, {what}")

    # Evaluation

    def _evaluate(self, candidate: _Candidate) -> None:
        """Every method on the held-out questions."""
        here = candidate.here
        if here.metric("evaluate"):
            return
        seed = derive_seed(self.config.seed, "evaluate")
        with self._stage(here, "evaluate") as facts:
            records = []
            for label, search in self.config.methods.items():
                title = f"{here.path.name} evaluate {label}"
                found = self._solve_into(here.evaluation(label), candidate.models, seed, search, self.held_out, title)
                records += found
            facts |= {"usage": _usage(records)}

    def _gate(self, before: RoundDirectory, here: RoundDirectory) -> Verdict:
        """Accept the candidate unless it is worse on the held-out questions than what stands."""
        if not (noted := here.metric("gate")):
            with self._stage(here, "gate") as facts:
                verdict = decide(self._records(before), self._records(here), self.config.gate)
                facts |= verdict.to_dict()
            noted = facts
        verdict = Verdict.from_dict(noted)
        self.reporter.say(f"{here.path.name} gate: {'accepted' if verdict.accepted else 'REJECTED'} ({verdict.reason})")
        return verdict

    def _records(self, here: RoundDirectory) -> dict[str, list[Record]]:
        """What every method answered on the held-out questions."""
        return {label: [Record.from_dict(row) for row in here.evaluation(label).read()] for label in self.config.methods}

    def _test(self, candidates: Sequence[_Candidate]) -> None:
        """The last stage: test questions, read here for the first time, with the models of every round."""
        if not self.config.test_questions:
            return
        self.task.open_test()
        problems = self.task.load("test", self.config.test_questions)
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

    @contextmanager
    def _stage(self, here: RoundDirectory, name: str) -> Iterator[dict[str, Any]]:
        """A stage whose facts are noted, and which so counts as done, when its block ends without an error."""
        facts: dict[str, Any] = {}
        started = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - started, 1)
        here.note(name, facts)


def _question_row(chosen: Chosen) -> dict[str, Any]:
    problem = chosen.problem
    row = {"id": problem.id, "question": problem.question, "gold": problem.gold}
    return {**row, "source": chosen.source, "pass_rate": chosen.pass_rate}


def _usage(records: Sequence[Record]) -> dict[str, Any]:
    """What all records cost together."""
    total = Usage()
    for record in records:
        total += record.usage
    return asdict(total)
