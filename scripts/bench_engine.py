#!/usr/bin/env python3
"""What the engine costs: decoding and a whole search beside plain `generate`, computed tokens, and the CPU's limit.

    python scripts/bench_engine.py --model FOLDER --questions FILE.jsonl [--parts decode search work] [--threads 2]

decode   32 prompts, 128 new tokens each: tokens per second of the engine, of `model.generate` on the same batch, and, where
         openvino-genai is installed and --openvino is given, of the openvino engine; runs alternate, medians of --repeats
limit    the same step's matrix products alone: as PyTorch lays weights out, packed, and at the speed of one large product
search   the same mcts over the engine, many questions at once, and over one `generate` call per request, one at a time
memory   resident memory of a policy alone, and of policy, value model, PRM, ORM and verifier as LoRA adapters on one backbone
work     mcts with three critics, 32 questions at once: computed tokens per distinct token, for the policy and each critic, and
         rows per decode step until nine tenths of the run are over

Critics of the work part have random heads: they cost what trained ones cost. Questions are JSON lines with a "question".
"""

import argparse
import asyncio
import gc
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from critics import CriticModel, ModelCritic, WeightedCritic
from critics.model.lora import LoraSpec
from llm_mcts.engines import build_engine
from llm_mcts.engines.base import Completion, Engine, EngineConfig, Request
from llm_mcts.engines.transformers.adapters import SharedBackbone
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.engines.transformers.packing import PackedLinear
from llm_mcts.models import adapter_base, load_causal_lm, load_tokenizer
from llm_mcts.policy import LMPolicy, PolicyConfig
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.types import Critic, Policy, Problem, State, meter

IN_FLIGHT = 32
CPU = torch.device("cpu")


class PlainEngine:
    """One `generate` call a request, nothing kept: what a search without an engine does."""

    chat_template = None

    def __init__(self, model: str) -> None:
        self.model, self.tokenizer = load_causal_lm(model, torch.float32, CPU), load_tokenizer(model)
        self.encode = Encoder(self.tokenizer)

    async def generate(self, request: Request) -> list[Completion]:
        """Sample `request.n` continuations with transformers' own loop."""
        prompt = self.encode(request.prompt)
        torch.manual_seed(request.seed % 2**63)
        how: dict[str, Any] = {"temperature": request.temperature, "top_k": 0} if request.temperature else {}
        with torch.inference_mode():
            rows = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=request.temperature > 0,
                num_return_sequences=request.n,
                max_new_tokens=request.max_tokens,
                stop_strings=list(request.stop) or None,
                tokenizer=self.tokenizer,
                pad_token_id=self.tokenizer.eos_token_id,
                **how,
            )
        usage = meter()
        usage.lm_calls += 1
        completions = []
        for row in rows[:, len(prompt) :].tolist():
            tokens = row[: row.index(self.tokenizer.eos_token_id)] if self.tokenizer.eos_token_id in row else row
            text = self.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()
            cuts = [at for stop in request.stop if (at := text.find(stop)) >= 0]
            reason = "stop" if cuts else "eos" if len(tokens) < len(row) else "length"
            usage.generated_tokens += len(tokens)
            completions.append(Completion(text[: min(cuts, default=len(text))], 0.0, max(1, len(tokens)), reason))  # type: ignore[arg-type]
        return completions


def time_decoding(model: str, prompts: Sequence[str], new_tokens: int, repeats: int, openvino: bool) -> dict[str, Any]:
    """Median seconds and tokens per second of each way to continue all prompts by `new_tokens` tokens."""
    plain, tokenizer = load_causal_lm(model, torch.float32, CPU), load_tokenizer(model)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)

    def generate() -> None:
        with torch.inference_mode():
            plain.generate(**batch, do_sample=True, top_k=0, max_new_tokens=new_tokens, min_new_tokens=new_tokens)

    ways: dict[str, Callable[[], None]] = {"generate": generate}
    names = ["transformers", *(["openvino"] if openvino else [])]
    engines = {name: build_engine(EngineConfig(model, name=name, max_batch=len(prompts))) for name in names}  # type: ignore[arg-type]
    for name, engine in engines.items():
        ways[name] = lambda engine=engine: asyncio.run(_decode(engine, prompts, new_tokens))  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if turn:  # the first is to warm up
                seconds[name].append(time.perf_counter() - started)
    found = {
        name: {"seconds": median(times), "tokens_per_second": len(prompts) * new_tokens / median(times)}
        for name, times in seconds.items()
    }
    ratios = {name: median(g / s for g, s in zip(seconds["generate"], seconds[name], strict=True)) for name in names}
    return {"prompts": len(prompts), "new_tokens": new_tokens, **found, "times_generate": ratios}


async def _decode(engine: Engine, prompts: Sequence[str], new_tokens: int) -> None:
    engine.endings.eos = frozenset()  # type: ignore[attr-defined]  # every row to its full length
    if isinstance(engine, TransformersEngine):
        engine.batch.tree = type(engine.batch.tree)(engine.batch.tree.byte_limit)  # no run profits from the one before
    asked = [Request((prompt,), 1, new_tokens, 1.0, (), i) for i, prompt in enumerate(prompts)]
    found = await asyncio.gather(*(engine.generate(request) for request in asked))
    assert all(c.num_tokens == new_tokens for row in found for c in row)


def time_matrix_products(model: str, rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one decode step's matrix products, by layout, and at the rate of one large product."""
    linears = [m for m in load_causal_lm(model, torch.float32, CPU).modules() if isinstance(m, nn.Linear)]
    packed = [PackedLinear(linear) for linear in linears]
    inputs = {width: torch.randn(rows, width) for width in {linear.in_features for linear in linears}}
    square = torch.randn(2048, 2048)
    flops = sum(2 * rows * linear.weight.numel() for linear in linears)

    def timed(run: Callable[[], Any]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    def all_of(layers: Sequence[Any]) -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    with torch.inference_mode():
        runs = {"plain": lambda: all_of(linears), "packed": lambda: all_of(packed), "large": lambda: square @ square}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                if (seconds := timed(run)) and turn:
                    times[name].append(seconds)
    rate = 2 * 2048**3 / median(times["large"])
    return {
        "plain_ms": 1e3 * median(times["plain"]),
        "packed_ms": 1e3 * median(times["packed"]),
        "at_large_product_rate_ms": 1e3 * flops / rate,
        "large_product_gflops": rate / 1e9,
    }


def run_search(
    engine: Engine, critic: Critic | None, questions: Sequence[str], config: MCTSConfig, together: int
) -> dict[str, Any]:
    """Seconds and tokens of a search over all questions, `together` at a time."""
    limits = PolicyConfig(max_step_tokens=48, max_solution_tokens=160)
    policy: Policy = LMPolicy(engine, PromptFormat(PromptConfig(), None), limits)

    async def solve(question: str) -> SearchResult:
        return await mcts(question, policy, critic, config, 0)

    problems = [Problem(str(i), question) for i, question in enumerate(questions)]
    started = time.perf_counter()
    records = asyncio.run(run_questions(problems, solve, lambda *_: False, together))
    seconds = time.perf_counter() - started
    failed = [record.error for record in records if record.error]
    assert not failed, failed[0]
    tokens = sum(record.usage.generated_tokens for record in records)
    return {"questions": len(questions), "seconds": seconds, "tokens": tokens, "seconds_per_question": seconds / len(questions)}


def compare_searches(model: str, questions: Sequence[str], few: int, config: MCTSConfig) -> dict[str, Any]:
    """The same search over the engine and over plain generate calls, the latter on `few` questions."""
    engine = TransformersEngine(EngineConfig(model, max_batch=IN_FLIGHT, cache_mb=4096))
    fast = run_search(engine, None, questions, config, IN_FLIGHT)
    slow = run_search(PlainEngine(model), None, questions[:few], config, 1)
    return {
        "engine": fast,
        "plain_generate": slow,
        "times_faster_per_question": slow["seconds_per_question"] / fast["seconds_per_question"],
        "times_faster_per_token": (fast["tokens"] / fast["seconds"]) / (slow["tokens"] / slow["seconds"]),
    }


class Recorder:
    """Notes which token prefixes a batched model is asked for, and how full its decode steps are."""

    def __init__(self, batch: BatchedModel) -> None:
        self.batch, self.asked, self.rows = batch, dict[int, Any](), list[int]()
        submit, decode = batch._submit, batch._decode

        def noting_submit(work: Sequence[Any]) -> None:
            for one in work:
                node = self.asked
                for token in one.known:
                    node = node.setdefault(token, {})
            submit(work)

        def noting_decode() -> None:
            self.rows.append(len(batch.active))
            decode()

        batch._submit, batch._decode = noting_submit, noting_decode  # type: ignore[method-assign]

    def report(self) -> dict[str, float]:
        """Computed and distinct tokens, and the share of full rows in the first nine tenths of the decode steps."""
        distinct, stack = 0, [self.asked]
        while stack:
            node = stack.pop()
            distinct += len(node)
            stack.extend(node.values())
        found: dict[str, float] = {
            "prefilled_tokens": self.batch.prefilled_tokens,
            "distinct_tokens": distinct,
            "prefilled_per_distinct": self.batch.prefilled_tokens / distinct,
        }
        if self.rows:
            first = self.rows[: len(self.rows) * 9 // 10]
            found["occupancy_until_last_tenth"] = sum(first) / len(first) / self.batch.max_batch
        return found


def count_work(model: str, questions: Sequence[str], config: MCTSConfig, cache_mb: int) -> dict[str, Any]:
    """Computed per distinct tokens of the policy and of three critics, and batch occupancy, in one mcts over all questions."""
    engine = TransformersEngine(EngineConfig(model, max_batch=IN_FLIGHT, cache_mb=cache_mb))
    critics = {
        kind: ModelCritic(CriticModel.create(kind, model), max_batch=IN_FLIGHT, cache_mb=cache_mb)  # type: ignore[arg-type]
        for kind in ("value", "prm", "orm")
    }
    recorders = {"policy": Recorder(engine.batch)} | {kind: Recorder(critic.batch) for kind, critic in critics.items()}
    search = run_search(engine, WeightedCritic(**critics), questions, config, IN_FLIGHT)
    return {"search": search, **{name: recorder.report() for name, recorder in recorders.items()}}


def measure_memory(model: str, rank: int = 16) -> dict[str, float]:
    """Megabytes resident after loading the policy alone, and policy and four critics on one backbone."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for kind in ("value", "prm", "orm"):
            CriticModel.create(kind, model, lora=LoraSpec(rank=rank)).save_pretrained(root / kind)  # type: ignore[arg-type]
        lm = LoraSpec(rank=rank).adapt(load_causal_lm(model, torch.float32, CPU), "CAUSAL_LM")
        for name in ("policy", "genrm"):
            lm.save_pretrained(root / name)
            load_tokenizer(model).save_pretrained(root / name)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            alone = pool.submit(_resident, model, {}).result()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            critics = {kind: str(root / kind) for kind in ("value", "prm", "orm", "genrm")}
            together = pool.submit(_resident, str(root / "policy"), critics).result()
    return {"policy_mb": alone, "policy_and_four_critics_mb": together, "ratio": together / alone}


def _resident(policy: str, critics: dict[str, str]) -> float:
    """Megabytes that this process grows by when it loads these models; one short request each, so that all are in use."""
    before = _rss()
    if not critics:
        engine: Engine = TransformersEngine(EngineConfig(policy))
    else:
        base = adapter_base(policy)
        assert base is not None
        shared = SharedBackbone(load_causal_lm(base, torch.float32, CPU), base)
        tokenizer = load_tokenizer(policy)
        engine = TransformersEngine(EngineConfig(policy), model=shared.as_lm(shared.add(policy)), tokenizer=tokenizer)
        verifier = TransformersEngine(model=shared.as_lm(shared.add(critics["genrm"])), tokenizer=tokenizer)
        judges = [
            ModelCritic(CriticModel.from_pretrained(folder, shared=shared))
            for kind, folder in critics.items()
            if kind != "genrm"
        ]
        shared.pack()
        asyncio.run(verifier.generate(Request(("7",), 1, 2)))
        for judge in judges:
            asyncio.run(judge.score([State("7")]))
    asyncio.run(engine.generate(Request(("7",), 1, 2)))
    gc.collect()
    return _rss() - before


def _rss() -> float:
    """Resident megabytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Run the chosen parts and print their figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with a question each")
    parser.add_argument("--parts", nargs="+", default=["decode", "limit", "search", "memory", "work"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--search-questions", type=int, default=64)
    parser.add_argument("--plain-questions", type=int, default=4, help="questions of the search over plain generate calls")
    parser.add_argument("--simulations", type=int, default=8)
    parser.add_argument("--cache-mb", type=int, default=3000, help="prefix tree of each model in the work part")
    parser.add_argument("--openvino", action="store_true", help="time the openvino engine too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    questions = [json.loads(line)["question"] for line in args.questions.read_text(encoding="utf-8").splitlines()]
    questions = questions[: args.search_questions]
    prompts = [PromptFormat(PromptConfig(), None).question(question) for question in questions[:IN_FLIGHT]]
    config = MCTSConfig(num_simulations=args.simulations, num_parallel=2)
    parts: dict[str, Callable[[], Any]] = {
        "decode": lambda: time_decoding(args.model, prompts, args.new_tokens, args.repeats, args.openvino),
        "limit": lambda: time_matrix_products(args.model, IN_FLIGHT, 5 * args.repeats),
        "search": lambda: compare_searches(args.model, questions, args.plain_questions, config),
        "memory": lambda: measure_memory(args.model),
        "work": lambda: count_work(args.model, questions, config, args.cache_mb),
    }
    for part in args.parts:
        print(json.dumps({part: parts[part]()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
