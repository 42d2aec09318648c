"""The seam between search and language models: requests, completions and the Engine protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

from llm_mcts.fields import Above, AtLeast, Settings, Within
from llm_mcts.models import EMBEDDED

EngineName = Literal["transformers", "openai", "vllm", "openvino"]
FinishReason = Literal["stop", "eos", "length"]


@dataclass(frozen=True)
class OpenAIConfig(Settings, section="engine.openai"):
    """Servers that speak the OpenAI protocol."""

    urls: tuple[str, ...] = ()
    """Base URLs of replicas that serve the same model, as http://127.0.0.1:8000/v1."""
    api: Literal["completions", "chat"] = "completions"
    """completions: /completions with plain prompts; chat: /chat/completions, the steps so far as an unfinished turn."""
    logprobs: bool = True
    """Ask for log-probabilities. Off for servers without them: a search then holds all proposed steps equally likely."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; unset means no key is sent."""
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Requests in flight at one replica."""
    timeout: Annotated[float, Above(0)] = 120.0
    """Seconds for one try."""
    retries: Annotated[int, AtLeast(0)] = 5
    """Further tries after a timeout, a broken connection or status 408, 409, 429 or 5xx."""
    backoff: Annotated[float, AtLeast(0)] = 0.5
    """Seconds before the first further try, doubled each time with jitter; a server's Retry-After is honoured."""


@dataclass(frozen=True)
class VLLMConfig(Settings, section="engine.vllm"):
    """vLLM in this process."""

    gpu_memory_utilization: Annotated[float, Within(0, 1, open_low=True)] = 0.9
    """Share of a GPU's memory that vLLM may take."""
    tensor_parallel: Annotated[int, AtLeast(1)] = 1
    """GPUs that one model is spread over."""
    max_lora_rank: Annotated[int, AtLeast(0)] = 0
    """Largest rank of the LoRA adapters that will be used; 0: none."""


@dataclass(frozen=True)
class OpenVINOConfig(Settings, section="engine.openvino"):
    """openvino-genai on the CPU."""

    weights: Literal["int8", "int4", "float32"] = "int8"
    """How the exported model's weights are stored."""
    exports: str = "~/.cache/llm-mcts/openvino"
    """Folder that keeps exported models, by the hash of their checkpoint."""


@dataclass(frozen=True)
class EngineConfig(Settings, section="engine"):
    """Which model to run, and how."""

    model: str = EMBEDDED
    """`embedded`, a Hugging Face folder, or a hub id; for openai the name that the server gives it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on GPUs that have it, float32 on CPUs (bfloat16 without native support is hundreds of times slower)."""
    device: str = "auto"
    """auto: the first GPU, else the CPU."""
    max_batch: Annotated[int, AtLeast(1)] = 64
    """Sequences decoded at once."""
    cache_mb: Annotated[int, AtLeast(0)] = 1024
    """Megabytes of keys and values kept for prefixes seen before; for openvino of all, running texts included."""
    name: EngineName = "transformers"
    """transformers: in this process, on a CPU or one GPU; openai: any OpenAI-compatible servers; vllm: vLLM in this process;
    openvino: openvino-genai on the CPU."""
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    openvino: OpenVINOConfig = field(default_factory=OpenVINOConfig)


@dataclass(frozen=True, slots=True)
class Request(Settings, section="request"):
    """A prompt to be continued `n` times."""

    prompt: tuple[str, ...]
    """The prompt as segments, tokenised one by one (see `llm_mcts.prompts`)."""
    n: Annotated[int, AtLeast(1)] = 1
    """How many independent continuations."""
    max_tokens: Annotated[int, AtLeast(1)] = 256
    """Longest continuation, in tokens."""
    temperature: Annotated[float, AtLeast(0)] = 1.0
    """0 is greedy."""
    stop: tuple[str, ...] = ()
    """A continuation ends when one of these appears behind its first visible character."""
    seed: int = 0
    """Continuation i draws from a random stream that depends on this seed and i alone."""
    top_k: Annotated[int, AtLeast(0)] = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: Annotated[float, Within(0, 1, open_low=True)] = 1.0
    """Sample among the fewest tokens whose probabilities at this temperature add up to p (nucleus)."""
    min_p: Annotated[float, Within(0, 1)] = 0.0
    """Sample among tokens at least this times as likely as the likeliest."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation."""

    text: str
    """The text up to the stop string, which is not part of it."""
    logprob: float
    """Sum of the log-probabilities at temperature 1 of all sampled tokens, the stop's included; in nats."""
    num_tokens: int
    """Sampled tokens, the stop's included."""
    finish_reason: FinishReason


@runtime_checkable
class Swaps(Protocol):
    """An engine that takes over another checkpoint of its model without a restart."""

    async def swap(self, model: str) -> None:
        """Continue with `model`: a LoRA adapter's folder, or one of whole weights of the same shape."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Runs a language model. Callers may await any number of requests at once; the engine batches what waits."""

    async def generate(self, request: Request) -> list[Completion]:
        """Return `request.n` completions in order; the result depends on the request alone."""
        ...

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each continuation of the prompt, both in segments, the log-probability at temperature 1 of each of its tokens.

        What a critic by token probability asks: `exp(sum(...))` of "+" and of "-" behind a step, or of a whole solution.
        """
        ...

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages as a prompt, or None where the model has no chat template."""
        ...

    async def aclose(self) -> None:
        """Give back connections, processes and memory; the engine is not used after it."""
        ...
