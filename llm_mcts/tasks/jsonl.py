"""Questions from a user's own file: one JSON object a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.tasks.answers import extract_answer, normalise_answer
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.types import Problem


@dataclass(frozen=True)
class JsonlTask(AnswerTask):
    """A file of {"question": …, "answer": …} lines; `answer` may be a worked solution or missing, `id` is optional.

    `path` is one file, whose every split is the whole of it, or a folder with SPLIT.jsonl files.
    """

    path: str
    name: str = "jsonl"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        """The first `limit` problems in the file's order (the seed plays no part).

        Raises:
            DataError: no such file, or a line that is no such object; the message names file and line.
        """
        path = Path(self.path)
        file = path / f"{split}.jsonl" if path.is_dir() else path
        problems: dict[str, Problem] = {}
        for number, row in read_jsonl(file, exact=True):
            problem = self._problem(file, number, row)
            if problem.id in problems:
                raise DataError(f"{file}:{number}: id {problem.id!r} stands twice; expected every id once")
            problems[problem.id] = problem
        if not problems:
            raise DataError(f'{file} holds no problem; expected one JSON object with a "question" a line')
        return list(problems.values())[:limit]

    def _problem(self, file: Path, number: int, row: dict[str, Any]) -> Problem:
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not question.strip() or not _is_text(question):
            raise DataError(f'{file}:{number}: no "question"; expected a text that is not empty')
        if isinstance(answer, bool) or (answer is not None and not isinstance(answer, str | int | float)):
            raise DataError(f'{file}:{number}: "answer" is {answer!r}; expected a text or a number')
        text = None if answer is None else str(answer)
        gold = None if text is None else extract_answer(text) or normalise_answer(text) or None
        solution = text if text is not None and "\n" in text else None
        id_ = row.get("id")
        return Problem(f"{file.stem}-{number}" if id_ is None else str(id_), question.strip(), gold, solution)


def _is_text(text: str) -> bool:
    """Whether it can be written: half a surrogate pair cannot."""
    return all(not 0xD800 <= ord(c) <= 0xDFFF for c in text)


def read_jsonl(file: Path, exact: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file, blank lines skipped; `exact` keeps decimals as text.

    Raises:
        DataError: no such file, or a line that is no JSON object; the message names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}; expected a UTF-8 file with one JSON object a line") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=str if exact else float)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}:{number}: not JSON ({error.msg} at column {error.colno}); expected one object a line"
            ) from error
        except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
            raise DataError(f"{file}:{number}: cannot be read ({error}); expected one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: a {type(row).__name__}; expected a JSON object")
        yield number, row
