"""The endpoints over plain HTTP: keys, and requests that are refused."""

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

from llm_mcts import Solver
from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.scripted import ScriptedEngine
from tests.server_cases import Running, chat, error_of, get, http_call, running


@pytest.fixture(scope="module")
def solver() -> Solver:
    """The one that is served; its engine may be awaited on one event loop after another."""
    return Solver()


@pytest.fixture
def served(solver: Solver) -> Iterator[Running]:
    with running(solver) as served:
        yield served


# Keys


def test_keys(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERVER_KEY", "sésame")
    with running(solver, key_variable="TEST_SERVER_KEY") as served:
        for header in ("", "Bearer wrong", "sésame", "Basic sésame", "Bearer", "Bearer sésame2"):
            for reply in (
                get(served, "/v1/models", Authorization=header),
                http_call(served, chat(), Authorization=header),
                http_call(served, b"rubbish", Authorization=header),
            ):
                assert error_of(reply, 401)["code"] == "invalid_api_key"
                assert reply[1]["www-authenticate"] == "Bearer"
                assert "same" not in json.dumps(reply[2])
        assert get(served, "/health")[0] == 200
        assert get(served, "/v1/models", Authorization="Bearer sésame")[0] == 200


def test_the_official_clients_key(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERVER_KEY", "sesame")
    with running(solver, key_variable="TEST_SERVER_KEY") as served:
        assert served.client(api_key="sesame").chat.completions.create(**chat()).choices
        with pytest.raises(openai.AuthenticationError):
            served.client(api_key="other").chat.completions.create(**chat())


# Requests that are refused


@pytest.mark.parametrize(
    "body", [b"", b"[", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"seed": NaN}', b'{"seed": 1e999}', b'"\\ud800"']
)
def test_rubbish_is_refused(served: Running, body: bytes) -> None:
    assert "expected one JSON object" in error_of(http_call(served, body), 400)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_other_content_types(served: Running, kind: str) -> None:
    assert "application/json" in error_of(http_call(served, chat(), Content_Type=kind), 415)["message"]


def test_another_model(served: Running) -> None:
    for body in (chat() | {"model": "gpt-5"}, {"messages": []}):
        error = error_of(http_call(served, body), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "embedded" in error["message"]
    assert error_of(get(served, "/v1/models/gpt-5"), 404)["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        served.client().chat.completions.create(**chat() | {"model": "gpt-5"})


def test_a_question_too_long(solver: Solver) -> None:
    with running(solver, limits={"question": 100_000, "body": 200_000}) as served:
        error = error_of(http_call(served, chat("a" * 100_001)), 400)
        assert error["code"] == "string_above_max_length"
        assert "100001" in error["message"]
        error = error_of(http_call(served, chat("word " * 5_000)), 400)
        assert error["code"] == "context_length_exceeded"
        assert error_of(http_call(served, chat("a" * 200_001)), 413)["code"] is None


def test_a_body_without_end(served: Running) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        )
        connection.sendall(f"{head}\r\n".encode())
        with contextlib.suppress(ConnectionError):  # it is refused in the middle of what is sent
            for _ in range(20):
                connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        assert b"413" in connection.recv(1000)


def test_a_body_that_does_not_come(solver: Solver) -> None:
    with running(solver, limits={"seconds": 0.2}) as served, socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(20)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        connection.sendall(f"{head}\r\n{{".encode())
        assert b"408" in connection.recv(1000)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ({"name": "mcts", "num_simulations": 257}, "num_simulations is 257"),
        ({"name": "mcts", "rollouts": 33}, "rollouts is 33"),
        ({"name": "mcts", "widening": {"kind": "importance", "max_children": 33}}, "max_children is 33"),
        ({"name": "self_consistency", "num_samples": "1000"}, "num_samples"),
    ],
)
def test_unbounded_work_is_refused(served: Running, search: dict[str, Any], found: str) -> None:
    error = error_of(http_call(served, chat(search=search)), 400)
    assert error["param"] == "search"
    assert found in error["message"]


def test_a_search_that_cannot_be_run_here(served: Running) -> None:
    error = error_of(http_call(served, chat(search="best_of_n")), 400)
    assert error["param"] == "search"
    assert "no critic" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/docs", 404)]
)
def test_other_places(served: Running, method: str, path: str, status: int) -> None:
    assert "/v1/chat/completions" in error_of(http_call(served, None, path, method), status)["message"]


class FailingEngine(ScriptedEngine):
    async def generate(self, request: Request) -> list[Completion]:
        raise OSError("the secret place /etc/model is gone")


def test_an_internal_failure_tells_no_internals(caplog: pytest.LogCaptureFixture) -> None:
    with running(Solver(engine=FailingEngine(lambda _: []))) as served:
        for stream in (False, True):
            reply = http_call(served, chat(stream=stream))
            error_of(reply, 500)
            assert "secret" not in json.dumps(reply[2])
    assert "the secret place" in caplog.text


def test_no_usage_is_made_up_without_a_tokenizer() -> None:
    def script(prompt: str) -> Sequence[tuple[str, float]]:
        return [("#### 7", 1.0)] if prompt.endswith("Answer:\n") else []

    with running(Solver(engine=ScriptedEngine(script))) as served:
        reply = http_call(served, chat())[2]
    assert reply["choices"][0]["message"]["content"] == "#### 7"
    assert (reply["usage"], reply["search"]["answer"]) == (None, "7")
