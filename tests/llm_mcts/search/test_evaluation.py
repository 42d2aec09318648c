"""Leaf values, critics held to their contract, agreement, and the solutions a tree holds."""

from collections.abc import Sequence
from math import inf, nan

import pytest

from llm_mcts.errors import ConfigError, CriticError
from llm_mcts.search.contracts import critic_scores
from llm_mcts.search.evaluation import Agreement, MixedValue, StepQuality
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, State, Step
from tests.search_cases import ListedPolicy, TableCritic, run, solution


class EndsPolicy:
    """Rollouts end in the given answers, one after the other; None stands for a solution without one."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        raise AssertionError("an evaluation proposes nothing")

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self.asked.append((state.text, n))
        return [state.then(*solution(answer=answer).steps) for answer in self.answers[:n]]


def evaluated(critic: Critic, policy: EndsPolicy, weight: float, leaf: Step | None = None) -> tuple[Tree, Node]:
    """A tree with one child, valued with three rollouts."""
    tree = Tree("q")
    tree.expand(tree.root, [leaf or Step("a")], [1.0])
    (node,) = tree.root.children
    run(MixedValue(tree, policy, critic, 3, 0, weight)([node]))
    return tree, node


SCORES = {"a": 0.4, "a\n#### 1": 0.2, "a\n#### 2": 0.6, "a\n#### 3": 1.0, "#### 9": 0.7}


def test_a_leaf_is_worth_the_mix_of_value_and_rollouts() -> None:
    critic = TableCritic(SCORES)
    tree, leaf = evaluated(critic, EndsPolicy("1", "2", "3"), 0.25)
    # z = (0.2 + 0.6 + 1.0) / 3 = 0.6; V = 0.75 * 0.4 + 0.25 * 0.6 = 0.45
    assert leaf.value == pytest.approx(0.45)
    assert critic.asked == [["a", "a\n#### 1", "a\n#### 2", "a\n#### 3"]]  # one question to the critic for everything
    assert [(n is leaf, s.text, v) for n, s, v in tree.rollouts] == [
        (True, "a\n#### 1", 0.2),
        (True, "a\n#### 2", 0.6),
        (True, "a\n#### 3", 1.0),
    ]


def test_rollout_weight_0_asks_the_critic_alone() -> None:
    critic, policy = TableCritic(SCORES), EndsPolicy("1", "2", "3")
    tree, leaf = evaluated(critic, policy, 0.0)
    assert leaf.value == 0.4
    assert (critic.asked, policy.asked, tree.rollouts) == ([["a"]], [], [])


def test_rollout_weight_1_asks_for_whole_solutions_alone() -> None:
    critic = TableCritic(SCORES)
    _, leaf = evaluated(critic, EndsPolicy("1", "2", "3"), 1.0)
    assert leaf.value == pytest.approx(0.6)
    assert critic.asked == [["a\n#### 1", "a\n#### 2", "a\n#### 3"]]


def test_a_rollout_without_an_answer_is_worth_0() -> None:
    critic = TableCritic(SCORES)
    _, leaf = evaluated(critic, EndsPolicy("2", None, None), 1.0)
    assert leaf.value == pytest.approx(0.2)  # (0.6 + 0 + 0) / 3
    assert critic.asked == [["a\n#### 2"]]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_finished_solution_is_worth_what_the_critic_says(weight: float) -> None:
    critic, policy = TableCritic(SCORES), EndsPolicy("1")
    _, leaf = evaluated(critic, policy, weight, Step("#### 9", terminal=True, answer="9"))
    assert (leaf.value, policy.asked) == (0.7, [])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_finished_solution_without_an_answer_is_worth_0(weight: float) -> None:
    critic = TableCritic({})
    _, leaf = evaluated(critic, EndsPolicy("1"), weight, Step("dead end", terminal=True))
    assert (leaf.value, critic.asked) == (0.0, [])


def test_leaves_keep_their_own_scores() -> None:
    tree = Tree("q")
    steps = [Step("a"), Step("#### 9", terminal=True, answer="9"), Step("end", terminal=True), Step("b")]
    tree.expand(tree.root, steps, [0.25] * 4)
    scores = {"a": 0.1, "#### 9": 0.7, "b": 0.3, "a\n#### 1": 0.5, "b\n#### 1": 0.9}
    run(MixedValue(tree, EndsPolicy("1"), TableCritic(scores), 1, 0, 0.5)(tree.root.children))
    # a: (0.1 + 0.5) / 2 = 0.3, 9: 0.7, the dead end: 0, b: (0.3 + 0.9) / 2 = 0.6
    assert [n.value for n in tree.root.children] == pytest.approx([0.3, 0.7, 0.0, 0.6])


class WrongCritic:
    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores

    async def score(self, states: Sequence[State]) -> list[float]:
        return list(self.scores)


TWO = [solution(answer="1", question="How many?"), State("How many?", (Step("a"),))]


@pytest.mark.parametrize(
    ("scores", "named"),
    [
        ([0.5, nan], "nan"),
        ([nan, 0.5], "nan"),
        ([0.5, 1.0001], "1.0001"),
        ([-0.0001, 0.5], "-0.0001"),
        ([inf, 0.5], "inf"),
        ([0.5], "1 scores for 2 states"),
        ([0.5, 0.5, 0.5], "3 scores for 2 states"),
        ([], "0 scores for 2 states"),
    ],
)
def test_a_critic_that_breaks_its_contract_is_an_error(scores: list[float], named: str) -> None:
    with pytest.raises(CriticError, match=named) as error:
        run(critic_scores(WrongCritic(scores), TWO))
    assert "How many?" in str(error.value)


@pytest.mark.parametrize("scores", [None, [None, 0.5], ["0.5", 0.5]])
def test_scores_that_are_no_numbers_are_an_error(scores: Sequence[float]) -> None:
    class Broken:
        async def score(self, states: Sequence[State]) -> list[float]:
            return scores  # type: ignore[return-value]

    with pytest.raises(CriticError):
        run(critic_scores(Broken(), TWO))


def test_the_ends_of_the_range_are_allowed_and_order_is_kept() -> None:
    assert run(critic_scores(WrongCritic([0.0, 1.0]), TWO)) == [0.0, 1.0]
    assert run(critic_scores(WrongCritic([0.0, 1.0]), [TWO[0], solution(), TWO[1]])) == [0.0, 0.0, 1.0]
    assert run(critic_scores(WrongCritic([0.5]), [])) == []
    assert run(critic_scores(WrongCritic([0.5]), [solution(), solution()])) == [0.0, 0.0]


def test_agreement_is_the_share_of_the_solutions_seen() -> None:
    agreement = Agreement()
    ends = {name: solution(answer=name) for name in "ABC"}
    # Votes A 2, B 1.
    assert run(agreement.score([ends["A"], ends["A"], ends["B"]])) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    # Then A 3, B 1, C 1.
    assert run(agreement.score([ends["A"], ends["C"]])) == pytest.approx([0.6, 0.2])
    assert run(agreement.score([])) == []


def test_agreement_gives_a_solution_without_an_answer_nothing() -> None:
    assert run(Agreement().score([solution()])) == [0.0]


def test_agreement_refuses_unfinished_solutions() -> None:
    with pytest.raises(ConfigError, match="unfinished"):
        run(Agreement().score([State("q", (Step("a"),))]))


def test_the_solutions_of_a_tree_are_its_visited_ends_and_its_rollouts() -> None:
    tree = Tree("q")
    steps = [Step("a"), Step("#### 9", terminal=True, answer="9"), Step("#### 8", terminal=True, answer="8")]
    tree.expand(tree.root, steps, [1 / 3] * 3)
    _, seen, _ = tree.root.children
    seen.visit_count, seen.value = 1, 0.7
    tree.rollouts.append((tree.root, solution(answer="1", question="q"), 0.5))
    assert [(t.state.text, t.score) for t in tree.traces()] == [("#### 9", 0.7), ("#### 1", 0.5)]
    tree.scored_by = "agreement"
    assert [(t.state.text, t.score) for t in tree.traces()] == [("#### 9", None), ("#### 1", None)]


def test_a_policy_that_completes_nothing_is_an_error() -> None:
    from llm_mcts.errors import PolicyError

    with pytest.raises(PolicyError):
        evaluated(TableCritic(SCORES), EndsPolicy(), 0.5)


def test_a_finished_solution_is_not_completed() -> None:
    policy = ListedPolicy({})
    tree = Tree("q")
    tree.expand(tree.root, [Step("#### 9", terminal=True, answer="9")], [1.0])
    run(MixedValue(tree, policy, TableCritic(SCORES), 3, 0, 1.0)(tree.root.children))
    assert policy.rolled_out == []


def test_a_completion_begins_with_what_it_completes() -> None:
    from llm_mcts.errors import PolicyError

    class FromScratch(EndsPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            return [solution(answer="1", question=state.question)] * n

    with pytest.raises(PolicyError, match="does not begin with the steps"):
        evaluated(TableCritic(SCORES), FromScratch(), 0.5)


def test_scores_may_be_of_any_real_type() -> None:
    import numpy as np

    class Numpy:
        async def score(self, states: Sequence[State]) -> list[float]:
            return np.array([0.25, 0.75], dtype=np.float32)  # type: ignore[return-value]

    assert run(critic_scores(Numpy(), TWO)) == [0.25, 0.75]


def test_a_step_quality_of_a_solution_without_an_answer_is_0() -> None:
    tree = Tree("q")
    tree.root.value = 1.0
    tree.expand(tree.root, [Step("dead end", terminal=True)], [1.0])
    run(StepQuality(tree, EndsPolicy("1"), TableCritic({}), 1, 0)(tree.root.children))
    assert tree.root.children[0].value == 0.0
