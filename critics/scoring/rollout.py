"""The Monte-Carlo critic: a state is worth what its completions are worth on average.

    judge        mean of another critic's scores of the ends
    answers      share of the ends that state one of the given answers
    otherwise    share of the ends that state the majority answer of the question's own completions (self-consistency)

Its randomness depends on the seed and the state alone, so a state has one value, whatever else is asked and when. The
completions are the policy's and metered by its engine; an end that states no answer is worth 0.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from critics.scoring.memo import Memo
from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError
from llm_mcts.search.contracts import completions, critic_scores
from llm_mcts.seeding import derive_seed
from llm_mcts.tasks.answers import same_answer
from llm_mcts.types import Critic, Policy, State


class RolloutCritic:
    """Scores a state by `num_rollouts` completions of it; a finished solution by itself. Await it within one event loop."""

    def __init__(
        self,
        policy: Policy,
        judge: Critic | None = None,
        answers: Sequence[str] | None = None,
        num_rollouts: int = 8,
        num_votes: int = 16,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        """See the module's docstring for `judge` and `answers`, of which at most one may be given.

        Args:
            policy: writes the completions, or its faster companion does where it has one.
            judge: scores ends.
            answers: the answers that count as right, for states of one question.
            num_rollouts: completions of a state, at least 1. Math-Shepherd: 8.
            num_votes: completions of the question among which the majority is sought, at least 1.
            temperature: of the completions; None: the policy's own.
            seed: same seed, same values.

        Raises:
            ConfigError: judge and answers, no answer, or a count below 1.
        """
        if judge is not None and answers is not None:
            raise ConfigError("a rollout critic with a judge and answers; expected one of them, or neither")
        if answers is not None and not answers:
            raise ConfigError("a rollout critic with an empty list of answers; expected at least one")
        if num_rollouts < 1 or num_votes < 1:
            raise ConfigError(f"num_rollouts is {num_rollouts} and num_votes {num_votes}; expected at least 1")
        self._policy: Policy = getattr(policy, "fast", None) or policy
        self._judge, self._answers = judge, answers
        self._num_rollouts, self._num_votes = num_rollouts, num_votes
        self._temperature, self._seed = temperature, seed
        self._memo: Memo[tuple[str, ...], list[State]] = Memo(100_000)

    async def score(self, states: Sequence[State]) -> list[float]:
        """One value in [0, 1] per state."""
        ends = await gather_all([self._ends(state) for state in states])
        scores = iter(await self._scores([end for group in ends for end in group]))
        return [sum(next(scores) for _ in group) / len(group) for group in ends]

    async def _scores(self, ends: Sequence[State]) -> list[float]:
        if self._judge is not None:
            return await critic_scores(self._judge, ends)
        questions = list(dict.fromkeys(end.question for end in ends))
        accepted = dict(zip(questions, await gather_all([self._accepted(q) for q in questions]), strict=True))
        return [
            float(end.answer is not None and any(same_answer(end.answer, a) for a in accepted[end.question])) for end in ends
        ]

    async def _accepted(self, question: str) -> Sequence[str]:
        """The answers that count: the given ones, or the majority's; none where no completion states one."""
        if self._answers is not None:
            return self._answers
        ends = await self._complete(State(question), self._num_votes, "vote")
        votes = Counter(end.answer for end in ends if end.answer is not None)
        return [answer for answer, _ in votes.most_common(1)]

    async def _ends(self, state: State) -> list[State]:
        return [state] if state.terminal else await self._complete(state, self._num_rollouts, "rollout")

    async def _complete(self, state: State, n: int, purpose: str) -> list[State]:
        """Completions of a state; the same are asked for once, also by callers at the same time."""
        key = (purpose, state.question, *(step.text for step in state.steps))
        return (await self._memo.fetch([key], partial(self._sample, state, n)))[0]

    async def _sample(self, state: State, n: int, keys: list[tuple[str, ...]]) -> list[list[State]]:
        return [await completions(self._policy, state, n, derive_seed(self._seed, *key), self._temperature) for key in keys]
