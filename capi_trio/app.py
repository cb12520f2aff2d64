"""The gateway as a plain ASGI app: which route does what, for whom, and what is refused before a model is asked.

A request passes the same gates in the same order: the perimeter (is this host and page ours to answer), the door (whose
key is it), the body, the route, the rate. Only the root and the health routes are for everybody. Routes are looked up
by the exact bytes of the path, once; nothing is decoded, folded or cleaned up first. It does not matter which server
runs the app.
"""

from __future__ import annotations

import http
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, frozen

from capi_core.counting import count_request
from capi_core.errors import Problem, ProtocolError
from capi_core.exchange import Exchange, ExchangeLimits, Failure, Operation, Outcome, Settings
from capi_core.keys import mask_keys, may_call
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import required_model
from capi_core.protocols.registry import CODECS
from capi_trio.admission import OPEN_ADMISSION, Asked
from capi_trio.asgi import BodyTooLargeError, ClientGoneError, deny, drain_body, read_body
from capi_trio.logs import get_logger
from capi_trio.metering import usage_event
from capi_trio.readings import USAGE_PATHS, answer_reading
from capi_trio.relay import Relay, RelayTimeouts
from capi_trio.request import JSON, OPERATIONS, READING, Call, Request, id_headers, wrong_method
from capi_trio.tokenizers import load_counter, vendor_factor
from capi_trio.upstream_socket import SocketUpstream
from capi_trio.websocket import Caller, ResponsesSession, SessionLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope

    from capi_core.aliases import Catalog
    from capi_core.config import Config
    from capi_core.exchange import Command, Record
    from capi_core.headers import Headers
    from capi_core.keys import KeyRecord
    from capi_core.members import JSONObject
    from capi_core.routing import UpstreamTraits
    from capi_trio.access import Access, Door, OpenDoor
    from capi_trio.admission import Admission
    from capi_trio.budgeting import Budgets, Ticket
    from capi_trio.metering import Note
    from capi_trio.perimeter import Perimeter
    from capi_trio.relay import RelayResult
    from capi_trio.seats import Seats
    from capi_trio.upstream import UpstreamClient
    from capi_trio.usage_reports import UsageReports

__all__ = ["Gateway", "Snapshot"]

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")

_WRAPPING: Final = 8
"""How many times larger a text may be in an event of ours than it came: escapes, and what is around it."""
_COUNTED_AT_ONCE: Final = 64 * 1024
"""Bytes of a request whose tokens are counted without a thread: some milliseconds."""


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
    `max_body_bytes` is the bound that the connection has: it reads no more, so it must not be waited for. `note` gets
    the row of each request to a model, once, when it has ended, and returns it with its cost; it must neither block nor
    raise. `budgets` are held against that; `usage` tells a caller of its
    own.
    """

    def __init__(
        self,
        *,
        snapshot: Callable[[], Awaitable[Snapshot]],
        client: UpstreamClient,
        seats: Seats,
        door: Door | OpenDoor,
        perimeter: Perimeter,
        ready: Callable[[], bool],
        sealed: Callable[[], bool],
        new_request_id: Callable[[], str],
        now_ms: Callable[[], int],
        max_body_bytes: int,
        note: Note = lambda event, *, named: event,
        budgets: Budgets | None = None,
        usage: UsageReports | None = None,
        admission: Admission = OPEN_ADMISSION,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._note = note
        self._budgets = budgets
        self._usage = usage
        self._admission = admission
        self._snapshot = snapshot
        self._client = client
        self._seats = seats
        self._door = door
        self._perimeter = perimeter
        self._sealed = sealed
        self._ready = ready
        self._new_request_id = new_request_id
        self._now_ms = now_ms
        self._traits = _ConfiguredTraits()
        self._relays: set[Relay] = set()
        self._sessions: set[ResponsesSession] = set()
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

    def drain(self) -> None:
        """Ends every WebSocket as soon as nothing runs on it: nobody else would before the grace period is over."""
        for session in self._sessions:
            session.drain()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":
            await self._open_session(scope, receive, send)
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send, self._new_request_id(), self._max_body_bytes)
        problem = self._perimeter.problem(scope)
        if problem is not None:
            await request.turn_away(problem)
        elif scope["raw_path"] in _PUBLIC:
            await self._answer_public(request)
        else:
            access = self._enter(scope)
            if isinstance(access, Problem):
                await request.turn_away(access, *_challenge(access))
            else:
                await self._serve(request, access)

    def _enter(self, scope: HTTPScope | WebsocketScope) -> Access | Problem:
        """Lets the caller in, or says why not."""
        if self._sealed():
            return _SEALED
        return self._door.enter(scope["headers"], ip=self._perimeter.client_ip(scope))

    async def _serve(self, request: Request, access: Access) -> None:
        """Answers a caller who was let in."""
        snapshot = await self._snapshot()
        scope = request.scope
        operation = OPERATIONS.get(scope["raw_path"]) if scope["method"] == "POST" else None
        body: bytes | None
        try:
            body = await read_body(scope, request.receive, limit=self._max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            body = None
        if operation is not None:
            call = request.call(self._client, self._perimeter.client_ip(scope))
            await self._exchange(call, access, snapshot, operation, body)
        elif body is None:
            await request.refuse(_too_large(self._max_body_bytes))
        elif over_rate := self._over_reading_rate(request, access):
            await request.refuse(over_rate)
        else:
            await answer_reading(request, access.key, snapshot.catalog, self._seats, self._usage)

    def _over_reading_rate(self, request: Request, access: Access) -> Problem | None:
        """A report of a key's usage is work: it counts as a request. The other readings are not."""
        reports = request.scope["raw_path"] in USAGE_PATHS
        return self._door.grant(access, trio.current_time()) if reports else None

    async def _exchange(
        self, call: Call, access: Access, snapshot: Snapshot, operation: Operation, body: bytes | None
    ) -> None:
        began_ms = self._now_ms()
        exchange = Exchange(
            operation,
            self._settings(access, snapshot),
            request_id=call.id,
            now_s=began_ms // 1000,
            client_headers=tuple(call.client_headers),
        )
        ticket: Ticket | None = None
        relay = Relay(
            exchange,
            call.upstream,
            receive=call.receive,
            send=call.send,
            timeouts=partial(_timeouts, snapshot.config),
            take_seat=partial(self._seats.take, access.key, address=call.address),
            extra_headers=call.headers,
            admit=None if body is None else partial(self._admit, exchange, operation, access.key, len(body)),
        )
        self._relays.add(relay)
        try:
            commands, ticket = await self._begin(exchange, access, operation, body)
            result = await relay.run(commands)
        except BaseException as error:
            result = relay.cut_off(Failure.INTERNAL if isinstance(error, Exception) else Failure.SHUTDOWN)
            raise
        finally:
            self._relays.discard(relay)
            self._account(call, access.key, result)
            event = usage_event(call, access.key, result, began_ms=began_ms)
            event = self._note(event, named=_is_named(snapshot.catalog, result.record))
            if ticket is not None and self._budgets is not None:
                self._budgets.end(ticket, event)

    async def _begin(
        self, exchange: Exchange, access: Access, operation: Operation, body: bytes | None
    ) -> tuple[list[Command], Ticket | None]:
        """What is to be done about a request that has come in; and what settles its budget, where its key has one."""
        over_rate = self._door.grant(access, trio.current_time())
        if self._stopping:
            return exchange.receive_failure(Failure.SHUTDOWN), None
        if body is None:
            return exchange.refuse(_too_large(self._max_body_bytes), Outcome.REFUSED_TOO_LARGE), None
        if over_rate is not None:
            return exchange.refuse(over_rate, Outcome.REFUSED_RATE), None
        if operation is Operation.COUNT_TOKENS:  # it costs nothing but our own time
            if len(body) > _COUNTED_AT_ONCE:
                return await trio.to_thread.run_sync(exchange.receive_request, body), None
            return exchange.receive_request(body), None
        held = None if self._budgets is None else await self._budgets.begin(access.key, len(body))
        if isinstance(held, Problem):
            return exchange.refuse(held, Outcome.REFUSED_BUDGET), None
        try:
            return exchange.receive_request(body), held
        except BaseException:
            if held is not None and self._budgets is not None:
                self._budgets.cancel(held)
            raise

    async def _admit(self, exchange: Exchange, operation: Operation, key: KeyRecord, size: int) -> None:
        if operation is not Operation.COUNT_TOKENS:  # it costs nothing
            await self._admission.enter(Asked(operation, exchange.model or "", key.label or key.id, size))

    def _settings(self, access: Access, snapshot: Snapshot) -> Settings:
        limits = snapshot.config.limits
        return Settings(
            catalog=snapshot.catalog,
            traits=self._traits.of(snapshot.config),
            may_call=partial(may_call, access.key),
            limits=ExchangeLimits(limits.max_event_bytes, limits.max_answer_bytes),
            hidden=lambda: self._seats.secrets,
            count_tokens=_count,
        )

    def _account(self, call: Call, key: KeyRecord, result: RelayResult) -> None:
        """The one line that a request leaves behind. No text of a prompt or an answer is in it."""
        record, usage = result.record, result.record.usage
        tokens = {} if usage is None else {f"tokens_{name}": count for name, count in asdict(usage).items()}
        quiet = record.outcome in (Outcome.OK, Outcome.CLIENT_GONE)
        (self._log.info if quiet else self._log.warning)(
            "exchange",
            request_id=call.id,
            key_id=key.id,
            transport=call.transport,
            operation=record.operation.name.lower(),
            outcome=record.outcome.value,
            status=record.status,
            model=_shown(record.model),
            upstream=record.upstream,
            upstream_model=_shown(record.upstream_model),
            upstream_protocol=record.upstream_protocol and record.upstream_protocol.value,
            losses=record.losses,
            failed_upstreams=list(record.failed_upstreams),
            stream=record.stream,
            first_byte_ms=_round(result.first_byte_ms),
            latency_ms=_round(result.latency_ms),
            queue_ms=_round(result.queue_ms),
            identity=result.identity,
            upstream_failure=result.upstream_failure,
            usage_source=record.usage_source.value,
            **tokens,
        )

    # -- WebSocket ----------------------------------------------------------------------------------------------

    async def _open_session(self, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request_id = self._new_request_id()
        headers = id_headers(request_id)
        problem: Access | Problem = self._perimeter.problem(scope) or self._enter(scope)
        if isinstance(problem, Problem):
            codec = CODECS[Protocol.RESPONSES]
            body = codec.encode_error(problem, request_id)
            await deny(send, problem.status, (JSON, *headers, *_challenge(problem)), body)
            return
        limits = (await self._snapshot()).config.limits
        async with SocketUpstream(self._client, max_event_bytes=limits.max_event_bytes) as upstream:
            session = ResponsesSession(
                receive,
                send,
                Caller(
                    enter=partial(self._enter, scope),
                    refusal=self._refusal,
                    answer=partial(self._answer_turn, scope, upstream),
                ),
                headers=headers,
                new_request_id=self._new_request_id,
                now_s=lambda: self._now_ms() // 1000,
                limits=SessionLimits(
                    waiting_bytes=self._max_body_bytes,
                    event_bytes=_WRAPPING * max(limits.max_event_bytes, limits.max_answer_bytes),
                ),
            )
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)

    async def _refusal(self, access: Access, document: JSONObject) -> Problem | None:
        """Why a request that asks no model would be refused if it did."""
        snapshot = await self._snapshot()
        try:
            snapshot.catalog.resolve(required_model(document), partial(may_call, access.key))
        except ProtocolError as error:
            return Problem.of(error)
        return None

    async def _answer_turn(
        self,
        scope: WebsocketScope,
        upstream: SocketUpstream,
        access: Access,
        request_id: str,
        body: bytes,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        address = self._perimeter.client_ip(scope)
        call = Call(request_id, "websocket", address, tuple(scope["headers"]), (), receive, send, upstream)
        held = body if len(body) <= self._max_body_bytes else None  # with the turns before it
        await self._exchange(call, access, await self._snapshot(), Operation.RESPONSES, held)

    # -- routes that ask no model -------------------------------------------------------------------------------

    async def _answer_public(self, request: Request) -> None:
        path = request.scope["raw_path"]
        try:
            await drain_body(request.scope, request.receive, limit=self._max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            await request.refuse(_too_large(self._max_body_bytes))
            return
        if request.scope["method"] not in READING:
            await request.refuse(wrong_method("GET"), (b"allow", b"GET, HEAD"))
        elif path == b"/readyz" and not self._ready():
            await request.respond(503, _TEXT, b"not ready\n")
        else:
            await request.respond(200, _TEXT, _PUBLIC[path])


_PUBLIC: Final[Mapping[bytes, bytes]] = {
    b"/": b"capi is running\n",
    b"/healthz": b"ok\n",
    b"/readyz": b"ready\n",
}
_SEALED: Final = Problem(
    503,
    "admin_key_unread",
    "this gateway waits for its operator to read and delete the file with the first admin key; its log says where",
)


def _shown(model: str | None) -> str | None:
    """A model's name as a log may hold it: somebody will paste a key there."""
    return model and mask_keys(model)[:128]


def _is_named(catalog: Catalog, record: Record) -> bool:
    """Whether the names of a model are the operator's or an upstream's.

    An upstream without a list is asked for whatever a client has typed.
    """
    if record.upstream is None or record.upstream_model is None:
        return False
    listed = catalog.record(record.upstream, record.upstream_model) is not None
    return listed or record.model in catalog.aliases or record.outcome is Outcome.OK


def _count(document: JSONObject, model: str) -> bytes:
    """Tokens by the model's own tokenizer where there is one, else estimated."""
    return count_request(document, load_counter(model), vendor_factor=vendor_factor(model))


def _challenge(problem: Problem) -> Headers:
    """What a refused caller is told of how to get in (RFC 9110 11.6.1)."""
    return ((b"www-authenticate", b'Bearer realm="capi"'),) if problem.status == http.HTTPStatus.UNAUTHORIZED else ()


def _too_large(limit: int) -> Problem:
    text = f"the request's body is larger than {limit} bytes, this gateway's limits.max_body_bytes"
    return Problem(413, "body_too_large", text)


def _timeouts(config: Config, upstream: str) -> RelayTimeouts:
    limits = config.upstreams[upstream]
    keep_alive_s = config.limits.keep_alive_s
    drain_s = limits.drain_max_s if limits.on_client_gone == "drain_to_usage" else 0.0
    return RelayTimeouts(limits.head_timeout_s, limits.idle_timeout_s, limits.total_timeout_s, keep_alive_s, drain_s)


def _round(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
