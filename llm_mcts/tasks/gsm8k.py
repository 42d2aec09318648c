"""Grade-school math word problems (GSM8K)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.tasks.answers import extract_answer
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tasks.jsonl import read_jsonl
from llm_mcts.types import Problem


@dataclass(frozen=True)
class GSM8KTask(AnswerTask):
    """GSM8K (Cobbe et al. 2021): the official files from a folder, or `openai/gsm8k` from the hub.

    Splits: `test` is the official one; the last `held_out` official training problems are `dev`, the others `train`, so
    nothing is ever tuned on test questions.
    """

    path: str | None = None
    """Folder with train.jsonl and test.jsonl; None loads from the hub through `datasets`."""
    held_out: int = 500
    """Training problems set aside as `dev`."""
    name: str = "gsm8k"

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise ConfigError(f"gsm8k.held_out is {self.held_out}; expected at least 0")

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `limit` problems of train, dev or test, in the files' order (the seed plays no part).

        Raises:
            DataError: a file is missing or broken, or an answer lacks its `#### N`.
        """
        if split not in ("train", "dev", "test"):
            raise ConfigError(f"gsm8k has no split '{split}'; expected train, dev or test")
        official = "test" if split == "test" else "train"
        problems = [self._problem(official, where, row) for where, row in self._rows(official)]
        if split != "test":
            if self.held_out >= len(problems):
                raise ConfigError(f"gsm8k.held_out is {self.held_out} of {len(problems)} training problems; expected fewer")
            cut = len(problems) - self.held_out
            problems = problems[:cut] if split == "train" else problems[cut:]
        return problems if limit is None else problems[:limit]

    def _rows(self, official: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.path is None:
            import datasets

            try:
                hub = datasets.load_dataset("openai/gsm8k", "main", split=official)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cannot load openai/gsm8k ({type(error).__name__}); expected access to the hub, or task.path"
                ) from error
            yield from ((f"openai/gsm8k {official}:{i}", row) for i, row in enumerate(hub, 1))
        else:
            file = Path(self.path) / f"{official}.jsonl"
            yield from ((f"{file}:{number}", row) for number, row in read_jsonl(file))

    def _problem(self, official: str, where: str, row: dict[str, Any]) -> Problem:
        question, solution = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(solution, str) or "####" not in solution:
            raise DataError(f'{where}: expected "question" and "answer" texts, the answer ending in "#### N"')
        gold = extract_answer(solution[solution.rindex("####") :])
        if gold is None:
            raise DataError(f'{where}: nothing behind "####"; expected "#### N"')
        number = where.rsplit(":", 1)[1]
        return Problem(f"gsm8k-{official}-{number}", question, gold, solution)
