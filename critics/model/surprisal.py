"""What a head needs to see a slip: how likely the language model found each token that was written.

The state of a causal model at a token holds what it expects next; whether the next token is what was expected is known only one
token later, and a shallow model has no layer left to find out. The language model's head on the same backbone makes that
comparison, and the critic's head reads it beside the hidden state:

    s_t     log p(x_t | x_<t) of the solution's tokens; the prompt's count nothing
    f_t     s_t; the sum, mean and minimum of s over the solution so far; its mean and minimum over the current step so far
    logit_t mlp([h_t, f_t])

All of f is cumulative, so every prefix has a score, and a solution can be read on from where it was left (`Running`).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

FEATURES = 6
"""How many numbers a token has beside its hidden state."""

# Brings each of them to about the size of a hidden state's entries: sums reach -30, means -1, the minimum of a solution -8.
_SCALES = (0.5, 1 / 16, 2.0, 0.5, 2.0, 0.5)


class Running(NamedTuple):
    """Of the tokens of a segment up to each one: how many, the sum and the minimum of their log-probabilities, all [B, T]."""

    tokens: Tensor
    total: Tensor
    least: Tensor


def surprisals(hidden: Tensor, ids: Tensor, segments: Tensor, lm_head: Any) -> Tensor:
    """log p(x_t | x_<t) [B, T] of the solution's tokens, in float32; 0 elsewhere.

    Args:
        hidden: [B, T, hidden], the backbone's last.
        ids: [B, T].
        segments: [B, T] number of the step that a token belongs to, from 1; 0 for the prompt and for padding. The first column
            is 0: nothing is known of what comes before it.
        lm_head: hidden states to logits of the next token.
    """
    written = segments[:, 1:] > 0
    found = -cross_entropy(lm_head(hidden[:, :-1][written]).float(), ids[:, 1:][written], reduction="none")
    logprobs = torch.zeros(ids.shape, device=hidden.device)
    return torch.cat([logprobs[:, :1], logprobs[:, 1:].masked_scatter(written, found)], dim=1)


def running(logprobs: Tensor, segments: Tensor, before: Running | None = None) -> Running:
    """Cumulative count, sum and minimum of log-probabilities [B, T] within each segment of `segments` [B, T]; 0 outside all.

    Args:
        before: what the first segment began with, [B, 1] each.
    """
    start = before or Running(*(logprobs.new_zeros(len(logprobs), 1) for _ in range(3)))
    count, total, least = (torch.zeros_like(logprobs) for _ in range(3))
    for k in range(1, int(segments.max()) + 1):
        inside = segments == k
        # Log-probabilities are at most 0, so what stands outside as 0 changes neither a sum nor a minimum.
        own = torch.where(inside, logprobs, 0.0)
        count = torch.where(inside, start.tokens + inside.cumsum(1), count)
        total = torch.where(inside, start.total + own.cumsum(1), total)
        least = torch.where(inside, torch.minimum(start.least, own.cummin(1).values), least)
        start = Running(*(torch.zeros_like(x) for x in start))
    return Running(count, total, least)


def features(logprobs: Tensor, solution: Running, step: Running) -> Tensor:
    """f [B, T, FEATURES] of log-probabilities [B, T], cumulative over the solution and within its steps; 0 in the prompt."""
    means = [part.total / part.tokens.clamp(min=1) for part in (solution, step)]
    columns = (logprobs, solution.total, means[0], solution.least, means[1], step.least)
    return torch.stack([scale * column for scale, column in zip(_SCALES, columns, strict=True)], dim=-1)


def solution_features(logprobs: Tensor, segments: Tensor, before: Running | None = None) -> tuple[Tensor, Running]:
    """f [B, T, FEATURES], and what the solution has run up to at each token.

    Args:
        logprobs, segments: [B, T], as in `surprisals`; a step is whole, or begins here.
        before: what the solution had run up to in front of the first token.
    """
    solution = running(logprobs, segments.clamp(max=1), before)
    return features(logprobs, solution, running(logprobs, segments)), solution
