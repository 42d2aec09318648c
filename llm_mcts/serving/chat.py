"""OpenAI's chat completions, as far as a search can keep to them: requests are read here, without a web framework.

What a request says is honoured or refused with the name of its field, never passed over. `seed`, `temperature` and
`max_completion_tokens` (or `max_tokens`) are the search's; the field `search`, a name or a mapping as in SolverConfig, is this
server's own. Only a system message has no effect, and the reply says so.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

from llm_mcts.errors import ConfigError, LLMMCTSError, suggest
from llm_mcts.serving.limits import LimitsConfig
from llm_mcts.settings import build_search

# Fields that change nothing in a reply, and fields that are accepted only with values that change nothing.
LABELS = {"metadata", "prompt_cache_key", "safety_identifier", "user"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop": ([], ""),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
}
HONOURED = {
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "search",
    "seed",
    "stream",
    "stream_options",
    "temperature",
}
REPEATS = ("num_simulations", "num_samples")
"""The searches' settings for how often; every other whole number is a width or a depth."""
BUDGETS = ("max_tokens", "max_lm_calls", "max_seconds")
"""Settings that only make a search smaller."""


class RequestError(LLMMCTSError):
    """A request that gets an error instead of a reply."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> None:
        """`headers`: with underscores for hyphens."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error shape."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be answered."""

    question: str
    search: dict[str, Any]
    """The search's name and settings, within the server's limits."""
    seed: int | None = None
    temperature: float | None = None
    stream: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()
    """Parts of the request that had no effect."""


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body of a request; numbers are finite and texts can be written.

    Raises:
        RequestError: it is no JSON object.
    """
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {' '.join(str(error).split())}; expected one JSON object") from error
    if not isinstance(body, dict):
        raise RequestError(400, f"the body is a JSON {type(body).__name__}; expected one JSON object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value


def read_request(body: Mapping[str, Any], model: str, configured: str | Mapping[str, Any], limits: LimitsConfig) -> ChatRequest:
    """What the request asks for.

    Args:
        body: the request.
        model: the name that this server's model goes by.
        configured: the search that is used when the request names none.
        limits: what a request may ask for.

    Raises:
        RequestError: a field is missing, wrong, or not supported.
    """
    body = {name: value for name, value in body.items() if value is not None}
    for name, value in body.items():
        _check_field(name, value)
    if body.get("model") != model:
        found = reprlib.repr(body["model"]) if "model" in body else "missing"
        raise RequestError(404, f"the model {found} does not exist; expected '{model}'", "model", "model_not_found")
    question, ignored = _read_messages(body.get("messages"), limits.question)
    stream, options = body.get("stream", False), body.get("stream_options", {})
    if not isinstance(stream, bool):
        _refuse("stream", stream, "true or false")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        _refuse("stream_options", options, '{"include_usage": true or false}')
    return ChatRequest(
        question,
        _read_search(body.get("search"), configured, _max_tokens(body), limits),
        _read_seed(body.get("seed")),
        _read_temperature(body.get("temperature")),
        stream,
        stream and options.get("include_usage") is True,
        ignored,
    )


def _refuse(field: str, found: Any, expected: str) -> NoReturn:
    raise RequestError(400, f"{field} is {reprlib.repr(found)}; expected {expected}", field, "invalid_value")


def _check_field(name: str, value: Any) -> None:
    if name in NEUTRAL:
        if value not in NEUTRAL[name]:
            allowed = " or ".join(json.dumps(v) for v in NEUTRAL[name])
            raise RequestError(
                400,
                f"{name} is {reprlib.repr(value)}, which is not supported; expected {allowed}, or leave {name} out",
                name,
                "unsupported_parameter",
            )
    elif name not in HONOURED | LABELS:
        known = [*HONOURED, *LABELS, *NEUTRAL]
        raise RequestError(400, f"unknown field '{reprlib.repr(name)[1:-1]}'{suggest(name, known)}", name, "unknown_parameter")


def _read_messages(messages: Any, longest: int) -> tuple[str, tuple[str, ...]]:
    """The question, and what of the messages has no effect."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        _refuse("messages", messages, 'a list of messages, as [{"role": "user", "content": "…"}]')
    *before, last = messages
    if last.get("role") != "user":
        _refuse("messages", last.get("role"), "as last role user, with the question")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if extra := {name for name, value in message.items() if value is not None} - {"role", "content", "name"}:
            raise RequestError(
                400, f"{where} has {min(extra)!r}; expected role and content only", where, "unsupported_parameter"
            )
        if i < len(before) and message.get("role") not in ("system", "developer"):
            raise RequestError(
                400,
                f"{where} is an earlier turn of role {reprlib.repr(message.get('role'))}; expected one user message: every "
                "question is searched by itself, so put all it needs into it",
                where,
                "unsupported_value",
            )
        _text(message.get("content"), where)
    question = _text(last.get("content"), f"messages[{len(before)}]")
    if not question.strip():
        raise RequestError(400, "the question is empty; expected some text", "messages", "invalid_value")
    if len(question) > longest:
        raise RequestError(
            400,
            f"the question has {len(question)} characters; expected at most {longest}",
            "messages",
            "string_above_max_length",
        )
    return question, ("system message",) if before else ()


def _text(content: Any, where: str) -> str:
    """The text of a message: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        _refuse(f"{where}.content", content, "text")
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                400,
                f"{where}.content has a part of type {reprlib.repr(part.get('type'))}; expected text: images, sound and files "
                "are not supported",
                f"{where}.content",
                "unsupported_value",
            )
    return "\n".join(part["text"] for part in content)


def _read_seed(seed: Any) -> int | None:
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        _refuse("seed", seed, "a whole number")
    return seed


def _read_temperature(temperature: Any) -> float | None:
    if temperature is None:
        return None
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature <= 2:
        _refuse("temperature", temperature, 'above 0, at most 2 (for greedy decoding send "search": "greedy" without it)')
    return float(temperature)


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """The request's limit of sampled tokens, by its new or its old name."""
    given = {name: body[name] for name in ("max_completion_tokens", "max_tokens") if name in body}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            _refuse(name, value, "a whole number, at least 1")
    return min(given.values(), default=None)


def _read_search(given: Any, configured: str | Mapping[str, Any], tokens: int | None, limits: LimitsConfig) -> dict[str, Any]:
    """The search to run: the request's or the configured one, with the smallest limit of tokens that anyone set."""
    search = configured if given is None else given
    try:
        name, config = build_search(search)
    except ConfigError as error:
        raise RequestError(400, str(error), "search", "invalid_value") from error
    if isinstance(given, dict):
        _check_sizes("search", given, config, limits)
    settings = {"name": name} if isinstance(search, str) else {**search, "name": name}
    settings["max_tokens"] = min(n for n in (tokens, config.max_tokens, limits.tokens) if n is not None)
    return settings


def _check_sizes(where: str, given: Mapping[str, Any], config: Any, limits: LimitsConfig) -> None:
    """Refuse sizes above the server's; those that stand in its own configuration or are defaults pass."""
    for key, value in given.items():
        if key == "name" or key in BUDGETS:
            continue
        built, most = getattr(config, key), limits.repeats if key in REPEATS else limits.width
        if isinstance(value, Mapping):
            _check_sizes(f"{where}.{key}", value, built, limits)
        elif isinstance(built, int) and built > most:
            raise RequestError(
                400, f"{where}.{key} is {built}; expected at most {most} on this server", "search", "invalid_value"
            )
