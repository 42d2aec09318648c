"""Which solutions are imitated and how much each counts, on solutions made by hand; the answer is 8."""

from math import e, exp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, Step
from trainers.data.config import RowsConfig, SelectionConfig, WeightedConfig
from trainers.data.evidence import Evidence
from trainers.data.rows import SolutionRow, row_from_dict, row_to_dict
from trainers.policy.registry import policy_rows

PROBLEM = Problem("p1", "How many?", "8")

Found = tuple[str, float | None]
"""A solution, its lines parted by a stroke, and its score."""


class Task(AnswerTask):
    name = "by hand"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return []


def tree_of(*found: Found) -> Tree:
    """A tree of rollouts alone; a line of #### ends with an answer, any other last line without one."""
    tree = Tree(PROBLEM.question)
    for text, score in found:
        lines = text.split("|")
        answer = lines[-1].removeprefix("#### ") if lines[-1].startswith("####") else None
        steps = [*map(Step, lines[:-1]), Step(lines[-1], terminal=True, answer=answer)]
        tree.rollouts.append((tree.root, tree.state(tree.root).then(*steps), score))
    return tree


def chosen(tree: Tree, method: str = "sft", **config: Any) -> tuple[list[str], dict[str, int]]:
    rows, refused = policy_rows(method, Evidence.of(tree, PROBLEM, Task()), RowsConfig(**config))
    return ["|".join(row.steps) for row in rows if isinstance(row, SolutionRow)], refused


MIXED = [
    ("4 + 4 = 8|#### 8", 0.5),
    ("5 + 4 = 9|#### 9", 0.9),
    ("2 * 4 = 8|#### 8", 0.8),
    ("4 + 4 = 8|#### 8", 0.7),
    ("I give up", None),
    ("5 + 4 = 9|#### 9", 0.1),
    ("so it is 8|#### 8", None),
]


def test_plain_rejection_sampling() -> None:
    kept, refused = chosen(tree_of(*MIXED))
    # Of equal texts the best score, 0.7; best first; without a score last.
    assert kept == ["2 * 4 = 8|#### 8", "4 + 4 = 8|#### 8", "so it is 8|#### 8"]
    assert refused == {"wrong": 2, "repeated": 1, "no answer": 1}
    kept, refused = chosen(tree_of(*MIXED), sft_per_question=1, min_score=0.75)
    assert kept == ["2 * 4 = 8|#### 8"]
    assert refused == {"wrong": 2, "repeated": 1, "no answer": 1, "low score": 1, "over the limit": 1}
    assert chosen(tree_of(*MIXED), min_score=0.7)[0] == chosen(tree_of(*MIXED))[0]  # 0.7 itself is enough


def test_equal_arithmetic_counts_once() -> None:
    tree = tree_of(
        ("She has 4 + 4 = 8.|#### 8", 0.5),
        ("Then $4 +4 = $8 are left.|#### 8", 0.9),
        ("First 2 * 4 = 8.|#### 8", 0.7),
        ("It is eight.|#### 8", 0.6),
        ("Surely eight.|#### 8", 0.4),
    )
    kept, refused = chosen(tree, sft_per_question=9, selection=SelectionConfig(dedupe="equations"))
    assert kept == [
        "Then $4 +4 = $8 are left.|#### 8",
        "First 2 * 4 = 8.|#### 8",
        "It is eight.|#### 8",
        "Surely eight.|#### 8",
    ]
    assert refused == {"same equations": 1}
    assert len(chosen(tree, sft_per_question=9)[0]) == 5


def test_much_longer_solutions_are_refused() -> None:
    # 6 + 1 + 6, with the newline 12 characters; twice that and one more.
    short, long = "short|#### 8", "x" * 18 + "|#### 8"
    assert (len(short), len(long)) == (12, 25)
    tree = tree_of((long, 0.9), (short, 0.1))
    assert chosen(tree, selection=SelectionConfig(length_ratio=2.0)) == ([short], {"too long": 1})
    assert chosen(tree, selection=SelectionConfig(length_ratio=2.1)) == ([long, short], {})
    assert chosen(tree) == ([long, short], {})


def test_shorter_first_only_among_equal_scores() -> None:
    tree = tree_of(("longer|#### 8", 0.5), ("long|#### 8", 0.5), ("the longest|#### 8", 0.6))
    assert chosen(tree)[0] == ["the longest|#### 8", "longer|#### 8", "long|#### 8"]
    short = SelectionConfig(prefer_short=True)
    assert chosen(tree, selection=short)[0] == ["the longest|#### 8", "long|#### 8", "longer|#### 8"]


@pytest.mark.parametrize(
    ("n_wrong", "expected"),
    [
        (0, 1),  # always solved: 4 (1 - 1) = 0, at least 1
        (2, 2),  # 4 of 6: 4 (1 - 2/3) = 1.33
        (4, 2),  # 4 of 8: 4 (1 - 1/2) = 2
        (12, 3),  # 4 of 16: 4 (1 - 1/4) = 3
        (60, 4),  # 4 of 64: 4 (1 - 1/16) = 3.75
    ],
)
def test_hard_questions_keep_more(n_wrong: int, expected: int) -> None:
    right = [(f"way {i}|#### 8", 0.5) for i in range(4)]
    tree = tree_of(*right, *[("#### 9", 0.5)] * n_wrong)
    kept, refused = chosen(tree, selection=SelectionConfig(balance="pass_rate"))
    assert len(kept) == expected
    assert refused.get("over the limit", 0) == 4 - expected


SOLUTION = st.tuples(
    st.sampled_from(["a|#### 8", "1 + 7 = 8|#### 8", "so 1 + 7 = 8|#### 8", "#### 8", "#### 9", "b|#### 9", "cut off"]),
    st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.9])),
)


@given(
    st.lists(SOLUTION, max_size=12),
    st.sampled_from(["text", "equations"]),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from(["none", "pass_rate"]),
    st.sampled_from(["sft", "weighted"]),
    st.booleans(),
    st.sampled_from(["outcome", "critic"]),
)
def test_every_solution_is_kept_or_refused_once(
    found: list[Found], dedupe: Any, ratio: float, balance: Any, method: Any, wrong: bool, score: Any
) -> None:
    selection = SelectionConfig(dedupe, ratio, True, balance)
    config = RowsConfig(
        sft_per_question=2, min_score=0.3, selection=selection, weighted=WeightedConfig(wrong=wrong, score=score)
    )
    rows, refused = policy_rows(method, Evidence.of(tree_of(*found), PROBLEM, Task()), config)
    assert len(rows) + sum(refused.values()) == len(found)
    assert all(n > 0 for n in refused.values())


# Weights


def weights(tree: Tree, **config: Any) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """Text -> (label, weight)."""
    rows, refused = policy_rows("weighted", Evidence.of(tree, PROBLEM, Task()), RowsConfig(weighted=WeightedConfig(**config)))
    assert all(isinstance(row, SolutionRow) for row in rows)
    return {"|".join(row.steps): (row.label, row.weight) for row in rows if isinstance(row, SolutionRow)}, refused


def test_weights_by_outcome() -> None:
    # 4 of 7 are right, one of them without a score and one twice: baseline 4/7; w = e^((1 - 4/7) / 0.5) = e^(6/7) = 2.356.
    found, refused = weights(tree_of(*MIXED))
    assert found == {
        "2 * 4 = 8|#### 8": (1.0, pytest.approx(2.35639, abs=1e-4)),
        "4 + 4 = 8|#### 8": (1.0, pytest.approx(2.35639, abs=1e-4)),
        "so it is 8|#### 8": (1.0, pytest.approx(2.35639, abs=1e-4)),
    }
    assert refused == {"wrong": 2, "repeated": 1, "no answer": 1}


def test_weights_of_wrong_solutions_too() -> None:
    # Baseline 4/7, beta 1: right e^(3/7) = 1.535, wrong e^(-4/7) = 0.5647.
    found, refused = weights(tree_of(*MIXED), beta=1.0, wrong=True)
    assert found["2 * 4 = 8|#### 8"] == (1.0, pytest.approx(1.53506, abs=1e-4))
    assert found["5 + 4 = 9|#### 9"] == (0.0, pytest.approx(0.56472, abs=1e-4))
    assert refused == {"repeated": 2, "no answer": 1}


def test_no_more_wrong_solutions_than_right_ones() -> None:
    wrong = [(f"{i} + 4 = 9|#### 9", 0.5) for i in range(4)]
    one, _ = weights(tree_of(("4 + 4 = 8|#### 8", 0.5), *wrong), wrong=True)
    assert sorted(label for label, _ in one.values()) == [0.0, 1.0]
    none, _ = weights(tree_of(*wrong), wrong=True)
    assert none == {}


def test_a_vote_is_no_critic() -> None:
    """Without critics scores are shares of votes: they order solutions, and no threshold or weight asks them."""
    config = RowsConfig(sft_per_question=3, min_score=0.95, weighted=WeightedConfig(score="critic"))
    tree = tree_of(*MIXED)
    tree.scored_by = "agreement"
    rows, refused = policy_rows("sft", Evidence.of(tree, PROBLEM, Task()), config)
    kept = ["|".join(row.steps) for row in rows if isinstance(row, SolutionRow)]
    assert kept == ["2 * 4 = 8|#### 8", "4 + 4 = 8|#### 8", "so it is 8|#### 8"] and "low score" not in refused
    rows, refused = policy_rows("weighted", Evidence.of(tree, PROBLEM, Task()), config)
    assert not rows and refused["unscored"] == 3


def test_weights_by_the_critic() -> None:
    # Scores 0.5, 0.9, 0.8, 0.7, 0.1: baseline 0.6; beta 0.1: e^(2) for 0.8, e^(1) for 0.7, clipped at 5.
    found, refused = weights(tree_of(*MIXED), beta=0.1, clip=5.0, score="critic")
    assert found == {
        "2 * 4 = 8|#### 8": (1.0, pytest.approx(5.0)),
        "4 + 4 = 8|#### 8": (1.0, pytest.approx(e)),
    }
    assert refused == {"wrong": 2, "repeated": 1, "no answer": 1, "unscored": 1}


def test_the_smallest_weight_is_above_0() -> None:
    assert WeightedConfig(beta=0.01).weight(0.0, 1.0) == pytest.approx(exp(-100), abs=0)
    assert WeightedConfig(beta=0.01).weight(1.0, 0.0) == pytest.approx(20.0)


def test_weights_in_json() -> None:
    plain, heavy = SolutionRow("p", "q", ("a",)), SolutionRow("p", "q", ("a",), 1.0, 2.5)
    assert row_to_dict(plain) == {"version": 1, "problem": "p", "question": "q", "steps": ("a",), "label": 1.0}
    assert row_to_dict(heavy) == {**row_to_dict(plain), "weight": 2.5}
    assert [row_from_dict(row_to_dict(row)) for row in (plain, heavy)] == [plain, heavy]
    for weight in (0, -1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(DataError, match="with weight"):
            row_from_dict({"question": "q", "steps": ["a"], "weight": weight})


def test_a_question_without_an_answer_gives_none() -> None:
    for method in ("sft", "weighted", "dpo"):
        found = policy_rows(method, Evidence.of(tree_of(*MIXED), Problem("p", "How many?"), Task()), RowsConfig())  # type: ignore[arg-type]
        assert found == ([], {"no gold answer": 1})


@pytest.mark.parametrize(
    ("cls", "settings_"),
    [
        (SelectionConfig, {"dedupe": "words"}),
        (SelectionConfig, {"balance": "all"}),
        (SelectionConfig, {"length_ratio": 0.5}),
        (WeightedConfig, {"beta": 0.0}),
        (WeightedConfig, {"clip": 0.5}),
        (WeightedConfig, {"score": "length"}),
    ],
)
def test_settings_out_of_range(cls: Any, settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings_))):
        cls(**settings_)
