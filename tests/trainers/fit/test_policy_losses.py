"""The policy gradient's losses by hand."""

from math import exp, log

import pytest
import torch

from trainers.fit.losses import clipped_policy_gradient_loss, kl_penalty, policy_gradient_loss, token_logprobs

LN2, LN3 = log(2), log(3)

# Position 0 gives token 1 probability 3/4, position 1 gives either 1/2; the last position predicts nothing.
LOGITS = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]])


def test_token_logprobs_by_hand() -> None:
    found = token_logprobs(LOGITS, torch.tensor([[0, 1, 0]]))
    assert found[0].tolist() == pytest.approx([0.0, log(0.75), -LN2], abs=1e-6)
    # At temperature 1/2 the odds are squared: 9 to 1.
    assert token_logprobs(LOGITS, torch.tensor([[1, 0, 1]]), 0.5)[0].tolist() == pytest.approx([0.0, log(0.1), -LN2], abs=1e-6)


LOGPROBS = torch.tensor([[0.0, -1.0, -2.0], [0.0, -4.0, -8.0]])
ADVANTAGES = torch.tensor([[9.0, 0.5, -1.0], [9.0, 2.0, 9.0]])
MASK = torch.tensor([[False, True, True], [False, True, False]])


def test_policy_gradient_loss_by_hand() -> None:
    # -(0.5 * -1 + -1 * -2 + 2 * -4) / 3 = -(-0.5 + 2 - 8) / 3 = 6.5 / 3
    assert policy_gradient_loss(LOGPROBS, ADVANTAGES, MASK).item() == pytest.approx(6.5 / 3, abs=1e-6)


def test_its_gradient_raises_what_was_better_than_expected() -> None:
    logprobs, advantages = LOGPROBS.clone().requires_grad_(), ADVANTAGES.clone().requires_grad_()
    policy_gradient_loss(logprobs, advantages, MASK).backward()
    assert logprobs.grad is not None
    # d/dlogprob = -A / 3 where the mask is: descent goes up where A is above 0.
    assert torch.allclose(logprobs.grad, torch.tensor([[0.0, -0.5 / 3, 1 / 3], [0.0, -2 / 3, 0.0]]), atol=1e-6)
    assert advantages.grad is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # loss = -min(rho A, clip(rho, 0.8, 1.2) A); gradient by log pi = -rho A, or 0 where the clipped one is less
        (1.5, 1.0, -1.2, 0.0),  # better, and already much more likely: no further
        (1.5, -1.0, 1.5, 1.5),  # worse, and more likely: back
        (0.5, 1.0, -0.5, -0.5),  # better, and less likely: back
        (0.5, -1.0, 0.8, 0.0),  # worse, and already much less likely: no further
        (1.1, 2.0, -2.2, -2.2),  # within the clip: rho A
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_the_clipped_loss_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logprobs = torch.tensor([[0.0, log(ratio) - 3.0, -7.0]], requires_grad=True)
    old = torch.tensor([[0.0, -3.0, -1.0]])
    mask = torch.tensor([[False, True, False]])
    found = clipped_policy_gradient_loss(logprobs, old, torch.tensor([[5.0, advantage, 5.0]]), mask, 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, gradient, 0.0], abs=1e-6)


def test_the_clipped_loss_is_a_mean_over_the_mask() -> None:
    # rho = 1 everywhere: -(0.5 - 1 + 2) / 3
    found = clipped_policy_gradient_loss(LOGPROBS, LOGPROBS, ADVANTAGES, MASK, 0.2)
    assert found.item() == pytest.approx(-0.5, abs=1e-6)


def test_at_ratio_1_the_clipped_loss_has_the_gradient_of_reinforce() -> None:
    gradients = []
    for clipped in (False, True):
        logprobs = LOGPROBS.clone().requires_grad_()
        if clipped:
            clipped_policy_gradient_loss(logprobs, LOGPROBS, ADVANTAGES, MASK, 0.2).backward()
        else:
            policy_gradient_loss(logprobs, ADVANTAGES, MASK).backward()
        gradients.append(logprobs.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_kl_penalty_by_hand() -> None:
    # pi = (1/4, 3/4), pi_0 = (1/2, 1/2): 1/4 ln 1/2 + 3/4 ln 3/2 = -0.173287 + 0.304099 = 0.130812 for token 1;
    # equal for token 2: 0; token 0 is predicted by nothing.
    reference = torch.zeros_like(LOGITS)
    both, first = torch.tensor([[False, True, True]]), torch.tensor([[False, True, False]])
    assert kl_penalty(LOGITS, reference, first).item() == pytest.approx(0.130812, abs=1e-6)
    assert kl_penalty(LOGITS, reference, both).item() == pytest.approx(0.130812 / 2, abs=1e-6)
    # The other way round it would be 1/2 ln 2 + 1/2 ln 2/3 = 0.143841.
    assert kl_penalty(reference, LOGITS, first).item() == pytest.approx(0.143841, abs=1e-6)
    # At temperature 1/2, pi = (1/10, 9/10): 0.1 ln 0.2 + 0.9 ln 1.8 = -0.160944 + 0.529008 = 0.368064
    assert kl_penalty(LOGITS, reference, first, 0.5).item() == pytest.approx(0.368064, abs=1e-6)


def test_the_gradient_of_the_kl_penalty() -> None:
    logits = LOGITS.clone().requires_grad_()
    kl_penalty(logits, torch.zeros_like(LOGITS), torch.tensor([[False, True, False]])).backward()
    assert logits.grad is not None
    # d KL / d logit_v = pi(v) (log pi(v) / pi_0(v) - KL): 3/4 (ln 3/2 - 0.130812) = 0.205990, and its opposite
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.205990, 0.205990], abs=1e-6)
    assert logits.grad[0, 1:].abs().max() == 0
    equal = LOGITS.clone().requires_grad_()
    kl_penalty(equal, LOGITS, torch.tensor([[False, True, True]])).backward()
    assert equal.grad is not None
    assert equal.grad.abs().max() < 1e-6


def test_a_batch_without_a_token_to_learn_is_worth_0() -> None:
    logits = LOGITS.clone().requires_grad_()
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    logprobs, zeros = token_logprobs(logits, torch.tensor([[0, 1, 0]])), torch.zeros(1, 3)
    loss = (
        policy_gradient_loss(logprobs, zeros + 1, nothing)
        + clipped_policy_gradient_loss(logprobs, zeros, zeros + 1, nothing, 0.2)
        + kl_penalty(logits, torch.zeros_like(LOGITS), nothing)
    )
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_half_precision_is_computed_in_float32() -> None:
    found = token_logprobs(LOGITS.to(torch.bfloat16), torch.tensor([[0, 1, 0]]))
    assert found.dtype == torch.float32
    # ln 3 rounds to 1.1015625 in bfloat16
    assert found[0, 1].item() == pytest.approx(-log(1 + exp(-1.1015625)), abs=1e-6)
