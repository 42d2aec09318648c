"""Drawing tokens: shares and truncations by hand, and truncations against transformers' own."""

import random
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llm_mcts.engines.base import Request
from llm_mcts.engines.transformers.sampling import sample, truncate
from llm_mcts.errors import ConfigError


def plain(*temperatures: float) -> list[Request]:
    return [Request(("",), temperature=temperature) for temperature in temperatures]


def test_sample_by_hand() -> None:
    # Cumulative 0.5, 0.75, 1: the number 0.49 falls to token 0, 0.51 and 0.74 to 1, 0.76 to 2.
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 4).log()
    tokens, logprobs = sample(logits, plain(1.0) * 4, [0.49, 0.51, 0.74, 0.76])
    assert tokens == [0, 1, 1, 2]
    assert logprobs == pytest.approx([log(0.5), log(0.25), log(0.25), log(0.25)], abs=1e-6)


def test_temperature_changes_the_draw_but_not_the_logprob() -> None:
    # p = (0.8, 0.2); at temperature 2 the weights are sqrt(4) : sqrt(1), so 2/3 and 1/3; at 0.5 they are 16 : 1.
    logits = torch.tensor([[4.0, 1.0]] * 4).log() + 7.0  # a constant changes nothing
    tokens, logprobs = sample(logits, plain(2.0, 2.0, 0.5, 0.5), [0.66, 0.67, 0.94, 0.942])
    assert tokens == [0, 1, 0, 1]
    assert logprobs == pytest.approx([log(0.8), log(0.2), log(0.8), log(0.2)], abs=1e-6)


def test_greedy_and_sampled_rows_mix() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    z = 1 + exp(2) + exp(1)
    tokens, logprobs = sample(logits, plain(0.0, 1.0, 0.0), [0.0, 0.0, 0.999])
    assert tokens == [1, 0, 1]
    assert logprobs == pytest.approx([2 - log(z), -log(z), 2 - log(z)], abs=1e-6)


def test_sample_follows_the_distribution() -> None:
    p = [0.05, 0.6, 0.0, 0.35]
    n, draws = 20_000, random.Random(0)
    tokens, _ = sample(torch.tensor([p] * n).log(), plain(1.0) * n, [draws.random() for _ in range(n)])
    shares = [tokens.count(token) / n for token in range(4)]
    # Standard deviation at most sqrt(0.6 * 0.4 / 20000) = 0.0035; five of them are 0.0173. The seed is fixed.
    assert shares == pytest.approx(p, abs=0.0173)
    assert tokens.count(2) == 0


def test_the_lowest_number_skips_impossible_tokens() -> None:
    tokens, _ = sample(torch.tensor([[-float("inf"), 0.0, 0.0]]), plain(1.0), [0.0])
    assert tokens == [1]


def test_the_highest_number_skips_impossible_tokens() -> None:
    tokens, _ = sample(torch.tensor([[0.0, 0.0, -float("inf")]]), plain(1.0), [1 - 2**-53])
    assert tokens == [1]


# Truncations. p = (0.1, 0.4, 0.2, 0.3) throughout the first test.


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "kept"),
    [
        (0, 1.0, 0.0, {0, 1, 2, 3}),
        (1, 1.0, 0.0, {1}),
        (3, 1.0, 0.0, {1, 2, 3}),
        (9, 1.0, 0.0, {0, 1, 2, 3}),
        (0, 0.39, 0.0, {1}),
        (0, 0.41, 0.0, {1, 3}),  # 0.4 falls short, 0.4 + 0.3 does not
        (0, 0.71, 0.0, {1, 3, 2}),
        (0, 1e-9, 0.0, {1}),
        (2, 0.6, 0.0, {1, 3}),  # of the two, 0.4 / 0.7 = 0.571 falls short
        (2, 0.5, 0.0, {1}),  # 0.571 does not
        (0, 1.0, 0.6, {1, 3}),  # at least 0.24
        (0, 1.0, 1.0, {1}),
    ],
)
def test_truncations_by_hand(top_k: int, top_p: float, min_p: float, kept: set[int]) -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    found = truncate(logits, top_k, top_p, min_p)
    assert {i for i in range(4) if found[i] > -torch.inf} == kept
    assert [found[i] for i in kept] == [logits[i] for i in kept]


def test_ties_go_to_the_lower_token() -> None:
    found = truncate(torch.zeros(5), 2, 1.0, 0.0)
    assert found.tolist() == [0.0, 0.0, -torch.inf, -torch.inf, -torch.inf]


@settings(max_examples=100)
@given(
    st.lists(st.integers(-400, 400), min_size=3, max_size=30, unique=True),
    st.integers(1, 30),
    st.integers(1, 99),
    st.integers(1, 99),
)
def test_each_truncation_is_transformers_own(numbers: list[int], top_k: int, top_p: int, min_p: int) -> None:
    logits = torch.tensor(numbers) / 77.0
    ids = torch.zeros(1, 1, dtype=torch.long)
    # shares that no sum of these probabilities hits
    p, q = top_p / 100 + 1.234e-4, min_p / 100 + 1.234e-4
    for found, theirs in [
        (truncate(logits, top_k, 1.0, 0.0), TopKLogitsWarper(top_k)),
        (truncate(logits, 0, p, 0.0), TopPLogitsWarper(p)),
        (truncate(logits, 0, 1.0, q), MinPLogitsWarper(q)),
    ]:
        assert torch.equal(found, theirs(ids, logits[None])[0])


def test_truncated_rows_mix_with_others_and_keep_the_plain_logprob() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 3).log()
    how = [Request(("",), top_k=1), Request(("",)), Request(("",), temperature=0.0, top_k=2)]
    tokens, logprobs = sample(logits, how, [0.99, 0.99, 0.99])
    assert tokens == [1, 3, 1]
    assert logprobs == pytest.approx([log(0.4), log(0.3), log(0.4)], abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.01}, {"min_p": -0.1}, {"min_p": 1.5}, {"temperature": -1.0}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=rf"request\.{name} is {value}; expected a"):
        Request(("",), **settings)  # type: ignore[arg-type]
