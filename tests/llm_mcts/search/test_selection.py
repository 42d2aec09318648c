"""Selection rules, priors and normalisation against hand-computed cases.

A rule only says which child wins, so a formula is pinned by the exploration constant at which the winner changes.
"""

from collections.abc import Callable, Sequence
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.search.expansion import priors
from llm_mcts.search.selection import RULES, Rule, alphago, alphazero, puct, uct
from llm_mcts.tree import Node
from llm_mcts.types import Step
from tests.search_cases import parent


def winner(rule: Rule, node: Node, c: float, virtual_loss: float = 0.0) -> str:
    return rule(node, node.children, c, virtual_loss, None).step.text


def check_uct_formula(rule: Rule) -> None:
    # N = 9: its own evaluation and 4 + 3 + 1 visits of the children. Q: A 2.4/4 = 0.6, B 2.1/3 = 0.7, C 0.2/1 = 0.2.
    # sqrt(2 ln 9) = sqrt(4.394449) = 2.096294; sqrt(2 ln N / n): A 1.048147, B 1.210296, C 2.096294.
    # B = C at 0.7 + 1.210296 c = 0.2 + 2.096294 c, c = 0.5 / 0.885998 = 0.5643.
    # (Without the 2 it would be 0.798; with N = 8 it would be 0.580.)
    node = parent(9, 5.2, [(4, 2.4, 0.1), (3, 2.1, 0.1), (1, 0.2, 0.8)])
    assert winner(rule, node, 0.0) == "B"
    assert winner(rule, node, 0.56) == "B"
    assert winner(rule, node, 0.57) == "C"
    assert winner(rule, node, 1.0) == "C"


def check_uct_virtual_loss(rule: Rule) -> None:
    # One simulation in flight at B with virtual loss 1: n_B = 4, Q_B = 2.1/4 = 0.525, N = 10, sqrt(2 ln 10) = 2.145966.
    # A 0.6 + 1.072983 c, B 0.525 + 1.072983 c, C 0.2 + 2.145966 c: A = C at c = 0.4 / 1.072983 = 0.3728.
    # (Were it not counted in N: 0.4 / 1.048147 = 0.3816.)
    node = parent(9, 5.2, [(4, 2.4, 0.1), (3, 2.1, 0.1), (1, 0.2, 0.8)], in_flight=(0, 1, 0))
    assert winner(rule, node, 0.37, virtual_loss=1.0) == "A"
    assert winner(rule, node, 0.38, virtual_loss=1.0) == "C"
    # At C with virtual loss 3: n_C = 4, Q_C = 0.2/4 = 0.05, N = 12, sqrt(2 ln 12) = 2.229308.
    # c = 1: A 0.6 + 1.114654, B 0.7 + 1.287092 = 1.987, C 0.05 + 1.114654.
    node = parent(9, 5.2, [(4, 2.4, 0.1), (3, 2.1, 0.1), (1, 0.2, 0.8)], in_flight=(0, 0, 1))
    assert winner(rule, node, 1.0, virtual_loss=3.0) == "B"
    # With virtual loss 0 simulations under way are not seen.
    assert winner(rule, node, 1.0, virtual_loss=0.0) == "C"


def check_uct_unvisited_first(rule: Rule) -> None:
    node = parent(3, 2.0, [(2, 2.0, 0.9), (0, 0.0, 0.05), (0, 0.0, 0.05)])
    assert winner(rule, node, 0.0) == "B"
    # B is on its way already, so C is the first unvisited.
    node.children[1].in_flight = node.in_flight = 1
    assert winner(rule, node, 0.0, virtual_loss=1.0) == "C"


def check_uct_ignores_priors(rule: Rule) -> None:
    for a in (0.01, 0.5, 0.99):
        assert winner(rule, parent(5, 2.0, [(2, 0.9, a), (2, 1.0, 1 - a)]), 1.0) == "B"


def check_puct_formula(rule: Rule) -> None:
    # N = 9, sqrt(9) = 3. Q: A 0.6, B 0.7, C 0.2; P sqrt(N) / (1 + n): A 0.5*3/5 = 0.3, B 0.25*3/4 = 0.1875,
    # C 0.25*3/2 = 0.375. A = B at 0.1 = 0.1125 c, c = 0.8889.
    # (With N = 8: 0.943; divided by n instead of 1 + n: 0.8.)
    node = parent(9, 5.2, [(4, 2.4, 0.5), (3, 2.1, 0.25), (1, 0.2, 0.25)])
    assert winner(rule, node, 0.0) == "B"
    assert winner(rule, node, 0.88) == "B"
    assert winner(rule, node, 0.90) == "A"
    # A = C at 0.4 = 0.075 c, c = 5.333.
    assert winner(rule, node, 5.3) == "A"
    assert winner(rule, node, 5.4) == "C"


def check_puct_fpu(rule: Rule) -> None:
    # Unvisited B is worth its parent's mean 2.0/4 = 0.5: A 0.6 + 2c*0.5/4 = 0.6 + 0.25 c, B 0.5 + 2c*0.5/1 = 0.5 + c,
    # equal at 0.1 = 0.75 c, c = 0.1333. (Worth 0 it would be 0.8, and worth 1 it would win at c = 0.)
    node = parent(4, 2.0, [(3, 1.8, 0.5), (0, 0.0, 0.5)])
    assert winner(rule, node, 0.13) == "A"
    assert winner(rule, node, 0.14) == "B"


def check_puct_first_choice_follows_the_prior(rule: Rule) -> None:
    assert winner(rule, parent(1, 0.3, [(0, 0.0, 0.2), (0, 0.0, 0.5), (0, 0.0, 0.3)]), 0.01) == "B"


def check_puct_virtual_loss(rule: Rule) -> None:
    # One in flight at A, virtual loss 1: n_A = 4, Q_A = 1.8/4 = 0.45, N = 5, sqrt(5) = 2.236068.
    # A 0.45 + 2.236068*0.9/5 c = 0.45 + 0.402492 c; B 0.5 + 2.236068*0.1 c = 0.5 + 0.223607 c;
    # equal at 0.05 = 0.178885 c, c = 0.2795. (Were it not counted in N: 0.05 / 0.16 = 0.3125.)
    node = parent(4, 2.0, [(3, 1.8, 0.9), (0, 0.0, 0.1)], in_flight=(1, 0))
    assert winner(rule, node, 0.27, virtual_loss=1.0) == "B"
    assert winner(rule, node, 0.29, virtual_loss=1.0) == "A"
    # Virtual loss 3: n_A = 6, Q_A = 0.3. Undone: Q_A = 0.6.
    assert winner(rule, node, 0.0, virtual_loss=3.0) == "B"
    assert winner(rule, node, 0.0, virtual_loss=0.0) == "A"


def check_alphago_formula(rule: Rule) -> None:
    # The sum over the children alone: 4 + 3 + 1 = 8, sqrt(8) = 2.828427. P sqrt(8) / (1 + n): A 0.5*2.828427/5 = 0.282843,
    # B 0.25*2.828427/4 = 0.176777. A 0.6, B 0.7: equal at c = 0.1 / 0.106066 = 0.9428. (With the parent's 9: 0.8889.)
    node = parent(9, 5.2, [(4, 2.4, 0.5), (3, 2.1, 0.25), (1, 0.2, 0.25)])
    assert winner(rule, node, 0.0) == "B"
    assert winner(rule, node, 0.93) == "B"
    assert winner(rule, node, 0.95) == "A"


def check_alphago_first_choice_follows_the_prior(rule: Rule) -> None:
    # sum N = 0 leaves no exploration at all: the limit of a small positive sum decides, the highest prior.
    assert winner(rule, parent(1, 0.3, [(0, 0.0, 0.2), (0, 0.0, 0.5), (0, 0.0, 0.3)]), 5.0) == "B"


def check_alphago_counts_the_children_alone(rule: Rule) -> None:
    # One child visit of 40 at the node (it was visited 39 times before its expansion): sqrt(1) = 1.
    # A 1.0/1 + 1*0.55/2 c = 1 + 0.275 c; B 0.5 + 0.45 c: equal at c = 0.5 / 0.175 = 2.857. (With the parent's 39: 0.457.)
    node = parent(40, 20.0, [(1, 1.0, 0.55), (0, 0.0, 0.45)])
    assert rule(node, node.children, 2.8, 0.0, 0.5).step.text == "A"
    assert rule(node, node.children, 2.9, 0.0, 0.5).step.text == "B"


def check_alphago_fpu(rule: Rule) -> None:
    # Unvisited B at 0 of [-1, 1], 0.5 of [0, 1]. sum N = 3, sqrt(3) = 1.732051: A 0.6 + 1.732051*0.5/4 c = 0.6 + 0.216506 c,
    # B 0.5 + 0.866025 c: equal at 0.1 / 0.649519 = 0.15396. At B worth 0.2 instead: 0.4 / 0.649519 = 0.61584.
    node = parent(4, 2.0, [(3, 1.8, 0.5), (0, 0.0, 0.5)])
    for fpu, c in ((0.5, 0.15396), (0.2, 0.61584)):
        assert rule(node, node.children, c - 0.001, 0.0, fpu).step.text == "A"
        assert rule(node, node.children, c + 0.001, 0.0, fpu).step.text == "B"


def check_alphazero_growth(rule: Rule) -> None:
    # c(N) = log((N + 19652 + 1) / 19652) + c_init. N = 19652: log(39305 / 19652) = 0.693173.
    # A: 9826 visits worth 0.6, prior 0.5; B: 9825 worth 0.605, prior 0.7. sqrt(19652) = 140.185591.
    # P sqrt(N) / (1 + n): A 0.5*140.185591/9827 = 0.00713268, B 0.7*140.185591/9826 = 0.00998677. B leads at any c >= 0;
    # with the values changed over, A 0.605 and B 0.6: equal at c(N) = 0.005 / 0.00285409 = 1.751872, c_init = 1.058699.
    node = parent(19652, 11840.0, [(9826, 9826 * 0.605, 0.5), (9825, 9825 * 0.6, 0.7)])
    assert winner(rule, node, 1.05) == "A"
    assert winner(rule, node, 1.07) == "B"
    # Few visits: N = 9, log(19662 / 19652) = 0.000508710; A = B at c(N) = 0.8889 as for puct, so c_init = 0.88838.
    node = parent(9, 5.2, [(4, 2.4, 0.5), (3, 2.1, 0.25), (1, 0.2, 0.25)])
    assert winner(rule, node, 0.88837) == "B"
    assert winner(rule, node, 0.88839) == "A"


UCT_CHECKS = [check_uct_formula, check_uct_virtual_loss, check_uct_unvisited_first, check_uct_ignores_priors]
PUCT_CHECKS = [check_puct_formula, check_puct_fpu, check_puct_first_choice_follows_the_prior, check_puct_virtual_loss]


@pytest.mark.parametrize("check", UCT_CHECKS)
def test_uct(check: Callable[[Rule], None]) -> None:
    check(uct)


@pytest.mark.parametrize("check", PUCT_CHECKS)
def test_puct(check: Callable[[Rule], None]) -> None:
    check(puct)


@pytest.mark.parametrize(
    "check",
    [
        check_alphago_formula,
        check_alphago_first_choice_follows_the_prior,
        check_alphago_counts_the_children_alone,
        check_alphago_fpu,
    ],
)
def test_alphago(check: Callable[[Rule], None]) -> None:
    check(alphago)


def test_alphazero() -> None:
    check_alphazero_growth(alphazero)


def test_one_rule_is_not_taken_for_another() -> None:
    assert not passes(check_alphago_formula, puct)
    assert not passes(check_puct_formula, alphago)
    assert not passes(check_alphazero_growth, puct)
    assert not passes(check_alphago_fpu, lambda node, children, c, loss, fpu: alphago(node, children, c, loss))


def passes(check: Callable[[Rule], None], rule: Rule) -> bool:
    try:
        check(rule)
    except AssertionError:
        return False
    return True


def test_a_rule_that_reads_priors_is_no_uct() -> None:
    assert not passes(check_uct_ignores_priors, puct)


visited = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=6)


# AlphaZero's exploration grows with the visits even where c is 0, so it is not among them.
CONSTANT = sorted(set(RULES) - {"alphazero"})


@pytest.mark.parametrize("name", CONSTANT)
@given(rows=visited)
def test_without_exploration_value_decides(name: str, rows: list[tuple[int, float, float]]) -> None:
    node = parent(1 + sum(n for n, _, _ in rows), 0.5, [(n, n * q, p) for n, q, p in rows])
    chosen = RULES[name](node, node.children, 0.0, 1.0, None)
    assert chosen.q_value == max(child.q_value for child in node.children)
    assert chosen is next(child for child in node.children if child.q_value == chosen.q_value)  # the first of equals


@pytest.mark.parametrize("name", CONSTANT)
@given(rows=visited, virtual_loss=st.floats(0, 5), in_flight=st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_without_exploration_a_simulation_under_way_is_a_visit_worth_0(
    name: str, rows: list[tuple[int, float, float]], virtual_loss: float, in_flight: list[int]
) -> None:
    node = parent(1 + sum(n for n, _, _ in rows), 0.5, [(n, n * q, p) for n, q, p in rows], in_flight)
    means = [n * q / (n + virtual_loss * k) for (n, q, _), k in zip(rows, in_flight, strict=False)]
    chosen = RULES[name](node, node.children, 0.0, virtual_loss, None)
    assert means[chosen.index] == pytest.approx(max(means))


def check_priors_by_hand(softmax: Callable[[Sequence[Step], float], list[float]]) -> None:
    # Log-probabilities per token are ln 0.6, ln 0.3, ln 0.1, so at temperature 1 the priors are 0.6, 0.3, 0.1.
    steps = [Step("a", 2 * log(0.6), 2), Step("b", log(0.3), 1), Step("c", 3 * log(0.1), 3)]
    assert softmax(steps, 1.0) == pytest.approx([0.6, 0.3, 0.1])
    # Temperature 0.5 squares them: 0.36, 0.09, 0.01 over 0.46.
    assert softmax(steps, 0.5) == pytest.approx([0.7826086957, 0.1956521739, 0.0217391304])
    # Temperature 2 takes roots: 0.7745967, 0.5477226, 0.3162278 over 1.6385471.
    assert softmax(steps, 2.0) == pytest.approx([0.4727339, 0.3342733, 0.1929928], abs=1e-6)


def test_priors_by_hand() -> None:
    check_priors_by_hand(priors)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda steps, t: priors(steps, t)[::-1],
        lambda steps, t: priors([Step(s.text, s.logprob) for s in steps], t),  # not per token
        lambda steps, t: priors(steps, 1 / t),
        lambda steps, t: [1 / len(steps)] * len(steps),
    ],
    ids=["swapped", "not per token", "inverse temperature", "uniform"],
)
def test_planted_errors_in_priors_are_detected(wrong: Callable[[Sequence[Step], float], list[float]]) -> None:
    with pytest.raises(AssertionError):
        check_priors_by_hand(wrong)


@given(
    st.lists(st.tuples(st.floats(-2000, 0), st.integers(1, 200)), min_size=1, max_size=8),
    st.floats(0.05, 20),
)
def test_priors_are_a_distribution_in_the_order_of_probability(rows: list[tuple[float, int]], temperature: float) -> None:
    steps = [Step(str(i), logprob, tokens) for i, (logprob, tokens) in enumerate(rows)]
    ps = priors(steps, temperature)
    assert sum(ps) == pytest.approx(1.0)
    assert all(0 <= p <= 1 for p in ps)
    rates = [logprob / tokens for logprob, tokens in rows]
    assert ps[rates.index(max(rates))] == max(ps)
    assert ps[rates.index(min(rates))] == min(ps)
