"""What only a socket, or a connection by itself, can tell; the rest is in test_upstream_socket.py."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketRequest, serve_websocket
from typing_extensions import override

from capi_core.exchange import Failure, Operation, SendRequest
from capi_trio.upstream import Address, Secret, UpstreamClient, UpstreamFailedError, UpstreamTarget
from capi_trio.upstream_connection import Connection, Endpoint, RefusedError, UnsentError, hold, open_stream
from capi_trio.upstream_socket import SocketUpstream
from tests.support.socket_peer import CUT, Link, Peer, Script, answer, event, talk

TARGET: Final = UpstreamTarget("up", "http://up.test/v1", Secret("sk-upstream-key"), websocket=True)
ADDRESS: Final = Address(False, "up.test", 80, "up.test", "/v1/responses")
FRAME: Final = '{"type":"response.create"}'
ASK: Final = SendRequest("up", Operation.RESPONSES, (), b'{"stream":true}')


# -- one connection ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[Connection, Link]]:
    async with Peer(script).running() as peer, trio.open_nursery() as nursery:
        held: set[Connection] = set()
        endpoint = Endpoint(TARGET, ADDRESS, ())
        connection: Connection = await nursery.start(hold, endpoint, peer.connect, 1000, held)
        assert held == {connection}
        yield connection, peer.links[0]
        connection.end()
        await peer.links[0].gone.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not held


async def test_the_head_of_a_handshake(autojump_clock: MockClock) -> None:
    heads: list[bytes] = []

    async def script(link: Link) -> None:
        heads.append(bytes(await link.stream.receive_some()))

    async with Peer(script).running() as peer:
        with pytest.raises(RefusedError, match="status 0"):
            await hold(Endpoint(TARGET, ADDRESS, ()), peer.connect, 1000, set(), task_status=trio.TASK_STATUS_IGNORED)
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /v1/responses HTTP/1.1"
    assert "host: up.test" in {line.lower() for line in lines}
    assert not any(line.lower().startswith("sec-websocket-extensions") for line in lines)


async def test_one_that_ended_takes_no_request(autojump_clock: MockClock) -> None:
    async with connected(talk(before=[CUT])) as (connection, _):
        await trio.sleep(1)
        with pytest.raises(UnsentError, match="broken: ConnectionClosed"):
            await connection.ask(FRAME)
        assert not await connection.lives()


async def test_one_that_is_over_is_not_pinged(autojump_clock: MockClock) -> None:
    async with connected(talk()) as (connection, _):
        await trio.sleep(100)
        connection.end()
        assert not await connection.lives()
        assert trio.current_time() == 100


async def test_one_that_ended_does_not_answer_a_ping(autojump_clock: MockClock) -> None:
    async with connected(talk(before=[CUT])) as (connection, _):
        await trio.sleep(100)
        assert not await connection.lives()
        assert trio.current_time() == 100


async def test_frames_that_wait_are_read_before_the_end(autojump_clock: MockClock) -> None:
    async with connected(talk([*answer(), CUT])) as (connection, _):
        kinds = [(await connection.ask(FRAME)).type]
        await trio.sleep(1)
        kinds += [(await connection.receive()).type for _ in answer()[1:]]
        assert kinds == ["response.created", "response.output_text.delta", "response.completed"]
        with pytest.raises(UpstreamFailedError, match="closed with 1006"):
            await connection.receive()


class Faulty(trio.abc.Stream):
    """A stream with a defect that nobody foresaw, which shows on the read after `broken` is set."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.broken = False
        self._inner = inner

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        if self.broken:
            raise ZeroDivisionError
        return data

    @override
    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_a_fault_below_ends_one_connection_and_nothing_else(autojump_clock: MockClock) -> None:
    async def connect(address: Address) -> trio.abc.Stream:
        streams.append(Faulty(await peer.connect(address)))
        return streams[-1]

    streams: list[Faulty] = []
    async with (
        UpstreamClient({"up": TARGET}) as client,
        Peer(talk([*answer(), 1.0, event("late")]), talk(answer())).running() as peer,
        SocketUpstream(client, connect=connect) as asking,
    ):
        async with asking.request(ASK) as response:
            assert len([chunk async for chunk in response.chunks()]) == 3
            streams[0].broken = True
            await trio.sleep(5)
        assert peer.links[0].gone_at is not None
        assert await count(asking) == 3


def test_a_refusal_is_found_in_any_group() -> None:
    inner = BaseExceptionGroup("inner", [ConnectionRejected(401, ((b"a", b"b"),), None)])
    outer: BaseExceptionGroup[ConnectionRejected]
    outer = BaseExceptionGroup("outer", [inner])  # type: ignore[list-item]  # the stubs know of no groups in groups
    refusal = RefusedError.of(outer)
    assert (refusal.status, refusal.headers, refusal.body) == (401, ((b"a", b"b"),), b"")
    assert str(RefusedError(401, (), b"secret")) == "status 401"


# -- sockets -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    handler: Callable[[WebSocketRequest], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_websocket, handler, "127.0.0.1", 0, tls, handler_nursery=nursery)
        server = await nursery.start(serve)
        yield server.port
        nursery.cancel_scope.cancel()


async def talkative(request: WebSocketRequest) -> None:
    socket = await request.accept()
    with contextlib.suppress(ConnectionClosed):
        while await socket.get_message():
            for frame in answer():
                assert isinstance(frame, str)
                await socket.send_message(frame)


@frozen
class Certificate:
    chain: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.chain)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For 127.0.0.1, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with (Debian: apt-get install openssl)")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    subject = ("-subj", "/CN=capi test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    files = ("-keyout", str(made.key), "-out", str(made.chain))
    subprocess.run([openssl, "req", "-x509", *new_key, *subject, *files], check=True, capture_output=True)  # noqa: S603
    return made


async def count(asking: SocketUpstream) -> int:
    async with asking.request(ASK) as response:
        return len([chunk async for chunk in response.chunks()])


async def test_over_a_real_socket() -> None:
    with trio.fail_after(5):
        async with serving(talkative) as port:
            target = UpstreamTarget("up", f"http://127.0.0.1:{port}/v1", websocket=True)
            async with UpstreamClient({"up": target}) as client, SocketUpstream(client) as asking:
                assert [await count(asking) for _ in range(3)] == [3, 3, 3]


async def test_a_peer_that_sends_faster_than_frames_are_read_is_slowed_down_and_stopped() -> None:
    taken = 0
    gone = trio.Event()

    async def flood(request: WebSocketRequest) -> None:
        nonlocal taken
        socket = await request.accept()
        await socket.get_message()
        with contextlib.suppress(ConnectionClosed):
            while taken < 10_000:
                await socket.send_message(event("x", text="x" * 10_000))
                taken += 1
        gone.set()

    with trio.fail_after(10):
        async with serving(flood) as port:
            target = UpstreamTarget("up", f"http://127.0.0.1:{port}/v1", websocket=True)
            async with UpstreamClient({"up": target}) as client, SocketUpstream(client) as asking:
                async with asking.request(ASK):
                    await trio.testing.wait_all_tasks_blocked(0.1)
                    assert taken < 10_000
                await gone.wait()
    assert taken < 10_000


async def test_over_tls(certificate: Certificate) -> None:
    with trio.fail_after(5):
        async with serving(talkative, certificate.server()) as port:
            target = UpstreamTarget("up", f"https://127.0.0.1:{port}/v1", websocket=True)
            connect = partial(open_stream, tls=certificate.client())
            async with UpstreamClient({"up": target}) as client, SocketUpstream(client, connect=connect) as asking:
                assert [await count(asking) for _ in range(3)] == [3, 3, 3]


async def test_a_certificate_that_nobody_signed_is_not_trusted(certificate: Certificate) -> None:
    with trio.fail_after(5):
        async with serving(talkative, certificate.server()) as port:
            target = UpstreamTarget("up", f"https://127.0.0.1:{port}/v1", websocket=True)
            async with UpstreamClient({"up": target}) as client, SocketUpstream(client) as asking:
                with pytest.raises(UpstreamFailedError) as raised:
                    await count(asking)
    assert raised.value.failure is Failure.UNREACHABLE


async def test_a_port_that_nobody_listens_on_is_an_upstream_that_cannot_be_reached() -> None:
    target = UpstreamTarget("up", "http://127.0.0.1:1/v1", websocket=True)
    async with UpstreamClient({"up": target}) as client, SocketUpstream(client) as asking:
        with pytest.raises(UpstreamFailedError) as raised:
            await count(asking)
    assert raised.value.failure is Failure.UNREACHABLE


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "WS_PROXY", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await test_over_a_real_socket()
