"""Every fault, as a client sees it on the wire."""

from typing import Final

import msgspec
import pytest
import trio
from openai.types.chat import ChatCompletionChunk
from trio.testing import MockClock

from capi_trio.demo import DemoProvider, Outcome
from capi_trio.demo.answers import Answer, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.faults import Options
from capi_trio.demo.wire import ServerEvent, stream_answer
from tests.support.asgi_harness import Response, connect, event_data

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
# The opening chunk, four of text, the finish, [DONE].
EVENTS = 7


def provider() -> DemoProvider:
    return DemoProvider(lambda: 1_800_000_000.0, pace_s=0.0)


def body(*, stream: bool, **demo: object) -> dict[str, object]:
    return {"model": "demo-chat", "messages": HI, "stream": stream, "demo": {"events": 4} | demo}


async def ask(stream: bool = True, /, **demo: object) -> Response:
    app = provider()
    async with connect(app) as client:
        response = await client.request("POST", PATH, body(stream=stream, **demo))
    (record,) = app.requests
    sound = demo.get("fault") in (None, "slow_head", "silence", "huge_event", "comments", "keepalive", "crlf")
    assert record.outcome is (Outcome.COMPLETED if sound else Outcome.FAULTED)
    return response


def checked(events: list[str]) -> int:
    """The number of events that are chunks to the official SDK."""
    return len([ChatCompletionChunk.model_validate_json(data) for data in events if data != "[DONE]"])


async def test_without_a_fault_the_stream_is_whole(autojump_clock: MockClock) -> None:
    response = await ask()
    assert response.complete
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert len(response.chunks) == EVENTS
    assert event_data(response.body)[-1] == "[DONE]"
    assert checked(event_data(response.body)) == EVENTS - 1


@pytest.mark.parametrize("stream", [True, False])
async def test_status(autojump_clock: MockClock, *, stream: bool) -> None:
    response = await ask(stream, fault="status", status=429, retry_after=2)
    assert (response.status, response.headers["retry-after"]) == (429, "2")
    error = response.json(dict[str, dict[str, object]])["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "demo_fault")
    response = await ask(stream, fault="status")
    assert response.status == 500
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("demo", "seconds"), [({"delay_ms": 1500}, 1.5), ({}, 5)])
async def test_slow_head(autojump_clock: MockClock, demo: dict[str, object], seconds: float, *, stream: bool) -> None:
    assert (await ask(stream, fault="slow_head", **demo)).headed_at == seconds


@pytest.mark.parametrize(("at", "chunks"), [(0, 1), (1, 2), (4, 5), (1000, 5)])
async def test_reset_cuts_the_body_before_that_event(autojump_clock: MockClock, at: int, chunks: int) -> None:
    response = await ask(fault="reset", at=at)
    assert response.status == 200
    assert not response.complete
    assert len(response.chunks) == chunks
    assert "[DONE]" not in event_data(response.body)


async def test_reset_of_a_whole_answer_leaves_half(autojump_clock: MockClock) -> None:
    response = await ask(False, fault="reset")
    assert not response.complete
    assert len(response.body) == int(response.headers["content-length"]) // 2


async def test_end_is_a_clean_end_without_finish_or_terminator(autojump_clock: MockClock) -> None:
    response = await ask(fault="end", at=2)
    assert response.complete
    assert checked(event_data(response.body)) == 3
    assert b"[DONE]" not in response.body
    assert b'"finish_reason":"stop"' not in response.body


async def test_no_done_leaves_out_only_the_terminator(autojump_clock: MockClock) -> None:
    response = await ask(fault="no_done")
    assert response.complete
    assert response.body.endswith(b"\n\n")
    assert checked(event_data(response.body)) == EVENTS - 1
    assert b"[DONE]" not in response.body


async def test_no_blank_leaves_the_finish_unfinished(autojump_clock: MockClock) -> None:
    response = await ask(fault="no_blank")
    assert response.complete
    assert response.body.endswith(b"}\n")
    assert not response.body.endswith(b"\n\n")
    assert b'"finish_reason":"stop"' in response.body
    assert checked(event_data(response.body)) == EVENTS - 2


async def test_garbage_is_not_text_and_the_stream_goes_on(autojump_clock: MockClock) -> None:
    response = await ask(fault="garbage", at=1)
    spoilt = response.chunks[2].data
    with pytest.raises(UnicodeDecodeError):
        spoilt.decode()
    assert len(response.chunks) == EVENTS + 1
    assert response.chunks[-1].data == b"data: [DONE]\n\n"


async def test_garbage_for_a_whole_answer_is_a_page(autojump_clock: MockClock) -> None:
    response = await ask(False, fault="garbage")
    assert (response.status, response.headers["content-type"]) == (200, "text/html")
    assert response.body.startswith(b"<html>")
    assert response.complete


@pytest.mark.parametrize("stream", [True, False])
async def test_bad_json_is_cut_in_half(autojump_clock: MockClock, *, stream: bool) -> None:
    response = await ask(stream, fault="bad_json", at=1)
    assert response.complete
    data = event_data(response.body)[2].encode() if stream else response.body
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(data)
    assert event_data(response.body)[-1:] == (["[DONE]"] if stream else [])


async def test_error_event_ends_the_stream(autojump_clock: MockClock) -> None:
    response = await ask(fault="error_event", at=2)
    *chunks, last = event_data(response.body)
    assert checked(chunks) == 3
    assert '"code":"demo_fault"' in last
    assert response.complete


async def test_error_object_with_status_200(autojump_clock: MockClock) -> None:
    response = await ask(False, fault="error_event")
    assert response.status == 200
    assert response.json(dict[str, dict[str, object]])["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_huge_event_has_the_size_asked_for(autojump_clock: MockClock, *, stream: bool) -> None:
    response = await ask(stream, fault="huge_event", at=1, size=100_000)
    data = event_data(response.body)[2].encode() if stream else response.body
    assert len(data) == 100_000
    if stream:
        assert checked(event_data(response.body)) == EVENTS - 1


@pytest.mark.parametrize("stream", [True, False])
async def test_silence_for_a_while(autojump_clock: MockClock, *, stream: bool) -> None:
    response = await ask(stream, fault="silence", silence_ms=30_000, at=1)
    assert response.complete
    times = [chunk.at for chunk in response.chunks]
    quiet = 2 if stream else 1
    assert times[quiet] - times[quiet - 1] == 30
    assert (times[0], times[-1]) == (0, 30)


@pytest.mark.parametrize("stream", [True, False])
async def test_silence_for_ever_ends_when_the_client_goes(autojump_clock: MockClock, *, stream: bool) -> None:
    app = provider()
    async with connect(app) as client:
        response = await client.start("POST", PATH, body(stream=stream, fault="silence", at=1))
        while not (chunk := await response.chunk()) or not chunk.data:
            pass
        with trio.move_on_after(3600) as patience:
            while await response.chunk() is not None:
                pass
        assert patience.cancelled_caught
        assert app.active == 1
        await client.aclose()
        await app.until(lambda: app.active == 0)
        assert trio.current_time() == 3600
    assert app.requests[0].outcome is Outcome.CLIENT_GONE


async def test_comments_come_before_each_event(autojump_clock: MockClock) -> None:
    response = await ask(fault="comments")
    assert response.body.count(b": ping\n\n") == EVENTS
    assert checked(event_data(response.body)) == EVENTS - 1


async def test_keepalive_comments_fill_a_silence(autojump_clock: MockClock) -> None:
    response = await ask(fault="keepalive", silence_ms=100, delay_ms=40, at=1)
    comments = [chunk.at for chunk in response.chunks if chunk.data == b": keep-alive\n\n"]
    assert comments == [0.04, 0.08]
    assert response.chunks[-1].at == pytest.approx(0.1)
    assert checked(event_data(response.body)) == EVENTS - 1


@pytest.mark.parametrize(
    ("demo", "end"),
    [({"fault": "crlf"}, b"\r\n"), ({"line_end": "crlf"}, b"\r\n"), ({"line_end": "cr"}, b"\r")],
)
async def test_line_ends(autojump_clock: MockClock, demo: dict[str, object], end: bytes) -> None:
    response = await ask(True, **demo)
    assert response.body.endswith(b"data: [DONE]" + end * 2)
    rest = response.body.replace(end, b"")
    assert b"\r" not in rest
    assert b"\n" not in rest
    assert checked(event_data(response.body)) == EVENTS - 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("split", [1, 7, 100_000])
async def test_writes_can_be_torn(autojump_clock: MockClock, split: int, *, stream: bool) -> None:
    torn = await ask(stream, split=split)
    assert torn.body == (await ask(stream)).body
    assert max(len(chunk.data) for chunk in torn.chunks) <= split
    assert torn.complete


async def test_tearing_keeps_pauses(autojump_clock: MockClock) -> None:
    assert (await ask(split=50, pace_ms=100)).chunks[-1].at == pytest.approx(0.3)


async def test_pace_is_the_time_between_content_events(autojump_clock: MockClock) -> None:
    response = await ask(pace_ms=250)
    assert [chunk.at for chunk in response.chunks] == [0, 0, 0.25, 0.5, 0.75, 0.75, 0.75]


async def test_a_reset_after_a_pause_sends_all_that_came_before(autojump_clock: MockClock) -> None:
    response = await ask(fault="reset", at=3, pace_ms=100)
    assert not response.complete
    assert [chunk.at for chunk in response.chunks] == pytest.approx([0, 0, 0.1, 0.2])


def answer_of(events: list[ServerEvent]) -> Answer:
    return stream_answer(
        events, lambda _number: ServerEvent(b"{}", "closing", "error"), Options(), World(lambda: 0.0, IdCounter(), 0.0)
    )


def test_events_with_names_say_them() -> None:
    (step,) = answer_of([ServerEvent(b"{}", "opening", "message_start")]).steps
    assert step == Write(b"event: message_start\ndata: {}\n\n")


def test_a_stream_of_no_events_has_no_body() -> None:
    assert list(answer_of([]).steps) == []


# The other protocols: the model, the path, what a request needs, and the names of a stream's events.
OTHERS: Final[dict[str, tuple[str, str, dict[str, object]]]] = {
    "messages": ("demo-claude", "/v1/messages", {"messages": HI, "max_tokens": 500}),
    "responses": ("demo-gpt", "/v1/responses", {"input": HI, "reasoning": {"effort": "none"}}),
}
VERSION = [("anthropic-version", "2023-06-01")]
TERMINATORS = {"messages": "message_stop", "responses": "response.completed"}
# What comes before the first content event, and after the last.
BEFORE = {"messages": 3, "responses": 4}
AFTER = {"messages": 3, "responses": 4}


async def ask_in(protocol: str, stream: bool = True, /, **demo: object) -> Response:
    model, path, members = OTHERS[protocol]
    app = provider()
    async with connect(app) as client:
        request = {"model": model, "stream": stream, "demo": {"events": 4} | demo, **members}
        response = await client.request("POST", path, request, VERSION)
    sound = demo.get("fault") in (None, "slow_head", "silence", "huge_event", "comments", "keepalive", "crlf")
    assert app.requests[0].outcome is (Outcome.COMPLETED if sound else Outcome.FAULTED)
    return response


def names(response: Response) -> list[str]:
    """The `event:` lines of a stream, each the type of its data."""
    lines = response.body.decode(errors="replace").splitlines()
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


protocols = pytest.mark.parametrize("protocol", OTHERS)


@protocols
async def test_every_protocol_names_its_events_and_ends_with_its_terminator(
    autojump_clock: MockClock, protocol: str
) -> None:
    response = await ask_in(protocol)
    assert response.complete
    assert names(response) == [msgspec.json.decode(data)["type"] for data in event_data(response.body)]
    assert len(names(response)) == BEFORE[protocol] + 4 + AFTER[protocol]
    assert names(response)[-1] == TERMINATORS[protocol]


@protocols
@pytest.mark.parametrize("stream", [True, False])
async def test_every_protocol_has_status(autojump_clock: MockClock, protocol: str, *, stream: bool) -> None:
    response = await ask_in(protocol, stream, fault="status", status=529, retry_after=2)
    assert (response.status, response.headers["retry-after"]) == (529, "2")
    kind = "overloaded_error" if protocol == "messages" else "server_error"
    assert f'"type":"{kind}"' in response.body.decode()
    assert (await ask_in(protocol, stream, fault="slow_head", delay_ms=1500)).headed_at == 1.5


@protocols
@pytest.mark.parametrize("fault", ["reset", "end"])
@pytest.mark.parametrize("at", [0, 2, 1000])
async def test_every_protocol_can_be_cut_short(autojump_clock: MockClock, protocol: str, fault: str, at: int) -> None:
    response = await ask_in(protocol, fault=fault, at=at)
    assert response.complete is (fault == "end")
    sent = BEFORE[protocol] + (at if at < 4 else 4 + AFTER[protocol] - (2 if protocol == "messages" else 1))
    assert len(names(response)) == sent
    assert TERMINATORS[protocol] not in names(response)


@protocols
async def test_every_protocol_can_lack_its_terminator(autojump_clock: MockClock, protocol: str) -> None:
    response = await ask_in(protocol, fault="no_done")
    assert names(response) == names(await ask_in(protocol))[:-1]
    assert response.body.endswith(b"\n\n")
    torn = await ask_in(protocol, fault="no_blank")
    assert names(torn) == names(response)
    assert torn.body.endswith(b"}\n")
    assert not torn.body.endswith(b"\n\n")


@protocols
@pytest.mark.parametrize("fault", ["error_event", "failed"])
async def test_every_protocol_has_an_error_event(autojump_clock: MockClock, protocol: str, fault: str) -> None:
    response = await ask_in(protocol, fault=fault, at=2)
    assert response.complete
    failed = "response.failed" if (protocol, fault) == ("responses", "failed") else "error"
    assert names(response)[-1] == failed
    assert len(names(response)) == BEFORE[protocol] + 3
    last = msgspec.json.decode(event_data(response.body)[-1])
    match failed, protocol:
        case "response.failed", _:
            assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "server_error")
        case _, "messages":
            assert (last["error"]["type"], last["request_id"]) == ("api_error", response.headers["request-id"])
        case _:
            assert (last["code"], last["param"], last["sequence_number"]) == ("demo_fault", None, 6)


@protocols
async def test_every_protocol_fails_whole_with_status_200(autojump_clock: MockClock, protocol: str) -> None:
    body = (await ask_in(protocol, False, fault="error_event")).json(dict[str, object])
    assert body["error"]
    assert body.get("type") == ("error" if protocol == "messages" else None)
    failed = await ask_in(protocol, False, fault="failed")
    assert failed.status == 200
    assert failed.json(dict[str, object]).get("status") == ("failed" if protocol == "responses" else None)


@protocols
async def test_every_protocol_can_be_spoilt(autojump_clock: MockClock, protocol: str) -> None:
    clean = await ask_in(protocol)
    struck = BEFORE[protocol] + 1
    garbage = await ask_in(protocol, fault="garbage")
    assert names(garbage) == names(clean)
    assert b"\xff" in garbage.chunks[struck].data
    cut = event_data((await ask_in(protocol, fault="bad_json")).body)
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(cut[struck])
    huge = event_data((await ask_in(protocol, fault="huge_event", size=5000)).body)
    assert [len(data) == 5000 for data in huge].index(True) == struck
    assert msgspec.json.decode(huge[struck])["type"] == names(clean)[struck]


@protocols
async def test_every_protocol_can_be_slow_and_odd(autojump_clock: MockClock, protocol: str) -> None:
    clean = await ask_in(protocol)
    silent = await ask_in(protocol, fault="silence", silence_ms=30_000)
    assert (silent.body, silent.chunks[-1].at - silent.headed_at) == (clean.body, 30)
    comments = await ask_in(protocol, fault="comments")
    assert comments.body.count(b": ping\n\n") == len(names(clean))
    keepalive = await ask_in(protocol, fault="keepalive", silence_ms=100, delay_ms=40)
    assert keepalive.body.replace(b": keep-alive\n\n", b"") == clean.body
    assert (await ask_in(protocol, fault="crlf")).body == clean.body.replace(b"\n", b"\r\n")
    assert (await ask_in(protocol, split=3)).body == clean.body
    paced = await ask_in(protocol, pace_ms=250)
    assert paced.chunks[-1].at - paced.headed_at == 0.75
