"""Answers by a path: down the tree by visits, as AlphaGo and AlphaZero play, or by mean value."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from llm_mcts.result import SearchResult
from llm_mcts.search.contracts import completions, critic_scores
from llm_mcts.search.voting import Choice, choose
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, Trace

Preference = Callable[[Node], Any]
"""A sort key: of the visited children a path goes to the one where it is highest, the first of equals."""
by_visits: Preference = attrgetter("visit_count")
by_value: Preference = attrgetter("q_value")


async def decide(
    tree: Tree, choice: Choice | None, preference: Preference, policy: Policy, critic: Critic | None, seed: int
) -> SearchResult:
    """The answer by a choice among the solutions seen; by a path where there is none, or with choice None."""
    traces = tree.traces()
    if choice is None or not traces:
        result = await follow(tree, preference, policy, critic, seed)
    else:
        result = choose(tree.question, traces, choice)
    result.tree = tree
    return result


async def follow(tree: Tree, preference: Preference, policy: Policy, critic: Critic | None, seed: int) -> SearchResult:
    """Go down by `preference`; where the tree ends before the solution, the policy completes it greedily.

    The confidence is the answer's share of the visits to finished solutions.
    """
    node, traces = tree.root, tree.traces()
    while visited := [child for child in node.children if child.visit_count]:
        node = max(visited, key=preference)
    state = tree.state(node)
    if not state.terminal:
        (state,) = await completions(policy, state, 1, seed, temperature=0.0)
        traces.append(Trace(state, (await critic_scores(critic, [state]))[0] if critic else None))
    return SearchResult(tree.question, state.answer, state, _visit_share(tree, state.answer), traces)


def _visit_share(tree: Tree, answer: str | None) -> float:
    """The answer's share of the visits to finished solutions; 0 where there is none."""
    ends = [node for node in tree.nodes() if node.terminal]
    total = sum(node.visit_count for node in ends)
    same = sum(node.visit_count for node in ends if node.step.answer == answer)
    return same / total if total and answer is not None else 0.0


def leads_throughout(node: Node, left: int) -> bool:
    """Whether the most visited path from `node` ends in a solution and no sibling on it can overtake within `left` visits."""
    while node.children:
        node, *others = sorted(node.children, key=lambda child: -child.visit_count)
        if others and node.visit_count - others[0].visit_count <= left:
            return False
    return node.terminal
