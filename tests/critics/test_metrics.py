"""Diagnostics against hand-computed cases and against definitions by brute force."""

import itertools
from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from critics.metrics import (
    Estimate,
    Sample,
    agreement,
    any_of,
    auc,
    best_of,
    brier,
    calibration_error,
    mean_over,
    prefix_groups,
    reliability,
    verdict,
    voted,
    within_question_auc,
)
from llm_mcts.errors import DataError


def group(*rows: tuple[float, int] | tuple[float, int, str]) -> list[Sample]:
    return [Sample(row[0], bool(row[1]), row[2] if len(row) == 3 else None) for row in rows]


def test_auc_by_hand() -> None:
    # Right 0.9, 0.4; wrong 0.5, 0.4, 0.1: pairs 0.9 > all three: 3; 0.4 > 0.1, = 0.4, < 0.5: 1.5. 4.5 of 6.
    assert auc(group((0.9, 1), (0.5, 0), (0.4, 1), (0.4, 0), (0.1, 0))) == pytest.approx(0.75)
    assert auc(group((0.9, 1), (0.5, 1))) is None
    assert auc([]) is None


samples = st.lists(st.builds(Sample, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), max_size=12)


@given(samples)
def test_auc_is_its_definition(rows: list[Sample]) -> None:
    pairs = [(r, w) for r in rows if r.right for w in rows if not w.right]
    expected = fmean((r.score > w.score) + 0.5 * (r.score == w.score) for r, w in pairs) if pairs else None
    assert auc(rows) == (None if expected is None else pytest.approx(expected))


def test_a_critic_that_only_knows_easy_questions_ranks_none_within() -> None:
    # An easy question with scores 0.9 (3 of 4 right), a hard one with 0.1 (1 of 4 right): over all, pairs 4 x 4 = 16;
    # easy right beat hard wrong 3*3 = 9, ties within 3*1/2 + 1*3/2 = 3, hard right against easy wrong 0: 12 / 16 = 0.75.
    easy, hard = group((0.9, 1), (0.9, 1), (0.9, 1), (0.9, 0)), group((0.1, 1), (0.1, 0), (0.1, 0), (0.1, 0))
    assert auc(easy + hard) == pytest.approx(0.75)
    within = within_question_auc([easy, hard])
    assert within is not None
    assert within.value == 0.5
    assert within.questions == 2


def test_within_question_auc_pools_pairs() -> None:
    # One pair in order; then 1 of 2 pairs in order: 2 of 3. A question of one kind says nothing.
    found = within_question_auc([group((0.9, 1), (0.1, 0)), group((0.5, 1), (0.7, 0), (0.2, 0)), group((0.3, 1))])
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert found.questions == 2
    assert 0.5 <= found.low <= found.value <= found.high <= 1.0
    assert within_question_auc([group((0.3, 1))]) is None


def test_the_interval_narrows_with_questions() -> None:
    mixed = [group((0.9, 1), (0.1, 0)), group((0.1, 1), (0.9, 0))]
    few, many = within_question_auc(mixed * 5), within_question_auc(mixed * 80)
    assert few is not None
    assert many is not None
    assert few.value == many.value == 0.5
    # 160 fair coins: standard error sqrt(0.25 / 160) = 0.0395, so the interval is about 4 * 0.0395 = 0.155 wide.
    assert many.high - many.low == pytest.approx(0.155, abs=0.03)
    assert few.high - few.low > 3 * (many.high - many.low)


def test_calibration_by_hand() -> None:
    rows = group((0.95, 1), (0.92, 0), (0.15, 0), (0.11, 1), (0.5, 1))
    # Bins: 0.9-1: mean score 0.935, right 0.5; 0.1-0.2: 0.13, 0.5; 0.5: 0.5, 1.
    # ECE = (2 * 0.435 + 2 * 0.37 + 1 * 0.5) / 5 = 0.422
    assert calibration_error(rows) == pytest.approx(0.422)
    # Brier: (0.0025 + 0.8464 + 0.0225 + 0.7921 + 0.25) / 5 = 0.3827
    assert brier(rows) == pytest.approx(0.3827)
    assert [(b.samples, b.right) for b in reliability(rows)] == [(2, 0.5), (1, 1.0), (2, 0.5)]
    assert calibration_error(group((1.0, 1), (0.0, 0))) == 0.0


def test_best_of_n_by_hand() -> None:
    rows = group((0.9, 0), (0.8, 1), (0.8, 0), (0.1, 1))
    # n = 1: the mean, 0.5. n = 4: the best is wrong: 0.
    # n = 2 of 4, 6 pairs: with the 0.9 (3 of them): 0; {0.8, 0.8}: 1/2; {0.8 right, 0.1}: 1; {0.8 wrong, 0.1}: 0. 1.5 / 6.
    assert [best_of(rows, n) for n in (1, 2, 4)] == pytest.approx([0.5, 0.25, 0.0])
    # pass@2: 1 - C(2, 2) / C(4, 2) = 5/6
    assert [any_of(rows, n) for n in (1, 2, 4)] == pytest.approx([0.5, 5 / 6, 1.0])
    for n in (0, 5):
        with pytest.raises(DataError, match="of a question's 4 samples"):
            best_of(rows, n)


@given(samples.filter(lambda rows: len(rows) >= 1), st.data())
def test_best_of_n_is_the_mean_over_all_choices(rows: list[Sample], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, min(4, len(rows))))

    def best(chosen: Sequence[Sample]) -> float:
        top = max(s.score for s in chosen)
        return fmean(s.right for s in chosen if s.score == top)

    assert best_of(rows, n) == pytest.approx(fmean(best(c) for c in itertools.combinations(rows, n)))
    assert any_of(rows, n) == pytest.approx(fmean(any(s.right for s in c) for c in itertools.combinations(rows, n)))


def test_votes_by_hand() -> None:
    rows = group((0.2, 0, "A"), (0.2, 0, "A"), (0.9, 1, "B"), (0.9, 1, None))
    # Majority A 2 to 1; weighted B 0.9 to 0.4. What states no answer has no vote.
    assert voted(rows, 4, weighted=False) == 0.0
    assert voted(rows, 4, weighted=True) == 1.0
    assert voted(group((0.9, 0)), 1, weighted=False) == 0.0
    # One of four at random is right with its answer once (B), wrong twice, silent once.
    assert voted(rows * 50, 1, weighted=False, draws=4000) == pytest.approx(0.25, abs=0.03)


def test_agreement_by_hand() -> None:
    a = [group((0.1, 0, "1"), (0.5, 0, "1"), (0.9, 1, "2"))]
    b = [group((0.2, 0, "1"), (0.1, 0, "1"), (0.8, 1, "2"))]
    # Pairs 1-0: a up, b down; 2-0: both up; 2-1: both up. 2 of 3. A tie is left out.
    found = agreement(a, b)
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    tied = agreement(a, [group((0.1, 0, "1"), (0.1, 0, "1"), (0.8, 1, "2"))])
    assert tied is not None
    assert tied.value == 1.0


def test_prefixes_carry_the_outcome_of_their_solution() -> None:
    groups = [group((0.9, 1), (0.2, 0))]
    scores = [[[0.5, 0.6, 0.7, 0.9], [0.5, 0.3, 0.2]]]  # 3 and 2 steps; the first number is the bare question's
    found = prefix_groups(scores, groups)
    # After one step both are unfinished; after two only the first is.
    assert {k: [[(s.score, s.right) for s in g] for g in gs] for k, gs in found.items()} == {
        1: [[(0.6, True), (0.3, False)]],
        2: [[(0.7, True)]],
    }


def test_mean_over_questions() -> None:
    # Values 1, 0, 1, 0: mean 0.5, sample deviation 0.57735, half 1.96 * 0.57735 / 2 = 0.5658.
    found = mean_over([group((0.1, r)) for r in (1, 0, 1, 0)], lambda g: float(g[0].right))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, -0.0658, 1.0658), abs=1e-4)


@pytest.mark.parametrize(
    ("within", "gain", "words"),
    [
        (Estimate(0.51, 0.48, 0.54, 50), (-0.1, 0.1), "no better than chance: 0.51 ± 0.03"),
        (Estimate(0.30, 0.25, 0.35, 50), (-0.1, 0.1), "worse than chance: 0.30 ± 0.05"),
        (Estimate(0.80, 0.75, 0.85, 50), (0.01, 0.1), "its best of 16 beats their majority"),
        (Estimate(0.80, 0.75, 0.85, 50), (-0.2, -0.1), "its best of 16 loses to their majority"),
        (Estimate(0.80, 0.75, 0.85, 50), (-0.1, 0.1), "its best of 16 ties with their majority"),
        (None, (0.0, 0.0), "cannot be judged"),
        (Estimate(1.0, 1.0, 1.0, 3), (0.5, 0.9), "only 3 questions"),
    ],
)
def test_verdicts(within: Estimate | None, gain: tuple[float, float], words: str) -> None:
    low, high = gain
    middle = Estimate((low + high) / 2, low, high, 50)
    assert words in verdict(within, middle, Estimate(0.0, -0.1, 0.1, 50), 16)
