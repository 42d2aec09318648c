"""The door by hand, on trees whose whole solutions state these answers with these scores."""

from dataclasses import replace

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.tasks.arith import ArithTask
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, State, Step
from trainers.data.config import RowsConfig
from trainers.data.critic_rows import critic_rows
from trainers.data.evidence import Evidence
from trainers.policy.registry import policy_rows
from trainers.questions.agreement import Agreed, AgreementConfig, agreed_answer

PROBLEM = Problem("p", "How many?")
LOOSE = AgreementConfig(min_vote=0.5, min_score=0.5, min_solutions=2)


def tree_of(*solutions: tuple[str | None, float | None], same_text: bool = False) -> Tree:
    """A tree with a finished node for the first solution and rollouts for the others."""
    tree = Tree("How many?")
    tree.root.visit_count = 1
    for i, (answer, score) in enumerate(solutions):
        line = "no idea" if answer is None else f"#### {answer}"
        steps = (Step("work" if same_text else f"work {i}"), Step(line, terminal=True, answer=answer))
        if i:
            tree.rollouts.append((tree.root, State("How many?", steps), score))
            continue
        inner = tree.add_child(tree.root, steps[0])
        inner.visit_count = 1
        end = tree.add_child(inner, steps[1])
        end.visit_count, end.value = 1, score
    return tree


def test_vote_and_score_by_hand() -> None:
    # 8 three times of five, one of which states nothing; its scores' mean is (1 + 0.5 + 0.75) / 3 = 0.75.
    tree = tree_of(("8", 1.0), ("7", 0.95), ("8", 0.5), (None, 0.0), ("8", 0.75))
    found = agreed_answer(tree, AgreementConfig(min_vote=0.6, min_score=0.75, min_solutions=5))
    assert (found.answer, found.vote, found.reason) == ("8", 0.6, "agreed")
    assert found.score == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (AgreementConfig(min_vote=0.61, min_score=0.5, min_solutions=5), "vote below min_vote"),
        (AgreementConfig(min_vote=0.6, min_score=0.76, min_solutions=5), "score below min_score"),
        (AgreementConfig(min_vote=0.6, min_score=0.5, min_solutions=6), "too few solutions"),
    ],
)
def test_refusals(config: AgreementConfig, reason: str) -> None:
    found = agreed_answer(tree_of(("8", 1.0), ("7", 0.95), ("8", 0.5), (None, 0.0), ("8", 0.75)), config)
    assert (found.answer, found.vote, found.reason) == (None, 0.6, reason)


def test_without_solutions_or_answers() -> None:
    assert agreed_answer(Tree("How many?"), LOOSE) == Agreed(None, 0.0, None, "too few solutions")
    assert agreed_answer(tree_of((None, 0.0), (None, 0.0)), LOOSE) == Agreed(None, 0.0, None, "no answer")


def test_without_critics_the_vote_decides_and_says_so() -> None:
    unscored = tree_of(("8", None), ("8", None), ("7", None))
    assert agreed_answer(unscored, LOOSE) == Agreed("8", 2 / 3, None, "agreed by vote alone")
    low = tree_of(("8", 0.1), ("8", 0.1), ("7", 0.1))
    assert agreed_answer(low, LOOSE).reason == "score below min_score"
    low.scored_by = "agreement"
    assert agreed_answer(low, LOOSE) == Agreed("8", 2 / 3, None, "agreed by vote alone")


def test_repeated_texts_count_once_where_asked() -> None:
    tree = tree_of(("8", 0.9), ("8", 0.9), ("8", 0.9), ("7", 0.9), same_text=True)
    assert agreed_answer(tree, LOOSE).vote == 0.75
    assert agreed_answer(tree, AgreementConfig(0.5, 0.5, 2, distinct=True)).vote == 0.5


def test_rows_are_made_as_if_the_answer_were_gold() -> None:
    tree = tree_of(("8", 0.9), ("8", 0.7), ("7", 0.8))
    found = agreed_answer(tree, LOOSE)
    assert found.answer == "8"
    evidence = Evidence.of(tree, replace(PROBLEM, gold=found.answer), ArithTask())
    rows = critic_rows(evidence, RowsConfig())
    assert [row.steps[-1] for row in policy_rows("sft", evidence, RowsConfig())[0]] == ["#### 8", "#### 8"]  # type: ignore[union-attr]
    assert [row.label for row in rows["orm"]] == [1.0, 1.0, 0.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [{"min_vote": 0.0}, {"min_vote": 1.1}, {"min_score": -0.1}, {"min_solutions": 0}])
def test_settings_are_checked(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ConfigError, match=rf"agreement\.{name} is {value}; expected a"):
        AgreementConfig(**bad)  # type: ignore[arg-type]
