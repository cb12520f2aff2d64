"""Clients that leave, counted: at every moment, in every way, over every door, whatever they were served by.

The twin of `test_cancellation`, for upstreams with a cap and for Copilot seats, over HTTP and WebSocket: the upstream's
connection closes within 250 ms and the slot is free; who leaves the queue, or with half of its request sent, is never
asked for.
"""

import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio
from attrs import define, frozen

from capi_trio.control import ask
from capi_trio.demo.github import DemoGitHub
from capi_trio.identity_operations import AddIdentity, IdentityAnswer
from tests.e2e.conftest import faultless
from tests.e2e.peers import Client, RawUpstream, UpstreamRequest, answer, chunked, connect, post, request, sse_head
from tests.support.github_server import serving
from tests.support.process import Capi, eventually, gateway, open_descriptors
from tests.support.scale import scaled, tell

CAP: Final = 2
TOKEN: Final = "ghu_theTokenOfTheOnlySeat0000"
CHUNK: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DOORS: Final = {
    "/v1/chat/completions": b'"messages":[{"role":"user","content":"%b"}]',
    "/v1/messages": b'"max_tokens":99,"messages":[{"role":"user","content":"%b"}]',
    "/v1/responses": b'"input":"%b","store":false',
}
LISTED: Final = b'{"data":[{"id":"seat"}]}'
HANDSHAKE: Final = request(
    b"GET",
    b"/v1/responses",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
WITHIN_S: Final = 0.25


async def by_fin(client: Client) -> None:
    await client.finish()


async def by_rst(client: Client) -> None:
    await client.reset()


async def by_half_close(client: Client) -> None:
    await client.stream.send_eof()


async def after_a_pipelined_byte(client: Client) -> None:
    await client.send(b"G")
    await client.finish()


WAYS: Final = (by_fin, by_rst, by_half_close, after_a_pipelined_byte)
MOMENTS: Final = ("before_the_head", "mid_stream", "amid_a_whole_answer", "while_the_upstream_reads")


@frozen
class Leaving:
    """One client. `websocket`: comes over one. `model`: what it is served by."""

    moment: str
    way: Callable[[Client], Awaitable[None]]
    door: str
    websocket: bool
    stream: bool
    model: str


def frame(text: bytes) -> bytes:
    """A text frame of a client's (RFC 6455 5.2), masked with zeros."""
    size = len(text)
    length = b"\xfe" + size.to_bytes(2) if size < 65536 else b"\xff" + size.to_bytes(8)
    return b"\x81" + length + bytes(4) + text


def document(leaving: Leaving, words: bytes, *, filler: int = 200) -> bytes:
    text = DOORS[leaving.door] % (words + b" " + b"x" * filler)
    if leaving.websocket:
        return b'{"type":"response.create","model":"%b",%b}' % (leaving.model.encode(), text)
    return b'{"model":"%b","stream":%b,%b}' % (leaving.model.encode(), b"true" if leaving.stream else b"false", text)


async def send(client: Client, leaving: Leaving, words: bytes, *, filler: int = 200) -> None:
    body = document(leaving, words, filler=filler)
    if leaving.websocket:
        await client.send(HANDSHAKE)
        await client.read_until(b"\r\n\r\n")
        await client.send(frame(body))
    else:
        await client.send(post(body, target=leaving.door.encode()))


@define
class Upstream:
    """Does what the request's words say, and tells when its client has left."""

    raw: RawUpstream
    reached: trio.Event
    gone_at: float = 0.0
    asked: int = 0

    async def script(self, stream: trio.SocketStream, received: UpstreamRequest) -> None:
        if received.head.startswith(b"GET"):
            await stream.send_all(answer(LISTED))
            return
        self.asked += 1
        if b"mid_stream" in received.body:
            await stream.send_all(sse_head() + chunked(CHUNK, end=False))
        elif b"amid_a_whole_answer" in received.body:
            await stream.send_all(answer(b"{}" + b" " * 1000)[:-500])
        self.reached.set()
        await self.raw.gone(stream)
        self.gone_at = self.raw.gone_at[-1]


@define
class Scene:
    capi: Capi
    upstream: Upstream
    deaf_port: int
    heard_at: list[float]

    async def leave(self, leaving: Leaving) -> float:
        """How long after its client the upstream's connection ended, in seconds."""
        deaf = leaving.moment == "while_the_upstream_reads"
        before = len(self.heard_at if deaf else self.upstream.raw.gone_at)
        self.upstream.reached = trio.Event()
        async with connect(self.capi.port) as client:
            await send(client, leaving, leaving.moment.encode(), filler=4_000_000 if deaf else 200)
            with trio.fail_after(10):
                await self.upstream.reached.wait()
            if leaving.moment == "mid_stream":
                await client.wait_readable()
            began = time.monotonic()
            await leaving.way(client)
            told = self.heard_at if deaf else self.upstream.raw.gone_at
            await eventually(lambda: len(told) > before, 2)
        return told[-1] - began


async def nobody(stream: trio.SocketStream, received: UpstreamRequest) -> None:
    raise AssertionError("it has its script before anybody asks")


@asynccontextmanager
async def scene(data_dir: Path) -> AsyncIterator[Scene]:
    """A gateway with two seats at one upstream: by a key with a cap, and by Copilot. A third upstream never reads."""
    async with RawUpstream.serving(nobody) as raw, trio.open_nursery() as nursery:
        upstream = Upstream(raw, trio.Event())
        raw.script = upstream.script
        heard_at: list[float] = []

        async def be_deaf(stream: trio.SocketStream) -> None:
            """Reads the head, and no more until the other side is stuck and has left."""
            async with stream:
                await stream.receive_some(1000)
                upstream.reached.set()
                with suppress(trio.BrokenResourceError):
                    await trio.sleep(0.01)
                    while await stream.receive_some(1_000_000):
                        pass
                heard_at.append(time.monotonic())

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, be_deaf, [listener])
        deaf_port = listener.socket.getsockname()[1]
        github = DemoGitHub(base_url=f"http://127.0.0.1:{raw.port}")
        github.link(TOKEN, "me")
        async with serving(github) as url:
            keyed = {"kind": "openai", "max_in_flight": CAP, "base_url": raw.base_url, "models": ["keyed"]}
            deaf = {**keyed, "base_url": f"http://127.0.0.1:{deaf_port}/v1", "models": ["deaf"]}
            copilot = {"kind": "copilot", "protocols": ["chat"], "max_in_flight": CAP}
            upstreams = {"keyed": keyed, "deaf": deaf, "copilot": copilot}
            with faultless(gateway(data_dir, {"upstreams": upstreams})) as capi:

                def link() -> None:
                    adding = AddIdentity(name="seat", host=url, token=TOKEN, login="me")
                    assert isinstance(ask(data_dir, adding), IdentityAnswer)
                    capi.wait_for(lambda: bool(capi.events("model_list", upstream="copilot")))

                await trio.to_thread.run_sync(link)
                yield Scene(capi, upstream, deaf_port, heard_at)
        nursery.cancel_scope.cancel()


def every_leaving() -> list[Leaving]:
    found = []
    for moment in MOMENTS:
        for way in WAYS:
            for model in ("deaf",) if moment == "while_the_upstream_reads" else ("keyed", "seat"):
                stream = moment != "amid_a_whole_answer"
                found += [Leaving(moment, way, door, False, stream, model) for door in DOORS]
                if moment == "before_the_head":
                    found += [Leaving(moment, way, door, False, False, model) for door in DOORS]
                if stream:
                    found.append(Leaving(moment, way, "/v1/responses", True, True, model))
    return found


def measured(what: str, delays: list[float]) -> None:
    worst = statistics.quantiles(delays, n=100)[98]
    tell(f"{what}: {len(delays)}; p50 {statistics.median(delays):.4f} s, p99 {worst:.4f} s, max {max(delays):.4f} s")
    assert worst < WITHIN_S
    assert max(delays) < 1


async def all_slots_are_free(scene: Scene) -> None:
    """As many as the cap run at once."""
    for model in ("keyed", "seat"):
        before = scene.upstream.asked
        async with trio.open_nursery() as nursery:

            async def hold(model: str = model) -> None:
                async with connect(scene.capi.port) as client:
                    await send(client, Leaving("", by_fin, "/v1/messages", False, False, model), b"mid_stream")
                    await trio.sleep_forever()

            for _ in range(CAP):
                nursery.start_soon(hold)
            await eventually(lambda: scene.upstream.asked == before + CAP, 5)  # noqa: B023 - awaited here
            nursery.cancel_scope.cancel()


async def test_the_upstream_is_left_when_its_client_leaves(tmp_path: Path) -> None:
    """Within 250 ms, 99 times of 100, at every moment, in every way, over HTTP and WebSocket."""
    rng = random.Random(20261124)
    kinds = every_leaving()
    count = scaled(1000)
    wanted = rng.sample(kinds * (count // len(kinds) + 1), count)
    async with scene(tmp_path) as world:
        before = open_descriptors(world.capi.pid)
        delays = [await world.leave(leaving) for leaving in wanted]
        gone = {"outcome": "client_gone"}
        await eventually(lambda: len(world.capi.events("exchange", **gone)) == count, 5)
        assert len(world.capi.events("exchange")) == count
        await all_slots_are_free(world)
        await eventually(lambda: open_descriptors(world.capi.pid) <= before, 5)
    measured("clients that left, and their upstream", delays)


async def test_who_leaves_the_queue_is_never_asked_for(tmp_path: Path) -> None:
    """And whoever waits behind has its place."""
    rng = random.Random(20261124)
    count = scaled(200)
    delays: list[float] = []
    async with scene(tmp_path) as world, trio.open_nursery() as nursery:

        async def hold(model: str) -> None:
            async with connect(world.capi.port) as client:
                await send(client, Leaving("", by_fin, "/v1/messages", False, True, model), b"mid_stream")
                await trio.sleep_forever()

        for model in ("keyed", "seat"):
            for _ in range(CAP):
                nursery.start_soon(hold, model)
        await eventually(lambda: world.upstream.asked == 2 * CAP, 5)
        for number in range(count):
            door, websocket = rng.choice([(door, False) for door in DOORS] + [("/v1/responses", True)])
            leaving = Leaving("", rng.choice(WAYS), door, websocket, rng.random() < 0.5, ("keyed", "seat")[number % 2])
            async with connect(world.capi.port) as client:
                await send(client, leaving, b"before_the_head")
                await trio.sleep(0.02)  # until it waits: nothing shows that
                began = time.monotonic()
                await leaving.way(client)
                await eventually(lambda: len(world.capi.events("exchange")) > number, 2)  # noqa: B023
                delays.append(time.monotonic() - began)
        assert world.upstream.asked == 2 * CAP
        lines = world.capi.events("exchange", outcome="client_gone")
        assert len(lines) == count
        assert all(line["queue_ms"] is None for line in lines), "some had a slot: nothing was tested"
        nursery.cancel_scope.cancel()
        await eventually(lambda: world.upstream.raw.open == 0, 5)
    measured("clients that left the queue, and their account", delays)


async def test_who_leaves_with_half_of_its_request_sent_is_forgotten(tmp_path: Path) -> None:
    """Nothing is asked, nothing is held, over any door."""
    rng = random.Random(20261124)
    count = scaled(200)
    delays: list[float] = []
    async with scene(tmp_path) as world:
        before = open_descriptors(world.capi.pid)
        for _ in range(count):
            door, websocket = rng.choice([(door, False) for door in DOORS] + [("/v1/responses", True)])
            leaving = Leaving("", rng.choice(WAYS[:3]), door, websocket, True, rng.choice(("keyed", "seat")))
            body = document(leaving, b"never", filler=2_000_000)
            async with connect(world.capi.port) as client:
                if websocket:
                    await client.send(HANDSHAKE)
                    await client.read_until(b"\r\n\r\n")
                whole = frame(body) if websocket else post(body, target=door.encode())
                await client.send(whole[: rng.randrange(1000, len(whole) - 1)])
                began = time.monotonic()
                await leaving.way(client)
                await eventually(lambda: open_descriptors(world.capi.pid) == before, 2)
                delays.append(time.monotonic() - began)
        assert world.upstream.asked == 0
        assert world.capi.events("exchange") == []
    measured("clients that left in the middle of their request, and their connection", delays)
