"""Choosing one answer among whole solutions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.search.voting import best_trace, vote
from llm_mcts.types import Trace
from tests.search_cases import solution


def trace(answer: str | None, score: float | None = None, name: str = "") -> Trace:
    return Trace(solution(name, answer=answer), score)


def voted(*traces: Trace, weighted: bool = True) -> tuple[str | None, float]:
    chosen, share = vote(traces, weighted)
    return (chosen.state.answer if chosen else None), share


def test_weights_and_shares_by_hand() -> None:
    traces = [trace("A", 0.9), trace("B", 0.5), trace("B", 0.6)]
    # A 0.9, B 0.5 + 0.6 = 1.1, total 2.0
    assert voted(*traces) == ("B", pytest.approx(0.55))
    # A 0.9, B 0.3 + 0.5 = 0.8, total 1.7
    assert voted(trace("A", 0.9), trace("B", 0.3), trace("B", 0.5)) == ("A", pytest.approx(0.5294117647))
    # Unweighted: A 1, B 2 of 3
    assert voted(trace("A", 0.9), trace("B", 0.3), trace("B", 0.5), weighted=False) == ("B", pytest.approx(2 / 3))


def test_a_solution_without_a_score_counts_1() -> None:
    assert voted(trace("A"), trace("B"), trace("B")) == ("B", pytest.approx(2 / 3))
    # A 1, B 0.4 + 0.5 = 0.9
    assert voted(trace("A"), trace("B", 0.4), trace("B", 0.5)) == ("A", pytest.approx(1 / 1.9))


def test_solutions_without_an_answer_have_no_vote() -> None:
    assert voted(trace(None, 1.0), trace(None, 1.0), trace("A", 0.1)) == ("A", 1.0)
    assert voted(trace(None, 1.0)) == (None, 0.0)
    assert voted() == (None, 0.0)


def test_ties_go_to_the_answer_seen_first() -> None:
    assert voted(trace("B", 0.5), trace("A", 0.5)) == ("B", 0.5)
    assert voted(trace("A"), trace("B"), trace("B"), trace("A")) == ("A", 0.5)


def test_where_nothing_has_weight_nothing_is_sure() -> None:
    assert voted(trace("B", 0.0), trace("A", 0.0)) == ("B", 0.0)


def test_the_winner_is_shown_by_its_best_solution() -> None:
    chosen, _ = vote([trace("B", 0.2, "poor"), trace("A", 0.7), trace("B", 0.6, "good"), trace("B", 0.6, "later")])
    assert chosen is not None
    assert chosen.state.steps[0].text == "good"


def test_best_trace() -> None:
    first, second = trace("A", 0.5, "first"), trace("B", 0.5, "second")
    assert best_trace([first, second]) is first
    assert best_trace([trace("C", 0.4), second, first]) is second
    assert best_trace([trace(None, 1.0), first]) is first
    assert best_trace([trace("A"), trace("B", 0.0, "scored")]) == trace("B", 0.0, "scored")
    assert best_trace([trace(None, 1.0)]) is None
    assert best_trace([]) is None


many = st.lists(st.builds(trace, st.none() | st.sampled_from("ABC"), st.none() | st.floats(0, 1)), max_size=12)


@given(many, st.booleans())
def test_the_winner_outweighs_every_other_answer(traces: list[Trace], weighted: bool) -> None:
    answer, share = voted(*traces, weighted=weighted)
    stated = [t for t in traces if t.state.answer is not None]

    def weight(a: str) -> float:
        return sum((t.score if weighted and t.score is not None else 1.0) for t in stated if t.state.answer == a)

    assert 0.0 <= share <= 1.0
    assert (answer is None) == (not stated)
    for other in {t.state.answer for t in stated}:
        assert weight(str(answer)) >= weight(str(other))


@given(many)
def test_answers_without_scores_are_a_majority_vote(traces: list[Trace]) -> None:
    bare = [Trace(t.state) for t in traces]
    assert voted(*bare) == voted(*traces, weighted=False)
