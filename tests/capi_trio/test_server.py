"""The listener, the caps, and the end: over real sockets on the loopback interface.

The clock is virtual: it jumps when nothing has moved for a moment, sockets included.
"""

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
)
from structlog.testing import capture_logs
from trio.testing import MockClock

from capi_core.config import LimitsConfig
from capi_core.framing import FramingLimits
from capi_trio.asgi import ResetConnectionError, respond
from capi_trio.server import BindError, Server, listen
from tests.support.guarded_harness import request_ids

GET: Final = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
TEXT: Final = ((b"content-type", b"text/plain"),)


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    mock_clock.autojump_threshold = 0.02
    return mock_clock


class App:
    """Answers after `work`; `started` counts requests."""

    def __init__(self, work: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> None:
        self.started = 0
        self._work = work

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.started += 1
        await self._work()
        await respond(send, 200, TEXT, b"hello")


async def flood(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """More than any client that does not read will take."""
    await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
    async with trio.open_nursery() as nursery:

        async def pour() -> None:
            while True:
                await send(HTTPResponseBodyEvent(type="http.response.body", body=b"x" * 1_000_000, more_body=True))

        nursery.start_soon(pour)
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        nursery.cancel_scope.cancel()


class Serving:
    """A server that runs. `ended_at` and `drained` are there once it does not."""

    def __init__(self, server: Server, listener: trio.SocketListener) -> None:
        self.server = server
        self.port: int = listener.socket.getsockname()[1]
        self.ended_at: float | None = None
        self.drained: bool | None = None
        self.over = trio.Event()
        self.clients: list[trio.SocketStream] = []
        self._listener = listener

    async def run(self) -> None:
        self.drained = await self.server.serve(self._listener)
        self.ended_at = trio.current_time()
        self.over.set()

    async def connect(self, source: str = "127.0.0.1") -> trio.SocketStream:
        """A client from the address `source`. It is closed with the server."""
        raw = trio.socket.socket()
        stream = trio.SocketStream(raw)
        self.clients.append(stream)
        await raw.bind((source, 0))
        await raw.connect(("127.0.0.1", self.port))
        return stream


@asynccontextmanager
async def serving(
    app: Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]],
    *,
    on_stop: Callable[[], None] | None = None,
    limits: LimitsConfig | None = None,
) -> AsyncIterator[Serving]:
    limits = limits or LimitsConfig()
    listener = listen("127.0.0.1", 0, write_stall_s=limits.write_stall_s)
    server = Server(app, limits=limits, framing=FramingLimits(), new_request_id=request_ids(), on_stop=on_stop)
    running = Serving(server, listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        try:
            yield running
        finally:
            for stream in running.clients:
                await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def answer(stream: trio.SocketStream) -> bytes:
    await stream.send_all(GET)
    return await until(stream, b"hello")


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    raw = b""
    while not raw.endswith(end):
        data = bytes(await stream.receive_some())
        assert data, raw
        raw += data
    return raw


async def end_of(stream: trio.SocketStream) -> bytes:
    """All that still comes, until the server has closed, with a reset or without."""
    raw = b""
    try:
        while data := await stream.receive_some():
            raw += data
    except trio.BrokenResourceError:
        pass
    return raw


# -- the listener --------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
            listen("127.0.0.1", port, write_stall_s=30)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(BindError, match=f"cannot listen on {host} port 0"):
        listen(host, 0, write_stall_s=30)


async def test_a_listener_is_on_the_address_it_was_given() -> None:
    async with listen("127.0.0.1", 0, write_stall_s=30) as listener:
        address, port = listener.socket.getsockname()
        assert (address, port > 0) == ("127.0.0.1", True)


async def test_an_address_of_ipv6_is_understood() -> None:
    try:
        listener = listen("::1", 0, write_stall_s=30)
    except BindError:
        pytest.skip("this machine has no IPv6")
    async with listener:
        assert listener.socket.getsockname()[0] == "::1"


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's own")
async def test_the_kernel_gives_up_on_a_peer_that_acknowledges_nothing() -> None:
    async with listen("127.0.0.1", 0, write_stall_s=12.5) as listener:
        port = listener.socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port), await listener.accept() as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_500


# -- serving -------------------------------------------------------------------------------------------------------


async def test_clients_are_served_side_by_side(clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(1)

    async with serving(App(work)) as running:
        streams = [await running.connect() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(answer, stream)
        assert trio.current_time() < 2
        assert running.server.connections == 5
        for stream in streams:
            await stream.aclose()
        await trio.sleep(1)
        assert running.server.connections == 0


@pytest.mark.parametrize(
    "limits",
    [LimitsConfig(max_connections=2), LimitsConfig(max_connections_per_address=2)],
    ids=["in-all", "per-address"],
)
async def test_a_connection_over_a_cap_is_dropped_until_another_ends(clock: MockClock, limits: LimitsConfig) -> None:
    with capture_logs() as logs:
        async with serving(App(), limits=limits) as running:
            first, second = await running.connect(), await running.connect()
            await answer(first)
            await answer(second)
            third = await running.connect()
            assert await end_of(third) == b""
            assert running.server.connections == 2
            await first.aclose()
            await trio.sleep(1)
            fourth = await running.connect()
            await answer(fourth)
            await answer(second)
    assert [(line["event"], line["total"], line["from_address"]) for line in logs] == [("connection_refused", 2, 2)]


async def test_one_address_that_is_crowded_does_not_shut_out_another(clock: MockClock) -> None:
    async with serving(App(), limits=LimitsConfig(max_connections_per_address=1)) as running:
        first = await running.connect()
        await answer(first)
        await answer(await running.connect("127.0.0.2"))


async def test_a_client_that_left_before_it_was_accepted_is_no_fault(clock: MockClock) -> None:
    app = App()
    listener = listen("127.0.0.1", 0, write_stall_s=30)
    port = listener.socket.getsockname()[1]
    gone = await trio.open_tcp_stream("127.0.0.1", port)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await gone.aclose()
    server = Server(app, limits=LimitsConfig(), framing=FramingLimits(), new_request_id=request_ids())
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await answer(stream)
            nursery.cancel_scope.cancel()
    assert app.started == 1
    assert logs == []


@pytest.mark.parametrize(
    "packet",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n\r\nX",
        b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\nhttp2-settings: AAA\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40),
        bytes(range(256)),
        b"",
    ],
    ids=["websocket", "h2c", "h2", "noise", "nothing"],
)
async def test_no_packet_ends_more_than_its_own_connection(clock: MockClock, packet: bytes) -> None:
    async with serving(App()) as running:
        good = await running.connect()
        await answer(good)
        for _ in range(3):
            bad = await running.connect()
            await bad.send_all(packet)
            await bad.aclose()
        await answer(good)
        await answer(await running.connect())


async def test_an_app_may_reset_the_connection(clock: MockClock) -> None:
    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        raise ResetConnectionError

    async with serving(app) as running:
        stream = await running.connect()
        await stream.send_all(GET)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_half_an_answer_does_not_look_whole_to_an_old_client(clock: MockClock) -> None:
    """In HTTP/1.0 the end of the connection is the end of the answer: only a reset tells that it was cut."""

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
        await send(HTTPResponseBodyEvent(type="http.response.body", body=b"half", more_body=True))
        await trio.sleep(1)
        raise ValueError

    with capture_logs() as logs:
        async with serving(app) as running:
            stream = await running.connect()
            await stream.send_all(b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n")
            await until(stream, b"half")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
    assert [line["event"] for line in logs] == ["app_failed"]


async def test_a_client_that_takes_nothing_is_dropped(clock: MockClock) -> None:
    with capture_logs() as logs:
        async with serving(flood, limits=LimitsConfig(write_stall_s=30)) as running:
            stream = await running.connect()
            await stream.send_all(GET)
            await trio.sleep(29)
            assert running.server.connections == 1
            await trio.sleep(2)
            assert running.server.connections == 0
            with pytest.raises(trio.BrokenResourceError):
                await drain(stream)
    assert [line["event"] for line in logs] == ["client_stalled"]


async def drain(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def test_a_client_that_leaves_while_it_is_sent_to_is_no_fault(clock: MockClock) -> None:
    with capture_logs() as logs:
        async with serving(flood) as running:
            stream = await running.connect()
            await stream.send_all(GET)
            await stream.receive_some()
            await stream.aclose()
            await trio.sleep(1)
            assert running.server.connections == 0
    assert logs == []


async def test_an_app_that_goes_on_sending_to_nobody_does_not_stop_all_others(clock: MockClock) -> None:
    """Nothing in such a send waits for anything."""
    turns = 0
    done = trio.Event()

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
        while (await receive())["type"] != "http.disconnect":
            pass
        before = turns
        for _ in range(100):
            await send(HTTPResponseBodyEvent(type="http.response.body", body=b"x" * 1000, more_body=True))
        assert turns - before >= 50
        done.set()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    with capture_logs() as logs:
        async with serving(app) as running:
            stream = await running.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                await stream.send_all(GET)
                await stream.receive_some()
                await stream.aclose()
                await done.wait()
    assert logs == []


async def test_a_large_answer_arrives_whole(clock: MockClock) -> None:
    body = bytes(range(256)) * 40_000

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await respond(send, 200, TEXT, body)

    async with serving(app) as running:
        stream = await running.connect()
        await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        await trio.sleep(5)  # the kernel's buffers are full by now
        assert (await end_of(stream)).endswith(body)


# -- the end -------------------------------------------------------------------------------------------------------


async def test_a_server_without_clients_ends_at_once(clock: MockClock) -> None:
    async with serving(App()) as running:
        states = [running.server.draining]
        running.server.shutdown()
        running.server.shutdown()
        states.append(running.server.draining)
        assert states == [False, True]
        await running.over.wait()
    assert running.drained is True


async def test_what_runs_may_finish_while_idle_clients_go_and_new_ones_are_refused(clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(10)

    stops: list[float] = []
    async with serving(App(work), on_stop=lambda: stops.append(trio.current_time())) as running:
        fresh, used, busy, sending = [await running.connect() for _ in range(4)]
        await answer(used)
        began = trio.current_time()
        await busy.send_all(GET)
        await sending.send_all(GET[:5])
        await trio.sleep(1)
        running.server.shutdown()
        for idle in (fresh, used):
            assert await end_of(idle) == b""
        assert trio.current_time() - began < 2
        with pytest.raises(ConnectionRefusedError):
            await running.connect()
        await sending.send_all(GET[5:])
        assert (await end_of(busy)).endswith(b"hello")
        assert (await end_of(sending)).endswith(b"hello")
        await running.over.wait()
        assert trio.current_time() - began < 12
    assert running.drained is True
    assert stops == []


async def test_what_still_runs_after_the_grace_period_is_told_to_end(clock: MockClock) -> None:
    told = trio.Event()
    stops: list[float] = []

    async def work() -> None:
        await told.wait()

    def on_stop() -> None:
        stops.append(trio.current_time())
        told.set()

    with capture_logs() as logs:
        async with serving(App(work), on_stop=on_stop, limits=LimitsConfig(grace_s=20)) as running:
            stream = await running.connect()
            await stream.send_all(GET)
            await trio.sleep(1)
            began = trio.current_time()
            running.server.shutdown()
            assert (await end_of(stream)).endswith(b"hello")
            await running.over.wait()
            assert trio.current_time() - began == pytest.approx(20, abs=0.5)
    assert running.drained is False
    assert len(stops) == 1
    assert [(line["event"], line["connections"]) for line in logs] == [("grace_over", 1)]


@pytest.mark.parametrize("with_stop", [False, True])
async def test_what_does_not_listen_is_cancelled(clock: MockClock, with_stop: bool) -> None:
    cancelled = trio.Event()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    on_stop = (lambda: None) if with_stop else None
    async with serving(App(work), on_stop=on_stop, limits=LimitsConfig(grace_s=20)) as running:
        stream = await running.connect()
        await stream.send_all(GET)
        await trio.sleep(1)
        began = trio.current_time()
        running.server.shutdown()
        assert await end_of(stream) == b""
        await running.over.wait()
        assert trio.current_time() - began == pytest.approx(22, abs=0.5)
    assert cancelled.is_set()
    assert running.drained is False


async def test_a_client_that_takes_nothing_does_not_hold_the_end_up(clock: MockClock) -> None:
    """A send that is stuck cannot be cancelled; its connection can be closed."""
    limits = LimitsConfig(grace_s=5, write_stall_s=600)
    async with serving(flood, limits=limits) as running:
        stream = await running.connect()
        await stream.send_all(GET)
        await trio.sleep(1)
        began = trio.current_time()
        running.server.shutdown()
        await running.over.wait()
        assert trio.current_time() - began == pytest.approx(7, abs=0.5)
    assert running.drained is False


async def test_a_client_that_came_just_before_the_end_is_not_kept(clock: MockClock) -> None:
    async with serving(App()) as running:
        stream = await running.connect()
        running.server.shutdown()
        assert await end_of(stream) == b""
        await running.over.wait()
    assert running.drained is True
