"""The report of a self-improvement run, for people (report.html, report.md) and machines (report.json).

It is made of the run directory alone, so it can be written again at any time, also while the run is under way; the same
directory gives the same bytes. `llm-mcts report RUN` does that.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from llm_mcts.fields import AtLeast, Settings
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.reading import SPLITS, Run, Split, read_run
from llm_mcts.scores import Score
from trainers.report.examples import Exchange
from trainers.report.examples import exchanges as find_exchanges
from trainers.report.figures import Change, costs_to_dict, differences, in_words, refused_rows, round_changes, rows_made
from trainers.report.html import to_html
from trainers.report.markdown import to_markdown
from trainers.report.searches import Searched, read_searches
from trainers.report.tables import points, state


@dataclass(frozen=True)
class ReportConfig(Settings, section="report"):
    """How much of a run its report shows."""

    trees_per_round: Annotated[int, AtLeast(0)] = 20
    """Search trees of each round that get a page, half of them of wrong answers where there are enough."""
    examples_per_method: Annotated[int, AtLeast(0)] = 5
    """Questions gained, and as many lost, that are shown for each method and round."""


def write_reports(directory: RunDirectory, config: ReportConfig | None = None, note: str = "") -> dict[str, Any]:
    """Write report.html, report.md, report.json and the trees' pages of a run, finished or under way.

    Questions of examples are those that the rounds keep (round_000/questions.jsonl for the held-out and test questions).

    Args:
        directory: the run.
        config: how much is shown.
        note: a sentence on the questions or the run, shown at the top.

    Returns:
        What report.json holds, and the Markdown under "markdown".
    """
    config = config or ReportConfig()
    run = read_run(directory)
    searches = read_searches(run, config.trees_per_round)
    exchanges = find_exchanges(run, config.examples_per_method)
    pairs = [f"{name}: {points(found)} points" for name, found in differences(run).items()]
    markdown = to_markdown(run, searches, pairs, note)
    report = _report(run, searches, exchanges)
    directory.write_report(report, markdown, to_html(run, searches, exchanges, pairs, note))
    return {**report, "markdown": markdown}


def _report(run: Run, searches: Sequence[Searched], exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """The report for machines."""
    return {
        "scores": _scores(run, "eval"),
        "differences": {name: {**asdict(d), "difference": d.difference} for name, d in differences(run).items()},
        "rounds": [here.verdict for here in run.rounds[1:]],
        "solver": standing_solver(run),
        "state": state(run),
        "test_scores": _scores(run, "test"),
        "changes": [_change(change) for split in SPLITS for change in round_changes(run, split)],
        "costs": costs_to_dict(run),
        "rows": [asdict(made) for here in run.rounds for made in rows_made(here)],
        "refused": {here.directory.path.name: refused_rows(here) for here in run.rounds if here.stage("rows")},
        "searches": [asdict(searched) for searched in searches],
        "exchanges": [{k: getattr(e, k) for k in ("round", "since", "method", "gained", "lost")} for e in exchanges],
    }


def _scores(run: Run, split: Split) -> list[dict[str, Any]]:
    return [Score(f"round {r.number} {s.method}", s.n, s.correct, s.failed, s.usage).to_dict() for r, s in run.scores(split)]


def _change(change: Change) -> dict[str, Any]:
    flat = {k: getattr(change, k) for k in ("split", "round", "since", "method", "p_value")}
    return {**flat, **asdict(change.found), "difference": change.found.difference, "verdict": in_words(change.found)}


def standing_solver(run: Run) -> dict[str, Any]:
    """The solver's configuration with the checkpoints that passed the gate."""
    solver: dict[str, Any] = {**run.config.get("solver", {})}
    engine, critics = dict(solver.get("engine", {})), dict(solver.get("critics", {}))
    for here in run.rounds:
        if here.status != "accepted":
            continue
        if (policy := here.directory.checkpoint("policy")).exists():
            engine["model"] = str(policy)
        for kind in ("value", "prm", "orm"):
            if (folder := here.directory.checkpoint(kind)).exists():
                critics[kind] = str(folder)
    return {**solver, "engine": engine, "critics": critics} if engine or critics else solver
