"""A proof on one card, without a network: each part in a process of its own, under a time limit, its results kept as they come.

    versions    the card, its driver, the libraries
    exactness   float32 on the card against float32 on the CPU (TF32 off), bfloat16 against float32, the same batch twice
    decode      tokens per second beside transformers' `generate`, launches per step, busy share, peak memory, by rows and size
    trainers    a tiny self-improvement round of every configuration: every trainer and critic takes some steps on the card
    quickstart  the quickstart's accuracy by round, beside the CPU's figures of the README

Models are random weights of real shape (speed does not depend on the weights) or the built-in one. On a machine without a GPU
everything runs on the CPU; `--size tiny` makes that a matter of minutes.
"""

import argparse
import asyncio
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"versions": 0.05, "exactness": 0.15, "decode": 0.35, "trainers": 0.2, "quickstart": 0.25}
"""Part -> its share of the minutes."""
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "datasets": "datasets",
    "safetensors": "safetensors",
    "jsonargparse": "jsonargparse",
    "docstring_parser": "docstring-parser",
    "typeshed_client": "typeshed-client",
    "yaml": "pyyaml",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "filelock": "filelock",
}
"""Module -> the package that brings it: what the core imports."""
SHAPES = {
    "tiny": {"hidden": 56, "inner": 64, "layers": 2, "heads": 14, "kv": 2, "vocabulary": 2048},
    "0.5b": {"hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "kv": 2, "vocabulary": 151936},
    "7b": {"hidden": 3584, "inner": 18944, "layers": 28, "heads": 28, "kv": 4, "vocabulary": 151936},
}
"""Qwen2's shapes."""


def main() -> int:
    """Run the parts one after the other; 0 if all passed, 1 if one failed, 2 if packages are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, by comma (default: all)")
    parser.add_argument("--minutes", type=float, default=6.0, help="time for all parts together (default: 6)")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: a run of minutes on a CPU")
    parser.add_argument("--run", choices=tuple(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        print(f"missing packages: {' '.join(missing)}; install them, or put their wheels on PYTHONPATH", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.run:
        passed = True
        for result in RUN[arguments.run](arguments):
            note(arguments.out, {"part": arguments.run, **result})
            passed = passed and result.get("passed", True)
        return 0 if passed else 1
    chosen = [part.strip() for part in arguments.parts.split(",")]
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no part '{unknown[0]}'; expected some of {', '.join(PARTS)}")
    failed = [part for part in chosen if not in_a_process(part, arguments, chosen)]
    text = table(json.loads((arguments.out / "proof.json").read_text(encoding="utf-8")))
    (arguments.out / "proof.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if failed else 0


def in_a_process(part: str, arguments: argparse.Namespace, chosen: list[str]) -> bool:
    """Run a part under its share of the time; what it had noted before its limit stays."""
    seconds = arguments.minutes * 60 * PARTS[part] / sum(PARTS[name] for name in chosen)
    command = [sys.executable, __file__, "--run", part, "--out", str(arguments.out), "--size", arguments.size]
    command += ["--minutes", str(seconds / 60)]
    started, ending = time.perf_counter(), "passed"
    try:
        done = subprocess.run(command, timeout=max(seconds, 20), cwd=ROOT)
        if done.returncode:
            ending = f"failed with status {done.returncode}"
    except subprocess.TimeoutExpired:
        ending = f"stopped at its limit of {seconds:.0f} s"
    note(arguments.out, {"part": part, "ending": ending, "seconds": round(time.perf_counter() - started, 1)})
    return ending == "passed"


def note(out: Path, result: dict[str, Any]) -> None:
    """Append one result to proof.json, which is whole at every moment."""
    file = out / "proof.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps([*results, result], indent=1) + "\n", encoding="utf-8")
    beside.replace(file)
    print(json.dumps(result), flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """All results as Markdown, a section per part."""
    lines = ["# GPU proof", ""]
    for part in dict.fromkeys(row["part"] for row in results):
        lines += [f"## {part}", "", "| what | value |", "|---|---|"]
        for row in results:
            if row["part"] == part:
                lines += [f"| {key} | {value} |" for key, value in row.items() if key != "part"]
        lines.append("")
    return "\n".join(lines)


Results = Iterator[dict[str, Any]]


def device() -> str:
    """cuda where there is a card, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions(_: argparse.Namespace) -> Results:
    """The card and the libraries."""
    import torch
    import transformers

    result = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    if device() == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        result |= {
            "card": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda or "",
            "driver": driver,
        }
    else:
        result |= {"card": "none: CPU"}
    yield result


QUESTION = "Mia has 3 boxes with {} shells each. Then Mia buys 5 more. How many shells does Mia have now?"
LINES = ("Mia has 3 * {} = 12 shells.\n", "Then Mia has 12 + 5 = 17 shells.\n", "#### 17\n")


def embedded_engine(where: str, dtype: str, rows: int = 16) -> Any:
    """The built-in model on a device."""
    from llm_mcts.engines.base import EngineConfig
    from llm_mcts.engines.transformers.engine import TransformersEngine

    return TransformersEngine(EngineConfig(device=where, dtype=dtype, max_batch=rows))


def readings(engine: Any, count: int) -> tuple[list[float], list[str]]:
    """Log-probabilities of given lines behind `count` questions, and greedy continuations of the questions."""
    from llm_mcts.engines.base import Request

    async def every() -> tuple[list[float], list[str]]:
        prompts = [(f"{QUESTION.format(i)}\n",) for i in range(2, 2 + count)]
        read = await asyncio.gather(
            *(engine.logprobs(prompt, [[line.format(i) for line in LINES]]) for i, prompt in enumerate(prompts, 2))
        )
        written = await asyncio.gather(*(engine.generate(Request(prompt, 1, 48, 0.0, (), 0)) for prompt in prompts))
        return [x for found in read for row in found for x in row], [found[0].text for found in written]

    return asyncio.run(every())


def exactness(arguments: argparse.Namespace) -> Results:
    """The same numbers everywhere, as far as a number format allows it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    count = 8 if arguments.size == "tiny" else 32
    expected, greedy = readings(embedded_engine("cpu", "float32"), count)
    where = device()
    exact, texts = readings(embedded_engine(where, "float32"), count)
    error = max(abs(a - b) for a, b in zip(expected, exact, strict=True))
    yield {"float32 logprobs, largest difference (<= 1e-4)": error, "passed": error <= 1e-4}
    yield {"float32 greedy texts equal": f"{sum(map(str.__eq__, greedy, texts))} of {count}", "passed": greedy == texts}
    twice = readings(embedded_engine(where, "float32"), count)
    yield {"float32, the same batch twice": twice == (exact, texts), "passed": twice == (exact, texts)}
    if where == "cpu" and arguments.size == "full":
        yield {"bfloat16": "left out: emulated on a CPU"}
        return
    rough, shorter = readings(embedded_engine(where, "bfloat16"), count)
    errors = [abs(a - b) for a, b in zip(expected, rough, strict=True)]
    mean = sum(errors) / len(errors)
    yield {"bfloat16 logprobs, mean difference (<= 0.05)": mean, "largest": max(errors), "passed": mean <= 0.05}
    pairs = [(a, b) for x, y in zip(greedy, shorter, strict=True) for a, b in zip(x.split(), y.split(), strict=False)]
    share = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    yield {"bfloat16 greedy words equal (>= 0.97)": round(share, 4), "passed": share >= 0.97}
    again = readings(embedded_engine(where, "bfloat16"), count)
    yield {"bfloat16, the same batch twice": again == (rough, shorter), "passed": again == (rough, shorter)}


def random_model(size: str) -> Any:
    """A Qwen2 of that shape with random weights, on the device, in its usual number format."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape, where = SHAPES[size], device()
    config = Qwen2Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device(where):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if where == "cuda" else torch.float32).eval()


def decode(arguments: argparse.Namespace) -> Results:
    """Tokens per second of the engine and of `generate`, with 256 prompt and 128 new tokens per row."""
    import torch

    sizes, rows, new, prompt = ("0.5b", "7b"), (1, 8, 64, 256), 128, 256
    if arguments.size == "tiny":
        sizes, rows, new, prompt = ("tiny",), (1, 8), 16, 32
    for size in sizes:
        model = random_model(size)
        for count in rows:
            yield {"size": size, "rows": count, **decode_speed(model, count, new, prompt)}
        del model
        if device() == "cuda":
            torch.cuda.empty_cache()


def decode_speed(model: Any, rows: int, new: int, prompt: int) -> dict[str, Any]:
    """Both speeds in one run, and what the engine's steps cost."""
    import torch

    from llm_mcts.engines.base import EngineConfig, Request
    from llm_mcts.engines.transformers.engine import TransformersEngine
    from llm_mcts.models import load_tokenizer

    where, cuda = device(), device() == "cuda"
    config = EngineConfig(device=where, max_batch=rows, cache_mb=4096)
    engine = TransformersEngine(config, model=model, tokenizer=load_tokenizer("embedded"))
    engine.endings.eos = frozenset()
    ids = torch.randint(5, 500, (rows, prompt), device=where)

    def ours() -> None:
        async def every() -> None:
            texts = [f"{i} " + "a " * (prompt // 2) for i in range(rows)]
            await asyncio.gather(*(engine.generate(Request((t,), 1, new, 1.0, (), i)) for i, t in enumerate(texts)))

        engine.batch.tree = type(engine.batch.tree)(engine.batch.tree.byte_limit)
        asyncio.run(every())

    def theirs() -> None:
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    result = {"engine, tokens/s": round(rows * new / fastest(ours), 1)}
    if cuda:
        result["peak, GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        result |= launches(ours, new)
    return result | {"generate, tokens/s": round(rows * new / fastest(theirs), 1)}


def fastest(run: Callable[[], None], repeats: int = 2) -> float:
    """Seconds of the fastest of some runs behind one for warmth."""
    import torch

    seconds = []
    for i in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device() == "cuda":
            torch.cuda.synchronize()
        seconds += [time.perf_counter() - started] if i else []
    return min(seconds)


def launches(run: Callable[[], None], steps: int) -> dict[str, float]:
    """Kernel launches per decode step, and the share of the time that the card computes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    events = profiled.key_averages()
    count = sum(event.count for event in events if "LaunchKernel" in event.key)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    return {"launches per step": round(count / steps), "busy share (profiled)": round(busy / seconds, 3)}


TINY_RUN = {
    "num_rounds": 1,
    "train_questions": 12,
    "eval_questions": 4,
    "concurrency": 8,
    "methods": '{"greedy": "greedy"}',
    "task.level": "medium",
    "solver.search.num_simulations": 8,
    "solver.policy.max_solution_tokens": 60,
}
TINY_OF_EACH = {
    "policy_gradient": {
        "policy_loss.policy_gradient.iterations": 2,
        "policy_loss.policy_gradient.questions_per_iteration": 4,
        "policy_loss.policy_gradient.samples_per_question": 2,
    },
    "imagine": {"imagined_questions": 4, "agreement.min_vote": 0.1, "agreement.min_score": 0.0},
    "dpo": {"solver.search.num_simulations": 16},
}


def trainers(arguments: argparse.Namespace) -> Results:
    """A tiny round of every self-improvement configuration that runs on the built-in task."""
    for file in sorted((ROOT / "configs" / "self_improve").glob("*.yaml")):
        if file.stem.startswith("gsm8k"):
            continue
        settings = TINY_RUN | TINY_OF_EACH.get(file.stem, {})
        yield {"configuration": file.stem, **self_improve(file, arguments.out / f"run_{file.stem}", settings)}


def quickstart(arguments: argparse.Namespace) -> Results:
    """The quickstart, whole, or tiny."""
    settings = TINY_RUN if arguments.size == "tiny" else {}
    out = arguments.out / "run_quickstart"
    result = self_improve(ROOT / "configs" / "quickstart.yaml", out, settings)
    report = json.loads((out / "report.json").read_text(encoding="utf-8")) if result["passed"] else {}
    yield result | {"scores": report.get("scores", [])}


def self_improve(file: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the command; how long it took, and its last words where it failed."""
    command = [sys.executable, "-m", "llm_mcts.cli", "self-improve", "--config", str(file), "--out", str(out)]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1), "passed": done.returncode == 0}
    return result if result["passed"] else result | {"error": (done.stderr or done.stdout).strip()[-2000:]}


RUN: dict[str, Callable[[argparse.Namespace], Results]] = {
    "versions": versions,
    "exactness": exactness,
    "decode": decode,
    "trainers": trainers,
    "quickstart": quickstart,
}

if __name__ == "__main__":
    sys.exit(main())
