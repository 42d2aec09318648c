"""A small OpenAI-compatible server on loopback for tests, which serves a made-up model or fails on demand.

`FakeServer(answer)` calls `answer(call)` for each request; what it returns (or awaits) is sent: a dictionary as JSON with
status 200, or a `Fault`. `HashModel` is a model whose probabilities follow from a hash of the text so far, and `serve`
puts it behind the protocol, in the manner of several servers.
"""

import asyncio
import contextlib
import hashlib
import inspect
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

VOCABULARY = ("<eos>", "\n", " ", "ab", "b", "cab", "7", "+", "é")


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A reply that is not a plain success."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Break the connection in the middle of the body."""
    reset: bool = False
    """Break the connection before a word."""
    silent: bool = False
    """Never answer."""


class FakeServer:
    """Serves in a thread of its own, on a free port of 127.0.0.1, until `stop()`."""

    def __init__(self, answer: Callable[[Call], Any], delay: float = 0.0) -> None:
        self.answer, self.delay = answer, delay
        self.calls: list[Call] = []
        """Everything that was asked, in order."""
        self.in_flight = self.most_in_flight = self.abandoned = 0
        """Requests being answered; the most at once; those whose caller hung up before the answer."""
        self.connections = 0
        """Open now."""
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        self.connections -= 1
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        call = Call(head[0].split()[1], headers, json.loads(await reader.readexactly(int(headers["content-length"]))))
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        answering = asyncio.ensure_future(self._answer(call))
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([answering, hung_up], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.abandoned += 1
                return False
            hung_up.cancel()
            await asyncio.gather(hung_up, return_exceptions=True)
            return await self._send(writer, answering.result())
        finally:
            answering.cancel()
            self.in_flight -= 1

    async def _answer(self, call: Call) -> Any:
        if self.delay:
            await asyncio.sleep(self.delay)
        answer = self.answer(call)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Fault) and answer.silent:
            await asyncio.sleep(3600)
        return answer

    async def _send(self, writer: asyncio.StreamWriter, answer: Any) -> bool:
        fault = answer if isinstance(answer, Fault) else Fault(body=json.dumps(answer))
        if fault.reset:
            writer.transport.abort()
            return False
        body = fault.body.encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **fault.headers}
        lines = [f"HTTP/1.1 {fault.status} Said", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + (body[: len(body) // 2] if fault.cut else body))
        await writer.drain()
        return not fault.cut


@contextlib.contextmanager
def serving(answer: Callable[[Call], Any], delay: float = 0.0) -> Iterator[FakeServer]:
    """A server for the length of a block."""
    server = FakeServer(answer, delay)
    try:
        yield server
    finally:
        server.stop()


def reply(text: str, finish: str = "stop", tokens: list[tuple[str, float]] | None = None, **extra: Any) -> dict[str, Any]:
    """A reply of /completions; without `tokens`, each letter is one with log-probability -0.5. `usage=` replaces counts."""
    listed = [(letter, -0.5) for letter in text] if tokens is None else tokens
    usage = extra.pop("usage", {"prompt_tokens": 5, "completion_tokens": len(listed), "total_tokens": 5 + len(listed)})
    logprobs = {"tokens": [t for t, _ in listed], "token_logprobs": [p for _, p in listed]}
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs, **extra}
    return {"object": "text_completion", "choices": [choice], "usage": usage}


class HashModel:
    """A language model without weights: the logit of each token is a number in [0, 3) hashed from the text and the token."""

    def __init__(self, blank_lines: bool = True) -> None:
        """Without `blank_lines`, only a line with something on it ends."""
        self.blank_lines = blank_lines

    def logprobs(self, text: str) -> dict[str, float]:
        logits = {}
        for token in VOCABULARY:
            digest = hashlib.blake2b(f"{token}|{text}".encode(), digest_size=4).digest()
            logits[token] = 3.0 * int.from_bytes(digest, "big") / 2**32
        if not self.blank_lines and not text.rsplit("\n", 1)[-1].strip():
            logits["\n"] = -20.0
        total = log(sum(map(exp, logits.values())))
        return {token: logit - total for token, logit in logits.items()}

    def draw(self, text: str, temperature: float, random: random.Random) -> tuple[str, float]:
        known = self.logprobs(text)
        if temperature == 0:
            token = max(known, key=lambda t: known[t])
        else:
            (token,) = random.choices([*known], [exp(p / temperature) for p in known.values()])
        return token, known[token]

    def tokenise(self, text: str) -> list[str]:
        """The longest token first, from the left."""
        tokens = []
        while text:
            found = max((t for t in VOCABULARY if text.startswith(t)), key=len, default=text[0])
            tokens.append(found)
            text = text[len(found) :]
        return tokens


def serve(model: HashModel | None = None, like: str = "vllm") -> Callable[[Call], Any]:
    """The model behind /completions, as vLLM serves it, or transformers (stop strings stay in the text, no log-probabilities),
    or llama.cpp (the stop's tokens are not listed, nothing tells what ended the text, no echo)."""
    model = model or HashModel()

    def answer(call: Call) -> dict[str, Any]:
        body = call.body
        prompt, stops = body["prompt"], body.get("stop", [])
        stream, tokens, text, finish, ended_by = random.Random(body.get("seed")), [], "", "length", None
        while len(tokens) < body["max_tokens"] and finish == "length":
            tokens.append(model.draw(prompt + text, body["temperature"], stream))
            if tokens[-1][0] == "<eos>":
                finish = "stop"
                break
            text += tokens[-1][0]
            if cuts := [(text.find(stop), stop) for stop in stops if stop in text]:
                at, ended_by = min(cuts)
                finish, text = "stop", text[: at + len(ended_by) * (like == "transformers")]
        listed = tokens if like != "llama.cpp" or finish == "length" else tokens[:-1]
        usage = {"prompt_tokens": len(model.tokenise(prompt)), "completion_tokens": len(tokens)}
        result = reply(text, finish, listed, usage=usage)
        (choice,) = result["choices"]
        if like == "vllm":
            choice["stop_reason"] = ended_by
        if like == "transformers":
            choice["logprobs"] = None
        if like == "vllm" and body.get("echo"):
            _echo(choice, model, prompt)
        return result

    return answer


def _echo(choice: dict[str, Any], model: HashModel, prompt: str) -> None:
    """Put the prompt's tokens in front of the sampled ones, with their offsets."""
    tokens, so_far = [], ""
    for token in model.tokenise(prompt):
        tokens.append((token, model.logprobs(so_far).get(token) if so_far else None))
        so_far += token
    listed = choice["logprobs"]
    every = [t for t, _ in tokens] + listed["tokens"]
    choice["text"] = prompt + choice["text"]
    choice["logprobs"] = {
        "tokens": every,
        "token_logprobs": [p for _, p in tokens] + listed["token_logprobs"],
        "text_offset": [len("".join(every[:i])) for i in range(len(every))],
    }
