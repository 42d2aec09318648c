"""What a search returns."""

from dataclasses import asdict, dataclass, field
from typing import Any

from llm_mcts.tree import Tree
from llm_mcts.types import State, Trace, Usage


@dataclass
class SearchResult:
    """What a search returns."""

    question: str
    answer: str | None
    """The chosen normalised answer; None when no solution reached one."""
    state: State
    """The chosen solution."""
    confidence: float
    """In [0, 1]: the chosen answer's share of the votes, visits or scores that decided (see each search)."""
    traces: list[Trace]
    """Every whole solution seen, rollouts included."""
    tree: Tree | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def steps(self) -> list[str]:
        """The chosen solution's lines."""
        return [step.text for step in self.state.steps]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary without the tree."""
        return {
            "question": self.question,
            "answer": self.answer,
            "confidence": self.confidence,
            "steps": self.steps,
            "usage": asdict(self.usage),
        }
