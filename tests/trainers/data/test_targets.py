"""What a tree teaches the policy about steps, on a tree made by hand; the answer is 8. N, W and prior stand behind each node.

q (10, 5.4) -- "a" (6, 4.5; 1/2) -- "#### 8" (3, 2.7; 1/4)   right
  |                `--------------- "b" (2, 1.0; 1/2) -- "#### 7" (1, 0.4)   wrong
  |                `--------------- "#### 1" (0, 0; 1/4)     never visited
  |-- "c" (3, 0.9; 1/4) -- "#### 9" (2, 0.4)                 wrong
  `-- "d" (1, 0.1; 1/4)                                      with a right rollout
"""

import json
from collections.abc import Callable
from dataclasses import replace
from math import exp
from typing import Any

import pytest

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.search.gumbel import improved_policy
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem, Step
from trainers.data.config import PreferenceConfig, RowsConfig, TargetConfig
from trainers.data.evidence import Evidence
from trainers.data.preferences import policy_pairs
from trainers.data.rows import PairRow, TargetRow, row_from_dict, row_to_dict
from trainers.data.targets import target_rows
from trainers.policy.registry import policy_rows

PROBLEM = Problem("p1", "How many?", "8")


class Task(AnswerTask):
    name = "by hand"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return []


def step(text: str) -> Step:
    ends = text.startswith("####")
    return Step(text, terminal=ends, answer=text.removeprefix("#### ") if ends else None)


def add(tree: Tree, parent: Node, made: Step | str, visits: int, value_sum: float, prior: float = 1.0) -> Node:
    node = tree.add_child(parent, step(made) if isinstance(made, str) else made)
    node.visit_count, node.value_sum, node.prior = visits, value_sum, prior
    node.value = value_sum / visits if visits else None
    return node


@pytest.fixture
def tree() -> Tree:
    tree = Tree(PROBLEM.question)
    tree.root.visit_count, tree.root.value_sum, tree.root.value = 10, 5.4, 0.5
    a = add(tree, tree.root, "a", 6, 4.5, 0.5)
    c = add(tree, tree.root, "c", 3, 0.9, 0.25)
    d = add(tree, tree.root, "d", 1, 0.1, 0.25)
    add(tree, a, "#### 8", 3, 2.7, 0.25)
    b = add(tree, a, "b", 2, 1.0, 0.5)
    add(tree, a, "#### 1", 0, 0.0, 0.25)
    add(tree, b, "#### 7", 1, 0.4)
    add(tree, c, "#### 9", 2, 0.4)
    tree.rollouts.append((d, tree.state(d).then(step("#### 8")), None))
    return tree


def targets(tree: Tree, problem: Problem = PROBLEM, **config: Any) -> tuple[list[TargetRow], dict[str, int]]:
    rows, refused = policy_rows("distill", Evidence.of(tree, problem, Task()), RowsConfig(targets=TargetConfig(**config)))
    assert rows == target_rows(Evidence.of(tree, problem, Task()), TargetConfig(**config))[0]
    joint, of_joint = policy_rows("joint", Evidence.of(tree, problem, Task()), RowsConfig(targets=TargetConfig(**config)))
    assert ([row for row in joint if row.actions], of_joint) == (rows, refused)  # type: ignore[union-attr]
    return list(rows), refused  # type: ignore[arg-type]


Make = Callable[..., tuple[list[TargetRow], dict[str, int]]]


def check_visits(make: Make, tree: Tree) -> None:
    """Each action has its own share of the visits; z is the share of right solutions below the prefix."""
    rows, refused = make(tree)
    assert [(row.steps, row.actions) for row in rows] == [((), ("a", "c", "d")), (("a",), ("#### 8", "b", "#### 1"))]
    assert rows[0].targets == pytest.approx((0.6, 0.3, 0.1))
    assert rows[1].targets == pytest.approx((0.6, 0.4, 0.0))
    # Below the question two of four solutions are right, below "a" one of two.
    assert [row.outcome for row in rows] == [0.5, 0.5]
    assert refused == {"one step alone": 2}  # behind "a b" and behind "c"


def test_visits(tree: Tree) -> None:
    check_visits(targets, tree)


def test_targets_of_another_action_are_caught(tree: Tree) -> None:
    def planted(tree: Tree) -> tuple[list[TargetRow], dict[str, int]]:
        rows, refused = targets(tree)
        return [replace(row, targets=row.targets[1:] + row.targets[:1]) for row in rows], refused

    with pytest.raises(AssertionError):
        check_visits(planted, tree)


def test_a_value_model_sees_lost_prefixes_and_whole_solutions_too(tree: Tree) -> None:
    """Whatever has no row of its own tells its outcome: by hand from the four solutions, of which two are right."""
    known = {
        ("a", "#### 8"): 1.0,
        ("a", "b"): 0.0,
        ("a", "b", "#### 7"): 0.0,
        ("c",): 0.0,
        ("c", "#### 9"): 0.0,
        ("d",): 1.0,
        ("d", "#### 8"): 1.0,
    }
    rows, _ = target_rows(Evidence.of(tree, PROBLEM, Task()), TargetConfig(min_outcome=0.01), outcomes=16)
    alone = [row for row in rows if not row.actions]
    assert [row.steps for row in rows if row.actions] == [(), ("a",)]
    assert {row.steps: row.outcome for row in alone} == known and len(alone) == len(known)
    assert all(row_from_dict(row_to_dict(row)) == row for row in alone)
    # What the policy does not learn from, because nothing below it was right, the value model does.
    hard, refused = target_rows(Evidence.of(tree, PROBLEM, Task()), TargetConfig(min_outcome=0.9), outcomes=16)
    assert refused["low outcome"] == 2
    assert {row.steps: row.outcome for row in hard} == {**known, (): 0.5, ("a",): 0.5}
    few, _ = target_rows(Evidence.of(tree, PROBLEM, Task()), TargetConfig(), outcomes=3)
    assert len(few) == 2 + 3
    assert few == target_rows(Evidence.of(tree, PROBLEM, Task()), TargetConfig(), outcomes=3)[0]


def test_a_low_temperature_sharpens_visits(tree: Tree) -> None:
    # tau 1/2: N^2 = 36, 9 and 1 of 46.
    [first, _], _ = targets(tree, temperature=0.5)
    assert first.targets == pytest.approx((36 / 46, 9 / 46, 1 / 46))
    [first, _], _ = targets(tree, temperature=1e-3)
    assert first.targets == pytest.approx((1.0, 0.0, 0.0))


def test_gumbel(tree: Tree) -> None:
    # sigma(q) = (4 + 6) 0.2 q = 2 q at the question: 1/2 e^(2 x 0.75) : 1/4 e^(2 x 0.3) : 1/4 e^(2 x 0.1)
    # = 2.240845 : 0.455530 : 0.305351, together 3.001725.
    rows, _ = targets(tree, target="gumbel", c_visit=4.0, c_scale=0.2)
    assert rows[0].targets == pytest.approx((0.746519, 0.151756, 0.101725), abs=1e-5)
    # Behind "a", v = 0.75: v_mix = (0.75 + 5 (1/4 x 0.9 + 1/2 x 0.5) / (3/4)) / 6 = (0.75 + 3.166667) / 6 = 0.652778;
    # sigma = (4 + 3) 0.2 q = 1.4 q: 1/4 e^1.26 : 1/2 e^0.7 : 1/4 e^0.913889 = 0.881355 : 1.006876 : 0.623501,
    # together 2.511732.
    assert rows[1].targets == pytest.approx((0.350895, 0.400869, 0.248235), abs=1e-5)


def test_gumbel_is_the_searchs_own_improvement(tree: Tree) -> None:
    rows, _ = targets(tree, target="gumbel")
    assert rows[0].targets == pytest.approx(improved_policy(tree.root))


def test_outcome(tree: Tree) -> None:
    # Shares: a 1 of 2, c 0 of 1, d 1 of 1; c = 2: 1/2 e^1 : 1/4 e^0 : 1/4 e^2.
    weights = [0.5 * exp(1), 0.25, 0.25 * exp(2)]
    rows, refused = targets(tree, target="outcome", c_outcome=2.0)
    assert rows[0].targets == pytest.approx([w / sum(weights) for w in weights])
    # Behind "a": "#### 8" is right, "b" leads to a wrong one, and "#### 1", never visited, counts as "a" does: 1/2.
    weights = [0.25 * exp(2), 0.5, 0.25 * exp(1)]
    assert rows[1].targets == pytest.approx([w / sum(weights) for w in weights])
    assert refused == {"one step alone": 2}


def test_outcome_wants_a_difference(tree: Tree) -> None:
    # Without any right answer all shares are 0.
    rows, refused = targets(tree, replace(PROBLEM, gold="5"), target="outcome")
    assert (rows, refused) == ([], {"one step alone": 2, "all alike": 2})


def test_which_prefixes(tree: Tree) -> None:
    rows, refused = targets(tree, min_visits=6)  # behind "a" there are 5
    assert [row.steps for row in rows] == [()]
    assert refused == {"one step alone": 2, "few visits": 1}
    rows, refused = targets(tree, per_question=1)
    assert [row.steps for row in rows] == [()]
    assert refused == {"one step alone": 2, "over the limit": 1}
    rows, refused = targets(tree, min_outcome=0.6)
    assert (rows, refused) == ([], {"one step alone": 2, "low outcome": 2})
    # For outcome the solutions below the steps are counted: 4 below the question, 2 below "a".
    rows, refused = targets(tree, target="outcome", min_visits=3)
    assert [row.steps for row in rows] == [()]
    assert refused == {"one step alone": 2, "few visits": 1}


def test_a_prefix_without_a_value_has_no_gumbel_target(tree: Tree) -> None:
    tree.root.value = None
    rows, refused = targets(tree, target="gumbel")
    assert [row.steps for row in rows] == [("a",)]
    assert refused == {"one step alone": 2, "not valued": 1}


def test_ends_without_an_answer_are_not_learnt(tree: Tree) -> None:
    add(tree, tree.root, Step("cut off in the", terminal=True), 10, 0.0)
    rows, _ = targets(tree)
    assert rows[0].actions == ("a", "c", "d")
    assert rows[0].targets == pytest.approx((0.6, 0.3, 0.1))


def test_a_step_that_another_node_continues_is_no_end(tree: Tree) -> None:
    """The same text ended a solution without an answer once, and was continued once: it may be learnt."""
    add(tree, tree.root, Step("d", terminal=True), 2, 0.0, 0.25)
    rows, _ = targets(tree)
    # N: a 6, c 3, d 1 + 2, whose node with the rollout goes on.
    assert rows[0].actions == ("a", "c", "d")
    assert rows[0].targets == pytest.approx((6 / 12, 3 / 12, 3 / 12))


def test_nodes_of_equal_steps_count_together(tree: Tree) -> None:
    other = add(tree, tree.root, "c", 2, 1.2, 0.5)
    add(tree, other, "e", 2, 1.2)
    rows, _ = targets(tree)
    # N: a 6, c 3 + 2, d 1; behind "c" now two steps, of 2 visits each.
    assert rows[0].actions == ("a", "c", "d")
    assert rows[0].targets == pytest.approx((6 / 12, 5 / 12, 1 / 12))
    assert (rows[2].steps, rows[2].actions, rows[2].targets) == (("c",), ("#### 9", "e"), (0.5, 0.5))
    # Priors 1/2, 1/4 + 1/2 and 1/4 of 3/2; q: 0.75, (0.9 + 1.2) / 5 = 0.42, 0.1; sigma = q.
    rows, _ = targets(tree, target="gumbel", c_visit=4.0, c_scale=0.1)
    weights = [0.5 * exp(0.75), 0.75 * exp(0.42), 0.25 * exp(0.1)]
    assert rows[0].targets == pytest.approx([w / sum(weights) for w in weights])


def test_without_a_known_answer_the_search_alone_speaks(tree: Tree) -> None:
    unknown = Problem("p1", PROBLEM.question)
    for target in ("visits", "gumbel"):
        rows, refused = targets(tree, unknown, target=target)
        assert [row.targets for row in rows] == [row.targets for row in targets(tree, target=target)[0]]
        assert [row.outcome for row in rows] == [None, None]
        assert refused == {"one step alone": 2}
    for config in (TargetConfig("outcome"), TargetConfig(min_outcome=0.1)):
        with pytest.raises(DataError, match="not known"):
            target_rows(Evidence.of(tree, unknown, Task()), config)
        assert policy_rows("distill", Evidence.of(tree, unknown, Task()), RowsConfig(targets=config)) == (
            [],
            {"no gold answer": 1},
        )


@pytest.mark.parametrize("target", ["visits", "gumbel", "outcome"])
def test_rows_through_json(target: Any, tree: Tree) -> None:
    rows, _ = targets(Tree.from_dict(json.loads(json.dumps(tree.to_dict()))), target=target)
    assert rows
    assert [row_from_dict(json.loads(json.dumps(row_to_dict(row)))) for row in rows] == rows
    for row in rows:
        assert sum(row.targets) == pytest.approx(1, abs=1e-9)


# Preferences


def pairs(tree: Tree, **config: Any) -> tuple[list[tuple[tuple[str, ...], tuple[str, ...]]], dict[str, int]]:
    limit = config.pop("limit", 16)
    settings = RowsConfig(pairs_per_question=limit, preferences=PreferenceConfig(**config))
    rows, refused = policy_rows("dpo", Evidence.of(tree, PROBLEM, Task()), settings)
    return [(row.chosen, row.rejected) for row in rows if isinstance(row, PairRow)], refused


def test_pairs_by_outcome(tree: Tree) -> None:
    # Behind the question d 1, a 1/2, c 0; behind "a" "#### 8" 1, "b" 0; the others have no sibling with an outcome.
    found, refused = pairs(tree)
    assert found == [
        (("d",), ("c",)),
        (("d",), ("a",)),
        (("a",), ("c",)),
        (("a", "#### 8"), ("a", "b")),
    ]
    assert refused == {}
    assert pairs(tree, min_gap=0.5)[0] == [(("d",), ("c",)), (("a", "#### 8"), ("a", "b"))]
    assert pairs(tree, limit=1) == ([(("d",), ("c",))], {"over the limit": 3})


def test_pairs_hold_steps_of_rollouts(tree: Tree) -> None:
    d = tree.root.children[2]
    tree.rollouts.append((d, tree.state(d).then(step("x"), step("#### 3")), None))
    tree.rollouts.append((d, tree.state(d).then(Step("cut", terminal=True)), None))
    found, _ = pairs(tree)
    assert (("d", "#### 8"), ("d", "x")) in found
    assert all("cut" not in side for pair in found for side in pair)


def test_pairs_by_q(tree: Tree) -> None:
    # By Q a 0.75 is better than c 0.3 and d 0.1, but nothing wrong ends below d. The ends' mean Q: "a #### 8" 0.825,
    # "a b #### 7" (0.75 + 0.5 + 0.4) / 3 = 0.55, "c #### 9" 0.25. Behind "a" one inner step stands alone.
    found, _ = pairs(tree, by="q")
    assert found == [
        (("a",), ("c",)),
        (("a", "#### 8"), ("c", "#### 9")),
        (("a", "#### 8"), ("a", "b", "#### 7")),
    ]


def test_no_side_begins_with_the_other(tree: Tree) -> None:
    # "c" ends in one place and goes on in another, as a merged text may.
    add(tree, tree.root, Step("c", terminal=True, answer="8"), 2, 1.9)
    for config in ({"by": "q"}, {"by": "outcome"}):
        found, _ = pairs(tree, **config)
        assert found
        for better, worse in found:
            n = min(len(better), len(worse))
            assert better[:n] != worse[:n]


def test_policy_pairs_by_default_go_by_outcome(tree: Tree) -> None:
    rows, _ = policy_pairs(Evidence.of(tree, PROBLEM, Task()), 16)
    assert [(row.chosen, row.rejected) for row in rows] == pairs(tree)[0]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (TargetConfig, {"target": "values"}),
        (TargetConfig, {"temperature": 0.0}),
        (TargetConfig, {"c_scale": -1.0}),
        (TargetConfig, {"min_visits": 0}),
        (TargetConfig, {"min_outcome": 1.5}),
        (PreferenceConfig, {"by": "value"}),
        (PreferenceConfig, {"min_gap": 1.0}),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        cls(**settings)
