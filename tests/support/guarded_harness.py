"""An ASGI application behind our own guarded connection, on a memory stream, on trio's clock.

    async with connect(app) as peer:
        response = await peer.client.request("POST", "/v1/chat/completions", {...})

The twin of `asgi_harness` for `capi_trio.connection.serve_connection`. The wire between the two can be made to stall,
and `peer` shows both of its ends.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
import trio.testing
from hypercorn.typing import ASGIFramework
from typing_extensions import override

from capi_core.framing import FramingLimits
from capi_trio.connection import ConnectionContext, ConnectionTimeouts, GuardedStream, serve_connection
from tests.support.asgi_harness import Client

__all__ = ["Addresses", "Guarded", "Wire", "connect", "context", "request_ids", "serve", "unserved"]

_READ: Final = 65536
_OVER_WITHIN_S: Final = 120.0
"""Past every time limit of a connection that nobody uses any more."""


class Addresses:
    """As much of a socket as hypercorn asks for."""

    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 4141)


class Wire(trio.abc.HalfCloseableStream):
    """The server's end. `delay` is how long the client takes for each piece that is sent; `math.inf`: it takes none.

    `pieces` are the sizes of what was sent.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.delay = 0.0
        self.pieces: list[int] = []
        self.closed = False
        self._stream = stream
        self._busy = False
        self._sending = trio.CancelScope()

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._busy, "two tasks send at once"
        self._busy = True
        try:
            if self.delay and not self.closed:
                with trio.CancelScope() as self._sending:
                    await trio.sleep(self.delay)
            if self.closed:
                raise trio.ClosedResourceError
            self.pieces.append(len(data))
            await self._stream.send_all(data)
        finally:
            self._busy = False

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        if self._busy:
            raise trio.BusyResourceError
        await self._stream.send_eof()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    @override
    async def aclose(self) -> None:
        self.closed = True
        self._sending.cancel()
        await self._stream.aclose()


class Guarded:
    """A served connection: the client, the wire, the guarded stream, and whether the server is done with it."""

    def __init__(self, end: trio.abc.HalfCloseableStream, wire: Wire, context: ConnectionContext) -> None:
        self.client = Client(end, host="localhost")
        self.end = end
        self.wire = wire
        self.stream = GuardedStream(wire, Addresses(), context)
        self.context = context
        self.over = trio.Event()

    async def send(self, data: bytes) -> None:
        await self.end.send_all(data)

    async def receive(self) -> bytes:
        """The next bytes, as they are."""
        return bytes(await self.end.receive_some(_READ))

    async def read_to_end(self) -> bytes:
        """Everything that still comes, until the server closes."""
        return await self.client.read_to_end()

    async def serve(self, app: ASGIFramework) -> None:
        try:
            await serve_connection(self.stream, app, self.context)
        finally:
            self.over.set()


def request_ids() -> Callable[[], str]:
    """Makes req_1, req_2, ..."""
    count = iter(range(1, 1_000_000))
    return lambda: f"req_{next(count)}"


def context(*, framing: FramingLimits | None = None, timeouts: ConnectionTimeouts | None = None) -> ConnectionContext:
    return ConnectionContext(
        framing=framing or FramingLimits(),
        timeouts=timeouts or ConnectionTimeouts(),
        new_request_id=request_ids(),
    )


def unserved(shared: ConnectionContext) -> Guarded:
    """A connection that nobody serves yet."""
    client_end, server_end = trio.testing.memory_stream_pair()
    return Guarded(client_end, Wire(server_end), shared)


def serve(nursery: trio.Nursery, app: ASGIFramework, shared: ConnectionContext) -> Guarded:
    """One more connection to `app`, served in `nursery`."""
    peer = unserved(shared)
    nursery.start_soon(peer.serve, app)
    return peer


@asynccontextmanager
async def connect(
    app: ASGIFramework,
    *,
    framing: FramingLimits | None = None,
    timeouts: ConnectionTimeouts | None = None,
) -> AsyncIterator[Guarded]:
    """A client connected to `app`. Leaving closes the connection, and expects the server to end by itself."""
    async with trio.open_nursery() as nursery:
        peer = serve(nursery, app, context(framing=framing, timeouts=timeouts))
        try:
            yield peer
        finally:
            with trio.CancelScope(shield=True):
                await peer.end.aclose()
            nursery.cancel_scope.deadline = trio.current_time() + _OVER_WITHIN_S
    assert not nursery.cancel_scope.cancelled_caught, "the server did not notice that its client has gone"
    assert peer.wire.closed
