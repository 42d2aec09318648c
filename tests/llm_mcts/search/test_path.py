"""Answers by a path, by hand."""

import pytest

from llm_mcts.search.path import by_value, by_visits, follow, leads_throughout
from llm_mcts.tree import Tree
from llm_mcts.types import Step
from tests.search_cases import ListedPolicy, TableCritic, run


def played() -> Tree:
    """a with 6 visits of mean 0.5 and, below it, answer 1 (4 visits) and 2 (1); b with 3 of mean 0.9, which is answer 1 too."""
    tree = Tree("q")
    ends = [Step("#### 1", terminal=True, answer="1"), Step("#### 2", terminal=True, answer="2")]
    tree.expand(tree.root, [Step("a"), ends[0]], [0.5, 0.5])
    a, b = tree.root.children
    tree.expand(a, ends, [0.5, 0.5])
    for node, visits, mean in ((a, 6, 0.5), (b, 3, 0.9), (a.children[0], 4, 0.4), (a.children[1], 1, 0.7)):
        node.visit_count, node.value_sum, node.value = visits, visits * mean, mean
    return tree


def test_a_path_by_visits_and_one_by_value() -> None:
    # Visits to ends: "1" 3 + 4 = 7, "2" 1.
    tree = played()
    result = run(follow(tree, by_visits, ListedPolicy({}), None, 0))
    assert (result.steps, result.confidence) == (["a", "#### 1"], pytest.approx(7 / 8))
    tree.root.children[1].visit_count, tree.root.children[1].value_sum = 3, 1.2  # b's mean 0.4
    result = run(follow(tree, by_value, ListedPolicy({}), None, 0))
    assert (result.steps, result.confidence) == (["a", "#### 2"], pytest.approx(1 / 8))


def test_an_unfinished_path_is_completed_and_the_solution_is_scored() -> None:
    tree = Tree("q")
    tree.expand(tree.root, [Step("a"), Step("b")], [0.5, 0.5])
    tree.root.children[1].visit_count = 1
    policy = ListedPolicy({}, answer="5")
    result = run(follow(tree, by_visits, policy, TableCritic({"b\n#### 5": 0.25}), 0))
    assert (policy.rolled_out, result.answer, result.confidence) == ([("b", 1, 0.0)], "5", 0.0)
    assert [trace.score for trace in result.traces] == [0.25]


def test_the_most_visited_path_leads_by_its_smallest_lead() -> None:
    # a leads b by 3, and #### 1 leads #### 2 by 3: two more visits change nothing, three make them equal.
    tree = played()
    assert leads_throughout(tree.root, 2)
    assert not leads_throughout(tree.root, 3)
    tree.root.children[0].children[1].visit_count = 2  # below a a lead of 2
    assert leads_throughout(tree.root, 1)
    assert not leads_throughout(tree.root, 2)
    unfinished = Tree("q")
    unfinished.expand(unfinished.root, [Step("a")], [1.0])
    assert not leads_throughout(unfinished.root, 0)
