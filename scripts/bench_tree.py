#!/usr/bin/env python3
"""Time the tree search itself: microseconds per simulation, memory, saving and loading, and the import.

    python scripts/bench_tree.py [--json] [--sizes 100 1000 4000 16000] [--repeats 5]

The policy and the value model are dummies: 4 steps a place, depth 8, values from a fixed stream, so what is timed is
selection, expansion, backup and the calls between them. Every simulation calls the evaluator once. Other libraries run
next to it, in turn, where `make bench-peers` has installed them: same branching, same depth, as many evaluator calls.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from llm_mcts.runs.trees import load_tree, save_tree
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree
from llm_mcts.types import State, Step

BRANCHING, DEPTH = 4, 8
PEERS = ("treequest", "mctx", "open_spiel", "llm-reasoners")
PEER_PYTHON = Path(".venv-peers/bin/python")


class DummyPolicy:
    """The same four steps at every place of a depth."""

    def __init__(self) -> None:
        p = log(1 / BRANCHING)
        self.steps = [
            [Step(f"step {i}", p, 1, depth == DEPTH - 1, "1" if depth == DEPTH - 1 else None) for i in range(BRANCHING)]
            for depth in range(DEPTH)
        ]

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        """The steps of this depth."""
        return self.steps[len(state.steps)]

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        """One step to the end."""
        return [state.then(Step("end", 0.0, 1, True, "1"))] * n


class DummyCritic:
    """Values from a fixed stream."""

    def __init__(self) -> None:
        self.draw, self.calls = random.Random(0), 0

    async def score(self, states: Sequence[State]) -> list[float]:
        """A number in [0, 1] for each."""
        self.calls += len(states)
        return [self.draw.random() for _ in states]


def time_ours(simulations: int, num_parallel: int) -> tuple[float, int]:
    """Microseconds per simulation, and evaluator calls."""
    config = MCTSConfig(
        num_simulations=simulations,
        c_puct=4.0,  # explores enough that few simulations end at a solution evaluated before
        rollouts=0,
        rollout_weight=0.0,
        expansion_width=BRANCHING,
        max_depth=DEPTH,
        num_parallel=num_parallel,
        answer="visits",
    )
    critic = DummyCritic()

    async def search() -> float:
        started = time.perf_counter()
        await mcts("Which way?", DummyPolicy(), critic, config, 0)
        return time.perf_counter() - started

    return asyncio.run(search()) * 1e6 / simulations, critic.calls


def time_peer(peer: str, simulations: int) -> tuple[float, int] | None:
    """The same of another library, or None where it is not installed or fails."""
    script = Path(__file__).with_name("bench_tree_peers.py")
    run = subprocess.run([str(PEER_PYTHON), str(script), peer, str(simulations)], capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{peer}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    result = json.loads(run.stdout.splitlines()[-1])
    return result["microseconds"] / result["calls"], result["calls"]


def time_searches(sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """One row a library and size: median microseconds per evaluator call; repeats of all take turns."""
    names = ["llm-mcts", "llm-mcts, 8 in parallel", *(PEERS if PEER_PYTHON.exists() else ())]
    rows = []
    for size in sizes:
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in list(found):
                timed = time_peer(name, size) if name in PEERS else time_ours(size, 8 if "8" in name else 1)
                if timed is None:
                    del found[name]
                else:
                    found[name].append(timed)
        for name, timings in found.items():
            microseconds = median(t for t, _ in timings)
            rows.append({"name": name, "simulations": size, "microseconds": microseconds, "calls": timings[0][1]})
    return rows


def big_tree(nodes: int) -> Tree:
    """A tree of `nodes` nodes whose steps are 30 tokens long."""
    tree = Tree("Which way?")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    places = [tree.root]
    draw = random.Random(0)
    size = 1
    for node in places:
        if size >= nodes:
            break
        steps = [Step(" ".join(draw.choices(words, k=30)), -9.0, 30) for _ in range(min(BRANCHING, nodes - size))]
        tree.expand(node, steps, [1 / BRANCHING] * len(steps))
        for child in node.children:
            child.visit_count, child.value_sum, child.value = 1, draw.random(), draw.random()
        places.extend(node.children)
        size += len(steps)
    return tree


def measure_memory(nodes: int) -> dict[str, float]:
    """Megabytes of a tree in memory, and seconds to save and to load it."""
    tracemalloc.start()
    tree = big_tree(nodes)
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.json.gz"
        started = time.perf_counter()
        save_tree(tree, path)
        saved = time.perf_counter()
        again = load_tree(path)
        loaded = time.perf_counter()
        assert len(again) == nodes
        size = path.stat().st_size / 1e6
    return {
        "nodes": nodes,
        "memory_mb": megabytes,
        "file_mb": size,
        "save_seconds": saved - started,
        "load_seconds": loaded - saved,
    }


def time_import(repeats: int) -> dict[str, Any]:
    """Seconds of `import llm_mcts` in a fresh interpreter, the interpreter's own start taken off, and whether torch came."""
    code = "import sys, time; t = time.perf_counter(); import llm_mcts; print(time.perf_counter() - t, 'torch' in sys.modules)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(repeats)
    ]
    return {"seconds": median(float(seconds) for seconds, _ in runs), "torch": any(torch == "True" for _, torch in runs)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 4000, 16000], help="simulations")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = time_searches(args.sizes, args.repeats)
    report = {"searches": rows, "tree": measure_memory(100_000), "import": time_import(args.repeats)}
    if args.json:
        print(json.dumps(report, indent=2))
        return
    sizes = args.sizes
    print("| microseconds per evaluator call | " + " | ".join(f"{n:,}" for n in sizes) + " |")
    print("|---|" + "---:|" * len(sizes))
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {
            # A star: stopped at the time limit, after fewer calls than asked for.
            row["simulations"]: f"{row['microseconds']:,.1f}" + ("*" if row["calls"] < 0.95 * row["simulations"] else "")
            for row in rows
            if row["name"] == name
        }
        print(f"| {name} | " + " | ".join(mine.get(n, "") for n in sizes) + " |")
    tree, imported = report["tree"], report["import"]
    print(
        f"\nA tree of {tree['nodes']:,} nodes: {tree['memory_mb']:.0f} MB in memory, {tree['file_mb']:.1f} MB on disk, "
        f"saved in {tree['save_seconds']:.1f} s, loaded in {tree['load_seconds']:.1f} s."
    )
    print(f"import llm_mcts: {imported['seconds']:.2f} s, {'with' if imported['torch'] else 'without'} torch.")


if __name__ == "__main__":
    main()
