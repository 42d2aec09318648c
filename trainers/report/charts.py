"""Charts as inline SVG: points with error bars by round, stacked bars by round, reliability.

Colours are the page's variables --s1 … --s9, so that they follow light and dark; series differ in the marker's shape too. The
drawing is 460 units wide, for text to stay readable on a phone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

from llm_mcts.viewer.markup import Markup, element, join

WIDTH, HEIGHT = 460.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 450.0, 24.0, 228.0
COLOURS = 9


@dataclass(frozen=True)
class Point:
    """A figure with its interval in one round."""

    round: int
    value: float
    low: float
    high: float
    hollow: bool
    """Of a round that was not accepted: drawn empty, and off the line of what stood."""
    label: str
    """Shown on hovering."""


def colour(index: int) -> str:
    """The page's variable of a series, from 0."""
    return f"var(--s{index % COLOURS + 1})"


def ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, with steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    step = 10.0 ** floor(log10(span / at_most))
    for factor in (1, 2, 5, 10, 20):
        first, last = floor(low / (step * factor) + 1e-9), ceil(high / (step * factor) - 1e-9)
        if last - first <= at_most:
            return [round(i * step * factor, 12) for i in range(first, last + 1)]
    raise AssertionError("a step of twenty times the power always fits")


def error_bars(series: Mapping[str, Sequence[Point]], rounds: Sequence[int], title: str) -> Markup:
    """Shares in [0, 1] by round, one series a name, in per cent."""
    points = [point for found in series.values() for point in found]
    marks = ticks(max(0.0, min(p.low for p in points)), min(1.0, max(p.high for p in points)))
    y = _scale(marks[0], marks[-1], BOTTOM, TOP)
    x = _places(rounds)
    gap = min(9.0, 0.5 * (RIGHT - LEFT) / len(rounds) / len(series))
    drawn = [_y_axis(marks, y, lambda v: f"{100 * v:g}", "accuracy, %"), _x_axis(rounds, x)]
    for i, found in enumerate(series.values()):
        shift = gap * (i - (len(series) - 1) / 2)
        drawn.append(_series(found, i, lambda r, s=shift: x(r) + s, y))  # type: ignore[misc]
    names = [(name, marker(i, 7, 7, False, size=5)) for i, name in enumerate(series)]
    if any(point.hollow for point in points):
        names.append(("not accepted", element("circle", cx=7, cy=7, r=4.2, class_="hollow neutral")))
    return _figure(title, drawn, _legend(names) if len(names) > 1 else None)


def _series(points: Sequence[Point], index: int, x: Callable[[int], float], y: Callable[[float], float]) -> Markup:
    stood = [f"{x(p.round):.1f},{y(p.value):.1f}" for p in points if not p.hollow]
    parts = [element("polyline", points=" ".join(stood), class_="thread", stroke=colour(index))]
    for p in points:
        at, top, bottom = x(p.round), y(p.high), y(p.low)
        bar = [(at, top, at, bottom), (at - 3, top, at + 3, top), (at - 3, bottom, at + 3, bottom)]
        lines = [_line(*ends, stroke=colour(index), class_="bar") for ends in bar]
        parts.append(element("g", element("title", p.label), *lines, marker(index, at, y(p.value), p.hollow)))
    return join(*parts)


def marker(index: int, x: float, y: float, hollow: bool, size: float = 4.2) -> Markup:
    """A series' marker: circle, square, diamond or triangle."""
    s = size
    shapes = [
        None,
        f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z",
        f"M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:.1f} {1.3 * s:.1f}l{-1.3 * s:.1f} {1.3 * s:.1f}l{-1.3 * s:.1f} {-1.3 * s:.1f}z",
        f"M{x:.1f} {y - 1.2 * s:.1f}l{1.2 * s:.1f} {2.1 * s:.1f}h{-2.4 * s:.1f}z",
    ]
    path = shapes[index % len(shapes)]
    style = {"stroke": colour(index), "class_": "hollow"} if hollow else {"fill": colour(index)}
    if path is None:
        return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=s, **style)
    return element("path", d=path, **style)


def stacked_bars(
    parts: Mapping[str, Mapping[int, float]],
    colours: Mapping[str, int],
    rounds: Sequence[int],
    title: str,
    unit: str,
    label: Callable[[float], str],
) -> Markup:
    """Amounts by round, one layer a name, from the bottom in the mapping's order."""
    heights = [sum(layer.get(r, 0.0) for layer in parts.values()) for r in rounds]
    marks = ticks(0.0, max(heights) or 1.0)
    x, y = _places(rounds), _scale(marks[0], marks[-1], BOTTOM, TOP)
    half = min(24.0, 0.32 * (RIGHT - LEFT) / len(rounds))
    drawn = [_y_axis(marks, y, label, unit), _x_axis(rounds, x)]
    for r in rounds:
        base = 0.0
        for name, layer in parts.items():
            if amount := layer.get(r, 0.0):
                top, bottom = y(base + amount), y(base)
                box = {
                    "x": f"{x(r) - half:.1f}",
                    "y": f"{top:.1f}",
                    "width": f"{2 * half:.1f}",
                    "height": f"{bottom - top:.1f}",
                }
                hover = element("title", f"round {r}, {name}: {label(amount)} {unit}")
                drawn.append(element("rect", hover, **box, fill=colour(colours[name]), class_="layer"))
                base += amount
    square = {"x": 2, "y": 2, "width": 10, "height": 10}
    names = [(name, element("rect", **square, fill=colour(colours[name]))) for name in parts]
    return _figure(title, drawn, _legend(names))


def reliability_chart(curves: Mapping[str, Sequence[tuple[float, float, int]]], title: str) -> Markup:
    """Share right against score; each curve has (mean score, share right, samples) a bin, which is the point's area."""
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x, y = _scale(0.0, 1.0, LEFT, RIGHT), _scale(0.0, 1.0, BOTTOM, TOP)
    drawn = [_y_axis(marks, y, lambda v: f"{v:g}", "share right"), _line(x(0), y(0), x(1), y(1), class_="diagonal")]
    drawn += [_text(x(v), BOTTOM + 17, f"{v:g}", "middle") for v in marks]
    drawn.append(_text((LEFT + RIGHT) / 2, BOTTOM + 35, "score", "middle"))
    for i, bins in enumerate(curves.values()):
        total = sum(n for _, _, n in bins)
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in bins)
        drawn.append(element("polyline", points=points, class_="thread", stroke=colour(i)))
        for a, b, n in bins:
            hover = element("title", f"{n} solutions with mean score {a:.2f}: {100 * b:.1f} % right")
            size = 2 + 7 * sqrt(n / total)
            drawn.append(
                element("circle", hover, cx=f"{x(a):.1f}", cy=f"{y(b):.1f}", r=f"{size:.1f}", fill=colour(i), class_="see")
            )
    names = [(name, element("circle", cx=7, cy=7, r=5, fill=colour(i))) for i, name in enumerate(curves)]
    return _figure(title, drawn, _legend(names))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _places(rounds: Sequence[int]) -> Callable[[int], float]:
    """The middle of each round's share of the axis."""
    width = (RIGHT - LEFT) / len(rounds)
    place = {r: LEFT + width * (i + 0.5) for i, r in enumerate(rounds)}
    return place.__getitem__


def _y_axis(marks: Sequence[float], y: Callable[[float], float], label: Callable[[float], str], name: str) -> Markup:
    lines = [_line(LEFT, y(v), RIGHT, y(v), class_="grid") for v in marks]
    labels = [_text(LEFT - 7, y(v) + 4, label(v), "end") for v in marks]
    return join(*lines, *labels, _text(0, TOP - 12, name, "start"))


def _x_axis(rounds: Sequence[int], x: Callable[[int], float]) -> Markup:
    every = ceil(len(rounds) / 14)
    labels = [_text(x(r), BOTTOM + 17, "start" if r == 0 else str(r), "middle") for r in rounds[::every]]
    return join(*labels, _text((LEFT + RIGHT) / 2, BOTTOM + 35, "round", "middle"))


def _line(x1: float, y1: float, x2: float, y2: float, **attributes: str) -> Markup:
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", **attributes)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _legend(names: Sequence[tuple[str, Markup]]) -> Markup:
    entries = [
        element("span", element("svg", mark, viewBox="0 0 14 14", width=14, height=14, aria_hidden="true"), name)
        for name, mark in names
    ]
    return element("div", *entries, class_="legend")


def _figure(title: str, drawn: Sequence[Markup], legend: Markup | None) -> Markup:
    svg = element("svg", *drawn, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), legend, svg)
