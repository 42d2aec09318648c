"""What a loss's means are taken over, so that a step's loss does not depend on how its rows are dealt out.

A loss is a sum of terms, each a mean over some positions, rows or pairs. The mean over a whole optimiser step is

    L = sum_k (sum_b n_kb m_kb) / (sum_b n_kb)

with m_kb term k's mean over forward b and n_kb the number (or weight) of what it averages there; b runs over the step's
forwards, on all processes. The mean of the means, which is the usual practice, is another loss where the n_kb differ.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llm_mcts.errors import ModelError

Batch = dict[str, Tensor]
Loss = Callable[[torch.nn.Module, Batch], Tensor | Sequence[Tensor]]
"""Of a model and a batch: one mean, or several that are added, each with its factor in it already."""
Counts = Callable[[Batch], Sequence[Tensor]]
"""Of a batch: what each mean of the loss is over, a number of at least 0."""


def counted(batch: Batch) -> Tensor:
    """The positions that count; where they have weights, the weights' sum."""
    if "weight" in batch:
        return (batch["weight"] * batch["mask"]).sum()
    return batch["mask"].sum()


def tokens(batch: Batch, which: str = "mask") -> Tensor:
    """The tokens of mask `which` that a next-token loss is over: all but a row's first, which nothing predicts."""
    return batch[which][:, 1:].sum()


def items(batch: Batch) -> Tensor:
    """The items of a batch whose items are several rows each, such as pairs."""
    return batch["item"].max() + 1


def share(means: Tensor, counts: Tensor, totals: Tensor) -> Tensor:
    """One forward's part of the step's loss: sum over k of n_kb m_kb / N_k, N_k = sum over b of n_kb.

    A term that counts nothing in this forward has no part, whatever its mean (over nothing, it is not a number).

    Args:
        means, counts, totals: [K] m_kb, n_kb and N_k.
    """
    # What counts nothing in the whole step has a total of 0, and 0 / 0 would reach the weights through the gradient.
    parts = means * (counts / torch.where(totals > 0, totals, torch.ones_like(totals)))
    return torch.where(counts > 0, parts, torch.zeros_like(parts)).sum()


def check_weights(model: torch.nn.Module, steps: int, remedy: str) -> None:
    """Refuse a model that its last step broke: the loss was finite, its gradient was not.

    Raises:
        ModelError: a trained parameter is NaN or infinite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.detach().isfinite().all()):
            raise ModelError(f"parameter {name} is NaN or infinite after {steps} steps; expected finite weights: {remedy}")
