#!/usr/bin/env python3
"""How often the first wrong step is found, and at what price: OmegaPRM's binary search beside Math-Shepherd's labels.

    python scripts/step_labels.py --model runs/quickstart/round_002/checkpoints/policy [--solutions 200] [--json]

On the built-in task: into a reference solution a wrong result is planted at one operation, and everything after it follows from
it. Arithmetic gives the truth: the planted line is the first wrong one. Math-Shepherd's answer is the first step with a hard
label of 0.
"""

import argparse
import asyncio
import json
import random
import time
from dataclasses import replace
from typing import Any

from llm_mcts.solver import Solver
from llm_mcts.stats import wilson
from llm_mcts.tasks.arith import ArithProblem, ArithTask, distinct, stream
from llm_mcts.tasks.arith_stories import Ref
from llm_mcts.types import Problem, metered
from trainers.data.rows import StepRow
from trainers.labels.step_labels import Labeller, first_wrong_step, math_shepherd


def faulty(problem: ArithProblem, at: int, draw: random.Random) -> list[str] | None:
    """The solution's lines with a wrong result at operation `at`; None where what follows is no positive whole number."""
    operations = list(problem.operations)
    wrong = operations[at].result + draw.choice([-3, -2, -1, 1, 2, 3])
    for i in range(at, len(operations)):
        op = operations[i]
        a, b = (operations[x.index].result if isinstance(x, Ref) else x for x in (op.left, op.right))
        if op.symbol == "/" and (b == 0 or a % b):
            return None
        result = wrong if i == at else {"+": a + b, "-": a - b, "*": a * b, "/": a // max(1, b)}[op.symbol]
        if result < 1:
            return None
        operations[i] = replace(op, result=result)
    if operations[-1].result == problem.operations[-1].result:
        return None  # the errors cancel out: the answer is right
    return replace(problem, operations=tuple(operations)).solution().split("\n")


def faulty_solutions(level: Any, n: int) -> list[tuple[Problem, list[str], int]]:
    """Problems of the dev split with a faulty solution and the index of its first wrong line."""
    draw, found = random.Random(0), []
    for i, problem in enumerate(distinct(stream("dev", level, 0), 4 * n)):
        at = draw.randrange(len(problem.operations))
        lines = faulty(problem, at, draw)
        if lines:
            found.append((Problem(str(i), problem.question, problem.gold), lines, at))
        if len(found) == n:
            break
    return found


async def measure(solver: Solver, cases: list[tuple[Problem, list[str], int]], method: str, n: int) -> dict[str, float]:
    """How often a method names the planted line, and what it cost."""
    task = ArithTask()

    async def one(problem: Problem, lines: list[str], at: int) -> tuple[bool, int]:
        labeller = Labeller(solver.policy, task, problem, n)
        if method == "math_shepherd":
            labels = await math_shepherd(labeller, lines, right=False, hard=True)
            found = StepRow(problem.id, problem.question, tuple(lines), tuple(labels)).first_wrong
        else:
            found = await first_wrong_step(labeller, lines)
        return found == at, labeller.completions

    with metered() as usage:
        results = await asyncio.gather(*(one(*case) for case in cases))
    hits = sum(hit for hit, _ in results)
    low, high = wilson(hits, len(results))
    return {
        "found": hits / len(results),
        "low": low,
        "high": high,
        "completions_per_solution": sum(count for _, count in results) / len(results),
        "tokens_per_solution": usage.generated_tokens / len(results),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the policy that completes prefixes")
    parser.add_argument("--level", default="hard")
    parser.add_argument("--solutions", type=int, default=200)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    policy = {"temperature": 1.0, "max_step_tokens": 64, "max_solution_tokens": 160}
    solver = Solver.from_config({"engine": {"model": args.model}, "policy": policy})
    cases = faulty_solutions(args.level, args.solutions)
    started = time.perf_counter()
    report = {
        method: asyncio.run(measure(solver, cases, method, args.completions)) for method in ("math_shepherd", "binary_search")
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{len(cases)} faulty solutions, {args.completions} completions a prefix, {time.perf_counter() - started:.0f} s")
    for method, row in report.items():
        print(
            f"{method}: planted step found in {100 * row['found']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}], "
            f"{row['completions_per_solution']:.1f} completions and {row['tokens_per_solution']:.0f} tokens a solution"
        )


if __name__ == "__main__":
    main()
