"""What clients may ask of the server, and the gate that keeps to it: so many searches at once, so many waiting, no more.

Closing the gate lets those inside finish for a while; what is not done by then is cancelled.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import ceil, inf
from typing import Annotated

from llm_mcts.errors import LLMMCTSError
from llm_mcts.fields import Above, AtLeast, Settings


@dataclass(frozen=True)
class LimitsConfig(Settings, section="limits"):
    """Limits of one request, and of all together."""

    concurrent: Annotated[int, AtLeast(1)] = 16
    """Questions searched at once."""
    queue: Annotated[int, AtLeast(0)] = 256
    """Questions that may wait for that, at least 0; the next one is told to come back (429)."""
    seconds: Annotated[float, Above(0)] = 300.0
    """Longest time for one request from its arrival, waiting included; then 504."""
    question: Annotated[int, AtLeast(1)] = 8000
    """Longest question in characters; a longer one gets 400."""
    body: Annotated[int, AtLeast(1)] = 1_000_000
    """Longest request in bytes; a longer one gets 413."""
    tokens: Annotated[int, AtLeast(1)] = 100_000
    """Sampled tokens of one search. The wave under way is not cut, so widths count too."""
    repeats: Annotated[int, AtLeast(1)] = 256
    """Largest num_simulations or num_samples that a request may ask for."""
    width: Annotated[int, AtLeast(1)] = 32
    """Largest other whole number (num_parallel, expansion_width, max_depth, …) in a request's search."""
    keep_alive: Annotated[float, Above(0)] = 10.0
    """Seconds of silence before a stream begins with comments that keep the connection open. Until then an error
    has its own status; after that it comes as an event of the stream."""
    grace: Annotated[float, AtLeast(0)] = 10.0
    """Seconds that searches get to finish when the server is stopped."""


class Full(LLMMCTSError):
    """The queue is full."""

    def __init__(self, waiting: int, seconds: int) -> None:
        """`seconds`: after which there may be room."""
        super().__init__(f"{waiting} questions are waiting and no more may; try again in {seconds} s")
        self.seconds = seconds


class Closed(LLMMCTSError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one, or again later")


class Gate:
    """Lets searches in, in order of arrival."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.concurrent)
        self._inside: set[asyncio.Task[object]] = set()
        self._closed_at: float | None = None
        self._emptied = False
        self._usual_seconds = 1.0
        self.waiting = 0
        """Questions in the queue."""

    @property
    def running(self) -> int:
        """Questions searched at the moment."""
        return len(self._inside) - self.waiting

    @property
    def closed(self) -> bool:
        """Whether new questions are turned away for good."""
        return self._closed_at is not None

    def close(self) -> None:
        """Admit no more requests; called again, those inside get no further grace."""
        self._closed_at = -inf if self.closed else time.monotonic()

    def drained(self) -> bool:
        """Whether the gate is closed and all are out; those who stay longer than the grace are cancelled."""
        if self._closed_at is None:
            return False
        if not self._emptied and time.monotonic() - self._closed_at > self._limits.grace:
            self._emptied = True  # cancelled once: a second time would interrupt their cleaning up
            for task in self._inside:
                task.cancel()
        return not self._inside

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those searched at once, for the current task.

        Raises:
            Full, Closed: there is none to be had.
        """
        if self.closed:
            raise Closed
        if self._free.locked() and self.waiting >= self._limits.queue:
            raise Full(self.waiting, ceil(self._usual_seconds * (self.waiting + 1) / self._limits.concurrent))
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        try:
            self.waiting += 1
            try:
                await self._free.acquire()
            finally:
                self.waiting -= 1
            started = time.monotonic()
            try:
                yield
            finally:
                self._free.release()
                self._usual_seconds += 0.1 * (time.monotonic() - started - self._usual_seconds)
        finally:
            self._inside.discard(task)
