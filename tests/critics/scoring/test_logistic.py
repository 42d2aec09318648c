"""Logistic regression with a ridge, against equations solved by hand."""

import pytest
import torch

from critics.scoring.logistic import fit_logistic


def test_the_ridge_pulls_towards_its_place() -> None:
    """One weight, one feature that is always 1, all outcomes 1: sigmoid(w) - 1 + ridge (w - towards) = 0."""
    x, y = torch.ones(2, 1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    # sigmoid(0.4010581) = 0.5989419 = 1 - 0.4010581
    assert fit_logistic(x, y, [0.0], [1.0], [True]).item() == pytest.approx(0.4010581, abs=1e-6)
    w = fit_logistic(x, y, [1.0], [1.0], [True]).item()
    assert 1 / (1 + 2.718281828459045**-w) - 1 + (w - 1) == pytest.approx(0.0, abs=1e-8)


def test_a_weight_that_is_not_free_stays() -> None:
    """Two features that are always 1 and outcomes 3 of 4: the free weight makes up the logit, ln 3 = 1.0986123."""
    x, y = torch.ones(4, 2, dtype=torch.float64), torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert fit_logistic(x, y, [0.5, 0.0], [0.0, 0.0], [False, True]).tolist() == pytest.approx([0.5, 0.5986123], abs=1e-6)
