"""Generative verifiers: a language model is asked whether a solution is right, and its probability of the answer is the score.

    GenRM, direct    p(Yes) behind "Is the answer correct (Yes/No)?"                               (arXiv 2408.15240)
    GenRM, CoT       the mean of p(Yes) behind K rationales that the model writes first: a vote
    ORM by token     p(correct) / (p(correct) + p(wrong)) behind a whole solution                  (AlphaLLM)
    PRM by token     p(True) / (p(True) + p(False)) behind each step, about that step              (AlphaLLM)

It asks through an engine, so the solution's tokens are in the cache along the tree (plain prompts; a chat template puts the
question in front). A rationale that never comes to its verdict is an abstention, counted, not a zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Annotated, Literal

from critics.scoring.memo import Memo
from critics.scoring.trained import AGGREGATES
from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Engine, Request
from llm_mcts.errors import ConfigError, CriticError, QuestionError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.prompts import PromptFormat
from llm_mcts.seeding import derive_seed
from llm_mcts.types import State, meter

VerdictKind = Literal["genrm", "orm", "prm"]


@dataclass(frozen=True)
class Verdict:
    """A question about a solution, and the two words that answer it."""

    question: str
    yes: str
    no: str
    normalise: bool
    """Whether the score is p(yes) / (p(yes) + p(no)), or p(yes) itself."""


VERDICTS: dict[VerdictKind, Verdict] = {
    "genrm": Verdict("Is the answer correct (Yes/No)?", " Yes", " No", normalise=False),
    "orm": Verdict("Is the solution correct or wrong?", " correct", " wrong", normalise=True),
    "prm": Verdict("Is the last step True or False?", " True", " False", normalise=True),
}


@dataclass(frozen=True)
class VerifierConfig(Settings, section="verifier"):
    """How a verifier is asked."""

    rationales: Annotated[int, AtLeast(0)] = 0
    """Rationales to vote, GenRM only; 0: the verdict at once. GenRM: 32."""
    temperature: Annotated[float, AtLeast(0)] = 0.7
    """Sampling temperature of rationales, above 0 when there are several."""
    max_rationale_tokens: Annotated[int, AtLeast(1)] = 256
    """Longest rationale; one that has no verdict by then abstains."""
    seed: int = 0
    """Of the rationales' sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rationales > 1 and self.temperature == 0:
            raise ConfigError(
                f"verifier with {self.rationales} rationales at temperature 0, all alike; expected one, or above 0"
            )


class GenerativeVerifier:
    """A language model that writes its verdict. Await it within one event loop at a time."""

    def __init__(
        self,
        engine: Engine,
        prompt: PromptFormat,
        kind: VerdictKind = "genrm",
        config: VerifierConfig | None = None,
        aggregate: str = "last",
    ) -> None:
        """`aggregate` (see AGGREGATES) joins a PRM's steps.

        Raises:
            ConfigError: rationales for a kind that writes none, or an unknown kind.
        """
        if kind not in VERDICTS:
            raise ConfigError(f"verifier kind is '{kind}'; expected one of {', '.join(VERDICTS)}")
        self.engine, self.prompt, self.kind = engine, prompt, kind
        self.config, self.verdict = config or VerifierConfig(), VERDICTS[kind]
        if self.config.rationales and kind != "genrm":
            raise ConfigError(f"{self.config.rationales} rationales for kind '{kind}'; only genrm writes them")
        self.aggregate = AGGREGATES[aggregate if kind == "prm" else "last"]
        self.abstentions = 0
        """Rationales without a verdict so far."""
        self._memo: Memo[State, float] = Memo()

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] a state."""
        return [self.aggregate(scores[1:] or scores) for scores in await self.step_scores(states)]

    async def step_scores(self, states: Sequence[State]) -> list[list[float]]:
        """For each state the scores of its question alone and of every prefix; only the last, but for a PRM.

        Raises:
            CriticError: every rationale of a state abstained.
            QuestionError: a state is longer than the model's context.
        """
        meter().critic_calls += len(states)
        prefixes = [self._prefixes(state) for state in states]
        wanted = list(dict.fromkeys(prefix for row in prefixes for prefix in row))
        scores = dict(zip(wanted, await self._memo.fetch(wanted, self._judge_all), strict=True))
        return [[scores[prefix] for prefix in row] for row in prefixes]

    async def _judge_all(self, states: list[State]) -> list[float]:
        return await gather_all([self._judge(state) for state in states])

    def _prefixes(self, state: State) -> list[State]:
        if self.kind != "prm":
            return [state]
        return [State(state.question, state.steps[:n]) for n in range(len(state.steps) + 1)]

    async def _judge(self, state: State) -> float:
        if self.config.rationales:
            return await self._vote(state)
        return await self._verdict(self.prompt.verification(state, self.verdict.question))

    async def _verdict(self, asked: Sequence[str]) -> float:
        """p(yes) behind a prompt, against p(no) where the kind says so."""
        words = [(self.verdict.yes,), (self.verdict.no,)] if self.verdict.normalise else [(self.verdict.yes,)]
        p = [exp(sum(logprobs)) for logprobs in await self.engine.logprobs(asked, words)]
        if self.verdict.normalise and sum(p) == 0:
            raise CriticError(f"the verifier gives neither '{self.verdict.yes}' nor '{self.verdict.no}' any probability")
        return min(1.0, p[0] / sum(p) if self.verdict.normalise else p[0])

    async def _vote(self, state: State) -> float:
        """The mean of p(Yes) over the rationales that come to a verdict."""
        opening = self.prompt.verification(state, self.verdict.question, rationale=True)
        seed = derive_seed(self.config.seed, state.question, *(step.text for step in state.steps))
        replies = await self.engine.generate(
            Request(
                opening,
                self.config.rationales,
                self.config.max_rationale_tokens,
                self.config.temperature,
                (self.verdict.question,),
                seed,
            )
        )
        # The question's last step is written by the model itself: a rationale that stops there has come to its verdict.
        rationales = [reply.text.strip() for reply in replies if reply.finish_reason == "stop"]
        self.abstentions += len(replies) - len(rationales)
        if not rationales:
            raise CriticError(
                f"none of {len(replies)} rationales came to a verdict on a solution of {state.question!r}; expected "
                f"'{self.verdict.question}' within {self.config.max_rationale_tokens} tokens: raise max_rationale_tokens, or "
                "train the verifier on rationales"
            )
        asked = [(*opening, f"{rationale}\n", self.verdict.question) for rationale in rationales]
        verdicts = [p for p in await gather_all([self._verdict_or_none(one) for one in asked]) if p is not None]
        self.abstentions += len(asked) - len(verdicts)
        if not verdicts:
            raise CriticError(
                f"no rationale on a solution of {state.question!r} leaves room for its verdict in the model's context; "
                "expected shorter ones: lower max_rationale_tokens"
            )
        return fmean(verdicts)

    async def _verdict_or_none(self, asked: Sequence[str]) -> float | None:
        """p(yes), or None where the rationale filled the model's context."""
        try:
            return await self._verdict(asked)
        except QuestionError:
            return None
