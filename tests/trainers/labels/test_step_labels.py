"""Step labels by Monte Carlo, traced by hand on a policy whose completions are known."""

import random
from collections.abc import Sequence
from math import sqrt

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.tasks.arith import ArithTask, distinct, stream
from llm_mcts.types import Problem, State, Step
from scripts.step_labels import faulty, faulty_solutions
from tests.search_cases import run, solution
from trainers.data.rows import StepRow
from trainers.labels.step_labels import (
    Labeller,
    Measured,
    OmegaConfig,
    first_wrong_step,
    math_shepherd,
    omega_prm,
    rollout_score,
)

PROBLEM = Problem("p", "How many?", "7")


class KnownPolicy:
    """Of n completions of a prefix the first `right[prefix]` answer 7, the others 8; `asked` keeps (prefix, n)."""

    def __init__(self, right: dict[str, int], behind: tuple[str, ...] = ()) -> None:
        self.right, self.behind = right, behind
        self.asked: list[tuple[str, int]] = []
        self.given: dict[str, int] = {}

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        raise AssertionError("labels need no proposals")

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        key = "".join(step.text for step in state.steps)
        self.asked.append((key, n))
        before = self.given.get(key, 0)
        self.given[key] = before + n
        answers = ["7" if before + i < self.right.get(key, 0) else "8" for i in range(n)]
        return [state.then(*map(Step, self.behind), *solution(answer=a).steps) for a in answers]


def labeller(policy: KnownPolicy, n: int = 4) -> Labeller:
    return Labeller(policy, ArithTask(), PROBLEM, n)


def test_math_shepherd_by_hand() -> None:
    policy = KnownPolicy({"a": 3, "ab": 1, "abc": 0})
    labels = run(math_shepherd(found := labeller(policy), ["a", "b", "c", "d"], right=False))
    assert labels == [0.75, 0.25, 0.0, 0.0]
    assert found.completions == 12  # 4 of each of three prefixes; the whole solution costs nothing
    hard = run(math_shepherd(labeller(KnownPolicy({"a": 3, "ab": 1})), ["a", "b", "c", "d"], right=True, hard=True))
    assert hard == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("wrong", range(6))
def test_binary_search_finds_the_first_wrong_step(wrong: int) -> None:
    steps = list("abcdef")
    good = {"abcdef"[: i + 1]: 4 for i in range(wrong)}
    policy = KnownPolicy(good)
    found = labeller(policy)
    assert run(first_wrong_step(found, steps)) == wrong
    # At most three looks at six steps; a good prefix takes 2 completions, a bad one all 4.
    assert len({prefix for prefix, _ in policy.asked}) <= 3
    assert all(policy.given[prefix] == (2 if prefix in good else 4) for prefix in policy.given)


def test_binary_search_by_hand() -> None:
    # Six steps, the fourth is wrong: looks at 3 (right), then at (3 + 6) // 2 = 4 (wrong): the step from 3 to 4.
    policy = KnownPolicy({"a": 4, "ab": 4, "abc": 4})
    assert run(first_wrong_step(labeller(policy), list("abcdef"))) == 3
    assert policy.asked == [("abc", 2), ("abcd", 2), ("abcd", 2)]


def test_a_late_success_still_counts() -> None:
    # Right at the fourth completion only: 2, then 2 more.
    late = KnownPolicy({})

    async def rollout(state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        late.asked.append(("a", n))
        total = sum(count for _, count in late.asked)
        return [state.then(*solution(answer="7" if total == 4 and i == n - 1 else "8").steps) for i in range(n)]

    late.rollout = rollout  # type: ignore[method-assign]
    assert run(labeller(late).can_be_right(["a"]))
    assert late.asked == [("a", 2), ("a", 2)]


def test_every_prefix_is_measured_once() -> None:
    policy = KnownPolicy({"a": 2})
    found = labeller(policy)
    first, second = run(found.measure(["a"])), run(found.measure(["a"]))
    assert first is second
    assert (first.value, first.total, len(policy.asked)) == (0.5, 4, 1)


def test_rollout_score_by_hand() -> None:
    config = OmegaConfig(alpha=0.5, beta=0.9, length=10, c_puct=0.125)
    # MC 0.75, 5 words: 0.5^0.25 * 0.9^0.5 = 0.840896 * 0.948683 = 0.797744; sum N = 4, N(s) = 1: 0.125 * 2 / 2 = 0.125.
    score = rollout_score(0.75, (("a",), ("one two", "three four five")), {("a",): 1, (): 3}, config)
    assert score == pytest.approx(0.797744 + 0.125, abs=1e-6)
    # Never searched: 0.125 * sqrt(4) / 1 = 0.25.
    assert rollout_score(1.0, (("b",), ()), {("a",): 1, (): 3}, config) == pytest.approx(1.0 + 0.125 * sqrt(4))


def test_omega_prm_labels_what_it_measures() -> None:
    # The bare question is right in 2 of 4. A wrong completion is x, y, #### 8: three steps behind the question. Binary search
    # looks at (0 + 3) // 2 = 1 step, x: right in 1 of 4; then at 2, xy: never right. So y is the first wrong step.
    policy = KnownPolicy({"": 2, "x": 1}, behind=("x", "y"))
    found = labeller(policy)
    rows = run(omega_prm(found, OmegaConfig(num_searches=1)))
    assert rows == [StepRow("p", "How many?", ("x", "y"), (0.25, 0.0))]
    assert rows[0].first_wrong == 0  # below 0.5 already
    assert policy.asked == [("", 4), ("x", 4), ("xy", 4)]
    assert found.completions == 12


def test_omega_prm_prefers_prefixes_that_are_often_right() -> None:
    config = OmegaConfig()
    often, seldom = Measured(7, 8, (("w",),)), Measured(1, 8, (("w",),))
    assert rollout_score(often.value, (("a",), ("w",)), {}, config) > rollout_score(seldom.value, (("b",), ("w",)), {}, config)


def test_omega_prm_ends_where_nothing_is_left_to_search() -> None:
    for right in (0, 4):  # never right, or always: nothing to learn
        found = labeller(KnownPolicy({"": right}))
        assert run(omega_prm(found, OmegaConfig(num_searches=50))) == []
        assert found.completions == 4


def test_a_question_without_an_answer_has_no_labels() -> None:
    with pytest.raises(ConfigError, match="gold None"):
        Labeller(KnownPolicy({}), ArithTask(), Problem("p", "?"))
    with pytest.raises(ConfigError, match="0 completions"):
        labeller(KnownPolicy({}), 0)
    for name, value in {"num_searches": 0, "alpha": 0.0, "beta": 1.5, "length": 0, "c_puct": -1.0}.items():
        with pytest.raises(ConfigError, match=rf"omega\.{name} is {value}; expected a"):
            OmegaConfig(**{name: value})  # type: ignore[arg-type]


def test_planted_errors_are_wrong_from_the_planted_line_on() -> None:
    cases = faulty_solutions("hard", 40)
    assert len(cases) == 40
    assert {at for _, _, at in cases} >= {0, 1, 2, 3}
    right = {p.question: p.solution().split("\n") for p in distinct(stream("dev", "hard", 0), 160)}
    for problem, lines, at in cases:
        true = right[problem.question]
        assert lines[:at] == true[:at]
        assert lines[at] != true[at]
        assert len(lines) == len(true)
        assert not ArithTask().check("\n".join(lines), problem.gold or "")


def test_a_planted_error_by_hand() -> None:
    problem = next(p for p in stream("dev", "easy", 0) if [op.symbol for op in p.operations] == ["+", "-"])
    first, second = problem.operations
    draw: Sequence[int] = random.Random(5).choices(range(9))  # any generator will do
    lines = faulty(problem, 0, random.Random(draw[0]))
    assert lines is not None
    wrong = int(lines[0].split("= ")[1].split()[0])
    assert wrong != first.result
    assert f"{wrong} - {second.right} = {wrong - int(str(second.right))}" in lines[1]
    assert lines[2] == f"#### {wrong - int(str(second.right))}"
