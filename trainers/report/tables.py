"""The report's tables and sentences as data, for the page and for Markdown alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_mcts.runs.reading import MethodRecords, Round, Run, Split
from llm_mcts.scores import Score
from llm_mcts.stats import PairedDifference
from llm_mcts.types import Usage
from trainers.report.figures import Change, Cost, cost, in_words, overall_changes, refused_rows, round_changes, rows_made
from trainers.report.searches import CriticFigures, Searched

SPLIT_NAMES: dict[Split, str] = {"eval": "held-out", "test": "test"}
SPLIT_NOTES: dict[Split, str] = {
    "eval": "Held-out questions are training questions that no trainer sees. The gate decides on them, so what it accepts "
    "looks a little better here than it is.",
    "test": "Test questions decide nothing: no round was accepted or rejected for them.",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; a column whose name begins with "#" holds numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False
    """Whether the last row adds the others up."""


def percent(share: float) -> str:
    """0.825 as 82.5 %."""
    return f"{100 * share:.1f} %"


def interval(low: float, high: float) -> str:
    """An interval of shares in per cent, without the sign."""
    return f"{100 * low:.1f} – {100 * high:.1f}"


def signed(share: float) -> str:
    """A difference in points, with a true minus."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def points(change: PairedDifference) -> str:
    """A difference and its interval in points."""
    return f"{signed(change.difference)} [{signed(change.low)}, {signed(change.high)}]"


def name_of(number: int) -> str:
    """What a round is called."""
    return "start" if number == 0 else f"round {number}"


def questions_of(run: Run, split: Split) -> int:
    """How many questions of a split every complete evaluation answered."""
    return max((score.n for _, score in run.scores(split)), default=0)


def state(run: Run) -> str:
    """How far the run is, in one sentence."""
    judged = [f"round {r.number} {r.status}" for r in run.rounds if r.status in ("accepted", "rejected")]
    message = ", ".join(judged) or "no round has been judged yet"
    if run.finished:
        return f"Finished: {message}."
    at = next((r for r in run.rounds if r.status == "in progress"), None)
    where = "the next round has not started" if at is None else f"round {at.number} is in progress"
    if at and at.stages:
        where += f" ({at.stages[-1].name} is its last stage with results)"
    return f"In progress: {message}; {where}."


def headline(run: Run, split: Split) -> Table:
    """Each method at the start and now, and what lies between."""
    changes = {change.method: change.found for change in overall_changes(run, split)}
    last, rows = run.last, []
    for method in run.methods:
        start, now = (_accuracy(here, split, method) for here in (run.rounds[0], last))
        change = changes.get(method)
        found = (
            ("–", "no round accepted" if last is run.rounds[0] else "–")
            if change is None
            else (points(change), in_words(change))
        )
        if start or now:
            rows.append((method, start or "–", (now or "–") if last is not run.rounds[0] else "–", *found))
    return Table(
        ("method", "#start", f"#{name_of(last.number)}" if last.number else "#accepted", "#change, points", "verdict"), rows
    )


def _accuracy(here: Round, split: Split, method: str) -> str | None:
    records = here.records(split, method)
    return percent(Score.of(method, records).accuracy) if records else None


def scores_table(run: Run, split: Split) -> Table:
    """Accuracy and what it took a question, by round and method."""
    rows = []
    for here in run.rounds:
        label = name_of(here.number) + (f" ({here.status})" if here.number else "")
        marks = here.marks[split]
        rows += [(label, *_score_row(method, marks[method])) for method in run.methods if method in marks]
    costs = ("#tokens sampled", "#LM calls", "#critic calls", "#latency, s", "#failed")
    return Table(("round", "method", "#n", "#accuracy", "#95 % interval", *costs), rows)


def _score_row(method: str, marks: MethodRecords) -> tuple[str, ...]:
    s = Score.of(method, marks.records)
    if not marks.complete or not marks.records:
        return (method, str(s.n), "no records" if marks.complete else "in progress", *("–",) * 6)
    spent = (s.usage.generated_tokens, s.usage.lm_calls, s.usage.critic_calls)
    costs = (*(f"{n / s.n:,.1f}" for n in spent), f"{s.usage.seconds / s.n:.2f}", str(s.failed))
    return (method, str(s.n), percent(s.accuracy), interval(*s.interval), *costs)


def changes_table(run: Run, split: Split) -> Table:
    """Every round against what stood before it; p-values where the gate noted them."""
    changes = round_changes(run, split)
    p_noted = any(change.p_value is not None for change in changes)
    numbers = ("#change, points", "#gained", "#lost", "#n", *(["#p"] if p_noted else []))
    return Table(("round", "against", "method", *numbers, "verdict"), [_change_row(change, p_noted) for change in changes])


def _change_row(c: Change, p_noted: bool) -> tuple[str, ...]:
    p = [] if not p_noted else ["–" if c.p_value is None else f"{c.p_value:.3f}"]
    counts = (str(c.found.gained), str(c.found.lost), str(c.found.n))
    return (name_of(c.round), name_of(c.since), c.method, points(c.found), *counts, *p, in_words(c.found))


def gate_table(run: Run) -> Table:
    """What the gate said of each round, and why."""
    rows = []
    for here in run.rounds[1:]:
        reason = str((here.verdict or {}).get("reason") or "–")
        rows.append((name_of(here.number), here.status, name_of(run.incumbent(here.number).number), reason))
    return Table(("round", "gate", "measured against", "reason"), rows)


def cost_table(run: Run) -> Table:
    """Seconds and tokens of each stage, and all together."""
    stages = [(here, stage) for here in run.rounds for stage in here.stages]
    noted = [(here, stage) for here, stage in stages if stage.usage or stage.seconds is not None]
    rows = [(name_of(here.number), stage.name, *_cost_cells(cost([stage]))) for here, stage in noted]
    if not rows:
        return Table(("round", "stage"), [])
    total = cost([stage for _, stage in noted])
    names = ("#minutes", "#sampled", "#prompt computed", "#prompt reused", "#read by critics", "#LM calls", "#critic calls")
    return Table(("round", "stage", *names), [*rows, ("all", "", *_cost_cells(total))], total=True)


def _cost_cells(found: Cost) -> tuple[str, ...]:
    minutes = "–" if found.seconds is None else f"{found.seconds / 60:,.2f}"
    if (u := found.usage) is None:
        return (minutes, *("–",) * 6)
    numbers = (u.generated_tokens, u.prefilled_tokens, u.reused_tokens, u.critic_tokens, u.lm_calls, u.critic_calls)
    return (minutes, *(f"{n:,}" for n in numbers))


def cost_sentence(run: Run) -> str:
    """What the run has cost."""
    stages = [stage for here in run.rounds for stage in here.stages]
    total = cost(stages)
    u = total.usage or Usage()
    sentence = f"{total.tokens:,} tokens were computed, {u.generated_tokens:,} of them sampled"
    if total.seconds is not None:
        sentence += f", in {total.seconds / 60:,.1f} minutes of work"
    timeless = sorted({s.name for s in stages if s.seconds is None and s.name != "gate"})
    return sentence + (f" (without {', '.join(timeless)}, whose time was not noted)." if timeless else ".")


def rows_table(run: Run) -> Table:
    """Rows kept and trained on."""
    rows = [
        (name_of(m.round), m.trainer, *(_count(n) for n in (m.kept, m.rows, m.left_out, m.steps)), _loss(m.loss))
        for here in run.rounds
        for m in rows_made(here)
    ]
    return Table(("round", "trainer", "#rows made", "#trained on", "#left out", "#steps", "#loss"), rows)


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def yield_table(run: Run, searches: Sequence[Searched]) -> Table:
    """Questions searched, by where they come from, and solved; and what was refused, why."""
    sources = {s.round: s.sources for s in searches}
    rows = []
    for here in run.rounds[1:]:
        stage = here.stage("rows")
        if stage is None:
            continue
        origin = ", ".join(f"{n} {source}" for source, n in sources.get(here.number, {}).items()) or "–"
        refused = ", ".join(f"{n} {reason}" for reason, n in refused_rows(here).items()) or "none noted"
        numbers = [_count(stage.notes.get(key)) for key in ("searched", "failed", "solved")]
        rows.append((name_of(here.number), origin, *numbers, refused))
    return Table(("round", "questions", "#searched", "#failed", "#solved", "refused, and why"), rows)


def imagined_table(searches: Sequence[Searched]) -> Table:
    """Imagined questions, kept and refused."""
    rows = [
        (name_of(s.round), kind, f"{sum(found.values()):,}", f"{found.get('kept', 0):,}", _reasons(found))
        for s in searches
        for kind, found in s.imagined.items()
    ]
    return Table(("round", "kind", "#candidates", "#kept", "refused, and why"), rows)


def _reasons(found: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in found.items() if reason != "kept") or "none"


def critic_table(searches: Sequence[Searched]) -> Table:
    """How the scores that searches were guided by did."""
    rows = [_critic_row(figures) for s in searches for figures in s.figures]
    names = ("#AUC within questions", "#questions with both", "#AUC over all", "#Brier", "#ECE", "#solutions")
    return Table(("round", "questions", *names), rows)


def _critic_row(f: CriticFigures) -> tuple[str, ...]:
    within = (str(f.within), str(f.within.questions)) if f.within else ("–", "0")
    over_all = "–" if f.over_all is None else f"{f.over_all:.3f}"
    rest = (over_all, f"{f.brier:.3f}", f"{f.calibration_error:.3f}", f"{f.samples:,}")
    return (name_of(f.round), f.questions, *within, *rest)


CRITIC_NOTE = (
    "How well the scores of each round's search separated right from wrong among its whole solutions. The critic is the one "
    "that stood before the round. It had not been trained on new questions; revisited ones it may have seen, which flatters. "
    "A search needs order within a question: AUC over all solutions also counts that easy questions have more right ones. "
    "ECE is the expected calibration error over ten bins; 0.5 is chance for an AUC."
)


def critic_gaps(run: Run, searches: Sequence[Searched]) -> list[str]:
    """Why a round has no figures."""
    notes = []
    for s in searches:
        if s.critic is False:
            notes.append(f"{name_of(s.round).capitalize()} was searched without a model critic.")
        elif s.critic and not s.figures:
            notes.append(f"{name_of(s.round).capitalize()} cannot be judged: the run keeps no gold answers of its questions.")
    return notes
