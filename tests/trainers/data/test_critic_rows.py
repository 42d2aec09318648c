"""Rows from trees made by hand.

    q -- "a" -- "#### 8"          right, critic's score 0.9
      |    `--- "b" -- "#### 7"   wrong, 0.8
      |    `--- "#### 9"          never visited
      `- "c" -- "#### 8.0"        right, 0.4

and rollouts from "a" and "c".
"""

import json

import pytest

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem, Step
from trainers.data.config import RowsConfig
from trainers.data.critic_rows import critic_rows
from trainers.data.evidence import Evidence
from trainers.data.rows import SolutionRow, StepRow, row_from_dict, row_to_dict
from trainers.policy.registry import policy_rows


class Task(AnswerTask):
    name = "by hand"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return []


PROBLEM = Problem("p1", "How many?", "8")


def step(text: str) -> Step:
    ends = text.startswith("####")
    return Step(text, terminal=ends, answer=text.removeprefix("#### ") if ends else None)


def grow(tree: Tree, node: Node, *texts: str) -> list[Node]:
    tree.expand(node, [step(text) for text in texts], [1 / len(texts)] * len(texts))
    return node.children


def visited(node: Node, value: float | None) -> None:
    node.visit_count, node.value = 1, value


def roll_out(tree: Tree, node: Node, score: float | None, *texts: str) -> None:
    tree.rollouts.append((node, tree.state(node).then(*(step(text) for text in texts)), score))


@pytest.fixture
def tree() -> Tree:
    tree = Tree("How many?")
    a, c = grow(tree, tree.root, "a", "c")
    right, b, unvisited = grow(tree, a, "#### 8", "b", "#### 9")
    [wrong] = grow(tree, b, "#### 7")
    [same_value] = grow(tree, c, "#### 8.0")
    visited(right, 0.9)
    visited(wrong, 0.8)
    visited(same_value, 0.4)
    assert unvisited.visit_count == 0
    return tree


def rows(tree: Tree, **config: float) -> dict[str, list[SolutionRow | StepRow]]:
    evidence, settings = Evidence.of(tree, PROBLEM, Task()), RowsConfig(**config)  # type: ignore[arg-type]
    found = {"sft": policy_rows("sft", evidence, settings)[0], **critic_rows(evidence, settings)}
    return {name: list(those) for name, those in found.items()}


def steps_of(found: list[SolutionRow | StepRow]) -> list[tuple[str, ...]]:
    return [row.steps for row in found]


def test_the_whole_of_it(tree: Tree) -> None:
    found = rows(tree)
    assert set(found) == {"sft", "value", "prm", "orm"}
    assert found["sft"] == [
        SolutionRow("p1", "How many?", ("a", "#### 8"), 1.0),
        SolutionRow("p1", "How many?", ("c", "#### 8.0"), 1.0),
    ]
    outcomes = {("a", "#### 8"): 1.0, ("c", "#### 8.0"): 1.0, ("a", "b", "#### 7"): 0.0}
    for name in ("value", "orm"):
        assert {row.steps: row.label for row in found[name] if isinstance(row, SolutionRow)} == outcomes
        assert len(found[name]) == 3
    # Below "a" end one right and one wrong solution; below "a b" the wrong one; below "c" the right one.
    assert {row.steps: row.labels for row in found["prm"] if isinstance(row, StepRow)} == {
        ("a", "#### 8"): (0.5, 1.0),
        ("a", "b", "#### 7"): (0.5, 0.0, 0.0),
        ("c", "#### 8.0"): (1.0, 1.0),
    }


def test_roll_outs_count_in_shares_each_time_and_in_rows_once(tree: Tree) -> None:
    a, c = tree.root.children
    roll_out(tree, a, 0.7, "d", "#### 7")
    roll_out(tree, a, 0.6, "d", "#### 7")
    roll_out(tree, a, 0.5, "#### 8")  # the tree's own solution once more
    roll_out(tree, c, 0.5, "e", "#### 9")
    found = rows(tree)
    assert sorted(steps_of(found["value"])) == [
        ("a", "#### 8"),
        ("a", "b", "#### 7"),
        ("a", "d", "#### 7"),
        ("c", "#### 8.0"),
        ("c", "e", "#### 9"),
    ]
    labels = {row.steps: row.labels for row in found["prm"] if isinstance(row, StepRow)}
    # Below "a": right 2 (node, rollout), wrong 3 (node, two rollouts). Below "c": one of each.
    assert labels[("a", "#### 8")] == (0.4, 1.0)
    assert labels[("a", "d", "#### 7")] == (0.4, 0.0, 0.0)
    assert labels[("c", "e", "#### 9")] == (0.5, 0.0, 0.0)


def test_the_policy_imitates_the_best_scored_right_solutions_first(tree: Tree) -> None:
    roll_out(tree, tree.root.children[0], 0.95, "d", "#### 8")
    assert steps_of(rows(tree)["sft"]) == [("a", "d", "#### 8"), ("a", "#### 8"), ("c", "#### 8.0")]
    assert steps_of(rows(tree, sft_per_question=2)["sft"]) == [("a", "d", "#### 8"), ("a", "#### 8")]


def test_of_equal_solutions_the_best_score_counts(tree: Tree) -> None:
    roll_out(tree, tree.root.children[1], 0.99, "#### 8.0")
    assert steps_of(rows(tree)["sft"]) == [("c", "#### 8.0"), ("a", "#### 8")]


def test_low_scores_are_not_imitated_but_still_train_critics(tree: Tree) -> None:
    found = rows(tree, min_score=0.5)
    assert steps_of(found["sft"]) == [("a", "#### 8")]
    assert len(found["value"]) == 3
    assert steps_of(rows(tree, min_score=0.4)["sft"]) == [("a", "#### 8"), ("c", "#### 8.0")]


def test_without_scores_all_right_solutions_are_kept(tree: Tree) -> None:
    for node in tree.nodes():
        node.value = None
    assert sorted(steps_of(rows(tree, min_score=0.9)["sft"])) == [("a", "#### 8"), ("c", "#### 8.0")]


def test_unscored_solutions_come_last(tree: Tree) -> None:
    roll_out(tree, tree.root.children[0], None, "d", "#### 8")
    assert steps_of(rows(tree)["sft"])[-1] == ("a", "d", "#### 8")


def test_wrong_solutions_are_never_imitated(tree: Tree) -> None:
    wrong = Problem("p1", "How many?", "80")
    evidence = Evidence.of(tree, wrong, Task())
    found = critic_rows(evidence, RowsConfig())
    assert policy_rows("sft", evidence, RowsConfig())[0] == []
    assert [row.label for row in found["orm"] if isinstance(row, SolutionRow)] == [0.0, 0.0, 0.0]
    assert {x for row in found["prm"] if isinstance(row, StepRow) for x in row.labels} == {0.0}


def test_solutions_without_an_answer_make_no_row_but_count_as_failures(tree: Tree) -> None:
    a = tree.root.children[0]
    tree.rollouts.append((a, tree.state(a).then(Step("and so on", terminal=True)), 0.0))
    found = rows(tree)
    assert len(found["value"]) == 3
    labels = {row.steps: row.labels for row in found["prm"] if isinstance(row, StepRow)}
    assert labels[("a", "#### 8")][0] == pytest.approx(1 / 3)  # one right of three endings below "a"


def test_a_cut_off_answer_is_no_right_ending(tree: Tree) -> None:
    """ "#### 8" cut off from "#### 81": its step says that it has no answer."""
    a = tree.root.children[0]
    tree.rollouts.append((a, tree.state(a).then(Step("z"), Step("#### 8", terminal=True, answer=None)), 0.0))
    labels = {row.steps: row.labels for row in rows(tree)["prm"] if isinstance(row, StepRow)}
    assert labels[("a", "#### 8")][0] == pytest.approx(1 / 3)


def many(n_right: int, n_wrong: int) -> Tree:
    tree = Tree("How many?")
    texts = [f"r{i}" for i in range(n_right)] + [f"w{i}" for i in range(n_wrong)]
    for node in grow(tree, tree.root, *texts):
        [end] = grow(tree, node, "#### 8" if node.step.text[0] == "r" else "#### 7")
        visited(end, 0.5)
    return tree


@pytest.mark.parametrize(
    ("n_right", "n_wrong", "limit", "kept"),
    [
        (6, 6, 4, (2, 2)),  # half and half
        (6, 1, 4, (3, 1)),  # too few wrong ones: the rest is right
        (1, 6, 4, (1, 3)),
        (6, 0, 4, (4, 0)),
        (0, 6, 4, (0, 4)),
        (2, 1, 8, (2, 1)),  # fewer than allowed
        (6, 6, 5, (2, 3)),  # an odd place goes to the wrong ones
        (6, 2, 5, (3, 2)),
        (0, 0, 4, (0, 0)),
    ],
)
def test_balance(n_right: int, n_wrong: int, limit: int, kept: tuple[int, int]) -> None:
    tree = many(n_right, n_wrong) if n_right + n_wrong else Tree("How many?")
    found = rows(tree, critic_per_question=limit)
    for name in ("value", "orm", "prm"):
        firsts = [row.steps[0][0] for row in found[name]]
        assert (firsts.count("r"), firsts.count("w")) == kept
        assert len(set(steps_of(found[name]))) == len(found[name])


def test_prm_rows_are_those_of_the_other_critics(tree: Tree) -> None:
    found = rows(tree, critic_per_question=2)
    assert steps_of(found["prm"]) == steps_of(found["value"]) == steps_of(found["orm"])
    assert len(found["prm"]) == 2


def test_rows_carry_no_gold_answer(tree: Tree) -> None:
    tree = Tree("How many?")
    [end] = grow(tree, tree.root, "#### 7")
    visited(end, 0.5)
    for those in rows(tree).values():
        assert "8" not in json.dumps([row_to_dict(row) for row in those])


def test_round_trip_through_json() -> None:
    for row in (SolutionRow("p", "q", ("a", "b"), 0.0), StepRow("p", "q", ("a", "b"), (0.25, None))):
        assert row_from_dict(json.loads(json.dumps(row_to_dict(row)))) == row


def test_a_row_of_a_users_own() -> None:
    assert row_from_dict({"question": "q", "steps": ["a"]}) == SolutionRow("", "q", ("a",), 1.0)
    assert row_from_dict({"question": "q", "steps": ["a"], "labels": [None]}) == StepRow("", "q", ("a",), (None,))


def test_rows_have_a_format_version() -> None:
    written = row_to_dict(SolutionRow("p", "q", ("a",), 0.0))
    assert written == {"version": 1, "problem": "p", "question": "q", "steps": ("a",), "label": 0.0}
    with pytest.raises(DataError, match="row with format version 2; expected 1"):
        row_from_dict({**written, "version": 2})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": ["a"]}, "question"),
        ({"question": "q"}, "steps"),
        ({"question": "q", "steps": []}, "at least one"),
        ({"question": "q", "steps": ["a", "b"], "labels": [1.0]}, "one label a step"),
        ({"question": "q", "steps": ["a"], "label": 1.5}, r"number in \[0, 1\]"),
        ({"question": "q", "steps": ["a"], "labels": [-0.5]}, r"number in \[0, 1\]"),
        ({"question": "q", "steps": ["a"], "label": float("nan")}, r"number in \[0, 1\]"),
        ({"question": "q", "steps": 3}, "steps"),
    ],
)
def test_broken_rows_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        row_from_dict(data)


@pytest.mark.parametrize(
    "data",
    [
        {"question": "q", "steps": ["a"], "label": "1"},
        {"question": "q", "steps": ["a"], "label": None},
        {"question": "q", "steps": ["a"], "labels": ["1"]},
        {"question": "q", "steps": "a step"},
        {"question": "q", "steps": ["a", 3]},
        {"question": 3, "steps": ["a"]},
    ],
)
def test_rows_of_the_wrong_types_are_named(data: dict[str, object]) -> None:
    with pytest.raises(DataError):
        row_from_dict(data)


def test_configurations_out_of_range() -> None:
    for bad in ({"sft_per_question": 0}, {"critic_per_question": 1}, {"min_score": 1.1}, {"min_score": -0.1}):
        [(name, value)] = bad.items()
        with pytest.raises(ConfigError, match=f"rows.{name} is {value}; expected a"):
            RowsConfig(**bad)  # type: ignore[arg-type]
