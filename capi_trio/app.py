"""The gateway as a plain ASGI app: which route does what, for whom, and what is refused before a model is asked.

A request passes the same gates in the same order: the perimeter (is this host and page ours to answer), the door (whose
key is it), the body, the route, the rate. Only the root and the health routes are for everybody. Routes are looked up
by the exact bytes of the path, once; nothing is decoded, folded or cleaned up first. It does not matter which server
runs the app.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import trio
from attrs import asdict, frozen

from capi_core.counting import count_request
from capi_core.errors import Problem
from capi_core.exchange import Exchange, ExchangeLimits, Failure, Operation, Outcome, Settings
from capi_core.keys import mask_keys, may_call
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import encode_model, encode_models
from capi_core.protocols.registry import CODECS
from capi_trio.asgi import BodyTooLargeError, ClientGoneError, drain_body, header, read_body, respond
from capi_trio.logs import get_logger
from capi_trio.relay import Relay, RelayTimeouts
from capi_trio.tokenizers import load_counter, vendor_factor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

    from capi_core.aliases import Catalog
    from capi_core.config import Config
    from capi_core.headers import Headers
    from capi_core.keys import KeyRecord
    from capi_core.members import JSONObject
    from capi_core.protocols.codec import Codec
    from capi_core.routing import UpstreamTraits
    from capi_trio.access import Access, Door, OpenDoor
    from capi_trio.perimeter import Perimeter
    from capi_trio.relay import RelayResult
    from capi_trio.upstream import UpstreamClient

__all__ = ["Gateway", "Snapshot"]

_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")

_OPERATIONS: Final[Mapping[bytes, Operation]] = {
    b"/v1/chat/completions": Operation.CHAT,
    b"/chat/completions": Operation.CHAT,
    b"/v1/responses": Operation.RESPONSES,
    b"/responses": Operation.RESPONSES,
    b"/v1/messages": Operation.MESSAGES,
    b"/messages": Operation.MESSAGES,
    b"/v1/messages/count_tokens": Operation.COUNT_TOKENS,
    b"/messages/count_tokens": Operation.COUNT_TOKENS,
    b"/v1/embeddings": Operation.EMBEDDINGS,
    b"/embeddings": Operation.EMBEDDINGS,
}
_COUNTED_AT_ONCE: Final = 64 * 1024
"""Bytes of a request whose tokens are counted without a thread: some milliseconds."""
_MODEL_LISTS: Final = frozenset({b"/v1/models", b"/models"})
_MODEL_PREFIXES: Final = (b"/v1/models/", b"/models/")


@frozen
class Snapshot:
    """What a request is judged by. It keeps the one that it started with."""

    config: Config
    catalog: Catalog


class _ConfiguredTraits:
    """The traits of a configuration's upstreams, made once for each configuration and not for each request."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._traits: Mapping[str, UpstreamTraits] = {}

    def of(self, config: Config) -> Mapping[str, UpstreamTraits]:
        if config is not self._config:
            self._config = config
            self._traits = {name: upstream.traits for name, upstream in config.upstreams.items()}
        return self._traits


class Gateway:
    """The ASGI app.

    `snapshot` gives the state of the moment; `door` lets callers in; `ready` tells whether requests can be served;
    `sealed` tells whether the first admin key still lies unread; `new_request_id` makes ids of ASCII letters, digits,
    `_` and `-`; `now_ms` gives the time since epoch.
    `max_body_bytes` is the bound that the connection has: it reads no more, so it must not be waited for.
    """

    def __init__(
        self,
        *,
        snapshot: Callable[[], Awaitable[Snapshot]],
        client: UpstreamClient,
        door: Door | OpenDoor,
        perimeter: Perimeter,
        ready: Callable[[], bool],
        sealed: Callable[[], bool],
        new_request_id: Callable[[], str],
        now_ms: Callable[[], int],
        max_body_bytes: int,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._snapshot = snapshot
        self._client = client
        self._door = door
        self._perimeter = perimeter
        self._sealed = sealed
        self._ready = ready
        self._new_request_id = new_request_id
        self._now_ms = now_ms
        self._traits = _ConfiguredTraits()
        self._relays: set[Relay] = set()
        self._stopping = False
        self._log = get_logger("exchange")

    @property
    def running(self) -> int:
        """Exchanges that are under way."""
        return len(self._relays)

    def stop(self) -> None:
        """Ends every running exchange with a proper last word to its client, and refuses new ones."""
        self._stopping = True
        for relay in self._relays:
            relay.abort(Failure.SHUTDOWN)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return
        request = _Request(scope, receive, send, self._new_request_id(), self._max_body_bytes)
        problem = self._perimeter.problem(scope)
        if problem is not None:
            await request.turn_away(problem)
        elif scope["raw_path"] in _PUBLIC:
            await self._answer_public(request)
        elif self._sealed():
            await request.turn_away(_SEALED)
        else:
            access = self._door.enter(scope["headers"], ip=self._perimeter.client_ip(scope))
            if isinstance(access, Problem):
                await request.turn_away(access, *_CHALLENGE)
            else:
                await self._serve(request, access)

    async def _serve(self, request: _Request, access: Access) -> None:
        """Answers a caller who was let in."""
        snapshot = await self._snapshot()
        scope = request.scope
        operation = _OPERATIONS.get(scope["raw_path"]) if scope["method"] == "POST" else None
        body: bytes | None
        try:
            body = await read_body(scope, request.receive, limit=self._max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            body = None
        if operation is not None:
            await self._exchange(request, access, snapshot, operation, body)
        elif body is None:
            await request.refuse(_too_large(self._max_body_bytes))
        else:
            await self._answer_listing(request, access.key, snapshot)

    async def _exchange(
        self, request: _Request, access: Access, snapshot: Snapshot, operation: Operation, body: bytes | None
    ) -> None:
        exchange = Exchange(
            operation,
            self._settings(access, snapshot),
            request_id=request.id,
            now_s=self._now_ms() // 1000,
            client_headers=tuple(request.scope["headers"]),
        )
        over_rate = self._door.grant(access, trio.current_time())
        if self._stopping:
            commands = exchange.receive_failure(Failure.SHUTDOWN)
        elif body is None:
            commands = exchange.refuse(_too_large(self._max_body_bytes), Outcome.REFUSED_TOO_LARGE)
        elif over_rate is not None:
            commands = exchange.refuse(over_rate, Outcome.REFUSED_RATE)
        elif operation is Operation.COUNT_TOKENS and len(body) > _COUNTED_AT_ONCE:
            commands = await trio.to_thread.run_sync(exchange.receive_request, body)
        else:
            commands = exchange.receive_request(body)
        relay = Relay(
            exchange,
            self._client,
            receive=request.receive,
            send=request.send,
            timeouts=_timeouts(snapshot.config, exchange.upstream),
            extra_headers=request.headers,
        )
        self._relays.add(relay)
        try:
            result = await relay.run(commands)
        except BaseException as error:
            result = relay.cut_off(Failure.INTERNAL if isinstance(error, Exception) else Failure.SHUTDOWN)
            raise
        finally:
            self._relays.discard(relay)
            self._account(request, access.key, result)

    def _settings(self, access: Access, snapshot: Snapshot) -> Settings:
        limits = snapshot.config.limits
        return Settings(
            catalog=snapshot.catalog,
            traits=self._traits.of(snapshot.config),
            may_call=partial(may_call, access.key),
            limits=ExchangeLimits(limits.max_event_bytes, limits.max_answer_bytes),
            hidden=self._client.secrets,
            count_tokens=_count,
        )

    def _account(self, request: _Request, key: KeyRecord, result: RelayResult) -> None:
        """The one line that a request leaves behind. No text of a prompt or an answer is in it."""
        record, usage = result.record, result.record.usage
        tokens = {} if usage is None else {f"tokens_{name}": count for name, count in asdict(usage).items()}
        quiet = record.outcome in (Outcome.OK, Outcome.CLIENT_GONE)
        (self._log.info if quiet else self._log.warning)(
            "exchange",
            request_id=request.id,
            key_id=key.id,
            operation=record.operation.name.lower(),
            outcome=record.outcome.value,
            status=record.status,
            model=record.model and mask_keys(record.model)[:128],  # somebody will paste a key there
            upstream=record.upstream,
            upstream_model=record.upstream_model,
            upstream_protocol=record.upstream_protocol and record.upstream_protocol.value,
            losses=record.losses,
            stream=record.stream,
            first_byte_ms=_round(result.first_byte_ms),
            latency_ms=_round(result.latency_ms),
            upstream_failure=result.upstream_failure,
            usage_source=record.usage_source.value,
            **tokens,
        )

    # -- routes that ask no model -------------------------------------------------------------------------------

    async def _answer_public(self, request: _Request) -> None:
        path = request.scope["raw_path"]
        try:
            await drain_body(request.scope, request.receive, limit=self._max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            await request.refuse(_too_large(self._max_body_bytes))
            return
        if request.scope["method"] not in _READING:
            await request.refuse(_wrong_method("GET"), (b"allow", b"GET, HEAD"))
        elif path == b"/readyz" and not self._ready():
            await request.respond(503, _TEXT, b"not ready\n")
        else:
            await request.respond(200, _TEXT, _PUBLIC[path])

    async def _answer_listing(self, request: _Request, key: KeyRecord, snapshot: Snapshot) -> None:
        path, method = request.scope["raw_path"], request.scope["method"]
        if path in _OPERATIONS:
            await request.refuse(_wrong_method("POST"), (b"allow", b"POST"))
        elif path not in _MODEL_LISTS and not path.startswith(_MODEL_PREFIXES):
            text = "there is nothing at this path; the API is below /v1, for example POST /v1/chat/completions"
            await request.refuse(Problem(404, "unknown_route", text))
        elif method not in _READING:
            await request.refuse(_wrong_method("GET"), (b"allow", b"GET, HEAD"))
        elif path in _MODEL_LISTS:
            await request.respond(200, _JSON, encode_models(snapshot.catalog.listed(partial(may_call, key))))
        else:
            await self._answer_model(request, key, snapshot)

    async def _answer_model(self, request: _Request, key: KeyRecord, snapshot: Snapshot) -> None:
        name = unquote_to_bytes(request.scope["raw_path"].partition(b"/models/")[2]).decode("utf-8", "replace")
        for model in snapshot.catalog.listed(partial(may_call, key)):
            if model.name == name:
                await request.respond(200, _JSON, encode_model(model))
                return
        text = "there is no such model here; GET /v1/models lists what this key may use"
        await request.refuse(Problem(404, "model_not_found", text, param="model"))


_READING: Final = frozenset({"GET", "HEAD"})
_PUBLIC: Final[Mapping[bytes, bytes]] = {
    b"/": b"capi is running\n",
    b"/healthz": b"ok\n",
    b"/readyz": b"ready\n",
}
_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="capi"'),)
_SEALED: Final = Problem(
    503,
    "admin_key_unread",
    "this gateway waits for its operator to read and delete the file with the first admin key; its log says where",
)


@frozen
class _Request:
    """One request as the server gave it, with the id that its answer and its log line carry."""

    scope: HTTPScope
    receive: ASGIReceiveCallable
    send: ASGISendCallable
    id: str
    max_body_bytes: int

    @property
    def headers(self) -> Headers:
        """What every answer has: the id under the names that OpenAI's and Anthropic's SDKs read."""
        value = self.id.encode("ascii")
        return ((b"x-request-id", value), (b"request-id", value))

    @property
    def codec(self) -> Codec:
        """Whose shape an answer of ours has: the route's, and on routes of both the client's, which says a version."""
        operation = _OPERATIONS.get(self.scope["raw_path"])
        if operation is not None:
            return CODECS[operation.protocol]
        speaks_messages = header(self.scope, b"anthropic-version") is not None
        return CODECS[Protocol.MESSAGES if speaks_messages else Protocol.CHAT]

    async def respond(
        self, status: int, content_type: tuple[bytes, bytes], body: bytes, *more: tuple[bytes, bytes]
    ) -> None:
        await respond(self.send, status, (content_type, *self.headers, *more), body)

    async def refuse(self, problem: Problem, *more: tuple[bytes, bytes]) -> None:
        await self.respond(problem.status, _JSON, self.codec.encode_error(problem, self.id), *more)

    async def turn_away(self, problem: Problem, *more: tuple[bytes, bytes]) -> None:
        """Refuses without keeping any of the body in memory: whoever was not let in cannot fill it."""
        try:
            await drain_body(self.scope, self.receive, limit=self.max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            pass  # the refusal is the same
        await self.refuse(problem, *more)


def _count(document: JSONObject, model: str) -> bytes:
    """Tokens by the model's own tokenizer where there is one, else estimated."""
    return count_request(document, load_counter(model), vendor_factor=vendor_factor(model))


def _too_large(limit: int) -> Problem:
    text = f"the request's body is larger than {limit} bytes, this gateway's limits.max_body_bytes"
    return Problem(413, "body_too_large", text)


def _wrong_method(allowed: str) -> Problem:
    return Problem(405, "method_not_allowed", f"this path takes {allowed} requests")


def _timeouts(config: Config, upstream: str | None) -> RelayTimeouts:
    keep_alive = config.limits.keep_alive_s
    if upstream is None:
        return RelayTimeouts(keep_alive=keep_alive)
    limits = config.upstreams[upstream]
    return RelayTimeouts(limits.head_timeout_s, limits.idle_timeout_s, limits.total_timeout_s, keep_alive)


def _round(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
