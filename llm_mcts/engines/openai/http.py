"""JSON requests to the replicas of one server: least loaded first, bounded, timed, retried.

A try goes to the replica with the fewest requests in flight. What fails through no fault of the request (a timeout, a broken
connection, status 408, 409, 429 or 5xx) is tried again after an exponential pause with jitter; meanwhile the replica rests
and the others take its share. When a rest is over, one request probes the replica before all come back. Retry-After is
honoured: nothing is sent to a replica that asked to wait. Everything else fails at once with the server's own words.

The key stands in one header and nowhere else: it is redacted from whatever a server sends back before anyone reads it.
"""

import asyncio
import contextlib
import email.utils
import functools
import json
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

from llm_mcts.engines.base import OpenAIConfig
from llm_mcts.errors import ConfigError, EngineError, ModelError

try:
    import httpx2
except ImportError as error:
    raise ConfigError(
        "the openai engine needs httpx2, which is not installed; expected: pip install 'llm-mcts[openai]'"
    ) from error

# Seconds that a failing replica is skipped: doubled with each failure in a row, while others can serve.
_REST, _LONGEST_REST = 1.0, 60.0
# Longest pause between two tries of a request, in seconds.
_LONGEST_PAUSE = 60.0
# Characters of a server's message that an error quotes.
_QUOTED = 500
_RETRIED = {408, 409, 429}
# A wrong key or model name hits every question alike.
_HOPELESS = {401, 403, 404}


class RefusedError(EngineError):
    """The server understood a request and will not serve it (a 4xx status that a retry cannot fix)."""


class _TryError(Exception):
    """A try failed in a way that a retry may fix."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait  # seconds that the server asked for


@dataclass(eq=False)
class _Replica:
    """One address and how it has been doing."""

    url: str
    failures: int = 0  # in a row
    rests_until: float = 0.0  # skipped until then, unless every replica rests
    waits_until: float = 0.0  # left alone until then, as it asked

    def failed(self, error: _TryError) -> None:
        now = time.monotonic()
        self.failures += 1
        self.rests_until = now + min(_LONGEST_REST, _REST * 2.0 ** min(self.failures - 1, 10))
        self.waits_until = max(self.waits_until, now + error.wait)

    def answered(self) -> None:
        self.failures, self.rests_until = 0, 0.0


@dataclass(eq=False)
class _Session:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    client: httpx2.AsyncClient
    in_flight: Counter[_Replica] = field(default_factory=Counter)
    served: Counter[_Replica] = field(default_factory=Counter)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served
    freed: asyncio.Event = field(default_factory=asyncio.Event)


class Replicas:
    """Posts JSON to whichever replica is best placed. Serves one event loop after another."""

    def __init__(self, config: OpenAIConfig) -> None:
        """Check the addresses and read the key; nothing is sent yet.

        Raises:
            ConfigError: no address, a malformed one, one that holds a password, or a key that no header can carry.
        """
        if not config.urls:
            raise ConfigError("engine.openai.urls is empty; expected at least one base URL, as http://127.0.0.1:8000/v1")
        self.config = config
        self._replicas = [_Replica(_base_url(url)) for url in config.urls]
        self._key = _key(config.key_variable)
        self._random = random.Random()  # jitter decides about waiting alone, never about a result
        self._session: _Session | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply's JSON object.

        Raises:
            EngineError: every try failed, or the reply is not a JSON object.
            RefusedError: the server will not serve this request.
            ModelError: the key or the address is wrong, or there is no such model, for this request and any other.
        """
        session, failure = self._open(), ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(self._pause(attempt))
            async with self._slot(session) as replica:
                try:
                    reply = await self._try(session, replica, path, body)
                except _TryError as error:
                    replica.failed(error)
                    failure = f"{replica.url}{path}: {error}"
                    continue
                except EngineError:
                    replica.answered()
                    raise
                replica.answered()
                return reply
        raise EngineError(
            f"no reply after {self.config.retries + 1} tries, the last to {failure}; expected a server that answers: "
            "check that it runs, or raise engine.openai.timeout or engine.openai.retries"
        )

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        session, self._session = self._session, None
        if session is not None and session.loop is asyncio.get_running_loop():
            await session.client.aclose()

    def _open(self) -> _Session:
        """The running event loop's session; connections belong to the loop that made them."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            # httpx's own timeouts are per read, so that a server that drips would never end: `_try` times the whole.
            self._session = _Session(loop, httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_tls()))
        return self._session

    def _pause(self, attempt: int) -> float:
        """Seconds before a further try: exponential, with jitter in [0.5, 1) so that many do not come back as one."""
        longest = min(_LONGEST_PAUSE, self.config.backoff * 2.0 ** min(attempt - 1, 20))
        return longest * (0.5 + self._random.random() / 2)

    @contextlib.asynccontextmanager
    async def _slot(self, session: _Session) -> AsyncIterator[_Replica]:
        """A replica to send one request to, waited for where all are busy."""
        async with session.turn:
            while (replica := self._choose(session)) is None:
                session.freed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience()):
                        await session.freed.wait()
            session.in_flight[replica] += 1
            session.served[replica] += 1
        try:
            yield replica
        finally:
            session.in_flight[replica] -= 1
            session.freed.set()

    def _choose(self, session: _Session) -> _Replica | None:
        """The least loaded replica that may be asked now, or None."""
        now = time.monotonic()
        awake = [r for r in self._replicas if max(r.rests_until, r.waits_until) <= now]
        sound = [r for r in awake if not r.failures]
        # One that failed lately is probed by one request, unless there is no sound one to do the work.
        room = {r: 1 if r.failures and sound else self.config.concurrency for r in awake or self._replicas}
        ready = [r for r in room if r.waits_until <= now and session.in_flight[r] < room[r]]
        return min(ready, key=lambda r: (session.in_flight[r], session.served[r])) if ready else None

    def _patience(self) -> float | None:
        """Seconds until another replica may be asked without one being freed; None: never.

        Raises:
            EngineError: all replicas asked to wait longer than a try may take.
        """
        now = time.monotonic()
        waits = [r.waits_until - now for r in self._replicas]
        if min(waits) > self.config.timeout:
            raise EngineError(
                f"every replica asked to wait, the shortest for {min(waits):.0f} s; expected at most "
                f"engine.openai.timeout = {self.config.timeout:g} s: try later, or raise the timeout"
            )
        later = [t for r in self._replicas for t in (r.waits_until - now, r.rests_until - now) if t > 0]
        return min(later) + 0.001 if later else None

    async def _try(self, session: _Session, replica: _Replica, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        broken = ""
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await session.client.post(replica.url + path, json=body)
        except TimeoutError:
            broken = f"no reply within {self.config.timeout:g} s"
        except httpx2.RequestError as error:
            broken = self._clean(f"{type(error).__name__}: {error}")
        if broken:  # raised here, so that it does not drag the request, and its header, along
            raise _TryError(broken)
        if response.status_code != 200:
            self._refuse(response, f"{replica.url}{path}")
        return self._read(response, f"{replica.url}{path}")

    def _refuse(self, response: httpx2.Response, where: str) -> NoReturn:
        status, said = response.status_code, self._clean(_message(response.text))
        if status in _RETRIED or status >= 500:
            raise _TryError(f"status {status}: {said}", _retry_after(response.headers.get("Retry-After")))
        message = f"{where} refused with status {status}: {said}; expected status 200"
        if status in _HOPELESS:
            raise ModelError(f"{message}: check engine.openai.urls, engine.model and the key in {self.config.key_variable}")
        raise RefusedError(f"{message}: change the request or choose another server")

    def _read(self, response: httpx2.Response, where: str) -> dict[str, Any]:
        text = self._redact(response.text)
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise EngineError(
                f"{where} answered {self._clean(text)!r}; expected a JSON object: is this an OpenAI-compatible server?"
            )
        return data

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _clean(self, text: str) -> str:
        """A server's words fit for an error: without the key, on one line, and not endless."""
        text = " ".join(self._redact(text).split()) or "(nothing)"
        return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}… ({len(text) - _QUOTED} characters more)"


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than many a request: once a process."""
    return httpx2.create_ssl_context()


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port is not None and parts.port < 1)
    except ValueError:
        raise ConfigError("engine.openai.urls holds a malformed URL; expected http://HOST:PORT/v1 or https://…") from None
    if parts.username or parts.password or parts.query or parts.fragment:  # may be secret: not repeated
        raise ConfigError(
            "engine.openai.urls holds a URL with a user, password or query; expected http://HOST:PORT/v1 alone: "
            "the key comes from the environment (engine.openai.key_variable)"
        )
    if wrong:
        raise ConfigError(f"engine.openai.urls holds '{url}'; expected http://HOST:PORT/v1 or https://…")
    return url.rstrip("/")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not all(33 <= ord(letter) <= 126 for letter in key):
        raise ConfigError(f"the key in {variable} holds spaces or letters that no header can carry; expected visible ASCII")
    return key


def _message(text: str) -> str:
    """What an error reply says: OpenAI's error.message, FastAPI's detail, or all of it."""
    try:
        data = json.loads(text)
    except ValueError:
        return text
    if isinstance(data, dict):
        error = data.get("error") or data.get("detail") or data.get("message")
        if isinstance(error, dict):
            error = error.get("message") or error
        if error:
            return error if isinstance(error, str) else json.dumps(error)
    return text


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where it holds neither."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0
