"""vLLM's AsyncLLM behind four calls: stream tokens, score a text, take over weights, close.

The only file that knows vLLM's interface. AsyncLLM belongs to one event loop for life, while an engine serves one loop
after another: so vLLM gets a thread with a loop of its own, and `run` carries coroutines, results and cancellations across.
"""

# mypy: disable-error-code="import-not-found"

import asyncio
import atexit
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import EngineConfig
from llm_mcts.errors import ConfigError, ModelError, QuestionError, first_line
from llm_mcts.models import Checkpoint

T = TypeVar("T")

# The ranks that vLLM has kernels for; an adapter of another rank runs in the next larger one.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# On CPUs vLLM's default is 128 tokens a block, and only whole blocks are shared: longer than most reasoning steps.
_CPU_BLOCK = 32
# Before vLLM's processes are killed; they take about five to end by themselves.
_SHUTDOWN_SECONDS = 20.0
_ONE_TOKEN = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens that a sequence got since the last chunk."""

    tokens: list[int]
    logprobs: list[float]
    """At temperature 1, in nats, one a token."""
    cached: int
    """Tokens of the prompt that the prefix cache held."""


class VLLMBackend:
    """One AsyncLLM in a thread of its own."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        # Before the first import of vllm: by default it sends usage statistics and logs to stdout.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        arguments = engine_arguments(config, checkpoint, _device())
        self._start_thread()
        self._ids = itertools.count()
        self._adapters = config.vllm.max_lora_rank > 0
        self._adapter: Any = None
        self._adapter_ids = itertools.count(1)
        try:
            self._llm = asyncio.run_coroutine_threadsafe(_start(arguments), self._loop).result()
            asyncio.run_coroutine_threadsafe(self.use_adapter(checkpoint), self._loop).result()
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            self._stop_thread()
            raise ModelError(
                f"vLLM could not start with '{checkpoint.name}': {first_line(error)}; see its log above"
            ) from error
        atexit.register(self.close)  # else vLLM would miss its modules when the interpreter takes it down
        self.context: int = self._llm.model_config.max_model_len
        """Longest sequence, prompt and continuation together, in tokens."""

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine that uses this backend, on the backend's loop; cancelling the caller cancels it."""
        return await self._across(self._shared(work))

    async def run_alone(self, work: Coroutine[Any, Any, T]) -> T:
        """`run` once all running work has ended; work that arrives meanwhile waits."""
        return await self._across(self._exclusive(work))

    async def _across(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _shared(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            work.close()
            raise
        self._running += 1
        self._idle.clear()
        try:
            return await work
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _exclusive(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._alone:
            self._open.clear()
            try:
                await self._idle.wait()
                return await work
            finally:
                work.close()
                self._open.set()

    async def stream(self, prompt: list[int], sampling: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Continue a prompt; leaving the iteration early aborts the sequence."""
        async with aclosing(self._outputs(prompt, sampling | {"logprobs": 0, "detokenize": False})) as outputs:
            async for output in outputs:
                [sequence] = output.outputs
                tokens = list(sequence.token_ids)
                logprobs = [row[token].logprob for token, row in zip(tokens, sequence.logprobs or (), strict=True)]
                yield Chunk(tokens, logprobs, output.num_cached_tokens or 0)

    async def score(self, tokens: list[int], start: int) -> Chunk:
        """The tokens from index `start` >= 1 on, with their log-probabilities at temperature 1, by one forward or by many.

        One forward scores a whole text, but reads no prefix cache; and where adapters are switched on, vLLM's mapping of
        adapters to rows does not cover a prompt's rows (on a CPU the engine dies of it). So one token alone, and every token
        of an engine for adapters, is scored as the next token of what stands before it.
        """
        if not self._adapters and len(tokens) - start > 1:
            return await self._score_whole(tokens, start)
        scored = await gather_all([self._score_next(tokens[:i], tokens[i]) for i in range(start, len(tokens))])
        cached = min((cached for _, cached in scored), default=0)
        return Chunk(tokens[start:], [logprob for logprob, _ in scored], cached)

    async def _score_whole(self, tokens: list[int], start: int) -> Chunk:
        rows: list[Any] = []
        async with aclosing(self._outputs(tokens, {"prompt_logprobs": 0, **_ONE_TOKEN})) as outputs:
            async for output in outputs:
                rows = output.prompt_logprobs or rows
        logprobs = [row[token].logprob for token, row in zip(tokens[start:], rows[start:], strict=True)]
        return Chunk(tokens[start:], logprobs, 0)

    async def _score_next(self, prompt: list[int], token: int) -> tuple[float, int]:
        async with aclosing(self._outputs(prompt, {"logprob_token_ids": [token], **_ONE_TOKEN})) as outputs:
            async for output in outputs:
                return output.outputs[0].logprobs[0][token].logprob, output.num_cached_tokens or 0
        raise ModelError("vLLM ended a sequence without a token; expected one: see its log above")

    def _outputs(self, prompt: list[int], sampling: dict[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        try:
            params = SamplingParams(output_kind=RequestOutputKind.DELTA, **sampling)
        except ValueError as error:
            raise ConfigError(f"vLLM refuses these settings: {first_line(error)}") from error
        name = f"llm-mcts-{next(self._ids)}"
        return _translated(self._llm.generate(tokens_input(prompt), params, name, lora_request=self._adapter))

    async def use_adapter(self, checkpoint: Checkpoint) -> None:
        """Put another LoRA adapter in the former one's place, or none; the former one stays where the new one fails."""
        from vllm.lora.request import LoRARequest

        former, adapter = self._adapter, None
        if checkpoint.adapter:
            number = next(self._adapter_ids)  # never used before: vLLM takes a known id for a known adapter
            adapter = LoRARequest(f"adapter-{number}", number, checkpoint.adapter)
            try:
                await self._llm.add_lora(adapter)
            except Exception as error:  # a worker's failure arrives as a bare Exception with its text
                raise ModelError(f"vLLM cannot use adapter {checkpoint.name}: {first_line(error)}") from error
        self._adapter = adapter
        if former is not None:
            await self._llm.remove_lora(former.lora_int_id)

    async def reload(self, base: str) -> None:
        """Read other weights of the same shape into the running model."""
        try:
            await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": base})
            await self._llm.collective_rpc("renew_tied_head")
        except Exception as error:  # as above
            raise ModelError(f"vLLM could not read the weights of {base}: {first_line(error)}") from error

    async def clear_cache(self) -> None:
        """Forget the keys and values of every prefix, which came of former weights."""
        await self._llm.pause_generation(mode="wait", clear_cache=True)  # waits for sequences that were just aborted
        await self._llm.resume_generation()

    def close(self) -> None:
        """End vLLM's processes and the thread; safe to call twice."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
            self._stop_thread()

    async def _shut_down(self) -> None:
        self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        self._llm = None
        await asyncio.sleep(0)  # lets the cancelled output task end

    def _start_thread(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._open, self._idle, self._alone, self._running = asyncio.Event(), asyncio.Event(), asyncio.Lock(), 0
        self._open.set()
        self._idle.set()

    def _stop_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def engine_arguments(config: EngineConfig, checkpoint: Checkpoint, device: str) -> dict[str, Any]:
    """vLLM's engine arguments for a configuration.

    Raises:
        ConfigError: the installed vLLM does not run on the configured device, or not with these settings.
    """
    if config.device not in ("auto", device) and not config.device.startswith(f"{device}:"):
        raise ConfigError(f"engine.device is {config.device}, but this vLLM is built for {device}; use auto or {device}")
    arguments: dict[str, Any] = {
        "model": checkpoint.base,
        "skip_tokenizer_init": True,  # text is the engine's: vLLM sees token ids alone
        "dtype": config.dtype,
        "tensor_parallel_size": config.vllm.tensor_parallel,
        "max_num_seqs": config.max_batch,
        "max_model_len": -1,  # the model's context, or what the key/value cache can hold of it
        "enable_prefix_caching": config.cache_mb > 0,
        "logprobs_mode": "raw_logprobs",  # of the model's own logits: temperature 1, nothing truncated
        "disable_log_stats": True,
        "worker_extension_cls": "llm_mcts.engines.vllm.worker.WorkerExtension",
        "trust_remote_code": False,
    }
    if config.vllm.max_lora_rank:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": _room(config.vllm.max_lora_rank),
            "max_loras": 1,
            "max_cpu_loras": 2,
        }
    return arguments | (_cpu_arguments(config) if device == "cpu" else _gpu_arguments(config))


def _cpu_arguments(config: EngineConfig) -> dict[str, Any]:
    """Eager, because compiling takes half a minute at each start; float32 as in `resolve_dtype`.

    Prompts are computed whole: where one is cut at a batch's end, vLLM winds the sequence's random generator back, which a
    CPU's generator cannot do ("CPU Generator does not use offset"), and the whole engine dies of it.
    """
    if config.cache_mb == 0:
        raise ConfigError("engine.cache_mb is 0; expected above 0: on a CPU vLLM keeps running sequences there too")
    space = {} if os.environ.get("VLLM_CPU_KVCACHE_SPACE") else {"kv_cache_memory_bytes": config.cache_mb * 2**20}
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return {"dtype": dtype, "enforce_eager": True, "enable_chunked_prefill": False, "block_size": _CPU_BLOCK, **space}


def _gpu_arguments(config: EngineConfig) -> dict[str, Any]:
    from llm_mcts.models import resolve_device, resolve_dtype

    dtype = str(resolve_dtype(config.dtype, resolve_device(config.device))).removeprefix("torch.")
    return {"dtype": dtype, "gpu_memory_utilization": config.vllm.gpu_memory_utilization}


def _room(rank: int) -> int:
    for room in _RANKS:
        if room >= rank:
            return room
    raise ConfigError(f"engine.vllm.max_lora_rank is {rank}; expected at most {_RANKS[-1]}, the largest that vLLM has")


def _device() -> str:
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f"engine.name is vllm, but it cannot be imported ({first_line(error)}); install it with: pip install vllm"
        ) from error
    return str(current_platform.device_type)


async def _start(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


async def _translated(outputs: Any) -> AsyncGenerator[Any, None]:
    """The outputs of vLLM with its errors as ours."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
    except ValueError as error:
        raise QuestionError(f"vLLM refuses the request: {first_line(error)}") from error
    except (EngineDeadError, EngineGenerateError) as error:
        raise ModelError(f"vLLM failed: {first_line(error.__cause__ or error)}; see its log above") from error
