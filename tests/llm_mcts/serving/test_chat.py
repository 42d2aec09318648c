"""Requests: what each field may say, and that nothing is passed over in silence."""

from typing import Any

import pytest

from llm_mcts.serving.chat import ChatRequest, RequestError, parse_json, read_request
from llm_mcts.serving.limits import LimitsConfig

USER = {"role": "user", "content": "1 + 1?"}
LIMITS = LimitsConfig(tokens=1000, question=20)


def read(configured: Any = "greedy", **fields: Any) -> ChatRequest:
    return read_request({"model": "m", "messages": [USER], **fields}, "m", configured, LIMITS)


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as found:
        read(**fields)
    assert "\n" not in str(found.value)
    return found.value


def test_the_least_request() -> None:
    assert read() == ChatRequest("1 + 1?", {"name": "greedy", "max_tokens": 1000})


def test_all_that_is_honoured() -> None:
    fields = {"seed": 3, "temperature": 0.5, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7}
    settings = {"name": "self_consistency", "num_samples": 2}
    expected = ChatRequest("1 + 1?", {**settings, "max_tokens": 7}, 3, 0.5, True, True)
    assert read(search=settings, **fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0, "logprobs": False, "logit_bias": {}},
        {"stop": None, "tools": None, "seed": None, "temperature": None, "max_tokens": None, "stream_options": None},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "service_tier": "auto"},
        {"user": "someone", "metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "y"},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert read(**fields) == read()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("top_p", 0.9),
        ("stop", ["\n"]),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -1),
        ("store", True),
        ("modalities", ["audio"]),
        ("reasoning_effort", "high"),
        ("top_k", 5),
        ("temperature", 0),
        ("temperature", 2.1),
        ("temperature", True),
        ("temperature", "warm"),
        ("seed", 1.5),
        ("seed", True),
        ("max_tokens", 0),
        ("max_completion_tokens", 2.5),
        ("max_completion_tokens", True),
        ("stream", "yes"),
        ("stream_options", {"include_usages": True}),
        ("stream_options", []),
        ("messages", "1 + 1?"),
        ("messages", []),
        ("messages", ["1 + 1?"]),
        ("search", 3),
        ("search", {"name": "mcts", "num_simulation": 3}),
        ("search", {"name": ["mcts"]}),
        ("search", {"name": "mcts", "max_tokens": -1}),
        ("search", {"num_simulations": "many"}),
        ("search", {"name": "mcts", "widening": "configs/quickstart.yaml"}),  # settings, never a file of the server's
        ("search", {"name": "mcts", "widening": None}),
    ],
)
def test_the_field_that_is_refused_is_named(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.status, error.param) == (400, field)
    assert field in str(error)


def test_a_misspelt_field_is_suggested() -> None:
    assert "did you mean 'temperature'" in str(refused(temprature=1))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER, {"role": "assistant", "content": "2"}, USER], "messages[0] is an earlier turn of role 'user'"),
        ([{"role": "assistant", "content": "2"}, USER], "earlier turn of role 'assistant'"),
        ([USER, {"role": "assistant", "content": "2"}], "messages is 'assistant'; expected as last role user"),
        ([{"role": "tool", "content": "2", "tool_call_id": "x"}, USER], "tool_call_id"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "images"),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text'"),
        ([{"role": "user", "content": 7}], "expected text"),
        ([{"role": "user"}], "expected text"),
        ([{"role": "user", "content": " \n"}], "empty"),
        ([{"role": "user", "content": "a" * 21}], "21 characters; expected at most 20"),
        ([{"role": "system", "content": None}, USER], "messages[0].content"),
    ],
)
def test_messages_that_are_refused(messages: list[Any], said: str) -> None:
    error = refused(messages=messages)
    assert error.status == 400
    assert said in str(error)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_has_no_effect_and_is_reported(role: str) -> None:
    asked = read(messages=[{"role": role, "content": "Be brief."}, USER])
    assert (asked.question, asked.ignored) == ("1 + 1?", ("system message",))


def test_text_parts_are_lines() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert read(messages=[{"role": "user", "content": content, "name": "Ann"}]).question == "one\ntwo"


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 1000),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 6}, 5),
        ({"max_tokens": 5000}, 1000),
        ({"search": {"name": "greedy", "max_tokens": 4}, "max_tokens": 5}, 4),
        ({"search": {"name": "greedy", "max_tokens": 10**9}}, 1000),
        ({"search": {"name": "greedy", "max_tokens": None}}, 1000),
        ({"configured": {"name": "greedy", "max_tokens": 3}, "max_tokens": 5}, 3),
    ],
)
def test_the_smallest_limit_of_tokens_holds(fields: dict[str, Any], limit: int) -> None:
    assert read(**fields).search["max_tokens"] == limit


def test_the_servers_own_search_may_be_of_any_size() -> None:
    large = {"name": "mcts", "num_simulations": 10_000, "expansion_width": 100}
    assert read(configured=large).search == {**large, "max_tokens": 1000}
    assert "expansion_width is 100; expected at most 32" in str(refused(search={"name": "mcts", "expansion_width": 100}))
    assert "num_simulations is 257; expected at most 256" in str(refused(search={"num_simulations": 257}))
    assert read(search={"num_simulations": 256, "max_lm_calls": 10_000, "c_puct": 50.0}).search["name"] == "mcts"
    assert read(search="alphallm").search["name"] == "alphallm"  # whose own root is wider than 32


@pytest.mark.parametrize(
    "raw", [b"", b"nul", b"[1]", b'"x"', b"{", b'{"a": Infinity}', b'{"a": -1e400}', b"\xff", b'["\\ud800"]']
)
def test_bodies_that_are_no_json_object(raw: bytes) -> None:
    with pytest.raises(RequestError, match="expected one JSON object"):
        parse_json(raw)


def test_a_body() -> None:
    assert parse_json('{"a": [1, 2.5, "é"]}'.encode()) == {"a": [1, 2.5, "é"]}
