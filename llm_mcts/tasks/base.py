"""What a task is: a data set and the checker of its answers."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from llm_mcts.errors import DataError
from llm_mcts.tasks.answers import extract_answer, same_answer
from llm_mcts.types import Problem


@runtime_checkable
class Task(Protocol):
    """A data set with its answer checker."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        """Return up to `limit` problems of a split. The seed picks which, where the task draws them."""
        ...

    def check(self, solution_text: str, gold: str) -> bool:
        """Whether the solution's final answer equals the gold answer, exactly."""
        ...


def require_answers(problems: Sequence[Problem], purpose: str, remedy: str = "") -> None:
    """Refuse questions without a gold answer, which can neither be marked nor teach.

    Raises:
        DataError: one has none; `purpose` says what they are for.
    """
    if unanswered := [problem.id for problem in problems if problem.gold is None]:
        raise DataError(
            f"{len(unanswered)} of {len(problems)} questions {purpose} have no answer, {unanswered[0]} for one; "
            f"expected one for every question{remedy}"
        )


@runtime_checkable
class StepTask(Task, Protocol):
    """A task that knows which steps of a solution are right."""

    def step_truth(self, problem: Problem, steps: Sequence[str]) -> list[bool | None]:
        """For each step whether it is right; None where the task cannot tell, and behind the first wrong step."""
        ...


class AnswerTask:
    """A task whose solutions end in one number or short answer."""

    def check(self, solution_text: str, gold: str) -> bool:
        """Whether the final answer stated in `solution_text` equals `gold`; False where none is stated."""
        answer = extract_answer(solution_text)
        return answer is not None and same_answer(answer, gold)
