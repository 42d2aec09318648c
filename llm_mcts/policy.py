"""The policy: a language model that proposes reasoning steps and completes solutions."""

from dataclasses import dataclass, replace
from math import exp, log
from typing import Annotated

from llm_mcts.engines.base import Completion, Engine, Request
from llm_mcts.errors import QuestionError
from llm_mcts.fields import Above, AtLeast, Settings, Within
from llm_mcts.prompts import PromptFormat
from llm_mcts.types import Policy, State, Step


@dataclass(frozen=True)
class PolicyConfig(Settings, section="policy"):
    """How steps are sampled."""

    temperature: Annotated[float, Above(0)] = 0.8
    """Sampling temperature of steps and rollouts; the greedy search needs no change. OVM: 0.7."""
    max_step_tokens: Annotated[int, AtLeast(1)] = 100
    """Longest step in tokens, its newline included; a longer one ends the solution without an answer. OVM: 100."""
    max_solution_tokens: Annotated[int, AtLeast(1)] = 400
    """Longest rollout in tokens."""
    top_k: Annotated[int, AtLeast(0)] = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: Annotated[float, Within(0, 1, open_low=True)] = 1.0
    """Sample among the fewest tokens whose probabilities add up to p."""
    min_p: Annotated[float, Within(0, 1)] = 0.0
    """Sample among tokens at least this times as likely as the likeliest."""


@dataclass(frozen=True, slots=True)
class Written:
    """A whole solution, and how its text came to its end; what a trainer must know to learn from samples."""

    state: State
    ended: bool
    """The model ended the text itself, right behind the last step's newline."""
    cut: bool
    """The last step's newline was not written: the longest length, or the model, ended the text inside the step."""


class LMPolicy:
    """An engine and a prompt format, as a Policy: a step is a line, a solution ends at its answer line."""

    def __init__(
        self, engine: Engine, prompt: PromptFormat, config: PolicyConfig | None = None, fast: Policy | None = None
    ) -> None:
        """`fast`: a cheaper policy that completes solutions in rollouts (AlphaLLM's fast rollout)."""
        self.engine, self.prompt, self.config, self.fast = engine, prompt, config or PolicyConfig(), fast

    def at(self, temperature: float) -> "LMPolicy":
        """The same policy, and its fast one, at another sampling temperature."""
        fast = self.fast.at(temperature) if isinstance(self.fast, LMPolicy) else self.fast
        return LMPolicy(self.engine, self.prompt, replace(self.config, temperature=temperature), fast)

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        """Sample `n` next steps; equal texts become one step whose probability is the sum of theirs.

        Distinct tokenisations of one text add up; repeated samples of one tokenisation have one probability between
        them. Ordered by first appearance.

        Raises:
            QuestionError: the question is empty, or longer than the model's context.
        """
        completions = await self._complete(state, n, seed, self.config.temperature, self.config.max_step_tokens, ("\n",))
        same: dict[str, list[Step]] = {}
        for completion in completions:
            step = self._step(completion)
            same.setdefault(step.text, []).append(step)
        return [_merge(steps) for steps in same.values()]

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        """Complete `state` to its end `n` times. Lines after the answer line are dropped.

        Raises:
            QuestionError: the question is empty, or longer than the model's context.
        """
        if state.terminal:
            return [state] * n
        return [written.state for written in await self.write(state, n, seed, temperature)]

    async def write(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[Written]:
        """The completions of `rollout` for an unfinished state, with how each text ended.

        Raises:
            QuestionError: the question is empty, or longer than the model's context.
        """
        temperature = self.config.temperature if temperature is None else temperature
        completions = await self._complete(state, n, seed, temperature, self.config.max_solution_tokens, ("\nQuestion:",))
        return [self._written(state, completion) for completion in completions]

    async def equivalent(self, state: State, a: Step, b: Step) -> bool:
        """Ask the model whether two next steps say the same; anything but a yes is a no."""
        prompt = self.prompt.same_step(state, a.text, b.text)
        (reply,) = await self.engine.generate(Request(prompt, 1, max_tokens=4, temperature=0.0, stop=("\n",)))
        return reply.text.strip().lower().startswith("yes")

    async def _complete(
        self, state: State, n: int, seed: int, temperature: float, max_tokens: int, stop: tuple[str, ...]
    ) -> list[Completion]:
        if not state.question.strip():
            raise QuestionError("the question is empty; expected some text")
        prompt = self.prompt.segments(state)
        how = self.config
        return await self.engine.generate(
            Request(prompt, n, max_tokens, temperature, stop, seed, how.top_k, how.top_p, how.min_p)
            if temperature > 0
            else Request(prompt, n, max_tokens, temperature, stop, seed)
        )

    def _step(self, completion: Completion) -> Step:
        """A generated line as a step; one that was cut off or ended by the model is terminal."""
        ended = completion.finish_reason != "stop"
        step = self.prompt.read_step(completion.text, completion.logprob, completion.num_tokens, ended)
        if completion.finish_reason == "length":
            return Step(step.text, step.logprob, step.num_tokens, True, None)
        return step

    def _written(self, state: State, completion: Completion) -> Written:
        """A generated continuation as steps (their log-probabilities are not known one by one and stay 0)."""
        lines = [line for line in completion.text.split("\n") if line.strip()]
        steps = self.prompt.parse_solution(completion.text) or (Step("", terminal=True),)
        whole = len(steps) >= len(lines)  # no line behind the answer line was dropped
        last_line = completion.text.rsplit("\n", 1)[-1].strip()
        reason = completion.finish_reason
        open_ended = whole and reason != "stop" and last_line != "" and last_line == steps[-1].text
        if open_ended and reason == "length":
            steps = (*steps[:-1], Step(steps[-1].text, terminal=True))
        ended = whole and reason == "eos" and not open_ended
        return Written(state.then(*steps), ended, open_ended)


def _merge(steps: list[Step]) -> Step:
    """Samples of one text as one step: the probabilities of its distinct tokenisations add up.

    Not terminal if any of them is not, unless it states an answer.
    """
    logprobs = {round(step.logprob, 3): step.logprob for step in steps}.values()
    first = next((step for step in steps if not step.terminal), steps[0])
    total = first.logprob if len(logprobs) == 1 else min(0.0, log(sum(exp(x) for x in logprobs)))
    return Step(first.text, total, first.num_tokens, first.terminal, first.answer)
