"""The vLLM engine over a stand-in backend that sends chosen tokens; scripts/check_vllm.sh runs it on vLLM itself."""

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from llm_mcts.engines.base import Completion, EngineConfig, Request, VLLMConfig
from llm_mcts.engines.vllm.backend import Chunk, VLLMBackend, engine_arguments
from llm_mcts.engines.vllm.engine import VLLMEngine, sampling
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.models import Checkpoint
from llm_mcts.types import metered

PROMPT = ("Question: 7?\nAnswer:\n",)


class StandIn:
    """Sends given tokens, `at_once` a chunk, each with log-probability -0.5; remembers what it was asked."""

    def __init__(self, text: list[int], at_once: int = 1, context: int = 64) -> None:
        self.text, self.at_once, self.context = text, at_once, context
        self.asked: list[tuple[list[int], dict[str, Any]]] = []
        self.sent = self.left = 0
        self.calls: list[str] = []
        self.hang = False
        self.fail_reload = False

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def stream(self, prompt: list[int], params: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        self.asked.append((prompt, params))
        text = self.text[: params["max_tokens"]]
        try:
            for i in range(0, len(text), self.at_once):
                tokens = text[i : i + self.at_once]
                self.sent += len(tokens)
                yield Chunk(tokens, [-0.5] * len(tokens), 3)
                if self.hang:
                    await asyncio.sleep(60)
        finally:
            self.left += 1

    async def score(self, tokens: list[int], start: int) -> Chunk:
        return Chunk(tokens[start:], [-float(i) for i in range(start, len(tokens))], 2)

    async def run_alone(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.calls.append("alone")
        return await work

    async def clear_cache(self) -> None:
        self.calls.append("clear")

    async def reload(self, base: str) -> None:
        self.calls.append(f"reload {Path(base).name}")
        if self.fail_reload:
            raise ModelError("torn file")

    async def use_adapter(self, checkpoint: Checkpoint) -> None:
        self.calls.append(f"adapter {checkpoint.adapter and Path(checkpoint.adapter).name}")

    def close(self) -> None:
        self.calls.append("close")


Build = Callable[..., tuple[VLLMEngine, StandIn]]


@pytest.fixture
def build(tiny_model: Path) -> Build:
    def make(text: str | list[int] = "", rank: int = 0, **settings: Any) -> tuple[VLLMEngine, StandIn]:
        backend = StandIn([], **settings)
        config = EngineConfig(name="vllm", model=str(tiny_model), vllm=VLLMConfig(max_lora_rank=rank))
        engine = VLLMEngine(config, cast(VLLMBackend, backend))
        backend.text = engine.tokenizer(text, add_special_tokens=False).input_ids if isinstance(text, str) else text
        return engine, backend

    return make


def ask(engine: VLLMEngine, stop: tuple[str, ...] = (), max_tokens: int = 60) -> Completion:
    [completion] = asyncio.run(engine.generate(Request(PROMPT, 1, max_tokens, stop=stop)))
    return completion


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("2 + 2 = 4\n#### 4\n", "\n", "2 + 2 = 4"),
        ("\n\n2 + 2 = 4\n#### 4\n", "\n", "2 + 2 = 4"),  # in front of the first visible character nothing stops
        (" \n 4\n", "\n", "4"),
        ("#### 4\n", "####", ""),  # the stop string may be the first visible thing
        ("so é ü ß it is\n", "ß", "so é ü "),
        ("one two\n\nthree", "\n\n", "one two"),
    ],
)
def test_stop_strings(build: Build, at_once: int, text: str, stop: str, expected: str) -> None:
    engine, backend = build(text, at_once=at_once)
    completion = ask(engine, (stop,))
    assert (completion.text, completion.finish_reason) == (expected, "stop")
    # The text up to and with the stop string is what was sampled; each token costs 0.5 nats.
    decoded = engine.tokenizer.decode(backend.text[: completion.num_tokens])
    assert stop in decoded.lstrip()
    assert stop not in engine.tokenizer.decode(backend.text[: completion.num_tokens - 1]).lstrip()
    assert completion.logprob == -0.5 * completion.num_tokens
    assert backend.left == 1  # the stream was closed: vLLM is told to end the sequence


def test_the_earliest_of_several_stop_strings(build: Build) -> None:
    engine, _ = build("1 + 1 = 2, so 2\n", at_once=100)
    assert ask(engine, ("\n", "so", ",")).text == "1 + 1 = 2"


def test_without_stop_strings_the_text_goes_on(build: Build) -> None:
    engine, backend = build("\n2 + 2\n= 4\n")
    completion = ask(engine)
    assert (completion.text, completion.finish_reason) == ("\n2 + 2\n= 4\n", "length")
    assert completion.num_tokens == len(backend.text)


def test_the_end_token_ends_and_is_counted_but_not_written(build: Build) -> None:
    engine, _ = build()
    four, end = engine.tokenizer("4", add_special_tokens=False).input_ids[-1], engine.tokenizer.eos_token_id
    engine, backend = build([four, end, four], at_once=3)
    completion = ask(engine, ("\n",))
    assert (completion.text, completion.num_tokens, completion.finish_reason) == ("4", 2, "eos")
    assert completion.logprob == -1.0
    assert backend.asked[0][1]["stop_token_ids"] == [end]


def test_prompts_are_tokenised_segment_by_segment(build: Build) -> None:
    engine, backend = build("4\n")
    asyncio.run(engine.generate(Request((*PROMPT, "2 + 2\n"), 2, 4)))
    parts = [engine.tokenizer(part, add_special_tokens=False).input_ids for part in (*PROMPT, "2 + 2\n")]
    assert [prompt for prompt, _ in backend.asked] == [[*parts[0], *parts[1]]] * 2


def test_seeds_depend_on_the_request_s_seed_and_the_place_alone() -> None:
    seeds = {(seed, i): sampling(Request(PROMPT, 8, seed=seed), i, [])["seed"] for seed in range(8) for i in range(8)}
    assert len(set(seeds.values())) == 64
    assert all(0 <= seed < 2**63 for seed in seeds.values())
    assert seeds[3, 1] == sampling(Request(("another",), 2, 9, 0.5, ("x",), seed=3), 1, [4])["seed"]


def test_sampling_settings_are_passed_on() -> None:
    found = sampling(Request(PROMPT, 1, 9, 0.7, ("\n",), 0, top_k=5, top_p=0.9, min_p=0.1), 0, [2])
    del found["seed"]
    assert found == {
        "max_tokens": 9, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "stop_token_ids": [2],
    }  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 100])
def test_usage(build: Build, at_once: int) -> None:
    engine, backend = build("2 + 2\n4\n", at_once=at_once)

    async def run() -> list[Completion]:
        return await engine.generate(Request(PROMPT, 3, 60, stop=("\n",)))

    with metered() as usage:
        completions = asyncio.run(run())
    size = len(backend.asked[0][0])
    assert usage.lm_calls == 1
    assert (usage.reused_tokens, usage.prefilled_tokens) == (3 * 3, 3 * (size - 3))  # the stand-in has 3 tokens cached
    assert usage.generated_tokens == sum(c.num_tokens for c in completions)
    assert (usage.generated_tokens < backend.sent) == (at_once == 100)  # what a chunk holds behind the end is not counted


def test_a_cancelled_caller_ends_its_sequences_and_pays_for_them(build: Build) -> None:
    engine, backend = build("2 + 2 = 4\n")
    backend.hang = True

    async def run() -> None:
        task = asyncio.create_task(engine.generate(Request(PROMPT, 4, 60)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with metered() as usage:
        asyncio.run(run())
    assert backend.left == 4
    assert usage.generated_tokens == 4


def test_logprobs_are_those_of_the_continuation_s_tokens(build: Build) -> None:
    engine, _ = build()
    sizes = [len(engine.tokenizer(text, add_special_tokens=False).input_ids) for text in (*PROMPT, "2 + 2\n", "4\n")]
    with metered() as usage:
        found = asyncio.run(engine.logprobs(PROMPT, [("2 + 2\n", "4\n"), ("4\n",)]))
    assert found == [
        [-float(i) for i in range(sizes[0], sum(sizes))],
        [-float(i) for i in range(sizes[0], sizes[0] + sizes[2])],
    ]
    assert usage.lm_calls == 1
    assert usage.reused_tokens + usage.prefilled_tokens == sum(sizes) + sizes[0] + sizes[2]


def test_prompts_without_room_are_refused(build: Build) -> None:
    engine, backend = build("4\n")
    size = len(engine.tokenizer(PROMPT[0], add_special_tokens=False).input_ids)
    engine, backend = build("4\n", context=size + 1)  # room for one token
    completion = ask(engine)
    assert (completion.text, completion.finish_reason) == (engine.tokenizer.decode(backend.text[:1]), "length")
    engine, _ = build("4\n", context=size)
    with pytest.raises(QuestionError, match=f"context of {size}"):
        ask(engine)
    with pytest.raises(QuestionError, match="prompt is empty"):
        asyncio.run(engine.generate(Request(("",))))
    with pytest.raises(QuestionError, match="prompt is empty"):
        asyncio.run(engine.logprobs((), [("4",)]))


# Swaps


def adapter(tiny: Path, folder: Path, rank: int) -> str:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny), config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return str(folder)


def test_an_adapter_is_swapped_in_without_its_base(build: Build, tiny_model: Path, tmp_path: Path) -> None:
    engine, backend = build(rank=4)
    asyncio.run(engine.swap(adapter(tiny_model, tmp_path / "round-1", 4)))
    assert backend.calls == ["alone", "adapter round-1", "clear"]


def test_whole_weights_take_the_adapter_away(build: Build, tiny_model: Path, tmp_path: Path) -> None:
    engine, backend = build(rank=4)
    asyncio.run(engine.swap(adapter(tiny_model, tmp_path / "round-1", 4)))
    asyncio.run(engine.swap(str(tiny_model)))
    assert backend.calls[3:] == ["alone", "reload tiny", "adapter None", "clear"]


def test_refused_checkpoints_touch_nothing(build: Build, tiny_model: Path, tmp_path: Path) -> None:
    engine, backend = build("4\n", rank=2)
    with pytest.raises(ModelError, match="rank 4, but"):
        asyncio.run(engine.swap(adapter(tiny_model, tmp_path / "round-1", 4)))
    with pytest.raises(ModelError, match="config differs"):
        asyncio.run(engine.swap("embedded"))
    assert set(backend.calls) <= {"alone"}
    assert ask(engine).text == "4\n"


def test_a_failed_read_makes_the_engine_unusable_in_words(build: Build, tiny_model: Path) -> None:
    engine, backend = build("4\n")
    backend.fail_reload = True
    with pytest.raises(ModelError, match="torn file"):
        asyncio.run(engine.swap(str(tiny_model)))
    with pytest.raises(ModelError, match="start a new engine"):
        ask(engine)


def test_aclose_closes_the_backend(build: Build) -> None:
    engine, backend = build()
    asyncio.run(engine.aclose())
    assert backend.calls == ["close"]


# Sharing the backend's loop


def bare_backend() -> VLLMBackend:
    """The backend's thread and gate without a vLLM behind them."""
    backend = object.__new__(VLLMBackend)
    backend._start_thread()
    return backend


def test_work_alone_waits_for_what_runs_and_holds_back_what_comes() -> None:
    backend, seen = bare_backend(), list[str]()

    async def work(name: str, seconds: float = 0.0) -> str:
        seen.append(f"{name} begins")
        await asyncio.sleep(seconds)
        seen.append(f"{name} ends")
        return name

    async def run() -> list[str]:
        first = asyncio.create_task(backend.run(work("first", 0.1)))
        await asyncio.sleep(0.02)
        alone = asyncio.create_task(backend.run_alone(work("alone", 0.05)))
        await asyncio.sleep(0.02)
        return [await task for task in (first, alone, asyncio.create_task(backend.run(work("last"))))]

    assert asyncio.run(run()) == ["first", "alone", "last"]
    assert seen == ["first begins", "first ends", "alone begins", "alone ends", "last begins", "last ends"]
    backend._stop_thread()


def test_a_cancellation_reaches_the_backend_s_loop_and_opens_the_gate_again() -> None:
    backend, cancelled = bare_backend(), list[str]()

    async def hang(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    async def done() -> int:
        return 4

    async def run() -> int:
        for name, start in (("shared", backend.run), ("alone", backend.run_alone)):
            task = asyncio.create_task(start(hang(name)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await asyncio.wait_for(backend.run(done()), 5)

    assert asyncio.run(run()) == 4
    assert cancelled == ["shared", "alone"]
    backend._stop_thread()


# The arguments that vLLM gets

WHOLE = Checkpoint("model", "folder")


def test_arguments_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = engine_arguments(EngineConfig(name="vllm", model="model", max_batch=7, cache_mb=3), WHOLE, "cpu")
    assert (found["model"], found["dtype"], found["max_num_seqs"]) == ("folder", "float32", 7)
    assert found["kv_cache_memory_bytes"] == 3 * 1024 * 1024
    assert found["enable_chunked_prefill"] is False  # else seeded sequences kill the engine
    assert found["logprobs_mode"] == "raw_logprobs"
    assert found["trust_remote_code"] is False
    assert "enable_lora" not in found
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")  # what a person says to vLLM itself holds
    assert "kv_cache_memory_bytes" not in engine_arguments(EngineConfig(name="vllm"), WHOLE, "cpu")


def test_arguments_on_a_gpu() -> None:
    config = EngineConfig(name="vllm", dtype="float16", cache_mb=0, vllm=VLLMConfig(0.5, 2, 12))
    found = engine_arguments(config, WHOLE, "cuda")
    assert (found["gpu_memory_utilization"], found["tensor_parallel_size"], found["dtype"]) == (0.5, 2, "float16")
    assert found["enable_prefix_caching"] is False
    assert (found["enable_lora"], found["max_lora_rank"]) == (True, 16)  # the next size that vLLM has kernels for


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "engine.device is cuda, but this vLLM is built for cpu"),
        ({"cache_mb": 0}, "engine.cache_mb is 0"),
        ({"vllm": VLLMConfig(max_lora_rank=600)}, "max_lora_rank is 600; expected at most 512"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_arguments(EngineConfig(name="vllm", **settings), WHOLE, "cpu")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_remedy_is_named() -> None:
    with pytest.raises(ConfigError, match="pip install vllm"):
        VLLMEngine(EngineConfig(name="vllm"))
