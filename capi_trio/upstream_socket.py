"""Responses asked over WebSocket, for one client's session; over HTTP, where an upstream does not do that.

`SocketUpstream` takes the place of `UpstreamClient` in an exchange: a request goes out as one frame, and the frames
that come back are told as the event stream that HTTP would have brought. Its connections are the session's alone. One
that has brought an answer to its end waits for the session's next request; one that is left earlier is closed, which is
the only way to stop an upstream that still answers.

Source: OpenAI API reference, "WebSocket mode"; wire.md 1.2 (end) and 1.8.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from capi_core.exchange import ExchangeLimits, Operation
from capi_core.protocols.responses.errors import encode_error
from capi_core.protocols.responses.upstream_frames import encode_create
from capi_trio.upstream import UpstreamResponse, address_of
from capi_trio.upstream_connection import Endpoint, RefusedError, UnsentError, hold, open_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from capi_core.commands import SendRequest
    from capi_core.headers import Headers
    from capi_core.protocols.responses.upstream_frames import UpstreamFrame
    from capi_trio.upstream import Address, UpstreamClient, UpstreamTarget
    from capi_trio.upstream_connection import Connection

__all__ = ["SocketUpstream"]

_OF_ONE_REQUEST: Final = frozenset({b"accept", b"accept-encoding", b"content-type", b"content-length", b"x-request-id"})
"""Headers that say nothing of who asks, and so do not belong to a connection."""
_LIMIT_REACHED: Final = "websocket_connection_limit_reached"


def _answers(status: int) -> bool:
    """Whether a refusal with this status is the answer. Any other says only that it is not to be had over WebSocket.

    403 does not count: ASGI servers say it of a path that has no WebSocket. HTTP will tell whether it was meant.
    """
    return status in (401, 429) or (status >= 500 and status != 501)


class SocketUpstream:
    """What `client` offers, with streams of Responses over WebSocket where the target says that it has them.

    An async context manager; its end closes its connections. `connect` opens the bytes to a server, and may raise
    `OSError` or `trio.BrokenResourceError`. `max_event_bytes` bounds one frame; of text that is not
    ASCII it counts the characters.
    """

    def __init__(
        self,
        client: UpstreamClient,
        *,
        connect: Callable[[Address], Awaitable[trio.abc.Stream]] = open_stream,
        max_event_bytes: int = ExchangeLimits().max_event_bytes,
    ) -> None:
        self._client = client
        self._connect = connect
        self._max_event_bytes = max_event_bytes
        self._without: set[UpstreamTarget] = set()
        self._idle: dict[str, Connection] = {}
        self._connections: set[Connection] = set()
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nursery is None:
            return
        for connection in self._connections:
            connection.end()
        self._nursery.cancel_scope.cancel()  # for those that are still opening; the others close, which is shielded
        self._nursery = None
        # Not told what the block raised: a nursery would wrap it in a group.
        await self._manager.__aexit__(None, None, None)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every credential that can be sent, for masking."""
        return self._client.secrets

    @contextlib.asynccontextmanager
    async def request(
        self, request: SendRequest, target: UpstreamTarget | None = None
    ) -> AsyncIterator[UpstreamResponse]:
        """As `UpstreamClient.request`. Leaving the block ends a connection whose answer was not read to its end."""
        target = target or self._client.target(request.upstream)
        answer = await self._over_socket(request, target)
        if answer is None:
            async with self._client.request(request, target) as response:
                yield response
        elif isinstance(answer, UpstreamResponse):
            yield answer
        else:
            try:
                yield UpstreamResponse(200, ((b"content-type", b"text/event-stream"),), lambda: answer)
            finally:
                self._release(answer)

    async def _over_socket(self, request: SendRequest, target: UpstreamTarget) -> _Stream | UpstreamResponse | None:
        """The answer's begin; `None` when it has to be asked over HTTP, and nothing of it was sent yet."""
        if not target.websocket or target in self._without or request.operation is not Operation.RESPONSES:
            return None
        headers = tuple(header for header in request.headers if header[0].lower() not in _OF_ONE_REQUEST)
        address = address_of(target, target.path(request.operation))
        frame = encode_create(request.body)
        if address is None or frame is None:
            return None  # without an address HTTP will fail, and say how
        try:
            return await self._ask(Endpoint(target, address, headers), frame)
        except RefusedError as refusal:
            if _answers(refusal.status):
                return _document(refusal.status, refusal.headers, refusal.body)
            self._without.add(target)
            return None

    async def _ask(self, endpoint: Endpoint, frame: str) -> _Stream | UpstreamResponse:
        """Raises `RefusedError` and `UpstreamFailedError`."""
        connection, first = await self._begin(endpoint, frame)
        if not first.is_error:
            return _Stream(connection, first)
        connection.end()  # nothing says whether more follows an error
        problem, headers = first.problem()
        return _document(problem.status, ((b"content-type", b"application/json"), *headers), encode_error(problem))

    async def _begin(self, endpoint: Endpoint, frame: str) -> tuple[Connection, UpstreamFrame]:
        """Asks; a second time only when the first was surely not begun, for it would be billed too (RFC 9110 9.2.2)."""
        reused = await self._take(endpoint)
        try:
            connection = reused or await self._open(endpoint)
            first = await connection.ask(frame)
            if not first.is_error or first.problem()[0].code != _LIMIT_REACHED:
                return connection, first
            connection.end()
        except UnsentError:
            if reused is None:  # a new one has no past to blame
                raise
        connection = await self._open(endpoint)
        return connection, await connection.ask(frame)

    # -- connections ----------------------------------------------------------------------------------------------

    async def _take(self, endpoint: Endpoint) -> Connection | None:
        """The idle connection, if it can be used."""
        connection = self._idle.pop(endpoint.target.name, None)
        if connection is None:
            return None
        with connection.ending():
            if connection.endpoint == endpoint and await connection.lives():
                return connection
        connection.end()
        return None

    async def _open(self, endpoint: Endpoint) -> Connection:
        if self._nursery is None:
            raise RuntimeError("only inside its `async with`")
        connection: Connection = await self._nursery.start(
            hold, endpoint, self._connect, self._max_event_bytes, self._connections
        )
        connection.outlive_cancellation()
        return connection

    def _release(self, answer: _Stream) -> None:
        connection = answer.connection
        name = connection.endpoint.target.name
        if answer.complete and not connection.is_over and name not in self._idle and self._nursery is not None:
            self._idle[name] = connection
            connection.watch()
        else:
            connection.end()


class _Stream:
    """An answer as the body of an event stream. `complete`: it was read to the event that leaves the connection free.

    A class and not a generator, which would have to be closed by whoever reads only a part.
    """

    def __init__(self, connection: Connection, first: UpstreamFrame) -> None:
        self.connection = connection
        self.complete = False
        self._first: UpstreamFrame | None = first
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        frame, self._first = self._first, None
        if frame is None:
            frame = await self.connection.receive()
        self.complete = frame.completes
        self._ended = frame.completes or frame.is_error
        return frame.to_event()


class _Whole:
    """A body that is there already."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body or None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body


def _document(status: int, headers: Headers, body: bytes) -> UpstreamResponse:
    return UpstreamResponse(status, headers, lambda: _Whole(body))
