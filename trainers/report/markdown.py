"""The report in Markdown: the page's tables, without examples. Text from elsewhere cannot end a cell or begin markup."""

import re
from collections.abc import Sequence

from llm_mcts.runs.reading import SPLITS, Run
from llm_mcts.viewer.markup import plain
from trainers.report.searches import Searched
from trainers.report.tables import (
    CRITIC_NOTE,
    SPLIT_NAMES,
    SPLIT_NOTES,
    Table,
    changes_table,
    cost_sentence,
    cost_table,
    critic_gaps,
    critic_table,
    gate_table,
    headline,
    imagined_table,
    questions_of,
    rows_table,
    scores_table,
    state,
    yield_table,
)


def to_markdown(run: Run, searches: Sequence[Searched], pairs: Sequence[str], note: str) -> str:
    """The whole report; `pairs` are further paired differences, one a line."""
    parts = [f"# Self-improvement: {inline(run.name)}", state(run), *([inline(note)] if note else [])]
    for split in SPLITS:
        if n := questions_of(run, split):
            name = SPLIT_NAMES[split]
            parts += [f"## Accuracy on {n} {name} questions", SPLIT_NOTES[split], table(headline(run, split))]
            parts += [table(scores_table(run, split)), f"Paired on the same {n} questions, 95 % intervals:"]
            parts.append(table(changes_table(run, split)))
            if split == "eval":
                parts.append("\n".join(f"- {inline(pair)}" for pair in pairs))
    parts += ["## Gate", table(gate_table(run)), "## Cost", inline(cost_sentence(run)), table(cost_table(run))]
    parts += ["## Rows", table(yield_table(run, searches)), table(imagined_table(searches)), table(rows_table(run))]
    figures = critic_table(searches)
    if figures.rows or critic_gaps(run, searches):
        parts += ["## Critics in search", *critic_gaps(run, searches)]
        parts += [CRITIC_NOTE, table(figures)] if figures.rows else []
    parts.append("Examples of gained and lost questions, and trees, are in report.html.")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(found: Table) -> str:
    """A table of GitHub's Markdown; nothing for one without rows."""
    if not found.rows:
        return ""
    head = "| " + " | ".join(inline(name.removeprefix("#")) for name in found.columns) + " |"
    rule = "|" + "|".join("---:" if name.startswith("#") else "---" for name in found.columns) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(map(inline, row)) + " |" for row in found.rows)])


def inline(text: str) -> str:
    """Text on one line that Markdown does not read as markup."""
    flat = " ".join(plain(text).split())
    return re.sub(r"([\\`*<|]|\](?=[(\[:]))", r"\\\1", flat)
