"""One WebSocket to an upstream, from its handshake to its close.

A connection lives in a task of its own, `hold`, with its own nursery: trio-websocket raises a refusal, and what its
engine does not take, in the task that reads. Who is done with a connection says so (`end`); the task then closes it,
for at most `CLOSE_S`, while nobody waits.

Source: RFC 6455.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio
from attrs import field, frozen
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from typing_extensions import override

from capi_core.errors import ProtocolError
from capi_core.exchange import Failure
from capi_core.protocols.responses.upstream_frames import UpstreamFrame, read_frame
from capi_trio.logs import describe, get_logger
from capi_trio.upstream import (
    Address,
    UpstreamFailedError,
    UpstreamTarget,
    credential_headers,
    tls_context,
    version_headers,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Self

    from capi_core.headers import Headers

__all__ = ["CLOSE_S", "Connection", "Endpoint", "RefusedError", "UnsentError", "hold", "open_stream"]

CLOSE_S: Final = 1.0
_HANDSHAKE_S: Final = 10.0
_OLDEST_S: Final = 55 * 60.0
"""OpenAI ends a connection at 60 minutes, whatever it is in the middle of."""
_TRUSTED_S: Final = 30.0
"""Idle for longer, and a ping has to tell whether the peer, and what is between, is still there."""
_PONG_S: Final = 5.0
_MOST_HANDSHAKE_BYTES: Final = 256 * 1024
_TOO_BIG: Final = 1009
_ABNORMAL: Final = 1006
_BETA: Final = (b"openai-beta", b"responses_websockets=2026-02-06")


@frozen
class Endpoint:
    """Whom a connection leads to, and who asks there."""

    target: UpstreamTarget
    address: Address
    headers: Headers = field(repr=False)


class RefusedError(Exception):
    """The handshake was answered with an HTTP response, or (status 0) with nothing that could be understood."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body

    @classmethod
    def of(cls, group: BaseExceptionGroup[ConnectionRejected]) -> Self:
        leaf = group.exceptions[0]
        if isinstance(leaf, BaseExceptionGroup):
            return cls.of(leaf)
        return cls(leaf.status_code, tuple(leaf.headers), leaf.body or b"")


class UnsentError(UpstreamFailedError):
    """The connection ended before the whole request was on it: whoever is at the other end cannot have begun it."""


class Connection:
    """One WebSocket. Whoever has it asks, and reads the answer to its end or ends the connection."""

    def __init__(self, endpoint: Endpoint, websocket: WebSocketConnection, nursery: trio.Nursery) -> None:
        self.endpoint = endpoint
        self._websocket = websocket
        self._nursery = nursery
        self._opened_at = self._idle_since = trio.current_time()
        self._over = trio.Event()
        self._unasked = trio.CancelScope()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        """Nobody will ask here again."""
        self._over.set()

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever is raised inside ends the connection: what is under way on it then belongs to nobody."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    async def serve(self) -> None:
        """Returns when it is over, and closed as far as the peer lets it be."""
        try:
            await self._over.wait()
        finally:
            self.end()  # as far as anybody else sees, when it is the reader that failed
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._websocket.aclose()

    def outlive_cancellation(self) -> None:
        """From now on only `end` ends it: the answer to a close frame has to be read by a task that still runs."""
        self._nursery.cancel_scope.shield = True

    # -- a request ------------------------------------------------------------------------------------------------

    async def ask(self, frame: str) -> UpstreamFrame:
        """Sends the request; returns its first frame. Raises `UnsentError`, then `UpstreamFailedError`."""
        with self.ending():
            try:
                await self._websocket.send_message(frame)
            except Exception as error:  # trio-websocket lets its engine's through, while a connection is being closed
                raise UnsentError(Failure.BROKEN, type(error).__name__) from None
            return await self.receive()

    async def receive(self) -> UpstreamFrame:
        """The next frame. Raises `UpstreamFailedError`."""
        try:
            return read_frame(await self._websocket.get_message())
        except ProtocolError as error:
            raise UpstreamFailedError(Failure.BROKEN, str(error)) from None
        except ConnectionClosed as closed:
            code = closed.reason.code if closed.reason else _ABNORMAL
            if code == _TOO_BIG:
                raise UpstreamFailedError(Failure.BROKEN, "a frame is too big") from None
            raise UpstreamFailedError(Failure.BROKEN, f"closed with {code}") from None

    # -- between requests -----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """While nobody asks nothing is to come: a frame, or the peer's end, ends the connection."""
        self._idle_since = trio.current_time()
        self._unasked = trio.CancelScope()
        self._nursery.start_soon(self._watch, self._unasked)

    async def _watch(self, unasked: trio.CancelScope) -> None:
        with unasked:
            with contextlib.suppress(ConnectionClosed):
                await self._websocket.get_message()
            self.end()

    async def lives(self) -> bool:
        """Whether it can be asked again. Ends the watch."""
        now = trio.current_time()
        lives = not self.is_over and now - self._opened_at < _OLDEST_S
        if lives and now - self._idle_since > _TRUSTED_S:
            lives = await self._pongs()
        self._unasked.cancel()
        return lives and not self.is_over

    async def _pongs(self) -> bool:
        with trio.move_on_after(_PONG_S) as patience:
            try:
                await self._websocket.ping()
            except Exception:  # as in `ask`
                return False
        return not patience.cancelled_caught


async def hold(
    endpoint: Endpoint,
    connect: Callable[[Address], Awaitable[trio.abc.Stream]],
    max_event_bytes: int,
    connections: set[Connection],
    *,
    task_status: trio.TaskStatus[Connection],
) -> None:
    """A connection's life, during which it is one of `connections`.

    Raises `RefusedError` and `UpstreamFailedError`, but nothing once it is open.
    """
    stream = await _reach(endpoint, connect)
    connection: Connection | None = None
    refusal = RefusedError(0, (), b"")
    patience = trio.CancelScope(deadline=trio.current_time() + _HANDSHAKE_S)
    wire = _Wire(stream, patience)
    try:
        async with trio.open_nursery() as nursery:
            with patience:
                websocket = await _shake_hands(nursery, wire, endpoint, max_event_bytes)
                connection = Connection(endpoint, websocket, nursery)
            wire.opening = None
            if connection is not None:
                connections.add(connection)
                task_status.started(connection)
                await connection.serve()
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as rejected:
        refusal = RefusedError.of(rejected)
    except* Exception as fault:  # what trio-websocket's reader does not take; whoever asks finds the connection ended
        get_logger("upstream").info("websocket_failed", upstream=endpoint.target.name, **describe(fault))
    finally:
        await trio.aclose_forcefully(stream)
        if connection is not None:
            connections.discard(connection)
    if connection is None:
        if not refusal.status and not wire.ended and trio.current_time() >= patience.deadline:
            raise UpstreamFailedError(Failure.TIMEOUT, "HandshakeTimeout")
        raise refusal


async def _reach(endpoint: Endpoint, connect: Callable[[Address], Awaitable[trio.abc.Stream]]) -> trio.abc.Stream:
    try:
        with trio.fail_after(endpoint.target.connect_timeout_s):
            return await connect(endpoint.address)
    except trio.TooSlowError:
        raise UpstreamFailedError(Failure.TIMEOUT, "ConnectTimeout") from None
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:
        raise UpstreamFailedError(Failure.UNREACHABLE, type(error).__name__) from None


async def _shake_hands(
    nursery: trio.Nursery, wire: _Wire, endpoint: Endpoint, max_event_bytes: int
) -> WebSocketConnection:
    own = [(name.encode(), value.encode()) for name, value in version_headers().items()]
    return await wrap_client_stream(
        nursery,
        wire,  # type: ignore[arg-type]  # its documentation takes any trio.abc.Stream
        endpoint.address.authority,
        endpoint.address.path,
        extra_headers=[*endpoint.headers, *credential_headers(endpoint.target), _BETA, *own],
        max_message_size=max_event_bytes,
        receive_buffer_size=None,
    )


class _Wire(trio.abc.Stream):
    """`stream`, of which `opening` is cancelled when it ends.

    A handshake that cannot be answered any more is over; trio-websocket would wait for ever.
    """

    def __init__(self, stream: trio.abc.Stream, opening: trio.CancelScope) -> None:
        self.opening: trio.CancelScope | None = opening
        self.ended = False
        self._stream = stream
        self._left = _MOST_HANDSHAKE_BYTES

    def _end(self) -> None:
        self.ended = True
        if self.opening is not None:
            self.opening.cancel()

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()
            raise

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()
            raise
        if self.opening is not None:  # trio-websocket collects the body of a refusal without a bound
            self._left -= len(data)
            data = data if self._left >= 0 else b""
        if not data:
            self._end()
        return data

    @override
    async def aclose(self) -> None:
        self._end()
        await self._stream.aclose()


async def open_stream(address: Address, *, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connection, with TLS where it belongs, checked. Raises `OSError` and `trio.BrokenResourceError`."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    if not address.tls:
        return stream
    secure = trio.SSLStream(stream, tls or tls_context(), server_hostname=address.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure
