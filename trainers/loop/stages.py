"""A stage of a round is done once: what it notes in the round's metrics.jsonl makes every later session skip it.

Under `accelerate launch` the first process works, and the others wait for its note; a training is everybody's.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_mcts.errors import ModelError
from llm_mcts.runs.directory import RoundDirectory
from llm_mcts.runs.progress import Reporter
from llm_mcts.runs.stages import StageName
from llm_mcts.settings import SolverConfig
from trainers.fit.processes import is_main_process

Facts = dict[str, Any]
"""What a stage notes, as plain values."""
POLL_SECONDS = 0.5
"""Between two reads of the first process's notes."""


@dataclass(frozen=True)
class Round:
    """A round of a run: its files, and the models that it starts from."""

    number: int
    """0: the start, which is evaluated alone."""
    files: RoundDirectory
    start: SolverConfig
    """The current best models: they passed the gate."""

    @property
    def name(self) -> str:
        """Its folder's name, for messages."""
        return self.files.path.name


@dataclass(frozen=True)
class Stage:
    """One step of a round."""

    name: StageName
    run: Callable[[Round], Facts]
    """Does the work, all but what its own files show as done; returns what is noted."""
    message: Callable[[Facts], str] | None = None
    """What to say of the facts."""
    together: bool = False
    """Whether all launched processes take part, as in a training."""


class StageRunner:
    """Does each stage once."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._launcher = os.getppid()

    def once(self, stage: Stage, current: Round) -> Mapping[str, Any]:
        """What a stage noted; it is done first where it is not yet.

        Raises:
            ModelError: this process waits for the first one, and the launcher of both is gone.
        """
        if noted := current.files.metric(stage.name):
            return noted
        if not stage.together and not is_main_process():
            return self._awaited(stage, current)
        started = time.perf_counter()
        facts = stage.run(current)
        facts["seconds"] = round(time.perf_counter() - started, 1)
        if is_main_process():
            current.files.note(stage.name, facts)
        if stage.message:
            self.reporter.say(f"{current.name} {stage.message(facts)}")
        return facts

    def _awaited(self, stage: Stage, current: Round) -> Mapping[str, Any]:
        while not (noted := current.files.metric(stage.name)):
            if os.getppid() != self._launcher:
                raise ModelError("the launcher of this process is gone; expected it alive: start again with --resume")
            time.sleep(POLL_SECONDS)
        return noted
