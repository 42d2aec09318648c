#!/usr/bin/env python3
"""Regret of every search on a task whose best solution is known: a tree of 4 steps a place, 7 deep, 16,384 solutions.

    python scripts/solvable.py --out docs/solvable [--games 30] [--budgets 16 64 256 1024 4096]

Every step adds a random amount in [0, 1] to its solution; a solution's value is the mean over its steps, stretched so that the
best of all has 1 and the worst 0. Regret is 1 minus the value of the chosen solution. The critic knows a whole solution's
value exactly and guesses an unfinished one's, off by up to 0.15; the policy prefers better steps, mildly.

    plain              as above
    misleading prior   the policy prefers worse steps as much as it preferred better ones
    misleading value   the critic takes an unfinished solution for as bad as it is good

Tree searches ask for 8 steps a place and so get all 4. A budget is simulations for them, samples for best_of_n and
self_consistency, candidates a depth for beam and dvts. All but greedy and self_consistency, which ask no critic, choose the
best-scored solution they saw.
"""

import argparse
import asyncio
import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import exp, log
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from llm_mcts.result import SearchResult
from llm_mcts.search import SEARCHES
from llm_mcts.types import State, Step

Variant = Literal["plain", "misleading prior", "misleading value"]
FLOOR = 0.001
"""Smallest regret that the logarithmic picture shows."""
VARIANTS: tuple[Variant, ...] = ("plain", "misleading prior", "misleading value")
LETTERS = "abcdefgh"


@cache
def amounts(number: int) -> Callable[[str], float]:
    """What each step of a game adds to its solution, by its path; the same for all variants."""
    return cache(lambda path: random.Random(f"{number} {path}").random())


@cache
def extremes(number: int, width: int, depth: int) -> tuple[float, float]:
    """Maximum and minimum sum of any solution, by enumeration."""
    amount = amounts(number)

    def below(path: str, total: float) -> tuple[float, float]:
        if len(path) == depth:
            return total, total
        ends = [below(path + x, total + amount(path + x)) for x in LETTERS[:width]]
        return max(high for high, _ in ends), min(low for _, low in ends)

    return below("", 0.0)


class StepGame:
    """The task above: a policy, a critic, and the truth."""

    def __init__(self, number: int, variant: Variant = "plain", width: int = 4, depth: int = 7, noise: float = 0.15) -> None:
        self.number, self.variant, self.width, self.depth, self.noise = number, variant, width, depth, noise
        self.amount = amounts(number)
        self.best, self.worst = extremes(number, width, depth)
        self._steps = lru_cache(4096)(self._steps_after)

    def value(self, path: str) -> float:
        """A whole solution's value in [0, 1]."""
        total = sum(self.amount(path[: i + 1]) for i in range(self.depth))
        return (total - self.worst) / (self.best - self.worst)

    def regret(self, result: SearchResult) -> float:
        """1 minus the value of the chosen solution; 1 where there is none."""
        return 1.0 if result.answer is None else 1.0 - self.value(result.answer)

    def _steps_after(self, path: str) -> tuple[list[Step], list[float]]:
        """All next steps, and the policy's probabilities of them."""
        sign = -2.0 if self.variant == "misleading prior" else 2.0
        weights = [exp(sign * self.amount(path + x)) for x in LETTERS[: self.width]]
        end = len(path) + 1 == self.depth
        steps = [
            Step(x, log(w / sum(weights)), 1, end, path + x if end else None)
            for x, w in zip(LETTERS[: self.width], weights, strict=True)
        ]
        return steps, [exp(step.logprob) for step in steps]

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        """`n` sampled steps, equal ones once; all steps where that is at least twice as many."""
        steps, probabilities = self._steps(_path(state))
        if n >= 2 * self.width:
            return steps
        drawn = random.Random(seed).choices(steps, probabilities, k=n)
        return list(dict.fromkeys(drawn))

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        """`n` sampled completions, or the most likely one at temperature 0."""
        draw, ends = random.Random(seed), []
        for _ in range(n):
            path, written = _path(state), []
            while len(path) < self.depth:
                steps, probabilities = self._steps(path)
                likely = max(steps, key=lambda step: step.logprob)
                written.append(likely if temperature == 0.0 else draw.choices(steps, probabilities)[0])
                path += written[-1].text
            ends.append(state.then(*written))
        return ends

    async def score(self, states: Sequence[State]) -> list[float]:
        """The value of whole solutions, a guess at the mean value below unfinished ones."""
        return [self._score(_path(state)) for state in states]

    def _score(self, path: str) -> float:
        if len(path) == self.depth:
            return min(1.0, max(0.0, self.value(path)))
        total = sum(self.amount(path[: i + 1]) for i in range(len(path))) + 0.5 * (self.depth - len(path))
        guess = (total - self.worst) / (self.best - self.worst)
        guess += self.noise * (2 * random.Random(f"guess {self.number} {path}").random() - 1)
        guess = min(1.0, max(0.0, guess))
        return 1.0 - guess if self.variant == "misleading value" else guess


def _path(state: State) -> str:
    """The letters of the steps so far."""
    return "".join([step.text for step in state.steps])


def settings(name: str, budget: int) -> dict[str, Any]:
    """A search's settings at a budget; the rest is its defaults."""
    if name == "greedy":
        return {}
    if name in ("best_of_n", "self_consistency"):
        return {"num_samples": budget}
    if name == "beam":
        return {"num_candidates": budget, "beam_width": max(1, budget // 4)}
    if name == "dvts":
        return {"num_candidates": budget, "subtree_width": 4}
    if name == "gumbel":
        return {"num_simulations": budget, "num_considered": 4, "expansion_width": 8, "answer": "best"}
    found = {"num_simulations": budget, "num_parallel": 1, "expansion_width": 8, "answer": "best"}
    if name == "alphallm":  # steps are single letters, so all are within an edit distance of 20 of each other
        found |= {"merge": MERGE, "widening": WIDENING}
    if name == "mcts_uct":
        found |= {"selection": "uct", "c_puct": 0.5}
    return found | ({"revisit": False} if name == "mcts_explore" else {})


def _alphallm_parts() -> tuple[Any, Any]:
    from llm_mcts.search.expansion import WideningConfig
    from llm_mcts.search.merging import MergeConfig

    widening = WideningConfig(
        kind="importance", alpha=10.0, min_children=2, max_children=8, root_min_children=8, root_max_children=8
    )
    return MergeConfig(retries=5), widening


MERGE, WIDENING = _alphallm_parts()
NAMES = [name for name in SEARCHES if name != "mcts"]
NAMES.insert(NAMES.index("alphago"), "mcts_puct")
NAMES.insert(NAMES.index("alphago"), "mcts_uct")
NAMES.insert(NAMES.index("alphago"), "mcts_explore")


async def play(name: str, game: StepGame, budget: int, **changes: Any) -> SearchResult:
    """One search of one game."""
    search, cls = SEARCHES["mcts" if name.startswith("mcts_") else name]
    config = cls(**{**settings(name, budget), **changes})
    result: SearchResult = await search(f"game {game.number}", game, game, config, game.number)
    return result


def regrets(name: str, variant: Variant, budget: int, games: int, **changes: Any) -> list[float]:
    """The regret of each game."""

    async def played() -> list[float]:
        return [game.regret(await play(name, game, budget, **changes)) for game in (game_of(i, variant) for i in range(games))]

    return asyncio.run(played())


@cache
def game_of(number: int, variant: Variant) -> StepGame:
    """A game, made once."""
    return StepGame(number, variant)


def interval(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % interval."""
    return 1.96 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Regret against budget, one panel a variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(VARIANTS), figsize=(16, 5.2), sharey=True)
    styles = ["-", "--", ":"]
    for axis, variant in zip(axes, VARIANTS, strict=True):
        for i, name in enumerate(NAMES):
            mine = [row for row in rows if row["search"] == name and row["variant"] == variant]
            axis.plot(
                [row["budget"] for row in mine],
                [max(row["regret"], FLOOR) for row in mine],
                styles[i // 10],
                color=f"C{i % 10}",
                marker="osD^v<>PX*hpd"[i],
                markersize=5,
                label=name,
            )
        axis.set(title=variant, xscale="log", yscale="log", xlabel="simulations, samples or candidates a depth")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"mean regret (1 - value of the chosen solution), at least {FLOOR}")
    axes[-1].legend(bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]], budgets: Sequence[int]) -> str:
    """Mean regret with its interval, one table a variant."""
    text = []
    for variant in VARIANTS:
        text.append(f"\n{variant.capitalize()}:\n\n| search | " + " | ".join(f"{b:,}" for b in budgets) + " |")
        text.append("|---|" + "---:|" * len(budgets))
        for name in NAMES:
            mine = {r["budget"]: r for r in rows if r["search"] == name and r["variant"] == variant}
            cells = [f"{mine[b]['regret']:.3f} ± {mine[b]['half']:.3f}" for b in budgets]
            text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Play, and write regret.csv, regret.png, parallel.csv and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--games", type=int, default=30)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    args = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for variant in VARIANTS:
        for name in NAMES:
            for budget in args.budgets:
                found = regrets(name, variant, budget, args.games)
                rows.append(
                    {"variant": variant, "search": name, "budget": budget, "regret": mean(found), "half": interval(found)}
                )
            print(f"{variant}, {name}: " + ", ".join(f"{r['regret']:.3f}" for r in rows[-len(args.budgets) :]), flush=True)
    parallel = []
    for budget in (64, 256):
        for k in (1, 2, 4, 8, 16):
            for loss in (0.0, 1.0):
                found = regrets("mcts_puct", "plain", budget, 4 * args.games, num_parallel=k, virtual_loss=loss)
                row = {"simulations": budget, "parallel": k, "virtual_loss": loss}
                parallel.append({**row, "regret": mean(found), "half": interval(found)})
    args.out.mkdir(parents=True, exist_ok=True)
    for name, data in (("regret", rows), ("parallel", parallel)):
        with (args.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(data[0]))
            writer.writeheader()
            writer.writerows(data)
    plot(rows, args.out / "regret.png")
    (args.out / "regret.md").write_text(table(rows, args.budgets), encoding="utf-8")
    print(json.dumps({"minutes": round((time.perf_counter() - started) / 60, 1), "parallel": parallel}))


if __name__ == "__main__":
    main()
