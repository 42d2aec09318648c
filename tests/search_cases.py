"""What the tests of the searches share: scripted policies and critics, a game with a known optimum, checks of a tree.

The checks are functions that raise AssertionError.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import astuple
from math import log
from typing import Any, TypeVar

import pytest

from llm_mcts.engines.base import Request
from llm_mcts.engines.scripted import Script, ScriptedEngine
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.result import SearchResult
from llm_mcts.search import SEARCHES
from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.merging import MergeConfig
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, State, Step

T = TypeVar("T")

QUESTION = "Which way?"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine."""
    return asyncio.run(work)


def solution(*lines: str, answer: str | None = None, question: str = QUESTION) -> State:
    """A whole solution that ends in `answer`."""
    last = Step("the end" if answer is None else f"#### {answer}", terminal=True, answer=answer)
    return State(question, (*map(Step, lines), last))


class ListedPolicy:
    """Proposes what `steps` lists for a state's text; a rollout answers `answer` at once."""

    def __init__(self, steps: Mapping[str, Sequence[Step]], answer: str = "1") -> None:
        self.steps, self.answer = steps, answer
        self.proposed: list[str] = []
        self.rolled_out: list[tuple[str, int, float | None]] = []

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        self.proposed.append(state.text)
        return list(self.steps.get(state.text, ()))[:n]

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self.rolled_out.append((state.text, n, temperature))
        return [state.then(Step(f"#### {self.answer}", terminal=True, answer=self.answer))] * n


class TableCritic:
    """Scores a state by its text; `asked` keeps the texts of each call."""

    def __init__(self, scores: Mapping[str, float], default: float | None = None) -> None:
        self.scores, self.default = scores, default
        self.asked: list[list[str]] = []

    async def score(self, states: Sequence[State]) -> list[float]:
        self.asked.append([state.text for state in states])
        return [self.scores[s.text] if self.default is None else self.scores.get(s.text, self.default) for s in states]


class NoiseCritic:
    """A fixed pseudo-random score for every state."""

    async def score(self, states: Sequence[State]) -> list[float]:
        return [random.Random(f"{s.question}|{s.text}").random() for s in states]


def parent(visits: int, value_sum: float, children: Sequence[tuple[int, float, float]], in_flight: Sequence[int] = ()) -> Node:
    """A node whose children A, B, … have these (visits, value sum, prior) and simulations in flight."""
    node = Node(Step(""))
    node.visit_count, node.value_sum = visits, value_sum
    for i, (n, w, p) in enumerate(children):
        child = Node(Step("ABCDEF"[i]), p, node, i)
        child.visit_count, child.value_sum = n, w
        child.in_flight = in_flight[i] if in_flight else 0
        node.in_flight += child.in_flight
        node.children.append(child)
    return node


# A tree that is small enough to trace by hand: the policy's steps, the critic's values, and one simulation after the other.


def traced_step(text: str, p: float, answer: str | None = None) -> Step:
    return Step(text, log(p), 1, answer is not None, answer)


TRACED_STEPS = {
    "": [traced_step("a", 0.6), traced_step("b", 0.4)],
    "a": [traced_step("c", 0.5), traced_step("d", 0.5)],
    "b": [traced_step("#### 1", 0.7, "1"), traced_step("e", 0.3)],
}
TRACED_VALUES = {"": 0.5, "a": 0.2, "b": 0.8, "b\n#### 1": 1.0, "b\ne": 0.4, "a\nc": 0.1, "a\nd": 0.3, "a\n#### 5": 0.6}
PLAIN = MCTSConfig(num_simulations=3, c_puct=1.0, rollouts=0, rollout_weight=0.0, num_parallel=1)


def traced(config: MCTSConfig, policy: Policy | None = None, critic: Critic | None = None, seed: int = 0) -> SearchResult:
    return run(
        mcts(QUESTION, policy or ListedPolicy(TRACED_STEPS), critic or TableCritic(TRACED_VALUES, default=0.5), config, seed)
    )


def traced_tree(config: MCTSConfig, policy: Policy | None = None, critic: Critic | None = None, seed: int = 0) -> Tree:
    tree = traced(config, policy, critic, seed).tree
    assert tree is not None
    return tree


def statistics(tree: Tree) -> dict[str, tuple[int, float]]:
    return {n.key(): (n.visit_count, pytest.approx(n.value_sum)) for n in tree.nodes() if n.visit_count}


def tree_cases() -> dict[str, tuple[Callable[..., Any], Any]]:
    """Every search that grows a tree, with a small configuration; `mcts` also with its parts changed."""
    small = {"num_simulations": 24, "num_parallel": 3, "expansion_width": 4}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "beam": ("beam", {"num_candidates": 6, "beam_width": 3}),
        "dvts": ("dvts", {"num_candidates": 6, "subtree_width": 2}),
        "mcts": ("mcts", small),
        "mcts one at a time": ("mcts", {**small, "num_parallel": 1}),
        "mcts without revisits": ("mcts", {**small, "revisit": False}),
        "mcts uct, tree-wide Q": ("mcts", {**small, "selection": "uct", "normalise": "tree"}),
        "mcts siblings' Q": ("mcts", {**small, "normalise": "siblings", "rollouts": 2}),
        "mcts progressive": ("mcts", {**small, "widening": WideningConfig(kind="progressive", k=1.5)}),
        "mcts by the code's importance": ("mcts", {**small, "widening": WideningConfig(kind="importance_code", alpha=5.0)}),
        "alphago": ("alphago", small),
        "alphazero": ("alphazero", small),
        "alphallm": ("alphallm", {**small, "merge": MergeConfig(kind="edit", distance=2, retries=2)}),
        "gumbel": ("gumbel", {"num_simulations": 24, "expansion_width": 4}),
        "rest_mcts": ("rest_mcts", small),
    }
    return {title: (SEARCHES[name][0], SEARCHES[name][1](**settings)) for title, (name, settings) in configs.items()}


def noise_script(width: int = 3, depth: int = 3) -> Script:
    """A fixed pseudo-random step tree: `width` lines a place, answers from `depth` lines on and now and then before."""

    def script(prompt: str) -> list[tuple[str, float]]:
        lines = prompt.rpartition("Answer:\n")[2].splitlines()
        draw = random.Random(prompt)
        if lines and lines[-1].startswith("####"):
            return []
        if len(lines) >= depth:
            return [(f"#### {draw.randrange(4)}", 1.0)]
        weights = [draw.random() + 0.05 for _ in range(width)]
        names = [f"#### {i}" if draw.random() < 0.15 else f"step {len(lines)}{'abcdef'[i]}" for i in range(width)]
        return [(name, w / sum(weights)) for name, w in zip(names, weights, strict=True)]

    return script


def scripted(script: Script | None = None, turns: Callable[[Request], int] = lambda _: 0) -> tuple[LMPolicy, ScriptedEngine]:
    """A language-model policy over a scripted engine, and that engine."""
    engine = ScriptedEngine(script or noise_script(), turns)
    return LMPolicy(engine, PromptFormat(PromptConfig())), engine


def shuffled(request: Request) -> int:
    """A delay for `ScriptedEngine.turns` that puts replies out of order."""
    return random.Random(f"{request.seed}|{''.join(request.prompt)}").randrange(9)


def summary(result: SearchResult) -> dict[str, Any]:
    """All of a result but its cost."""
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "state": result.state.text,
        "traces": [(t.state.text, t.state.answer, t.score) for t in result.traces],
        "tree": result.tree.to_dict() if result.tree else None,
    }


class SecretGame:
    """`depth` choices among `width` steps; the reward is the share of choices that equal the secret's.

    The enumerable truth: one of the width^depth solutions is worth 1, and every other at most 1 - 1/depth. The policy
    finds the right step the least likely of all. `noise` is how far the critic may be off on unfinished solutions.
    """

    def __init__(self, number: int, width: int = 3, depth: int = 4, noise: float = 0.0) -> None:
        draw = random.Random(f"secret {number}")
        self.secret = "".join(draw.choice("abcde"[:width]) for _ in range(depth))
        self.number, self.width, self.depth, self.noise = number, width, depth, noise

    def _step(self, state: State, choice: str) -> Step:
        at = len(state.steps)
        right = choice == self.secret[at]
        p = 0.2 if right else 0.8 / (self.width - 1)
        end = at + 1 == self.depth
        answer = "".join(s.text for s in state.steps) + choice if end else None
        return Step(choice, log(p), 1, end, answer)

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        return [self._step(state, choice) for choice in "abcde"[: self.width]]

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        ends = []
        for i in range(n):
            draw, end = random.Random(f"{seed} {i}"), state
            while not end.terminal:
                end = end.then(self._step(end, draw.choice("abcde"[: self.width])))
            ends.append(end)
        return ends

    async def score(self, states: Sequence[State]) -> list[float]:
        return [self._score(state) for state in states]

    def _score(self, state: State) -> float:
        right = sum(step.text == choice for step, choice in zip(state.steps, self.secret, strict=False))
        if state.terminal:
            return right / self.depth
        # The mean over all completions, off by at most `noise`.
        mean = (right + (self.depth - len(state.steps)) / self.width) / self.depth
        off = self.noise * (2 * random.Random(f"{self.number} {state.text}").random() - 1)
        return min(1.0, max(0.0, mean + off))


def check_visits(tree: Tree) -> None:
    """N(parent) = 1 + sum of N(children): one visit evaluated the node itself, all others went on."""
    for node in tree.nodes():
        if node.children:
            below = sum(child.visit_count for child in node.children)
            assert node.visit_count == 1 + below, f"'{node.key()}': {node.visit_count} visits, 1 + {below} expected"


def check_value_sums(tree: Tree) -> None:
    """W(parent) = its own value, as often as a simulation ended there, + sum of W(children). A beam's root has no value."""
    for node in tree.nodes():
        if node.visit_count:
            ended = node.visit_count - sum(child.visit_count for child in node.children)
            assert ended >= (node.value is not None), f"'{node.key()}': {node.visit_count} visits, {ended} ended there"
            assert node.value is not None or (node is tree.root and not ended), f"'{node.key()}' was visited but has no value"
            expected = ended * (node.value or 0.0) + sum(child.value_sum for child in node.children)
            assert abs(node.value_sum - expected) < 1e-9, f"'{node.key()}': sum {node.value_sum}, expected {expected}"


def check_root_visits(tree: Tree, num_simulations: int, num_parallel: int = 1) -> None:
    """Every simulation went through the root, which was evaluated first; the last wave may go beyond the number."""
    over = tree.root.visit_count - 1 - num_simulations
    assert 0 <= over < num_parallel, f"{tree.root.visit_count} visits for 1 + {num_simulations} simulations"


def check_idle(tree: Tree) -> None:
    """No virtual loss is left behind."""
    for node in tree.nodes():
        assert node.in_flight == 0, f"'{node.key()}' has {node.in_flight} in flight"


def check_depth(tree: Tree, max_depth: int) -> None:
    """No node lies deeper than allowed."""
    for node in tree.nodes():
        assert node.depth <= max_depth, f"'{node.key()}' lies {node.depth} deep, allowed {max_depth}"


def check_priors(tree: Tree) -> None:
    """Priors of siblings are a distribution, and follow their log-probabilities per token."""
    for node in tree.nodes():
        if node.children:
            assert abs(sum(child.prior for child in node.children) - 1) < 1e-9, f"below '{node.key()}'"
            by_prior = sorted(node.children, key=lambda child: child.prior)
            rates = [child.step.logprob / child.step.num_tokens for child in by_prior]
            assert all(a <= b + 1e-9 for a, b in itertools.pairwise(rates)), f"order below '{node.key()}'"


def leaf_values(node: Node) -> list[float]:
    """The leaf values from `node` down that were backed up through it."""
    own = [] if node.value is None else [node.value]
    return own + [value for child in node.children for value in leaf_values(child)]


def check_q_range(tree: Tree) -> None:
    """A mean lies between the minimum and the maximum of what it is the mean of."""
    for node in tree.nodes():
        if node.visit_count:
            values = leaf_values(node)
            assert min(values) - 1e-9 <= node.q_value <= max(values) + 1e-9, f"'{node.key()}': q {node.q_value} of {values}"


def _row(node: Node) -> tuple[Any, ...]:
    return node.key(), astuple(node.step), node.prior, node.visit_count, node.value_sum, node.value


def check_round_trip(tree: Tree) -> None:
    """Through JSON and back nothing is lost."""
    again = Tree.from_dict(json.loads(json.dumps(tree.to_dict(), allow_nan=False)))
    assert again.question == tree.question
    assert [_row(n) for n in again.nodes()] == [_row(n) for n in tree.nodes()]
    assert [(n.key(), astuple(s), v) for n, s, v in again.rollouts] == [(n.key(), astuple(s), v) for n, s, v in tree.rollouts]


def check_no_gold(requests: Sequence[Request], golds: Sequence[str]) -> None:
    """No prompt holds a gold answer."""
    for request in requests:
        prompt = "".join(request.prompt)
        for gold in golds:
            assert gold not in prompt, f"gold answer {gold} in a prompt: {prompt!r}"
