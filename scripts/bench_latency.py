#!/usr/bin/env python3
"""Wall-clock of many searches at once on an engine with a known price, compared with the minimum that price allows.

    python scripts/bench_latency.py [--json] [--questions 64] [--simulations 64] [--parallel 4]

The engine is a stand-in: a batch of at most 64 rows takes 20 ms and 1 ms a row, one batch at a time. If every batch were
full, R rows would take R / 64 * 20 ms + R * 1 ms: that is the bound. The same searches are then run one question and one
leaf at a time, on fewer questions, for the ratio of simulations per second.
"""

import argparse
import asyncio
import json
import random
import time
from collections import deque
from typing import Any

from llm_mcts.engines.base import Completion, Request
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.result import SearchResult
from llm_mcts.runner import run_questions
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.types import Problem

MAX_ROWS, BATCH_SECONDS, ROW_SECONDS = 64, 0.020, 0.001
DEPTH = 6


class PricedEngine:
    """Sleeps for what a batch costs; writes random solutions of DEPTH lines."""

    chat_template = None

    def __init__(self) -> None:
        self.waiting: deque[tuple[Request, asyncio.Future[list[Completion]]]] = deque()
        self.worker: asyncio.Task[None] | None = None
        self.rows = self.batches = 0

    async def generate(self, request: Request) -> list[Completion]:
        """Wait in line for a batch."""
        future: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Batches of whatever waits, one after the other."""
        while self.waiting:
            batch, rows = [], 0
            while self.waiting and rows + self.waiting[0][0].n <= MAX_ROWS:
                batch.append(self.waiting.popleft())
                rows += batch[-1][0].n
            self.rows += rows
            self.batches += 1
            await asyncio.sleep(BATCH_SECONDS + ROW_SECONDS * rows)
            for request, future in batch:
                future.set_result([self._complete(request, i) for i in range(request.n)])

    @staticmethod
    def _complete(request: Request, i: int) -> Completion:
        draw = random.Random(request.seed * 1009 + i)
        lines = [f"step {draw.randrange(1000)}" for _ in range(DEPTH - (len(request.prompt) - 1))]
        if request.stop == ("\n",):
            text = lines[0] if lines else f"#### {draw.randrange(10)}"
        else:
            text = "\n".join([*lines, f"#### {draw.randrange(10)}"])
        return Completion(text, -1.0, 10 * (text.count("\n") + 1), "stop")


class DummyCritic:
    """Random values at no cost."""

    async def score(self, states: Any) -> list[float]:
        """A number in [0, 1] for each state."""
        return [random.Random(state.text).random() for state in states]


def measure(questions: int, simulations: int, concurrency: int, num_parallel: int) -> dict[str, float]:
    """Search `questions`, `concurrency` at once; seconds, rows, batches and the bound."""
    engine = PricedEngine()
    policy = LMPolicy(engine, PromptFormat(PromptConfig()))
    config = MCTSConfig(num_simulations=simulations, num_parallel=num_parallel)
    problems = [Problem(str(i), f"Question {i}?") for i in range(questions)]
    done = 0

    async def solve(question: str) -> SearchResult:
        nonlocal done
        result = await mcts(question, policy, DummyCritic(), config, 0)
        assert result.tree is not None
        done += result.tree.root.visit_count - 1
        return result

    started = time.perf_counter()
    asyncio.run(run_questions(problems, solve, lambda solution, gold: False, concurrency))
    seconds = time.perf_counter() - started
    bound = engine.rows / MAX_ROWS * BATCH_SECONDS + engine.rows * ROW_SECONDS
    return {
        "questions": questions,
        "simulations": done,
        "rows": engine.rows,
        "batches": engine.batches,
        "rows_per_batch": engine.rows / engine.batches,
        "seconds": seconds,
        "bound_seconds": bound,
        "over_bound": seconds / bound,
        "simulations_per_second": done / seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=64)
    parser.add_argument("--parallel", type=int, default=4, help="simulations of a question under way at once")
    args = parser.parse_args()
    together = measure(args.questions, args.simulations, args.questions, args.parallel)
    alone = measure(max(1, args.questions // 16), args.simulations, 1, 1)
    report = {"together": together, "one_at_a_time": alone}
    report["speedup"] = {"simulations_per_second": together["simulations_per_second"] / alone["simulations_per_second"]}
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print("| | questions | simulations | rows | rows a batch | seconds | bound | seconds / bound | simulations a second |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in (("all at once", together), ("one leaf at a time", alone)):
        print(
            f"| {name} | {row['questions']} | {row['simulations']} | {row['rows']} | {row['rows_per_batch']:.1f} | "
            f"{row['seconds']:.2f} | {row['bound_seconds']:.2f} | {row['over_bound']:.2f} | "
            f"{row['simulations_per_second']:.0f} |"
        )
    print(f"\nAll at once is {report['speedup']['simulations_per_second']:.1f} times as fast per simulation.")


if __name__ == "__main__":
    main()
