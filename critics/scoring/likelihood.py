"""The policy's own opinion: how likely it finds the solution, a token on average.

A trained outcome model of a small backbone learns what good solutions look like, and can overlook a slip in the arithmetic
that the policy itself finds improbable: sampled at temperature 1, it wrote it nevertheless. The two make different mistakes, so
their combination (`combine.LogisticCritic`) ranks better than either. Asked through the policy's engine, it costs no
memory of its own, and the question's tokens are in the engine's cache.
"""

from collections.abc import Sequence
from math import exp

from critics.scoring.memo import Memo
from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Engine
from llm_mcts.prompts import PromptFormat
from llm_mcts.types import State, meter


class LikelihoodCritic:
    """Scores a state by exp(mean log-probability of its steps' tokens) under a language model, at temperature 1, in (0, 1]."""

    def __init__(self, engine: Engine, prompt: PromptFormat) -> None:
        """`engine`: as a rule the policy's own, `prompt`: its format."""
        self._engine, self._format = engine, prompt
        self._memo: Memo[tuple[str, ...], float] = Memo()

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score a state; 1 for a bare question, of which the policy wrote nothing.

        Raises:
            QuestionError: a state is longer than the model's context.
        """
        meter().critic_calls += len(states)
        return await self._memo.fetch([self._format.segments(state) for state in states], self._likelihoods)

    async def _likelihoods(self, keys: list[tuple[str, ...]]) -> list[float]:
        return await gather_all([self._likelihood(key) for key in keys])

    async def _likelihood(self, key: tuple[str, ...]) -> float:
        if len(key) == 1:
            return 1.0
        [logprobs] = await self._engine.logprobs(key[:1], [key[1:]])
        return exp(sum(logprobs) / len(logprobs))
