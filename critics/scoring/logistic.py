"""Logistic regression by Newton's method, for a few features: what calibrates critics and what weighs their sum."""

from collections.abc import Sequence

import torch
from torch import Tensor


def fit_logistic(x: Tensor, y: Tensor, towards: Sequence[float], ridge: Sequence[float], free: Sequence[bool]) -> Tensor:
    """The weights [D] that minimise the mean cross-entropy of sigmoid(x w) plus sum of ridge_i (w_i - towards_i)^2 / 2.

    Args:
        x: [N, D], in float64.
        y: [N], each 0 or 1.
        towards: where the ridge pulls each weight, which is also where it starts.
        ridge: how much, at least 0.
        free: whether a weight may move from there.
    """
    start, pull = torch.tensor(towards, dtype=torch.float64), torch.tensor(ridge, dtype=torch.float64)
    moves = torch.tensor([i for i, moving in enumerate(free) if moving])

    def loss(w: Tensor) -> float:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + (pull * (w - start) ** 2).sum() / 2)

    w, current = start, loss(start)
    for _ in range(100):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) / len(y) + pull * (w - start)
        hessian = x.T @ (x * (p * (1 - p)).clamp_min(1e-9)[:, None]) / len(y) + torch.diag(pull)
        step = torch.zeros_like(w)
        step[moves] = torch.linalg.solve(hessian[moves][:, moves], gradient[moves])
        size = 1.0
        while size > 1e-8 and (new := loss(w - size * step)) > current:
            size /= 2
        if size <= 1e-8:
            break
        w, current = w - size * step, new
        if float(step.abs().max()) < 1e-10:
            break
    return w
