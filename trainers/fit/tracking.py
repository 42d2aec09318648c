"""What is seen of a training while it runs: loss, gradient norm and learning rate, by the Trainer's own integrations.

tensorboard   event files in a folder                      tensorboard --logdir runs/first
wandb         a run of its own, its files in the folder    wandb login first, or WANDB_MODE=offline
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from llm_mcts.errors import ConfigError
from trainers.fit.processes import is_main_process

Tracking = Literal["tensorboard", "wandb", "none"]
PROJECT = "llm-mcts"
"""Of runs in Weights & Biases, unless WANDB_PROJECT says another."""


@contextmanager
def tracker(tracking: Tracking, logs: Path | None) -> Iterator[list[Any]]:
    """The Trainer's callbacks that write to folder `logs`; none where that is None.

    Raises:
        ConfigError: the package is not there.
    """
    if tracking == "none" or logs is None:
        yield []
        return
    check_tracking(tracking)
    if tracking == "tensorboard":
        yield [_tensorboard(logs)]
        return
    with _wandb_run(logs) as callback:
        yield [callback]


def check_tracking(tracking: Tracking) -> None:
    """Refuse what cannot be tracked with.

    Raises:
        ConfigError: the package is not there.
    """
    spec = None if tracking == "none" else find_spec(tracking)
    if tracking != "none" and (spec is None or spec.origin is None):  # a mere folder, such as wandb's own files, has no origin
        raise ConfigError(
            f"tracking is '{tracking}', and no package of that name is there; pip install {tracking}, or set tracking to none"
        )


def _tensorboard(logs: Path) -> Any:
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(logs)
    if is_main_process():
        # A training starts at step 0: what an earlier, broken one left here would be drawn into the same curve.
        for file in logs.glob("events.out.tfevents.*"):
            file.unlink()
    return callback


@contextmanager
def _wandb_run(logs: Path) -> Iterator[Any]:
    """The callback, which logs to the run that is under way; one run for each training."""
    import wandb
    from transformers.integrations import WandbCallback

    if not is_main_process():
        yield WandbCallback()
        return
    logs.mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(project=project, name=logs.name, dir=str(logs), reinit="finish_previous"):
        yield WandbCallback()
