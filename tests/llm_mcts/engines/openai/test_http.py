"""Faults of servers, and how replicas share the work: every one a real server on loopback that misbehaves."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.cli import main
from llm_mcts.config import load_config
from llm_mcts.engines.base import Completion, EngineConfig, OpenAIConfig, Request
from llm_mcts.engines.openai import http
from llm_mcts.engines.openai.engine import OpenAIEngine
from llm_mcts.engines.openai.http import Replicas
from llm_mcts.errors import ConfigError, EngineError, LLMMCTSError, ModelError
from llm_mcts.runner import Record, run_questions
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks.base import AnswerTask
from llm_mcts.types import Problem
from tests.fake_openai import Call, FakeServer, Fault, reply, serving

KEY = "sk-test-0123456789"
REQUEST = Request(("Question?\n",), 1, 9)
GOOD = reply("ab", "length")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config_for(*urls: str, **settings: Any) -> EngineConfig:
    return EngineConfig(name="openai", model="made-up", openai=OpenAIConfig(urls, **{"retries": 2, "backoff": 0.0, **settings}))


def one(answer: Callable[[Call], Any], **settings: Any) -> tuple[Completion, list[Call]]:
    with serving(answer) as server:
        [completion] = asyncio.run(OpenAIEngine(config_for(server.url, **settings)).generate(REQUEST))
    return completion, server.calls


def fails(answer: Callable[[Call], Any], **settings: Any) -> tuple[LLMMCTSError, int]:
    """The error of one request, and how many times the server was asked."""
    with serving(answer) as server, pytest.raises(LLMMCTSError) as caught:
        asyncio.run(OpenAIEngine(config_for(server.url, **settings)).generate(REQUEST))
    assert "\n" not in str(caught.value)
    return caught.value, len(server.calls)


def sequence(*answers: Any) -> Callable[[Call], Any]:
    """Answers one after another; the last one for good."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# Faults that another try may mend

PASSING = {
    "timeout": (Fault(silent=True), "no reply within 0.2 s"),
    "reset": (Fault(reset=True), "RemoteProtocolError|ReadError"),
    "cut": (Fault(body=json.dumps(GOOD), cut=True), "RemoteProtocolError"),
    "408": (Fault(408, "slow"), "status 408: slow"),
    "409": (Fault(409, '{"error": "busy"}'), "status 409: busy"),
    "429": (Fault(429, '{"error": {"message": "too many"}}'), "status 429: too many"),
    "500": (Fault(500, "<html>\noops</html>"), "status 500: <html> oops</html>"),
    "503": (Fault(503, ""), r"status 503: \(nothing\)"),
}


@pytest.mark.parametrize("name", PASSING)
def test_tries_are_bounded_and_the_last_fault_is_told(name: str) -> None:
    fault, said = PASSING[name]
    error, asked = fails(lambda _: fault, **({"timeout": 0.2} if name == "timeout" else {}))
    assert type(error) is EngineError
    assert asked == 3  # the first and two more
    assert re.search(f"no reply after 3 tries, the last to http://127.0.0.1:.*({said})", str(error))


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_got_over(name: str) -> None:
    settings = {"timeout": 0.5} if name == "timeout" else {}
    completion, calls = one(sequence(PASSING[name][0], PASSING[name][0], GOOD), **settings)
    assert completion == Completion("ab", -1.0, 2, "length")
    assert len(calls) == 3
    assert calls[0].body == calls[1].body == calls[2].body  # the seed too


def test_no_retries() -> None:
    assert fails(lambda _: Fault(500), retries=0)[1] == 1


def test_a_server_that_drips_is_timed_as_a_whole() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async def run() -> float:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        engine, started = OpenAIEngine(config_for(url, timeout=0.2, retries=0)), time.monotonic()
        with pytest.raises(EngineError, match=r"no reply within 0\.2 s"):
            await engine.generate(REQUEST)
        await engine.aclose()
        server.close()
        return time.monotonic() - started

    assert asyncio.run(run()) < 2


def test_nobody_listens() -> None:
    with serving(lambda _: GOOD) as server:
        url = server.url
    with pytest.raises(EngineError, match=r"no reply after 3 tries.*ConnectError"):
        asyncio.run(OpenAIEngine(config_for(url)).generate(REQUEST))


def test_pauses_grow_and_scatter() -> None:
    replicas = Replicas(OpenAIConfig(("http://127.0.0.1:9/v1",), backoff=0.5))
    for attempt, longest in [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (500, 60.0)]:
        pauses = [replicas._pause(attempt) for _ in range(100)]
        assert longest / 2 <= min(pauses) < max(pauses) < longest
        assert len(set(pauses)) > 50


def test_retry_after_is_kept() -> None:
    times: list[float] = []

    def answer(_: Call) -> Any:
        times.append(time.monotonic())
        return Fault(429, "later", {"Retry-After": "0.4"}) if len(times) == 1 else GOOD

    one(answer)
    assert times[1] - times[0] >= 0.39  # timers may be a few milliseconds early


def test_retry_after_holds_back_everyone() -> None:
    """A second question does not disturb a server that asked to wait."""
    times: list[float] = []

    def answer(_: Call) -> Any:
        times.append(time.monotonic())
        return Fault(503, "", {"Retry-After": "0.4"}) if len(times) == 1 else GOOD

    async def run(engine: OpenAIEngine) -> None:
        first = asyncio.create_task(engine.generate(REQUEST))
        await asyncio.sleep(0.15)
        await engine.generate(REQUEST)
        await first

    with serving(answer) as server:
        asyncio.run(run(OpenAIEngine(config_for(server.url))))
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.39


def test_retry_after_longer_than_a_try_may_take() -> None:
    error, asked = fails(lambda _: Fault(429, "", {"Retry-After": "3600"}))
    assert asked == 1
    assert "asked to wait, the shortest for 3600 s; expected at most engine.openai.timeout = 120 s" in str(error)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        *[(None, 0, 0), ("7", 7, 7), ("0.5", 0.5, 0.5), ("-3", 0, 0), ("soon", 0, 0), ("nan", 0, 0), ("inf", 0, 0)],
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_reading_retry_after(value: str | None, least: float, most: float) -> None:
    assert least <= http._retry_after(value) <= most


def test_reading_retry_after_a_date_to_come() -> None:
    tomorrow = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    assert 3600 <= http._retry_after(tomorrow) <= 86_400


# Faults that no further try mends


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_fails_at_once_in_the_servers_words(status: int) -> None:
    error, asked = fails(lambda _: Fault(status, '{"error": {"message": "context of 512 tokens\\nexceeded"}}'))
    assert asked == 1
    assert isinstance(error, EngineError)
    assert f"refused with status {status}: context of 512 tokens exceeded; expected status 200" in str(error)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run(status: int) -> None:
    error, asked = fails(lambda _: Fault(status, '{"detail": "no such thing"}'))
    assert asked == 1
    assert isinstance(error, ModelError)
    assert "no such thing" in str(error)
    assert "OPENAI_API_KEY" in str(error)


def test_a_redirect_is_not_followed() -> None:
    error, asked = fails(lambda _: Fault(307, "", {"Location": "http://127.0.0.1:9/v1/completions"}))
    assert asked == 1
    assert "status 307" in str(error)


def test_long_messages_are_cut_in_words() -> None:
    error, _ = fails(lambda _: Fault(400, "x" * 700))
    assert "x" * 500 + "… (200 characters more)" in str(error)


BROKEN = {
    "not JSON": Fault(body="<html>Welcome</html>"),
    "nothing": Fault(body=""),
    "half JSON": Fault(body=json.dumps(GOOD)[:-5]),
    "a list": [GOOD],
    "a number": 7,
    "an error with status 200": {"error": {"message": "out of memory"}},
    "no choices": {"usage": GOOD["usage"]},
    "an empty choice list": {**GOOD, "choices": []},
    "two choices": {**GOOD, "choices": GOOD["choices"] * 2},
    "a choice that is none": {**GOOD, "choices": ["ab"]},
    "no text": {**GOOD, "choices": [{"finish_reason": "stop"}]},
    "text that is none": {**GOOD, "choices": [{**GOOD["choices"][0], "text": 7}]},
    "no finish": {**GOOD, "choices": [{**GOOD["choices"][0], "finish_reason": None}]},
    "a strange finish": {**GOOD, "choices": [{**GOOD["choices"][0], "finish_reason": "content_filter"}]},
    "no usage": {"choices": GOOD["choices"]},
    "more tokens than asked for": {**GOOD, "usage": {"prompt_tokens": 5, "completion_tokens": 10}},
    "no log-probabilities": {**GOOD, "choices": [{**GOOD["choices"][0], "logprobs": None}]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_is_an_error_at_once(name: str) -> None:
    error, asked = fails(lambda _: BROKEN[name])
    assert type(error) is EngineError
    assert asked == 1
    assert "expected" in str(error)


# A question fails, the others go on

ANSWER = reply("One and one is two.\n#### 2\n", usage={"prompt_tokens": 5, "completion_tokens": 27})


def run(answer: Callable[[Call], Any], **settings: Any) -> tuple[list[Record], list[Call]]:
    """Six questions answered greedily."""
    problems = [Problem(f"id{i}", f"question {i}", "2") for i in range(6)]
    with serving(answer) as server:
        config = config_for(server.url, **settings)
        solver = Solver(SolverConfig(config, search="greedy"))
        records = asyncio.run(run_questions(problems, solver.asolve, AnswerTask().check))
    return records, server.calls


@pytest.mark.parametrize("name", [*PASSING, "rubbish", "refused"])
def test_a_failed_question_is_a_record_and_the_others_finish(name: str) -> None:
    faults = {**{k: v for k, (v, _) in PASSING.items()}, "rubbish": Fault(body="?"), "refused": Fault(400, "no")}
    # Only the silent server needs an end to waiting; the others must not meet it on a busy machine.
    settings = {"timeout": 0.5} if name == "timeout" else {}
    records, calls = run(lambda call: faults[name] if "question 3" in call.body["prompt"] else ANSWER, **settings)
    assert [record.correct for record in records] == [True] * 3 + [None] + [True] * 2
    failed = records[3]
    assert failed.error is not None
    assert failed.error.startswith(("EngineError: ", "RefusedError: "))
    assert (failed.answer, failed.solution) == (None, "")
    assert len(calls) == 5 + (1 if name in ("rubbish", "refused") else 3)
    assert all(record.solution == "One and one is two.\n#### 2" for record in records if record is not failed)


def test_a_wrong_key_ends_the_run() -> None:
    with pytest.raises(ModelError, match="who are you"):
        run(lambda _: Fault(401, "who are you"))


# Replicas


@pytest.fixture
def fleet() -> Iterator[Callable[..., list[FakeServer]]]:
    """Starts servers, one for each way to answer."""
    with ExitStack() as stack:
        yield lambda *answers, delay=0.0: [stack.enter_context(serving(answer, delay)) for answer in answers]


def good(_: Call) -> Any:
    return GOOD


def ask(engine: OpenAIEngine, times: int) -> list[Any]:
    async def every() -> list[Any]:
        found = await asyncio.gather(*(engine.generate(REQUEST) for _ in range(times)), return_exceptions=True)
        await engine.aclose()
        return list(found)

    return asyncio.run(every())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_bounded(fleet: Callable[..., list[FakeServer]], concurrency: int) -> None:
    servers = fleet(good, good, delay=0.02)
    engine = OpenAIEngine(config_for(*(server.url for server in servers), concurrency=concurrency))
    assert len([c for [c] in ask(engine, 20) if c.text == "ab"]) == 20
    assert [server.most_in_flight for server in servers] == [concurrency] * 2
    assert sum(len(server.calls) for server in servers) == 20


def test_first_come_first_served(fleet: Callable[..., list[FakeServer]]) -> None:
    """Who asks again at once does not overtake those who wait."""
    (server,) = fleet(good, delay=0.02)
    engine = OpenAIEngine(config_for(server.url, concurrency=1))

    async def say(*words: str) -> None:
        for word in words:
            await engine.generate(Request((word,), 1, 9))

    async def run() -> None:
        await asyncio.gather(say("a", "d"), say("b"), say("c"))
        await engine.aclose()

    asyncio.run(run())
    assert [call.body["prompt"] for call in server.calls] == ["a", "b", "c", "d"]


def test_replicas_share_the_work(fleet: Callable[..., list[FakeServer]]) -> None:
    servers = fleet(good, good, good)
    engine = OpenAIEngine(config_for(*(server.url for server in servers)))

    async def run() -> None:
        for _ in range(6):  # one at a time: each replica in turn
            await engine.generate(REQUEST)
        assert [len(server.calls) for server in servers] == [2, 2, 2]
        await asyncio.gather(*(engine.generate(REQUEST) for _ in range(24)))
        await engine.aclose()

    asyncio.run(run())
    assert [len(server.calls) for server in servers] == [10, 10, 10]


def test_the_least_loaded_is_asked(fleet: Callable[..., list[FakeServer]]) -> None:
    """The slow one holds what it got; the quick one takes the rest."""

    async def slow(_: Call) -> Any:
        await asyncio.sleep(1.0)
        return GOOD

    servers = fleet(slow, good)
    engine = OpenAIEngine(config_for(*(server.url for server in servers)))

    async def run() -> None:
        first = [asyncio.create_task(engine.generate(REQUEST)) for _ in range(4)]
        await asyncio.sleep(0.3)
        for _ in range(8):
            await engine.generate(REQUEST)
        await asyncio.gather(*first)

    asyncio.run(run())
    assert [len(server.calls) for server in servers] == [2, 10]


def test_a_dead_replica_is_skipped_and_tried_again(
    fleet: Callable[..., list[FakeServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_REST", 0.5)
    dead = [True]
    first, second = fleet(lambda _: Fault(reset=True) if dead[0] else GOOD, good)
    engine = OpenAIEngine(config_for(first.url, second.url))

    async def run() -> list[int]:
        counts = []
        for stage in range(4):
            if stage == 1:
                dead[0] = False
                await asyncio.sleep(0.6)  # its rest is over
            for _ in range(10):
                await engine.generate(REQUEST)
            counts.append(len(first.calls))
        first.delay = second.delay = 0.02
        await asyncio.gather(*(engine.generate(REQUEST) for _ in range(10)))
        await engine.aclose()
        return counts

    counts = asyncio.run(run())
    assert first.most_in_flight == 5  # half of what came at once: it is a replica like any other again
    assert counts[0] == 1  # one failure, then nothing while it rests
    assert counts[1] > 2  # it is back, and takes its share
    assert len(first.calls) + len(second.calls) == 51


def test_one_request_probes_a_replica_that_failed(
    fleet: Callable[..., list[FakeServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_REST", 0.2)
    first, second = fleet(lambda _: Fault(503), good, delay=0.02)
    engine = OpenAIEngine(config_for(first.url, second.url, concurrency=8))

    async def run() -> int:
        await asyncio.gather(*(engine.generate(REQUEST) for _ in range(2)))
        assert len(first.calls) == 1
        await asyncio.sleep(0.25)
        await asyncio.gather(*(engine.generate(REQUEST) for _ in range(8)))
        await engine.aclose()
        return len(first.calls)

    assert asyncio.run(run()) == 2


def test_where_all_replicas_fail_all_are_asked(fleet: Callable[..., list[FakeServer]]) -> None:
    """None is sound, so none is skipped: no request waits for a rest to be over."""
    servers = fleet(lambda _: Fault(500), sequence(Fault(500), GOOD))
    started = time.monotonic()
    [[completion]] = ask(OpenAIEngine(config_for(*(server.url for server in servers), retries=4)), 1)
    assert completion.text == "ab"
    assert time.monotonic() - started < 0.9  # below the shortest rest


def test_another_replica_serves_while_one_asked_to_wait(fleet: Callable[..., list[FakeServer]]) -> None:
    servers = fleet(lambda _: Fault(429, "", {"Retry-After": "3600"}), good)
    found = ask(OpenAIEngine(config_for(*(server.url for server in servers))), 6)
    assert [c.text for [c] in found] == ["ab"] * 6
    assert len(servers[0].calls) == 3  # the first half, before it spoke


# Cancelling, event loops, closing


def test_a_cancelled_caller_hangs_up_and_frees_its_place() -> None:
    def answer(call: Call) -> Any:
        return Fault(silent=True) if "slow" in call.body["prompt"] else GOOD

    async def run(url: str) -> tuple[int, list[list[Completion]]]:
        engine = OpenAIEngine(config_for(url, concurrency=1))
        leaving = asyncio.create_task(engine.generate(Request(("slow",), 1, 9)))
        waiting = asyncio.create_task(engine.generate(Request(("slow, too",), 1, 9)))
        await asyncio.sleep(0.1)
        staying = [asyncio.create_task(engine.generate(REQUEST)) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting.cancel()  # before its turn
        leaving.cancel()  # while it is served
        found = await asyncio.wait_for(asyncio.gather(*staying), 5)
        assert (leaving.cancelled(), waiting.cancelled()) == (True, True)
        await engine.aclose()
        return len(found), found

    with serving(answer) as server:
        count, found = asyncio.run(run(server.url))
        time.sleep(0.05)
        assert (server.abandoned, server.in_flight) == (1, 0)
    assert count == 3
    assert {c.text for [c] in found} == {"ab"}
    assert len(server.calls) == 4  # the one that waited was never sent


def test_one_failing_continuation_cancels_the_others() -> None:
    seen: list[int] = []

    def answer(_: Call) -> Any:
        seen.append(1)
        return Fault(400, "no") if len(seen) == 3 else Fault(silent=True)

    with serving(answer) as server:
        started = time.monotonic()
        with pytest.raises(EngineError, match="status 400"):
            asyncio.run(OpenAIEngine(config_for(server.url)).generate(Request(("Question?\n",), 3, 9)))
        time.sleep(0.05)
        assert server.abandoned == 2
    assert time.monotonic() - started < 5


async def closing(engine: OpenAIEngine, server: FakeServer) -> None:
    """The connection is kept between requests, and gone after `aclose`."""
    for _ in range(2):
        await engine.generate(REQUEST)
        assert server.connections == 1
    await engine.aclose()
    await asyncio.sleep(0.05)
    assert server.connections == 0


def test_event_loops_one_after_another_and_closing() -> None:
    with serving(good) as server:
        engine = OpenAIEngine(config_for(server.url, concurrency=1))
        for _ in range(3):
            [[completion]] = ask(engine, 1)  # which closes
            assert completion.text == "ab"
        asyncio.run(closing(engine, server))
        for _ in range(3):
            [completion] = asyncio.run(engine.generate(REQUEST))  # which does not
            assert completion.text == "ab"
        asyncio.run(engine.aclose())


# The key


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_KEY", KEY)
    return KEY


def test_the_key_is_sent_as_a_bearer_token(key: str) -> None:
    _, [call] = one(good, key_variable="MY_KEY")
    assert call.headers["authorization"] == f"Bearer {key}"


def test_without_a_key_none_is_sent() -> None:
    _, [call] = one(good, key_variable="NO_SUCH_KEY")
    assert "authorization" not in call.headers


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_the_key_is_nowhere_to_be_read(key: str, status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in errors, logs, representations or records, though the server repeats it wherever it can."""
    caplog.set_level(logging.DEBUG)
    echo = Fault(status, "x" * 495 + f"your key {key} is wrong, {key}!")
    with serving(lambda _: echo) as server:
        config = config_for(server.url, key_variable="MY_KEY")
        solver = Solver(SolverConfig(config, search="greedy"))
        with pytest.raises(LLMMCTSError) as caught:
            solver.solve("question")
        assert server.calls[0].headers["authorization"] == f"Bearer {key}"
    said: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        said += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    engine = solver.engine
    assert isinstance(engine, OpenAIEngine)
    said += [caplog.text, repr(config), repr(engine), repr(engine._replicas), repr(vars(engine)), repr(solver.config)]
    said.append(repr(engine._replicas._session.client.headers if engine._replicas._session else None))
    for text in said:
        assert key not in text
        assert key[:8] not in text  # nor the part that fits before a long message is cut
    assert any("***" in text or "xxx" in text for text in said)


def test_the_key_is_in_no_error_about_a_reply(key: str) -> None:
    told = {**GOOD, "choices": [{**GOOD["choices"][0], "finish_reason": f"the key {KEY}"}]}
    error, _ = fails(lambda _: told, key_variable="MY_KEY")
    assert "finish_reason 'the key ***'" in str(error)


def test_the_key_is_in_no_record(key: str) -> None:
    records, _ = run(lambda _: Fault(500, json.dumps({"error": f"bad key {key}"})), key_variable="MY_KEY")
    told = json.dumps([record.to_dict() for record in records])
    assert "bad key ***" in told
    assert key not in told


@pytest.mark.parametrize("wrong", ["sk-a b", "sk-a\nb", "sk-é", "sk-\x7f"])
def test_a_key_that_no_header_can_carry(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", wrong)
    with pytest.raises(ConfigError, match="key in MY_KEY") as caught:
        OpenAIEngine(config_for("http://127.0.0.1:9/v1", key_variable="MY_KEY"))
    assert "sk-" not in str(caught.value)


def test_white_space_around_the_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    _, [call] = one(good, key_variable="MY_KEY")
    assert call.headers["authorization"] == f"Bearer {KEY}"


# Configuration


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http:///v1", "http://host:99999/v1", "http://[::1/v1", "file:///v1"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.openai\.urls holds .*expected http://HOST:PORT/v1"):
        Replicas(OpenAIConfig((url,)))


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"])
def test_addresses_with_secrets_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="user, password or query") as caught:
        Replicas(OpenAIConfig((url,)))
    assert "secret" not in str(caught.value)


def test_no_address() -> None:
    with pytest.raises(ConfigError, match=r"engine\.openai\.urls is empty"):
        Solver(load_config(SolverConfig, {"engine": {"name": "openai", "model": "m"}}, {}))


def test_from_yaml(tmp_path: Path) -> None:
    with serving(lambda _: ANSWER) as server:
        file = tmp_path / "solver.yaml"
        file.write_text(
            f"engine:\n  name: openai\n  model: m\n  openai:\n    urls: ['{server.url}/']\n    timeout: 5\nsearch: greedy\n"
        )
        result = Solver.from_config(file).solve("question")
    assert result.answer == "2"
    assert server.calls[0].path == "/v1/completions"
    assert server.calls[0].body["model"] == "m"


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: ANSWER) as server:
        settings = ["--engine.name", "openai", "--engine.model", "m", "--engine.openai.urls", f"[{server.url}]"]
        assert main(["solve", "question", *settings, "--search.name", "greedy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "2"
    assert server.calls[0].body["model"] == "m"


def test_a_dead_server_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--engine.name", "openai", "--engine.openai.urls", "[http://127.0.0.1:9/v1]", "--engine.openai.retries", "0"]
    assert main(["solve", "question", *settings, "--search.name", "greedy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llm-mcts: no reply after 1 tries")
    assert error.count("\n") == 1
