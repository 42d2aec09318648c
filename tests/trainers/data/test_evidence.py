"""Rows from what a tree has found out, on a tree made by hand; the answer is 8. N and W stand behind each node.

q (10, 6) -- "a" (6, 4.5) -- "#### 8" (3, 2.7)   right, Q 0.9
  |            `------------ "b" (2, 1.0)       -- "#### 7" (1, 0.4)   wrong
  |-- "c" (3, 0.9) -- "#### 9" (2, 0.4)          wrong, Q 0.2
  |-- "d" (1, 0.1)                               with a right rollout
  `-- "e" (0, 0)
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.tasks.base import AnswerTask
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Problem, Step
from trainers.data.config import RowsConfig
from trainers.data.critic_rows import critic_rows, distance, each_node_once, outcome_pairs, twins_first
from trainers.data.evidence import Evidence
from trainers.data.objectives import CriticLossConfig, OutcomeObjective, StepObjective, ValueObjective
from trainers.data.rows import PairRow, Row, SolutionRow, TreeRow, row_from_dict, row_to_dict
from trainers.loop.replay import trajectories
from trainers.policy.registry import policy_rows

PROBLEM = Problem("p1", "How many?", "8")


class Task(AnswerTask):
    name = "by hand"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return []


def step(text: str) -> Step:
    ends = text.startswith("####")
    return Step(text, terminal=ends, answer=text.removeprefix("#### ") if ends else None)


def add(tree: Tree, parent: Node, text: str, visits: int, value_sum: float) -> Node:
    node = tree.add_child(parent, step(text))
    node.visit_count, node.value_sum = visits, value_sum
    return node


@pytest.fixture
def tree() -> Tree:
    tree = Tree("How many?")
    tree.root.visit_count, tree.root.value_sum = 10, 6.0
    a, c, d, _ = (
        add(tree, tree.root, text, n, w) for text, n, w in (("a", 6, 4.5), ("c", 3, 0.9), ("d", 1, 0.1), ("e", 0, 0.0))
    )
    add(tree, a, "#### 8", 3, 2.7)
    b = add(tree, a, "b", 2, 1.0)
    add(tree, b, "#### 7", 1, 0.4)
    add(tree, c, "#### 9", 2, 0.4)
    tree.rollouts.append((d, tree.state(d).then(step("f"), step("#### 8")), 0.5))
    return tree


def rows(tree: Tree, kind: str, losses: CriticLossConfig, **config: object) -> list[Row]:
    return list(critic_rows(Evidence.of(tree, PROBLEM, Task()), RowsConfig(**config), losses)[kind])  # type: ignore[arg-type]


TREE_Q = CriticLossConfig(value=ValueObjective(target="tree_q"))
TD = CriticLossConfig(value=ValueObjective(target="td_lambda"))
PPM = CriticLossConfig(prm=StepObjective(target="pairwise"))
PAIRS = CriticLossConfig(orm=OutcomeObjective(target="pairwise"))


def test_tree_q_rows_are_the_paths_to_visited_leaves(tree: Tree) -> None:
    found = {row.steps: row for row in rows(tree, "value", TREE_Q) if isinstance(row, TreeRow)}
    assert {(row.problem, row.question, row.label) for row in found.values()} == {("p1", "How many?", None)}
    assert {steps: (row.q_values, row.visits) for steps, row in found.items()} == {
        # Q: 6 / 10, 4.5 / 6, 2.7 / 3
        ("a", "#### 8"): ((0.6, 0.75, pytest.approx(0.9)), (10, 6, 3)),
        ("a", "b", "#### 7"): ((0.6, 0.75, 0.5, 0.4), (10, 6, 2, 1)),
        ("c", "#### 9"): ((0.6, pytest.approx(0.3), 0.2), (10, 3, 2)),
        ("d",): ((0.6, 0.1), (10, 1)),
    }


def test_the_most_visited_leaves_are_kept(tree: Tree) -> None:
    assert [row.steps for row in rows(tree, "value", TREE_Q, critic_per_question=2)] == [  # type: ignore[union-attr]
        ("a", "#### 8"),
        ("c", "#### 9"),
    ]


def test_each_node_counts_once(tree: Tree) -> None:
    once = each_node_once([row for row in rows(tree, "value", TREE_Q) if isinstance(row, TreeRow)])
    assert {row.steps: row.visits for row in once} == {
        ("a", "#### 8"): (10, 6, 3),
        ("c", "#### 9"): (0, 3, 2),
        ("a", "b", "#### 7"): (0, 0, 2, 1),
        ("d",): (0, 1),
    }
    # All visits of visited nodes, each once: 10 + 6 + 3 + 3 + 2 + 2 + 1 + 1 = 28
    assert sum(sum(row.visits) for row in once) == 28
    other = TreeRow("p2", "How else?", ("a",), (0.5, 0.5), (4, 2))
    assert each_node_once([other, other]) == [other, TreeRow("p2", "How else?", ("a",), (0.5, 0.5), (0, 0))]


def test_td_rows_are_the_whole_solutions_with_the_trees_values(tree: Tree) -> None:
    found = {row.steps: row for row in rows(tree, "value", TD) if isinstance(row, TreeRow)}
    assert {steps: row.label for steps, row in found.items()} == {
        ("a", "#### 8"): 1.0,
        ("a", "b", "#### 7"): 0.0,
        ("c", "#### 9"): 0.0,
        ("d", "f", "#### 8"): 1.0,
    }
    # Behind "d" the rollout left the tree.
    assert found[("d", "f", "#### 8")].q_values == (0.6, 0.1, None, None)
    assert found[("d", "f", "#### 8")].visits == (10, 1, 0, 0)


def test_nodes_of_equal_steps_count_together(tree: Tree) -> None:
    add(tree, tree.root, "d", 3, 1.1)
    found = {row.steps: row for row in rows(tree, "value", TREE_Q) if isinstance(row, TreeRow)}
    # (0.1 + 1.1) / (1 + 3)
    assert found[("d",)].q_values == (0.6, pytest.approx(0.3))
    assert found[("d",)].visits == (10, 4)


def test_step_pairs_by_hand(tree: Tree) -> None:
    found = rows(tree, "prm", PPM)
    # Behind the question: better (lead to a right answer) a 0.75 and d 0.1; worse (lead to a wrong one), least Q first: c 0.3,
    # a 0.75. a against c alone has the greater Q first. Behind "a" only "b" goes on. Ends, by their paths' mean Q: right
    # (0.75 + 0.9) / 2 = 0.825; wrong (0.3 + 0.2) / 2 = 0.25 and (0.75 + 0.5 + 0.4) / 3 = 0.55.
    assert found == [
        PairRow("p1", "How many?", ("a",), ("c",)),
        PairRow("p1", "How many?", ("a", "#### 8"), ("c", "#### 9")),
        PairRow("p1", "How many?", ("a", "#### 8"), ("a", "b", "#### 7")),
    ]
    assert rows(tree, "prm", PPM, pairs_per_question=1) == found[:1]


def test_step_pairs_behind_the_most_visited_prefix_come_first(tree: Tree) -> None:
    """A right and a wrong step more behind "a" and "c"; "c" comes first in the tree, but has fewer visits."""
    tree.root.children.reverse()
    a, c = (next(node for node in tree.root.children if node.step.text == text) for text in "ac")
    for parent, text, q, answer in (
        (c, "good", 0.8, "#### 8"),
        (c, "bad", 0.1, "#### 9"),
        (a, "fine", 0.9, "#### 8"),
        (a, "poor", 0.2, "#### 9"),
    ):
        node = add(tree, parent, text, 1, q)
        tree.rollouts.append((node, tree.state(node).then(step(answer)), None))
    pairs = [(row.chosen, row.rejected) for row in rows(tree, "prm", PPM, pairs_per_question=99) if isinstance(row, PairRow)]
    by_parent = [better[:-1] for better, _ in pairs if not better[-1].startswith("####")]
    assert list(dict.fromkeys(by_parent)) == [(), ("a",), ("c",)]  # 10, 6 and 3 visits
    assert (("a", "fine"), ("a", "poor")) in pairs and (("c", "good"), ("c", "bad")) in pairs


class Counting(Task):
    """Counts the solutions that it marks."""

    def __init__(self) -> None:
        self.marked: list[str] = []

    def check(self, solution_text: str, gold: str) -> bool:
        self.marked.append(solution_text)
        return super().check(solution_text, gold)


def test_each_distinct_solution_is_marked_once_for_all_rows(tree: Tree) -> None:
    tree.rollouts.append((tree.root, tree.state(tree.root).then(step("a"), step("#### 8")), 0.4))  # found in the tree too
    tree.rollouts.append((tree.root, tree.state(tree.root).then(Step("lost", terminal=True)), 0.0))
    task = Counting()
    evidence = Evidence.of(tree, PROBLEM, task)
    for method in ("sft", "weighted", "distill", "dpo", "joint"):
        policy_rows(method, evidence, RowsConfig())
    for losses in (CriticLossConfig(), TREE_Q, TD, PPM, PAIRS):
        critic_rows(evidence, RowsConfig(), losses)
    trajectories(evidence, 1, "policy", "train")
    assert sorted(task.marked) == ["a\n#### 8", "a\nb\n#### 7", "c\n#### 9", "d\nf\n#### 8"]


def wide(*siblings: tuple[str, float, bool, bool]) -> Tree:
    """A tree of steps behind the question: text, Q, whether a right and whether a wrong solution lies below."""
    tree = Tree("How many?")
    tree.root.visit_count = 9
    for text, q, right, wrong in siblings:
        node = add(tree, tree.root, text, 1, q)
        for answer, there in (("#### 8", right), ("#### 7", wrong)):
            if there:
                tree.rollouts.append((node, tree.state(node).then(step(answer)), None))
    return tree


def test_the_two_best_stand_against_the_two_worst() -> None:
    tree = wide(
        ("best", 0.9, True, True),
        ("good", 0.8, True, False),
        ("fair", 0.7, True, False),
        ("poor", 0.3, False, True),
        ("bad", 0.2, False, True),
        ("worst", 0.1, False, True),
        ("high, but never right", 0.95, False, True),
        ("low, but never wrong", 0.05, True, False),
    )
    pairs = [(row.chosen[0], row.rejected[0]) for row in rows(tree, "prm", PPM) if isinstance(row, PairRow)]
    assert pairs == [("best", "worst"), ("best", "bad"), ("good", "worst"), ("good", "bad")]


def test_steps_of_equal_q_are_no_pair() -> None:
    assert rows(wide(("x", 0.5, True, False), ("y", 0.5, False, True)), "prm", PPM) == []


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans(), st.booleans()), max_size=7))
def test_what_every_step_pair_has(siblings: list[tuple[float, bool, bool]]) -> None:
    known = {f"s{i}": sibling for i, sibling in enumerate(siblings)}
    tree = wide(*((name, *sibling) for name, sibling in known.items()))
    found = rows(tree, "prm", PPM)
    assert len(found) <= 4
    for row in found:
        assert isinstance(row, PairRow)
        (better, worse) = known[row.chosen[0]], known[row.rejected[0]]
        assert better[0] > worse[0]
        assert better[1]
        assert worse[2]


def solution(label: float, *steps: str) -> SolutionRow:
    return SolutionRow("p1", "How many?", steps, label)


RIGHT = [solution(1.0, "x", "y", "#### 8"), solution(1.0, "a", "b", "c", "#### 8")]
WRONG = [solution(0.0, "z", "#### 1"), solution(0.0, "a", "b", "d", "#### 2"), solution(0.0, "x", "w", "#### 3")]


def test_distance_by_hand() -> None:
    assert distance(("a", "b", "c", "#### 8"), ("a", "b", "d", "#### 2")) == (2, 2)
    assert distance(("a", "b", "c"), ("x", "b", "c")) == (3, 1)  # one line differs, but the beginning does
    assert distance(("a", "b"), ("a", "b", "c")) == (1, 1)
    assert distance(("a",), ("a",)) == (0, 0)


def test_twins_come_first_and_beside_each_other() -> None:
    # Distances: (r0, w0) 3, (r0, w1) 4, (r0, w2) 2; (r1, w0) 4, (r1, w1) 2, (r1, w2) 4. w0 has no twin.
    right, wrong = twins_first(RIGHT, WRONG)
    assert right == RIGHT
    assert wrong == [WRONG[2], WRONG[1], WRONG[0]]
    assert twins_first([], WRONG) == ([], WRONG)
    assert twins_first(RIGHT, []) == (RIGHT, [])


def test_twins_are_preferred_where_not_all_are_kept() -> None:
    tree = Tree("How many?")
    stranger, a = add(tree, tree.root, "z", 1, 0.5), add(tree, tree.root, "a", 1, 0.5)
    add(tree, stranger, "#### 9", 1, 0.5)
    add(tree, a, "#### 8", 1, 0.5)
    add(tree, a, "#### 7", 1, 0.5)
    for kind in ("value", "prm", "orm"):
        kept = {
            negatives: [row.steps for row in rows(tree, kind, CriticLossConfig(), critic_per_question=2, negatives=negatives)]  # type: ignore[union-attr]
            for negatives in ("found", "twins")
        }
        assert kept == {"found": [("a", "#### 8"), ("z", "#### 9")], "twins": [("a", "#### 8"), ("a", "#### 7")]}


def test_outcome_pairs_by_hand() -> None:
    def pair(i: int, j: int) -> PairRow:
        return PairRow("p1", "How many?", RIGHT[i].steps, WRONG[j].steps)

    assert outcome_pairs([*RIGHT, *WRONG]) == [pair(0, 0), pair(1, 1), pair(0, 2)]
    assert outcome_pairs(RIGHT) == outcome_pairs(WRONG) == outcome_pairs([]) == []


def test_orm_pairs_are_of_the_kept_solutions(tree: Tree) -> None:
    found = rows(tree, "orm", PAIRS, critic_per_question=2, negatives="twins")
    assert found == [PairRow("p1", "How many?", ("a", "#### 8"), ("a", "b", "#### 7"))]


def test_other_critics_rows_stay_as_they_are(tree: Tree) -> None:
    plain = critic_rows(Evidence.of(tree, PROBLEM, Task()), RowsConfig())
    for losses, changed in ((TREE_Q, "value"), (TD, "value"), (PPM, "prm"), (PAIRS, "orm")):
        found = critic_rows(Evidence.of(tree, PROBLEM, Task()), RowsConfig(), losses)
        assert {name for name in found if found[name] != plain[name]} == {changed}


def test_a_tree_without_visits_has_no_values(tree: Tree) -> None:
    for node in tree.nodes():
        node.visit_count = 0
    assert rows(tree, "value", TREE_Q) == []
    assert rows(tree, "prm", PPM) == []


def test_round_trip_through_json(tree: Tree) -> None:
    for kind, losses in (("value", TREE_Q), ("value", TD), ("prm", PPM), ("orm", PAIRS)):
        found = rows(tree, kind, losses)
        assert found
        assert [row_from_dict(json.loads(json.dumps(row_to_dict(row)))) for row in found] == found
