"""Where runs stand, read from their directories alone: nothing is loaded, locked or changed.

state      running (a process holds the lock), finished (the last session said so, and the report is there), failed (it said
           that), stopped, broken (a file of the run cannot be read)
stages     what finished stages noted: seconds and tokens
under way  the stage behind the last finished one, with n of m from its journals
time left  each stage still to come costs what it cost in the rounds before (their mean); the one under way the share of
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
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.locks import owner_text
from llm_mcts.runs.directory import RoundDirectory, RunDirectory, run_files
from llm_mcts.types import Usage

State = Literal["running", "finished", "failed", "stopped", "broken"]
CRITICS = ("value", "prm", "orm")
STAGES = ("imagine", "questions", "search", "rows", *CRITICS, "policy", "evaluate", "gate")
"""A round's stages in order. Some runs leave some out."""


@dataclass(frozen=True)
class Stage:
    """One stage of one round."""

    round: int
    name: str
    finished: bool
    seconds: float | None = None
    """None where the stage noted none, or has begun at an unknown time."""
    tokens: int = 0
    """Computed by policy and critics: sampled, read and scored."""
    done: int | None = None
    """Questions answered, while it is under way."""
    total: int | None = None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    name: str
    state: State
    about: str
    """Who is at work, or why nobody is."""
    rounds_done: int
    num_rounds: int
    accepted: tuple[int, ...]
    """Rounds that passed the gate."""
    stages: tuple[Stage, ...]
    accuracy: dict[str, tuple[float, float]]
    """By method: at the start, and of the last accepted round (or the start again)."""
    tokens: int
    seconds: float
    seconds_left: float | None
    """None: unknown."""
    left_is_of: Literal["run", "stage"]
    """What `seconds_left` is of."""

    @property
    def under_way(self) -> Stage | None:
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
        raise ConfigError(f"{folder} is no folder; expected one with run directories, as llm-mcts runs FOLDER")
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
            raise ConfigError(f"{path} holds no self-improvement run; expected the --out of llm-mcts self-improve")
        return _run_status(path)


def _run_status(path: Path) -> RunStatus:
    run = RunDirectory(path)
    config = run.config()
    rounds = run.rounds()
    finished = [stage for number, here in enumerate(rounds) for stage in _finished(number, here)]
    state, about = _state(run)
    current = None if state == "finished" else _under_way(run, rounds, config, finished)
    stages = (*finished, *([current] if current else []))
    gates = [here.metric("gate") for here in rounds[1:]]
    accepted = tuple(number for number, gate in enumerate(gates, 1) if gate and gate["accepted"])
    left, of = _time_left(finished, current, config["num_rounds"])
    return RunStatus(
        name=path.resolve().name,
        state=state,
        about=about,
        rounds_done=sum(gate is not None for gate in gates),
        num_rounds=config["num_rounds"],
        accepted=accepted,
        stages=stages,
        accuracy=_accuracies(run, config["methods"], accepted[-1] if accepted else 0),
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
    return "stopped", "nobody is at work on it; --resume goes on"


def _finished(number: int, here: RoundDirectory) -> list[Stage]:
    return [
        Stage(number, row["stage"], True, row.get("seconds"), Usage(**row.get("usage", {})).total_tokens)
        for row in here.metrics()
    ]


def _under_way(run: RunDirectory, rounds: Sequence[RoundDirectory], config: dict[str, Any], done: list[Stage]) -> Stage | None:
    """The stage behind the last finished one; None where no stage is left."""
    number = len(rounds) - 1
    here = run.round(max(0, number))
    names = [stage.name for stage in done if stage.round == number]
    if number <= 0:
        if "evaluate" in names:
            number, here, names = 1, run.round(1), []
        else:
            return _progress(run, here, 0, "evaluate", config)
    elif "gate" in names:
        number, here, names = number + 1, run.round(number + 1), []
    if number > config["num_rounds"]:
        return Stage(number - 1, "report", False)
    last = max((STAGES.index(name) for name in names if name in STAGES), default=-1)
    wanted = [stage for stage in STAGES[last + 1 :] if _expected(stage, here, config, done)]
    return _progress(run, here, number, wanted[0], config)


def _expected(stage: str, here: RoundDirectory, config: dict[str, Any], done: Sequence[Stage]) -> bool:
    """Whether a run of this configuration has the stage, as far as its past and its files tell."""
    if stage in CRITICS:
        return stage in config.get("critics", CRITICS)
    if stage == "imagine":
        return _count(here.imagined) is not None or any(s.name == stage for s in done)
    return True


def _progress(run: RunDirectory, here: RoundDirectory, number: int, stage: str, config: dict[str, Any]) -> Stage:
    """How far the stage under way is."""
    methods = list(config["methods"])
    journals = {"imagine": [here.imagined], "search": [here.trees], "evaluate": [here.evaluation(m) for m in methods]}
    heads = [head for journal in journals.get(stage, []) for head in journal.heads()]
    tokens = sum(Usage(**head["usage"]).total_tokens for head in heads if "usage" in head)
    total = None
    if stage == "search":
        total = _count(here.questions) if here.questions.complete else config["train_questions"]
    elif stage == "evaluate":
        total = config["eval_questions"] * len(methods)
    seconds = _elapsed(run, number) if run.holder else None
    return Stage(number, stage, False, seconds, tokens, len(heads) if stage in journals else None, total)


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


def _time_left(done: Sequence[Stage], current: Stage | None, num_rounds: int) -> tuple[float | None, Literal["run", "stage"]]:
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
    begun = STAGES.index(current.name) if current.name in STAGES else len(STAGES)
    share = 1 - current.done / current.total if current.total and current.done is not None else 1.0
    left = mean.get(current.name, 0.0) * max(0.0, share) + sum(mean.get(name, 0.0) for name in STAGES[begun + 1 :])
    return left + (num_rounds - current.round) * sum(mean.get(name, 0.0) for name in STAGES), "run"


def _by_rate(current: Stage) -> float | None:
    if not current.done or not current.total or current.seconds is None:
        return None
    return current.seconds * max(0, current.total - current.done) / current.done


def _accuracies(run: RunDirectory, methods: Sequence[str], standing: int) -> dict[str, tuple[float, float]]:
    found = {}
    for label in methods:
        first, last = (run.round(number).evaluation(label) for number in (0, standing))
        if first.complete and last.complete:
            found[label] = (_accuracy(first), _accuracy(last))
    return found


def _accuracy(journal: Journal) -> float:
    records = journal.heads()
    return sum(bool(record["correct"]) for record in records) / max(1, len(records))


# Tables


def runs_table(runs: Sequence[RunStatus]) -> RenderableType:
    """One row a run."""
    if not runs:
        return "no runs here"
    table = Table("run", "state", "rounds", "stage", "accuracy, start → standing", "tokens", "hours")
    for run in runs:
        stage = run.under_way
        accuracy = "\n".join(f"{label} {_percent(a)} → {_percent(b)}" for label, (a, b) in run.accuracy.items())
        rounds = f"{run.rounds_done} of {run.num_rounds}"
        where = f"{stage.round}: {_stage_told(stage)}" if stage else "—"
        table.add_row(run.name, run.state, rounds, where, accuracy or "—", f"{run.tokens:,}", f"{run.seconds / 3600:.2f}")
    return table


def status_table(run: RunStatus) -> RenderableType:
    """One row a stage, with what stands above and below it."""
    table = Table("round", "stage", "", "seconds", "tokens")
    for stage in run.stages:
        mark = "done" if stage.finished else "under way" if run.state == "running" else "not finished"
        name = stage.name if stage.finished else _stage_told(stage)
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


def _stage_told(stage: Stage) -> str:
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
