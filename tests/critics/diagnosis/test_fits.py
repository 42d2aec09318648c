"""What is fitted to a diagnosis's samples, by hand: halves, ranks, and samples without an answer."""

from typing import Any

from critics.diagnosis.fits import _cross_fitted, _rank_averaged, samples_of
from critics.metrics import Sample


def test_a_sample_without_an_answer_is_worth_0() -> None:
    rows: list[dict[str, Any]] = [{"samples": [{"answer": "1", "right": True}, {"answer": None, "right": False}]}]
    assert samples_of(rows, [[0.25, 0.75]]) == [[Sample(0.25, True, "1"), Sample(0.0, False, None)]]


def test_ranks_are_among_the_answered_samples() -> None:
    one = [[Sample(0.9, True, "1"), Sample(0.5, False, None), Sample(0.1, False, "2"), Sample(0.8, False, "3")]]
    other = [[Sample(0.6, True, "1"), Sample(0.9, False, None), Sample(0.7, False, "2"), Sample(0.2, False, "3")]]
    # Ranks of three: 1, 0, 1/2 and 1/2, 1, 0.
    assert [s.score for s in _rank_averaged([one, other])[0]] == [0.75, 0.0, 0.5, 0.25]


def test_each_half_is_scored_by_the_weights_of_the_other() -> None:
    """On even questions high scores are right, on odd ones wrong: the weights of the other half turn the order round."""
    rows: list[dict[str, Any]] = []
    groups: list[list[Sample]] = []
    for q in range(8):
        high_is_right = q % 2 == 0
        # One exception each, so that the fit is finite.
        exception = q >= 6
        right = high_is_right != exception
        samples = [{"answer": "1", "right": right}, {"answer": "2", "right": not right}]
        rows.append({"samples": samples})
        groups.append([Sample(0.9, right, "1"), Sample(0.1, not right, "2")])
    scored = _cross_fitted({"orm": groups}, rows, "min")
    assert [group[0].score > group[1].score for group in scored] == [False, True] * 4
