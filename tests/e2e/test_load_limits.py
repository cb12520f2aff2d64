"""Slots under load: none is lost whatever goes wrong, a full queue says so, an upstream that wants to be alone is.

On trio's clock, through the gateway's own connections, before a scripted upstream; and the last one over real sockets.
"""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Final

import attrs
import httpx
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from capi_core.config import Config, LimitsConfig, ModelConfig, UpstreamConfig
from capi_core.framing import FramingLimits
from capi_trio.access import ANONYMOUS
from capi_trio.app import Gateway, Snapshot
from capi_trio.perimeter import Perimeter
from capi_trio.seats import Seats
from tests.e2e.conftest import faultless
from tests.e2e.peers import RawUpstream, UpstreamRequest, answer, chunked, connect, post, sse_head
from tests.support import fakes
from tests.support.asgi_harness import Response
from tests.support.fakes import FakeUpstream, Reply, chat_answer, chat_stream, chunk, json_reply
from tests.support.guarded_harness import context, request_ids, serve
from tests.support.process import gateway
from tests.support.scale import FULL, scaled, tell
from tests.support.soak import NOW, KeyDoor

KEYS: Final = {f"sk-{name}": attrs.evolve(ANONYMOUS, id=name) for name in "ABCDE"}


class Place:
    """A gateway before one upstream with a cap."""

    def __init__(self, *replies: Reply | Exception, cap: int, max_queued: int, nursery: trio.Nursery) -> None:
        self.up = FakeUpstream(*replies)
        self.client = fakes.client(self.up, "up")
        self._nursery = nursery
        upstream = UpstreamConfig(
            kind="openai", base_url="http://up.test/v1", max_in_flight=cap, head_timeout_s=5.0, idle_timeout_s=5.0
        )
        limits = LimitsConfig(max_queued_per_identity=max_queued, queue_timeout_s=60.0)
        config = Config(upstreams={"up": upstream}, models={"m": ModelConfig(upstream="m", via="up")}, limits=limits)
        self.seats = Seats(self.client, config, now_s=lambda: NOW + trio.current_time())

        async def snapshot() -> Snapshot:
            return Snapshot(config, config.catalog({"up": {"m": b'{"id":"m"}'}}))

        self.gateway = Gateway(
            snapshot=snapshot,
            client=self.client,
            seats=self.seats,
            door=KeyDoor(KEYS),
            perimeter=Perimeter(),
            ready=lambda: True,
            sealed=lambda: False,
            new_request_id=request_ids(),
            now_ms=lambda: int((NOW + trio.current_time()) * 1000),
            max_body_bytes=100_000,
        )
        self._context = context(framing=FramingLimits(body=100_000))

    @property
    def held(self) -> tuple[int, int]:
        """Slots taken, and requests that wait."""
        gate = self.seats.snapshots()["up"]
        return sum(gate.in_flight.values()), sum(gate.queued.values())

    async def ask(self, key: str = "A", *, stream: bool = False, path: str = "/v1/chat/completions") -> Response:
        """One request on a connection of its own."""
        peer = serve(self._nursery, self.gateway, self._context)
        async with peer.end:
            document = {"model": "m", "stream": stream, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
            return await peer.client.request("POST", path, document, [("authorization", f"Bearer sk-{key}")])


@asynccontextmanager
async def place(*replies: Reply | Exception, cap: int = 4, max_queued: int = 64) -> AsyncIterator[Place]:
    with capture_logs():  # thousands of accounts, which are not what is looked at here
        async with trio.open_nursery() as nursery:
            made = Place(*replies, cap=cap, max_queued=max_queued, nursery=nursery)
            async with made.client:
                yield made
                nursery.cancel_scope.cancel()


SOUND: Final = Reply([chat_stream("hi")])
# What can go wrong with a request that has a slot, and the outcomes' statuses.
FAILURES: Final[Mapping[str, Reply | Exception]] = {
    "refused": httpx.ConnectError("refused"),
    "no_tls": httpx.ConnectError("certificate"),
    "no_route": httpx.ConnectTimeout("no route"),
    "reset": httpx.ReadError("reset"),
    "no_http": httpx.RemoteProtocolError("no HTTP"),
    "stuck_write": httpx.WriteTimeout("stuck"),
    "status_400": json_reply({"error": {"message": "m"}}, 400),
    "status_500": json_reply({"error": {"message": "m"}}, 500),
    "no_head": Reply(head_after=math.inf),
    "silence": Reply([chunk("x"), math.inf]),
    "cut": Reply([chunk("x"), httpx.ReadError("reset")]),
    "garbage": Reply([b"data: <html>\n\n"]),
    "no_end": Reply([chunk("x")]),
    "page": Reply([b"<html>"], headers=(("content-type", "text/html"),)),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", *(["/v1/messages"] if FULL else [])])
@pytest.mark.parametrize("name", FAILURES)
async def test_no_failure_keeps_its_slot(autojump_clock: MockClock, name: str, path: str) -> None:
    """The only slot is there again for the next one, however often."""
    count = scaled(200)
    async with place(FAILURES[name], cap=1, max_queued=1) as here:
        for number in range(count):
            await here.ask(stream=number % 2 == 0, path=path)
            await wait_all_tasks_blocked()
            assert here.held == (0, 0)
        assert len(here.up.asked) == count
        assert here.up.open == 0
        here.gateway.stop()
        assert (await here.ask(path=path)).status == 503
        assert here.held == (0, 0)


async def test_a_full_queue_says_when_to_come_back_and_asks_nobody(autojump_clock: MockClock) -> None:
    """Nor does anybody who leaves it."""
    left = refused = 0
    pieces: list[bytes | float] = [4.0, chunk("x")] * 1000
    endless = Reply([chunk("x"), *pieces])
    async with place(endless, cap=1, max_queued=3) as here:
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.ask, "A")
            await wait_all_tasks_blocked()
            for _ in range(scaled(200)):
                with trio.CancelScope() as leaving:
                    async with trio.open_nursery() as waiting:
                        for _ in range(3):
                            waiting.start_soon(here.ask, "B")
                        await wait_all_tasks_blocked()
                        assert here.held == (1, 3)
                        response = await here.ask("B")
                        assert response.status == 429
                        assert 1 <= int(response.headers["retry-after"]) <= 60
                        refused += 1
                        leaving.cancel()
                left += 3
                await wait_all_tasks_blocked()
                assert here.held == (1, 0)
            assert len(here.up.asked) == 1
            nursery.cancel_scope.cancel()
    tell(f"full queue: {refused} refused with a time, {left} left it, 0 asked upstream")


async def test_who_asks_once_does_not_wait_for_who_asks_a_hundred_times(autojump_clock: MockClock) -> None:
    """Four slots, a second each: nobody who asks once waits for longer than two."""
    waits: dict[str, list[float]] = {}
    async with place(json_reply(chat_answer(), head_after=1.0), cap=4, max_queued=200) as here:

        async def wait(key: str) -> None:
            began = trio.current_time()
            assert (await here.ask(key)).status == 200
            waits.setdefault(key, []).append(trio.current_time() - began - 1.0)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(wait, "A")
            await wait_all_tasks_blocked()
            for key in "BCDE":
                nursery.start_soon(wait, key)
    worst = max(max(waits[key]) for key in "BCDE")
    tell(f"one key asks 100 times, four ask once: these wait {worst:.2f} s at most, of {max(waits['A']):.2f} s")
    assert worst <= 2


# Retry-After, and for how long nobody may be asked.
ALONE: Final = {
    "0": 0.0,
    "1": 1.0,
    "30": 30.0,
    formatdate(NOW + 20, usegmt=True): 20.0,
    formatdate(NOW - 20, usegmt=True): 0.0,
    "-1": 0.0,
    "999999999": 60.0,  # longer than anybody watches here
    "abc": 0.0,
    "": 0.0,
}


@pytest.mark.parametrize(
    ("status", "value"),
    [(status, value) for status in (429, 503, 529) for value in ALONE if FULL or status == 429 or value == "30"],
)
async def test_an_upstream_that_wants_to_be_left_alone_is(autojump_clock: MockClock, status: int, value: str) -> None:
    """By every key. And no request is ever sent twice."""
    headers = (("retry-after", value),) if value else ()
    sent: list[float] = []
    answers: list[int] = []
    async with place(json_reply({"error": {}}, status, *headers), json_reply(chat_answer()), max_queued=500) as here:

        async def ask(key: str) -> None:
            answers.append((await here.ask(key)).status)

        async with trio.open_nursery() as nursery:
            for second in range(0, 50, 1 if FULL else 7):
                for key in KEYS:
                    nursery.start_soon(ask, key.removeprefix("sk-"))
                    sent.append(trio.current_time())
                    if second == 0:
                        await wait_all_tasks_blocked()
                await trio.sleep(1 if FULL else 7)
            nursery.cancel_scope.deadline = trio.current_time() + 5
        asked = [one.at for one in here.up.asked]
        early = [at for at in asked[1:] if at < ALONE[value] - 1e-6]
        assert early == []
        assert len(asked) <= len(sent)
        assert answers.count(status) >= 1
        if ALONE[value] < 60:
            assert len(asked) == len(sent)
    tell(f"{status}, Retry-After {value!r}: {len(asked)} of {len(sent)} asked, 0 within {ALONE[value]:.0f} s")


async def test_a_slot_is_free_before_its_client_sees_the_end(tmp_path: Path) -> None:
    """One slot, no queue: who asks again as soon as it has its answer is never refused."""
    whole = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(sse_head() + chunked(end) if b'"stream":true' in received.body else answer(whole))

    count, refused = scaled(2000), 0
    async with RawUpstream.serving(script) as upstream:
        raw = {"kind": "openai", "base_url": upstream.base_url, "models": ["real"], "max_in_flight": 1}
        with faultless(
            gateway(tmp_path, {"upstreams": {"raw": raw}, "limits": {"max_queued_per_identity": 0}})
        ) as capi:
            for begin in range(0, count, 500):  # a connection takes no more than a thousand
                async with connect(capi.port) as client:
                    for number in range(begin, min(begin + 500, count)):
                        stream = b"true" if number % 2 else b"false"
                        await client.send(post(b'{"model":"real","messages":[],"stream":%b}' % stream))
                        refused += (await client.response()).status != 200
    tell(f"one slot and no queue: {count} requests one after the other, {refused} refused")
    assert refused == 0
