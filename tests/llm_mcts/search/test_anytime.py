"""A search can be stopped, saved, loaded and continued; begun again below a chosen step; cancelled without a trace."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.engines.base import Completion, Request
from llm_mcts.errors import ConfigError, CriticError, DataError, PolicyError
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.result import SearchResult
from llm_mcts.runs.trees import load_tree, save_tree
from llm_mcts.search import SEARCHES
from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.tree import Tree
from llm_mcts.types import State, Step
from tests.search_cases import (
    QUESTION,
    ListedPolicy,
    NoiseCritic,
    check_depth,
    check_idle,
    check_priors,
    check_q_range,
    check_round_trip,
    check_value_sums,
    noise_script,
    run,
    scripted,
    summary,
    tree_cases,
)

CASES = tree_cases()
SIMULATING = [name for name in CASES if name not in ("beam", "dvts", "gumbel")]
ALPHALLM = CASES["alphallm"][1]


def search(name: str, tree: Tree | None = None, seed: int = 0, **changes: Any) -> SearchResult:
    search, config = CASES[name]
    policy, _ = scripted(noise_script(width=5, depth=4))
    return run(search(QUESTION, policy, NoiseCritic(), replace(config, **changes), seed, tree))


def through_a_file(result: SearchResult, folder: Path) -> Tree:
    assert result.tree is not None
    path = folder / "tree.json.gz"
    save_tree(result.tree, path)
    return load_tree(path)


@pytest.mark.parametrize("budget", [{"num_simulations": 5}, {"num_simulations": 10}, {"max_tokens": 12}, {"max_lm_calls": 4}])
@pytest.mark.parametrize("name", SIMULATING)
def test_a_stopped_tree_goes_on_to_the_same_tree(name: str, budget: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(3):
        stopped = search(name, seed=seed, **budget)
        tree = through_a_file(stopped, tmp_path)
        whole = search(name, seed=seed)
        assert tree.root.visit_count < whole.tree.root.visit_count  # type: ignore[union-attr]
        assert summary(search(name, tree, seed)) == summary(whole)


@pytest.mark.parametrize("limit", [1, 6, 14])
@pytest.mark.parametrize("name", ["beam", "dvts", "gumbel"])
def test_a_search_with_a_plan_goes_on_under_the_same_plan(name: str, limit: int, tmp_path: Path) -> None:
    for seed in range(3):
        stopped = search(name, seed=seed, max_tokens=limit)
        whole = search(name, seed=seed)
        assert len(stopped.tree) < len(whole.tree)  # type: ignore[arg-type]
        assert summary(search(name, through_a_file(stopped, tmp_path), seed)) == summary(whole)


@pytest.mark.parametrize("name", CASES)
def test_a_finished_search_costs_nothing_more(name: str) -> None:
    first = search(name)
    search_, config = CASES[name]
    policy, engine = scripted(noise_script(width=5, depth=4))
    again = run(search_(QUESTION, policy, NoiseCritic(), config, 0, first.tree))
    assert summary(again) == summary(first)
    # `visits` may complete its path once more; nothing else is asked.
    assert [request.temperature for request in engine.requests] in ([], [0.0])


@pytest.mark.parametrize("name", CASES)
def test_budgets_count_a_trees_whole_life(name: str, tmp_path: Path) -> None:
    tree = through_a_file(search(name, max_tokens=20), tmp_path)
    before = tree.usage.generated_tokens
    assert before >= 20
    search(name, tree, max_tokens=20, answer="vote")
    assert tree.usage.generated_tokens == before


def test_a_tree_that_was_left_is_entered_again_where_revisits_are_allowed() -> None:
    settings = {"num_parallel": 1, "num_simulations": 300, "max_depth": 2}
    closed = search("mcts without revisits", **settings).tree
    assert closed is not None
    before = closed.root.visit_count
    search("mcts", closed, **{**settings, "num_simulations": before + 20})
    assert closed.root.visit_count == before + 21


def test_another_seed_draws_differently_when_it_goes_on(tmp_path: Path) -> None:
    tree = through_a_file(search("mcts", num_simulations=5), tmp_path)
    assert summary(search("mcts", tree, seed=1)) != summary(search("mcts"))


@pytest.mark.parametrize("name", CASES)
def test_a_tree_of_another_question_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="the tree is of question"):
        search(name, Tree("another question"))


@pytest.mark.parametrize("name", ["greedy", "self_consistency", "best_of_n"])
def test_searches_without_a_tree_refuse_one(name: str) -> None:
    search_, cls = SEARCHES[name]
    with pytest.raises(ConfigError, match=f"{name} grows no tree"):
        run(search_(QUESTION, scripted()[0], NoiseCritic(), cls(), 0, Tree(QUESTION)))


@pytest.mark.parametrize("name", ["mcts", "alphago", "gumbel"])
def test_a_tree_scored_by_a_critic_is_not_resumed_without_one(name: str) -> None:
    tree = search(name).tree
    search_, config = CASES[name]
    with pytest.raises(DataError, match="scored by critic, and this search scores by agreement; give it a critic"):
        run(search_(QUESTION, scripted()[0], None, config, 0, tree))


@pytest.mark.parametrize("name", ["mcts", "alphago", "gumbel", "beam", "dvts"])
def test_a_tree_scored_by_agreement_is_not_resumed_with_a_critic(name: str) -> None:
    tree = run(mcts(QUESTION, scripted()[0], None, MCTSConfig(num_simulations=4), 0)).tree
    assert tree is not None
    before = tree.to_dict()
    with pytest.raises(DataError, match="scored by agreement, and this search scores by critic; search it without a critic"):
        search(name, tree)
    assert tree.to_dict() == before
    run(mcts(QUESTION, scripted()[0], None, MCTSConfig(num_simulations=8), 0, tree))
    assert tree.scored_by == "agreement"


# Below a chosen step.


@pytest.mark.parametrize("name", SIMULATING)
def test_a_subtree_is_searched_on(name: str) -> None:
    for seed in range(3):
        tree = search(name, seed=seed).tree
        assert tree is not None
        step = max(tree.root.children, key=lambda child: child.visit_count)
        part = tree.subtree(step)
        assert part.root.visit_count == step.visit_count
        assert [n.step for n in part.nodes()] == [n.step for n in tree.nodes() if n.key().split(".")[0] == step.key()]
        result = search(name, part, seed, num_simulations=40, num_parallel=1)
        assert part.root.visit_count >= step.visit_count
        assert result.state.steps[0] == step.step
        assert all(trace.state.steps[0] == step.step for trace in result.traces)
        assert tree.root.visit_count < 40  # the whole tree is untouched
        check_idle(part)
        check_round_trip(part)
        check_value_sums(part)


def test_a_subtree_draws_what_the_whole_tree_would_have_drawn() -> None:
    tree = search("mcts", num_simulations=6, num_parallel=1).tree
    assert tree is not None
    step = max(tree.root.children, key=lambda child: child.visit_count)
    part = search("mcts", tree.subtree(step), num_simulations=30, num_parallel=1).tree
    whole = search("mcts", num_simulations=60, num_parallel=1).tree
    assert part is not None
    assert whole is not None
    texts = {part.place(n): [child.step.text for child in n.children] for n in part.nodes()}
    same = [n for n in whole.nodes() if n.children and texts.get(whole.place(n))]
    assert len(same) >= 3
    assert all(texts[whole.place(n)] == [child.step.text for child in n.children] for n in same)


def test_a_subtree_of_a_finished_solution_is_that_solution() -> None:
    tree = search("mcts").tree
    assert tree is not None
    end = next(node for node in tree.nodes() if node.terminal and node.visit_count)
    result = search("mcts", tree.subtree(end), answer="visits")
    assert result.state == tree.state(end)


def test_nodes_are_found_by_their_place() -> None:
    tree = search("mcts").tree
    assert tree is not None
    for node in tree.nodes():
        assert tree.find(node.key()) is node
    for key in ("99", "0.99", "x", "0..1x"):
        with pytest.raises(DataError, match="no node"):
            tree.find(key)


# Cancelled.


class Waiting:
    """A scripted engine whose replies wait until they are let go; counts requests under way."""

    chat_template = None

    def __init__(self, free: int) -> None:
        self.inner, self.free = scripted(noise_script(width=5, depth=4))[1], free
        self.open = 0

    async def generate(self, request: Request) -> list[Completion]:
        self.open += 1
        try:
            if self.free <= 0:
                await asyncio.sleep(3600)
            self.free -= 1
            return await self.inner.generate(request)
        finally:
            self.open -= 1


@pytest.mark.parametrize("free", [0, 1, 2, 5, 9, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_cancelled_search_leaves_nothing_behind(name: str, free: int) -> None:
    search_, config = CASES[name]
    tree = Tree(QUESTION)

    async def cancelled() -> int:
        engine = Waiting(free)
        policy = LMPolicy(engine, PromptFormat(PromptConfig()))
        task = asyncio.create_task(search_(QUESTION, policy, NoiseCritic(), config, 0, tree))
        for _ in range(400):
            await asyncio.sleep(0)
        if task.done():
            return 0
        assert engine.open > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        return engine.open

    assert run(cancelled()) == 0
    check_idle(tree)
    check_value_sums(tree)
    assert all(node.value is not None for node in tree.nodes() if node.visit_count and node.parent)
    # The tree is whole: it resumes as if nothing had happened.
    assert summary(search(name, tree)) == summary(search(name))


@pytest.mark.parametrize("failing", ["propose", "rollout", "score"])
@pytest.mark.parametrize("name", CASES)
def test_a_failed_search_leaves_a_whole_tree(name: str, failing: str) -> None:
    search_, config = CASES[name]
    for at in (0, 1, 3, 7):
        policy, critic = scripted(noise_script(width=5, depth=4))[0], NoiseCritic()
        owner: Any = critic if failing == "score" else policy
        original: Callable[..., Any] = getattr(owner, failing)
        calls = iter(range(10**6))

        async def broken(*args: Any, original: Any = original, calls: Any = calls, at: int = at, **kwargs: Any) -> Any:
            if next(calls) == at:
                raise ConnectionError("the model is gone")
            return await original(*args, **kwargs)

        setattr(owner, failing, broken)
        tree = Tree(QUESTION)
        try:
            run(search_(QUESTION, policy, critic, config, 0, tree))
        except (CriticError, PolicyError):
            check_idle(tree)
            check_value_sums(tree)
        assert summary(search(name, tree)) == summary(search(name))


def test_priors_come_back_when_a_wave_fails() -> None:
    # New siblings renormalise the priors of those that were there; a wave that fails must give them back.
    config = MCTSConfig(
        num_simulations=40,
        num_parallel=8,
        c_puct=1.0,
        rollouts=0,
        rollout_weight=0.0,
        widening=WideningConfig(kind="progressive", alpha=0.7),
    )
    for seed in range(4):
        whole = summary(run(mcts(QUESTION, scripted(noise_script(4, 4))[0], NoiseCritic(), config, seed)))
        for at in range(1, 9):
            calls = iter(range(10**6))

            class Failing(NoiseCritic):
                async def score(self, states: Sequence[State], calls: Any = calls, at: int = at) -> list[float]:
                    if next(calls) == at:
                        raise ConnectionError("gone")
                    return await super().score(states)

            tree, policy = Tree(QUESTION), scripted(noise_script(4, 4))[0]
            try:
                run(mcts(QUESTION, policy, Failing(), config, seed, tree))
            except CriticError:
                check_priors(tree)
            assert summary(run(mcts(QUESTION, policy, NoiseCritic(), config, seed, tree))) == whole


def test_a_beams_tree_is_searched_on_by_mcts_but_not_the_other_way_round() -> None:
    tree = search("beam").tree
    assert tree is not None
    result = search("mcts", tree)
    assert result.tree is tree
    assert tree.root.value is not None
    with pytest.raises(DataError, match="steps without a value"):
        search("beam", search("mcts").tree)


@pytest.mark.parametrize("name", ["beam", "dvts"])
def test_what_a_tree_holds_is_free_also_at_the_limit(name: str) -> None:
    for seed in range(5):
        whole = search(name, seed=seed)
        assert whole.tree is not None
        spent = whole.tree.usage.lm_calls
        again = search(name, whole.tree, seed, max_lm_calls=spent)
        assert summary(again) == summary(whole)
        assert whole.tree.usage.lm_calls == spent


@pytest.mark.parametrize("name", ["beam", "dvts", "mcts"])
def test_the_maximum_depth_counts_from_the_question(name: str) -> None:
    tree = search(name).tree
    assert tree is not None
    step = next(node for node in tree.nodes() if node.depth == 2 and not node.terminal and node.visit_count)
    fresh = Tree(QUESTION, tuple(n.step for n in step.path()[1:]), step.key())
    grown = search(name, fresh, max_depth=3, answer="vote").tree
    assert grown is not None
    assert max(node.depth for node in grown.nodes()) == 3


def test_a_subtrees_root_gets_noise_of_its_own() -> None:
    tree = search("alphazero").tree
    assert tree is not None
    step = max((n for n in tree.root.children if n.children), key=lambda n: n.visit_count)
    part = tree.subtree(step)
    before = [child.prior for child in part.root.children]
    once = search("alphazero", part)
    after = [child.prior for child in part.root.children]
    assert after != before
    assert sum(after) == pytest.approx(1.0)
    search("alphazero", once.tree, num_simulations=60)
    assert [child.prior for child in part.root.children] == after  # the same noise, however often it is searched on


def test_a_finished_solution_needs_no_policy_and_no_count() -> None:
    tree = search("mcts").tree
    assert tree is not None
    end = next(node for node in tree.nodes() if node.terminal and node.visit_count)
    assert search("mcts", tree.subtree(end), max_tokens=1000).state == tree.state(end)
    again = Tree.from_dict(tree.to_dict())
    assert search("mcts", again, max_tokens=10**9).answer == search("mcts").answer


# Properties of every tree.


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 6), depth=st.integers(1, 5))
def test_trees_are_sound(name: str, seed: int, width: int, depth: int) -> None:
    search_, config = CASES[name]
    policy, _ = scripted(noise_script(width, depth))
    config = replace(config, max_depth=3)
    result = run(search_(f"question {seed % 5}", policy, NoiseCritic(), config, seed))
    tree = result.tree
    check_idle(tree)
    check_depth(tree, 3)
    check_q_range(tree)
    check_round_trip(tree)
    check_value_sums(tree)
    if name != "alphazero":  # its root's priors are noisy
        check_priors(tree)
    assert 0.0 <= result.confidence <= 1.0
    for node in tree.nodes():
        texts = [child.step.text for child in node.children]
        assert len(set(texts)) == len(texts) or name == "dvts"  # whose subtrees are independent at the root
        assert not (node.terminal and node.children)
        assert (node.value is None) == (node.visit_count == 0) or (node is tree.root and name in ("beam", "dvts"))


@pytest.mark.parametrize("name", SIMULATING)
def test_more_parallel_simulations_than_the_tree_has_leaves_end_all_the_same(name: str) -> None:
    class Single(ListedPolicy):
        async def propose(self, state: State, n: int, seed: int) -> Sequence[Step]:  # type: ignore[override]
            return [Step(f"{len(state.steps)}", -0.1, 1, len(state.steps) == 2, "1" if len(state.steps) == 2 else None)]

    search_, config = CASES[name]
    result = run(search_(QUESTION, Single({}), NoiseCritic(), replace(config, num_parallel=50), 0))
    assert result.answer == "1"
    check_idle(result.tree)
    check_value_sums(result.tree)


def test_a_policy_that_proposes_nothing_later_on_is_an_error_that_names_the_question() -> None:
    with pytest.raises(PolicyError, match=QUESTION.replace("?", r"\?")):
        run(mcts(QUESTION, ListedPolicy({"": [Step("a", -1.0)]}), NoiseCritic(), MCTSConfig(num_simulations=9), 0))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"tree": {}}', '{"tree": {"question": 1}, "usage": {}}', "\x00\xff"])
def test_a_broken_tree_file_is_one_clear_error(content: str, tmp_path: Path) -> None:
    for name in ("tree.json", "tree.json.gz"):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match=r"tree\.json"):
            load_tree(path)
    with pytest.raises(DataError, match="cannot read"):
        load_tree(tmp_path / "missing.json")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.json.gz"
    save_tree(search("mcts").tree, path)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for size in (1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            load_tree(path)


def test_a_plain_file_is_json(tmp_path: Path) -> None:
    result = search("mcts")
    assert result.tree is not None
    save_tree(result.tree, tmp_path / "tree.json")
    data = json.loads((tmp_path / "tree.json").read_text())
    assert data["tree"] == result.tree.to_dict()
    assert data["usage"]["generated_tokens"] == result.tree.usage.generated_tokens > 0
