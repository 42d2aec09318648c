"""What a search may spend, and when it may stop early: the same settings for every search.

A search looks at its limits between waves of work, never within one, so it spends at most one wave more than it may (and one
completion where it answers by a path that is not finished);
and a tree that was stopped goes on to the same tree that an unstopped search would have grown.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from llm_mcts.errors import ConfigError, PolicyError
from llm_mcts.types import Usage, metered


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Limits that every search keeps; whichever is reached first ends it. With a saved tree they count its whole life."""

    max_tokens: int | None = None
    """Tokens sampled, above 0. What is read (prompts, critics' input) is not counted here but in the usage: how much of it
    a cache saves depends on other questions, and a result must not."""
    max_lm_calls: int | None = None
    """Requests to language models, above 0."""
    max_seconds: float | None = None
    """Wall-clock seconds, above 0. The one limit under which a result depends on the machine."""
    early_stop: bool = False
    """Stop when no answer can overtake the leader with what is left. Saves work and changes no answer; the tree is smaller. A
    best score, or a path of best values, can always be overtaken, as can a beam: there it has no effect."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_lm_calls", "max_seconds"):
            if (limit := getattr(self, name)) is not None and not 0 < limit < inf:
                raise ConfigError(f"{name} is {limit}; expected above 0, or nothing for no limit")


def check_counts(search: str, config: object, names: Sequence[str]) -> None:
    """Refuse settings that are no whole numbers of at least 1.

    Raises:
        ConfigError: it names the search and the setting.
    """
    for name in names:
        if not isinstance(value := getattr(config, name), int) or value < 1:
            raise ConfigError(f"{search}.{name} is {value}; expected a whole number, at least 1")


class Limits:
    """The limits of one search under way."""

    def __init__(self, config: SearchConfig, spent: Usage, usage: Usage) -> None:
        """`spent`: by earlier searches of the same tree; `usage`: the running count of this one."""
        self.config, self.spent, self.usage, self.started = config, spent, usage, time.perf_counter()
        self._none = config.max_tokens is None and config.max_lm_calls is None and config.max_seconds is None

    def reached(self) -> bool:
        """Whether anything is used up."""
        if self._none:
            return False
        config, spent, usage = self.config, self.spent, self.usage
        seconds = spent.seconds + time.perf_counter() - self.started
        return (
            spent.generated_tokens + usage.generated_tokens >= (config.max_tokens or inf)
            or spent.lm_calls + usage.lm_calls >= (config.max_lm_calls or inf)
            or seconds >= (config.max_seconds or inf)
        )

    def check_counted(self, worked: bool = True) -> None:
        """Refuse a limit on what nobody counted.

        Args:
            worked: whether the policy wrote anything in this search.

        Raises:
            PolicyError: tokens or calls are limited, and the policy reported none.
        """
        counted = self.usage.lm_calls or self.usage.generated_tokens
        if worked and (self.config.max_tokens or self.config.max_lm_calls) and not counted:
            raise PolicyError(
                "policy reported no usage while max_tokens or max_lm_calls is set; expected it to add what it spends to "
                "llm_mcts.types.meter()"
            )


@contextlib.contextmanager
def limited(config: SearchConfig, spent: Usage) -> Iterator[Limits]:
    """Meter a search against its limits; what it cost is added to `spent`, also when it fails or is cancelled."""
    usage = Usage()
    try:
        with metered() as usage:
            yield Limits(config, spent, usage)
    finally:
        spent += usage
