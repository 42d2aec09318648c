"""One trainer on rows from a file: what the loop does in a round, by hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from critics.modeling import HeadConfig, Kind
from llm_mcts.engines.base import EMBEDDED
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.prompts import PromptConfig
from llm_mcts.tasks.jsonl import read_jsonl
from trainers.base import TrainConfig
from trainers.critic import train_critic
from trainers.objectives import CriticLossConfig, needed_rows
from trainers.rows import SolutionRow, row_from_dict
from trainers.sft import train_sft

TRAINERS = ("sft", *get_args(Kind))


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
    seed: int = 0


def train_from_file(kind: str, file: Path, out: Path, job: TrainJob) -> dict[str, float]:
    """Train on a file of rows and write the checkpoint to `out`.

    Raises:
        ConfigError: `out` exists.
        DataError: the file is missing, empty, or holds another trainer's rows; the message names file and line.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another --out")
    expected = SolutionRow if kind == "sft" else needed_rows(kind, job.critic_loss)  # type: ignore[arg-type]
    rows: list[Any] = []
    for number, data in read_jsonl(file):
        try:
            row = row_from_dict(data)
        except DataError as error:
            raise DataError(f"{file}:{number}: {error}") from error
        if not isinstance(row, expected):
            raise DataError(f"{file}:{number}: a {type(row).__name__}; expected rows for {kind} ({expected.__name__})")
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no row; expected one JSON object a line")
    if kind == "sft":
        return train_sft(rows, job.start, out, job.train, job.prompt, job.seed)
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
    )
