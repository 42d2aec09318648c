"""The report as one page: no script, no request, light and dark, for a phone and for paper. All text is escaped."""

from collections.abc import Mapping, Sequence

import yaml

from llm_mcts.runs.reading import SPLITS, Round, Run, Split, Stage
from llm_mcts.scores import Score
from llm_mcts.viewer.markup import Markup, element, join, page
from llm_mcts.viewer.style import BASE_STYLE
from trainers.report.charts import Point, error_bars, reliability_chart, stacked_bars
from trainers.report.examples import Example, Exchange, Line
from trainers.report.figures import cost
from trainers.report.searches import Searched, TreeLink
from trainers.report.style import REPORT_STYLE
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
    interval,
    name_of,
    percent,
    questions_of,
    rows_table,
    scores_table,
    state,
    yield_table,
)

_TONES = {"better": "good", "accepted": "good", "right": "good", "worse": "bad", "rejected": "bad", "wrong": "bad"}
# Each stage keeps its colour in all charts; short ones are one layer.
_COLOURS = {"imagine": 6, "search": 0, "value": 2, "prm": 4, "orm": 3, "policy": 1, "evaluate": 5, "test": 8, "other": 7}


def to_html(run: Run, searches: Sequence[Searched], exchanges: Sequence[Exchange], pairs: Sequence[str], note: str) -> str:
    """The whole page; `pairs` are further paired differences, one a line."""
    sections: dict[str, Markup] = {}
    for split in SPLITS:
        if questions_of(run, split):
            sections[f"{SPLIT_NAMES[split].capitalize()} accuracy"] = _accuracy(run, split, pairs)
    sections["Gate"] = table(gate_table(run))
    sections["Cost"] = _costs(run)
    sections["Rows"] = _rows(run, searches)
    if any(s.critic is not None for s in searches):
        sections["Critics in search"] = _critics(run, searches)
    if exchanges:
        sections["Gained and lost"] = join(*(_exchange(e) for e in exchanges))
    if any(s.trees for s in searches):
        sections["Trees"] = _trees([link for s in searches for link in s.trees])
    sections["Provenance"] = _provenance(run)
    anchors = {name: f"s{i}" for i, name in enumerate(sections)}
    body = [join(element("h2", name, id=anchors[name]), content) for name, content in sections.items()]
    title = f"Self-improvement: {run.name}"
    header = [
        element("h1", title),
        element("p", state(run), class_="soft"),
        element("p", note) if note else None,
        *(_headline(run, split) for split in SPLITS),
        element("nav", *(element("a", name, href=f"#{anchor}") for name, anchor in anchors.items())),
    ]
    return page(title, BASE_STYLE + REPORT_STYLE, element("header", *header), element("main", *body))


def table(found: Table) -> Markup:
    """A table, numbers to the right; nothing for one without rows."""
    if not found.rows:
        return Markup("")
    numeric = ["num" if name.startswith("#") else None for name in found.columns]
    head = [element("th", n.removeprefix("#"), class_=c) for n, c in zip(found.columns, numeric, strict=True)]
    rows = []
    for i, row in enumerate(found.rows):
        cells = [element("td", cell, class_=c or _TONES.get(cell)) for cell, c in zip(row, numeric, strict=True)]
        rows.append(element("tr", *cells, class_="total" if found.total and i == len(found.rows) - 1 else None))
    body = [element("thead", element("tr", *head)), element("tbody", *rows)]
    return element("div", element("table", *body), class_="scroll", tabindex="0")


def _headline(run: Run, split: Split) -> Markup:
    n = questions_of(run, split)
    if not n:
        return Markup("")
    name = f"Accuracy on {n} {SPLIT_NAMES[split]} questions"
    return element("div", element("h3", name), table(headline(run, split)), class_="headline")


def _accuracy(run: Run, split: Split, pairs: Sequence[str]) -> Markup:
    n = questions_of(run, split)
    series: dict[str, list[Point]] = {method: [] for method in run.methods}
    for here, score in run.scores(split):
        series[score.method].append(_point(here, score))
    title = f"Accuracy on {n} {SPLIT_NAMES[split]} questions by round, 95 % intervals"
    shown = {method: points for method, points in series.items() if points}
    rounds = [r.number for r in run.rounds if r.status != "not started"]
    return join(
        element("p", SPLIT_NOTES[split]),
        error_bars(shown, rounds, title),
        table(scores_table(run, split)),
        element("h3", f"Each round against what stood before it, paired on the same {n} questions"),
        table(changes_table(run, split)),
        element("ul", *(element("li", pair) for pair in pairs), class_="small") if pairs and split == "eval" else None,
    )


def _point(here: Round, score: Score) -> Point:
    low, high = score.interval
    label = f"{name_of(here.number)}, {score.method}: {percent(score.accuracy)} [{interval(low, high)}], n = {score.n}"
    return Point(here.number, score.accuracy, low, high, here.status in ("rejected", "in progress"), label)


def _costs(run: Run) -> Markup:
    rounds = [r.number for r in run.rounds if r.stages]
    if not rounds:
        return element("p", "No stage is finished yet.")
    charts = []
    for unit, amount in (("tokens", _tokens), ("minutes", _minutes)):
        layers: dict[str, dict[int, float]] = {}
        for name in _COLOURS:
            layer = {r.number: sum(amount(s) for s in r.stages if _layer(s.name) == name) for r in run.rounds}
            if any(layer.values()):
                layers[name] = layer
        if layers:
            charts.append(stacked_bars(layers, _COLOURS, rounds, f"{unit.capitalize()} by round and stage", unit, _short))
    return join(
        element("p", cost_sentence(run)),
        element("div", *charts, class_="pair"),
        element("details", element("summary", "Every stage"), table(cost_table(run)), class_="fold"),
    )


def _layer(stage: str) -> str:
    return stage if stage in _COLOURS else "other"


def _tokens(stage: Stage) -> float:
    return float(cost([stage]).tokens)


def _minutes(stage: Stage) -> float:
    return (stage.seconds or 0.0) / 60


def _short(amount: float) -> str:
    """1500000 as 1.5 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= size:
            return f"{amount / size:.3g} {letter}"
    return f"{amount:.3g}"


def _rows(run: Run, searches: Sequence[Searched]) -> Markup:
    made, imagined = table(rows_table(run)), table(imagined_table(searches))
    found = [table(yield_table(run, searches)), imagined and join(element("h3", "Imagined questions"), imagined)]
    found.append(made and join(element("h3", "Trainers"), made))
    return join(*found) or element("p", "No rows have been made yet.")


def _critics(run: Run, searches: Sequence[Searched]) -> Markup:
    gaps = [element("p", gap) for gap in critic_gaps(run, searches)]
    figures = critic_table(searches)
    if not figures.rows:
        return join(*gaps)
    curves = {name_of(f.round): [(b.score, b.right, b.samples) for b in f.reliability] for s in searches for f in s.figures[:1]}
    chart = reliability_chart(curves, "Reliability: share right by score; on the dashed line a score is a chance")
    return join(*gaps, element("p", CRITIC_NOTE), table(figures), chart)


def _exchange(e: Exchange) -> Markup:
    label = (
        f"{name_of(e.round).capitalize()} against {name_of(e.since)}, {e.method}: {len(e.gained)} gained, {len(e.lost)} lost"
    )
    shown = [_example(gained, example, e) for gained, example in e.examples]
    left = len(e.gained) + len(e.lost) - len(e.examples)
    more = element("p", f"{left} more are in report.json.", class_="soft small") if left else None
    return element("details", element("summary", label), *shown, more, class_="fold")


def _example(gained: bool, example: Example, e: Exchange) -> Markup:
    badge = element("span", "became right" if gained else "became wrong", class_=f"badge {'good' if gained else 'bad'}")
    gold = None if example.gold is None else f"Gold answer: {example.gold}"
    records = ((e.since, example.before), (e.round, example.after))
    heads = [element("h4", f"{name_of(n)}: {r.answer if r.answer is not None else r.error or 'no answer'}") for n, r in records]
    cells = [cell for pair in example.lines for cell in map(_line, pair)]
    question = "The run does not keep this question's text." if example.question is None else example.question
    return element(
        "div",
        element("p", badge, element("span", example.id, class_="soft small")),
        element("p", question, class_="soft" if example.question is None else "text"),
        element("p", gold, class_="small text") if gold else None,
        element("div", *heads, *cells, class_="sides"),
        class_="example",
    )


def _line(line: Line | None) -> Markup:
    if line is None:
        return element("div", class_="line")
    text, differs = line
    return element("div", text, class_="line text differs" if differs else "line text")


def _trees(links: Sequence[TreeLink]) -> Markup:
    intro = element("p", "A few of each round's search trees, wrong and right ones; each is a page of its own in trees/.")
    by_round: dict[int, list[TreeLink]] = {}
    for link in links:
        by_round.setdefault(link.round, []).append(link)
    return join(intro, *(_links(number, found) for number, found in by_round.items()))


def _links(number: int, links: Sequence[TreeLink]) -> Markup:
    names = ("question", "answer", "gold", "verdict", "nodes", "solutions")
    head = [element("th", name, class_="num" if name in ("nodes", "solutions") else None) for name in names]
    rows = []
    for link in links:
        verdict = "–" if link.correct is None else "right" if link.correct else "wrong"
        name = element("a", _cut(link.question), href=link.href, title=link.id)
        cells = [element("td", name), *(element("td", t, class_="text") for t in (link.answer or "none", link.gold or "–"))]
        cells.append(element("td", verdict, class_=_TONES.get(verdict)))
        cells += [element("td", f"{n:,}", class_="num") for n in (link.nodes, link.solutions)]
        rows.append(element("tr", *cells))
    found = element("div", element("table", element("tr", *head), *rows), class_="scroll")
    summary = element("summary", f"{name_of(number).capitalize()}: {len(links)} trees")
    return element("details", summary, found, class_="fold")


def _cut(text: str, length: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 1].rstrip()}…"


def _provenance(run: Run) -> Markup:
    facts = table(Table(("what", "value"), list(_flat(run.manifest).items())))
    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else ""
    fold = element("details", element("summary", "Configuration"), element("pre", config), class_="fold")
    return join(facts or element("p", "The run keeps no manifest."), fold if config else None)


def _flat(data: Mapping[str, object], where: str = "") -> dict[str, str]:
    """Nested facts with dotted names."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": str(value)}
    return flat
