#!/usr/bin/env python3
"""Plot accuracy against tokens sampled from a report of `llm-mcts evaluate`; labels are SEARCH_BUDGET.

    python scripts/plot_evaluation.py results/searches/report.csv docs/results/searches.png

Needs matplotlib. Bars are Wilson 95 % intervals, drawn for the searches named with --bars.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path


def main() -> None:
    """Read the report and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.csv of an evaluation")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--bars", nargs="*", default=["best_of_n_vote", "mcts"], help="searches whose intervals are drawn")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[dict[str, float]]] = defaultdict(list)
    with args.report.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, _, budget = row["method"].rpartition("_")
            search = name if budget.isdecimal() else row["method"]
            keys = ("accuracy", "low", "high", "generated_tokens_per_question")
            lines[search].append({key: float(row[key]) for key in keys})
    figure, axis = plt.subplots(figsize=(10, 6))
    markers = "osD^v<>PX*hpd"
    for i, (search, rows) in enumerate(lines.items()):
        rows.sort(key=lambda row: row["generated_tokens_per_question"])
        x = [row["generated_tokens_per_question"] for row in rows]
        y = [100 * row["accuracy"] for row in rows]
        style = {"marker": markers[i % len(markers)], "color": f"C{i % 10}", "linestyle": "--" if i >= 10 else "-"}
        if search in args.bars:
            low = [100 * (row["accuracy"] - row["low"]) for row in rows]
            high = [100 * (row["high"] - row["accuracy"]) for row in rows]
            axis.errorbar(x, y, yerr=[low, high], capsize=3, label=search, **style)
        else:
            axis.plot(x, y, label=search, alpha=0.8, **style)
    axis.set(xscale="log", xlabel="tokens sampled per question", ylabel="accuracy, %")
    axis.grid(alpha=0.3)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
