"""Responses over a WebSocket, as a client sees it: frames held against the official SDK's types."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, ConnectionState, WebsocketScope
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import open_websocket_url

from capi_trio.asgi import ResetConnectionError
from capi_trio.demo import DemoProvider, Outcome
from tests.support.asgi_harness import connect, event_data

EVENT: Final = TypeAdapter[ResponsesServerEvent](ResponsesServerEvent)
KEY: Final = "sk-upstream-secret"
PATH: Final = "/v1/responses"
WEATHER: Final = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# The server's events of a short answer, without what is said in it.
WHOLE: Final = ["response.created", "response.in_progress", "response.completed"]
HANDSHAKE: Final = (
    b"GET /v1/responses HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: 6IXgq2TNDGYZrFwi1WlRjw==\r\n\r\n"
)

Frame = dict[str, object]
Headers = Iterable[tuple[bytes, bytes]]


def provider(*, websocket: bool = True, api_key: str | None = None, max_body_bytes: int = 10**6) -> DemoProvider:
    return DemoProvider(
        lambda: 1_800_000_000.0, pace_s=0.0, api_key=api_key, max_body_bytes=max_body_bytes, websocket=websocket
    )


def ask(**members: object) -> Frame:
    asked: Frame = {"type": "response.create", "model": "demo-gpt", "input": "hi", "reasoning": {"effort": "none"}}
    return asked | members


def ids_all_the_same(prefix: str) -> str:
    return f"{prefix}1"


def websocket_scope(path: str, headers: Headers, *, can_deny: bool) -> WebsocketScope:
    return {
        "type": "websocket", "asgi": {}, "http_version": "1.1", "scheme": "ws", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "headers": headers, "client": None, "server": None, "subprotocols": (),
        "state": ConnectionState({}), "extensions": {"websocket.http.response": {}} if can_deny else {},
    }  # fmt: skip


class Usage(msgspec.Struct):
    input_tokens: int


class Client:
    """The client of one connection, in place of a server: messages go in, messages come out."""

    def __init__(self) -> None:
        self._to_app, self._from_client = trio.open_memory_channel[ASGIReceiveEvent](100)
        self._to_client, self._from_app = trio.open_memory_channel[ASGISendEvent](100)
        self._to_app.send_nowait({"type": "websocket.connect"})

    async def receive(self) -> ASGIReceiveEvent:
        return await self._from_client.receive()

    async def send(self, message: ASGISendEvent) -> None:
        await self._to_client.send(message)

    async def message(self) -> ASGISendEvent:
        """The next message of the application as it is."""
        return await self._from_app.receive()

    def say(self, frame: Frame | str | bytes) -> None:
        """Sends a frame: an object as JSON, bytes in a binary one."""
        text = msgspec.json.encode(frame).decode() if isinstance(frame, dict) else frame
        binary = text if isinstance(text, bytes) else None
        self._to_app.send_nowait(
            {"type": "websocket.receive", "text": text if isinstance(text, str) else None, "bytes": binary}
        )

    def leave(self) -> None:
        self._to_app.send_nowait({"type": "websocket.disconnect", "code": 1006})

    async def text(self) -> str:
        message = await self.message()
        assert message["type"] == "websocket.send", message
        assert message["bytes"] is None
        assert message["text"] is not None
        return message["text"]

    async def frame(self) -> Frame:
        """The next frame, which is one of the official SDK's."""
        frame = msgspec.json.decode(await self.text(), type=Frame)
        EVENT.validate_python(frame)
        return frame

    async def answer(self, frame: Frame | str | bytes | None = None) -> list[Frame]:
        """Sends a frame, if any, and reads on until an answer has ended."""
        if frame is not None:
            self.say(frame)
        frames = [await self.frame()]
        while frames[-1]["type"] not in ("response.completed", "response.incomplete", "response.failed", "error"):
            frames.append(await self.frame())
        return frames


@asynccontextmanager
async def opened(app: DemoProvider, headers: Headers = ()) -> AsyncIterator[Client]:
    """A connection that is accepted; leaving closes it, and expects the application to return at once."""
    client = Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, websocket_scope(PATH, headers, can_deny=True), client.receive, client.send)
        assert (await client.message())["type"] == "websocket.accept"
        yield client
        left = trio.current_time()
        client.leave()
    assert trio.current_time() == left
    assert (app.active, app.sockets) == (0, 0)


async def denied(app: DemoProvider, path: str = PATH, headers: Headers = (), *, can_deny: bool = True) -> Client:
    client = Client()
    await app(websocket_scope(path, headers, can_deny=can_deny), client.receive, client.send)
    return client


def kinds(frames: list[Frame]) -> list[object]:
    return [frame["type"] for frame in frames]


def response_of(frames: list[Frame]) -> Frame:
    return msgspec.convert(frames[-1]["response"], Frame)


def error_of(frame: Frame) -> Frame:
    assert frame["type"] == "error"
    return msgspec.convert(frame["error"], Frame)


def said(frames: list[Frame]) -> str:
    return "".join(str(frame["delta"]) for frame in frames if frame["type"] == "response.output_text.delta")


@pytest.mark.parametrize(
    ("path", "key", "websocket", "status", "code"),
    [
        (PATH, b"", True, 401, "missing_api_key"),
        (PATH, b"Bearer other", True, 401, "invalid_api_key"),
        ("/v1/nothing", b"", True, 401, "missing_api_key"),
        ("/v1/nothing", b"Bearer " + KEY.encode(), True, 404, "unknown_url"),
        ("/v1/chat/completions", b"Bearer " + KEY.encode(), True, 404, "unknown_url"),
        (PATH, b"Bearer " + KEY.encode(), False, 426, "websocket_not_supported"),
    ],
)
async def test_a_handshake_is_refused_with_an_http_answer(
    autojump_clock: MockClock, path: str, key: bytes, websocket: bool, status: int, code: str
) -> None:
    app = provider(api_key=KEY, websocket=websocket)
    client = await denied(app, path, ((b"authorization", key),))
    start, body = await client.message(), await client.message()
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == status
    headers = dict(start["headers"])
    assert (headers[b"content-type"], headers[b"x-request-id"]) == (b"application/json", b"req_demo00000001")
    assert body["type"] == "websocket.http.response.body"
    assert headers[b"content-length"] == b"%d" % len(body["body"])
    assert not body["more_body"]
    assert msgspec.json.decode(body["body"], type=dict[str, Frame])["error"]["code"] == code
    (record,) = app.requests
    assert (record.method, record.path, record.status, record.outcome) == ("GET", path, status, Outcome.COMPLETED)
    assert (record.websocket, app.active, app.sockets) == (True, 0, 0)


async def test_where_a_server_cannot_refuse_with_an_answer_the_handshake_is_closed(autojump_clock: MockClock) -> None:
    client = await denied(provider(websocket=False), can_deny=False)
    assert await client.message() == {"type": "websocket.close", "code": 1000, "reason": None}


@pytest.mark.parametrize("header", [(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", KEY.encode())])
async def test_the_key_opens(autojump_clock: MockClock, header: tuple[bytes, bytes]) -> None:
    async with opened(provider(api_key=KEY), (header,)) as client:
        assert kinds(await client.answer(ask()))[-1] == "response.completed"


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]},
        {"input": "the weather in Paris", "tools": [WEATHER], "tool_choice": "required"},
        {"max_output_tokens": 16},
        {"demo": {"quirks": ["rotating_ids", "obfuscation"]}},
    ],
)
async def test_the_frames_are_the_events_of_the_http_stream(
    autojump_clock: MockClock, members: dict[str, object]
) -> None:
    app = DemoProvider(lambda: 1_800_000_000.0, ids_all_the_same)
    async with connect(app) as http:
        streamed = await http.request("POST", PATH, ask(**members) | {"stream": True})
    async with opened(app) as client:
        frames = await client.answer(ask(**members))
    assert frames == [msgspec.json.decode(data) for data in event_data(streamed.body)]


async def test_whether_a_client_asks_for_a_stream_changes_nothing(autojump_clock: MockClock) -> None:
    async with opened(DemoProvider(lambda: 1.0, ids_all_the_same)) as client:
        assert await client.answer(ask(stream=True)) == await client.answer(ask(stream=False))


async def test_a_frame_is_recorded_as_a_request(autojump_clock: MockClock) -> None:
    app = provider()
    asked = ask(demo={"events": 3, "pace_ms": 500})
    async with opened(app, ((b"x-some", b"thing"),)) as client:
        assert (app.active, app.sockets) == (0, 1)
        client.say(asked)
        await client.frame()
        assert app.active == 1
        await client.answer()
        await app.until(lambda: app.active == 0)
        assert app.sockets == 1
    (record,) = app.requests
    assert (record.method, record.path, record.status) == ("GET", PATH, 200)
    assert (record.header(b"x-some"), record.websocket) == (b"thing", True)
    assert msgspec.json.decode(record.body) == asked
    assert (record.outcome, record.started, record.ended) == (Outcome.COMPLETED, 0, 1)


async def test_the_lane_is_named_on_each_frame(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        frames = await client.answer(ask(stream_id='a "lane" é'))
        frames += await client.answer(ask(stream_id='a "lane" é', model="gpt-12"))
        frames += await client.answer(ask(stream_id='a "lane" é', demo={"fault": "error_event"}))
        assert {frame["stream_id"] for frame in frames} == {'a "lane" é'}
        assert not any("stream_id" in frame for frame in await client.answer(ask()))


async def test_a_lane_answers_one_request_after_the_other(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        client.say(ask(demo={"events": 3, "pace_ms": 1000}))
        client.say("{")
        client.say(ask(demo={"events": 2, "pace_ms": 1000}))
        answers = [await client.answer() for _ in range(3)]
        assert [kinds(frames)[0] for frames in answers] == ["response.created", "error", "response.created"]
        assert trio.current_time() == 3


async def test_lanes_answer_at_the_same_time(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        client.say(ask(stream_id="slow", demo={"events": 5, "pace_ms": 1000}))
        client.say(ask(stream_id="quick", demo={"events": 2, "pace_ms": 1000}))
        frames = await client.answer() + await client.answer()
        done = [frame["stream_id"] for frame in frames if frame["type"] == "response.completed"]
        assert (done, trio.current_time()) == (["quick", "slow"], 4)


async def test_only_so_many_requests_wait(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as client:
        for lane in ("a", "b"):
            for _ in range(8):
                client.say(ask(stream_id=lane, demo={"fault": "slow_head", "delay_ms": 1000}))
        client.say(ask(stream_id="c"))
        refused = await client.frame()
        assert (refused["status"], refused["stream_id"], trio.current_time()) == (429, "c", 0)
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        for _ in range(16):
            await client.answer()
        assert trio.current_time() == 8
        assert kinds(await client.answer(ask()))[-1] == "response.completed"
    assert len(app.requests) == 18


async def test_without_generating_the_answer_is_empty(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        frames = await client.answer(ask(generate=False, reasoning={"summary": "auto"}))
        assert kinds(frames) == WHOLE
        assert [frame["sequence_number"] for frame in frames] == [0, 1, 2]
        response = response_of(frames)
        assert (response["status"], response["output"]) == ("completed", [])
        assert msgspec.convert(response["usage"], Frame)["output_tokens"] == 0


async def test_a_request_goes_on_from_a_response_of_its_connection(autojump_clock: MockClock) -> None:
    """As Codex does it: a warm-up, then only what is new; in the end no more than the output of a call."""
    standing = ask(
        tools=[WEATHER],
        store=False,
        stream=True,
        reasoning={"summary": "auto"},
        include=["reasoning.encrypted_content"],
    )
    developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "get_weather in Paris"}]}
    async with opened(provider()) as client:
        warm = response_of(await client.answer(standing | {"input": [developer], "generate": False}))
        called = response_of(await client.answer(standing | {"input": [user], "previous_response_id": warm["id"]}))
        assert called["previous_response_id"] == warm["id"]
        thought, call = msgspec.convert(called["output"], list[Frame])
        assert (thought["type"], call["type"], call["name"]) == ("reasoning", "function_call", "get_weather")
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        asked = standing | {"input": [output], "previous_response_id": called["id"]}
        answered = await client.answer(asked)
        assert "get_weather answered: “sunny”" in said(answered)
        turns = (warm, called, response_of(answered))
        tokens = [msgspec.convert(turn["usage"], Usage).input_tokens for turn in turns]
        assert tokens == sorted(tokens)
        assert len(set(tokens)) == 3
        again = await client.answer(asked)
        assert said(again) == said(answered), "two requests may go on from the same response"


async def test_an_input_of_text_is_remembered_too(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        first = response_of(await client.answer(ask(input="get_weather in Paris", tools=[WEATHER])))
        (call,) = msgspec.convert(first["output"], list[Frame])
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        frames = await client.answer(ask(input=[output], previous_response_id=first["id"]))
        assert "“sunny”" in said(frames)


async def test_what_a_connection_does_not_know_is_not_found(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as other:
        elsewhere = response_of(await other.answer(ask()))["id"]
    async with opened(app) as client:
        oldest = response_of(await client.answer(ask()))["id"]
        for _ in range(14):
            await client.answer(ask())
        latest = response_of(await client.answer(ask()))["id"]
        assert kinds(await client.answer(ask(previous_response_id=oldest)))[-1] == "response.completed"
        assert kinds(await client.answer(ask(previous_response_id=latest)))[-1] == "response.completed"
        failed = response_of(await client.answer(ask(demo={"fault": "failed"})))["id"]
        for unknown in ("resp_nowhere", elsewhere, oldest, failed):
            (frame,) = await client.answer(ask(previous_response_id=unknown))
            assert frame == {
                "type": "error",
                "status": 400,
                "error": {
                    "type": "invalid_request_error",
                    "code": "previous_response_not_found",
                    "message": f"Previous response with id '{unknown}' not found.",
                    "param": "previous_response_id",
                },
            }


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        ("{", 400, "invalid_json"),
        ("", 400, "invalid_json"),
        ('{"demo":' + "[" * 100_000, 400, "invalid_json"),
        ("[]", 400, "invalid_type"),
        (msgspec.json.encode(ask()), 400, "invalid_json"),
        ("{}", 400, "invalid_value"),
        ({"type": "response.steer", "previous_response_id": "resp_1", "input": "stop"}, 400, "invalid_value"),
        (ask(background=True), 400, "unsupported_parameter"),
        (ask(stream_id=1), 400, "invalid_type"),
        (ask(model=None), 400, "missing_required_parameter"),
        (ask(model="gpt-12"), 404, "model_not_found"),
        (ask(model="demo-chat"), 400, "unsupported_api_for_model"),
        (ask(input=None), 400, "missing_required_parameter"),
        (ask(input=[]), 400, "empty_array"),
        (ask(demo={"fault": "?"}), 400, "invalid_demo_options"),
        (ask(input="x" * 200_000), 413, "request_too_large"),
        (ask(input=[{"type": "function_call_output", "call_id": "c", "output": ""}]), 400, "invalid_request_error"),
    ],
)
async def test_a_refusal_is_a_nested_error_and_the_connection_goes_on(
    autojump_clock: MockClock, frame: Frame | str | bytes, status: int, code: str
) -> None:
    app = provider(max_body_bytes=200_000)
    async with opened(app) as client:
        (refused,) = await client.answer(frame)
        assert (refused["status"], error_of(refused)["code"]) == (status, code)
        assert error_of(refused).keys() == {"type", "code", "message", "param"}
        assert kinds(await client.answer(ask()))[-1] == "response.completed"
    assert [record.status for record in app.requests] == [status, 200]


async def test_status_fault(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as client:
        (frame,) = await client.answer(ask(demo={"fault": "status", "status": 429, "retry_after": 2}))
        assert frame["status"] == 429
        assert error_of(frame) == {
            "type": "rate_limit_error",
            "code": "demo_fault",
            "message": "The demo provider fails here because it was asked to.",
            "param": None,
            "headers": {"retry-after": "2"},
        }
    assert (app.requests[0].status, app.requests[0].outcome) == (429, Outcome.FAULTED)


async def test_error_fault(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as client:
        frames = await client.answer(ask(input='hi [[demo {"fault": "error_event", "at": 2}]]'))
        assert frames[-1]["sequence_number"] == len(frames) - 1
        assert "status" not in frames[-1]
        error = error_of(frames[-1])
        assert (error["type"], error["code"], error["param"]) == ("server_error", "demo_fault", None)
        assert kinds(await client.answer(ask(demo={"fault": "failed"})))[-1] == "response.failed"
    assert [record.outcome for record in app.requests] == [Outcome.FAULTED] * 2


@pytest.mark.parametrize("fault", ["end", "no_done", "no_blank"])
async def test_an_answer_that_lacks_its_end_ends_the_connection(autojump_clock: MockClock, fault: str) -> None:
    app = provider()
    client = Client()
    client.say(ask(demo={"fault": fault, "events": 4}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, websocket_scope(PATH, (), can_deny=True), client.receive, client.send)
        assert (await client.message())["type"] == "websocket.accept"
        while (message := await client.message())["type"] == "websocket.send":
            assert "response.completed" not in str(message["text"])
        assert message == {"type": "websocket.close", "code": 1000, "reason": None}
    assert app.requests[0].outcome is Outcome.FAULTED
    assert (app.active, app.sockets) == (0, 0)


async def test_reset_fault_drops_the_connection_and_every_answer_on_it(autojump_clock: MockClock) -> None:
    app = provider()
    client = Client()
    client.say(ask(stream_id="other", demo={"fault": "silence"}))
    client.say(ask(stream_id="reset", demo={"fault": "reset", "at": 2, "pace_ms": 1000}))
    with pytest.raises(ResetConnectionError):
        await app(websocket_scope(PATH, (), can_deny=True), client.receive, client.send)
    assert trio.current_time() == 2
    assert [record.outcome for record in app.requests] == [Outcome.FAULTED] * 2
    assert (app.active, app.sockets) == (0, 0)


@pytest.mark.parametrize("lane", [None, "a"])
async def test_garbage_fault(autojump_clock: MockClock, lane: str | None) -> None:
    app = provider()
    async with opened(app) as client:
        client.say(ask(stream_id=lane, demo={"fault": "garbage", "at": 0, "events": 1}))
        texts = [await client.text() for _ in range(10)]
        (garbage,) = [text for text in texts if not text.startswith("{")]
        assert garbage == "\0\ufffd\ufffd\ufffd"
        assert '"type":"response.completed"' in texts[-1]
    assert app.requests[0].outcome is Outcome.FAULTED


async def test_bad_json_fault(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        client.say(ask(stream_id="a", demo={"fault": "bad_json", "at": 1, "events": 3}))
        texts = [await client.text() for _ in range(11)]
        (cut,) = [text for text in texts if not text.endswith("}")]
        assert cut.startswith('{"type":"response.output_text.delta"')
        assert '"type":"response.completed"' in texts[-1]


async def test_huge_event_fault(autojump_clock: MockClock) -> None:
    async with opened(provider()) as client:
        client.say(ask(demo={"fault": "huge_event", "at": 1, "size": 300_000}))
        texts = [await client.text() for _ in range(7)]
        assert max(map(len, texts)) == 300_000


@pytest.mark.parametrize(
    "demo",
    [
        {"fault": "comments"},
        {"fault": "keepalive", "silence_ms": 60_000},
        {"fault": "crlf"},
        {"line_end": "cr"},
        {"split": 1},
        {"split": 7, "line_end": "crlf"},
        {"fault": "slow_head", "delay_ms": 3000},
        {"fault": "silence", "silence_ms": 3000},
    ],
)
async def test_what_is_of_the_byte_stream_only_changes_no_frame(
    autojump_clock: MockClock, demo: dict[str, object]
) -> None:
    async with opened(DemoProvider(lambda: 1.0, ids_all_the_same)) as client:
        plain = await client.answer(ask())
        assert await client.answer(ask(demo=demo)) == plain


async def test_a_client_that_goes_ends_its_answers_at_once(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as client:
        for lane in ("a", "b"):
            client.say(ask(stream_id=lane, demo={"events": 1000, "pace_ms": 1000}))
        client.say(ask(stream_id="b"))
        await trio.sleep(3)
    assert [(record.outcome, record.status, record.ended) for record in app.requests] == [
        (Outcome.CLIENT_GONE, 200, 3),
        (Outcome.CLIENT_GONE, 200, 3),
    ]


async def test_a_client_that_goes_before_the_first_frame_is_noticed(autojump_clock: MockClock) -> None:
    app = provider()
    async with opened(app) as client:
        client.say(ask(demo={"fault": "slow_head", "delay_ms": 10_000}))
        await wait_all_tasks_blocked()
    (record,) = app.requests
    assert (record.outcome, record.status, record.ended) == (Outcome.CLIENT_GONE, None, 0)


async def test_a_client_that_goes_with_the_last_frame_has_the_whole_answer(autojump_clock: MockClock) -> None:
    app = provider()
    client = Client()

    async def send(message: ASGISendEvent) -> None:
        if message["type"] == "websocket.send" and '"type":"response.completed"' in str(message["text"]):
            client.leave()
            await wait_all_tasks_blocked()

    client.say(ask())
    await app(websocket_scope(PATH, (), can_deny=True), client.receive, send)
    assert [record.outcome for record in app.requests] == [Outcome.COMPLETED]


async def test_a_stopped_server_is_not_mistaken_for_a_client_gone(autojump_clock: MockClock) -> None:
    app = provider()
    client = Client()
    client.say(ask(demo={"fault": "silence"}))
    with trio.move_on_after(5) as stopped:
        await app(websocket_scope(PATH, (), can_deny=True), client.receive, client.send)
    assert stopped.cancelled_caught
    assert app.requests[0].outcome is Outcome.CANCELLED
    assert (app.active, app.sockets) == (0, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = st.dictionaries(
    st.sampled_from(["type", "input", "stream_id", "generate", "background", "previous_response_id", "store", "tools"]),
    JSON,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(members=MEMBERS)
async def test_any_json_gets_an_answer_and_never_an_exception(
    autojump_clock: MockClock, members: dict[str, object]
) -> None:
    async with opened(provider()) as client:
        frames = await client.answer(ask(**members))
        assert frames[-1]["type"] in ("response.completed", "error")
        assert kinds(await client.answer(ask()))[-1] == "response.completed"


@asynccontextmanager
async def listening(app: DemoProvider) -> AsyncIterator[tuple[str, int]]:
    """The application on a port of hypercorn's own server; gives the URL to open, and the port."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
        yield f"{bound.replace('http', 'ws')}{PATH}", int(bound.rpartition(":")[2])
        stop.set()


async def test_a_client_talks_to_it_over_a_socket() -> None:
    app = provider(api_key=KEY)
    async with listening(app) as (url, port):
        async with open_websocket_url(url, extra_headers=[(b"authorization", b"Bearer " + KEY.encode())]) as client:
            await client.send_message(msgspec.json.encode(ask()).decode())
            assert '"type":"response.created"' in str(await client.get_message())
            while '"type":"response.completed"' not in str(await client.get_message()):
                pass
            await client.send_message(msgspec.json.encode(ask(demo={"fault": "silence"})).decode())
            assert '"type":"response.created"' in str(await client.get_message())
        await app.until(lambda: app.sockets == 0)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(HANDSHAKE)
            refusal = b"".join([bytes(data) async for data in stream])
    assert refusal.startswith(b"HTTP/1.1 401")
    assert b"missing_api_key" in refusal
    outcomes = [record.outcome for record in app.requests]
    assert outcomes == [Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.COMPLETED]
