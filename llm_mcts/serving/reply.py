"""OpenAI's replies, whole or in chunks, from a search's result.

Usage counts as OpenAI counts for models that think before they reply: completion tokens are all that were sampled,
`reasoning_tokens` those of them that the reply does not show; the prompt is counted once. The field `search` says what was
found and what all of it cost.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm_mcts.result import SearchResult
from llm_mcts.serving.chat import ChatRequest
from llm_mcts.types import Usage


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of the prompt and of the solution that is shown."""

    prompt: int
    shown: int


@dataclass(frozen=True)
class Reply:
    """A search's result in OpenAI's words."""

    model: str
    request: ChatRequest
    result: SearchResult
    tokens: TokenCounts | None
    """None where the engine has no tokenizer to count with; then there is no usage either."""

    @property
    def finish_reason(self) -> str:
        """length: a limit of the search ended it, or the chosen solution is unfinished; stop: otherwise."""
        spent = asdict(self.result.usage)
        counted = {"max_tokens": "generated_tokens", "max_lm_calls": "lm_calls", "max_seconds": "seconds"}
        limits = {counted[k]: v for k, v in self.request.search.items() if k in counted and v is not None}
        unfinished = bool(self.result.state.steps) and not self.result.state.terminal
        return "length" if unfinished or any(spent[name] >= limit for name, limit in limits.items()) else "stop"

    @property
    def usage(self) -> dict[str, Any] | None:
        """OpenAI's usage."""
        if self.tokens is None:
            return None
        sampled = self.result.usage.generated_tokens
        # The shown text ends with a newline that the model need not have sampled: at most one token more than was sampled.
        hidden = max(0, sampled - self.tokens.shown)
        return {
            "prompt_tokens": self.tokens.prompt,
            "completion_tokens": sampled,
            "total_tokens": self.tokens.prompt + sampled,
            "completion_tokens_details": {"reasoning_tokens": hidden},
        }

    @property
    def search(self) -> dict[str, Any]:
        """What was found and what it cost."""
        usage: Usage = self.result.usage
        found = {"name": self.request.search["name"], "answer": self.result.answer, "confidence": self.result.confidence}
        return {**found, **asdict(usage), "ignored": list(self.request.ignored)}

    def whole(self) -> dict[str, Any]:
        """The reply in one piece."""
        message = {"role": "assistant", "content": "\n".join(self.result.steps), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage, "search": self.search}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The reply step by step, then why it ends with what it cost, then the usage if asked for."""
        head = self._head("chat.completion.chunk")
        usage = {"usage": None} if self.request.include_usage else {}
        for delta in _deltas(self.result.steps):
            yield {**head, "choices": [_choice(delta, None)], **usage}
        yield {**head, "choices": [_choice({}, self.finish_reason)], **usage, "search": self.search}
        if self.request.include_usage:
            yield {**head, "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}


def _deltas(steps: Sequence[str]) -> Iterator[dict[str, str]]:
    """A step each, with the newline that parts it from the next; the first says who speaks."""
    for i, step in enumerate(steps or [""]):
        text = f"{step}\n" if i + 1 < len(steps) else step
        yield {"role": "assistant", "content": text} if i == 0 else {"content": text}


def _choice(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
