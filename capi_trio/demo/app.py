"""The demo provider as an ASGI application: routes, bodies, disconnects, and the record that tests read.

Responses are served over a WebSocket too: see `socket`.

Written for hypercorn's trio worker as it is: the body is read to its end before any answer, a watcher notices a
client that leaves (`send` never says so), and the last message of a response is sent when the watcher is gone,
because hypercorn reports its own end of the exchange as a disconnect.
"""

import hmac
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, assert_never

import trio
from attrs import evolve, frozen
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope

from capi_trio.asgi import ResetConnectionError
from capi_trio.demo import catalog, chat, embeddings, messages, responses
from capi_trio.demo.answers import (
    Answer,
    Drop,
    ErrorShape,
    Pause,
    Refused,
    Request,
    World,
    Write,
    error_object,
    json_answer,
    refusal,
)
from capi_trio.demo.github import DemoGitHub, is_copilot_token
from capi_trio.demo.records import Outcome, RequestRecord
from capi_trio.demo.socket import Socket, turn_away

__all__ = ["DemoProvider", "IdCounter"]

_KEPT_RECORDS: Final = 256
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


class IdCounter:
    """Ids that count up from 1: `prefix` + `seed` + a number. The same seed gives the same ids."""

    def __init__(self, seed: str = "demo") -> None:
        self._seed = seed
        self._numbers = itertools.count(1)

    def __call__(self, prefix: str) -> str:
        return f"{prefix}{self._seed}{next(self._numbers):08d}"


Handler = Callable[[Request, World], Answer]


def _openai(_request: Request) -> ErrorShape:
    return error_object


@frozen
class Route:
    """Who answers a path, and in which shape its refusals go out."""

    method: str
    handler: Handler
    shape_for: Callable[[Request], ErrorShape] = _openai


def _models(_request: Request, _world: World) -> Answer:
    return json_answer(catalog.listing())


def _model(request: Request, _world: World) -> Answer:
    return json_answer(catalog.find(request.path.partition(f"{_MODELS}/")[2]).describe())


def _healthz(_request: Request, _world: World) -> Answer:
    return json_answer({"status": "ok"})


_HEALTH: Final = "/healthz"
_MODELS: Final = "/models"
_MODEL: Final = Route("GET", _model)
# Paths without the `/v1` prefix, which may be there or not.
_ROUTES: Final[Mapping[str, Route]] = {
    catalog.CHAT_ENDPOINT: Route("POST", chat.answer),
    catalog.EMBEDDINGS_ENDPOINT: Route("POST", embeddings.answer),
    catalog.RESPONSES_ENDPOINT: Route("POST", responses.answer),
    "/messages": Route("POST", messages.answer, messages.error_shape),
    "/messages/count_tokens": Route("POST", messages.count_tokens, messages.error_shape),
    _MODELS: Route("GET", _models),
    _HEALTH: Route("GET", _healthz),
}


class DemoProvider:
    """The application.

    `clock` gives Unix seconds; `new_id` a new id that starts with the prefix it is given. With `api_key`, requests
    need it as their Bearer token or `x-api-key`. `pace_s` is the pause between content events of a stream, in
    seconds, unless the request says otherwise. Without `websocket`, a handshake is answered with 426, at which
    clients turn to HTTP. With `github` it is a GitHub and its Copilot, too: a request with a Copilot token is let in as
    Copilot does. `requests` holds the latest `kept_records` requests that ended; `active` is how many are in
    progress, `sockets` how many WebSockets are open.

    Nothing is raised out of a request but `ResetConnectionError`, and that only because the client asked for it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        new_id: Callable[[str], str] | None = None,
        *,
        api_key: str | None = None,
        pace_s: float = 0.02,
        kept_records: int = _KEPT_RECORDS,
        max_body_bytes: int = _MAX_BODY_BYTES,
        websocket: bool = True,
        github: DemoGitHub | None = None,
    ) -> None:
        self._world = World(clock, new_id or IdCounter(), pace_s)
        self._api_key = api_key
        self._max_body_bytes = max_body_bytes
        self._websocket = websocket
        self._github = github
        self._changed = trio.Event()
        self.active = 0
        self.sockets = 0
        self.requests: deque[RequestRecord] = deque(maxlen=kept_records)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds; it is asked again whenever a request or a socket begins or ends."""
        while not condition():
            await self._changed.wait()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI entry point. Raises `ResetConnectionError` for the fault of that kind."""
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await _lifespan(receive, send)
            case "websocket":
                await self._serve_websocket(scope, receive, send)

    async def _http(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        exchange = _Exchange(scope, receive, send)
        self._note(active=1)
        try:
            await exchange.run(self._answer, self._world, self._max_body_bytes)
        finally:
            self.end_request(exchange.record())
        if exchange.dropped:
            raise ResetConnectionError

    async def _serve_websocket(
        self, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        handshake = Request("GET", scope["path"], tuple(scope["headers"]), b"", self._world.new_id("req_"))
        await receive()  # the handshake itself, which has no body
        self._note(sockets=1)
        try:
            self._check_handshake(handshake)
            await Socket(handshake, receive, send, self._world, self._max_body_bytes, self).run()
        except Refused as refused:
            await turn_away(scope, send, _refuse(refused, handshake), handshake, self)
        finally:
            self._note(sockets=-1)

    def begin_request(self) -> None:
        """A request on a WebSocket begins."""
        self._note(active=1)

    def end_request(self, record: RequestRecord) -> None:
        """A request that had begun has ended."""
        self.requests.append(record)
        self._note(active=-1)

    def _note(self, *, active: int = 0, sockets: int = 0) -> None:
        self.active += active
        self.sockets += sockets
        self._changed.set()
        self._changed = trio.Event()

    def _answer(self, request: Request) -> Answer:
        if self._github is not None and (told := self._github.answer(request, self._world)) is not None:
            return told
        path, route = _route_of(request)
        try:
            if path != _HEALTH:
                self._authenticate(request)
            return _matching(route, request).handler(request, self._world)
        except Refused as refused:
            answer = _refuse(refused, request)
            if route is None or answer.status != 405:
                return answer
            # RFC 9110 section 15.5.6: a 405 says what is allowed.
            return evolve(answer, headers=(*answer.headers, (b"allow", route.method.encode())))

    def _check_handshake(self, request: Request) -> None:
        """Raises `Refused` for a WebSocket that is not to be."""
        self._authenticate(request)
        if _route_of(request)[0] != catalog.RESPONSES_ENDPOINT:
            raise Refused.because(f"Unknown WebSocket URL: {request.path}.", "unknown_url", status=404)
        if not self._websocket:
            message = f"No WebSocket here: POST to {request.path}."
            raise Refused.because(message, "websocket_not_supported", status=426)

    def _authenticate(self, request: Request) -> None:
        if self._github is not None and is_copilot_token(request.header(b"authorization")):
            self._github.admit(request, self._world.clock())
            return
        if self._api_key is None:
            return
        # Of both, Anthropic heeds the header of its own.
        key, bearer = request.header(b"x-api-key"), request.header(b"authorization")
        given = bearer if key is None else b"Bearer " + key
        if not given:
            raise Refused.because("You didn't provide an API key.", "missing_api_key", status=401)
        if not hmac.compare_digest(given, b"Bearer " + self._api_key.encode()):
            raise Refused.because("Incorrect API key provided.", "invalid_api_key", status=401)


def _route_of(request: Request) -> tuple[str, Route | None]:
    """The path without its version, and who answers it, if anyone does."""
    path = request.path.removeprefix("/v1")
    return path, _MODEL if path.startswith(f"{_MODELS}/") else _ROUTES.get(path)


def _refuse(refused: Refused, request: Request) -> Answer:
    _, route = _route_of(request)
    return refusal(refused.problem, (route.shape_for if route else _openai)(request))


def _matching(route: Route | None, request: Request) -> Route:
    """The route, if it is one and takes the method. Raises `Refused` (404, 405)."""
    if route is None:
        message = f"Unknown request URL: {request.method} {request.path}."
        raise Refused.because(message, "unknown_url", status=404)
    if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
        message = f"Not allowed to {request.method} on {request.path}: use {route.method}."
        raise Refused.because(message, "method_not_allowed", status=405)
    return route


class _Exchange:
    """One request and its answer; what there is to tell about them in the end."""

    def __init__(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._method = scope["method"]
        self._path = scope["path"]
        self._headers = tuple(scope["headers"])
        self._receive = receive
        self._send = send
        self._started = trio.current_time()
        self._body = b""
        self._status: int | None = None
        self._outcome = Outcome.CANCELLED
        self.dropped = False

    def record(self) -> RequestRecord:
        return RequestRecord(
            method=self._method,
            path=self._path,
            headers=self._headers,
            body=self._body,
            status=self._status,
            outcome=self._outcome,
            started=self._started,
            ended=trio.current_time(),
        )

    async def run(self, answer: Callable[[Request], Answer], world: World, max_body_bytes: int) -> None:
        request = Request(self._method, self._path, self._headers, b"", world.new_id("req_"))
        try:
            body = await self._read_body(max_body_bytes)
            if body is None:
                self._outcome = Outcome.CLIENT_GONE
                return
            self._body = body
            reply = answer(evolve(request, body=body))
        except Refused as refused:
            reply = _refuse(refused, request)
        await self._deliver(reply, request.id)

    async def _read_body(self, limit: int) -> bytes | None:
        """The whole body, or None when the client left. Raises `Refused` (413), after reading it all."""
        body = bytearray()
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            size += len(message["body"])
            if size <= limit:
                body += message["body"]
            if not message["more_body"]:
                break
        if size > limit:
            raise Refused.because(f"The body is over {limit} bytes.", "request_too_large", status=413)
        return bytes(body)

    async def _deliver(self, answer: Answer, request_id: str) -> None:
        played, rest = False, b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            rest = await self._play(answer, request_id)
            played = True
            nursery.cancel_scope.cancel()
        if not played:
            self._outcome = Outcome.CLIENT_GONE
            return
        if not self.dropped:
            await self._send({"type": "http.response.body", "body": rest, "more_body": False})
        self._outcome = Outcome.COMPLETED if answer.sound else Outcome.FAULTED

    async def _watch(self, scope: trio.CancelScope) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _play(self, answer: Answer, request_id: str) -> bytes:
        """Sends everything but the last write, which it returns: that one ends the body.

        A client that leaves as soon as it has it (the official SDK does, after [DONE]) has the whole answer. A
        step that drops the connection sends what was held back, and there is no end.
        """
        await trio.sleep(answer.delay_s)
        # Under both names that official SDKs look for (Anthropic's and OpenAI's).
        ids = ((b"request-id", request_id.encode()), (b"x-request-id", request_id.encode()))
        headers = (*answer.headers, *ids)
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        self._status = answer.status
        held = b""
        for step in answer.steps:
            if held:
                await self._send({"type": "http.response.body", "body": held, "more_body": True})
                held = b""
            match step:
                case Write(data):
                    held = data
                case Pause(seconds):
                    await trio.sleep(seconds)
                case Drop():
                    self.dropped = True
                case _:
                    assert_never(step)
        return held


async def _lifespan(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
