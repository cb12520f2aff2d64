"""S5 and S9: what one peer sends too much of, or takes too little of, is not held in the gateway's memory."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Final

import msgspec
import trio

from capi_core.protocols.kinds import Protocol
from tests.e2e.conftest import Start
from tests.e2e.door import OPERATIONS, asked
from tests.e2e.peers import RawUpstream, UpstreamRequest, chunked, connect, post, sse_head
from tests.support.process import eventually, resident_bytes
from tests.support.scale import FULL, tell
from tests.support.streams import answer_events

MIB: Final = 1 << 20
CAP: Final = 4 * MIB
"""The default of `limits.max_event_bytes`."""
PAIRS: Final = list(product(Protocol, Protocol))


def config(upstream: RawUpstream) -> dict[str, object]:
    """One upstream of each protocol, which all are the same one; a model is called as its upstream's protocol."""
    upstreams = {
        protocol.value: {
            "kind": "anthropic" if protocol is Protocol.MESSAGES else "openai",
            "base_url": upstream.base_url,
            "protocols": [protocol.value],
            "models": [protocol.value],
        }
        for protocol in Protocol
    }
    return {"upstreams": upstreams}


def asking(client: Protocol, upstream: Protocol) -> bytes:
    """The bytes of a request for a stream."""
    target = f"/v1{OPERATIONS[client].value}".encode()
    return post(asked(client, model=upstream.value).body, target=target)


def protocol_of(request: UpstreamRequest) -> Protocol:
    """Which of the upstreams was asked."""
    return Protocol(msgspec.json.decode(request.body, type=dict[str, object])["model"])


class Peak:
    """The most memory that a process has had, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.most = resident_bytes(pid)

    @property
    def growth(self) -> int:
        return self.most - self.before

    def look(self) -> bool:
        """Looks, and is never content: for `eventually`."""
        self.most = max(self.most, resident_bytes(self._pid))
        return False


@asynccontextmanager
async def watched(pid: int) -> AsyncIterator[Peak]:
    """Looks all the time."""
    peak = Peak(pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eventually, peak.look, 600)
        yield peak
        peak.look()
        nursery.cancel_scope.cancel()


# -- S5 -----------------------------------------------------------------------------------------------------------

LINE: Final = 1024 * MIB
BLOCK: Final = b"x" * 65_536


class Endless:
    """An upstream that begins its answer well and then sends one line of 1 GiB."""

    def __init__(self) -> None:
        self.sent = 0
        self.closed = False

    async def script(self, stream: trio.SocketStream, request: UpstreamRequest) -> None:
        self.sent, self.closed = 0, False
        first = b"".join(answer_events(protocol_of(request))[:2])
        await stream.send_all(sse_head() + chunked(first, b"data: ", end=False))
        try:
            for _ in range(LINE // len(BLOCK)):
                await stream.send_all(chunked(BLOCK, end=False))
                self.sent += len(BLOCK)
        except trio.BrokenResourceError:
            self.closed = True
            raise


async def test_s5_a_line_without_end_is_cut_off_at_the_cap(start: Start) -> None:
    """It is told in the stream, the upstream is left at once, and no more is held than the cap says."""
    endless = Endless()
    growths = []
    sent = []
    async with RawUpstream.serving(endless.script) as upstream:
        with start(config(upstream)) as capi:
            for client_protocol, upstream_protocol in PAIRS * (5 if FULL else 1):
                async with watched(capi.pid) as peak, connect(capi.port) as client:
                    await client.send(asking(client_protocol, upstream_protocol))
                    answer = await client.response(b"POST")
                    await eventually(lambda: endless.closed, 5)
                assert answer.status == 200
                last = answer.body.strip().rpartition(b"\n\n")[2]
                assert b"larger than this gateway relays" in last
                assert b'"error"' in last
                growths.append(peak.growth)
                sent.append(endless.sent)
            await eventually(lambda: len(capi.events("exchange", outcome="upstream_broke")) == len(growths), 5)
    tell(
        f"S5: a line of 1 GiB, {len(growths)} times: at most {max(sent) / MIB:.1f} MiB of it were taken, "
        f"memory +{growths[0] / MIB:.1f} MiB at first, +{max(growths[1:]) / MIB:.1f} later"
    )
    assert CAP <= max(sent) < CAP + 16 * MIB, "the kernel's buffers, and no more"
    assert max(growths) <= 8 * MIB


# -- S9 -----------------------------------------------------------------------------------------------------------

SECONDS: Final = 20.0 if FULL else 2.0
SLOW_BYTES: Final = 1000
STEP_S: Final = 0.1
"""Together 10 kB/s."""


class Flood:
    """An upstream that sends as fast as it is read from, without end."""

    def __init__(self) -> None:
        self.sent = 0

    async def script(self, stream: trio.SocketStream, request: UpstreamRequest) -> None:
        protocol = protocol_of(request)
        events = answer_events(protocol, words=("word " * 200,))
        at = next(i for i, event in enumerate(events) if b"word word" in event)
        await stream.send_all(sse_head() + chunked(*events[:at], end=False))
        more = chunked(events[at] * 64, end=False)
        while True:
            await stream.send_all(more)
            self.sent += len(more)


async def read_slowly(port: int, request: bytes, taken: list[int]) -> None:
    """10 kB a second, for a while, through a small window."""
    async with connect(port, receive_buffer=4096) as client:
        await client.send(request)
        got = 0
        end = trio.current_time() + SECONDS
        while trio.current_time() < end:
            got += len(await client.stream.receive_some(SLOW_BYTES))
            await trio.sleep(STEP_S)
        taken.append(got)


async def test_s9_a_client_that_reads_slowly_costs_little_memory(start: Start) -> None:
    """The upstream is read as slowly as the client reads."""
    flood = Flood()
    taken: list[int] = []
    async with RawUpstream.serving(flood.script) as upstream:
        with start(config(upstream)) as capi:
            for client_protocol, upstream_protocol in PAIRS:  # once before, so that all its code is there
                async with connect(capi.port) as client:
                    await client.send(asking(client_protocol, upstream_protocol))
                    await client.read_until(b"word")
            await eventually(lambda: upstream.open == 0, 5)
            flood.sent = 0
            began = time.monotonic()
            async with watched(capi.pid) as peak, trio.open_nursery() as nursery:
                for pair in PAIRS:
                    nursery.start_soon(read_slowly, capi.port, asking(*pair), taken)
            took = time.monotonic() - began
    streams = len(PAIRS)
    tell(
        f"S9: {streams} streams for {took:.0f} s: clients took {sum(taken) / 1e6:.2f} MB, upstreams could send "
        f"{flood.sent / 1e6:.1f} MB; memory +{peak.growth / MIB / streams:.2f} MiB a stream"
    )
    assert min(taken) > SLOW_BYTES * SECONDS / STEP_S / 4
    assert flood.sent < sum(taken) + streams * 12 * MIB, "the kernel's buffers, and no more"
    assert peak.growth / streams <= 4 * MIB
