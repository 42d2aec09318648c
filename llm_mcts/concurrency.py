"""Waiting for several things at once without leaving any behind."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from llm_mcts.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


async def gather_all(work: Sequence[Awaitable[T]]) -> list[T]:
    """Await all of `work` at once; results in order. If one fails or the caller is cancelled, the others are cancelled."""
    if len(work) <= 1:
        return [await one for one in work]  # no task needed: most waits of a search are for one thing
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def gather_bounded(
    work: Callable[[T], Awaitable[R]], items: Sequence[T], concurrency: int, done: Callable[[T, R], None] | None = None
) -> list[R]:
    """Await `work` of every item, at most `concurrency` at a time; results in order, `done` is called as they come.

    Raises:
        ConfigError: `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; expected at least 1")
    gate = asyncio.Semaphore(concurrency)

    async def bounded(item: T) -> R:
        async with gate:
            result = await work(item)
        if done:
            done(item, result)
        return result

    return await gather_all([bounded(item) for item in items])
