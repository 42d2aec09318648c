#!/usr/bin/env python3
"""Time the openvino engine beside `model.generate` of transformers: tokens a second, prompts included.

    python scripts/bench_openvino.py --model FOLDER [--weights int8] [--temperature 0] [--repeats 3] [--json FILE]

Both sides continue the same batch of 32 question-length prompts (about 120 tokens) by 128 tokens each and ignore ends of
text. They run in turn, so that what else runs on the machine hits both; each turn has prompts of its own, so that the
engine's prefix cache finds nothing. The figure that lasts is the median of the turns' ratios.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from llm_mcts.engines.base import Engine, EngineConfig, OpenVINOConfig, Request
from llm_mcts.engines.openvino import OpenVINOEngine
from llm_mcts.engines.transformers import load_causal_lm, load_tokenizer
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State

NAMES = ("Ann", "Bob", "Cara", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon")
THINGS = ("apples", "books", "coins", "pens", "cards", "stamps", "shells", "beads")


def questions(count: int, seed: int) -> list[str]:
    """Word problems of the length of GSM8K's longer ones: about 110 tokens."""
    draw = random.Random(seed)
    told = []
    for _ in range(count):
        (a, b, c), thing = draw.sample(NAMES, 3), draw.choice(THINGS)
        n = [draw.randint(2, 99) for _ in range(7)]
        told.append(
            f"{a} has {n[0]} {thing} and puts them into {n[1]} boxes of the same size. On Monday {b} brings {n[2]} more "
            f"{thing}, and on Tuesday {c} takes {n[3]} of them away to share with {n[4]} friends. Each of these friends gives "
            f"half of what they got back to {a} at the end of the week, while {b} buys {n[5]} {thing} at {n[6]} cents each. "
            f"How many {thing} do {a}, {b} and {c} have together at the end of the week, and how much money did {b} spend?"
        )
    return told


def engine_rate(engine: Engine, prompts: Sequence[tuple[str, ...]], new_tokens: int, temperature: float) -> float:
    """Tokens a second of an engine that continues all prompts at once."""

    async def all_at_once() -> int:
        requests = [Request(prompt, 1, new_tokens, temperature, seed=i) for i, prompt in enumerate(prompts)]
        return sum(c.num_tokens for [c] in await asyncio.gather(*map(engine.generate, requests)))

    started = time.perf_counter()
    tokens = asyncio.run(all_at_once())
    return tokens / (time.perf_counter() - started)


def generate_rate(model: Any, tokenizer: Any, prompts: Sequence[tuple[str, ...]], new_tokens: int, temperature: float) -> float:
    """Tokens a second of `model.generate` on one left-padded batch."""
    batch = tokenizer(["".join(prompt) for prompt in prompts], padding=True, return_tensors="pt")
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**batch, **sampling, max_new_tokens=new_tokens, eos_token_id=None)
    made = int(out[:, batch.input_ids.shape[1] :].numel())
    return made / (time.perf_counter() - started)


def main() -> None:
    """Run both sides in turn and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--weights", choices=["int8", "int4", "float32"], default="int8")
    parser.add_argument("--exports", default=OpenVINOConfig().exports)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = OpenVINOEngine(EngineConfig("openvino", args.model, openvino=OpenVINOConfig(args.weights, args.exports)))
    engine.endings.eos = frozenset()
    tokenizer = load_tokenizer(args.model)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    model = load_causal_lm(args.model, torch.float32, torch.device("cpu"))
    written = PromptFormat(PromptConfig())
    rows, lengths = [], []
    for turn in range(args.repeats + 1):
        prompts = [written.segments(State(question)) for question in questions(args.batch, turn)]
        lengths += [len(tokenizer("".join(prompt)).input_ids) for prompt in prompts]
        count = args.new_tokens if turn else 4  # turn 0 warms both up
        ours = engine_rate(engine, prompts, count, args.temperature)
        theirs = generate_rate(model, tokenizer, prompts, count, args.temperature)
        if turn:
            rows.append({"engine": ours, "generate": theirs, "ratio": ours / theirs, "load": os.getloadavg()[0]})
            print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    medians = {name: median(row[name] for row in rows) for name in rows[0]}
    print(f"prompts of {min(lengths)} to {max(lengths)} tokens, {args.threads} threads, weights {args.weights}; medians:")
    print({name: round(value, 2) for name, value in medians.items()})
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args), "runs": rows, "medians": medians}, default=str, indent=1))


if __name__ == "__main__":
    main()
