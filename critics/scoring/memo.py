"""What critics remember: each value is computed once, also for callers who ask at the same time."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """Values by key, the oldest dropped beyond `size`. What is being computed is shared by all who wait for it.

    Nobody's leaving stops a computation that others may wait for. An error reaches everyone who waits, and is not kept. Use it
    within one event loop at a time; what another loop left unfinished is computed again.
    """

    def __init__(self, size: int = 200_000) -> None:
        self.size = size
        self._known: OrderedDict[K, V] = OrderedDict()
        self._coming: dict[K, asyncio.Future[V]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, keys: Sequence[K], compute: Callable[[list[K]], Awaitable[Sequence[V]]]) -> list[V]:
        """The values of `keys`, in order; `compute` is given those together that are neither known nor being computed."""
        self.begin(keys, compute)
        return await self.values(keys)

    def begin(self, keys: Iterable[K], compute: Callable[[list[K]], Awaitable[Sequence[V]]]) -> None:
        """Start computing those of `keys` that are neither known nor being computed; `values` waits for them."""
        loop = asyncio.get_running_loop()
        if self._coming and next(iter(self._coming.values())).get_loop() is not loop:
            self._coming.clear()  # an event loop ended in the middle
        new = [key for key in dict.fromkeys(keys) if key not in self._known and key not in self._coming]
        if not new:
            return
        futures = {key: loop.create_future() for key in new}
        self._coming.update(futures)
        task = loop.create_task(self._compute(new, compute))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(self._give_up, futures))

    async def values(self, keys: Sequence[K]) -> list[V]:
        """The values of keys that are known or being computed, in order."""
        known = {key: self._known[key] for key in keys if key not in self._coming}
        coming = {key: self._coming[key] for key in keys if key in self._coming}
        # Shielded: these futures belong to everyone who waits for them.
        found = await asyncio.gather(*map(asyncio.shield, coming.values()))
        known.update(zip(coming, found, strict=True))
        return [known[key] for key in keys]

    async def _compute(self, new: list[K], compute: Callable[[list[K]], Awaitable[Sequence[V]]]) -> None:
        try:
            values = await compute(new)
        except BaseException as error:
            for key in new:
                future = self._coming.pop(key)
                future.set_exception(error if isinstance(error, Exception) else RuntimeError("the critic was stopped"))
                future.exception()  # retrieved, in case no caller waits for it any more
            if not isinstance(error, Exception):
                raise
            return
        for key, value in zip(new, values, strict=True):
            self._known[key] = value
            self._coming.pop(key).set_result(value)
        while len(self._known) > self.size:
            self._known.popitem(last=False)

    def _give_up(self, futures: dict[K, "asyncio.Future[V]"], _: object) -> None:
        """Leave nothing behind of a task that was cancelled before it began."""
        for key, future in futures.items():
            if not future.done():
                future.cancel()
                self._coming.pop(key, None)
