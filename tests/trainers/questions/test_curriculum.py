"""Which questions a round searches."""

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.types import Problem
from trainers.questions.curriculum import CurriculumConfig, PassRate, choose

POOL = [Problem(str(i), f"question {i}", "1") for i in range(8)]
RATES = {
    "0": PassRate(4, 4),  # settled
    "1": PassRate(1, 4),  # 3/16
    "2": PassRate(0, 4),  # hopeless so far
    "3": PassRate(2, 4),  # 4/16
    "4": PassRate(7, 8),  # 7/64
}


def chosen(n: int, revisit: float, rates: dict[str, PassRate] = RATES) -> list[tuple[str, str]]:
    return [(one.problem.id, one.source) for one in choose(POOL, rates, n, CurriculumConfig(revisit), seed=0)]


def test_information_is_the_variance_of_an_outcome() -> None:
    assert PassRate(1, 4).information == 3 / 16
    assert PassRate(4, 4).information == PassRate(0, 4).information == 0


def test_fresh_questions_come_in_order() -> None:
    assert chosen(3, 0.0) == [("5", "train"), ("6", "train"), ("7", "train")]
    assert chosen(2, 0.0, {}) == [("0", "train"), ("1", "train")]


def test_revisited_ones_are_those_that_tell_most() -> None:
    assert chosen(4, 0.5) == [("3", "revisited"), ("1", "revisited"), ("5", "train"), ("6", "train")]
    # Three of six would be revisited, and no fourth is unsettled: never a settled one while there are fresh ones.
    assert chosen(6, 0.9) == [*((i, "revisited") for i in "314"), *((i, "train") for i in "567")]


def test_where_the_fresh_ones_are_used_up_unsettled_ones_come_first_and_solved_ones_last() -> None:
    assert chosen(8, 0.0) == [*((i, "revisited") for i in "31420"), *((i, "train") for i in "567")]
    assert len(chosen(20, 0.5)) == len(POOL)


def test_no_question_twice() -> None:
    for n in range(1, 10):
        for revisit in (0.0, 0.3, 1.0):
            ids = [id_ for id_, _ in chosen(n, revisit)]
            assert len(ids) == len(set(ids)) == min(n, 8)


def test_the_pass_rate_is_told() -> None:
    by_id = {one.problem.id: one.pass_rate for one in choose(POOL, RATES, 4, CurriculumConfig(0.5), seed=0)}
    assert by_id == {"3": 0.5, "1": 0.25, "5": None, "6": None}


@pytest.mark.parametrize("revisit", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range(revisit: float) -> None:
    with pytest.raises(ConfigError, match=r"curriculum\.revisit is"):
        CurriculumConfig(revisit)
