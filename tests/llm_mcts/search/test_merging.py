"""Steps that count as one, against hand-computed cases."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError
from llm_mcts.search.merging import MergeConfig, distinct_steps, edit_distance
from llm_mcts.types import State, Step
from tests.search_cases import run


@pytest.mark.parametrize("values", [{"kind": "near"}, {"distance": 0}, {"retries": -1}])
def test_merge_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="merge"):
        MergeConfig(**values)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("3 + 4 = 7", "3 * 4 = 12", 3),  # + to *, 7 to 1, 2 added
        ("ab", "ba", 2),
    ],
)
def test_edit_distance_by_hand(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b, 99) == edit_distance(b, a, 99) == distance
    assert edit_distance(a, b, max(1, distance)) == distance
    assert edit_distance(a, b, 1) == min(1, distance)


def slow_distance(a: str, b: str) -> int:
    """The definition, by recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


short = st.text("ab", max_size=5)


@given(short, short, st.integers(1, 6))
def test_edit_distance_is_the_definition_cut_at_the_limit(a: str, b: str, limit: int) -> None:
    assert edit_distance(a, b, limit) == min(slow_distance(a, b), limit)


class Draws:
    """Proposes a list of texts per draw; notes (n, draw)."""

    def __init__(self, *draws: str) -> None:
        self.draws = draws
        self.asked: list[tuple[int, int]] = []

    async def __call__(self, n: int, draw: int) -> list[Step]:
        self.asked.append((n, draw))
        return [Step(text) for text in self.draws[draw].split()][:n]


async def same_first_letter(state: State, a: Step, b: Step) -> bool:
    return a.text[0] == b.text[0]


def test_repetitions_are_drawn_again() -> None:
    draws = Draws("a1 a2 b1", "b2 a3", "c1")
    found = run(distinct_steps(draws, State("q"), [], 3, range(3), same_first_letter))
    assert [step.text for step in found] == ["a1", "b1", "c1"]
    assert draws.asked == [(3, 0), (1, 1), (1, 2)]


def test_after_the_last_draw_there_are_fewer() -> None:
    draws = Draws("a1 a2 b1", "b2 a3", "c1")
    found = run(distinct_steps(draws, State("q"), [Step("b0")], 3, range(2), same_first_letter))
    assert [step.text for step in found] == ["a1"]
    assert draws.asked == [(3, 0), (2, 1)]


def test_different_answers_are_never_the_same_step() -> None:
    async def proposes(n: int, draw: int) -> list[Step]:
        return [Step("#### 12", terminal=True, answer="12"), Step("#### 15", terminal=True, answer="15"), Step("#!")][:n]

    found = run(distinct_steps(proposes, State("q"), [], 3, range(1), same_first_letter))
    assert [step.text for step in found] == ["#### 12", "#### 15", "#!"]


def test_the_first_likeness_is_enough() -> None:
    compared: list[str] = []

    async def always(state: State, a: Step, b: Step) -> bool:
        compared.append(b.text)
        return True

    assert run(distinct_steps(Draws("x y"), State("q"), [Step("a"), Step("b")], 2, range(1), always)) == []
    assert compared == ["a", "a"]


def test_equal_texts_merge_without_any_rule() -> None:
    draws = Draws("x y x", "z y")
    found = run(distinct_steps(draws, State("q"), [Step("y")], 2, range(2), None))
    assert [step.text for step in found] == ["x", "z"]
