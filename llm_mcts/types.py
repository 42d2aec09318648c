"""The data every part of the framework exchanges, and the protocols of its seams.

A question and the steps written so far form a `State`; a policy proposes the next `Step`s; critics score states in
[0, 1]; what a search returns is in `llm_mcts.result`. Nothing here imports torch.
"""

import contextlib
import contextvars
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer; only tasks and trainers ever see one, a search gets the question alone."""

    id: str
    question: str
    gold: str | None = None
    """The normalised answer; None for a question without a known one."""
    solution: str | None = None
    """A reference solution, where the data set has one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning step: a line of a solution. Steps are equal when their texts are."""

    text: str
    """The line without its newline."""
    logprob: float = field(default=0.0, compare=False)
    """Sum of the policy's token log-probabilities, in nats, at temperature 1."""
    num_tokens: int = field(default=1, compare=False)
    """How many tokens the policy generated for it, at least 1."""
    terminal: bool = field(default=False, compare=False)
    """Whether the solution ends here."""
    answer: str | None = field(default=None, compare=False)
    """The normalised final answer, when a terminal step states one."""


@dataclass(frozen=True, slots=True)
class State:
    """A question and the steps so far: a prefix of a solution, or a whole one when `terminal`."""

    question: str
    steps: tuple[Step, ...] = ()

    @property
    def terminal(self) -> bool:
        """Whether the last step ended the solution."""
        return bool(self.steps) and self.steps[-1].terminal

    @property
    def answer(self) -> str | None:
        """The normalised final answer, or None before the end or where the solution states none."""
        return self.steps[-1].answer if self.steps else None

    def then(self, *steps: Step) -> "State":
        """The state after further steps."""
        return State(self.question, self.steps + steps)

    @property
    def text(self) -> str:
        """The solution so far, one step a line."""
        return "\n".join(step.text for step in self.steps)


@dataclass(slots=True)
class Usage:
    """What a piece of work cost. Counted where the work is done: by engines and critics."""

    generated_tokens: int = 0
    """Tokens the policy sampled."""
    prefilled_tokens: int = 0
    """Prompt tokens the policy computed."""
    reused_tokens: int = 0
    """Prompt tokens whose key/value cache was already there."""
    lm_calls: int = 0
    """Requests to a policy engine."""
    critic_calls: int = 0
    """States scored by a model critic."""
    critic_tokens: int = 0
    """Tokens critics computed."""
    seconds: float = 0.0
    """Wall-clock seconds."""

    def __iadd__(self, other: "Usage") -> "Usage":
        for name, amount in asdict(other).items():
            setattr(self, name, getattr(self, name) + amount)
        return self

    def count_prompt(self, computed: int, reused: int) -> None:
        """Add a prompt's tokens: those computed, and those whose keys and values were there already."""
        self.prefilled_tokens += computed
        self.reused_tokens += reused

    @property
    def total_tokens(self) -> int:
        """All tokens computed: sampled, prefilled and read by critics."""
        return self.generated_tokens + self.prefilled_tokens + self.critic_tokens


_METER: contextvars.ContextVar[Usage | None] = contextvars.ContextVar("usage_meter", default=None)


@contextlib.contextmanager
def metered() -> Iterator[Usage]:
    """Collect the usage of everything awaited inside the block, also in the tasks it starts.

    Blocks may be nested: an outer one collects what inner ones do, and measures its own seconds.
    """
    usage, started = Usage(), time.perf_counter()
    outer = _METER.get()
    token = _METER.set(usage)
    try:
        yield usage
    finally:
        _METER.reset(token)
        if outer is not None:
            outer += usage
        usage.seconds = time.perf_counter() - started


def meter() -> Usage:
    """The usage record of the current question; a temporary one outside `metered()`."""
    return _METER.get() or Usage()


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole solution that a search saw, with what its critics said."""

    state: State
    score: float | None = None
    """The critic's score in [0, 1], or None where no critic was asked."""


@runtime_checkable
class Policy(Protocol):
    """Writes solutions. Same state, n and seed: same result, whatever else is going on."""

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        """Sample up to `n` distinct next steps; identical samples are merged, their probabilities added."""
        ...

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        """Complete `state` to the end `n` times; temperature None means the policy's own, 0 greedy."""
        ...


@runtime_checkable
class Critic(Protocol):
    """Scores partial or whole solutions."""

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] per state, in order. A critic that fails raises; it never answers 0 instead."""
        ...
