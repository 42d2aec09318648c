"""A task whose test questions stay closed until the final report.

A loop that trains, chooses or stops by what it sees of the test questions has no untouched figure left to report. So the
loop gets its task behind this guard: nothing but the report stage opens the test split. Imagination must keep away from test
questions, and gets their texts without answers.
"""

import re
from collections.abc import Sequence

from llm_mcts.errors import DataError
from llm_mcts.tasks.base import StepTask, Task
from llm_mcts.types import Problem

CLOSED = "test"
"""The split that stays closed."""
_PLAIN = re.compile(r"[a-z0-9_-]+")


class TestSplitClosed(DataError):
    """Test questions were asked for before the final report."""

    __test__ = False  # no case for pytest


class GuardedTask:
    """`task` without its test split, until `open_test`; a task that judges steps does so behind the guard too."""

    def __new__(cls, task: Task) -> "GuardedTask":
        """A guard with `step_truth` for a task that has it, so that `isinstance(..., StepTask)` tells the truth."""
        return super().__new__(_GuardedStepTask if cls is GuardedTask and isinstance(task, StepTask) else cls)

    def __init__(self, task: Task) -> None:
        self._task = task
        self._open = False

    @property
    def name(self) -> str:
        """The task's name."""
        return self._task.name

    def open_test(self) -> None:
        """From now on the test split can be loaded. For the final report alone."""
        self._open = True

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        """Up to `limit` problems of a split.

        Split names are plain: lower-case letters, digits, '_' and '-'. A task may read a name as part of a path, where
        './test' or 'Test' can lead to the same file.

        Raises:
            TestSplitClosed: it is the test split, before `open_test`.
            DataError: the name is not plain.
        """
        if not isinstance(split, str) or not _PLAIN.fullmatch(split):
            raise DataError(
                f"split {split!r} is no plain name; expected lower-case letters, digits, '_' and '-', such as train or dev"
            )
        if split == CLOSED and not self._open:
            raise TestSplitClosed(
                f"the test questions of {self.name} were asked for before the final report; expected train or dev, which are "
                "there to learn and to choose by (texts alone: texts_only)"
            )
        return self._task.load(split, limit, seed)

    def texts_only(self, split: str, limit: int | None = None, seed: int = 0) -> list[str]:
        """The question texts of a split, the test's too: for keeping other questions away from them. No answers."""
        return [problem.question for problem in self._task.load(split, limit, seed)]

    def check(self, solution_text: str, gold: str) -> bool:
        """Whether the solution's final answer equals the gold answer."""
        return self._task.check(solution_text, gold)


class _GuardedStepTask(GuardedTask):
    def step_truth(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """For each step whether it is right; None where the task cannot tell."""
        assert isinstance(self._task, StepTask)
        return self._task.step_truth(problem, steps)
