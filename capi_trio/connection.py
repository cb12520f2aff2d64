"""One client connection: hypercorn's HTTP/1.1 server behind a guard.

hypercorn's connection code trusts its peer more than a gateway can (style.md 5.1 to 5.4, each fault measured): one
packet can end the process, ambiguous framing is served, one pipelined byte hides a disconnect, a reader that stalls
pins its task for ever. So it gets to see a client through `GuardedStream` only, which

- frames every request strictly (`capi_core.framing`) and hands on a canonical copy of it;
- holds pipelined bytes back while a request is answered, and so always sees a disconnect;
- bounds each wait: for a request, its head, its body, and for a client to take what is sent;

and through `GuardedApp` (`capi_trio.guarded_app`), which turns whatever an app raises into an end of that request. What
still goes wrong in a connection ends that connection (`serve_connection`), never the process.

A WebSocket handshake that the app accepts turns the stream into a pipe: frames are hypercorn's to read, and the guard
pings a client that would otherwise be silent for hours, so that one that is gone is noticed.
"""

from __future__ import annotations

import enum
import http
import math
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import frozen
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from typing_extensions import override

from capi_core.errors import Problem
from capi_core.framing import FramingError, FramingLimits, FramingState, RequestFraming
from capi_core.protocols.openai import encode_error
from capi_trio.guarded_app import GuardedApp, split_cancelled
from capi_trio.logs import describe, get_logger
from capi_trio.sockets import close_with_reset, send_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.events import Event
    from hypercorn.typing import ASGIFramework

__all__ = [
    "ConnectionContext",
    "ConnectionTimeouts",
    "GuardedStream",
    "PeerSocket",
    "serve_connection",
]

_READ_SIZE: Final = 64 * 1024
_WRITE_SLICE: Final = 16 * 1024
"""Bytes that a client must take within the write-stall time; small enough that a slow but living reader passes."""
_TURN_BYTES: Final = 64 * 1024
"""What may be sent without giving way to other tasks: an app that does nothing but send must not stop them all."""
_LINGER_S: Final = 1.0
"""After a refusal, how long unread bytes are taken and dropped: closing on them would reset the refusal away."""
_LINGER_BYTES: Final = 4 * 1024 * 1024
_CLOSE: Final = b"\x88"
"""How a close frame begins, RFC 6455 5.5.1."""
_PING: Final = b"\x89\x00"
"""A ping without a payload, RFC 6455 5.5.2."""


class PeerSocket(Protocol):
    """The part of a socket that hypercorn asks for addresses."""

    @property
    def family(self) -> int: ...
    def getpeername(self) -> tuple[str, int]: ...
    def getsockname(self) -> tuple[str, int]: ...


@frozen
class ConnectionTimeouts:
    """Seconds; `min_body_rate` in bytes per second."""

    idle: float = 75.0
    head: float = 10.0
    body: float = 30.0
    min_body_rate: int = 4096
    write_stall: float = 30.0
    ping: float = 20.0
    """Between two pings on a WebSocket; a client from which nothing comes in between is gone."""


class ConnectionContext:
    """What all connections of a server share: settings, and hypercorn's notion of a worker that ends."""

    def __init__(
        self, *, framing: FramingLimits, timeouts: ConnectionTimeouts, new_request_id: Callable[[], str]
    ) -> None:
        self.framing = framing
        self.timeouts = timeouts
        self.new_request_id = new_request_id
        self.log = get_logger("connection")
        self.worker = WorkerContext(None)
        self.hypercorn = Config()
        self.hypercorn.accesslog = None  # its format can print headers and the environment
        self.hypercorn.errorlog = None  # it prints whole exception groups; ours says what is safe to say
        self.hypercorn.include_server_header = False
        self.hypercorn.h11_max_incomplete_size = framing.head + 1024  # the guard has counted already
        # A full queue of body messages that an app does not read blocks the end of its answer for good. The guard
        # bounds the body, so the queue need not.
        self.hypercorn.max_app_queue_size = sys.maxsize
        self.hypercorn.websocket_max_message_size = framing.body

    async def stop_keep_alive(self) -> None:
        """From now on a connection closes after its current answer."""
        await self.worker.terminated.set()


class _Wait(enum.Enum):
    """What a connection is waiting for when it reads."""

    REQUEST = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    DISCONNECT = enum.auto()
    MESSAGE = enum.auto()
    """Of a WebSocket."""


class GuardedStream:
    """The stream that hypercorn serves. See the module for what it guards."""

    def __init__(self, transport: trio.abc.HalfCloseableStream, peer: PeerSocket, context: ConnectionContext) -> None:
        self.socket = peer
        self._transport = transport
        self._context = context
        self._timeouts = context.timeouts
        self._framing = RequestFraming(context.framing)
        self._wait_started = trio.current_time()
        self._wait = _Wait.REQUEST
        self._reading = trio.CancelScope()
        self._reader_done = trio.Event()
        self._answer_complete = False
        self._answering = False
        self._continued = False
        self._refused = False
        self._sent_in_turn = 0
        self._early = b""
        self._heard = trio.current_time()
        self._frames = trio.Lock()
        self._close_sent_at: float | None = None
        self._after_close = 0

    # -- what hypercorn calls -----------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Canonical bytes of the client's request; b"" when the client has left, was too slow, or was refused."""
        try:
            while True:
                out = self._next_turn()
                if not out:
                    data = await self._read()
                    if data is None:
                        continue
                    if not data:
                        break
                    out = self._next_turn() + self._framing.receive_data(data)
                await self._send_continue()
                if out:
                    return out
        except FramingError as error:
            await self._refuse(Problem.of(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not take `100 Continue`
        self._reader_done.set()
        return b""

    async def send_all(self, data: bytes) -> None:
        """Sends, giving up on a client that takes nothing for the write-stall time."""
        if self._refused:
            raise trio.BrokenResourceError("this connection was refused")
        self._answering = True
        if self._framing.state is FramingState.SWITCHED:
            await self._send_frame(data)
        else:
            await self._send(data)

    async def _send_frame(self, frame: bytes) -> None:
        """One at a time: on a WebSocket the app, hypercorn's reader (pongs) and the pings below all send."""
        try:
            self._frames.acquire_nowait()
        except trio.WouldBlock:
            await self._frames.acquire()
        try:
            await self._send(frame)
        finally:
            self._frames.release()
        if frame[:1] == _CLOSE and self._close_sent_at is None:
            self._close_sent_at = trio.current_time()
            self._reading.cancel()  # the reader knows anew what it waits for

    async def _send(self, data: bytes) -> None:
        sent = send_now(self._transport, data)
        for start in range(sent, len(data), _WRITE_SLICE):
            # Shielded: half a message on the wire would be read as another one's beginning.
            with trio.move_on_after(self._timeouts.write_stall, shield=True) as waiting:
                await self._transport.send_all(data[start : start + _WRITE_SLICE])
            if waiting.cancelled_caught:
                self._context.log.info("client_stalled", after_s=self._timeouts.write_stall)
                await self.abort()
                raise trio.BrokenResourceError("the client takes no bytes")
        self._sent_in_turn += len(data)
        if self._sent_in_turn >= _TURN_BYTES:
            self._sent_in_turn = 0
            await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if not self._refused:  # else the refusal is on its way, and its end follows it
            await self._transport.send_eof()

    async def aclose(self) -> None:
        if self._refused or self._framing.state is FramingState.DISCARD:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LINGER_S):
                await self._reader_done.wait()
        await self._transport.aclose()

    async def aclose_forcefully(self) -> None:
        await trio.aclose_forcefully(self._transport)

    # -- what the server and the app's wrapper call -------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the client has nothing under way."""
        return self._wait is _Wait.REQUEST

    def close_if_idle(self) -> None:
        if self.idle:
            self._reading.cancel()

    def answer_complete(self) -> None:
        """The current answer has been sent: what the client sent or sends behind it is its next request."""
        self._answer_complete = True
        if self._framing.state is FramingState.COMPLETE:
            self._reading.cancel()  # the reader looks at what is held, and knows anew what it waits for

    def switched(self) -> None:
        """The app accepted a WebSocket handshake: what the client sends from now on is frames."""
        self._early = self._framing.switch()
        if self._early:
            self._reading.cancel()

    async def ping(self) -> None:
        """Pings the client of a WebSocket for ever, and ends the connection when it does not answer."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has left
            while True:
                pinged = trio.current_time()
                await self._send_frame(_PING)
                await trio.sleep(self._timeouts.ping)
                if self._heard < pinged:
                    self._context.log.info("client_silent", after_s=self._timeouts.ping)
                    await self.abort()
                    return

    async def abort(self) -> None:
        """Closes at once, dropping what the client has not taken (RST instead of a queue in the kernel)."""
        await close_with_reset(self._transport)

    # -- reading ------------------------------------------------------------------------------------------------

    def _next_turn(self) -> bytes:
        """Once an answer is complete: the canonical bytes of what the client pipelined behind it, if anything.

        On a WebSocket: what came with the handshake.
        """
        early, self._early = self._early, b""
        if early:
            return early
        if not self._answer_complete or self._framing.state is not FramingState.COMPLETE:
            return b""
        self._answer_complete = self._answering = self._continued = False
        return self._framing.next_request()

    async def _read(self) -> bytes | None:
        """The next bytes from the client; b"" at its end or when it was too slow; `None`: look at what is held."""
        self._enter_wait()
        if self._wait is _Wait.REQUEST and self._context.worker.terminated.is_set():
            return b""
        with trio.CancelScope(deadline=self._deadline()) as self._reading:
            try:
                data = bytes(await self._transport.receive_some(_READ_SIZE))
                self._heard = trio.current_time()
                return b"" if self._is_past_close(data) else data
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
        if self._answer_complete or self._early:
            return None
        if self._close_sent_at is not None and trio.current_time() < self._deadline():
            return None
        if self._wait is _Wait.HEAD:
            await self._refuse(Problem(408, "slow_head", "the request's head took too long to arrive"))
        elif self._wait is _Wait.BODY:
            await self._refuse(Problem(408, "slow_body", "the request's body came in too slowly"))
        return b""

    def _is_past_close(self, data: bytes) -> bool:
        """Whether a WebSocket's client goes on sending although it was told the end: hypercorn would keep all of it."""
        if self._close_sent_at is None:
            return False
        self._after_close += len(data)
        return self._after_close > _READ_SIZE

    def _enter_wait(self) -> None:
        match self._framing.state:
            case FramingState.HEAD:
                wait = _Wait.HEAD if self._framing.head_started else _Wait.REQUEST
            case FramingState.BODY_LENGTH | FramingState.BODY_CHUNKED:
                wait = _Wait.BODY
            case FramingState.SWITCHED:
                wait = _Wait.MESSAGE
            case _:
                wait = _Wait.DISCONNECT
        if wait is not self._wait:
            self._wait, self._wait_started = wait, trio.current_time()

    def _deadline(self) -> float:
        timeouts = self._timeouts
        match self._wait:
            case _Wait.REQUEST:
                return self._wait_started + timeouts.idle
            case _Wait.HEAD:
                return self._wait_started + timeouts.head
            case _Wait.BODY:
                earned = self._framing.body_received / timeouts.min_body_rate
                return self._wait_started + timeouts.body + earned
            case _Wait.MESSAGE if self._close_sent_at is not None:
                return self._close_sent_at + _LINGER_S
            case _Wait.DISCONNECT | _Wait.MESSAGE:
                return math.inf

    async def _send_continue(self) -> None:
        """Tells a client that waits for it to go on with its body (RFC 9110 10.1.1)."""
        head = self._framing.head
        waits = head is not None and head.expects_continue and not head.too_large and not self._continued
        if waits and self._framing.state is not FramingState.COMPLETE:
            self._continued = True
            await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    # -- refusing -----------------------------------------------------------------------------------------------

    async def _refuse(self, problem: Problem) -> None:
        """Tells the client why, unless an answer is under way already, and takes no more from it."""
        self._context.log.info("request_refused", code=problem.code, status=problem.status)
        self._refused = True
        with trio.move_on_after(_LINGER_S):
            try:
                if not self._answering:
                    await self._transport.send_all(_refusal(problem, self._context.new_request_id()))
                await self._transport.send_eof()
                dropped = 0
                while dropped < _LINGER_BYTES and (data := await self._transport.receive_some(_READ_SIZE)):
                    dropped += len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                pass  # it has left, or hypercorn is still sending: closing is all that remains


def _refusal(problem: Problem, request_id: str) -> bytes:
    body = encode_error(problem)
    head = (
        f"HTTP/1.1 {problem.status} {http.HTTPStatus(problem.status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class _NoIdleTask:
    """hypercorn's keep-alive timer, left out: the guard times every wait, without a task per request."""

    async def restart(self, task_group: object, action: object) -> None:
        pass

    async def stop(self) -> None:
        pass


class _GuardedServer(TCPServer):
    """hypercorn's connection server, less what the guard does: timing an idle connection, and queueing for a send.

    The guard sends what it is given whole or breaks the connection, and only the app's task sends (on a WebSocket the
    guard lines senders up), so the lock and the shield around each send, two turns of the scheduler for every event of
    a stream, are not needed.
    """

    def __init__(self, app: GuardedApp, context: ConnectionContext, stream: GuardedStream) -> None:
        # hypercorn asks for a TLS stream; it uses what GuardedStream has.
        super().__init__(app, context.hypercorn, context.worker, {}, stream)  # type: ignore[arg-type]
        self.idle_task = _NoIdleTask()  # type: ignore[assignment] # the same two methods
        self._guarded = stream

    @override
    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        try:
            await self._guarded.send_all(event.data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())
            await trio.lowlevel.checkpoint()  # an app that goes on sending to nobody must not stop all others


async def serve_connection(stream: GuardedStream, app: ASGIFramework, context: ConnectionContext) -> None:
    """Serves one client until it or we have had enough. Never raises but for cancellation."""
    # One message that waits while another is on its way.
    guarded = GuardedApp(app, stream, context.new_request_id, max_unread=2 * context.framing.body)
    server = _GuardedServer(guarded, context, stream)
    try:
        await server.run()
    except BaseException as error:
        cancelled, failed = split_cancelled(error)
        if failed is not None:
            context.log.warning("connection_failed", **describe(failed))
        if cancelled is not None:
            raise cancelled from None
    finally:
        await stream.aclose_forcefully()
