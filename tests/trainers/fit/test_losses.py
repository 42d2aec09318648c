"""Every loss by hand."""

from collections.abc import Callable
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.fit.losses import (
    IGNORE,
    distillation_loss,
    dpo_loss,
    next_token_loss,
    pairwise_loss,
    score_cross_entropy,
    score_mse,
    sequence_logprobs,
    sibling_distillation_loss,
    weighted_next_token_loss,
)

LN2, LN3 = log(2), log(3)


def test_next_token_loss_by_hand() -> None:
    # Position 0 gives token 1 probability 3/4, position 1 gives token 0 probability 1/2; the last position predicts nothing.
    # (-ln 3/4 - ln 1/2) / 2 = (0.287682 + 0.693147) / 2 = 0.490415
    logits = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]])
    labels = torch.tensor([[0, 1, 0]])
    assert next_token_loss(logits, labels).item() == pytest.approx(0.490415, abs=1e-6)


def test_next_token_loss_skips_what_does_not_count() -> None:
    logits = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]])
    # Only label 2 counts, predicted by position 1: ln 2. Then only label 1, predicted by position 0: -ln 3/4.
    assert next_token_loss(logits, torch.tensor([[IGNORE, IGNORE, 0]])).item() == pytest.approx(LN2, abs=1e-6)
    assert next_token_loss(logits, torch.tensor([[0, 1, IGNORE]])).item() == pytest.approx(-log(0.75), abs=1e-6)


def test_next_token_loss_is_a_mean_over_tokens_not_over_rows() -> None:
    # Row 0 has two tokens of ln 2 each, row 1 one token of -ln 3/4: (0.693147 * 2 + 0.287682) / 3 = 0.557992
    logits = torch.tensor([[[0.0, 0.0]] * 3, [[0.0, LN3]] * 3])
    labels = torch.tensor([[IGNORE, 0, 1], [IGNORE, 1, IGNORE]])
    assert next_token_loss(logits, labels).item() == pytest.approx(0.557992, abs=1e-6)


def test_next_token_loss_moves_only_what_predicts() -> None:
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    next_token_loss(logits, torch.tensor([[0, IGNORE, 2, IGNORE]])).backward()
    assert logits.grad is not None
    # d/dlogit of -log softmax is p - 1 at the label and p elsewhere, at position 1 alone: one token counts.
    expected = torch.zeros(1, 4, 3)
    expected[0, 1] = torch.tensor([1 / 3, 1 / 3, -2 / 3])
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_next_token_loss_in_half_precision_is_computed_in_float32() -> None:
    logits = torch.tensor([[[0.0, LN3], [0.0, 0.0]]], dtype=torch.bfloat16)
    loss = next_token_loss(logits, torch.tensor([[IGNORE, 1]]))
    assert loss.dtype == torch.float32
    # ln 3 = 1.0986 rounds to 1.1015625 in bfloat16: ln(1 + e^-1.1015625) = 0.286945
    assert loss.item() == pytest.approx(0.286945, abs=1e-6)


def test_weighted_next_token_loss_by_hand() -> None:
    # Probabilities 3/4 and 1/2 as above, weights 2 and 1/2: (2 x 0.287682 + 0.5 x 0.693147) / 2 = 0.460969
    logits = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]])
    labels, weights = torch.tensor([[0, 1, 0]]), torch.tensor([[9.0, 2.0, 0.5]])
    assert weighted_next_token_loss(logits, labels, weights).item() == pytest.approx(0.460969, abs=1e-6)


def test_weights_of_solutions_are_absolute() -> None:
    # A batch of one solution of weight 3 pulls three times as hard as one of weight 1.
    logits, labels = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]]), torch.tensor([[IGNORE, 1, 0]])
    for weight in (1.0, 3.0):
        found = weighted_next_token_loss(logits, labels, torch.full((1, 3), weight))
        assert found.item() == pytest.approx(weight * 0.490415, abs=1e-5)  # six digits times 3


def test_sequence_logprobs_by_hand() -> None:
    # Position 0 gives token 1 probability 3/4 and token 0 1/4; position 1 gives both 1/2.
    logits = torch.tensor([[[0.0, LN3], [5.0, 5.0], [99.0, -99.0]]]).expand(3, 3, 2)
    ids = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 1, 1]])
    mask = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    # ln 3/4 + ln 1/2 = -0.980829; ln 1/4 = -1.386294; nothing.
    assert sequence_logprobs(logits, ids, mask).tolist() == pytest.approx([-0.980829, -1.386294, 0.0], abs=1e-6)


def test_distillation_loss_by_hand() -> None:
    # 3/4 x 1 + 1/4 x 2 = 1.25 for one state, 3 for the other: 2.125.
    logprobs, targets, item = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0.75, 0.25, 1.0]), torch.tensor([0, 0, 1])
    assert distillation_loss(logprobs, targets, item).item() == pytest.approx(2.125)


def test_sibling_distillation_loss_by_hand() -> None:
    # Per token ln 1/2 and ln 1/4, so 2/3 and 1/3: -3/4 ln 2/3 - 1/4 ln 1/3 = 0.304099 + 0.274653 = 0.578752;
    # the other state has one action, whose probability is 1: 0. Mean 0.289376.
    logprobs, lengths = torch.tensor([2 * log(1 / 2), log(1 / 4), -7.0]), torch.tensor([2, 1, 3])
    targets, item = torch.tensor([0.75, 0.25, 1.0]), torch.tensor([0, 0, 1])
    assert sibling_distillation_loss(logprobs, lengths, targets, item).item() == pytest.approx(0.289376, abs=1e-6)
    # Temperature 1/2: 1/4 and 1/16, so 4/5 and 1/5: -3/4 ln 4/5 - 1/4 ln 1/5 = 0.167358 + 0.402359 = 0.569717; half of it.
    found = sibling_distillation_loss(logprobs, lengths, targets, item, 0.5)
    assert found.item() == pytest.approx(0.569717 / 2, abs=1e-6)


def test_dpo_loss_by_hand() -> None:
    # The better side gained 1 and the worse lost 1: 0.5 x 2 = 1, -ln sigmoid(1) = 0.313262; nothing moved: ln 2. Mean 0.503204.
    logprobs, reference = torch.tensor([-1.0, -2.0, -4.0, -3.0]), torch.tensor([-2.0, -1.0, -4.0, -3.0])
    assert dpo_loss(logprobs, reference, 0.5).item() == pytest.approx(0.503204, abs=1e-6)
    # With policy and reference swapped the first pair would give -ln sigmoid(-1) = 1.313262.
    assert dpo_loss(reference[:2], logprobs[:2], 0.5).item() == pytest.approx(1.313262, abs=1e-6)


def test_dpo_raises_the_better_side_and_lowers_the_worse() -> None:
    logprobs = torch.tensor([-4.0, -3.0], requires_grad=True)
    dpo_loss(logprobs, torch.tensor([-4.0, -3.0]), 0.1).backward()
    assert logprobs.grad is not None
    # d/dx of -ln sigmoid(beta x) at 0 is -beta / 2.
    assert logprobs.grad.tolist() == pytest.approx([-0.05, 0.05])


# Rows for the score losses: sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4.
LOGITS = torch.tensor([[LN3, 0.0, 50.0], [-LN3, -50.0, 50.0]])
LABELS = torch.tensor([[1.0, 0.25, 0.0], [1.0, 1.0, 0.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_score_mse_by_hand() -> None:
    # (3/4 - 1)^2 = 0.0625, (1/2 - 1/4)^2 = 0.0625, (1/4 - 1)^2 = 0.5625: 0.6875 / 3 = 0.229167
    assert score_mse(LOGITS, LABELS, MASK).item() == pytest.approx(0.229167, abs=1e-6)


def test_score_cross_entropy_by_hand() -> None:
    # -ln 3/4 = 0.287682; -(1/4 ln 1/2 + 3/4 ln 1/2) = 0.693147; -ln 1/4 = 1.386294: 2.367124 / 3 = 0.789041
    assert score_cross_entropy(LOGITS, LABELS, MASK).item() == pytest.approx(0.789041, abs=1e-6)


def test_a_soft_label_is_met_at_its_logit() -> None:
    """Both losses have their minimum where sigmoid(logit) = label; the cross-entropy there is the label's entropy."""
    mask, label = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[0.75]])
    for loss in (score_mse, score_cross_entropy):
        logit = torch.tensor([[LN3]], requires_grad=True)
        loss(logit, label, mask).backward()
        assert logit.grad is not None
        assert logit.grad.abs().item() < 1e-6
    # -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.562335
    assert score_cross_entropy(torch.tensor([[LN3]]), label, mask).item() == pytest.approx(0.562335, abs=1e-6)


def test_gradients_by_hand() -> None:
    mask = torch.tensor([[True, True, False]])
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    mse, entropy = (torch.tensor([[LN3, 0.0, 9.0]], requires_grad=True) for _ in range(2))
    score_mse(mse, labels, mask).backward()
    score_cross_entropy(entropy, labels, mask).backward()
    assert mse.grad is not None
    assert entropy.grad is not None
    # MSE: 2 (p - y) p (1 - p) / 2: (-1/4)(3/4)(1/4) = -0.046875 and (1/2)(1/4) = 0.125. Cross-entropy: (p - y) / 2.
    assert mse.grad.tolist() == [pytest.approx([-0.046875, 0.125, 0.0], abs=1e-6)]
    assert entropy.grad.tolist() == [pytest.approx([-0.125, 0.25, 0.0], abs=1e-6)]


def test_extreme_logits_stay_finite() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    logits, wrong = torch.tensor([[200.0, -200.0]]), torch.tensor([[0.0, 1.0]])
    assert score_cross_entropy(logits, wrong, mask).item() == pytest.approx(200.0)
    assert score_mse(logits, wrong, mask).item() == pytest.approx(1.0)


WEIGHTS = torch.tensor([[3.0, 1.0, 9.0], [4.0, 9.0, 9.0]])


def test_weighted_score_losses_by_hand() -> None:
    # MSE: (3 * 0.0625 + 1 * 0.0625 + 4 * 0.5625) / 8 = 2.5 / 8 = 0.3125
    assert score_mse(LOGITS, LABELS, MASK, WEIGHTS).item() == pytest.approx(0.3125, abs=1e-6)
    # Cross-entropy: (3 * 0.287682 + 1 * 0.693147 + 4 * 1.386294) / 8 = 7.101370 / 8 = 0.887671
    assert score_cross_entropy(LOGITS, LABELS, MASK, WEIGHTS).item() == pytest.approx(0.887671, abs=1e-6)


@pytest.mark.parametrize("loss", [score_mse, score_cross_entropy])
def test_only_the_weights_proportions_matter(loss: Callable[..., torch.Tensor]) -> None:
    once, tenfold = loss(LOGITS, LABELS, MASK, WEIGHTS), loss(LOGITS, LABELS, MASK, 10 * WEIGHTS)
    assert tenfold.item() == pytest.approx(once.item(), rel=1e-6)
    alike = loss(LOGITS, LABELS, MASK, torch.full_like(WEIGHTS, 7.0))
    assert alike.item() == pytest.approx(loss(LOGITS, LABELS, MASK).item(), rel=1e-6)


# Two pairs. Pair 0: r+ = ln 3 at place 1, r- = 0 at place 0. Pair 1: r+ = -1 at place 2, r- = -1 + ln 3 at place 1.
PAIR_LOGITS = torch.tensor([[9.0, LN3, 9.0], [0.0, 9.0, 9.0], [9.0, 9.0, -1.0], [9.0, LN3 - 1, 9.0]])
PAIR_MASK = torch.tensor([[False, True, False], [True, False, False], [False, False, True], [False, True, False]])


def test_pairwise_loss_by_hand() -> None:
    # -ln sigmoid(ln 3) = -ln 3/4 = 0.287682; -ln sigmoid(-ln 3) = -ln 1/4 = 1.386294; mean 0.836988
    assert pairwise_loss(PAIR_LOGITS, PAIR_MASK).item() == pytest.approx(0.836988, abs=1e-6)
    # Better and worse exchanged: the same two numbers for this batch; pair 0 alone tells the sides apart.
    assert pairwise_loss(PAIR_LOGITS[:2], PAIR_MASK[:2]).item() == pytest.approx(0.287682, abs=1e-6)
    assert pairwise_loss(PAIR_LOGITS[[1, 0]], PAIR_MASK[[1, 0]]).item() == pytest.approx(1.386294, abs=1e-6)


def test_the_pairwise_loss_knows_differences_alone() -> None:
    assert pairwise_loss(PAIR_LOGITS + 5, PAIR_MASK).item() == pytest.approx(0.836988, abs=1e-5)  # float32 at 6
    logits = PAIR_LOGITS.clone().requires_grad_()
    pairwise_loss(logits, PAIR_MASK).backward()
    assert logits.grad is not None
    # d/dr+ = -(1 - sigmoid(r+ - r-)) / 2 pairs: -1/8 and -3/8; d/dr- the opposite; 0 elsewhere
    expected = torch.zeros(4, 3)
    expected[0, 1], expected[1, 0], expected[2, 2], expected[3, 1] = -0.125, 0.125, -0.375, 0.375
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_far_apart_pairs_stay_finite() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    assert pairwise_loss(torch.tensor([[-500.0], [500.0]]), mask).item() == pytest.approx(1000.0)


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=6))
def test_a_pairs_two_orders_add_up(pairs: list[tuple[float, float]]) -> None:
    """-log sigmoid(d) - (-log sigmoid(-d)) = -d: exchanging all sides changes the loss by the mean difference."""
    logits = torch.tensor([[r] for pair in pairs for r in pair])
    swapped = torch.tensor([[r] for a, b in pairs for r in (b, a)])
    mask = torch.ones_like(logits, dtype=torch.bool)
    mean = sum(a - b for a, b in pairs) / len(pairs)
    found = pairwise_loss(swapped, mask).item() - pairwise_loss(logits, mask).item()
    assert found == pytest.approx(mean, abs=1e-4)  # float32 sums of numbers up to 40
