"""The one solver that a run has in memory."""

import asyncio
from dataclasses import replace

from llm_mcts.engines.base import Engine, Swaps
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver


class LoadedSolver:
    """A solver that stays loaded until other models are asked for."""

    def __init__(self) -> None:
        self._solver: Solver | None = None

    def of(self, models: SolverConfig) -> Solver:
        """The solver of `models`. An engine that can take over another checkpoint does; others are closed."""
        former, self._solver = self._solver, None
        if former is None or former.config != models:
            former = Solver(models, engine=None if former is None else _engine_for(models, former))
        self._solver = former
        return former

    def close(self) -> None:
        """Free what the models occupy."""
        if self._solver is not None:
            self._solver.close()
            self._solver = None


def _engine_for(models: SolverConfig, former: Solver) -> Engine | None:
    """The former solver's engine with the new checkpoint; None, and it is closed, where it cannot take one over."""
    same_settings = replace(former.config.engine, model=models.engine.model) == models.engine
    if same_settings and isinstance(former.engine, Swaps):
        asyncio.run(former.engine.swap(models.engine.model))
        return former.engine
    former.close()
    return None
