"""Waiting for several things at once without leaving any behind."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

T = TypeVar("T")


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
