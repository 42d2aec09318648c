"""The endpoints, on FastAPI: POST /v1/chat/completions, GET /v1/models, GET /health.

A request's search is a task of its own beside a watch on its client. It ends with its result, with the time limit, when the
client hangs up or when the server stops; whichever it is, the task is cancelled and awaited, so that the engine drops its rows.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from llm_mcts.errors import ConfigError, QuestionError
from llm_mcts.prompts import Encoder
from llm_mcts.result import SearchResult
from llm_mcts.serving.chat import ChatRequest, RequestError, parse_json, read_request
from llm_mcts.serving.limits import Closed, Full, Gate, LimitsConfig
from llm_mcts.serving.reply import Reply, TokenCounts, event
from llm_mcts.solver import Solver

logger = logging.getLogger(__name__)

CLIENT_GONE = Response(status_code=499)
"""What is returned when no client is left to read it."""


class Search:
    """A request's search under way, and a watch on its client."""

    def __init__(self, work: Coroutine[Any, Any, SearchResult], receive: Receive) -> None:
        self._work = asyncio.create_task(work)
        self._client = asyncio.create_task(_until_gone(receive))

    async def result(self, timeout: float | None = None) -> SearchResult | None:
        """The result, or None if it takes longer than `timeout` seconds.

        Raises:
            ClientDisconnect: the client hung up first.
            RequestError: there is no result.
        """
        await asyncio.wait({self._work, self._client}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._work.cancelled():
            raise _shutting_down()
        if self._work.done():
            return self._work.result()
        if self._client.done():
            raise ClientDisconnect
        return None

    async def stop(self) -> None:
        """End both, and wait until they have ended."""
        self._work.cancel()
        self._client.cancel()
        await asyncio.gather(self._work, self._client, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A reply in server-sent events; the search behind it ends with it, whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], search: Search) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._search = search

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; the search itself watches the client."""
        try:
            await self.stream_response(send)
        finally:
            await self._search.stop()


class Answers:
    """Turns requests into replies."""

    def __init__(self, solver: Solver, model: str, limits: LimitsConfig, gate: Gate) -> None:
        self.solver, self.model, self.limits, self.gate = solver, model, limits, gate
        tokenizer = getattr(solver.engine, "tokenizer", None)
        self._encode = Encoder(tokenizer) if tokenizer is not None else None

    async def answer(self, request: Request) -> Response:
        """Search, and reply whole or as a stream."""
        body = parse_json(await _read_body(request, self.limits))
        asked = read_request(body, self.model, self.solver.config.search, self.limits)
        search, stream = Search(self._solve(asked), request.receive), None
        try:
            if asked.stream:
                await search.result(self.limits.keep_alive)
                stream = EventStream(self._events(asked, search), search)
                return stream
            result = await search.result()
            assert result is not None  # without a timeout it is there, or an error is raised
            return JSONResponse(self._reply(asked, result).whole())
        finally:
            if stream is None:
                await search.stop()

    async def _solve(self, asked: ChatRequest) -> SearchResult:
        """The search within its limits; every failure is a RequestError that tells a client no more than it should know."""
        deadline = asyncio.timeout(self.limits.seconds)
        try:
            async with deadline, self.gate.place():
                return await self.solver.asolve(asked.question, asked.search, seed=asked.seed, temperature=asked.temperature)
        except Full as error:
            raise RequestError(429, str(error), code="queue_full", retry_after=str(error.seconds)) from error
        except Closed as error:
            raise _shutting_down() from error
        except QuestionError as error:
            raise RequestError(400, str(error), "messages", "context_length_exceeded") from error
        except ConfigError as error:
            raise RequestError(400, str(error), "search", "invalid_value") from error
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                raise _too_slow(self.limits.seconds) from error
            logger.exception("search failed on question %r", asked.question)
            raise RequestError(500, "the search failed; the server's log says why", code="internal_error") from error

    async def _events(self, asked: ChatRequest, search: Search) -> AsyncIterator[bytes]:
        """Comments during the search, then the reply's chunks; an error is an event."""
        try:
            while (result := await search.result(self.limits.keep_alive)) is None:
                yield b": searching\n\n"
        except ClientDisconnect:
            return
        except RequestError as error:
            yield event(error.to_dict())
        else:
            for chunk in self._reply(asked, result).chunks():
                yield event(chunk)
        yield b"data: [DONE]\n\n"

    def _reply(self, asked: ChatRequest, result: SearchResult) -> Reply:
        return Reply(self.model, asked, result, self._count(result))

    def _count(self, result: SearchResult) -> TokenCounts | None:
        if self._encode is None:
            return None
        prompt, *steps = self.solver.policy.prompt.segments(result.state)
        return TokenCounts(len(self._encode((prompt,))), len(self._encode((prompt, *steps))) - len(self._encode((prompt,))))


def _shutting_down() -> RequestError:
    return RequestError(503, str(Closed()), code="shutting_down", retry_after="5")


def _too_slow(seconds: float) -> RequestError:
    """OpenAI clients retry after a 504 unless the reply forbids it; the same search would be as slow again."""
    message = f"the search took longer than {seconds:g} s; ask for a smaller one"
    return RequestError(504, message, code="timeout", x_should_retry="false")


async def _read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The body of a JSON request, if it is short enough and comes in time."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, f"the content type is '{kind}'; expected application/json")
    too_long = RequestError(413, f"the body is longer than {limits.body} bytes, the most that is read", connection="close")
    if int(request.headers.get("content-length", 0)) > limits.body:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body:
                    raise too_long
    except TimeoutError as error:
        raise RequestError(408, f"the body did not come within {limits.seconds:g} s", connection="close") from error
    return bytes(body)


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the server's key; how long that takes does not depend on what was sent.

    Raises:
        RequestError: 401.
    """
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if key is not None and not (hmac.compare_digest(sent.strip().encode(), key.encode()) and scheme.lower() == "bearer"):
        message = "no valid key; expected the header 'Authorization: Bearer KEY'"
        raise RequestError(401, message, code="invalid_api_key", www_authenticate="Bearer")


def build_app(solver: Solver, model: str, key: str | None, limits: LimitsConfig, gate: Gate) -> FastAPI:
    """The application.

    Args:
        solver: answers the questions; it is awaited on the event loop that the application runs on.
        model: the name that clients call it by.
        key: what clients must send, or None.
        limits: what clients may ask for.
        gate: lets them in.
    """
    app = FastAPI(title="llm-mcts", openapi_url=None)
    answers, created = Answers(solver, model, limits, gate), int(time.time())
    card = {"id": model, "object": "model", "created": created, "owned_by": "llm-mcts"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        check_key(request, key)
        return await answers.answer(request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        check_key(request, key)
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> Response:
        check_key(request, key)
        if name != model:
            raise RequestError(404, f"the model '{name}' does not exist; expected '{model}'", "model", "model_not_found")
        return JSONResponse(card)

    @app.get("/health")
    async def health() -> Response:
        status = "shutting down" if gate.closed else "ok"
        body = {"status": status, "running": gate.running, "waiting": gate.waiting}
        return JSONResponse(body, 503 if gate.closed else 200)

    _report_errors(app)
    return app


def _report_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return _error_response(error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        message = f"{where}: {error.detail}; expected POST /v1/chat/completions, GET /v1/models or GET /health"
        return _error_response(RequestError(error.status_code, message), error.headers)

    async def gone(_: Request, error: Exception) -> Response:
        return CLIENT_GONE

    async def unknown(_: Request, error: Exception) -> Response:
        return _error_response(RequestError(500, "an error in the server; its log says which", code="internal_error"))

    app.add_exception_handler(RequestError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unknown)


def _error_response(error: RequestError, headers: Any = None) -> Response:
    return JSONResponse(error.to_dict(), error.status, {**(headers or {}), **error.headers})
