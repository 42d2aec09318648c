"""Read and check the replies of OpenAI-compatible servers.

Servers agree on little but the field names. A stop string may be part of the text (transformers) or not (the others); the
tokens listed with their log-probabilities may include the stop's and the end-of-text token (vLLM, SGLang) or not
(llama.cpp); `finish_reason: stop` may mean a stop string or the end of the text. What tells the two apart, in this order:
the text holds a stop string; the tokens listed continue behind the text; `stop_reason` (vLLM) or `matched_stop` (SGLang).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Any, Literal, TypeGuard

from llm_mcts.engines.base import Completion
from llm_mcts.engines.endings import cut_at_stop
from llm_mcts.errors import EngineError
from llm_mcts.types import Usage

# Rounding may lift the log-probability of a certain token above 0 by this much.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Counts:
    """A reply's tokens, checked."""

    prompt: int
    completion: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One continuation as the server reports it."""

    text: str
    finish: Literal["stop", "length"]
    ended_by: Any
    """What the server names as the end: a stop string, a token id, None for the end of the text; missing: `UNREPORTED`."""
    tokens: tuple[str, ...]
    """Texts of the sampled tokens, as far as they are listed."""
    logprobs: tuple[float, ...]
    """Log-probability of each of `tokens`."""
    num_tokens: int
    """Sampled tokens, at least 1."""


UNREPORTED = object()


def read_counts(data: Mapping[str, Any], max_tokens: int, spent: Usage) -> Counts:
    """The token counts of a reply that may hold `max_tokens`, added to `spent`.

    Raises:
        EngineError: counts are missing or impossible.
    """
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = usage.get("prompt_tokens_details")
    cached = (details.get("cached_tokens") if isinstance(details, dict) else None) or 0
    if not (_is_count(prompt) and _is_count(completion) and _is_count(cached)):
        raise _broken(f"usage {data.get('usage')!r}", "prompt_tokens and completion_tokens of at least 0")
    if prompt < 1 or cached > prompt or completion > max_tokens:
        raise _broken(
            f"{prompt} prompt tokens, {cached} of them cached, and {completion} completion tokens",
            f"at least 1 prompt token, no more cached than that, and at most max_tokens = {max_tokens}",
        )
    spent.generated_tokens += completion
    spent.count_prompt(prompt - cached, cached)
    return Counts(prompt, completion)


def read_reply(data: Mapping[str, Any], counts: Counts, logprobs: bool, longest_stop: int) -> Reply:
    """The one continuation of a reply, from /completions or /chat/completions.

    Args:
        data: the reply.
        counts: what `read_counts` made of it.
        logprobs: whether log-probabilities were asked for.
        longest_stop: length of the longest stop string that was sent, in characters: the tokens listed may lack its.

    Raises:
        EngineError: something is missing or contradicts itself.
    """
    choice = read_choice(data)
    text = _text(choice)
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise _broken(f"finish_reason {finish!r}", "stop or length")
    if text and not counts.completion:
        raise _broken(f"0 completion tokens for the text {text!r}", "at least 1")
    tokens, values = _listed_tokens(choice) if logprobs else ([], [])
    missing = counts.completion - len(tokens)
    if logprobs and not 0 <= missing <= (max(1, longest_stop) if finish == "stop" else 0):
        raise _broken(f"{len(tokens)} log-probabilities for {counts.completion} completion tokens", "one a token")
    ended_by = choice.get("stop_reason", choice.get("matched_stop", UNREPORTED))
    return Reply(text, finish, ended_by, tuple(tokens), tuple(values), max(1, counts.completion))


def read_choice(data: Mapping[str, Any]) -> dict[str, Any]:
    """The one choice of a reply."""
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _broken(f"{len(choices)} choices" if isinstance(choices, list) else f"choices {choices!r}", "one choice")
    return choices[0]


def complete(reply: Reply, wanted: Sequence[str], sent: Sequence[str]) -> Completion | None:
    """The reply as a completion; None where a stop string ended it before its first visible character.

    Args:
        reply: what came.
        wanted: the request's stop strings.
        sent: those that the server was given.
    """
    if (cut := cut_at_stop(reply.text, wanted)) is not None:
        used = _tokens_to_stop(reply.tokens, wanted)
        return Completion(cut, sum(reply.logprobs[:used], 0.0), used or reply.num_tokens, "stop")
    logprob = sum(reply.logprobs, 0.0)
    if reply.finish == "length":
        return Completion(reply.text, logprob, reply.num_tokens, "length")
    if reported_end(reply, sent) == "eos":
        return Completion(reply.text, logprob, reply.num_tokens, "eos")
    body = reply.text.lstrip()
    return Completion(body, logprob, reply.num_tokens, "stop") if body else None


def reported_end(reply: Reply, sent: Sequence[str]) -> Literal["stop", "eos"] | None:
    """What ended a reply that finished with "stop", as far as the server reports it; None: it does not."""
    if not sent:
        return "eos"
    listed = "".join(reply.tokens)
    # Letters that span tokens may garble what is listed.
    behind = listed[len(reply.text) :] if listed.startswith(reply.text) else ""
    if behind.startswith(tuple(sent)):
        return "stop"
    if behind and not any(stop.startswith(behind) for stop in sent):
        return "eos"
    if reply.ended_by is None or isinstance(reply.ended_by, int):
        return "eos"
    return "stop" if reply.ended_by in sent else None


def _tokens_to_stop(tokens: Sequence[str], stops: Sequence[str]) -> int | None:
    """How many tokens there are up to the one that completes a stop string; None where that cannot be seen."""
    for count, text in enumerate(accumulate(tokens), 1):
        if any(stop in text.lstrip() for stop in stops):
            return count
    return None


def continuation_logprobs(data: Mapping[str, Any], counts: Counts, prompt: str, continuation: str) -> list[float] | None:
    """From an echoed prompt and continuation, the continuation's log-probabilities; None where the server does not echo.

    Raises:
        EngineError: a token spans the boundary between prompt and continuation, or the reply contradicts itself.
    """
    choice = read_choice(data)
    listed = choice.get("logprobs")
    if (
        not str(choice.get("text", "")).startswith(prompt + continuation)
        or not isinstance(listed, dict)
        or not listed.get("tokens")
    ):
        return None
    tokens, values, end = [*map(str, listed["tokens"])], listed.get("token_logprobs") or [], counts.prompt
    if len(tokens) != len(values) or not end <= len(tokens) <= end + counts.completion:
        raise _broken(
            f"{len(tokens)} tokens and {len(values)} log-probabilities echoed",
            f"{end} for the prompt, {counts.completion} behind it",
        )
    first = _boundary(tokens[:end], prompt, continuation)
    if first is None:
        raise _broken(
            f"tokens {tokens[max(0, end - 4) : end]} at the end, none of which begins where {continuation!r} does",
            "a token boundary between prompt and continuation: let the prompt end in a newline, or move a space across",
        )
    return [_logprob(value) for value in values[first:end]]


def _boundary(tokens: Sequence[str], prompt: str, continuation: str) -> int | None:
    """Index of the continuation's first token, or None where no token begins there.

    Found by the tokens' texts: `text_offset` may be missing (SGLang) or off where a begin-of-text token or half a letter
    stands in front (vLLM). Letters that span tokens garble one side or the other, hardly ever both.
    """
    text = ""
    for i in range(len(tokens) - 1, -1, -1):
        text = tokens[i] + text
        if text == continuation:
            return i
    fronts = [*accumulate(tokens, initial="")]
    return next((i for i, text in enumerate(fronts[:-1]) if text in (prompt, tokens[0] + prompt)), None)


def next_token_logprobs(data: Mapping[str, Any]) -> dict[str, float]:
    """The log-probabilities of the likeliest first tokens, by their texts."""
    listed = read_choice(data).get("logprobs")
    listed = listed if isinstance(listed, dict) else {}
    if isinstance(content := listed.get("content"), list) and content and isinstance(content[0], dict):
        entries = [content[0], *(content[0].get("top_logprobs") or [])]
        return {str(entry.get("token")): _logprob(entry.get("logprob")) for entry in entries}
    tops = listed.get("top_logprobs")
    if not isinstance(tops, list) or not tops or not isinstance(tops[0], dict):
        raise _no_logprobs(listed)
    return {str(token): _logprob(value) for token, value in tops[0].items()}


def _listed_tokens(choice: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Texts and log-probabilities of the sampled tokens, in the form of /completions or of /chat/completions."""
    listed = choice.get("logprobs")
    if isinstance(listed, dict) and isinstance(content := listed.get("content"), list):
        entries = [entry if isinstance(entry, dict) else {} for entry in content]
        return [_token_text(entry) for entry in entries], [_logprob(entry.get("logprob")) for entry in entries]
    if isinstance(listed, dict) and isinstance(values := listed.get("token_logprobs"), list):
        tokens = listed.get("tokens")
        if not isinstance(tokens, list) or len(tokens) != len(values):
            raise _broken(f"tokens {tokens!r} for {len(values)} log-probabilities", "one text a token")
        return [*map(str, tokens)], [_logprob(value) for value in values]
    raise _no_logprobs(listed)


def _token_text(entry: Mapping[str, Any]) -> str:
    return str(entry.get("token", ""))


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = choice.get("text") if not isinstance(message, dict) else message.get("content")
    if isinstance(message, dict):
        if elsewhere := [key for key in ("reasoning_content", "reasoning", "tool_calls", "refusal") if message.get(key)]:
            raise _broken(
                f"text in {elsewhere[0]}", "all of it in content: start the server without a reasoning or tool parser"
            )
        text = "" if text is None else text
    if not isinstance(text, str):
        raise _broken(f"text {text!r}", "a string")
    return text


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value > _ROUNDING:
        raise _broken(f"log-probability {value!r}", "a number of at most 0")
    return min(0.0, float(value))


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _no_logprobs(listed: Any) -> EngineError:
    return _broken(
        f"logprobs {listed!r}",
        "log-probabilities of the tokens: choose a server that gives them, or set engine.openai.logprobs to false, "
        "which holds all steps equally likely",
    )


def _broken(content: str, expected: str) -> EngineError:
    return EngineError(f"the server's reply holds {content}; expected {expected}")
