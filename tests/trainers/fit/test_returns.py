"""TD(lambda) returns and generalised advantages by hand, and what must hold for any rewards and values."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.fit.returns import gae, lambda_returns, leave_one_out_baselines, mean_baselines, outcome_rewards

REWARDS, VALUES = [0.0, 0.0, 1.0], [0.5, 0.25, 0.75]


def test_lambda_returns_by_hand() -> None:
    # gamma 1/2, lambda 1/4:
    # G_2 = 1
    # G_1 = 0 + 1/2 (3/4 * 0.75 + 1/4 * 1) = 1/2 * 0.8125 = 0.40625
    # G_0 = 0 + 1/2 (3/4 * 0.25 + 1/4 * 0.40625) = 1/2 * 0.2890625 = 0.14453125
    assert lambda_returns(REWARDS, VALUES, 0.5, 0.25) == pytest.approx([0.14453125, 0.40625, 1.0], abs=1e-9)


def test_gae_by_hand() -> None:
    # gamma 1/2, lambda 1/4, so gamma lambda = 1/8:
    # delta_2 = 1 - 0.75 = 0.25; delta_1 = 0.5 * 0.75 - 0.25 = 0.125; delta_0 = 0.5 * 0.25 - 0.5 = -0.375
    # A_2 = 0.25; A_1 = 0.125 + 0.25 / 8 = 0.15625; A_0 = -0.375 + 0.15625 / 8 = -0.35546875
    assert gae(REWARDS, VALUES, 0.5, 0.25) == pytest.approx([-0.35546875, 0.15625, 0.25], abs=1e-9)


def test_rewards_on_the_way_count() -> None:
    # gamma 1, lambda 1: sums of what is still to come
    assert lambda_returns([1.0, 2.0, 4.0], [9.0, 9.0, 9.0], 1.0, 1.0) == [7.0, 6.0, 4.0]


def test_where_no_value_is_known_the_return_stands_in() -> None:
    # gamma 1, lambda 0: G_2 = 1, G_1 = G_2 for want of V_2, G_0 = V_1
    assert lambda_returns(REWARDS, [0.5, 0.25, None], 1.0, 0.0) == [0.25, 1.0, 1.0]
    assert lambda_returns(REWARDS, [None, None, None], 0.5, 0.3) == [0.25, 0.5, 1.0]


def test_the_outcome_is_earned_at_the_end() -> None:
    assert outcome_rewards(1.0, 3) == [0.0, 0.0, 1.0]
    assert outcome_rewards(0.0, 1) == [0.0]


def test_values_of_another_number_are_refused() -> None:
    for function in (lambda_returns, gae):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            function([0.0, 1.0], [0.5], 1.0, 1.0)


shares = st.floats(0, 1)
solutions = st.lists(shares, min_size=1, max_size=8)


@given(solutions, st.booleans(), shares, shares)
def test_advantage_and_value_make_the_return(values: list[float], right: bool, gamma: float, lam: float) -> None:
    """A_t + V_t = G_t, from two recursions that share no code."""
    rewards = [0.0] * (len(values) - 1) + [float(right)]
    sums = [a + v for a, v in zip(gae(rewards, values, gamma, lam), values, strict=True)]
    assert lambda_returns(rewards, values, gamma, lam) == pytest.approx(sums, abs=1e-9)


@given(solutions, st.booleans(), shares)
def test_lambda_1_is_the_discounted_outcome(values: list[float], right: bool, gamma: float) -> None:
    rewards = [0.0] * (len(values) - 1) + [float(right)]
    expected = [gamma ** (len(values) - 1 - t) * right for t in range(len(values))]
    assert lambda_returns(rewards, values, gamma, 1.0) == pytest.approx(expected, abs=1e-9)


@given(solutions, st.booleans(), shares)
def test_lambda_0_is_one_step(values: list[float], right: bool, gamma: float) -> None:
    rewards = [0.0] * (len(values) - 1) + [float(right)]
    expected = [*(gamma * following for _, following in pairwise(values)), float(right)]
    assert lambda_returns(rewards, values, gamma, 0.0) == pytest.approx(expected, abs=1e-9)


@given(solutions, st.booleans(), shares, shares)
def test_targets_of_outcomes_are_labels(values: list[float], right: bool, gamma: float, lam: float) -> None:
    found = lambda_returns(outcome_rewards(float(right), len(values)), values, gamma, lam)
    assert len(found) == len(values)
    assert all(-1e-9 <= target <= 1 + 1e-9 for target in found)


def test_baselines_by_hand() -> None:
    # mean (1 + 0 + 0.5) / 3 = 0.5; of the others (0 + 0.5) / 2, (1 + 0.5) / 2, (1 + 0) / 2
    assert mean_baselines([1.0, 0.0, 0.5]) == pytest.approx([0.5, 0.5, 0.5], abs=1e-12)
    assert leave_one_out_baselines([1.0, 0.0, 0.5]) == pytest.approx([0.25, 0.75, 0.5], abs=1e-12)
