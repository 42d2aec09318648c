"""One trainer on rows from a file: what the loop does in a round, by hand."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from critics.model.heads import HeadConfig
from critics.scoring.generative import VerdictKind
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.models import EMBEDDED
from llm_mcts.prompts import PromptConfig
from llm_mcts.runs.durable import make_folder
from llm_mcts.tasks.jsonl import read_jsonl
from trainers.critic.generative import verdict_rows
from trainers.critic.registry import CRITIC_TRAINERS
from trainers.data.rows import SolutionRow, StepRow, VerdictRow, row_from_dict
from trainers.fit.fit import Metrics, TrainCall, TrainConfig
from trainers.policy.registry import TRAINERS
from trainers.policy.trainer import PolicyCall


@dataclass(frozen=True)
class TrainJob:
    """What to start from, and how to train; `job_config` adds the sections of one trainer."""

    start: str = EMBEDDED
    """The model to start from: `embedded`, a folder or a hub id; for a critic also a critic of the same kind."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt format; a critic that is trained further keeps its own."""
    seed: int = 0
    """Same seed, same weights."""


FROM_FILE = {name: trainer for name, trainer in TRAINERS.items() if trainer.row}
"""The policy's trainers that learn from rows."""
KINDS_OF_TRAINING = (*FROM_FILE, *CRITIC_TRAINERS)


def job_config(kind: str) -> type[Any]:
    """The settings of `llm-mcts train KIND`: those that every training has, and the trainer's own sections."""
    sections: list[tuple[str, Any, Any]] = []
    if kind in CRITIC_TRAINERS:
        critic = CRITIC_TRAINERS[kind]
        parts = {"train": critic.config, **critic.sections}
    else:
        trainer = TRAINERS[kind]
        parts = {"train": TrainConfig} | ({kind: trainer.settings} if trainer.settings else {})
        if trainer.trains_value:
            parts["head"] = HeadConfig
            about = {"meaning": "A value model on a policy's trunk, whose head is trained further; none: a new head."}
            sections.append(("value_start", str | None, field(default=None, metadata=about)))
    sections += [(name, cls, field(default_factory=cls)) for name, cls in parts.items()]
    return make_dataclass("TrainJobConfig", sections, bases=(TrainJob,), frozen=True, namespace={"__module__": __name__})


def train_from_file(kind: str, file: Path, out: Path, job: Any) -> Metrics:
    """Train on a file of rows and write the checkpoint to `out`, and what is tracked to the folder `logs/NAME` next to it.

    `job` is a `job_config(kind)`.

    Raises:
        ConfigError: `out` exists.
        DataError: the file is missing, empty, or holds another trainer's rows; the message names file and line.
    """
    trainer = FROM_FILE.get(kind)
    # The part written last: a run that was stopped before may be run again.
    last = out / "value" if trainer and trainer.trains_value else out
    if last.exists():
        raise ConfigError(f"{last} exists already; choose another --out")
    make_folder(out.parent)
    settings: Any = getattr(job, next(iter(CRITIC_TRAINERS[kind].sections)) if kind in CRITIC_TRAINERS else kind, None)
    given: dict[str, Any] = {"prompt": job.prompt, "seed": job.seed, "logs": out.parent / "logs" / out.name}
    given |= {"head": getattr(job, "head", None), "settings": settings}
    if trainer and trainer.row:
        value_start = getattr(job, "value_start", None)
        rows = read_rows(kind, file, trainer.row)
        return trainer.train(PolicyCall(rows, job.start, out, job.train, **given, value_start=value_start))
    critic = CRITIC_TRAINERS[kind]
    rows = read_rows(kind, file, *critic.rows(settings))
    if kind == "genrm":
        rows = as_verdicts(rows, settings.kind)
    return critic.train(TrainCall(rows, job.start, out, job.train, **given))


def as_verdicts(rows: list[Any], kind: VerdictKind = "genrm") -> list[VerdictRow]:
    """Verdicts as they are, and those of outcome rows, for kind prm of step rows."""
    return [verdict for row in rows for verdict in ([row] if isinstance(row, VerdictRow) else verdict_rows([row], kind))]


def read_verdicts(file: Path, kind: VerdictKind = "genrm") -> list[VerdictRow]:
    """The verdicts of a file: as they are, or those of its outcome rows, for kind prm of its step rows."""
    return as_verdicts(read_rows("genrm", file, SolutionRow, StepRow, VerdictRow), kind)


def read_rows(kind: str, file: Path, *expected: type[Any]) -> list[Any]:
    """The rows of a file for trainer `kind`, all of expected types.

    Raises:
        DataError: the file is missing, empty, or holds other rows; the message names file and line.
    """
    rows: list[Any] = []
    for number, data in read_jsonl(file):
        try:
            row = row_from_dict(data)
        except DataError as error:
            raise DataError(f"{file}:{number}: {error}") from error
        if not isinstance(row, expected):
            names = " or ".join(cls.__name__ for cls in expected)
            raise DataError(f"{file}:{number}: a {type(row).__name__}; expected rows for {kind} ({names})")
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no row; expected one JSON object a line")
    return rows


def read_step_rows(file: Path) -> list[StepRow]:
    """Solutions with step labels, as `read_rows`."""
    return read_rows("prm", file, StepRow)
