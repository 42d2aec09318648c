"""What a search may spend, and when it may stop early: the same settings for every search.

A search checks its limits between waves of work, never within one, so it spends at most one wave more than it may (and one
completion where it answers by a path that is not finished); and a tree that was stopped resumes to the same tree that an
unstopped search would have grown.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Annotated

from llm_mcts.errors import PolicyError
from llm_mcts.fields import Above, AtLeast, Settings
from llm_mcts.tree import Tree
from llm_mcts.types import Usage, metered


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """Limits that every search keeps; whichever is reached first ends it. With a saved tree they count its whole life."""

    max_tokens: Annotated[int, AtLeast(1)] | None = None
    """Tokens sampled. What is read (prompts, critics' input) is not counted here but in the usage: how much of it a cache saves
    depends on other questions, and a result must not."""
    max_lm_calls: Annotated[int, AtLeast(1)] | None = None
    """Requests to language models."""
    max_seconds: Annotated[float, Above(0)] | None = None
    """Wall-clock seconds. The one limit under which a result depends on the machine."""
    early_stop: bool = False
    """Stop when no answer can overtake the leader with what is left. Saves work and changes no answer; the tree is smaller. A
    best score, or a path of best values, can always be overtaken, as can a beam: there it has no effect."""


class Limits:
    """The limits of one search under way."""

    def __init__(self, config: SearchConfig, spent: Usage, usage: Usage) -> None:
        """`spent`: by earlier searches of the same tree; `usage`: the running count of this one."""
        self.config, self.spent, self.usage, self.started = config, spent, usage, time.perf_counter()
        self._none = config.max_tokens is None and config.max_lm_calls is None and config.max_seconds is None

    def exhausted(self) -> bool:
        """Whether a limit has been reached."""
        if self._none:
            return False
        config, spent, usage = self.config, self.spent, self.usage
        seconds = spent.seconds + time.perf_counter() - self.started
        return (
            spent.generated_tokens + usage.generated_tokens >= (config.max_tokens or inf)
            or spent.lm_calls + usage.lm_calls >= (config.max_lm_calls or inf)
            or seconds >= (config.max_seconds or inf)
        )


@contextlib.contextmanager
def limited(config: SearchConfig, tree: Tree | None = None) -> Iterator[Limits]:
    """Meter a search against its limits; what it cost is added to the tree's usage, also when it fails or is cancelled.

    Raises:
        PolicyError: tokens or calls are limited, and the policy wrote something and reported none.
    """
    spent, size = (Usage(), 0) if tree is None else (tree.usage, tree.size)
    usage = Usage()
    try:
        with metered() as usage:
            yield Limits(config, spent, usage)
    finally:
        spent += usage
    wrote, counted = tree is None or tree.size > size, usage.lm_calls or usage.generated_tokens
    if (config.max_tokens or config.max_lm_calls) and wrote and not counted:
        raise PolicyError(
            "policy reported no usage while max_tokens or max_lm_calls is set; expected it to add what it spends to "
            "llm_mcts.types.meter()"
        )
