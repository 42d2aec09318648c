"""Places in the charts, by hand, and the alignment of solutions."""

import re

import pytest

from trainers.report.charts import Point, error_bars, marker, reliability_chart, stacked_bars, ticks
from trainers.report.examples import side_by_side


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.58, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]),
        (0.0, 243000.0, [0.0, 50000.0, 100000.0, 150000.0, 200000.0, 250000.0]),
        (0.0, 0.0, [0.0]),
        (0.345, 0.944, [0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_error_bars_stand_where_their_figures_are() -> None:
    points = [Point(0, 0.25, 0.0, 0.5, False, "a"), Point(1, 0.5, 0.25, 1.0, True, "b"), Point(2, 0.75, 0.5, 1.0, False, "c")]
    chart = error_bars({"greedy": points}, [0, 1, 2], "title")
    circles = re.findall(
        r'cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" (?:fill|stroke)="var\(--s1\)"(?: class="(\w+)")?', chart.split("viewBox")[-1]
    )
    # x: thirds of 50 to 450; y: 0 at 228, 1 at 24, so 0.25 at 228 - 51.
    assert circles == [("116.7", "177.0", ""), ("250.0", "126.0", "hollow"), ("383.3", "75.0", "")]
    assert 'points="116.7,177.0 383.3,75.0"' in chart  # what was not accepted is off the line
    assert '<line x1="250.0" y1="24.0" x2="250.0" y2="177.0"' in chart  # from 1.0 down to 0.25
    assert "not accepted" in chart


def test_bars_are_stacked() -> None:
    layers = {"search": {0: 1.0, 1: 1.0}, "value": {1: 3.0}}
    chart = stacked_bars(layers, {"search": 0, "value": 2}, [0, 1], "title", "minutes", lambda v: f"{v:g}")
    boxes = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" fill="var\(--s(\d)\)" class="layer"', chart)
    # The axis ends at 4: one minute is 204 / 4 = 51 high.
    assert boxes == [("177.0", "51.0", "1"), ("177.0", "51.0", "1"), ("24.0", "153.0", "3")]
    assert "round 1, value: 3 minutes" in chart


def test_reliability_points() -> None:
    chart = reliability_chart({"round 1": [(0.25, 0.5, 4)]}, "title")
    assert 'cx="150.0" cy="126.0" r="9.0"' in chart  # 50 + 0.25 * 400; 2 + 7 sqrt(4 / 4)


def test_markers_differ() -> None:
    assert len({marker(i, 0, 0, False).replace(f"--s{i + 1}", "") for i in range(4)}) == 4


def test_solutions_side_by_side() -> None:
    rows = side_by_side(["a", "b", "c"], ["a", "x", "y", "c", "d"])
    assert rows == [
        (("a", False), ("a", False)),
        (("b", True), ("x", True)),
        (None, ("y", True)),
        (("c", False), ("c", False)),
        (None, ("d", True)),
    ]
