"""Losses as pure functions of tensors.

Masks are boolean and say which positions count; every loss is a mean over those positions, or over rows where it says so.
Weights, where a loss takes them, are relative: only their proportions matter; but the weights of solutions (in
`weighted_next_token_loss`) are absolute, for in a batch of one solution proportions say nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, logsigmoid

from trainers.data.encoding import IGNORE


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Behaviour cloning: mean of -log p(token t+1 | tokens <= t) over the labelled tokens.

    Args:
        logits: [B, T, V].
        labels: [B, T] token ids; IGNORE where a token does not count. `labels[:, t]` is predicted by `logits[:, t - 1]`.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE
    return cross_entropy(logits[:, :-1][chosen].float(), targets[chosen])


def weighted_next_token_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Advantage-weighted regression: mean over the labelled tokens of -w log p(token t+1 | tokens <= t) (arXiv 1910.00177).

    With w = 1 it is `next_token_loss`.

    Args:
        logits: [B, T, V].
        labels: [B, T] token ids; IGNORE where a token does not count.
        weights: [B, T] w of the token's solution, above 0 where a token counts.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE
    surprises = cross_entropy(logits[:, :-1][chosen].float(), targets[chosen], reduction="none")
    return (surprises * weights[:, 1:][chosen]).mean()


def sequence_logprobs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log p of each row's masked tokens given what stands before them, summed over the row: [B].

    Args:
        logits: [B, T, V].
        ids: [B, T] token ids.
        mask: [B, T] boolean; the first token of a row is predicted by nothing and must not count.
    """
    counted = mask[:, 1:]
    logprobs = -cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    return logprobs.new_zeros(len(ids)).index_add(0, rows, logprobs)


def distillation_loss(logprobs: Tensor, targets: Tensor, item: Tensor) -> Tensor:
    """AlphaZero's policy term: mean over states of -sum_a pi(a) log p(a | s) (Silver et al. 2018).

    Args:
        logprobs: [B] log p of each action, an action a row.
        targets: [B] pi(a), adding up to 1 over the actions of a state.
        item: [B] which state a row belongs to.
    """
    return -(targets * logprobs).sum() / len(torch.unique(item))


def sibling_distillation_loss(
    logprobs: Tensor, lengths: Tensor, targets: Tensor, item: Tensor, temperature: float = 1.0
) -> Tensor:
    """The same over the sampled actions alone: p(a | s) = softmax over siblings of log p(a) / (length x temperature).

    These are the priors of a search (`llm_mcts.search.expansion`), so it is the prior that becomes the search's pi.

    Args:
        logprobs, targets, item: as `distillation_loss`; all actions of a state must be in the batch.
        lengths: [B] tokens of each action.
        temperature: the search's prior_temperature, above 0.
    """
    scores = logprobs / lengths / temperature
    states = [item == state for state in torch.unique(item)]
    return torch.stack([-(targets[rows] * log_softmax(scores[rows], 0)).sum() for rows in states]).mean()


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation: mean over pairs of -log sigmoid(beta [(l+ - l+_ref) - (l- - l-_ref)]) (arXiv 2305.18290).

    Args:
        logprobs: [2 P] log p of each side under the policy; rows 2 i and 2 i + 1 are a pair, the better one first.
        reference: [2 P] the same under the model that training started from.
        beta: how dearly a departure from the reference is paid for, above 0.
    """
    better, worse = (logprobs - reference).view(-1, 2).unbind(1)
    return -logsigmoid(beta * (better - worse)).mean()


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


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token t | tokens < t) [B, T] at a sampling temperature; 0 at t = 0, which nothing predicts.

    Args:
        logits: [B, T, V].
        ids: [B, T] token ids.
        temperature: above 0; the distribution is softmax(logits / temperature).
    """
    scaled = logits[:, :-1].float().transpose(1, 2) / temperature
    logprobs = -cross_entropy(scaled, ids[:, 1:], reduction="none")
    return torch.cat([logprobs.new_zeros(len(ids), 1), logprobs], 1)


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE: mean over the mask of -A log pi, whose gradient is -E[A grad log pi] (Williams 1992). 0 for an empty mask.

    Args:
        logprobs: [B, T] of the tokens that were sampled.
        advantages: [B, T]; constants, through which no gradient flows.
        mask: [B, T] boolean.
    """
    return _mean(-advantages.detach() * logprobs, mask)


def clipped_policy_gradient_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """PPO: mean over the mask of -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), rho = exp(log pi - log pi_old).

    Schulman et al. 2017 (arXiv 1707.06347), equation 7. At rho = 1 its gradient is REINFORCE's. 0 for an empty mask.

    Args:
        logprobs: [B, T] of the tokens that were sampled.
        old: [B, T], the same of the weights that sampled them; constants.
        advantages: [B, T]; constants.
        mask: [B, T] boolean.
        epsilon: above 0; PPO: 0.2.
    """
    ratio, advantages = (logprobs - old.detach()).exp(), advantages.detach()
    return _mean(-torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages), mask)


def kl_penalty(logits: Tensor, reference: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the mask of KL(pi || pi_0) = sum_v pi(v) (log pi(v) - log pi_0(v)), exact at each token.

    The sum over the vocabulary, not an estimate from the sampled token: the k3 estimate exp(r) - r - 1 as a loss has the
    gradient of KL(pi_0 || pi) instead. 0 for an empty mask.

    Args:
        logits: [B, T, V]; `logits[:, t - 1]` predicts token t.
        reference: [B, T, V] of the policy to stay close to; constants.
        mask: [B, T] boolean, of the predicted tokens.
        temperature: above 0, of both distributions.
    """
    chosen = mask[:, 1:]
    ours = (logits[:, :-1][chosen].float() / temperature).log_softmax(-1)
    theirs = (reference[:, :-1][chosen].detach().float() / temperature).log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum() / chosen.sum().clamp(min=1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask; 0 where it is empty, with a gradient of 0."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def joint_loss(policy: Tensor, logits: Tensor, outcomes: Tensor, mask: Tensor, value_weight: float) -> Tensor:
    """AlphaZero's (z - v)^2 - pi^T log p (Silver et al. 2018): the policy's term plus that of the values, weighted.

    The third term, c |theta|^2, is the optimiser's weight decay. A batch of which no outcome is known has no value term.

    Args:
        policy: scalar, the mean over states of -sum_a pi(a) log p(a | s), as `distillation_loss`.
        logits: [B, T] of the value head; v = sigmoid(logit).
        outcomes: [B, T] z in [0, 1] where the mask is.
        mask: [B, T] boolean: the last token of each state whose outcome is known.
        value_weight: at least 0; AlphaZero's z and v lie in [-1, 1], so its 1 is 4 here.
    """
    return policy + value_weight * _mean((torch.sigmoid(logits.float()) - outcomes).square(), mask)
