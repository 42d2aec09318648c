"""The server as clients meet it: the official client, many at once, clients that leave, limits, starting and stopping."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from llm_mcts import SearchResult, Solver, SolverConfig
from llm_mcts.cli import main
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.serving.server import ServeConfig, Server
from tests.server_cases import (
    EMBEDDED,
    ENDLESS,
    QUESTION,
    QUICK,
    Running,
    chat,
    error_of,
    eventually,
    get,
    hanging,
    http_call,
    running,
)


@pytest.fixture(scope="module")
def solver() -> Solver:
    """The one that is served; its engine may be awaited on one event loop after another."""
    return Solver()


@pytest.fixture(scope="module")
def expected() -> SearchResult:
    """The same search without a server."""
    return Solver(SolverConfig(search=QUICK)).solve(QUESTION)


@pytest.fixture
def served(solver: Solver) -> Iterator[Running]:
    with running(solver) as served:
        yield served


def tokens(*segments: str) -> int:
    """What the tokenizer makes of texts, without our code in between."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    return sum(len(tokenizer(segment, add_special_tokens=False).input_ids) for segment in segments)


# What a client gets


def test_the_official_client_gets_an_answer(served: Running, expected: SearchResult) -> None:
    reply = served.client().chat.completions.create(**chat())
    [choice] = reply.choices
    assert choice.message.content == "\n".join(expected.steps)
    assert (choice.message.role, choice.finish_reason, reply.model) == ("assistant", "stop", "embedded")
    usage = reply.usage
    assert usage is not None
    prompt = tokens(f"Question: {QUESTION}\nAnswer:\n")
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, expected.usage.generated_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    shown = tokens(*(f"{step}\n" for step in expected.steps))
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == expected.usage.generated_tokens - shown
    cost: dict[str, Any] = reply.model_extra["search"]  # type: ignore[index]
    for name in ("generated_tokens", "lm_calls", "critic_calls", "critic_tokens"):
        assert cost[name] == getattr(expected.usage, name)
    read = expected.usage.prefilled_tokens + expected.usage.reused_tokens
    assert cost["prefilled_tokens"] + cost["reused_tokens"] == read
    assert (cost["name"], cost["answer"], cost["confidence"]) == ("mcts", expected.answer, expected.confidence)
    assert 0 < cost["seconds"] < 20


def test_the_official_client_streams_an_answer(served: Running, expected: SearchResult) -> None:
    stream = served.client().chat.completions.create(**chat(), stream=True, stream_options={"include_usage": True})
    *steps, end, usage = list(stream)
    lines = [f"{step}\n" for step in expected.steps[:-1]] + [expected.steps[-1]]
    assert [chunk.choices[0].delta.content for chunk in steps] == lines
    assert [chunk.choices[0].delta.role for chunk in steps] == ["assistant"] + [None] * (len(lines) - 1)
    assert [chunk.choices[0].finish_reason for chunk in steps] == [None] * len(lines)
    assert (end.choices[0].finish_reason, end.choices[0].delta.content) == ("stop", None)
    assert end.model_extra["search"]["answer"] == expected.answer  # type: ignore[index]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == expected.usage.generated_tokens
    assert len({chunk.id for chunk in [*steps, end, usage]}) == 1


def test_a_stream_without_usage_ends_with_done(served: Running, expected: SearchResult) -> None:
    with hanging(served, stream=True) as connection, connection.makefile("rb") as answer:
        text = b""
        while b"[DONE]" not in text:
            text += answer.readline()
    assert b"200 OK" in text
    assert b"text/event-stream" in text
    assert text.count(b"data: {") == len(expected.steps) + 1
    assert b'"usage"' not in text


def test_the_seed_and_the_temperature_count(served: Running) -> None:
    """Compared by what was sampled, which hundreds of draws hardly share."""
    asked = {"search": {"name": "self_consistency", "num_samples": 16}}
    whole: dict[str, int] = {}
    for label, fields in {"plain": {}, "seed": {"seed": 1}, "hot": {"temperature": 2}, "same": {"temperature": 0.8}}.items():
        status, _, reply = http_call(served, chat(**asked, **fields))
        assert status == 200
        whole[label] = reply["search"]["generated_tokens"]
    direct = Solver(SolverConfig(search=asked["search"], seed=1)).solve(QUESTION)
    assert whole["seed"] == direct.usage.generated_tokens
    assert whole["same"] == whole["plain"]
    assert len(set(whole.values())) == 3


def test_the_request_chooses_its_search(served: Running) -> None:
    assert http_call(served, chat(search="greedy"))[2]["search"]["lm_calls"] == 1
    assert http_call(served, chat(search={"name": "self_consistency", "num_samples": 3}))[2]["search"]["lm_calls"] == 1
    assert http_call(served, chat())[2]["search"]["name"] == "mcts"


def test_a_limit_of_tokens_ends_the_search(served: Running) -> None:
    search = {"name": "self_consistency", "num_samples": 100, "num_parallel": 1}
    for fields in ({"max_completion_tokens": 30}, {"max_tokens": 30}, {"search": {**search, "max_tokens": 30}}):
        status, _, reply = http_call(served, chat(**{"search": search, **fields}))
        assert (status, reply["choices"][0]["finish_reason"]) == (200, "length")
        assert 30 <= reply["usage"]["completion_tokens"] < 30 + 400  # one solution more, of 400 tokens at most


def test_the_servers_limit_of_tokens_is_the_last_word(solver: Solver) -> None:
    with running(solver, limits={"tokens": 30}) as served:
        search = {"name": "self_consistency", "num_samples": 100, "num_parallel": 1, "max_tokens": 10**9}
        reply = http_call(served, chat(search=search, max_tokens=10**9))[2]
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] < 30 + 400


def test_a_system_message_is_passed_over_with_a_word(served: Running, expected: SearchResult) -> None:
    parts = [{"type": "text", "text": QUESTION}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    reply = http_call(served, {"model": "embedded", "messages": messages})[2]
    assert reply["choices"][0]["message"]["content"] == "\n".join(expected.steps)
    assert reply["search"]["ignored"] == ["system message"]


def test_models_and_health(served: Running) -> None:
    assert [model.id for model in served.client().models.list()] == ["embedded"]
    assert served.client().models.retrieve("embedded").object == "model"
    assert get(served, "/health")[::2] == (200, {"status": "ok", "running": 0, "waiting": 0})


# Many at once, and clients that leave


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


async def all_at_once(served: Running, number: int) -> list[tuple[str, str]]:
    """The ids and ends of as many answers, half of them streamed."""
    search = {"search": {"name": "mcts", "num_simulations": 2}}

    async with openai.AsyncOpenAI(base_url=served.server.url, api_key="none", max_retries=0, timeout=100) as client:

        async def one(boxes: int) -> tuple[str, str]:
            asked = chat(f"Mia has {boxes} boxes with 4 shells each. How many shells does Mia have?")
            if boxes % 2:
                reply = await client.chat.completions.create(**asked, extra_body=search)
            else:
                stream = await client.chat.completions.create(**asked, extra_body=search, stream=True)
                *_, reply = [chunk async for chunk in stream]
            return reply.id, reply.choices[0].finish_reason

        return list(await asyncio.gather(*map(one, range(number))))


def test_200_at_once_end_without_error_or_leak(served: Running) -> None:
    asyncio.run(all_at_once(served, 2))
    eventually(served.idle)
    tasks, files = served.tasks(), open_files()
    replies = asyncio.run(all_at_once(served, 200))
    assert [end for _, end in replies] == ["stop"] * 200
    assert len({name for name, _ in replies}) == 200
    eventually(served.idle)
    eventually(lambda: served.tasks() <= tasks)
    eventually(lambda: open_files() <= files)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_search(solver: Solver, stream: bool) -> None:
    with running(solver, ENDLESS, limits={"keep_alive": 0.2, "tokens": 10**9}) as served:
        before = served.tasks()
        with hanging(served, stream=stream) as connection:
            eventually(lambda: bool(served.engine.batch.active))
            if stream:
                assert b"200 OK" in connection.recv(1000)
                assert b": searching" in connection.recv(1000)
        eventually(served.idle)
        steps = served.engine.batch.decode_steps
        time.sleep(0.3)
        assert served.engine.batch.decode_steps == steps
        eventually(lambda: served.tasks() <= before)


def test_a_client_that_leaves_the_queue_gives_up_its_place(solver: Solver) -> None:
    with running(solver, ENDLESS, limits={"concurrent": 1, "tokens": 10**9}) as served:
        gate = served.server.gate
        with hanging(served):
            eventually(lambda: gate.running == 1)
            with hanging(served):
                eventually(lambda: gate.waiting == 1)
            eventually(lambda: gate.waiting == 0)
            assert gate.running == 1
        eventually(served.idle)


def test_a_full_queue_turns_away(solver: Solver) -> None:
    with running(solver, ENDLESS, limits={"concurrent": 1, "queue": 1, "tokens": 10**9}) as served:
        gate = served.server.gate
        with hanging(served), hanging(served):
            eventually(lambda: (gate.running, gate.waiting) == (1, 1))
            for stream in (False, True):
                reply = http_call(served, chat(stream=stream))
                assert error_of(reply, 429)["code"] == "queue_full"
                assert int(reply[1]["retry-after"]) >= 1
            with pytest.raises(openai.RateLimitError):
                served.client().chat.completions.create(**chat())
            assert get(served, "/health")[2] == {"status": "ok", "running": 1, "waiting": 1}
        eventually(served.idle)


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_limit(solver: Solver, stream: bool) -> None:
    with running(solver, ENDLESS, limits={"seconds": 0.3, "tokens": 10**9}) as served:
        started = time.monotonic()
        reply = http_call(served, chat(stream=stream))
        assert 0.3 <= time.monotonic() - started < 5
        error = error_of(reply, 504)
        assert (error["code"], reply[1]["x-should-retry"]) == ("timeout", "false")
        assert "0.3 s" in error["message"]
        eventually(served.idle)


def test_an_error_within_a_stream_reaches_the_official_client(solver: Solver) -> None:
    with running(solver, ENDLESS, limits={"seconds": 0.5, "keep_alive": 0.1, "tokens": 10**9}) as served:
        stream = served.client().chat.completions.create(**chat(), stream=True)
        with pytest.raises(openai.APIError, match=r"longer than 0\.5 s"):
            list(stream)


# Starting and stopping


def test_searches_may_finish_before_the_end(solver: Solver) -> None:
    """They take about a second; the second client comes too late."""
    search = {"name": "self_consistency", "num_samples": 40, "num_parallel": 1}
    with running(solver, search, limits={"grace": 30.0}) as served, hanging(served) as connection:
        eventually(lambda: served.server.gate.running == 1)
        served.server.stop()
        assert error_of(http_call(served, chat()), 503)["code"] == "shutting_down"
        assert get(served, "/health")[::2] == (503, {"status": "shutting down", "running": 1, "waiting": 0})
        assert b"200 OK" in connection.recv(100)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_grace(solver: Solver, signum: signal.Signals) -> None:
    with running(solver, ENDLESS, limits={"grace": 60.0, "tokens": 10**9}) as served, hanging(served) as connection:
        eventually(lambda: served.server.gate.running == 1)
        served.server._uvicorn.handle_exit(signum, None)
        time.sleep(0.3)
        assert served.server.gate.running == 1
        served.server._uvicorn.handle_exit(signum, None)
        assert b"503" in connection.recv(100)


def test_the_engine_is_closed_at_the_end() -> None:
    closed: list[str] = []

    class Closing(ScriptedEngine):
        async def aclose(self) -> None:
            closed.append("engine")

    with running(Solver(engine=Closing(lambda _: []))):
        assert closed == []
    assert closed == ["engine"]


@contextlib.contextmanager
def started(*argv: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """The real command in a process of its own, and a client of it once it listens."""
    command = [sys.executable, "-m", "llm_mcts.cli", "serve", "--port", "0", "--json", *argv]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=EMBEDDED.parents[1]
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["model"] == "embedded"
            yield process, openai.OpenAI(base_url=ready["url"], api_key="none", max_retries=0, timeout=20)
        finally:
            process.kill()


def test_ctrl_c_ends_it_cleanly() -> None:
    """With a search under way that does not end in time."""
    argv = ["--solver.search", json.dumps(ENDLESS), "--limits.grace", "0.3", "--limits.tokens", "1000000000"]
    with started(*argv) as (process, client):
        assert client.chat.completions.create(**chat(), extra_body={"search": "greedy"}).choices
        threading.Timer(0.3, process.send_signal, [signal.SIGINT]).start()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            client.chat.completions.create(**chat())
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def one_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(["serve", *argv]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    [line] = output.err.strip().splitlines()
    assert line.startswith("llm-mcts: ")
    return line


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose" in one_line(
            capsys, ["--port", str(port)]
        )


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [
        ("--host", "192.0.2.1", "cannot listen on 192.0.2.1"),
        ("--port", "65536", "port is 65536"),
        ("--key_variable", "NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE"),
        ("--limits.concurrent", "0", "limits.concurrent is 0"),
        ("--limits.seconds", "0", "limits.seconds is 0"),
        ("--limits.queue", "-1", "limits.queue is -1"),
        ("--prot", "80", "did you mean 'port'"),
        ("--solver.search.name", "mtcs", "did you mean 'mcts'"),
        ("--solver.engine.model", "/nowhere/model", "/nowhere/model"),
    ],
)
def test_settings_that_cannot_be_used(capsys: pytest.CaptureFixture[str], setting: str, value: str, found: str) -> None:
    argv = [setting, value] if setting == "--port" else ["--port", "0", setting, value]
    assert found in one_line(capsys, argv)


def test_a_missing_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'llm-mcts[serve]'" in one_line(capsys, [])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--help-all"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "llm-mcts serve --port 8000" in text
    for setting in ("--host", "--port", "--model", "--key_variable", "--limits.queue", "--solver.search"):
        assert setting in text


def test_a_warning_where_anyone_may_come(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERVER_KEY", "sesame")
    warnings = {}
    for host, variable in (("127.0.0.1", None), ("0.0.0.0", None), ("0.0.0.0", "TEST_SERVER_KEY")):
        server = Server(ServeConfig(host=host, port=0, key_variable=variable), solver)
        warnings[host, variable] = server.warning
        assert server.url.startswith("http://127.0.0.1:")
        server.close()
    assert warnings.pop(("0.0.0.0", None)).startswith("warning: 0.0.0.0 can be reached")  # type: ignore[union-attr]
    assert set(warnings.values()) == {None}


def test_names_of_models(tiny_model: Path) -> None:
    names = {
        ServeConfig().name: "embedded",
        ServeConfig(model="mine").name: "mine",
        ServeConfig(SolverConfig(engine=EngineConfig(model=str(tiny_model)))).name: "tiny",
        ServeConfig(SolverConfig(engine=EngineConfig(model="org/model"))).name: "org/model",
    }
    assert list(names) == list(names.values())
