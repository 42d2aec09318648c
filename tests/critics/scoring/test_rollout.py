"""The Monte-Carlo critic on policies whose completions are known."""

import asyncio
import random

import pytest

from critics.scoring.rollout import RolloutCritic
from llm_mcts.engines.base import Request
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, CriticError, PolicyError
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import Critic, State, Step, metered
from tests.search_cases import TableCritic, run, solution

GOOD, BAD = State("q", (Step("good"),)), State("q", (Step("bad"),))


class CountedPolicy:
    """Completion i of a state ends in the i-th answer listed for its text, in turn; "" states none."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int, float | None]] = []
        self.seeds: dict[str, int] = {}

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        raise AssertionError("a rollout critic proposes nothing")

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        self.asked.append((state.text, n, temperature))
        self.seeds[state.text] = seed
        found = self.answers[state.text]
        answers = [found[i % len(found)] or None for i in range(n)]
        return [state.then(Step(f"#### {a}", terminal=True, answer=a)) for a in answers]


def test_the_mean_of_a_judges_scores() -> None:
    policy = CountedPolicy({"good": ["1", "1", "2", ""]})
    judge = TableCritic({"good\n#### 1": 0.8, "good\n#### 2": 0.4})
    # (0.8 + 0.8 + 0.4 + 0) / 4 = 0.5: an end without an answer is worth 0 and never shown to the judge.
    critic = RolloutCritic(policy, judge, num_rollouts=4, temperature=0.7)
    assert isinstance(critic, Critic)
    assert run(critic.score([GOOD])) == pytest.approx([0.5])
    assert policy.asked == [("good", 4, 0.7)]
    assert all("None" not in text for texts in judge.asked for text in texts)


def test_agreement_with_given_answers() -> None:
    policy = CountedPolicy({"good": ["7", "7.0", "8", "7"], "bad": ["8", ""]})
    critic = RolloutCritic(policy, answers=["7"], num_rollouts=4)
    # Three of four (7.0 is 7), none of four; a finished solution is its own only end.
    states = [GOOD, BAD, solution(answer="7", question="q"), solution(answer="9", question="q")]
    assert run(critic.score(states)) == [0.75, 0.0, 1.0, 0.0]
    assert run(RolloutCritic(policy, answers=["7", "8"], num_rollouts=4).score([BAD])) == [0.5]


def test_agreement_with_the_majority_of_the_questions_own_completions() -> None:
    policy = CountedPolicy({"": ["3", "5", "5", ""], "good": ["5", "5", "5", "3"], "bad": ["3"]})
    critic = RolloutCritic(policy, num_rollouts=4, num_votes=8)
    # Of eight completions of the question 3 has two votes, 5 has four: the majority is 5. Three of four; none of four.
    assert run(critic.score([GOOD, BAD])) == [0.75, 0.0]
    assert sorted(policy.asked) == [("", 8, None), ("bad", 4, None), ("good", 4, None)]
    silent = CountedPolicy({"": [""], "good": ["5"]})
    assert run(RolloutCritic(silent, num_rollouts=2).score([GOOD])) == [0.0]


def test_a_state_is_completed_once() -> None:
    policy = CountedPolicy({"good": ["1"]})
    critic = RolloutCritic(policy, answers=["1"])

    async def both() -> list[list[float]]:
        return list(await asyncio.gather(critic.score([GOOD, GOOD]), critic.score([GOOD])))

    assert run(both()) == [[1.0, 1.0], [1.0]]
    assert policy.asked == [("good", 8, None)]


def scripted(shuffled: bool = False) -> LMPolicy:
    def script(prompt: str) -> list[tuple[str, float]]:
        return [] if "####" in prompt.splitlines()[-1] else [("#### 1", 0.5), ("#### 2", 0.5)]

    draw = random.Random(3)

    def turns(_: Request) -> int:
        return draw.randrange(9) if shuffled else 0

    return LMPolicy(ScriptedEngine(script, turns), PromptFormat(PromptConfig()))


def test_values_depend_on_seed_and_state_alone() -> None:
    states = [State("q", (Step(f"way {i}"),)) for i in range(12)]
    together = run(RolloutCritic(scripted(), answers=["1"]).score(states))
    apart = [run(RolloutCritic(scripted(True), answers=["1"]).score([state]))[0] for state in reversed(states)]
    assert together == apart[::-1]
    assert len(set(together)) > 1
    assert run(RolloutCritic(scripted(), answers=["1"], seed=1).score(states)) != together
    # 12 x 8 fair coins: the mean lies within 0.5 +- 3 * sqrt(0.25 / 96) = 0.153.
    assert sum(together) / 12 == pytest.approx(0.5, abs=0.153)


def test_the_engine_meters_the_completions() -> None:
    with metered() as usage:
        run(RolloutCritic(scripted(), answers=["1"], num_rollouts=5).score([GOOD]))
    assert usage.lm_calls == 1
    assert usage.generated_tokens == 5  # of the scripted engine, whose token is a line


def test_the_faster_companion_writes_where_there_is_one() -> None:
    policy, fast = scripted(), CountedPolicy({"good": ["1"]})
    policy.fast = fast
    run(RolloutCritic(policy, answers=["1"]).score([GOOD]))
    assert [text for text, _, _ in fast.asked] == ["good"]


def test_failures_are_heard_and_not_kept() -> None:
    class Failing(CountedPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            if not self.asked:
                self.asked.append(("", 0, None))
                raise RuntimeError("out of order")
            return await super().rollout(state, n, seed, temperature)

    critic = RolloutCritic(Failing({"good": ["1"]}), answers=["1"])
    with pytest.raises(PolicyError, match="out of order"):
        run(critic.score([GOOD]))
    assert run(critic.score([GOOD])) == [1.0]
    with pytest.raises(CriticError, match="nan"):
        run(RolloutCritic(CountedPolicy({"good": ["1"]}), TableCritic({}, default=float("nan"))).score([GOOD]))


def test_what_makes_no_sense_is_refused() -> None:
    policy = CountedPolicy({})
    with pytest.raises(ConfigError, match="a judge and answers"):
        RolloutCritic(policy, TableCritic({}), ["1"])
    with pytest.raises(ConfigError, match="empty list of answers"):
        RolloutCritic(policy, answers=[])
    with pytest.raises(ConfigError, match="num_rollouts is 0"):
        RolloutCritic(policy, num_rollouts=0)
    assert run(RolloutCritic(policy).score([])) == []
