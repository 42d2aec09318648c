"""Losses as pure functions of tensors.

Masks are boolean and say which positions count; every loss is a mean over those positions. Weights, where a loss takes
them, are relative: only their proportions matter.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

IGNORE = -100
"""Label of a token that does not count (the convention of torch and transformers)."""


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Behaviour cloning: mean of -log p(token t+1 | tokens <= t) over the labelled tokens.

    Args:
        logits: [B, T, V].
        labels: [B, T] token ids; IGNORE where a token does not count. `labels[:, t]` is predicted by `logits[:, t - 1]`.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE
    return cross_entropy(logits[:, :-1][chosen].float(), targets[chosen])


def score_mse(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Value loss (V(s) - u)^2 on scores: mean over the mask of (sigmoid(logit) - label)^2.

    OVM's token-level loss when the mask holds every solution token and the label is the outcome; its minimiser is
    P(correct | prefix) (arXiv 2311.09724).

    Args:
        logits: [B, T].
        labels: [B, T] in [0, 1].
        mask: [B, T] boolean.
    """
    return (torch.sigmoid(logits[mask].float()) - labels[mask]).square().mean()


def score_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of -[y log p + (1 - y) log(1 - p)], p = sigmoid(logit), y in [0, 1] hard or soft.

    Math-Shepherd's PRM loss when the mask holds the step ends, the usual ORM loss when it holds the last token.

    Args:
        logits: [B, T].
        labels: [B, T] in [0, 1].
        mask: [B, T] boolean.
    """
    return binary_cross_entropy_with_logits(logits[mask].float(), labels[mask])


def mixed_next_token_loss(logits: Tensor, ids: Tensor, verify: Tensor, solve: Tensor, weight: float) -> Tensor:
    """GenRM's L_verify + weight * L_correct (arXiv 2408.15240): two means of -log p(token t+1 | tokens <= t).

    A batch without tokens of one kind has no such term.

    Args:
        logits: [B, T, V].
        ids: [B, T] token ids.
        verify: [B, T] boolean: tokens of verdicts and rationales.
        solve: [B, T] boolean: tokens of right solutions.
        weight: lambda, at least 0.
    """
    terms = [
        share * next_token_loss(logits, torch.where(mask, ids, IGNORE))
        for mask, share in ((verify, 1.0), (solve, weight))
        if mask[:, 1:].any()
    ]
    return torch.stack(terms).sum()
