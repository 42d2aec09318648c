"""The tree: counts, links, paths and JSON."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.errors import DataError
from llm_mcts.tree import Node, Scorer, Tree
from llm_mcts.types import State, Step, Trace
from tests.search_cases import check_round_trip, solution


def small_tree() -> Tree:
    """A root with children a and b; b has the terminal child c."""
    tree = Tree("q")
    tree.expand(tree.root, [Step("a", -1.0, 3), Step("b", -2.0, 4)], [0.75, 0.25])
    tree.expand(tree.root.children[1], [Step("#### 5", -0.5, 2, True, "5")], [1.0])
    return tree


def test_q_value_is_the_mean_and_0_before_the_first_visit() -> None:
    node = Node(Step("a"))
    assert node.q_value == 0.0
    node.visit_count, node.value_sum = 4, 1.0
    assert node.q_value == 0.25  # 1 / 4


def test_places_and_states() -> None:
    tree = small_tree()
    a, b = tree.root.children
    (c,) = b.children
    assert [n.key() for n in (tree.root, a, b, c)] == ["", "0", "1", "1.0"]
    assert [n.depth for n in (tree.root, a, b, c)] == [0, 1, 1, 2]
    assert c.path() == [tree.root, b, c]
    assert [n.terminal for n in (tree.root, a, b, c)] == [False, False, False, True]
    assert tree.state(tree.root) == State("q")
    assert tree.state(c).text == "b\n#### 5"
    assert tree.state(c).answer == "5"
    assert tree.state(b).answer is None


def test_nodes_come_parents_first_and_siblings_in_order() -> None:
    tree = small_tree()
    tree.expand(tree.root.children[0], [Step("d"), Step("e")], [0.5, 0.5])
    assert [n.key() for n in tree.nodes()] == ["", "0", "0.0", "0.1", "1", "1.0"]
    assert len(tree) == 6


def test_only_a_leaf_is_expanded() -> None:
    tree = small_tree()
    with pytest.raises(ValueError, match="'1' has children already"):
        tree.expand(tree.root.children[1], [Step("x")], [1.0])
    with pytest.raises(ValueError, match="shorter"):
        tree.expand(tree.root.children[0], [Step("x"), Step("y")], [1.0])


def test_written_form() -> None:
    tree = small_tree()
    tree.root.visit_count, tree.root.value_sum, tree.root.value = 2, 0.75, 0.5
    b = tree.root.children[1]
    b.visit_count, b.value_sum, b.value = 1, 0.25, 0.25
    tree.rollouts.append((b, tree.state(b).then(Step("#### 7", terminal=True, answer="7")), 0.125))
    assert tree.to_dict() == {
        "version": 1,
        "question": "q",
        "scored_by": "critic",
        "nodes": [
            {
                "parent": None,
                "text": "",
                "logprob": 0.0,
                "tokens": 1,
                "prior": 1.0,
                "visits": 2,
                "value_sum": 0.75,
                "value": 0.5,
            },
            {
                "parent": 0,
                "text": "a",
                "logprob": -1.0,
                "tokens": 3,
                "prior": 0.75,
                "visits": 0,
                "value_sum": 0.0,
                "value": None,
            },
            {
                "parent": 0,
                "text": "b",
                "logprob": -2.0,
                "tokens": 4,
                "prior": 0.25,
                "visits": 1,
                "value_sum": 0.25,
                "value": 0.25,
            },
            {
                "parent": 2,
                "text": "#### 5",
                "logprob": -0.5,
                "tokens": 2,
                "terminal": True,
                "answer": "5",
                "prior": 1.0,
                "visits": 0,
                "value_sum": 0.0,
                "value": None,
            },
        ],
        "rollouts": [
            {
                "node": 2,
                "steps": [{"text": "#### 7", "logprob": 0.0, "tokens": 1, "terminal": True, "answer": "7"}],
                "score": 0.125,
            }
        ],
    }
    check_round_trip(tree)


def test_a_record_read_back_keeps_every_field_of_a_step() -> None:
    again = Tree.from_dict(json.loads(json.dumps(small_tree().to_dict())))
    step = again.root.children[1].children[0].step
    assert (step.text, step.logprob, step.num_tokens, step.terminal, step.answer) == ("#### 5", -0.5, 2, True, "5")


def broken(change: dict[str, Any], row: int | None = None) -> dict[str, Any]:
    data = small_tree().to_dict()
    data["rollouts"] = [{"node": 0, "steps": [], "score": None}]
    target = data if row is None else data["nodes"][row]
    for key, value in change.items():
        if value is KeyError:
            del target[key]
        else:
            target[key] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        broken({"question": KeyError}),
        broken({"scored_by": KeyError}),
        broken({"scored_by": "somebody"}),
        broken({"nodes": KeyError}),
        broken({"nodes": None}),
        broken({"rollouts": KeyError}),
        broken({"prior": KeyError}, row=1),
        broken({"text": KeyError}, row=1),
        broken({"visits": KeyError}, row=0),
        broken({"parent": 9}, row=2),
        broken({"parent": "0"}, row=2),
        broken({"rollouts": [{"node": 9, "steps": [], "score": None}]}),
        broken({"rollouts": [{"node": 0, "steps": [{}], "score": None}]}),
        [],
        "a tree",
    ],
    ids=lambda data: str(data)[:40],
)
def test_a_broken_record_is_an_error(data: Any) -> None:
    with pytest.raises(DataError, match="a tree record is broken"):
        Tree.from_dict(data)


@pytest.mark.parametrize(
    "data",
    [broken({"parent": -1}, row=2), broken({"parent": None}, row=2), broken({"nodes": [], "rollouts": []})],
    ids=["last", "two roots", "none"],
)
def test_a_record_that_is_no_tree_is_an_error(data: Any) -> None:
    with pytest.raises(DataError):
        Tree.from_dict(data)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(-50, 0)
unit = st.floats(0, 1)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Trees of any shape with any statistics."""
    tree = Tree(draw(texts))
    for _ in range(draw(st.integers(0, 6))):
        leaves = [n for n in tree.nodes() if not n.children and not n.terminal]
        if leaves:
            node = draw(st.sampled_from(leaves))
            steps = draw(
                st.lists(
                    st.builds(Step, texts, numbers, st.integers(1, 99))
                    | st.builds(Step, texts, numbers, st.integers(1, 99), st.just(True), st.none() | texts),
                    min_size=1,
                    max_size=3,
                )
            )
            tree.expand(node, steps, draw(st.lists(unit, min_size=len(steps), max_size=len(steps))))
    for node in tree.nodes():
        node.visit_count = draw(st.integers(0, 9))
        node.value_sum, node.value = draw(unit) * node.visit_count, draw(st.none() | unit)
        if draw(st.booleans()):
            end = tree.state(node).then(*solution("x", answer=draw(st.none() | texts)).steps)
            tree.rollouts.append((node, end, draw(st.none() | unit)))
    return tree


@settings(max_examples=40)
@given(trees())
def test_json_round_trip(tree: Tree) -> None:
    check_round_trip(tree)


@settings(max_examples=40)
@given(trees())
def test_every_node_knows_its_place(tree: Tree) -> None:
    for node in tree.nodes():
        found = tree.root
        for index in map(int, node.key().split(".") if node.key() else []):
            found = found.children[index]
        assert found is node
        assert node.depth == len(node.path()) - 1
        assert len(tree.state(node).steps) == node.depth


@pytest.mark.parametrize("lost", ["terminal", "answer", "logprob", "value_sum"])
def test_the_round_trip_check_detects_planted_losses(lost: str) -> None:
    class Forgetful(Tree):
        def to_dict(self) -> dict[str, Any]:
            data = super().to_dict()
            for row in data["nodes"]:
                row[lost] = {"terminal": False, "answer": None}.get(lost, 0.0)
            return data

    for kind in (Tree, Forgetful):
        tree = kind("q")
        tree.expand(tree.root, [Step("#### 5", -0.5, 2, True, "5")], [1.0])
        tree.root.value_sum = 0.25
        if kind is Tree:
            check_round_trip(tree)
        else:
            with pytest.raises(AssertionError):
                check_round_trip(tree)


def test_a_tree_of_another_version_is_refused() -> None:
    for version in (None, 0, 2):
        with pytest.raises(DataError, match=f"format version {version}; expected 1: search the question again"):
            Tree.from_dict(small_tree().to_dict() | {"version": version})


def test_a_tree_remembers_who_scored_it() -> None:
    tree = small_tree()
    tree.rollouts.append((tree.root, tree.state(tree.root).then(Step("#### 7", terminal=True, answer="7")), 0.5))
    assert [trace.score for trace in tree.traces()] == [0.5]
    tree.scored_by = "agreement"
    again = Tree.from_dict(json.loads(json.dumps(tree.to_dict())))
    assert again.scored_by == again.subtree(again.root).scored_by == "agreement"
    assert [trace.score for trace in again.traces()] == [None]
    assert [trace.score for trace in again.traces(votes=True)] == [0.5]


@pytest.mark.parametrize(("first", "other"), [("critic", "agreement"), ("agreement", "critic")])
def test_a_tree_that_was_scored_is_not_scored_by_other_means(first: Any, other: Any) -> None:
    message = f"the tree was scored by {first}, and this search scores by {other}; .*critic, or start a new tree"
    empty, valued, sampled = Tree("q"), Tree("q"), Tree("q")
    valued.root.value = 0.5
    sampled.rollouts.append((sampled.root, solution("x", answer="1", question="q"), 0.5))
    for tree in (empty, valued, sampled):
        tree.scored_by = first
        assert Tree.of("q", tree, first).scored_by == first
    assert Tree.of("q", empty, other).scored_by == other  # no score yet
    for tree in (valued, sampled):
        with pytest.raises(DataError, match=message):
            Tree.of("q", tree, other)
        assert tree.scored_by == first


def test_samples_that_nobody_scored_may_be_searched_with_any_scorer() -> None:
    for scorer in get_args(Scorer):
        samples = Tree.of_samples("q", [Trace(solution("x", answer="1", question="q"))])
        assert Tree.of("q", samples, scorer).scored_by == scorer


def test_a_subtree_keeps_the_value_range_and_the_counts_of_its_parts() -> None:
    tree = small_tree()
    b = tree.root.children[1]
    tree.value_range = (0.25, 0.75)
    tree.annotations["asked"].update({tree.root: 5, b: 3})
    tree.annotations["draw"].update({b: 2, b.children[0]: 1})
    part = tree.subtree(b)
    assert part.value_range == (0.25, 0.75)
    assert part.annotations == {"asked": {part.root: 3}, "width": {}, "draw": {part.root.children[0]: 1}}


def test_counts_of_parts_are_saved_with_their_nodes() -> None:
    tree = small_tree()
    b = tree.root.children[1]
    tree.annotations["width"].update({tree.root: 4, b: 0})
    tree.annotations["draw"][b] = 2
    data = tree.to_dict()
    counts = [{key: row[key] for key in ("draw", "width", "asked") if key in row} for row in data["nodes"]]
    assert counts == [{"width": 4}, {}, {"draw": 2}, {}]
    again = Tree.from_dict(json.loads(json.dumps(data)))
    assert again.annotations == {"width": {again.root: 4}, "draw": {again.root.children[1]: 2}, "asked": {}}
