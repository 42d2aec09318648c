"""A saved tree as one page that needs no script and no network.

Each node is a fold with its step, its prior P, its visits N, the mean Q of what was backed up through it and its own leaf
value V. The most visited line is unfolded. Below stand the whole solutions, by their answers, with the critic's scores.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from llm_mcts.tree import Node, Tree
from llm_mcts.types import Trace
from llm_mcts.viewer.markup import Markup, element, join, page
from llm_mcts.viewer.style import BASE_STYLE

_STYLE = """
.tree details, .tree .leaf { margin-left: .3rem; padding-left: .9rem; border-left: 1px solid var(--rule); }
.tree > details { margin-left: 0; padding-left: 0; border-left: 0; }
.tree summary { padding: .15rem 0; }
.tree .leaf { padding-top: .15rem; padding-bottom: .15rem; }
.tree .leaf::before { content: "·"; color: var(--soft); display: inline-block; width: 1rem; }
.stats { color: var(--soft); font-size: .8125rem; font-variant-numeric: tabular-nums; white-space: nowrap; margin-left: .5rem; }
.end { border: 1px solid var(--rule); border-radius: 3px; padding: 0 .3rem; font-size: .8125rem; margin-left: .4rem; }
.solution { margin: .75rem 0; padding-left: .9rem; border-left: 2px solid var(--rule); }
"""


def tree_page(tree: Tree, title: str, facts: Mapping[str, str] | None = None) -> str:
    """The page of a tree; `facts` are shown above it, such as the chosen answer."""
    traces = tree.traces()
    counted = f"{len(tree)} nodes, {len(traces)} whole solutions seen ({len(tree.rollouts)} of them rollouts)."
    known = [element("tr", element("th", name), element("td", value, class_="text")) for name, value in (facts or {}).items()]
    return page(
        title,
        BASE_STYLE + _STYLE,
        element("h1", title),
        element("p", tree.question, class_="text"),
        element("div", element("table", *known), class_="scroll") if known else None,
        element("h2", "Tree"),
        element("p", counted, class_="soft"),
        element("p", _LEGEND, class_="soft small"),
        element("div", _folds(tree), class_="tree"),
        element("h2", "Whole solutions"),
        *_solutions(traces),
    )


_LEGEND = (
    "N visits, Q mean value backed up, P prior, V the node's own value; values are in [0, 1]. "
    "Visits include those to solutions that were evaluated before."
)


def _folds(tree: Tree) -> Markup:
    """All nodes as nested folds. A stack, for a tree may be deeper than Python's own."""
    line = _most_visited(tree.root)
    parts: list[Markup] = []
    stack: list[Node | None] = [tree.root]
    while stack:
        node = stack.pop()
        if node is None:
            parts.append(Markup("</details>"))
        elif not node.children:
            parts.append(element("div", _label(tree, node), class_="leaf"))
        else:
            opening = "<details open>" if node in line else "<details>"
            parts += [Markup(opening), element("summary", _label(tree, node))]
            stack += [None, *reversed(node.children)]
    return Markup("".join(parts))


def _most_visited(node: Node) -> set[Node]:
    """The nodes that one reaches by following the most visited child."""
    line = {node}
    while node.children:
        node = max(node.children, key=lambda child: child.visit_count)
        line.add(node)
    return line


def _label(tree: Tree, node: Node) -> Markup:
    is_root = node.parent is None
    text = ("\n".join(step.text for step in tree.prefix) or "question") if is_root else node.step.text or "(empty step)"
    numbers = [f"N {node.visit_count}"]
    if node.visit_count:
        numbers.append(f"Q {node.q_value:.3f}")
    if not is_root:
        numbers.append(f"P {node.prior:.3f}")
    if node.value is not None:
        numbers.append(f"V {node.value:.3f}")
    end = None
    if node.terminal:
        end = element("span", "no answer" if node.step.answer is None else f"answer {node.step.answer}", class_="end")
    name = element("span", text, class_="soft" if is_root and not tree.prefix else "text")
    return join(name, end, element("span", " · ".join(numbers), class_="stats"))


def _solutions(traces: Sequence[Trace]) -> list[Markup]:
    """A table of the answers, then each answer's distinct solutions."""
    if not traces:
        return [element("p", "None was reached.", class_="soft")]
    groups: dict[str | None, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.state.answer].append(trace)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    head = element(
        "tr", element("th", "answer"), *(element("th", t, class_="num") for t in ("solutions", "share", "best score"))
    )
    rows = [
        element(
            "tr",
            element("td", "none stated" if answer is None else answer, class_="soft" if answer is None else "text"),
            element("td", str(len(group)), class_="num"),
            element("td", f"{100 * len(group) / len(traces):.0f} %", class_="num"),
            element("td", _score(_best(group)), class_="num"),
        )
        for answer, group in ordered
    ]
    return [element("div", element("table", head, *rows), class_="scroll"), *(_group(*group) for group in ordered)]


def _group(answer: str | None, traces: Sequence[Trace]) -> Markup:
    texts: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        texts[trace.state.text].append(trace)
    found = sorted(texts.items(), key=lambda pair: _best(pair[1]) or 0.0, reverse=True)
    solutions = [
        element(
            "div",
            element("div", text or "(empty)", class_="text"),
            element(
                "div",
                f"score {_score(_best(same))}" + (f", seen {len(same)} times" if len(same) > 1 else ""),
                class_="soft small",
            ),
            class_="solution",
        )
        for text, same in found
    ]
    heading = "No answer stated" if answer is None else f"Answer {answer}"
    return element(
        "details", element("summary", f"{heading}: {len(texts)} different solution{'' if len(texts) == 1 else 's'}"), *solutions
    )


def _best(traces: Sequence[Trace]) -> float | None:
    return max((trace.score for trace in traces if trace.score is not None), default=None)


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"
