"""Greedy decoding, self-consistency and best-of-N."""

from collections.abc import Sequence

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.search.sampling import (
    BestOfNConfig,
    GreedyConfig,
    SelfConsistencyConfig,
    best_of_n,
    greedy,
    self_consistency,
)
from llm_mcts.search.voting import choose
from llm_mcts.types import State, Step, Trace
from tests.search_cases import QUESTION, NoiseCritic, TableCritic, noise_script, run, scripted, solution


class SamplesPolicy:
    """Rollouts end in the given answers, in order."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = answers
        self.asked: list[tuple[int, float | None]] = []

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        raise AssertionError("samples need no steps")

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self.asked.append((n, temperature))
        return [solution(answer=answer) for answer in self.answers[:n]]


SCORES = {"#### A": 0.9, "#### B": 0.5, "#### C": 0.1}
ANSWERS = ("B", "C", "A", None, "B", "B")


def test_greedy_takes_the_most_likely_line_everywhere() -> None:
    lines = {"": [("a", 0.6), ("b", 0.4)], "a\n": [("c", 0.1), ("#### 4", 0.9)]}
    policy, engine = scripted(lambda prompt: lines.get(prompt.partition("Answer:\n")[2], []))
    result = run(greedy(QUESTION, policy, None, GreedyConfig(), 0))
    assert (result.steps, result.answer, result.confidence) == (["a", "#### 4"], "4", 1.0)
    assert [r.temperature for r in engine.requests] == [0.0]
    assert [t.state for t in result.traces] == [result.state]


def test_greedy_is_as_sure_as_its_critic() -> None:
    result = run(greedy(QUESTION, SamplesPolicy("B"), TableCritic(SCORES), GreedyConfig(), 0))
    assert (result.answer, result.confidence, result.traces[0].score) == ("B", 0.5, 0.5)


def test_greedy_without_an_answer_is_not_sure() -> None:
    result = run(greedy(QUESTION, SamplesPolicy(None), None, GreedyConfig(), 0))
    assert (result.answer, result.confidence) == (None, 0.0)


def test_self_consistency_counts_answers() -> None:
    policy, critic = SamplesPolicy(*ANSWERS), TableCritic(SCORES)
    result = run(self_consistency(QUESTION, policy, critic, SelfConsistencyConfig(num_samples=6), 0))
    # B 3, C 1, A 1 of five stated answers.
    assert (result.answer, result.confidence) == ("B", pytest.approx(0.6))
    assert [t.state.answer for t in result.traces] == list(ANSWERS)
    assert (critic.asked, policy.asked) == ([], [(6, None)])


def test_best_of_n_takes_the_best_score() -> None:
    result = run(best_of_n(QUESTION, SamplesPolicy(*ANSWERS), TableCritic(SCORES), BestOfNConfig(num_samples=6), 0))
    assert (result.answer, result.confidence) == ("A", 0.9)
    assert [t.score for t in result.traces] == [0.5, 0.1, 0.9, 0.0, 0.5, 0.5]


def test_best_of_n_by_weighted_vote() -> None:
    result = run(
        best_of_n(QUESTION, SamplesPolicy(*ANSWERS), TableCritic(SCORES), BestOfNConfig(num_samples=6, answer="vote"), 0)
    )
    # B 3 * 0.5 = 1.5, C 0.1, A 0.9; 1.5 / 2.5 = 0.6
    assert (result.answer, result.confidence) == ("B", pytest.approx(0.6))


def test_best_of_n_needs_a_critic() -> None:
    with pytest.raises(ConfigError, match="no critic"):
        run(best_of_n(QUESTION, SamplesPolicy("A"), None, BestOfNConfig(num_samples=1), 0))


@pytest.mark.parametrize("answers", [(None, None), (None,)])
def test_where_no_solution_states_an_answer_there_is_none(answers: Sequence[None]) -> None:
    n = len(answers)
    for result in (
        run(self_consistency(QUESTION, SamplesPolicy(*answers), None, SelfConsistencyConfig(num_samples=n), 0)),
        run(best_of_n(QUESTION, SamplesPolicy(*answers), TableCritic(SCORES), BestOfNConfig(num_samples=n), 0)),
    ):
        assert (result.answer, result.confidence, len(result.traces)) == (None, 0.0, n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("answer", ["best", "vote"])
def test_best_of_1_is_one_sample(seed: int, answer: str) -> None:
    policy, engine = scripted(noise_script())
    best = run(best_of_n(QUESTION, policy, NoiseCritic(), BestOfNConfig(num_samples=1, answer=answer), seed))  # type: ignore[arg-type]
    one = run(self_consistency(QUESTION, policy, None, SelfConsistencyConfig(num_samples=1), seed))
    assert best.steps == one.steps
    assert best.answer == one.answer
    assert [r.n for r in engine.requests] == [1, 1]


def test_best_of_n_and_self_consistency_see_the_same_samples() -> None:
    policy, engine = scripted(noise_script())
    for seed in range(5):
        best = run(best_of_n(QUESTION, policy, NoiseCritic(), BestOfNConfig(num_samples=7), seed))
        many = run(self_consistency(QUESTION, policy, None, SelfConsistencyConfig(num_samples=7), seed))
        assert [t.state for t in best.traces] == [t.state for t in many.traces]
    assert engine.requests[0] == engine.requests[1]
    assert len({request.seed for request in engine.requests}) == 5


def test_more_samples_begin_with_the_fewer() -> None:
    policy, _ = scripted(noise_script())
    few = run(self_consistency(QUESTION, policy, None, SelfConsistencyConfig(num_samples=3), 1))
    many = run(self_consistency(QUESTION, policy, None, SelfConsistencyConfig(num_samples=12), 1))
    assert [t.state for t in many.traces[:3]] == [t.state for t in few.traces]


def test_best_of_n_never_does_worse_with_more_samples() -> None:
    """By its critic's own measure, which is all it can see; strictly better somewhere on the way."""
    policy, _ = scripted(noise_script(width=5))
    bests = [
        run(best_of_n(QUESTION, policy, NoiseCritic(), BestOfNConfig(num_samples=n), 2)).confidence
        for n in (1, 2, 4, 8, 16, 32)
    ]
    assert bests == sorted(bests)
    assert bests[-1] > bests[0]


def test_seeds_and_questions_draw_differently() -> None:
    policy, engine = scripted(noise_script())
    for question in ("one", "two"):
        for seed in (0, 1):
            run(self_consistency(question, policy, None, SelfConsistencyConfig(num_samples=2), seed))
    assert len({request.seed for request in engine.requests}) == 4


def test_choose_by_best_and_by_vote() -> None:
    traces = [Trace(solution(answer="A"), 0.9), Trace(solution(answer="B"), 0.5), Trace(solution(answer="B"), 0.6)]
    by_best, by_vote = choose(QUESTION, traces, "best"), choose(QUESTION, traces, "vote")
    assert (by_best.answer, by_best.confidence) == ("A", 0.9)
    assert (by_vote.answer, by_vote.confidence) == ("B", pytest.approx(0.55))  # 1.1 / 2.0


@pytest.mark.parametrize("n", [0, -2])
def test_samples_are_at_least_one(n: int) -> None:
    for config in (SelfConsistencyConfig, BestOfNConfig):
        with pytest.raises(ConfigError, match=f"num_samples is {n}"):
            config(num_samples=n)


def test_the_choice_is_best_or_vote() -> None:
    with pytest.raises(ConfigError, match="'visits'"):
        BestOfNConfig(answer="visits")  # type: ignore[arg-type]
