"""The listener, the accept loop and the end of both.

`trio.serve_listeners` accepts; each connection runs guarded (`capi_trio.connection`) in one nursery. `Server.serve`
returns when the last connection is over after a shutdown:

    running --shutdown--> draining --all over, or grace_s--> stopping --a moment--> stopped

Draining: nothing is accepted any more, idle connections close, running requests go on. Stopping: what still runs is
told to end (`on_stop`), so that its client gets a proper last event; then everything is cancelled.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from capi_trio.connection import ConnectionContext, ConnectionTimeouts, GuardedStream, serve_connection
from capi_trio.logs import get_logger
from capi_trio.sockets import TLSTransport, close_with_reset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hypercorn.typing import ASGIFramework

    from capi_core.config import LimitsConfig
    from capi_core.framing import FramingLimits

__all__ = ["BindError", "Server", "listen", "tls_context"]

_BACKLOG: Final = 1024
_STOPPING_S: Final = 2.0
"""How long a request may take to tell its client that the gateway stops."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and up, HTTP/1.1 only (ALPN). Raises `BindError` when the files cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise BindError(f"{cert} and {key} cannot be used for TLS: {error.strerror or error}") from error
    return context


class BindError(Exception):
    """The address cannot be listened on. The message says what to do."""


def listen(host: str, port: int, *, write_stall_s: float) -> trio.SocketListener:
    """A listening socket. `port` 0 takes a free one. Raises `BindError`.

    TCP_USER_TIMEOUT (Linux) is inherited by accepted sockets: the kernel gives up on a peer that acknowledges nothing.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_STREAM)
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(write_stall_s * 1000))
        raw.bind((host, port))
        raw.listen(_BACKLOG)
    except OSError as error:
        raw.close()
        raise BindError(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port") from error
    raw.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(raw))


class Server:
    """Serves one app on its listeners, with caps on connections and a graceful end.

    `on_drain` is called once, when nothing is accepted any more; `on_stop` once, when the grace period is over and
    requests are still running. With `tls`, every connection
    begins with a handshake, for which it has as long as for a request's head.
    """

    def __init__(
        self,
        app: ASGIFramework,
        *,
        limits: LimitsConfig,
        framing: FramingLimits,
        new_request_id: Callable[[], str],
        on_drain: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._app = app
        self._limits = limits
        self._on_drain = on_drain
        self._on_stop = on_stop
        self._log = get_logger("server")
        self._context = ConnectionContext(
            framing=framing,
            timeouts=ConnectionTimeouts(
                idle=limits.idle_connection_s,
                head=limits.head_timeout_s,
                body=limits.body_timeout_s,
                min_body_rate=limits.min_body_rate,
                write_stall=limits.write_stall_s,
            ),
            new_request_id=new_request_id,
        )
        self._streams: set[GuardedStream] = set()
        self._per_address: Counter[str] = Counter()
        self._shutdown = trio.Event()
        self._all_over = trio.Event()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._streams)

    @property
    def draining(self) -> bool:
        return self._shutdown.is_set()

    def shutdown(self) -> None:
        """Begins the graceful end. May be called again, to no effect."""
        self._shutdown.set()

    async def serve(self, listener: trio.SocketListener) -> bool:
        """Serves until `shutdown` was called and all is over. Returns whether every request ended by itself."""
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, listener, connections)
                await self._shutdown.wait()
                accepting.cancel_scope.cancel()
            drained = await self._drain()
            connections.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for stream in tuple(self._streams):
                    await stream.aclose_forcefully()  # a send that is stuck cannot be cancelled
        return drained

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        await trio.serve_listeners(self._serve_stream, [listener], handler_nursery=connections)

    async def _drain(self) -> bool:
        await self._context.stop_keep_alive()
        if self._on_drain is not None:
            self._on_drain()
        for stream in self._streams:
            stream.close_if_idle()
        if await self._wait_until_over(self._limits.grace_s):
            return True
        self._log.warning("grace_over", connections=self.connections, after_s=self._limits.grace_s)
        if self._on_stop is not None:
            self._on_stop()
        await self._wait_until_over(_STOPPING_S)
        return False

    async def _wait_until_over(self, timeout_s: float) -> bool:
        with trio.move_on_after(timeout_s):
            while self._streams:
                self._all_over = trio.Event()
                await self._all_over.wait()
        return not self._streams

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        try:
            address = str(stream.socket.getpeername()[0])
        except OSError:  # it has left already
            await trio.aclose_forcefully(stream)
            return
        if self._over_cap(address):
            await close_with_reset(stream)
            return
        transport: trio.SocketStream | TLSTransport = stream
        if self._tls is not None:
            transport = TLSTransport(trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True))
        guarded = GuardedStream(transport, stream.socket, self._context)
        self._streams.add(guarded)
        self._per_address[address] += 1
        try:
            if await self._shake_hands(transport):
                await serve_connection(guarded, self._app, self._context)
        finally:
            self._streams.discard(guarded)
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]
            if not self._streams:
                self._all_over.set()

    async def _shake_hands(self, transport: trio.SocketStream | TLSTransport) -> bool:
        if isinstance(transport, trio.SocketStream):
            return True
        try:
            with trio.fail_after(self._limits.head_timeout_s):
                await transport.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await trio.aclose_forcefully(transport)
            return False
        return True

    def _over_cap(self, address: str) -> bool:
        full = self.connections >= self._limits.max_connections
        crowded = self._per_address[address] >= self._limits.max_connections_per_address
        if full or crowded:
            self._log.warning("connection_refused", total=self.connections, from_address=self._per_address[address])
        return full or crowded
