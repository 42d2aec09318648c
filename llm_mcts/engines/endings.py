"""When a continuation ends: at a token that ends texts, at a stop string, at its longest length or at the context's end.

For engines that get token after token. A stop string counts only behind the first visible character, and every sampled token
counts, the stop's included.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_mcts.engines.base import Completion, Request
from llm_mcts.types import Usage


@dataclass(eq=False)
class Row:
    """One continuation under way."""

    request: Request
    index: int
    """Which of the request's continuations."""
    prompt: tuple[int, ...]
    usage: Usage
    done: "asyncio.Future[Completion]"
    handle: Any = None
    """What a library gave for it."""
    generated: list[int] = field(default_factory=list)
    text: str = ""
    logprob: float = 0.0


class Endings:
    """Adds tokens to rows and tells when one has ended."""

    def __init__(self, tokenizer: Any, eos: Iterable[int], context: int) -> None:
        """`eos`: tokens that end a text; `context`: the longest text, prompt included, in tokens."""
        self.tokenizer, self.eos, self.context = tokenizer, frozenset(eos), context
        self._pieces: dict[int, str] = {}

    def append(self, row: Row, token: int, logprob: float) -> Completion | None:
        """Add a sampled token; the completion if that ends the row."""
        row.generated.append(token)
        row.logprob += logprob
        row.usage.generated_tokens += 1
        count = len(row.generated)
        if token in self.eos:
            return Completion(self._text(row.generated[:-1]), row.logprob, count, "eos")
        row.text += self._piece(token)
        if (cut := self._cut(row)) is not None:
            return Completion(cut, row.logprob, count, "stop")
        if count >= row.request.max_tokens or len(row.prompt) + count >= self.context:
            return Completion(self._text(row.generated), row.logprob, count, "length")
        return None

    def _cut(self, row: Row) -> str | None:
        """The text in front of the first stop string, None where there is none."""
        stops = row.request.stop
        if not row.text or row.text.isspace() or not any(stop in self._body(row, stop) for stop in stops):
            return None
        whole = str(self.tokenizer.decode(row.generated)).lstrip()
        cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
        return whole[: min(cuts)] if cuts else None

    def _body(self, row: Row, stop: str) -> str:
        """The text in which to look for a stop string: token by token, or where that may differ from the whole, decoded whole.

        A letter may span tokens, and some tokenizers drop a token's leading blank when it is decoded alone.
        """
        whole = not stop.isascii() or " " in stop
        return (str(self.tokenizer.decode(row.generated)) if whole and self._likely(row, stop) else row.text).lstrip()

    def _likely(self, row: Row, stop: str) -> bool:
        """Whether a stop string can have ended with the newest token: a quick look before a long one."""
        return not stop.isascii() or stop.endswith(" ") or stop[-1] in self._piece(row.generated[-1])

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = str(self.tokenizer.decode([token]))
        return self._pieces[token]

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
