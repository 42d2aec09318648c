"""Losses as pure functions of tensors.

Masks are boolean and say which positions count; every loss is a mean over those positions. Weights, where a loss takes
them, are relative: only their proportions matter.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

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


def score_mse(logits: Tensor, labels: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Value loss (V(s) - u)^2 on scores: mean over the mask of (sigmoid(logit) - label)^2.

    OVM's token-level loss when the mask holds every solution token and the label is the outcome; its minimiser is
    P(correct | prefix) (arXiv 2311.09724). AlphaLLM's when the mask holds step ends.

    Args:
        logits: [B, T].
        labels: [B, T] in [0, 1].
        mask: [B, T] boolean.
        weights: [B, T] above 0 where the mask is, such as a node's visits; None: all alike.
    """
    errors = (torch.sigmoid(logits[mask].float()) - labels[mask]).square()
    return errors.mean() if weights is None else _weighted_mean(errors, weights[mask])


def score_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the mask of -[y log p + (1 - y) log(1 - p)], p = sigmoid(logit), y in [0, 1] hard or soft.

    Math-Shepherd's PRM loss when the mask holds the step ends, the usual ORM loss when it holds the last token.

    Args:
        logits: [B, T].
        labels: [B, T] in [0, 1].
        mask: [B, T] boolean.
        weights: [B, T] above 0 where the mask is; None: all alike.
    """
    if weights is None:
        return binary_cross_entropy_with_logits(logits[mask].float(), labels[mask])
    errors = binary_cross_entropy_with_logits(logits[mask].float(), labels[mask], reduction="none")
    return _weighted_mean(errors, weights[mask])


def pairwise_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Bradley-Terry: mean over pairs of -log sigmoid(r+ - r-), r the logit at a row's masked token.

    rStar-Math's PPM loss when a pair shares its prefix (arXiv 2501.04519; there r is a tanh), the usual preference loss of an
    ORM when a pair is a right and a wrong solution of one question.

    Args:
        logits: [2 P, T]; rows 2 i and 2 i + 1 are a pair, the better one first.
        mask: [2 P, T] boolean, one True a row.
    """
    better, worse = logits[mask].float().view(-1, 2).unbind(1)
    return -logsigmoid(better - worse).mean()


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()
