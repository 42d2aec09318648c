"""How far runs are, read from their directories alone: nothing is loaded, locked or changed.

state      running (a process holds the lock), finished (the last session said so, and the report is there), failed (it said
           that), stopped, broken (a file of the run cannot be read)
stages     what finished stages noted: seconds and tokens
in progress  the stage behind the last finished one, with n of m from its journals
time left  each stage still to come costs what it cost in the rounds before (their mean); the one in progress the share of
           that which is left. In the first round its own rate stands in, for that stage alone. Else unknown
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs.directory import RunDirectory, run_files
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.locks import owner_text
from llm_mcts.runs.reading import Run, read_run
from llm_mcts.runs.stages import CRITIC_STAGES, ROUND_STAGES, StageName
from llm_mcts.scores import Score
from llm_mcts.types import Usage

State = Literal["running", "finished", "failed", "stopped", "broken"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of one round."""

    round: int
    name: str
    finished: bool
    seconds: float | None = None
    """None where the stage noted none, or has begun at an unknown time."""
    tokens: int = 0
    """Computed by policy and critics: sampled, read and scored."""
    done: int | None = None
    """Questions answered, while it is in progress."""
    total: int | None = None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    name: str
    state: State
    about: str
    """The process at work, or why there is none."""
    rounds_done: int
    num_rounds: int
    accepted: tuple[int, ...]
    """Rounds that passed the gate."""
    stages: tuple[StageStatus, ...]
    accuracy: dict[str, tuple[float, float]]
    """By method: at the start, and of the last accepted round (or the start again)."""
    tokens: int
    seconds: float
    seconds_left: float | None
    """None: unknown."""
    left_is_of: Literal["run", "stage"]
    """What `seconds_left` is of."""

    @property
    def in_progress(self) -> StageStatus | None:
        """The stage that has begun and is not finished."""
        return next((stage for stage in self.stages if not stage.finished), None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def find_runs(folder: Path) -> list[RunStatus]:
    """The runs in a folder, by name; of a broken one only what is wrong with it.

    Raises:
        ConfigError: no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a directory; expected one with run directories, as llm-mcts runs FOLDER")
    return [found for path in sorted(folder.iterdir()) if (found := _status_or_why_not(path))]


def _status_or_why_not(path: Path) -> RunStatus | None:
    """None for what is no self-improvement run."""
    try:
        with run_files(path):
            return _run_status(path) if _is_run(path) else None
    except DataError as error:
        return RunStatus(path.resolve().name, "broken", str(error), 0, 0, (), (), {}, 0, 0.0, None, "run")


def _is_run(path: Path) -> bool:
    run = RunDirectory(path)
    return run.config_file.is_file() and "num_rounds" in (run.config() or {})


def run_status(path: Path) -> RunStatus:
    """Where the run in `path` stands.

    Raises:
        ConfigError: no run is there.
        DataError: a file of the run is broken.
    """
    with run_files(path):
        if not _is_run(path):
            raise ConfigError(f"{path} is not a self-improvement run; expected the --out of llm-mcts self-improve")
        return _run_status(path)


def _run_status(path: Path) -> RunStatus:
    directory = RunDirectory(path)
    run = read_run(directory)
    finished = [
        StageStatus(round_.number, stage.name, True, stage.seconds, stage.usage.total_tokens if stage.usage else 0)
        for round_ in run.rounds
        for stage in round_.stages
        if stage.finished
    ]
    state, about = _state(directory)
    current = None if state == "finished" else _in_progress(run, finished)
    stages = (*finished, *([current] if current else []))
    left, of = _time_left(finished, current, run.config["num_rounds"])
    return RunStatus(
        name=run.name,
        state=state,
        about=about,
        rounds_done=sum(round_.verdict is not None for round_ in run.rounds),
        num_rounds=run.config["num_rounds"],
        accepted=tuple(round_.number for round_ in run.rounds if round_.status == "accepted"),
        stages=stages,
        accuracy=_accuracies(run),
        tokens=sum(stage.tokens for stage in stages),
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        seconds_left=None if state == "finished" else left,
        left_is_of=of,
    )


def _state(run: RunDirectory) -> tuple[State, str]:
    sessions = (run.manifest() or {}).get("sessions") or [{}]
    outcome = sessions[-1].get("outcome")
    if who := run.holder:
        return "running", owner_text(who)
    if outcome == "finished" and run.report_file.exists():
        return "finished", f"the report is in {run.path}"
    if outcome and outcome.startswith("failed"):
        return "failed", outcome.partition(": ")[2]
    return "stopped", "no process is working on it; --resume continues it"


def _in_progress(run: Run, done: list[StageStatus]) -> StageStatus | None:
    """The stage after the last finished one; None where no stage is left."""
    number = max((round_.number for round_ in run.rounds if round_.status != "not started"), default=0)
    names = [stage.name for stage in done if stage.round == number]
    if number == 0 and "evaluate" not in names:
        return _progress(run, 0, "evaluate")
    if number == 0 or "gate" in names:
        number, names = number + 1, []
    if number > run.config["num_rounds"]:
        return StageStatus(number - 1, "report", False)
    last = max((ROUND_STAGES.index(name) for name in names if name in ROUND_STAGES), default=-1)
    return _progress(run, number, next(s for s in ROUND_STAGES[last + 1 :] if _expected(s, run, number, done)))


def _expected(stage: StageName, run: Run, number: int, done: Sequence[StageStatus]) -> bool:
    """Whether a run of this configuration has the stage, as far as its past and its files tell."""
    if stage in CRITIC_STAGES:
        return stage in run.config.get("critics", CRITIC_STAGES)
    if stage == "imagine":
        return _count(run.directory.round(number).imagined) is not None or any(s.name == stage for s in done)
    return True


def _progress(run: Run, number: int, stage: StageName) -> StageStatus:
    """How far the stage in progress is."""
    methods, round_dir = list(run.config["methods"]), run.directory.round(number)
    evaluations = [round_dir.evaluation(method) for method in methods]
    journals = {"imagine": [round_dir.imagined], "search": [round_dir.trees], "evaluate": evaluations}
    heads = [head for journal in journals.get(stage, []) for head in journal.heads()]
    tokens = sum(Usage(**head["usage"]).total_tokens for head in heads if "usage" in head)
    total = None
    if stage == "search":
        total = _count(round_dir.questions) if round_dir.questions.complete else run.config["train_questions"]
    elif stage == "evaluate":
        total = run.config["eval_questions"] * len(methods)
    seconds = _elapsed(run.directory, number) if run.directory.holder else None
    return StageStatus(number, stage, False, seconds, tokens, len(heads) if stage in journals else None, total)


def _elapsed(run: RunDirectory, number: int) -> float | None:
    """Seconds since the last finished stage noted its numbers; None where this session began later."""
    started = (run.holder or {}).get("started")
    if started is None:
        return None
    session = datetime.fromisoformat(started).timestamp()
    notes = [here.metrics_file.stat().st_mtime for here in run.rounds() if here.metrics_file.exists()]
    since = max(notes, default=session)
    resumed = len((run.manifest() or {}).get("sessions") or [{}]) > 1
    return None if resumed and since < session else max(0.0, time.time() - since)


def _count(journal: Journal) -> int | None:
    """Records of a journal; None where it has not begun."""
    return journal.count() if journal.begun else None


def _time_left(
    done: Sequence[StageStatus], current: StageStatus | None, num_rounds: int
) -> tuple[float | None, Literal["run", "stage"]]:
    """Seconds until the run ends, from earlier rounds; in the first round until the stage ends, by its rate."""
    if current is None:
        return None, "run"
    spent: dict[str, list[float]] = {}
    for stage in done:
        if stage.round >= 1 and stage.seconds is not None:
            spent.setdefault(stage.name, []).append(stage.seconds)
    mean = {name: sum(seconds) / len(seconds) for name, seconds in spent.items()}
    whole = any(stage.name == "gate" and stage.round >= 1 for stage in done)
    if not whole or current.name == "report":
        return _by_rate(current), "stage"
    begun = ROUND_STAGES.index(current.name) if current.name in ROUND_STAGES else len(ROUND_STAGES)
    share = 1 - current.done / current.total if current.total and current.done is not None else 1.0
    left = mean.get(current.name, 0.0) * max(0.0, share) + sum(mean.get(name, 0.0) for name in ROUND_STAGES[begun + 1 :])
    return left + (num_rounds - current.round) * sum(mean.get(name, 0.0) for name in ROUND_STAGES), "run"


def _by_rate(current: StageStatus) -> float | None:
    if not current.done or not current.total or current.seconds is None:
        return None
    return current.seconds * max(0, current.total - current.done) / current.done


def _accuracies(run: Run) -> dict[str, tuple[float, float]]:
    found = {}
    for method in run.config["methods"]:
        first, last = (round_.records("eval", method) for round_ in (run.rounds[0], run.last))
        if first and last:
            found[method] = (Score.of(method, first).accuracy, Score.of(method, last).accuracy)
    return found


# Tables


def runs_table(runs: Sequence[RunStatus]) -> RenderableType:
    """One row a run."""
    if not runs:
        return "no runs here"
    table = Table("run", "state", "rounds", "stage", "accuracy, start → best", "tokens", "hours")
    for run in runs:
        stage = run.in_progress
        accuracy = "\n".join(f"{label} {_percent(a)} → {_percent(b)}" for label, (a, b) in run.accuracy.items())
        rounds = f"{run.rounds_done} of {run.num_rounds}"
        where = f"{stage.round}: {_stage_text(stage)}" if stage else "—"
        table.add_row(run.name, run.state, rounds, where, accuracy or "—", f"{run.tokens:,}", f"{run.seconds / 3600:.2f}")
    return table


def status_table(run: RunStatus) -> RenderableType:
    """One row a stage, with what stands above and below it."""
    table = Table("round", "stage", "", "seconds", "tokens")
    for stage in run.stages:
        mark = "done" if stage.finished else "in progress" if run.state == "running" else "not finished"
        name = stage.name if stage.finished else _stage_text(stage)
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f}"
        table.add_row(str(stage.round), name, mark, seconds, f"{stage.tokens:,}" if stage.tokens else "")
    passed = ", ".join(map(str, run.accepted)) or "none"
    head = [f"{run.name}: {run.state} ({run.about})", f"rounds: {run.rounds_done} of {run.num_rounds} done; accepted: {passed}"]
    head += [f"{label}: {_percent(a)} → {_percent(b)}" for label, (a, b) in run.accuracy.items()]
    foot = [f"so far: {run.tokens:,} tokens, {_duration(run.seconds)}"]
    if run.state != "finished":
        foot.append(f"time left of the {run.left_is_of}: {_duration(run.seconds_left)}")
    return Group("\n".join(head), table, "\n".join(foot))


def show(what: RenderableType) -> None:
    """Print it; where no terminal is, as wide as it needs to be."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=160)
    console.print(what)


def _stage_text(stage: StageStatus) -> str:
    if stage.done is None:
        return stage.name
    return f"{stage.name}, {stage.done} of {stage.total if stage.total is not None else '?'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float | None) -> str:
    """For example "2 h 05 min"."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
