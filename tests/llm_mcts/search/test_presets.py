"""The papers' tree searches: their settings, degeneracies, and ReST-MCTS*'s values by hand."""

from dataclasses import replace
from math import log

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.search.evaluation import quality_value
from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig, mcts
from llm_mcts.search.merging import MergeConfig
from llm_mcts.search.presets import PRESETS
from llm_mcts.types import State, Step, Trace
from tests.search_cases import QUESTION, ListedPolicy, NoiseCritic, TableCritic, noise_script, run, scripted, summary


def test_the_papers_settings() -> None:
    go, zero, llm = PRESETS["alphago"](), PRESETS["alphazero"](), PRESETS["alphallm"]()
    assert (go.selection, go.c_puct, go.prior_temperature, go.rollout_weight, go.virtual_loss) == ("alphago", 5.0, 0.67, 0.5, 3)
    assert go.answer == zero.answer == "visits"
    assert (zero.selection, zero.c_puct, zero.root_noise, zero.rollouts) == ("alphazero", 1.25, 0.25, 0)
    assert (llm.selection, llm.c_puct, llm.rollouts, llm.max_depth) == ("uct", 1.0, 4, 10)
    assert llm.rollout_weight == pytest.approx(1 / 3)
    widening, merge = llm.widening, llm.merge
    assert (widening.root_min_children, widening.root_max_children) == (10, 60)
    assert (widening.min_children, widening.max_children) == (2, 10)
    assert (merge.kind, merge.distance, merge.retries) == ("edit", 20, 5)
    assert PRESETS["rest_mcts"]().leaf_value == "quality"


def test_alphallm_with_its_options_off_is_mcts_with_uct() -> None:
    off = PRESETS["alphallm"](
        num_simulations=20, widening=WideningConfig(), merge=MergeConfig(), rollouts=1, rollout_weight=0.5, answer="vote"
    )
    plain = MCTSConfig(num_simulations=20, selection="uct", c_puct=1.0, max_depth=10)
    policy, _ = scripted(noise_script(width=4))
    for seed in range(3):
        found = run(mcts(QUESTION, policy, NoiseCritic(), off, seed))
        assert summary(found) == summary(run(mcts(QUESTION, policy, NoiseCritic(), plain, seed)))


def test_alphazero_without_noise_and_growth_is_puct() -> None:
    # c grows by log((N + 19653) / 19652), 0.0011 at N = 20: too little to change a choice here.
    zero = PRESETS["alphazero"](num_simulations=20, root_noise=0.0, num_parallel=1)
    puct = MCTSConfig(
        num_simulations=20, c_puct=1.25, first_play=0.5, rollouts=0, rollout_weight=0.0, num_parallel=1, answer="visits"
    )
    policy, _ = scripted(noise_script(width=4))
    for seed in range(3):
        found = run(mcts(QUESTION, policy, NoiseCritic(), zero, seed))
        assert summary(found) == summary(run(mcts(QUESTION, policy, NoiseCritic(), puct, seed)))


def test_noise_changes_the_roots_priors_alone() -> None:
    policy, _ = scripted(noise_script(width=4))
    quiet, noisy = (
        run(mcts(QUESTION, policy, NoiseCritic(), PRESETS["alphazero"](num_simulations=12, root_noise=share), 1)).tree
        for share in (0.0, 0.25)
    )
    assert quiet is not None
    assert noisy is not None
    steps = {n.key(): n for n in quiet.nodes()}
    shared = [n for n in noisy.nodes() if n.key() in steps and n.parent]
    assert all((n.prior != steps[n.key()].prior) == (n.parent is noisy.root) for n in shared)
    assert sum(child.prior for child in noisy.root.children) == pytest.approx(1.0)
    assert all(child.prior >= 0.75 * steps[child.key()].prior for child in noisy.root.children)


@pytest.mark.parametrize(
    ("before", "r", "missing", "value"),
    [
        (0.0, 0.0, 3, 0.25),  # 0 + (1 - 0) / 4
        (0.25, 0.0, 2, 0.5),  # 0.25 + 0.75 / 3
        (0.5, 1.0, 1, 0.25),  # 0.5 - 0.5 / 2
        (0.0, 1.0, 0, 0.0),  # -1, cut at 0
        (0.5, 0.0, 0, 1.0),  # 0.5 + 0.5 / 1: a right last step is worth 1 whatever came before
        (0.4, 0.5, 5, 0.4),  # nothing known of the step: no change
        (0.4, 0.25, 1, 0.55),  # 0.4 + 0.6 / 2 * 0.5
    ],
)
def test_quality_value_by_hand(before: float, r: float, missing: int, value: float) -> None:
    assert quality_value(before, r, missing) == pytest.approx(value)


def test_rest_mcts_by_hand() -> None:
    # Every step is followed by one completion that ends two steps later (m = 2) after a first step, one later after a second.
    class Completed(ListedPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            lines = [Step(f"x{i}") for i in range(len(state.steps), 2)]
            return [state.then(*lines, Step("#### 1", terminal=True, answer="1"))] * n

    steps = {"": [Step("a", log(0.5)), Step("b", log(0.5))], "a": [Step("c", log(0.5)), Step("d", log(0.5))]}
    scores = {"a": 0.9, "b": 0.3, "a\nc": 1.0, "a\nd": 0.5}
    config = PRESETS["rest_mcts"](num_simulations=4, c_puct=0.0, num_parallel=1)
    tree = run(mcts(QUESTION, Completed(steps), TableCritic(scores, default=0.5), config, 0)).tree
    assert tree is not None
    # root 0. a: m = 2, r = 0.1: 0 + 1/3 * 0.8 = 0.266667. b: r = 0.7: 1/3 * -0.4, cut at 0.
    # c below a: m = 1, r = 0: 0.266667 + 0.733333/2 = 0.633333. d: r = 0.5: 0.266667.
    values = {node.step.text: node.value for node in tree.nodes()}
    expected = {"": 0.0, "a": 0.8 / 3, "b": 0.0, "c": 0.8 / 3 + (1 - 0.8 / 3) / 2, "d": 0.8 / 3}
    assert values == {text: pytest.approx(value) for text, value in expected.items()}


def test_quality_needs_a_rollout_to_count_steps_on() -> None:
    with pytest.raises(ConfigError, match="rollouts is 0"):
        PRESETS["rest_mcts"](rollouts=0)


@pytest.mark.parametrize("name", ["alphazero", "alphallm", "rest_mcts"])
def test_a_critic_is_needed(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no critic"):
        run(mcts(QUESTION, scripted()[0], None, PRESETS[name](), 0))


# The parts that only these searches use, seen in a tree.


def test_importance_widens_where_values_differ() -> None:
    # Width 2 everywhere at first; where a child's value differs from its parent's by 0.4 floor(10 * 0.4) + 1 = 5 are allowed.
    class Many(ListedPolicy):
        async def propose(self, state: State, n: int, seed: int) -> list[Step]:
            self.proposed.append(state.text)
            return [Step(f"{'xyz'[len(state.steps)]}{self.proposed.count(state.text) + i}", -1.0) for i in range(n)]

    widening = WideningConfig(kind="importance", alpha=10.0, min_children=2, root_min_children=2)
    config = PRESETS["alphallm"](
        num_simulations=40, widening=widening, merge=MergeConfig(), rollouts=0, rollout_weight=0.0, num_parallel=1, max_depth=2
    )
    flat = run(mcts(QUESTION, Many({}), TableCritic({}, default=0.5), config, 0)).tree
    steep = run(mcts(QUESTION, Many({}), TableCritic({"": 0.5, "x1": 0.9}, default=0.5), config, 0)).tree
    assert flat is not None
    assert steep is not None
    assert len(flat.root.children) == 2
    assert len(steep.root.children) == 5


def test_near_steps_merge_and_are_drawn_again() -> None:
    class Near(ListedPolicy):
        async def propose(self, state: State, n: int, seed: int) -> list[Step]:
            self.proposed.append(state.text)
            texts = ["3 + 4 = 7", "3 + 4 = 8"] if len(self.proposed) == 1 else ["altogether different"]
            return [Step(text, -1.0) for text in texts][:n]

    config = MCTSConfig(
        num_simulations=2,
        expansion_width=2,
        merge=MergeConfig(kind="edit", distance=3, retries=1),
        rollouts=0,
        rollout_weight=0.0,
        num_parallel=1,
    )
    policy = Near({})
    tree = run(mcts(QUESTION, policy, TableCritic({}, default=0.5), config, 0)).tree
    assert tree is not None
    assert [child.step.text for child in tree.root.children] == ["3 + 4 = 7", "altogether different"]
    assert policy.proposed[:2] == ["", ""]


def test_a_judge_merges_steps() -> None:
    class Judging(ListedPolicy):
        async def equivalent(self, state: State, a: Step, b: Step) -> bool:
            return {a.text, b.text} == {"a", "A"}

    policy = Judging({"": [Step("a", -1.0), Step("b", -1.0), Step("A", -1.0)]})
    config = MCTSConfig(
        num_simulations=2, merge=MergeConfig(kind="judge"), rollouts=0, rollout_weight=0.0, num_parallel=1, answer="vote"
    )
    tree = run(mcts(QUESTION, policy, TableCritic({}, default=0.5), config, 0)).tree
    assert tree is not None
    assert [child.step.text for child in tree.root.children] == ["a", "b"]
    with pytest.raises(ConfigError, match="cannot judge"):
        run(mcts(QUESTION, ListedPolicy({}), NoiseCritic(), config, 0))


def test_a_fast_policy_writes_the_rollouts() -> None:
    class Fast(ListedPolicy):
        pass

    slow, fast = ListedPolicy({"": [Step("a", -1.0)]}, answer="1"), Fast({}, answer="2")
    slow.fast = fast  # type: ignore[attr-defined]
    config = replace(MCTSConfig(num_simulations=1, num_parallel=1), rollouts=2)
    result = run(mcts(QUESTION, slow, TableCritic({}, default=0.5), config, 0))
    assert slow.rolled_out == []
    assert fast.rolled_out == [("", 2, None), ("a", 2, None)]
    assert {trace.state.answer for trace in result.traces if isinstance(trace, Trace)} == {"2"}
