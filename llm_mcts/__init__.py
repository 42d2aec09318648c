"""llm-mcts: search over the reasoning steps of a language model, guided by critics, and learning from it.

from llm_mcts import Solver
result = Solver().solve("…")          # result.answer, .steps, .confidence, .tree, .usage
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llm_mcts.errors import (
    ConfigError,
    CriticError,
    DataError,
    EngineError,
    LLMMCTSError,
    ModelError,
    PolicyError,
    QuestionError,
)
from llm_mcts.result import SearchResult
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, Problem, State, Step, Trace, Usage

if TYPE_CHECKING:
    from llm_mcts.engines import ENGINES
    from llm_mcts.engines.base import Engine
    from llm_mcts.evaluate import EvaluateConfig, evaluate_methods
    from llm_mcts.search import SEARCHES
    from llm_mcts.settings import SolverConfig
    from llm_mcts.solver import Solver
    from llm_mcts.tasks import TASKS
    from llm_mcts.tasks.base import Task

__version__ = "0.1.0"
__all__ = [
    "ENGINES",
    "SEARCHES",
    "TASKS",
    "ConfigError",
    "Critic",
    "CriticError",
    "DataError",
    "Engine",
    "EngineError",
    "EvaluateConfig",
    "LLMMCTSError",
    "ModelError",
    "Node",
    "Policy",
    "PolicyError",
    "Problem",
    "QuestionError",
    "SearchResult",
    "Solver",
    "SolverConfig",
    "State",
    "Step",
    "Task",
    "Trace",
    "Tree",
    "Usage",
    "evaluate_methods",
]
_LAZY = {
    "ENGINES": "engines",
    "Engine": "engines.base",
    "EvaluateConfig": "evaluate",
    "evaluate_methods": "evaluate",
    "SEARCHES": "search",
    "Solver": "solver",
    "SolverConfig": "settings",
    "TASKS": "tasks",
    "Task": "tasks.base",
}
"""Loaded only when they are asked for."""


def __getattr__(name: str) -> Any:
    """Load what is in `_LAZY`."""
    if name in _LAZY:
        return getattr(import_module(f"llm_mcts.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'llm_mcts' has no attribute '{name}'")
