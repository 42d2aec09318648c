"""A deterministic engine without a model: replies come from a function of the prompt. For tests, golden trees and demos."""

import asyncio
from collections.abc import Callable, Sequence
from math import inf, log

from llm_mcts.engines.base import Completion, Request
from llm_mcts.seeding import derive_seed
from llm_mcts.types import meter

Script = Callable[[str], Sequence[tuple[str, float]]]
"""Prompt text -> possible next lines with their probabilities; no line ends the text."""


class ScriptedEngine:
    """Draws each line of a completion from `script`, by the request's seed alone.

    A token is a line, and the only stop string is the newline. With `turns`, each request first lets other tasks run that
    many times, so that tests can shuffle the order of replies.
    """

    chat_template = None

    def __init__(self, script: Script, turns: Callable[[Request], int] = lambda _: 0) -> None:
        self.script, self.turns = script, turns
        self.requests: list[Request] = []
        """Everything that was asked, in order."""

    async def generate(self, request: Request) -> list[Completion]:
        """Complete the prompt line by line until a stop string, an empty script, or `max_tokens` lines."""
        self.requests.append(request)
        for _ in range(self.turns(request)):
            await asyncio.sleep(0)
        usage = meter()
        usage.lm_calls += 1
        completions = []
        for i in range(request.n):
            text, logprob, lines, reason = "", 0.0, 0, "length"
            while lines < request.max_tokens:
                options = self.script("".join(request.prompt) + text)
                if not options:
                    reason = "eos"
                    break
                draw = derive_seed(request.seed, i, lines) / 2**63
                line, p = (
                    _pick([o for o in options if o[1] > 0], draw)
                    if request.temperature > 0
                    else max(options, key=lambda o: o[1])
                )
                text, logprob, lines = f"{text}{line}\n", logprob + log(p), lines + 1
                if "\n" in request.stop:
                    text, reason = text.rstrip("\n"), "stop"
                    break
            usage.generated_tokens += max(1, lines)
            completions.append(Completion(text, logprob, max(1, lines), reason))  # type: ignore[arg-type]
        return completions

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probability of each line of each continuation; -inf for one that the script does not offer."""
        meter().lm_calls += 1
        return [self._logprobs("".join(prompt), "".join(continuation)) for continuation in continuations]

    def _logprobs(self, text: str, continuation: str) -> list[float]:
        found = []
        for line in continuation.splitlines(keepends=True):
            p = sum(p for option, p in self.script(text) if option == line.rstrip("\n"))
            found.append(log(p) if p else -inf)
            text += line
        return found

    async def aclose(self) -> None:
        """Nothing is held."""


def _pick(options: Sequence[tuple[str, float]], draw: float) -> tuple[str, float]:
    """The option whose share of [0, 1) holds `draw`."""
    for line, p in options:
        draw -= p
        if draw < 0:
            return line, p
    return options[-1]
