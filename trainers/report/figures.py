"""Numbers of the report that are more than a look-up: what changed, what rows were kept, what it cost.

An interval that holds 0 is called by its name: not distinguishable from no change.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llm_mcts.runs.reading import Round, Run, Split, Stage
from llm_mcts.runs.stages import TRAINING_STAGES
from llm_mcts.scores import paired_difference
from llm_mcts.stats import PairedDifference
from llm_mcts.types import Usage

_NOT_ROWS = {"searched", "failed", "solved", "refused", "seconds", "usage"}


def in_words(change: PairedDifference) -> str:
    """What a paired difference says."""
    if change.low > 0:
        return "better"
    return "worse" if change.high < 0 else "not distinguishable from no change"


@dataclass(frozen=True)
class Change:
    """One method, from one round to another."""

    method: str
    split: Split
    since: int
    """The round it is measured against."""
    round: int
    found: PairedDifference
    p_value: float | None = None
    """As the gate noted it."""


def round_changes(run: Run, split: Split = "eval") -> list[Change]:
    """Every round against what stood before it."""
    changes = []
    for here in run.rounds[1:]:
        before = run.incumbent(here.number)
        noted = (here.verdict or {}).get("changes") or {}
        for method in run.methods:
            if found := run.change(split, method, before, here):
                p_value = (noted.get(method) or {}).get("p_value") if split == "eval" else None
                changes.append(Change(method, split, before.number, here.number, found, p_value))
    return changes


def overall_changes(run: Run, split: Split = "eval") -> list[Change]:
    """The last accepted round against the start; empty where none was accepted."""
    start, last = run.rounds[0], run.last
    if last is start:
        return []
    found = {method: run.change(split, method, start, last) for method in run.methods}
    return [Change(method, split, start.number, last.number, change) for method, change in found.items() if change]


def differences(run: Run) -> dict[str, PairedDifference]:
    """By name: what the accepted rounds brought, and how far the methods lie apart before and after them."""
    found = {f"{c.method}: last accepted round against the start": c.found for c in overall_changes(run)}
    start, last = run.rounds[0], run.last
    first, *others = run.methods or [""]
    for when, here in [("the start", start), *([("last accepted round", last)] if last is not start else [])]:
        for other in others:
            a, b = here.records("eval", first), here.records("eval", other)
            if a and b:
                found[f"{other} against {first}, {when}"] = paired_difference(a, b)
    return found


# Cost


@dataclass(frozen=True)
class Cost:
    """What some stages cost together."""

    seconds: float | None
    """None where no stage noted its seconds."""
    usage: Usage | None

    @property
    def tokens(self) -> int:
        """All tokens computed: sampled, prompts read by the policy, and read by critics."""
        return self.usage.total_tokens if self.usage else 0


def cost(stages: list[Stage]) -> Cost:
    """The sum of stages."""
    noted = [stage.seconds for stage in stages if stage.seconds is not None]
    usage: Usage | None = None
    for stage in stages:
        if stage.usage:
            usage = usage or Usage()
            usage += stage.usage
    return Cost(sum(noted) if noted else None, usage)


def costs_to_dict(run: Run) -> list[dict[str, Any]]:
    """A JSON-ready row for each round and stage."""
    return [
        {"round": here.number, "stage": s.name, "seconds": s.seconds, "usage": asdict(s.usage) if s.usage else None}
        for here in run.rounds
        for s in here.stages
    ]


# Rows


@dataclass(frozen=True)
class Made:
    """The rows of one trainer in one round."""

    round: int
    trainer: str
    kept: int | None
    """Rows made of the trees."""
    rows: int | None
    """Rows trained on, those of earlier rounds included."""
    left_out: int | None
    """Rows that the trainer could not use, such as ones too long."""
    steps: int | None
    loss: float | None


def rows_made(here: Round) -> list[Made]:
    """Each trainer's rows and training, in the stages' order."""
    stage = here.stage("rows")
    kept = {} if stage is None else {k: v for k, v in stage.notes.items() if k not in _NOT_ROWS and isinstance(v, int)}
    trained = {s.name: s.notes for s in here.stages if "loss" in s.notes or s.name in TRAINING_STAGES}
    made = []
    for name in dict.fromkeys([*kept, *trained]):
        notes = trained.get(name, {})
        numbers = (notes.get(key) for key in ("rows", "left_out", "steps", "loss"))
        made.append(Made(here.number, name, kept.get(name), *numbers))
    return made


def refused_rows(here: Round) -> dict[str, int]:
    """Why trajectories did not become rows: reason -> how many; a trainer's own reasons bear its name."""
    stage = here.stage("rows")
    refused = {} if stage is None else stage.notes.get("refused") or {}
    flat: dict[str, int] = {}
    for reason, count in refused.items():
        if isinstance(count, Mapping):
            flat |= {f"{reason}: {inner}": int(n) for inner, n in count.items()}
        else:
            flat[reason] = int(count)
    return flat
