#!/usr/bin/env python3
"""Run the engines on a real vLLM: in this process, and as a server behind the OpenAI engine. See check_vllm.sh.

    python scripts/check_vllm.py [MODEL FOLDER] [--only process|server]

Every check prints a line as it ends, `ok` or `FAILED`; the exit status is 1 when one failed. What vLLM computes is held
against the same checkpoint in transformers, token by token.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from llm_mcts import Solver
from llm_mcts.engines.base import Completion, Engine, EngineConfig, OpenAIConfig, Request, VLLMConfig
from llm_mcts.errors import ModelError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import Encoder
from llm_mcts.settings import SolverConfig
from llm_mcts.types import metered

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"
PROMPT = (f"Question: {QUESTION}\nAnswer:\n",)
STATE = (*PROMPT, "First she has 3 * 4 = 12 shells.\n")
ENDINGS = [("Then 12 + 5 = 17 shells.\n", "#### 17\n"), ("#### 12\n",), ("+",)]
SEARCH = {"name": "mcts", "num_simulations": 8}
MAX_BATCH = 32
SWAPS = 6


@dataclass
class Report:
    """The checks so far."""

    lines: list[str] = field(default_factory=list)
    failed: int = 0

    async def check(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        """Run one check, which raises where something is wrong and else says what it found."""
        started = time.perf_counter()
        try:
            outcome, found = "ok", await work()
        except Exception as error:
            outcome, found = "FAILED", f"{type(error).__name__}: {error}"
            self.failed += 1
        self.lines.append(f"{outcome:6}  {name} ({time.perf_counter() - started:.1f} s): {found}")
        print(self.lines[-1], flush=True)


def require(holds: bool, otherwise: str) -> None:
    """Raise an AssertionError that says what was found; unlike `assert` it is never left out."""
    if not holds:
        raise AssertionError(otherwise)


def resident() -> float:
    """Resident memory of this process and its children, in MB; pages that they share count once for each."""
    here = psutil.Process()
    total: int = sum(process.memory_info().rss for process in [here, *here.children(recursive=True)])
    return total / 2**20


def reference(model: Any, tokenizer: Any) -> list[list[float]]:
    """What `logprobs(STATE, ENDINGS)` has to be, by one whole forward of transformers each."""
    encode, found = Encoder(tokenizer), []
    start = len(encode(STATE))
    for ending in ENDINGS:
        ids = torch.tensor([encode([*STATE, *ending])])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        found.append(logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[start - 1 :].tolist())
    return found


def distance(found: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference between two lists of log-probabilities."""
    return max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))


def same(a: list[Completion], b: list[Completion]) -> bool:
    """Whether two answers agree in all but the last digits of their log-probabilities."""
    return [(c.text, c.num_tokens, c.finish_reason) for c in a] == [(c.text, c.num_tokens, c.finish_reason) for c in b] and all(
        abs(x.logprob - y.logprob) < 1e-2 for x, y in zip(a, b, strict=True)
    )


# Both engines


async def check_seeds(engine: Engine) -> str:
    """32 seeded sequences: alone, together, in two orders; and nothing but the seed and the place counts."""
    requests = [Request(PROMPT, 4, 24, 2.0, seed=seed) for seed in range(MAX_BATCH // 4)]
    alone = [await engine.generate(request) for request in requests]
    together = await asyncio.gather(*map(engine.generate, requests))
    backwards = (await asyncio.gather(*map(engine.generate, requests[::-1])))[::-1]
    changed = sum(not same(a, b) for other in (together, backwards) for a, b in zip(alone, other, strict=True))
    require(changed == 0, f"{changed} of {2 * len(requests)} answers changed in company")
    fewer = await engine.generate(replace(requests[0], n=2))
    require(same(fewer, alone[0][:2]), "continuation i depends on n")
    distinct = len({completion.text for answer in alone for completion in answer})
    require(distinct > MAX_BATCH // 2, f"only {distinct} of {MAX_BATCH} samples differ")
    return f"{MAX_BATCH} sequences, the same alone, together and in the other order; {distinct} distinct texts"


async def check_long_prompts(engine: Engine) -> str:
    """More prompt tokens than one batch takes, all seeded: some prompts have to wait or are cut."""
    filler = "Ann has 5 apples and buys 3 more. " * 12
    requests = [Request((f"Question {i}: {filler}\nAnswer:\n",), 1, 8, 1.0, seed=i) for i in range(2 * MAX_BATCH)]
    with metered() as usage:
        await asyncio.gather(*map(engine.generate, requests))
    tokens = usage.prefilled_tokens + usage.reused_tokens
    return f"{len(requests)} prompts of {tokens // len(requests)} tokens at once"


async def check_cache(engine: Engine) -> str:
    """The second request of a long state finds the first one's blocks."""
    state = (*PROMPT, *(f"Step {i}: {i} + {i} = {2 * i} shells.\n" for i in range(12)))
    found = []
    for _ in range(2):
        with metered() as usage:
            await engine.generate(Request(state, 1, 4, 0.0))
        found.append((usage.prefilled_tokens, usage.reused_tokens))
    require(found[1][1] > found[1][0], f"prefilled, reused: {found}")
    return f"prefilled and reused tokens: {found[0]} at first, then {found[1]}"


async def check_speed(engine: Engine) -> str:
    """A full batch, twice, since the first one compiles."""
    rates = []
    for stop in ((), (), ("\n",)):
        started = time.perf_counter()
        with metered() as usage:
            await engine.generate(Request(PROMPT, MAX_BATCH, 64, 1.0, stop, seed=5))
        rates.append(usage.generated_tokens / (time.perf_counter() - started))
    return f"{rates[0]:.0f} tokens/s at first, then {rates[1]:.0f}, and {rates[2]:.0f} with a stop string"


async def check_search(engine: EngineConfig, loaded: Engine) -> str:
    """The same search twice; it must return the same solutions."""
    solver = Solver(SolverConfig(engine=engine, search=SEARCH), engine=loaded)
    results = [await solver.asolve(QUESTION) for _ in range(2)]
    texts = [[trace.state.text for trace in result.traces] for result in results]
    require(bool(texts[0]), "no whole solution was seen")
    require(texts[0] == texts[1], "two searches with one seed differ")
    usage = results[0].usage
    return (
        f"{len(texts[0])} solutions twice the same, answer {results[0].answer}, {usage.generated_tokens} tokens generated, "
        f"{usage.prefilled_tokens} prefilled, {usage.reused_tokens} reused, {usage.seconds:.1f} s"
    )


# In this process


def variants(model: str, folder: Path) -> tuple[list[str], list[str], str]:
    """Two whole checkpoints, two LoRA adapters of rank 8 and one of rank 64, all other than `model`."""
    from peft import LoraConfig, get_peft_model

    device, tokenizer = torch.device("cpu"), load_tokenizer(model)
    whole, adapters = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded = load_causal_lm(model, torch.float32, device)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
        whole.append(str(folder / f"whole-{seed}"))
        loaded.save_pretrained(whole[-1])
    for seed, rank in ((1, 8), (2, 8), (3, 64)):
        torch.manual_seed(seed)
        tuned = get_peft_model(
            load_causal_lm(model, torch.float32, device),
            LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        )
        tuned.peft_config["default"].base_model_name_or_path = model
        adapters.append(str(folder / f"adapter-{seed}"))
        tuned.save_pretrained(adapters[-1])
    for place in [*whole, *adapters]:
        tokenizer.save_pretrained(place)
    return whole, adapters[:2], adapters[2]


async def check_swaps(engine: Any, models: list[str]) -> str:
    """Swap to and fro; after each swap the engine computes what transformers does, and memory stays."""
    expected = {m: reference(load_causal_lm(m, torch.float32, torch.device("cpu")), load_tokenizer(m)) for m in models}
    first, second = expected.values()
    require(distance(first, second) > 0.05, "the checkpoints are too alike for this check")
    memory, seconds, worst = [], [], 0.0
    for i in range(SWAPS):
        started = time.perf_counter()
        await engine.swap(models[i % 2])
        seconds.append(time.perf_counter() - started)
        worst = max(worst, distance(await engine.logprobs(STATE, ENDINGS), expected[models[i % 2]]))
        await engine.generate(Request(PROMPT, 4, 8, 1.0, seed=i))
        memory.append(resident())
    require(worst < 1e-3, f"log-probabilities differ from transformers by {worst:.1e}")
    growth = (memory[-1] - memory[1]) / (SWAPS - 2)  # the first swap of each checkpoint fills buffers that stay
    require(growth < 5, f"resident memory grows by {growth:.1f} MB a swap: {[round(m) for m in memory]}")
    shown = ", ".join(f"{m:.0f}" for m in memory)
    return (
        f"{max(seconds):.2f} s at most, within {worst:.0e} of transformers; "
        f"resident MB after each: {shown} ({growth:+.1f} a swap)"
    )


async def check_refusals(engine: Any, model: str, large: str, folder: Path) -> str:
    """What does not fit is refused in words, and the engine goes on as before."""
    before = await engine.generate(Request(PROMPT, 2, 8, 1.0, seed=3))
    other = folder / "other-shape"
    loaded = load_causal_lm(model, torch.float32, torch.device("cpu"))
    config = type(loaded.config).from_dict({**loaded.config.to_dict(), "intermediate_size": 64})
    type(loaded)(config).save_pretrained(other)
    load_tokenizer(model).save_pretrained(other)
    messages = []
    for refused in (large, str(other)):
        try:
            await engine.swap(refused)
        except ModelError as error:
            messages.append(str(error).replace(str(folder), "…"))
    require(len(messages) == 2, f"only {len(messages)} of 2 were refused")
    require(same(await engine.generate(Request(PROMPT, 2, 8, 1.0, seed=3)), before), "a refused swap changed the engine")
    return " | ".join(messages)


async def check_cancel(engine: Any) -> str:
    """A cancelled caller's sequences leave vLLM."""
    task = asyncio.create_task(engine.generate(Request(PROMPT, 8, 400, 2.0, seed=1)))
    await asyncio.sleep(0.1)
    running = engine._backend._llm.get_num_unfinished_requests()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.2)  # vLLM hears of it in its own thread
    left = engine._backend._llm.get_num_unfinished_requests()
    require(running > 0 and left == 0, f"{running} sequences before the cancellation, {left} after it")
    return f"{running} sequences before, none after"


async def in_process(report: Report, model: str) -> None:
    """The checks of the engine in this process."""
    from llm_mcts.engines.vllm.engine import VLLMEngine

    config = EngineConfig(model, name="vllm", max_batch=MAX_BATCH, vllm=VLLMConfig(max_lora_rank=8))
    started, before = time.perf_counter(), resident()
    engine = VLLMEngine(config)
    print(f"        started in {time.perf_counter() - started:.1f} s, {resident() - before:.0f} MB resident more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        expected = reference(load_causal_lm(model, torch.float32, torch.device("cpu")), load_tokenizer(model))

        async def agrees() -> str:
            worst = distance(await engine.logprobs(STATE, ENDINGS), expected)
            require(worst < 1e-3, f"log-probabilities differ from transformers by {worst:.1e}")
            return f"within {worst:.0e} of transformers"

        await report.check("log-probabilities", agrees)
        await report.check("seeds", lambda: check_seeds(engine))
        await report.check("long prompts", lambda: check_long_prompts(engine))
        await report.check("prefix cache", lambda: check_cache(engine))
        await report.check("speed", lambda: check_speed(engine))
        await report.check("search", lambda: check_search(config, engine))
        await report.check("cancellation", lambda: check_cancel(engine))
        first = await engine.generate(Request(PROMPT, 8, 24, 1.0, seed=9))
        whole, adapters, large = variants(model, folder)
        await report.check("swap of adapters", lambda: check_swaps(engine, adapters))
        await report.check("swap of whole weights", lambda: check_swaps(engine, whole))
        await report.check("swaps refused", lambda: check_refusals(engine, model, large, folder))

        async def back() -> str:
            await engine.swap(model)
            require(same(await engine.generate(Request(PROMPT, 8, 24, 1.0, seed=9)), first), "not the first weights' answers")
            return await agrees()

        await report.check("swap back", back)

    async def closes() -> str:
        await engine.aclose()
        left = psutil.Process().children(recursive=True)
        require(not [p for p in left if "multiprocessing.resource_tracker" not in " ".join(p.cmdline())], f"left: {left}")
        return f"no process is left, {resident() - before:.0f} MB resident more than before the start"

    await report.check("close", closes)

    async def anew() -> str:
        other = VLLMEngine(replace(config, max_batch=5, vllm=VLLMConfig()))
        again = await other.generate(Request(PROMPT, 8, 24, 1.0, seed=9))
        await other.aclose()
        require(same(again, first), "another engine with the same model answers otherwise")
        return "another engine, five sequences at a time and without room for adapters, gives the same answers"

    await report.check("determinism", anew)


# The server


@contextlib.contextmanager
def serve(model: str) -> Iterator[str]:
    """vLLM's server on loopback, ended on leaving; its base URL.

    Without --no-enable-chunked-prefill a CPU server dies when a seeded request's prompt does not fit into a batch.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "checked", "--dtype", "float32"]
    arguments += ["--max-num-seqs", str(MAX_BATCH), "--no-enable-chunked-prefill", "--block-size", "32", "--enforce-eager"]
    arguments += ["--enable-prompt-tokens-details", "--no-enable-log-requests", "--generation-config", "vllm"]
    # What `vllm serve` runs; the command itself fails in builds that are not packaged as "vllm" (it asks for that version).
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *arguments]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        _await_health(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(process: "subprocess.Popen[bytes]", url: str) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise ModelError(
                f"vLLM's server ended with status {process.returncode} before it was ready; its log above tells more"
            )
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(1)
    raise ModelError("vLLM's server was not ready after 300 s; expected an answer from /health")


async def served(report: Report, model: str) -> None:
    """The checks of the OpenAI engine against a vLLM server."""
    from llm_mcts.engines.openai.engine import OpenAIEngine

    expected = reference(load_causal_lm(model, torch.float32, torch.device("cpu")), load_tokenizer(model))
    with serve(model) as url:
        config = EngineConfig("checked", name="openai", openai=OpenAIConfig(urls=(url,)))
        engine = OpenAIEngine(config)

        async def agrees() -> str:
            found = [sum(row) for row in await engine.logprobs(STATE, ["".join(ending) for ending in ENDINGS])]
            worst = max(abs(a - sum(b)) for a, b in zip(found, expected, strict=True))
            # The server tokenises prompt and continuation as one text, which need not be the tokens of the segments.
            return f"sums {found}, {worst:.1e} from those of the segments in transformers"

        await report.check("server: log-probabilities", agrees)
        await report.check("server: seeds", lambda: check_seeds(engine))
        await report.check("server: long prompts", lambda: check_long_prompts(engine))
        await report.check("server: prefix cache", lambda: check_cache(engine))
        await report.check("server: speed", lambda: check_speed(engine))
        await report.check("server: search", lambda: check_search(config, engine))
        await engine.aclose()


def main() -> int:
    """Run the checks and sum them up."""
    parser = argparse.ArgumentParser(description="Check the engines on a real vLLM.")
    parser.add_argument("model", nargs="?", default=str(ROOT / "llm_mcts" / "embedded"), help="a Hugging Face folder")
    parser.add_argument("--only", choices=["process", "server"])
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    report = Report()
    package = next(name for name in ("vllm", "vllm-cpu") if _installed(name))
    versions = [f"{name} {version(name)}" for name in (package, "torch", "transformers")]
    print(f"        {', '.join(versions)}, {arguments.model}")
    if arguments.only != "server":
        asyncio.run(in_process(report, arguments.model))
    if arguments.only != "process":
        asyncio.run(served(report, arguments.model))
    print(f"\n{len(report.lines) - report.failed} of {len(report.lines)} checks passed")
    return 1 if report.failed else 0


def _installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
