"""The page of a tree, and HTML that is safe by construction."""

from llm_mcts.tree import Tree
from llm_mcts.types import Step
from llm_mcts.viewer.markup import Markup, element, html, join, page, plain
from llm_mcts.viewer.page import tree_page


def grown() -> Tree:
    tree = Tree("What is 1 + 1?")
    tree.expand(tree.root, [Step("one <step>"), Step("other"), Step("#### 3", terminal=True, answer="3")], [0.5, 0.25, 0.25])
    first, _, third = tree.root.children
    tree.expand(first, [Step("#### 2", terminal=True, answer="2")], [1.0])
    (end,) = first.children
    for node, visits, total, value in (
        (tree.root, 9, 4.5, 0.125),
        (first, 6, 4.5, 0.75),
        (end, 4, 3.6, 0.9),
        (third, 2, 0.4, 0.2),
    ):
        node.visit_count, node.value_sum, node.value = visits, total, value
    tree.rollouts.append((first, tree.state(first).then(Step("#### 2", terminal=True, answer="2")), 0.6))
    return tree


def test_a_tree_page_shows_each_node() -> None:
    text = tree_page(grown(), "A title", {"gold answer": "2"})
    assert "N 9 · Q 0.500 · V 0.125" in text
    assert 'one &lt;step&gt;</span><span class="stats">N 6 · Q 0.750 · P 0.500 · V 0.750' in text
    assert "N 4 · Q 0.900 · P 1.000 · V 0.900" in text
    places = [text.index(f'">{step}</span>') for step in ("one &lt;step&gt;", "#### 2", "other", "#### 3")]
    assert places == sorted(places)
    assert "N 0 · P 0.250" in text  # never visited: no Q, no V
    assert "5 nodes, 3 whole solutions seen (1 of them rollouts)" in text
    assert "<th>gold answer</th>" in text


def test_the_most_visited_line_is_unfolded() -> None:
    tree = grown()
    other = tree.root.children[1]
    tree.expand(other, [Step("#### 4", terminal=True, answer="4")], [1.0])
    text = tree_page(tree, "A title").split("Whole solutions")[0]
    assert text.count("<details open>") == 2  # the root and "one <step>"
    assert text.count("<details>") == 1
    assert text.count("</details>") == 3


def test_solutions_are_grouped_by_answer() -> None:
    text = tree_page(grown(), "A title").split("Whole solutions")[1]
    # Answer 2 twice of three: an end of the tree with 0.9 and an equal rollout with 0.6.
    assert '<td class="text">2</td><td class="num">2</td><td class="num">67 %</td><td class="num">0.900</td>' in text
    assert '<td class="text">3</td><td class="num">1</td><td class="num">33 %</td><td class="num">0.200</td>' in text
    assert "Answer 2: 1 different solution<" in text
    assert "score 0.900, seen 2 times" in text


def test_a_tree_deeper_than_the_stack() -> None:
    tree = Tree("q")
    node = tree.root
    for _ in range(3000):
        tree.expand(node, [Step("on")], [1.0])
        node = node.children[0]
    assert tree_page(tree, "deep").count("</details>") == 3000


def test_a_tree_that_is_only_a_root() -> None:
    assert "None was reached." in tree_page(Tree("q"), "bare")


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "<b>", Markup("<i>x</i>"), None, class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i>x</i></p>'
    assert element("meta", http_equiv="x") == '<meta http-equiv="x">'
    assert element("details", open=True, hidden=False, title=None) == "<details open></details>"
    assert isinstance(join("&", Markup("&amp;")), Markup)
    assert join("&", Markup("&amp;")) == "&amp;&amp;"
    assert html(None) == ""
    assert "<title>&lt;x&gt;</title>" in page("<x>", "")


def test_what_a_page_cannot_show_is_replaced() -> None:
    assert plain("a\x00b\ud800c\r\nd\te") == "a\ufffdb\ufffdc\nd\te"
    assert plain("abc\u202edef") == "abc[U+202E]def"  # turns the direction of what follows
    page("\ud800", "", "\ud800").encode()
