"""llm-mcts: search over the reasoning steps of a language model, guided by critics, and learning from it.

from llm_mcts import Solver
result = Solver().solve("…")          # result.answer, .steps, .confidence, .tree, .usage
"""

from typing import TYPE_CHECKING, Any

from llm_mcts.result import SearchResult
from llm_mcts.types import Problem, State, Step, Usage

if TYPE_CHECKING:
    from llm_mcts.settings import SolverConfig
    from llm_mcts.solver import Solver

__all__ = ["Problem", "SearchResult", "Solver", "SolverConfig", "State", "Step", "Usage"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the solver, and with it the heavy libraries, only when it is asked for."""
    if name in ("Solver", "SolverConfig"):
        from llm_mcts import solver

        return getattr(solver, name)
    raise AttributeError(f"module 'llm_mcts' has no attribute '{name}'")
