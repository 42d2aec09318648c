"""Drawing tokens: by inverting the distribution function, so that nothing is sorted and no row depends on its neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_mcts.engines.base import Request


def sample(logits: Tensor, requests: Sequence[Request], uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """Draw one token a row.

    Args:
        logits: [B, V] float32.
        requests: [B] with their temperatures and truncations.
        uniforms: [B] numbers in [0, 1), one a row.

    Returns:
        Token ids, and their log-probabilities at temperature 1 without truncation.
    """
    device = logits.device
    temperature = torch.tensor([request.temperature for request in requests], device=device)
    greedy = temperature < 1e-6  # below that, logits overflow and the likeliest token is all there is
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    for i, r in enumerate(requests):
        if r.temperature > 0 and (r.top_k or r.top_p < 1 or r.min_p):
            scaled[i] = truncate(scaled[i], r.top_k, r.top_p, r.min_p)
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    u = torch.tensor(uniforms, device=device)[:, None] * total
    u = torch.minimum(u, torch.nextafter(total, torch.zeros_like(total)))  # a number that rounds to 1 is still below it
    drawn = torch.searchsorted(cumulative, u, right=True).clamp(max=logits.shape[-1] - 1).squeeze(-1)
    tokens = torch.where(greedy, logits.argmax(dim=-1), drawn)
    logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
    return tokens.tolist(), logprobs.tolist()


def truncate(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Logits [V] with -inf for the tokens that top-k, then top-p, then min-p exclude; ties go to the lower token id."""
    order = logits.sort(descending=True, stable=True).indices
    p = torch.softmax(logits[order], dim=-1)
    if top_k:
        p[top_k:] = 0
        p = p / p.sum()
    kept = p > 0
    kept &= p.cumsum(-1) - p < top_p  # those before it do not add up to p yet
    kept &= p >= min_p * p[0]
    return torch.full_like(logits, -torch.inf).scatter(0, order[kept], logits[order[kept]])
