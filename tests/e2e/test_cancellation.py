"""A request that nobody waits for any more ends at once, on both sides, and leaves nothing behind.

Clients leave in every way that a socket allows. The upstream is a script in the test's own process, so that one clock
sees the client leave and the upstream's connection close.
"""

import random
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final

import pytest
import trio
from attrs import define
from typing_extensions import override

from capi_core.exchange import Operation, SendRequest
from capi_trio.upstream import UpstreamClient, UpstreamTarget
from tests.e2e.conftest import Start
from tests.e2e.peers import Client, RawUpstream, Script, UpstreamRequest, answer, chunked, connect, post, sse_head
from tests.support.process import Capi, eventually, open_descriptors, resident_bytes, sockets_of

CHAT: Final = b'{"model":"real","messages":[]}'
STREAM: Final = CHAT[:-1] + b',"stream":true}'
CHUNK: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
FINISH: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
IDLE_UPSTREAM_CONNECTIONS: Final = 64
"""As many as a gateway keeps for later (capi_trio/upstream.py)."""


def config(upstream: RawUpstream, **limits: float) -> dict[str, object]:
    raw = {"kind": "openai", "base_url": upstream.base_url, "models": ["real"]}
    return {"upstreams": {"raw": raw}, "limits": limits}


def descriptors(capi: Capi, upstream: RawUpstream) -> int:
    """The process's open descriptors but for connections to the upstream, which it may keep for later."""
    return open_descriptors(capi.pid) - upstream_connections(capi, upstream)


def upstream_connections(capi: Capi, upstream: RawUpstream) -> int:
    return sum(peer.remote_port == upstream.port for peer in sockets_of(capi.pid))


# -- one client at a time, with a stopwatch ---------------------------------------------------------------------


async def leave_by_fin(client: Client) -> None:
    await client.finish()


async def leave_by_rst(client: Client) -> None:
    await client.reset()


async def leave_by_half_close(client: Client) -> None:
    await client.stream.send_eof()


async def leave_after_a_pipelined_byte(client: Client) -> None:
    """Stock hypercorn does not see this one leave."""
    await client.send(b"G")
    await client.finish()


LEAVE: Final = (leave_by_fin, leave_by_rst, leave_by_half_close, leave_after_a_pipelined_byte)
TIMES: Final = 8


@pytest.mark.parametrize(
    ("document", "head_first"),
    [(STREAM, False), (STREAM, True), (CHAT, False), (CHAT, True)],
    ids=["before_the_head", "mid_stream", "awaiting_a_whole_answer", "amid_a_whole_answer"],
)
async def test_the_upstream_sees_a_client_leave(start: Start, document: bytes, head_first: bool) -> None:
    """Within 250 ms, 99 times of 100."""
    reached = trio.Event()

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        if head_first and document is STREAM:
            await stream.send_all(sse_head() + chunked(CHUNK, end=False))
        elif head_first:
            await stream.send_all(answer(b"{}" + b" " * 1000)[:-500])
        reached.set()
        await upstream.gone(stream)

    async with RawUpstream.serving(script) as upstream:
        with start(config(upstream)) as capi:
            before = descriptors(capi, upstream)
            delays: list[float] = []
            for leave in LEAVE * TIMES:
                reached = trio.Event()
                async with connect(capi.port) as client:
                    await client.send(post(document))
                    with trio.fail_after(10):  # a gateway that refuses it never gets there
                        await reached.wait()
                    if head_first and document is STREAM:
                        await client.wait_readable()
                    began = time.monotonic()
                    await leave(client)
                    await eventually(lambda: len(upstream.gone_at) > len(delays), 1)
                    delays.append(upstream.gone_at[-1] - began)
            await eventually(lambda: upstream.open == upstream_connections(capi, upstream) == 0, 5)
            await eventually(lambda: descriptors(capi, upstream) == before, 5)
            await eventually(lambda: len(capi.events("exchange", outcome="client_gone")) == len(delays), 5)
    worst = statistics.quantiles(delays, n=100)[98]
    sys.stdout.write(f"{len(delays)} clients left: p50 {statistics.median(delays):.4f} s, p99 {worst:.4f} s\n")
    assert worst < 0.25
    assert max(delays) < 1


# -- many, at any time ------------------------------------------------------------------------------------------


@define
class Paced:
    """An upstream that streams for about 60 ms; counts what is under way."""

    active: int = 0
    asked: int = 0

    async def script(self, stream: trio.SocketStream, received: UpstreamRequest) -> None:
        self.active += 1
        self.asked += 1
        try:
            await trio.sleep(0.01)
            if b'"stream":true' not in received.body:
                await stream.send_all(answer(b'{"choices":[]}'))
                return
            await stream.send_all(sse_head())
            for _ in range(10):
                await stream.send_all(chunked(CHUNK, end=False))
                await trio.sleep(0.005)
            await stream.send_all(chunked(FINISH))
        finally:
            self.active -= 1


async def test_a_thousand_clients_that_leave_at_random_leave_nothing_behind(start: Start) -> None:
    rng = random.Random(20261124)
    paced = Paced()
    # Half of them wait until something has come: on a busy machine, the others leave before they are heard.
    plans = [
        (rng.choice((STREAM, STREAM, CHAT)), rng.random() < 0.5, rng.uniform(0, 0.06), rng.choice(LEAVE))
        for _ in range(1000)
    ]

    async def be_client(port: int) -> None:
        while plans:
            document, hears, patience, leave = plans.pop()
            async with connect(port) as client:
                with suppress(trio.BrokenResourceError):
                    await client.send(post(document))
                    if hears:
                        await client.wait_readable()
                    await trio.sleep(patience)
                    await leave(client)

    async with RawUpstream.serving(paced.script) as upstream:
        with start(config(upstream)) as capi:
            before = descriptors(capi, upstream)
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(be_client, capi.port)
            await eventually(lambda: descriptors(capi, upstream) == before, 10)
            await eventually(lambda: paced.active == 0, 5)
            assert upstream.open <= IDLE_UPSTREAM_CONNECTIONS
            assert upstream_connections(capi, upstream) == upstream.open
            assert paced.asked > 300, "most left before they were heard: nothing was tested"
            async with connect(capi.port) as client:
                for _ in range(10):
                    with trio.fail_after(5):
                        await client.send(post(STREAM))
                        assert (await client.response()).body.endswith(FINISH)
            outcomes = {str(line["outcome"]) for line in capi.events("exchange")}
            assert outcomes == {"ok", "client_gone"}


async def test_the_pool_of_upstream_connections_survives_ten_thousand_cancelled_requests() -> None:
    """httpx's own pool, with a limit, wedges for good after a few hundred."""
    rng = random.Random(20261124)

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        if not received.body:
            await trio.sleep(0.005)
        await stream.send_all(answer(b"{}"))

    def ask(body: bytes) -> SendRequest:
        return SendRequest("raw", Operation.CHAT, ((b"content-type", b"application/json"),), body)

    async def get(client: UpstreamClient, body: bytes) -> bytes:
        async with client.request(ask(body)) as response:
            return b"".join([chunk async for chunk in response.chunks()])

    left = iter(range(10_000))
    answered = 0

    async def be_impatient(client: UpstreamClient) -> None:
        nonlocal answered
        for _ in left:
            with trio.move_on_after(rng.uniform(0, 0.02)):
                await get(client, b"")
                answered += 1

    async with RawUpstream.serving(script) as upstream:
        async with UpstreamClient({"raw": UpstreamTarget("raw", upstream.base_url)}) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(be_impatient, client)
            assert answered < 9000, "hardly any was cancelled: nothing was tested"
            with trio.fail_after(1):
                assert [await get(client, b"now") for _ in range(10)] == [b"{}"] * 10
            await eventually(lambda: upstream.open <= IDLE_UPSTREAM_CONNECTIONS, 5)
        await eventually(lambda: upstream.open == 0, 5)


# -- clients that do not read -----------------------------------------------------------------------------------


def flooding(upstream_gone: Callable[[], None]) -> Script:
    """An upstream that sends as much as is taken."""
    piece = chunked(*[CHUNK.replace(b"hi", b"x" * 2000)] * 16, end=False)

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        try:
            await stream.send_all(sse_head())
            while True:
                await stream.send_all(piece)
        finally:
            upstream_gone()

    return script


async def test_a_hundred_clients_that_stop_reading_are_dropped(start: Start) -> None:
    """In time, with what they had asked for, and without much memory spent on them."""
    ended: list[float] = []
    stall_s = 1.5
    memory = 0
    async with RawUpstream.serving(flooding(lambda: ended.append(time.monotonic()))) as upstream:
        with start(config(upstream, write_stall_s=stall_s)) as capi, AllOf() as clients:
            before, idle = descriptors(capi, upstream), resident_bytes(capi.pid)
            for _ in range(100):
                clients.add(capi.port)
            began = time.monotonic()

            def all_ended() -> bool:
                nonlocal memory
                memory = max(memory, resident_bytes(capi.pid))
                return len(ended) == 100

            # The clock runs from the moment when nothing more fits, which a busy machine puts off.
            await eventually(all_ended, stall_s + 20)
            took = ended[-1] - began
            await eventually(lambda: descriptors(capi, upstream) == before, 5)
            await eventually(lambda: len(capi.events("exchange", outcome="client_gone")) == 100, 5)
    sys.stdout.write(
        f"100 stalled clients: the last was dropped after {took:.2f} s; "
        f"{(memory - idle) / 1e6:.1f} MB more, peak {memory / 1e6:.1f}\n"
    )
    assert memory - idle < 25e6


class AllOf(AbstractContextManager["AllOf"]):
    """Clients that ask for a stream and never read it, on plain sockets with a small window."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def add(self, port: int) -> None:
        client = socket.socket()
        self._sockets.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(post(STREAM))

    @override
    def __exit__(self, *_: object) -> None:
        for client in self._sockets:
            client.close()


async def test_a_hundred_streams_take_little_memory(start: Start) -> None:
    """Of clients that read."""
    paced = Paced()
    async with RawUpstream.serving(paced.script) as upstream:
        with start(config(upstream)) as capi:
            idle = memory = resident_bytes(capi.pid)

            async def be_client() -> None:
                nonlocal memory
                async with connect(capi.port) as client:
                    for _ in range(3):
                        await client.send(post(STREAM))
                        assert (await client.response()).body.endswith(FINISH)
                        memory = max(memory, resident_bytes(capi.pid))

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(be_client)
    sys.stdout.write(f"100 streams at once: {(memory - idle) / 1e6:.1f} MB more, peak {memory / 1e6:.1f}\n")
    assert memory - idle < 25e6
