"""The one solver that a run has in memory."""

from dataclasses import replace

import pytest

from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.settings import SolverConfig
from trainers.loop.solvers import LoadedSolver


class Engine(ScriptedEngine):
    """Counts what became of it."""

    def __init__(self, swaps: bool) -> None:
        super().__init__(lambda _: [("#### 4", 1.0)])
        self.swapped: list[str] = []
        self.closed = 0
        if swaps:
            self.swap = self._swap

    async def _swap(self, model: str) -> None:
        self.swapped.append(model)

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("swaps", [True, False])
def test_the_next_rounds_policy_is_swapped_in_or_the_former_engine_closed(swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Engine] = []

    def build(config: object) -> Engine:
        made.append(Engine(swaps))
        return made[-1]

    monkeypatch.setattr("llm_mcts.solver.build_engine", build)
    loaded = LoadedSolver()
    first, second = SolverConfig(), replace(SolverConfig(), engine=EngineConfig("folder"))
    assert loaded.of(first) is loaded.of(first)
    solver = loaded.of(second)
    assert solver.config == second
    loaded.close()
    if swaps:
        assert len(made) == 1
        assert (made[0].swapped, made[0].closed) == (["folder"], 1)
    else:
        assert [engine.closed for engine in made] == [1, 1]
