"""An engine that asks OpenAI-compatible servers: vLLM, SGLang, llama.cpp, transformers serve and their like.

`api: completions` sends prompts as they are. `api: chat` sends messages, and the steps so far as the assistant's unfinished
turn (`continue_final_message`, which vLLM and SGLang know); a server that does not know it refuses, or must not be used.

Each continuation is a request of its own, with a seed derived from the request's seed and its place: most servers draw all
of `n` from one stream, so that continuation i would depend on n. Results are repeatable as far as the server keeps to the
seed: transformers serve, which has one stream for all, does so only while nothing else runs there.

A stop string counts behind the first visible character alone, which no server knows. A continuation that is stopped before
is asked for once more, with the same seed and without stop strings, and cut here: nothing is lost or shortened. Servers
that do not distinguish a stop string from the end of the text (see `openai_replies`) are taken to have met the stop string: the
next request, which then begins at the end of the text, shows it.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.openai.http import RefusedError, Replicas
from llm_mcts.engines.openai.replies import (
    Reply,
    complete,
    continuation_logprobs,
    next_token_logprobs,
    read_counts,
    read_reply,
    reported_end,
)
from llm_mcts.errors import EngineError, QuestionError
from llm_mcts.seeding import derive_seed
from llm_mcts.types import Usage, meter

log = logging.getLogger(__name__)

CHAT_MARKER = "<|chat messages as JSON|>"
"""Stands in front of messages that `chat_template` rendered."""
# Likeliest tokens asked for where a server does not echo: as many as vLLM and OpenAI give.
_TOP = 20
# Servers keep seeds in 32 or 64 bits, with or without a sign.
_SEEDS = 2**31


class OpenAIEngine:
    """Asks servers at `config.openai.urls` for the model `config.model`. Serves one event loop after another."""

    def __init__(self, config: EngineConfig) -> None:
        """Check the settings; nothing is sent yet.

        Raises:
            ConfigError: no usable address or key.
        """
        self.config = config
        self._replicas = Replicas(config.openai)
        self._chat = config.openai.api == "chat"
        self._logprobs = config.openai.logprobs
        self._echoes: bool | None = False if self._chat else None  # None: not known yet
        self._warned = False

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """For the chat API, writes messages as text that this engine reads back; the server renders them."""
        return _render if self._chat else None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._replicas.aclose()

    async def generate(self, request: Request) -> list[Completion]:
        """Continue the prompt `request.n` times, each by a request of its own.

        Raises:
            QuestionError: the prompt is empty.
            EngineError: the server failed, refused or answered nonsense.
            ModelError: the key or the model's name is wrong.
        """
        usage = meter()
        usage.lm_calls += 1
        return await gather_all([self._continue(request, i, usage) for i in range(request.n)])

    async def _continue(self, request: Request, i: int, usage: Usage) -> Completion:
        completion = await self._ask(request, i, request.stop, usage)
        if completion is None:
            completion = await self._ask(request, i, (), usage)
            assert completion is not None  # nothing was sent that could stop it early
        return completion

    async def _ask(self, request: Request, i: int, stops: tuple[str, ...], usage: Usage) -> Completion | None:
        body = self._body(request.prompt, request.max_tokens, request.temperature)
        if request.temperature > 0:
            body["seed"] = derive_seed(request.seed, i) % _SEEDS
        if stops:
            body["stop"] = list(stops)
        if request.top_k:
            body["top_k"] = request.top_k
        if request.top_p < 1:
            body["top_p"] = request.top_p
        if request.min_p:
            body["min_p"] = request.min_p
        if self._logprobs:
            body["logprobs"] = True if self._chat else 1  # 0 would mean "the sampled token's alone", or none at all
        data = await self._post(body)
        counts = read_counts(data, request.max_tokens, usage)
        reply = read_reply(data, counts, self._logprobs, max(map(len, stops), default=0))
        self._warn(reply, stops)
        return complete(reply, request.stop, stops)

    def _warn(self, reply: Reply, stops: tuple[str, ...]) -> None:
        if not self._warned and reply.finish == "stop" and reported_end(reply, stops) is None:
            self._warned = True
            log.warning(
                "the server does not distinguish stop strings from the end of the text; its stops count as stop strings"
            )

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probability of each token of each continuation, as the server tokenises prompt and continuation as one.

        Servers that echo (vLLM, SGLang) give those of any continuation; from others, and from the chat API, only those
        of a continuation that is one of the likeliest next tokens can be had.

        Raises:
            QuestionError: the prompt is empty.
            EngineError: the server does not report them, or a token spans the boundary between prompt and continuation.
        """
        usage, texts = meter(), ["".join(continuation) for continuation in continuations]
        usage.lm_calls += 1
        if not any(prompt):
            raise QuestionError("the prompt is empty; expected at least one token")
        if self._echoes is not False:
            echoed = await gather_all([self._echo("".join(prompt), text, usage) for text in texts])
            if None not in echoed:
                return [values for values in echoed if values is not None]
        known = await self._next_tokens(prompt, texts, usage)
        self._echoes = False
        return known

    async def _echo(self, prompt: str, continuation: str, usage: Usage) -> list[float] | None:
        """By an echo of prompt and continuation; None where the server does not echo."""
        if not continuation:
            return []
        body = {**self._body((prompt, continuation), 1, 1.0), "echo": True, "logprobs": 1}
        try:
            data = await self._post(body)
        except RefusedError as error:
            if self._echoes:
                raise
            log.warning("the server does not echo: %s", error)
            return None
        counts = read_counts(data, 1, usage)
        values = continuation_logprobs(data, counts, prompt, continuation)
        self._echoes = self._echoes or (True if values is not None else None)
        return values

    async def _next_tokens(self, prompt: Sequence[str], continuations: Sequence[str], usage: Usage) -> list[list[float]]:
        """By the likeliest next tokens of the prompt."""
        body = self._body(prompt, 1, 1.0)
        data = await self._post({**body, **({"logprobs": True, "top_logprobs": _TOP} if self._chat else {"logprobs": _TOP})})
        read_counts(data, 1, usage)
        known = next_token_logprobs(data)
        if absent := [text for text in continuations if text and text not in known]:
            raise EngineError(
                f"no log-probability of {absent[0]!r}, which is not one of the {len(known)} likeliest next tokens; expected "
                "one of these, since the server does not echo: choose a server with echo on /completions (vLLM, SGLang)"
            )
        return [[known[text]] if text else [] for text in continuations]

    def _body(self, prompt: Sequence[str], max_tokens: int, temperature: float) -> dict[str, Any]:
        """What every request says."""
        if not any(prompt):
            raise QuestionError("the prompt is empty; expected at least one token")
        settings: dict[str, Any] = {"model": self.config.model, "max_tokens": max_tokens, "temperature": temperature}
        if not self._chat:
            return {**settings, "prompt": "".join(prompt)}
        first, turn = prompt[0], "".join(prompt[1:])
        messages = _read_messages(first)
        if not turn:
            return {**settings, "messages": messages}
        messages = [*messages, {"role": "assistant", "content": turn}]
        return {**settings, "messages": messages, "continue_final_message": True, "add_generation_prompt": False}

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._replicas.post("/chat/completions" if self._chat else "/completions", body)
        except RefusedError as error:
            if "continue_final_message" not in body:
                raise
            raise RefusedError(
                f"{error} (the request held an unfinished assistant's turn with continue_final_message, which not every "
                "server knows: engine.openai.api completions does without)"
            ) from None


def _render(messages: list[dict[str, str]]) -> str:
    return CHAT_MARKER + json.dumps(messages, ensure_ascii=False)


def _read_messages(segment: str) -> list[dict[str, str]]:
    """Messages back from text; a prompt that is none is what the user says."""
    if not segment.startswith(CHAT_MARKER):
        return [{"role": "user", "content": segment}]
    messages: list[dict[str, str]] = json.loads(segment.removeprefix(CHAT_MARKER))
    return messages
