"""The gate: who gets in, who waits, who is turned away, and how it empties."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.serving.limits import Closed, Full, Gate, LimitsConfig


async def turns() -> None:
    """Let the other tasks do what they can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Visitors:
    """Tasks at a gate that stay until they are let go; `came` says who got in, in order."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.came, self.leave = gate, list[int](), asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def arrive(self) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(self._visit(len(self.tasks))))
        await turns()
        return self.tasks[-1]

    async def _visit(self, number: int) -> None:
        async with self.gate.place():
            self.came.append(number)
            await self.leave.wait()


def visit(limits: LimitsConfig, story: Callable[[Gate, Visitors], Awaitable[None]]) -> None:
    async def run() -> None:
        gate = Gate(limits)
        await asyncio.wait_for(story(gate, Visitors(gate)), timeout=5)

    asyncio.run(run())


def test_so_many_at_once_in_order_of_arrival() -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        for _ in range(4):
            await visitors.arrive()
        assert (gate.running, gate.waiting, visitors.came) == (2, 2, [0, 1])
        visitors.leave.set()
        await asyncio.gather(*visitors.tasks)
        assert (gate.running, gate.waiting, visitors.came) == (0, 0, [0, 1, 2, 3])

    visit(LimitsConfig(concurrent=2, queue=2), story)


@pytest.mark.parametrize("queue", [0, 1])
def test_a_full_queue(queue: int) -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        for _ in range(1 + queue):
            await visitors.arrive()
        turned_away = await visitors.arrive()
        error = turned_away.exception()
        assert isinstance(error, Full)
        assert error.seconds == 1 + queue  # a search is taken to last 1 s before one has been seen
        assert (gate.running, gate.waiting) == (1, queue)
        visitors.leave.set()
        await turns()
        assert await visitors.arrive() is not None
        assert visitors.came[-1] == queue + 2

    visit(LimitsConfig(concurrent=1, queue=queue), story)


def test_who_leaves_makes_room() -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        inside, waiting, _ = [await visitors.arrive() for _ in range(3)]
        waiting.cancel()
        await turns()
        assert (gate.running, gate.waiting, visitors.came) == (1, 1, [0])
        inside.cancel()
        await turns()
        assert (gate.running, gate.waiting, visitors.came) == (1, 0, [0, 2])

    visit(LimitsConfig(concurrent=1, queue=2), story)


def test_a_closed_gate_lets_those_inside_finish() -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        await visitors.arrive()
        await visitors.arrive()
        assert not gate.drained()  # it is open
        gate.close()
        late = await visitors.arrive()
        assert isinstance(late.exception(), Closed)
        assert not gate.drained()
        visitors.leave.set()
        await turns()
        assert gate.drained()
        assert visitors.came == [0, 1]

    visit(LimitsConfig(concurrent=1, grace=60.0), story)


def test_those_who_outstay_the_grace_are_cancelled() -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        tasks = [await visitors.arrive() for _ in range(2)]
        gate.close()
        await asyncio.sleep(0.01)
        assert not gate.drained()
        await turns()
        assert gate.drained()
        assert [task.cancelled() for task in tasks] == [True, True]

    visit(LimitsConfig(concurrent=1, grace=0.0), story)


def test_closed_twice_there_is_no_grace() -> None:
    async def story(gate: Gate, visitors: Visitors) -> None:
        task = await visitors.arrive()
        gate.close()
        assert not gate.drained()
        gate.close()
        assert not gate.drained()  # it was told to leave only now
        await turns()
        assert gate.drained()
        assert task.cancelled()

    visit(LimitsConfig(grace=60.0), story)


@pytest.mark.parametrize("name", ["concurrent", "question", "body", "tokens", "repeats", "width", "seconds", "keep_alive"])
def test_limits_that_allow_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=f"limits.{name} is 0"):
        LimitsConfig(**{name: 0})
