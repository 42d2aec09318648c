"""The weighted sum of critics, by hand."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.scoring.combine import CriticWeights, RankAverageCritic, WeightedCritic, rank_average
from critics.scoring.likelihood import LikelihoodCritic
from critics.scoring.trained import ModelCritic
from llm_mcts.errors import ConfigError, CriticError
from llm_mcts.settings import CriticsConfig
from llm_mcts.solver import Solver
from llm_mcts.types import Critic, State, Step, metered
from tests.search_cases import TableCritic, solution

OPEN = State("q", (Step("a"),))
LONGER = State("q", (Step("a"), Step("b")))
DONE = State("q", (Step("a"), Step("#### 1", terminal=True, answer="1")))


class Fixed:
    """A critic that gives out numbers by the count of steps and remembers what it was asked."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.asked = scores, list[list[State]]()

    async def score(self, states: Sequence[State]) -> list[float]:
        self.asked.append(list(states))
        return [self.scores[len(s.steps) - 1] for s in states]


def score(critic: Critic, *states: State) -> list[float]:
    return asyncio.run(critic.score(states))


def test_it_is_a_critic() -> None:
    assert isinstance(WeightedCritic(Fixed(0.5)), Critic)


def test_an_unfinished_solution_gets_the_weighted_mean_of_value_and_prm() -> None:
    # (3 * 0.2 + 1 * 0.6) / 4 = 0.3 after one step, (3 * 0.9 + 1 * 0.1) / 4 = 0.7 after two.
    critic = WeightedCritic(Fixed(0.2, 0.9), Fixed(0.6, 0.1), weights=CriticWeights(3.0, 1.0))
    assert score(critic, OPEN, LONGER) == pytest.approx([0.3, 0.7], abs=1e-12)


def test_alphallms_weights_are_the_default() -> None:
    assert score(WeightedCritic(Fixed(0.2), Fixed(0.7)), OPEN) == pytest.approx([0.45], abs=1e-12)


def test_the_orm_judges_finished_solutions_alone_and_order_is_kept() -> None:
    value, prm, orm = Fixed(0.2, 0.4), Fixed(0.6, 0.8), Fixed(-1.0, 0.9)
    # OPEN: (0.2 + 0.6) / 2 = 0.4; LONGER: (0.4 + 0.8) / 2 = 0.6; DONE: 0.9.
    assert score(WeightedCritic(value, prm, orm), DONE, OPEN, DONE, LONGER) == pytest.approx([0.9, 0.4, 0.9, 0.6], abs=1e-12)
    assert value.asked == prm.asked == [[OPEN, LONGER]]
    assert orm.asked == [[DONE, DONE]]


def test_without_an_orm_value_and_prm_judge_the_end_too() -> None:
    # (1 * 0.4 + 3 * 0.8) / 4 = 0.7
    critic = WeightedCritic(Fixed(0.0, 0.4), Fixed(0.0, 0.8), weights=CriticWeights(1.0, 3.0))
    assert score(critic, DONE) == pytest.approx([0.7], abs=1e-12)


def test_an_orm_alone_judges_everything() -> None:
    assert score(WeightedCritic(orm=Fixed(0.3, 0.9)), OPEN, DONE) == [0.3, 0.9]


@pytest.mark.parametrize("make", [lambda c: WeightedCritic(value=c), lambda c: WeightedCritic(prm=c)], ids=["value", "prm"])
def test_one_critic_alone_is_passed_through(make: Callable[[Critic], WeightedCritic]) -> None:
    assert score(make(Fixed(0.25, 0.75)), OPEN, DONE) == [0.25, 0.75]


def test_a_weight_of_zero_means_never_asked() -> None:
    value, prm = Fixed(0.2), Fixed(0.6)
    assert score(WeightedCritic(value, prm, weights=CriticWeights(0.0, 2.0)), OPEN) == pytest.approx([0.6], abs=1e-12)
    assert value.asked == []


def test_nothing_to_score_asks_no_one() -> None:
    value = Fixed(0.2)
    assert score(WeightedCritic(value)) == []
    assert value.asked == []


def test_rounding_does_not_leave_the_unit_interval() -> None:
    weights = CriticWeights(0.1, 0.7)  # in floating point (0.1 + 0.7) / 0.8 could be a hair off 1
    [top] = score(WeightedCritic(Fixed(1.0), Fixed(1.0), weights=weights), OPEN)
    assert 1.0 - 1e-12 <= top <= 1.0


def test_no_critic_is_refused() -> None:
    with pytest.raises(ConfigError, match="no critic"):
        WeightedCritic()
    with pytest.raises(ConfigError, match="no critic"):
        WeightedCritic(Fixed(0.5), weights=CriticWeights(value=0.0))
    with pytest.raises(ConfigError, match=r"critics\.value is -1"):
        CriticWeights(value=-1.0)


def test_a_critic_that_fails_is_heard() -> None:
    class Broken(Fixed):
        async def score(self, states: Sequence[State]) -> list[float]:
            raise RuntimeError("out of order")

    with pytest.raises(CriticError, match="out of order"):
        score(WeightedCritic(Fixed(0.5), Broken()), OPEN)


@pytest.mark.parametrize("bad", [float("nan"), 7.0, -0.1])
def test_no_number_and_no_score_out_of_range_passes(bad: float) -> None:
    for critic in (
        WeightedCritic(Fixed(bad), Fixed(0.5)),
        WeightedCritic(Fixed(0.5), Fixed(bad)),
        WeightedCritic(orm=Fixed(bad)),
    ):
        with pytest.raises(CriticError, match=str(bad)):
            score(critic, OPEN)


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_scores_is_named(count: int) -> None:
    class Miscounting(Fixed):
        async def score(self, states: Sequence[State]) -> list[float]:
            return [0.5] * count

    with pytest.raises(CriticError, match=f"{count} scores for 2 states"):
        score(WeightedCritic(Miscounting()), OPEN, LONGER)


def test_ranks_by_hand() -> None:
    # Three candidates. First critic 0.2, 0.9, 0.5: ranks 0, 1, 0.5. Second 0.7, 0.7, 0.1: the two best share (1 + 0.5) / 2 =
    # 0.75: 0.75, 0.75, 0. Means: 0.375, 0.875, 0.25.
    assert rank_average([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]]) == pytest.approx([0.375, 0.875, 0.25])
    assert rank_average([[0.3]]) == [0.5]
    assert rank_average([[0.4] * 5]) == [0.5] * 5
    assert rank_average([[]]) == []


def test_ranks_do_not_depend_on_scale() -> None:
    scores = [0.1, 0.4, 0.35, 0.8]
    assert rank_average([[s**3 / 50 for s in scores], scores]) == rank_average([scores])


def test_ranks_are_those_among_the_states_of_one_question_asked_together() -> None:
    def done(question: str, steps: int) -> State:
        return State(question, (*(Step("a") for _ in range(steps)), Step("#### 1", terminal=True, answer="1")))

    # By the count of steps: 1 -> 0.2 and 0.3, 2 -> 0.9 and 0.1, 3 -> 0.5 and 0.2.
    critic = RankAverageCritic([Fixed(0.2, 0.9, 0.5), Fixed(0.3, 0.1, 0.2)])
    one, other = [done("q", 0), done("q", 1), done("q", 2)], [done("r", 1)]
    # q: ranks 0, 1, 0.5 and 1, 0, 0.5: all 0.5. r stands alone: 0.5.
    assert score(critic, one[0], *other, *one[1:]) == [0.5, 0.5, 0.5, 0.5]
    # Two of q: 0.2 < 0.9 and 0.3 > 0.1; then 0.2 < 0.5, 0.3 > 0.2; and 0.9 > 0.5, 0.1 < 0.2: always one each.
    assert score(critic, one[1], one[2]) == [0.5, 0.5]
    single = RankAverageCritic([Fixed(0.2, 0.9, 0.5)])
    assert score(single, one[0], other[0], one[1], one[2]) == [0.0, 0.5, 1.0, 0.5]
    assert isinstance(single, Critic)
    with pytest.raises(ConfigError, match="no critic"):
        RankAverageCritic([])


def test_an_answer_left_out_ranks_last() -> None:
    silent = State("q", (Step("the end", terminal=True),))
    assert score(RankAverageCritic([Fixed(0.2, 0.1)]), silent, DONE) == [0.0, 1.0]


def test_ranks_of_three_critics() -> None:
    first = TableCritic({"#### 1": 0.9, "#### 2": 0.1, "#### 3": 0.5})
    second = TableCritic({"#### 1": 0.01, "#### 2": 0.03, "#### 3": 0.02})
    third = TableCritic({"#### 1": 0.4, "#### 2": 0.4, "#### 3": 0.6})
    # Answer 3: (0.5 + 0.5 + 1) / 3 = 0.667. Answers 1 and 2: (1 + 0 + 0.25) / 3 = 0.417. A sum of scores would choose 1:
    # 0.9 + 0.01 + 0.4 = 1.31 against 0.5 + 0.02 + 0.6 = 1.12.
    states = [solution(answer=a) for a in "123"]
    found = score(RankAverageCritic([first, second, third]), *states)
    assert found == pytest.approx([1.25 / 3, 1.25 / 3, 2 / 3])


def orm_folder(tiny_model: Path, folder: Path) -> Path:
    CriticModel.create("orm", str(tiny_model), HeadConfig(width=8), seed=3).save_pretrained(folder)
    return folder


def test_the_solver_ranks_by_orm_and_likelihood(tiny_model: Path, tmp_path: Path) -> None:
    critics = {"orm": str(orm_folder(tiny_model, tmp_path / "orm"))}
    source = {"engine": {"model": str(tiny_model)}, "critics": critics}
    states = [solution(f"{i} + 1 = {i + 1}", answer=str(i + 1), question="q") for i in range(5)]
    solver = Solver.from_config(source)
    assert solver.critic is not None
    by_orm = score(solver.critic, *states)
    by_likelihood = score(LikelihoodCritic(solver.engine, solver.policy.prompt), *states)
    critics["finished"] = "rank_average"
    ranked = Solver.from_config(source)
    assert ranked.critic is not None

    def place(scores: list[float], i: int) -> float:
        return sum(other < scores[i] for other in scores) / 4

    assert len(set(by_orm)) == len(set(by_likelihood)) == 5  # no ties: a rank is the count of what lies below
    expected = [(place(by_orm, i) + place(by_likelihood, i)) / 2 for i in range(5)]
    assert score(ranked.critic, *states) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="rank_average with search mcts"):
        ranked.solve("1 + 1?")
    with pytest.raises(ConfigError, match="num_parallel=16 of 32 samples"):
        ranked.solve("1 + 1?", {"name": "best_of_n", "num_samples": 32})
    small = {"name": "best_of_n", "num_samples": 2}
    assert Solver.from_config({**source, "policy": {"max_solution_tokens": 8}}).solve("1 + 1?", small).usage.lm_calls > 0


def test_rollouts_take_a_value_models_place(tiny_model: Path, tmp_path: Path) -> None:
    orm = str(orm_folder(tiny_model, tmp_path / "orm"))
    source = {
        "engine": {"model": str(tiny_model)},
        "policy": {"max_solution_tokens": 8},
        "critics": {"orm": orm, "rollouts": 3},
    }
    solver, state = Solver.from_config(source), State("1 + 1?", (Step("1 + 1 = 2"),))
    assert solver.critic is not None
    with metered() as usage:
        found = score(solver.critic, state)
    # Three completions of at most 8 tokens, each judged by the ORM; one without an answer is worth 0 and is not shown to it.
    assert 3 <= usage.generated_tokens <= 24
    assert usage.critic_calls <= 3
    assert 0.0 <= found[0] <= 1.0
    alone = ModelCritic(CriticModel.from_pretrained(orm))
    assert score(solver.critic, solution(answer="2")) == pytest.approx(score(alone, solution(answer="2")), abs=1e-6)
    with pytest.raises(ConfigError, match="rollouts is 3 with a value model"):
        CriticsConfig(value=orm, rollouts=3)
    with pytest.raises(ConfigError, match="rollouts is -1"):
        CriticsConfig(rollouts=-1)


def test_the_bare_question_is_judged_by_the_value_model_alone() -> None:
    bare = State("q", ())
    assert score(WeightedCritic(Fixed(0.2), Fixed(0.8)), bare) == pytest.approx([0.2], abs=1e-12)
    assert score(WeightedCritic(prm=Fixed(0.8)), bare) == pytest.approx([0.8], abs=1e-12)
