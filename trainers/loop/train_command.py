"""One trainer on rows from a file: what the loop does in a round, by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from critics.kinds import Kind
from critics.model.heads import HeadConfig
from critics.scoring.generative import VerdictKind
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.models import EMBEDDED
from llm_mcts.prompts import PromptConfig
from llm_mcts.runs.directory import make_folder
from llm_mcts.tasks.jsonl import read_jsonl
from trainers.critic.generative import GenRMConfig, train_genrm, verdict_rows
from trainers.critic.train import train_critic
from trainers.data.objectives import CriticLossConfig, needed_rows
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TargetRow, VerdictRow, row_from_dict
from trainers.fit.fit import TrainConfig
from trainers.policy.distill import DistillConfig, train_distill
from trainers.policy.dpo import DPOConfig, train_dpo
from trainers.policy.imitation import train_sft, train_weighted
from trainers.policy.joint import JointConfig, train_joint


@dataclass(frozen=True)
class TrainJob:
    """What to start from, and how to train."""

    start: str = EMBEDDED
    """The model to start from: `embedded`, a folder or a hub id; for a critic also a critic of the same kind."""
    train: TrainConfig = field(default_factory=TrainConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    """Head of a new critic."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt format; a critic that is trained on keeps its own."""
    critic_loss: CriticLossConfig = field(default_factory=CriticLossConfig)
    """What a critic learns; the rows must suit it."""
    genrm: GenRMConfig = field(default_factory=GenRMConfig)
    """What a verifier in words learns."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """How search targets are learnt."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    """How preferences are learnt."""
    joint: JointConfig = field(default_factory=JointConfig)
    """How policy and value are learnt together."""
    value_start: str | None = None
    """For joint: a value model on a policy's trunk, whose head is trained on; none: a new head."""
    seed: int = 0


Metrics = dict[str, float]
POLICY: dict[str, tuple[type[Row], Callable[[list[Any], Path, TrainJob, Path], Metrics]]] = {
    "sft": (SolutionRow, lambda rows, out, job, logs: train_sft(rows, job.start, out, job.train, job.prompt, job.seed, logs)),
    "weighted": (
        SolutionRow,
        lambda rows, out, job, logs: train_weighted(rows, job.start, out, job.train, job.prompt, job.seed, logs),
    ),
    "distill": (
        TargetRow,
        lambda rows, out, job, logs: train_distill(rows, job.start, out, job.train, job.distill, job.prompt, job.seed, logs),
    ),
    "joint": (TargetRow, lambda rows, out, job, logs: _joint(rows, out, job, logs)),
    "dpo": (
        PairRow,
        lambda rows, out, job, logs: train_dpo(rows, job.start, out, job.train, job.dpo, job.prompt, job.seed, logs),
    ),
}
"""Name -> the rows that a policy's trainer takes, and its call."""
TRAINERS = (*POLICY, *get_args(Kind), "genrm")


def train_from_file(kind: str, file: Path, out: Path, job: TrainJob) -> Metrics:
    """Train on a file of rows and write the checkpoint to `out`, and what is tracked to the folder `logs/NAME` beside it.

    Raises:
        ConfigError: `out` exists.
        DataError: the file is missing, empty, or holds another trainer's rows; the message names file and line.
    """
    done = out / "value" if kind == "joint" else out  # its last part: a run that was stopped before may be run again
    if done.exists():
        raise ConfigError(f"{done} exists already; choose another --out")
    make_folder(out.parent)
    logs = out.parent / "logs" / out.name
    if kind in POLICY:
        expected, run = POLICY[kind]
        return run(read_rows(kind, file, expected), out, job, logs)
    if kind == "genrm":
        verdicts = read_verdicts(file, job.genrm.kind)
        return train_genrm(verdicts, job.start, out, job.train, job.genrm, job.prompt, job.seed, logs)
    rows = read_rows(kind, file, needed_rows(kind, job.critic_loss))  # type: ignore[arg-type]
    return train_critic(
        kind,  # type: ignore[arg-type]
        rows,
        job.start,
        out,
        job.train,
        job.head,
        job.prompt,
        job.seed,
        job.critic_loss,
        logs,
    )


def _joint(rows: list[Any], out: Path, job: TrainJob, logs: Path) -> Metrics:
    """Policy and value model in folders of their own below `out`."""
    places = out / "policy", out / "value"
    return train_joint(rows, job.start, *places, job.train, job.joint, job.head, job.prompt, job.seed, job.value_start, logs)


def read_verdicts(file: Path, kind: VerdictKind = "genrm") -> list[VerdictRow]:
    """The verdicts of a file: as they are, or those of its outcome rows, for kind prm of its step rows."""
    rows = read_rows("genrm", file, SolutionRow, StepRow, VerdictRow)
    return [verdict for row in rows for verdict in ([row] if isinstance(row, VerdictRow) else verdict_rows([row], kind))]


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
