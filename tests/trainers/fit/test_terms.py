"""A step's loss from its forwards' means, by hand."""

import math

import pytest
import torch
from torch import Tensor

from trainers.fit.terms import counted, items, share, tokens

NOTHING = math.nan  # the mean over nothing

# Two forwards of one step, two terms: 3 positions of mean 2 and 1 token of mean 8; 1 position of mean 6 and no token.
MEANS = [torch.tensor([2.0, 8.0]), torch.tensor([6.0, NOTHING])]
COUNTS = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0])]
TOTALS = torch.tensor([4.0, 1.0])


def test_the_shares_add_up_to_the_step() -> None:
    # (3 * 2 + 1 * 6) / 4 + (1 * 8) / 1 = 3 + 8; the mean of the means would be (2 + 6) / 2 = 4 for the first term
    shares = [float(share(m, c, TOTALS)) for m, c in zip(MEANS, COUNTS, strict=True)]
    assert shares == pytest.approx([3 * 2 / 4 + 8, 6 / 4])
    assert sum(shares) == pytest.approx(11)


def test_a_term_over_nothing_has_no_gradient_and_spoils_none() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    means = torch.stack([x.mean(), x[:0].mean()])
    share(means, torch.tensor([2.0, 0.0]), torch.tensor([4.0, 3.0])).backward()
    # d/dx of (x1 + x2) / 2 * 2 / 4
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.25, 0.25])


def test_a_term_that_counts_nowhere_in_the_step_is_nothing() -> None:
    found = share(torch.tensor([2.0, NOTHING]), torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0]))
    assert float(found) == pytest.approx(1.5)


def test_what_is_counted() -> None:
    batch: dict[str, Tensor] = {
        "mask": torch.tensor([[True, True, False], [False, False, True], [True, False, False], [False, False, False]]),
        "written": torch.tensor([[False, True, True]] * 4),
    }
    assert int(counted(batch)) == 4
    assert int(tokens(batch)) == 2  # without the two at the rows' beginnings
    assert int(tokens(batch, "written")) == 8
    assert int(items({"item": torch.tensor([0, 0, 1, 1, 1])})) == 2
    batch["weight"] = torch.tensor([[0.5, 2.0, 9.0]] * 4)  # 9 stands once where the mask is
    assert float(counted(batch)) == pytest.approx(0.5 + 2.0 + 9.0 + 0.5)
