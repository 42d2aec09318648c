"""First errors and step scores against hand-computed cases."""

import random
from math import inf

import pytest

from critics.step_metrics import (
    Hits,
    StepCase,
    best_threshold,
    count_hits,
    cross_thresholds,
    f1,
    first_below,
    first_error,
    is_known,
    judge_steps,
    to_markdown,
    truth_of_labels,
)


def case(scores: tuple[float, ...], wrong: int | None = None) -> StepCase:
    """A solution whose step `wrong` is its first wrong one."""
    end = len(scores) if wrong is None else wrong
    return StepCase(scores, tuple(True if i < end else False if i == end else None for i in range(len(scores))))


def test_first_below() -> None:
    assert first_below([0.9, 0.4, 0.3], 0.5) == 1
    assert first_below([0.9, 0.5], 0.5) is None  # not below
    assert first_below([], 0.5) is None


def test_labels_as_truth() -> None:
    assert truth_of_labels([1.0, 0.5, 0.25, 0.0]) == (True, True, False, None)
    assert truth_of_labels([0.75, 1.0]) == (True, True)
    # Binary search measures few prefixes: before a right step all is right; between a right and a wrong one nothing is known.
    assert truth_of_labels([None, 0.75, 0.0]) == (True, True, False)
    assert truth_of_labels([None, 0.75, None, 0.0]) == (True, True, None, False)
    assert truth_of_labels([0.75, None]) == (True, None)
    assert [is_known(t) for t in [(True, False, None), (True, None, False), (True, None), (True, True), (False,)]] == [
        True,
        False,
        False,
        True,
        True,
    ]


ONE = [case((0.9, 0.2, 0.1), 1), case((0.9, 0.8, 0.3), 1), case((0.9, 0.9))]
TWO = [case((0.3, 0.9)), case((0.8, 0.7)), case((0.1,), 0)]


def test_first_error_by_hand() -> None:
    # At 0.5. ONE: names 1 (right), names 2 (the truth is 1), names none (right): faulty 1 of 2, right 1 of 1.
    # TWO: names 0 in a right solution, none (right), 0 (right): faulty 1 of 1, right 1 of 2.
    assert count_hits(ONE, 0.5) == Hits(1, 2, 1, 1)
    assert count_hits(TWO, 0.5) == Hits(1, 1, 1, 2)
    found = first_error([ONE, TWO], [0.5, 0.5])
    assert found.overall is not None
    assert found.faulty is not None
    assert found.right is not None
    assert found.f1 is not None
    # overall 4 of 6; faulty 2 of 3, right 2 of 3; F1 of equal ones is theirs.
    assert (found.overall.value, found.faulty.value, found.right.value) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert found.f1.value == pytest.approx(2 / 3)
    assert found.overall.questions == 2
    # Each question at its own: TWO at 0.2: names none, none, 0: all right. faulty 2 of 3, right 3 of 3:
    # F1 = 2 * (2/3) / (5/3) = 0.8.
    other = first_error([ONE, TWO], [0.5, 0.2])
    assert other.f1 is not None
    assert other.f1.value == pytest.approx(0.8)


def test_a_critic_that_always_or_never_complains_has_f1_0() -> None:
    assert f1(Hits(0, 3, 3, 3)) == f1(Hits(3, 3, 0, 3)) == f1(Hits(0, 3, 0, 3)) == 0.0
    assert f1(Hits(0, 0, 3, 3)) is None
    assert first_error([[case((0.9,))]], [0.5]).faulty is None


def test_the_interval_is_that_of_the_questions() -> None:
    # 400 questions of one faulty solution each, every second one found: half = 1.96 sqrt(0.25 / 400) = 0.049.
    groups = [[case((0.1 if i % 2 else 0.9,), 0)] for i in range(400)]
    found = first_error(groups, [0.5] * 400).faulty
    assert found is not None
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.451, 0.549), abs=0.012)


def test_the_best_threshold_by_hand() -> None:
    # Wrong steps score 0.2, right ones 0.3: above 0.2 and up to 0.3 all is named rightly; 0.3 is the candidate there.
    groups = [[case((0.3, 0.2), 1), case((0.3, 0.3))]]
    assert best_threshold(groups) == 0.3
    assert first_error(groups, [0.3]).f1 == pytest.approx(first_error(groups, [0.25]).f1)
    # Only faulty ones, wrong from the start: any threshold above every score.
    assert best_threshold([[case((0.9,), 0)]]) == inf


def test_thresholds_come_from_other_questions() -> None:
    low, high = [case((0.3, 0.2), 1), case((0.3, 0.3))], [case((0.9, 0.6), 1), case((0.9, 0.9))]
    # Questions 0 and 2 would like 0.3, question 1 and 3 would like 0.9: each gets the others'.
    assert cross_thresholds([low, high, low, high]) == [0.9, 0.3, 0.9, 0.3]
    found = judge_steps([low, high, low, high], "the test")
    assert found.thresholds == [0.3, 0.9]
    # low at 0.9: names step 0 in both: wrong. high at 0.3: names none: right in the right one only. F1: faulty is 0.
    assert found.tuned is not None
    assert found.tuned.f1 is not None
    assert found.tuned.f1.value == 0.0


def test_a_blind_prm_and_a_perfect_one() -> None:
    draw = random.Random(0)

    def groups(blind: bool) -> list[list[StepCase]]:
        found = []
        for _ in range(100):
            wrongs = [draw.choice([None, 0, 1, 2]) for _ in range(6)]
            cases = []
            for wrong in wrongs:
                scores = tuple(draw.random() if blind else 0.1 if i == wrong else 0.9 for i in range(3))
                cases.append(case(scores, wrong))
            found.append(cases)
        return found

    perfect, blind = judge_steps(groups(False), "the test"), judge_steps(groups(True), "the test")
    assert perfect.auc_within is not None
    assert perfect.auc_within.value == perfect.auc_over_all == 1.0
    assert perfect.at_half.f1 is not None
    assert perfect.at_half.f1.value == 1.0
    assert blind.auc_within is not None
    # Some 600 wrong steps in 100 questions: the standard error of a blind AUC is about 0.015.
    assert blind.auc_within.value == pytest.approx(0.5, abs=0.06)
    assert blind.auc_within.low < 0.5 < blind.auc_within.high


def test_what_is_unknown_is_left_out_and_counted() -> None:
    unknown = StepCase((0.9, 0.9, 0.1), (True, None, False))
    found = judge_steps([[unknown, *ONE], [unknown], TWO], "a file")
    assert (found.solutions, found.faulty, found.left_out) == (6, 3, 2)
    # Steps up to the first wrong one. ONE: right 0.9, 0.9, 0.9, 0.9; wrong 0.2, 0.8: 8 pairs, all in order.
    # TWO: right 0.3, 0.9, 0.8, 0.7; wrong 0.1: 4 of 4.
    assert found.auc_within is not None
    assert found.auc_within.value == 1.0
    # Over all: right 0.9 x 5, 0.8, 0.7, 0.3 against wrong 0.8, 0.2, 0.1: 0.8 loses to five and ties with one, the others
    # lose to all eight: 5 + 0.5 + 8 + 8 = 21.5 of 24.
    assert found.auc_over_all == pytest.approx(21.5 / 24)
    text = "\n".join(to_markdown(found))
    assert "by a file: 6 solutions, 3 of them with a wrong step; 2 left out" in text
    assert "| 0.5 | 66.7 % [" in text
