"""Errors a person can act on: every message says what was found, what was expected and how to fix it, in one line.

The library raises them; only the command line turns them into an exit status (2).
"""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn


class LLMMCTSError(Exception):
    """Base of every error this framework raises on purpose."""


class ConfigError(LLMMCTSError):
    """A configuration value or key is not usable."""


class DataError(LLMMCTSError):
    """A data file or record is missing or broken."""


class ModelError(LLMMCTSError):
    """A model folder, tokenizer or checkpoint cannot be used as asked."""


class EngineError(LLMMCTSError):
    """A model server failed one request or broke its protocol: no reply after all tries, a refusal, impossible counts."""


class QuestionError(LLMMCTSError):
    """A question cannot be searched: it is empty, or longer than the model's context."""


class CriticError(LLMMCTSError):
    """A critic failed or broke its contract: wrong number of scores, NaN, or a score outside [0, 1]."""


class PolicyError(LLMMCTSError):
    """A policy failed or broke its contract, for example by proposing no step."""


def blame(error: Exception, kind: type[LLMMCTSError], who: str, question: str) -> NoReturn:
    """Raise a foreign exception as one of ours that names the question; our own pass unchanged."""
    if isinstance(error, LLMMCTSError):
        raise error
    raise kind(f"{who} failed on question {question!r}: {type(error).__name__}: {error}") from error


def exhausted(error: BaseException) -> str | None:
    """What the machine ran out of, "disk" or "memory", if that is what the error or one behind it says; else None.

    Such an error is not caused by one question: it would hit all that follow. Libraries say it in types of their own (torch,
    safetensors), which are known here by name and words, so that none is imported.
    """
    for one in _chain(error):
        text = str(one)
        if (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left on device" in text:
            return "disk"
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return "memory"
        if type(one).__name__ == "OutOfMemoryError" or (isinstance(one, RuntimeError) and _NO_MEMORY.search(text)):
            return "memory"
    return None


_NO_MEMORY = re.compile(r"can't allocate memory|DefaultCPUAllocator: not enough memory|CUDA out of memory|std::bad_alloc")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those it came from, each once."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is other for other in seen):
            seen.append(one)
            yield one
            waiting += [one.__cause__, one.__context__]


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest of `known`, else a list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if not known:
        return "; expected none"
    return f"; did you mean '{close[0]}'?" if close else f"; expected one of {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
