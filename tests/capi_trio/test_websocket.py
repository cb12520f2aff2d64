"""Responses over WebSocket: a real client library, our guarded connection, the gateway, a scripted upstream.

Over memory streams, on virtual time.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from typing_extensions import override

from capi_core.config import Config, LimitsConfig, ModelConfig, UpstreamConfig
from capi_core.errors import Problem
from capi_core.framing import FramingLimits
from capi_core.protocols.kinds import Protocol
from capi_trio.access import Access, OpenDoor
from capi_trio.app import Gateway, Snapshot
from capi_trio.perimeter import Perimeter
from capi_trio.request import SESSION_PATHS
from capi_trio.seats import Seats
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply
from tests.support.guarded_harness import Guarded, connect, request_ids
from tests.support.responses_events import CREATED, completed, event, numbered, response, text_item

CONFIG: Final = Config(
    upstreams={"up": UpstreamConfig(kind="openai", base_url="http://up.test/v1", protocols=(Protocol.RESPONSES,))},
    models={"fast": ModelConfig(upstream="up-1", via="up")},
    limits=LimitsConfig(max_body_bytes=20_000),
)
LISTS: Final = {"up": {"up-1": b'{"id":"up-1"}'}}

Frame = dict[str, object]


def said(text: str, response_id: str = "resp_1") -> bytes:
    """A whole answer of the upstream."""
    events = text_item(0, text)
    created = event("response.created", response=response(id=response_id))
    return numbered([created, *events, completed(events[-1]["item"], id=response_id)])


def create(**members: object) -> str:
    return json.dumps({"type": "response.create", "model": "fast", "store": False, **members})


class KeyDoor(OpenDoor):
    """A door that can be shut."""

    problem: Problem | None = None

    @override
    def enter(self, headers: object, *, ip: str | None, admin: bool = False) -> Access | Problem:
        return self.problem or super().enter((), ip=ip, admin=admin)


class World:
    def __init__(self, *replies: Reply | Exception, config: Config = CONFIG) -> None:
        self.up = FakeUpstream(*replies or (Reply([said("hello")]),))
        self.asking = fakes.client(self.up, *config.upstreams)
        self.config = config
        self.door = KeyDoor()
        self.peer: Guarded
        self.gateway = Gateway(
            snapshot=self.snapshot,
            client=self.asking,
            seats=Seats(self.asking, self.config, now_s=lambda: 0.0),
            door=self.door,
            perimeter=Perimeter(),
            ready=lambda: True,
            sealed=lambda: False,
            new_request_id=request_ids(),
            now_ms=lambda: 1_700_000_000_000,
            max_body_bytes=config.limits.max_body_bytes,
        )
        self.logs: list[dict[str, object]] = []

    async def snapshot(self) -> Snapshot:
        return Snapshot(self.config, self.config.catalog(LISTS))

    @asynccontextmanager
    async def open(self, path: str = "/v1/responses", **headers: str) -> AsyncIterator["Socket"]:
        framing = FramingLimits(body=self.config.limits.max_body_bytes, websockets=SESSION_PATHS)
        with capture_logs() as logs:
            async with self.asking, connect(self.gateway, framing=framing) as self.peer, trio.open_nursery() as nursery:
                extra = [(name.encode(), value.encode()) for name, value in headers.items()]
                # The library asks for a socket's stream; it uses what any stream has.
                opening = wrap_client_stream(
                    nursery,
                    self.peer.end,  # type: ignore[arg-type]
                    "localhost",
                    path,
                    extra_headers=extra,
                    max_message_size=128 << 20,
                )
                yield Socket(await opening)
                await self.peer.end.aclose()
                nursery.cancel_scope.cancel()
        self.logs = [dict(line) for line in logs]
        assert self.up.open == 0
        assert self.gateway.running == 0

    @property
    def outcomes(self) -> list[object]:
        return [line["outcome"] for line in self.logs if line["event"] == "exchange"]

    def asked(self, number: int) -> Frame:
        """The body of the request that the upstream got."""
        body = json.loads(self.up.asked[number].body)
        assert isinstance(body, dict)
        return body


class Socket:
    """The client's end."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    async def send(self, text: str | bytes) -> None:
        await self.connection.send_message(text)

    async def next(self) -> Frame:
        frame = json.loads(await self.connection.get_message())
        assert isinstance(frame, dict)
        return frame

    async def until(self, *kinds: str) -> list[Frame]:
        """Frames up to the first of these kinds."""
        frames = [await self.next()]
        while frames[-1]["type"] not in kinds:
            frames.append(await self.next())
        return frames

    async def closed(self) -> int:
        """Nothing more comes but the end; why."""
        with pytest.raises(ConnectionClosed) as closed:
            await self.next()
        assert closed.value.reason is not None
        return closed.value.reason.code

    async def turn(self, **members: object) -> list[Frame]:
        await self.send(create(**members))
        frames = await self.until("response.completed", "response.incomplete", "response.failed", "error")
        return frames


def code(frame: Frame) -> object:
    assert frame["type"] == "error"
    error = frame["error"]
    assert isinstance(error, dict)
    return error["code"]


async def test_two_turns_on_one_connection(autojump_clock: MockClock) -> None:
    """The second one says only what is new; the upstream gets the whole conversation, as it would over HTTP."""
    world = World(Reply([said("one", "resp_a")]), Reply([said("two", "resp_b")]))
    async with world.open() as socket:
        first = await socket.turn(input="hi")
        second = await socket.turn(input="more", previous_response_id="resp_a")
    assert [frame["type"] for frame in first] == [
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [frame["type"] for frame in second] == [frame["type"] for frame in first]
    assert world.asked(0)["input"] == "hi"
    given = world.asked(1)["input"]
    assert isinstance(given, list)
    assert [item["role"] for item in given] == ["user", "assistant", "user"]
    assert "previous_response_id" not in world.asked(1)
    assert world.asked(1)["stream"] is True
    assert world.outcomes == ["ok", "ok"]
    assert {line["transport"] for line in world.logs if line["event"] == "exchange"} == {"websocket"}


@pytest.mark.parametrize("place", [{"output_index": 0}, {}], ids=["placed", "not-placed"])
@pytest.mark.parametrize("last", [{"output": []}, {"output": None}, {}], ids=["empty", "null", "none"])
async def test_an_answer_is_remembered_although_its_last_event_leaves_it_out(
    autojump_clock: MockClock, last: dict[str, object], place: dict[str, object]
) -> None:
    """`output` of `response.completed` is empty at some servers (wire.md 1.7); the next turn has its calls anyway."""
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }
    events = [
        CREATED,
        event("response.output_item.added", **place, item=call),
        event("response.output_item.done", **place, item=call),
        event("response.output_item.done", **dict.fromkeys(place, 1), item={**call, "id": "fc_2", "call_id": "d"}),
        event("response.completed", response={"id": "resp_1", "object": "response", "status": "completed", **last}),
    ]
    world = World(Reply([numbered(events)]), Reply([said("done", "resp_b")]))
    async with world.open() as socket:
        await socket.turn(input="hi")
        output = {"type": "function_call_output", "call_id": "c", "output": "x"}
        await socket.turn(input=[output], previous_response_id="resp_1")
    given = world.asked(1)["input"]
    assert isinstance(given, list)
    assert [item["type"] for item in given] == ["message", "function_call", "function_call", "function_call_output"]


async def test_a_client_that_goes_on_after_it_was_told_the_end_is_cut_off(autojump_clock: MockClock) -> None:
    """One frame without end: what comes of it is not kept, and what runs for this client ends."""
    world = World(Reply([numbered([CREATED]), 3600.0]))
    framing = FramingLimits(body=world.config.limits.max_body_bytes, websockets=SESSION_PATHS)
    async with world.asking, connect(world.gateway, framing=framing) as peer:
        await peer.send(HANDSHAKE)
        await peer.receive()
        frame = create(input="x" * 200).encode()
        await peer.send(b"\x81\xfe" + len(frame).to_bytes(2, "big") + bytes(4) + frame)
        await peer.receive()
        await peer.send(b"\x81\xff" + (2**40).to_bytes(8, "big") + bytes(4))
        with suppress(trio.BrokenResourceError):
            for _ in range(40):
                await peer.send(b"x" * 16_384)
        await peer.over.wait()
        assert trio.current_time() < 5
    assert world.up.asked[0].closed_at is not None


async def test_a_warm_up_asks_nobody(autojump_clock: MockClock) -> None:
    async with (world := World()).open() as socket:
        warm = await socket.turn(input=[{"role": "developer", "content": "d"}], generate=False, stream_id="s")
        assert warm[-1]["stream_id"] == "s"
        answer = warm[-1]["response"]
        assert isinstance(answer, dict)
        assert not world.up.asked
        await socket.turn(input="hi", previous_response_id=answer["id"])
    given = world.asked(0)["input"]
    assert isinstance(given, list)
    assert [item["role"] for item in given] == ["developer", "user"]


async def test_a_warm_up_for_what_cannot_be_asked_is_refused(autojump_clock: MockClock) -> None:
    async with World().open() as socket:
        assert code((await socket.turn(model="nobody", input="x", generate=False))[-1]) == "model_not_found"
        unknown = await socket.turn(input="x", generate=False, previous_response_id="r", store=True)
        assert code(unknown[-1]) == "previous_response_not_found"


async def test_an_answer_can_be_cut_and_the_upstream_is_let_go(autojump_clock: MockClock) -> None:
    """The client goes in the middle of a turn, by a close frame or without one."""
    for polite in (True, False):
        world = World(Reply([numbered([CREATED]), 3600.0]))
        async with world.open() as socket:
            await socket.send(create(input="hi"))
            assert (await socket.next())["type"] == "response.created"
            left = trio.current_time()
            if polite:
                await socket.connection.aclose()
            else:
                await world.peer.end.aclose()
            await world.peer.over.wait()
            closed = world.up.asked[0].closed_at
            assert closed is not None
            assert closed - left < 0.25
        assert world.outcomes == ["client_gone"]


async def test_what_waits_is_dropped_when_the_client_leaves(autojump_clock: MockClock) -> None:
    world = World(Reply([numbered([CREATED]), 3600.0]))
    async with world.open() as socket:
        await socket.send(create(input="one"))
        await socket.send(create(input="two"))
        await socket.next()
        await socket.connection.aclose()
    assert len(world.up.asked) == 1


async def test_an_upstream_that_breaks_is_told_of_and_the_connection_goes_on(autojump_clock: MockClock) -> None:
    gone = Reply([numbered([CREATED]), httpx.ReadError("reset")])
    unreachable = httpx.ConnectError("refused")
    busy = fakes.json_reply({"error": {"message": "slow", "code": "busy"}}, 429, ("retry-after", "7"))
    world = World(gone, unreachable, busy, Reply([said("x")]))
    async with world.open() as socket:
        frames = await socket.turn(input="1")
        assert frames[-1]["type"] == "response.failed" or code(frames[-1])
        refused = (await socket.turn(input="2", stream_id="s"))[-1]
        assert (code(refused), refused["status"], refused["stream_id"]) == ("upstream_unreachable", 502, "s")
        limited = (await socket.turn(input="3"))[-1]
        assert (code(limited), limited["status"], limited["headers"]) == ("busy", 429, {"retry-after": "7"})
        assert (await socket.turn(input="4"))[-1]["type"] == "response.completed"
    assert world.outcomes == ["upstream_broke", "upstream_unreachable", "upstream_error", "ok"]


async def test_a_failed_turn_cannot_be_referred_to(autojump_clock: MockClock) -> None:
    failed = numbered([CREATED, event("response.failed", response={"id": "resp_1", "status": "failed", "error": None})])
    async with World(Reply([failed])).open() as socket:
        await socket.turn(input="1")
        assert code((await socket.turn(input="2", previous_response_id="resp_1"))[-1]) == "previous_response_not_found"


async def test_an_odd_event_of_the_upstream_is_no_answer_to_remember(autojump_clock: MockClock) -> None:
    odd = event("codex.rate_limits", note="response.completed")
    failed = event("response.failed", response={"id": "resp_1", "status": "failed", "error": None})
    async with World(Reply([numbered([CREATED, odd, failed])])).open() as socket:
        assert [frame["type"] for frame in await socket.turn(input="1")][1] == "codex.rate_limits"
        assert code((await socket.turn(input="2", previous_response_id="resp_1"))[-1]) == "previous_response_not_found"


async def test_an_event_as_large_as_the_limits_allow_arrives(autojump_clock: MockClock) -> None:
    limits = LimitsConfig(max_event_bytes=80 << 20)
    delta = event("response.output_text.delta", item_id="i", output_index=0, content_index=0, delta="x" * (66 << 20))
    world = World(
        Reply([numbered([CREATED, delta, completed()])]), config=msgspec.structs.replace(CONFIG, limits=limits)
    )
    async with world.open() as socket:
        frames = await socket.turn(input="1")
    assert [len(str(frame.get("delta", ""))) >> 20 for frame in frames] == [0, 66, 0]


async def test_lanes_run_beside_each_other_and_each_in_order(autojump_clock: MockClock) -> None:
    slow, quick = Reply([100.0, said("slow")]), Reply([said("quick")])
    world = World(slow, quick, quick)
    async with world.open() as socket:
        await socket.send(create(input="1", stream_id="a"))
        await socket.send(create(input="2", stream_id="a"))
        await socket.send(create(input="3", stream_id="b"))
        ended: list[tuple[object, float]] = []
        while len(ended) < 3:
            frame = await socket.next()
            if frame["type"] == "response.completed":
                ended.append((frame["stream_id"], trio.current_time()))
    assert [lane for lane, _ in ended] == ["b", "a", "a"]
    assert ended[0][1] < 1 < 100 <= ended[1][1]
    assert [world.asked(number)["input"] for number in range(3)] == ["1", "3", "2"]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("no JSON", "invalid_json"),
        ("[]", "not_an_object"),
        (b"\xff\xfe", "invalid_json"),
        ("{}", None),
        ('{"type":"response.steer"}', "unsupported_event"),
        (create(), None),
        (create(model=5), None),
        (create(input="x", background=True), "untranslatable"),
        (create(input="x", stream_id="s" * 300), "invalid_stream_id"),
        (create(input="x", previous_response_id="r"), "previous_response_not_found"),
        (create(input="x", model="nobody"), "model_not_found"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_a_frame(
    autojump_clock: MockClock, frame: str | bytes, expected: str | None
) -> None:
    world = World(fakes.json_reply({"error": {"message": "no", "code": "bad"}}, 400), Reply([said("x")]))
    async with world.open() as socket:
        await socket.send(frame)
        error = await socket.next()
        assert error["type"] == "error"
        assert error["status"] in {400, 404}
        assert expected in {None, code(error)}


async def test_the_rate_limit_and_the_size_hold_as_over_http(autojump_clock: MockClock) -> None:
    async with World().open() as socket:
        await socket.turn(input="y" * 9000)
        assert (await socket.turn(input="z" * 9000, previous_response_id="resp_1"))[-1]["type"] == "response.completed"
        large = (await socket.turn(input="z" * 15_000, previous_response_id="resp_1"))[-1]
        assert (code(large), large["status"]) == ("body_too_large", 413)
        await socket.send(create(input="z" * 30_000))
        assert await socket.closed() == 1009


async def test_too_many_that_wait_are_refused(autojump_clock: MockClock) -> None:
    world = World(Reply([50.0, said("x")]))
    async with world.open() as socket:
        for number in range(30):
            await socket.send(create(input=str(number)))
        refused = await socket.next()
        assert (code(refused), refused["status"]) == ("too_many_requests", 429)
        for _ in range(12):
            assert code(await socket.next()) == "too_many_requests"
        await socket.until("response.created")
    world = World(Reply([50.0, said("x")]))
    async with world.open() as socket:
        for number in range(9):
            await socket.send(create(input="x", stream_id=str(number)))
        refused = await socket.next()
        assert (code(refused), refused["stream_id"]) == ("too_many_requests", "8")
    world = World(Reply([50.0, said("x")]))
    async with world.open() as socket:
        await socket.send(create(input="x" * 15_000))
        await socket.send(create(input="x" * 15_000))
        assert code(await socket.next()) == "too_many_requests"


# -- the handshake -------------------------------------------------------------------------------------------------


async def test_who_is_not_let_in_gets_a_status_before_any_frame(autojump_clock: MockClock) -> None:
    world = World()
    world.door.problem = Problem(401, "invalid_api_key", "no")
    with pytest.raises((ConnectionRejected, ExceptionGroup)) as caught:
        async with world.open():
            raise AssertionError("the handshake went well")
    rejected = _rejection(caught.value)
    assert rejected.status_code == 401
    assert json.loads(rejected.body or b"")["error"]["code"] == "invalid_api_key"
    headers = dict(rejected.headers)
    assert headers[b"www-authenticate"].startswith(b"Bearer")
    assert headers[b"x-request-id"] == b"req_1"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/responses", {"origin": "https://evil.test"}, 403),
        ("/v1/chat/completions", {}, 405),
        ("/v1/models", {}, 200),
        ("/nowhere", {}, 404),
    ],
)
async def test_elsewhere_and_from_elsewhere_no_socket_opens(
    autojump_clock: MockClock, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises((ConnectionRejected, ExceptionGroup)) as caught:
        async with World().open(path, **headers):
            raise AssertionError("the handshake went well")
    assert _rejection(caught.value).status_code == status


def _rejection(error: BaseException) -> ConnectionRejected:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    return error


async def test_a_key_that_is_taken_back_ends_the_connection(autojump_clock: MockClock) -> None:
    async with (world := World()).open() as socket:
        await socket.turn(input="x")
        world.door.problem = Problem(401, "invalid_api_key", "no")
        assert code((await socket.turn(input="y"))[-1]) == "invalid_api_key"
        assert await socket.closed() == 1001
    assert len(world.up.asked) == 1


# -- the end -------------------------------------------------------------------------------------------------------


async def test_a_draining_gateway_lets_a_turn_end_and_takes_no_other(autojump_clock: MockClock) -> None:
    world = World(Reply([numbered([CREATED]), 10.0, said("x")]))
    async with world.open() as socket:
        await socket.send(create(input="x"))
        await socket.next()
        world.gateway.drain()
        await socket.send(create(input="y", stream_id="z"))
        assert code(await socket.next()) == "shutting_down"
        assert (await socket.until("response.completed"))[-1]["type"] == "response.completed"
        assert await socket.closed() == 1001


async def test_an_idle_connection_ends_at_once_when_the_gateway_drains(autojump_clock: MockClock) -> None:
    async with (world := World()).open() as socket:
        await socket.turn(input="x")
        world.gateway.drain()
        with pytest.raises(ConnectionClosed):
            await socket.next()
        await world.peer.over.wait()
        assert trio.current_time() < 5


async def test_a_stopping_gateway_ends_a_turn_with_a_word(autojump_clock: MockClock) -> None:
    world = World(Reply([numbered([CREATED]), 3600.0]))
    async with world.open() as socket:
        await socket.send(create(input="x"))
        await socket.next()
        world.gateway.drain()
        world.gateway.stop()
        last = await socket.next()
        assert last["type"] in {"response.failed", "error"}
        with pytest.raises(ConnectionClosed):
            await socket.next()
    assert world.outcomes == ["shutdown"]


async def test_a_connection_has_its_time(autojump_clock: MockClock) -> None:
    """Pings keep it for an hour of silence; then it is told why it ends."""
    async with World().open() as socket:
        opened = trio.current_time()
        assert code(await socket.next()) == "websocket_connection_limit_reached"
        assert 3600 <= trio.current_time() - opened < 3700
        with pytest.raises(ConnectionClosed):
            await socket.next()


async def test_a_client_that_does_not_answer_the_close_is_left(autojump_clock: MockClock) -> None:
    world = World()
    async with connect(world.gateway, framing=FramingLimits(websockets=SESSION_PATHS)) as peer:
        await peer.send(HANDSHAKE)
        assert b" 101 " in await peer.receive()
        world.gateway.drain()
        await peer.over.wait()
        assert trio.current_time() < 5


HANDSHAKE: Final = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_client_that_answers_no_ping_is_gone(autojump_clock: MockClock) -> None:
    async with connect(World().gateway, framing=FramingLimits(websockets=SESSION_PATHS)) as peer:
        await peer.send(HANDSHAKE)
        await peer.receive()
        await peer.over.wait()
        assert 20 <= trio.current_time() < 45


async def test_a_frame_that_comes_with_the_handshake_is_heard(autojump_clock: MockClock) -> None:
    """A client may not send before it is let in; one that does is not misunderstood, and not lost."""
    async with connect(World().gateway, framing=FramingLimits(websockets=SESSION_PATHS)) as peer:
        await peer.send(HANDSHAKE + b"\x88\x80\0\0\0\0")
        await peer.over.wait()
        assert trio.current_time() < 5
