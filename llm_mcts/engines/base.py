"""The seam between search and language models: requests, completions and the Engine protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol, runtime_checkable

from llm_mcts.errors import ConfigError

EMBEDDED = "embedded"
"""The name of the small built-in model."""


@dataclass(frozen=True)
class EngineConfig:
    """Which model to run, and how."""

    model: str = EMBEDDED
    """`embedded`, a Hugging Face folder, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, float32 on CPUs (bfloat16 without native support is hundreds of times slower)."""
    device: str = "auto"
    """auto: the first GPU, else the CPU."""
    max_batch: int = 64
    """Sequences decoded at once, at least 1."""
    cache_mb: int = 1024
    """Megabytes of keys and values kept for prefixes seen before, at least 0."""

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.cache_mb < 0:
            raise ConfigError(
                f"engine with max_batch={self.max_batch}, cache_mb={self.cache_mb}; expected max_batch >= 1, cache_mb >= 0"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to be continued `n` times."""

    prompt: tuple[str, ...]
    """The prompt as segments, tokenised one by one (see `llm_mcts.prompts`)."""
    n: int = 1
    """How many independent continuations."""
    max_tokens: int = 256
    """Longest continuation, in tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    stop: tuple[str, ...] = ()
    """A continuation ends when one of these appears behind its first visible character."""
    seed: int = 0
    """Continuation i draws from a random stream that depends on this seed and i alone."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.max_tokens < 1 or not 0 <= self.temperature < inf:
            raise ConfigError(
                f"request with n={self.n}, max_tokens={self.max_tokens}, temperature={self.temperature}; "
                "expected n >= 1, max_tokens >= 1, temperature >= 0"
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation."""

    text: str
    """The text up to the stop string, which is not part of it."""
    logprob: float
    """Sum of the log-probabilities at temperature 1 of all sampled tokens, the stop's included; in nats."""
    num_tokens: int
    """Sampled tokens, the stop's included."""
    finish_reason: Literal["stop", "eos", "length"]


@runtime_checkable
class Engine(Protocol):
    """Runs a language model. Callers may await any number of requests at once; the engine batches what waits."""

    async def generate(self, request: Request) -> list[Completion]:
        """Return `request.n` completions in order; the result depends on the request alone."""
        ...

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages as a prompt, or None where the model has no chat template."""
        ...
