"""A server on a thread, and clients of it, shared by the tests of the server and of its endpoints."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai

from llm_mcts import Solver
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.serving.limits import LimitsConfig
from llm_mcts.serving.server import ServeConfig, Server

QUESTION = "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"
QUICK = {"name": "mcts", "num_simulations": 4}
# Thousands of solutions one after the other: minutes, so that whoever sees it end soon has ended it.
ENDLESS = {"name": "self_consistency", "num_samples": 100_000, "num_parallel": 2}
EMBEDDED = Path(__file__).parents[1] / "llm_mcts" / "embedded"


class Running:
    """A server on a thread of its own, with its event loop within reach."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, int(server.url.split(":")[-1].split("/")[0])
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(server.serve()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()

    def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(20)

    @property
    def engine(self) -> TransformersEngine:
        assert isinstance(self.server.solver.engine, TransformersEngine)
        return self.server.solver.engine

    def idle(self) -> bool:
        engine = self.engine
        return not (engine.batch.active or engine.batch.waiting or engine.batch.unfinished) and self.server.gate.running == 0

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.server.url, **{"api_key": "none", "max_retries": 0, **settings})


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@contextlib.contextmanager
def running(solver: Solver, search: Any = QUICK, model: str = "embedded", **settings: Any) -> Iterator[Running]:
    limits = {"grace": 0.0, **settings.pop("limits", {})}
    solver.config = replace(solver.config, search=search)
    config = ServeConfig(solver.config, port=0, model=model, limits=LimitsConfig(**limits), **settings)
    served = Running(Server(config, solver))
    try:
        yield served
    finally:
        served.stop()


def chat(question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "embedded", "messages": [{"role": "user", "content": question}], **fields}


Reply = tuple[int, dict[str, str], Any]


def http_call(
    served: Running, body: Any = None, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
) -> Reply:
    """Status, headers and JSON of a plain request."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    try:
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        text = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(text)
    finally:
        connection.close()


def get(served: Running, path: str, **headers: str) -> Reply:
    return http_call(served, path=path, method="GET", **headers)


def error_of(reply: Reply, status: int) -> dict[str, Any]:
    """The error of a reply in OpenAI's shape."""
    assert reply[0] == status
    assert set(reply[2]) == {"error"}
    error: dict[str, Any] = reply[2]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return error


@contextlib.contextmanager
def hanging(served: Running, **fields: Any) -> Iterator[socket.socket]:
    """A request under way whose client has not read its answer."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        body = json.dumps(chat(**fields)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        yield connection
