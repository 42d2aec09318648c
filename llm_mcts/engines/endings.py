"""When a continuation ends: at a token that ends texts, at a stop string, at its longest length or at the context's end.

For engines that get token after token. A stop string counts only behind the first visible character, and every sampled token
counts, the stop's included.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llm_mcts.engines.base import Completion, FinishReason, Request
from llm_mcts.errors import QuestionError
from llm_mcts.types import Usage


@dataclass(eq=False)
class Continuation:
    """A prompt being continued once."""

    request: Request
    index: int
    """Which of the request's continuations."""
    prompt: tuple[int, ...]
    endings: "Endings"
    """What ends it."""
    usage: Usage
    """Where its tokens are counted."""
    done: "asyncio.Future[Completion]"
    handle: Any = None
    """The decoding library's object for it."""
    generated: list[int] = field(default_factory=list)
    text: str = ""
    """The generated tokens decoded one by one."""
    logprob: float = 0.0

    def append(self, token: int, logprob: float) -> bool:
        """Add a sampled token; whether that ends the continuation, `done` then has its completion."""
        self.generated.append(token)
        self.logprob += logprob
        self.usage.generated_tokens += 1
        end = self.endings.find(self, token)
        if end is not None and not self.done.done():
            self.done.set_result(Completion(end[0], self.logprob, len(self.generated), end[1]))
        return end is not None

    @cached_property
    def random(self) -> random.Random:
        """Its own stream of random numbers, so that no result depends on what else is in the batch."""
        return random.Random(f"{self.request.seed}/{self.index}")

    def count(self, computed: int, reused: int) -> None:
        """Count the prompt's tokens, once they are in the cache."""
        self.usage.count_prompt(computed, reused)

    @property
    def known(self) -> tuple[int, ...]:
        """Tokens to be in the cache before it can decode."""
        return self.prompt[:-1]

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the last."""
        return len(self.prompt) + len(self.generated) - 1

    @property
    def last(self) -> int:
        """The next decode input."""
        return self.generated[-1] if self.generated else self.prompt[-1]


class Endings:
    """The rules by which a model's texts end."""

    def __init__(self, tokenizer: Any, eos: Iterable[int], context: int, remedy: str = "use fewer shots") -> None:
        """`eos`: tokens that end a text; `context`: the longest text in tokens, prompt included; `remedy`: what makes room."""
        self.tokenizer, self.eos, self.context, self.remedy = tokenizer, frozenset(eos), context, remedy
        self._pieces: dict[int, str] = {}

    def checked(self, prompt: Sequence[int], room: int = 1) -> tuple[int, ...]:
        """The prompt, which must leave `room` tokens in the context.

        Raises:
            QuestionError: it is empty or too long.
        """
        if not prompt:
            raise QuestionError("the prompt is empty; expected at least one token")
        if len(prompt) + room > self.context:
            raise QuestionError(
                f"prompt of {len(prompt)} tokens; expected fewer than the model's context of {self.context}: "
                f"shorten the question or {self.remedy}"
            )
        return tuple(prompt)

    def find(self, row: Continuation, token: int) -> tuple[str, FinishReason] | None:
        """The text and why it ended, if its newest token ended it."""
        if token in self.eos:
            return self.decode(row.generated[:-1]), "eos"
        row.text += self._piece(token)
        if (cut := self._cut(row)) is not None:
            return cut, "stop"
        count = len(row.generated)
        if count >= row.request.max_tokens or len(row.prompt) + count >= self.context:
            return self.decode(row.generated), "length"
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without the special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _cut(self, row: Continuation) -> str | None:
        """The text in front of the first stop string, None where there is none."""
        stops = row.request.stop
        if any(stop in self._body(row, stop) for stop in stops):
            return cut_at_stop(str(self.tokenizer.decode(row.generated)), stops)
        return None

    def _body(self, row: Continuation, stop: str) -> str:
        """The text in which to look for a stop string: token by token, or where that may differ from the whole, decoded whole.

        A letter may span tokens, and some tokenizers drop a token's leading blank when it is decoded alone.
        """
        whole = not stop.isascii() or " " in stop
        return (str(self.tokenizer.decode(row.generated)) if whole and self._likely(row, stop) else row.text).lstrip()

    def _likely(self, row: Continuation, stop: str) -> bool:
        """Whether a stop string can have ended with the newest token: a quick look before a long one."""
        return not stop.isascii() or stop.endswith(" ") or stop[-1] in self._piece(row.generated[-1])

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = str(self.tokenizer.decode([token]))
        return self._pieces[token]


def cut_at_stop(text: str, stops: Iterable[str]) -> str | None:
    """The text from its first visible character up to the first stop string behind it; None where there is none."""
    body = text.lstrip()
    cuts = [at for stop in stops if (at := body.find(stop)) >= 0]
    return body[: min(cuts)] if cuts else None
