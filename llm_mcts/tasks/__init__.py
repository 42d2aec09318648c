"""Tasks by name: data sets with their answer checkers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llm_mcts.errors import ConfigError, suggest
from llm_mcts.fields import Settings
from llm_mcts.tasks.arith import ArithTask
from llm_mcts.tasks.base import Task
from llm_mcts.tasks.gsm8k import GSM8KTask
from llm_mcts.tasks.jsonl import JsonlTask

TASKS: dict[str, Callable[..., Task]] = {"arith": ArithTask, "gsm8k": GSM8KTask, "jsonl": JsonlTask}


@dataclass(frozen=True)
class TaskConfig(Settings, section="task"):
    """Which questions."""

    name: str = "arith"
    """arith (built in), gsm8k or jsonl (your own file)."""
    path: str | None = None
    """gsm8k: the folder of its files (default: from the hub); jsonl: your file."""
    level: Literal["easy", "medium", "hard"] = "hard"
    """arith only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in TASKS:
            raise ConfigError(f"no task '{self.name}'{suggest(self.name, TASKS)}")
        if self.name == "jsonl" and self.path is None:
            raise ConfigError("task.path is missing; expected the file of your questions")

    def build(self) -> Task:
        """The task itself."""
        if self.name == "arith":
            return get_task("arith", level=self.level)
        return get_task(self.name, path=self.path)


def get_task(name: str, **options: Any) -> Task:
    """The task called `name`; the options are its fields.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"no task '{name}'{suggest(name, TASKS)}")
    return TASKS[name](**options)
