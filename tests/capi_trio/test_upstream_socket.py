"""Over WebSocket an exchange sees what it would see over HTTP, and no connection outlives its session."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import wrap_server_stream

from capi_core.aliases import Catalog, UpstreamModels
from capi_core.exchange import Exchange, Failure, Operation, Outcome, SendBody, SendRequest, Settings
from capi_core.headers import upstream_request_headers
from capi_core.protocols.kinds import Protocol
from capi_core.routing import UpstreamTraits
from capi_trio.upstream import (
    Address,
    Secret,
    UpstreamClient,
    UpstreamFailedError,
    UpstreamResponse,
    UpstreamSource,
    UpstreamTarget,
)
from capi_trio.upstream_connection import Connection
from capi_trio.upstream_socket import SocketUpstream
from tests.support.fakes import FakeUpstream, Reply
from tests.support.socket_peer import CUT, Close, Link, Peer, Script, Step, answer, event, raw, refuse, talk

KEY: Final = "sk-upstream-key"
HEADERS: Final = upstream_request_headers(stream=True, request_id="req_1")
BODY: Final = b'{"model":"m","stream":true,"input":"x"}'
ASK: Final = SendRequest("up", Operation.RESPONSES, HEADERS, BODY)
TARGET: Final = UpstreamTarget("up", "http://up.test:8080/v1", Secret(KEY), websocket=True)
SETTINGS: Final = Settings(
    Catalog(upstreams=(UpstreamModels("up"),)), {"up": UpstreamTraits(protocols=(Protocol.RESPONSES,))}
)
OVER_HTTP: Final = b"data: over HTTP\n\n"
PROTOCOLS_OWN: Final = {"connection", "upgrade", "sec-websocket-key", "sec-websocket-version"}
ACCEPT: Final = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"


@asynccontextmanager
async def session(
    *scripts: Script | Exception,
    target: UpstreamTarget = TARGET,
    http: FakeUpstream | None = None,
    max_event_bytes: int = 1000,
) -> AsyncIterator[tuple[SocketUpstream, Peer]]:
    http = http or FakeUpstream(Reply([OVER_HTTP]))
    async with (
        UpstreamClient({"up": target, "other": target}, transport=http) as client,
        Peer(*scripts).running() as peer,
        SocketUpstream(client, connect=peer.connect, max_event_bytes=max_event_bytes) as asking,
    ):
        yield asking, peer


async def ask(asking: UpstreamSource, request: SendRequest = ASK) -> tuple[int, bytes]:
    async with asking.request(request) as response:
        return response.status, await read(response)


async def read(response: UpstreamResponse) -> bytes:
    return b"".join([chunk async for chunk in response.chunks()])


def sse(*frames: Step) -> bytes:
    parts = [frame for frame in frames if isinstance(frame, str)]
    return b"".join(f"event: {json.loads(text)['type']}\ndata: {text}\n\n".encode() for text in parts)


def error(status: int, code: str, **members: object) -> str:
    return event("error", status=status, error={"type": "t", "code": code, "message": "why", **members})


# -- an answer -----------------------------------------------------------------------------------------------------


async def test_frames_come_as_the_event_stream_that_http_would_have_brought(autojump_clock: MockClock) -> None:
    async with session(talk(answer())) as (asking, peer), asking.request(ASK) as response:
        assert response.status == 200
        assert response.headers == ((b"content-type", b"text/event-stream"),)
        assert await read(response) == sse(*answer())
    assert peer.links[0].asked == [{"type": "response.create", "model": "m", "input": "x"}]


async def test_each_frame_is_passed_on_when_it_comes(autojump_clock: MockClock) -> None:
    first, second, last = answer()
    async with session(talk([first, 5.0, second, 5.0, last])) as (asking, _), asking.request(ASK) as response:
        times = [trio.current_time() async for _ in response.chunks()]
    assert times == [0, 5, 10]


async def test_the_handshake_says_who_asks_and_nothing_of_the_client(autojump_clock: MockClock) -> None:
    request = SendRequest("up", Operation.RESPONSES, (*HEADERS, (b"x-who", b"acme")), BODY)
    async with session(talk(answer())) as (asking, peer):
        await ask(asking, request)
        assert asking.secrets == (KEY.encode(), KEY.encode())
    headers = peer.links[0].headers
    assert peer.called == [Address(False, "up.test", 8080, "up.test:8080", "/v1/responses")]
    assert peer.links[0].path == "/v1/responses"
    assert sorted(headers.keys() - PROTOCOLS_OWN) == [
        "accept-encoding",
        "authorization",
        "openai-beta",
        "user-agent",
        "x-who",
    ]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-beta"] == "responses_websockets=2026-02-06"
    assert headers["user-agent"].startswith("capi/")


async def test_pings_are_answered_within_an_answer(autojump_clock: MockClock) -> None:
    ponged: list[float] = []

    async def script(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, link.stream)).accept()
            await socket.get_message()
            with trio.fail_after(1):
                await socket.ping()
            ponged.append(trio.current_time())
            for frame in answer():
                assert isinstance(frame, str)
                await socket.send_message(frame)
            nursery.cancel_scope.cancel()

    async with session(script) as (asking, _):
        assert await ask(asking) == (200, sse(*answer()))
    assert ponged == [0]


# -- what is asked over HTTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (SendRequest("up", Operation.CHAT, HEADERS, BODY), TARGET),
        (SendRequest("up", Operation.RESPONSES, HEADERS, b'{"model":"m"}'), TARGET),
        (ASK, UpstreamTarget("up", "http://up.test/v1")),
    ],
    ids=["another-operation", "no-stream", "not-offered"],
)
async def test_what_is_not_for_a_socket_goes_over_http(
    autojump_clock: MockClock, request_: SendRequest, target: UpstreamTarget
) -> None:
    http = FakeUpstream(Reply([OVER_HTTP]))
    async with session(target=target, http=http) as (asking, peer):
        assert await ask(asking, request_) == (200, OVER_HTTP)
    assert not peer.called
    assert http.asked[0].body == request_.body


@pytest.mark.parametrize("url", ["http://[::1/v1", "ftp://up.test", "up.test"])
async def test_a_url_that_is_none_fails_as_over_http(autojump_clock: MockClock, url: str) -> None:
    target = UpstreamTarget("up", url, websocket=True)
    http = FakeUpstream(httpx.UnsupportedProtocol(""))
    async with session(target=target, http=http) as (asking, _):
        with pytest.raises(UpstreamFailedError) as raised:
            await ask(asking)
    assert raised.value.failure is Failure.UNREACHABLE


async def test_an_upstream_that_is_not_configured_cannot_be_reached(autojump_clock: MockClock) -> None:
    async with session() as (asking, _):
        with pytest.raises(UpstreamFailedError, match="no longer configured"):
            await ask(asking, SendRequest("gone", Operation.RESPONSES, (), BODY))


@pytest.mark.parametrize(
    "script",
    [
        *(refuse(status, b"no") for status in (400, 403, 404, 405, 426, 501)),
        refuse(426),
        refuse(307, b"", ("location", "http://evil.test/")),
        raw(b"HTTP/1.1 404 No\r\n\r\nuntil the end", stays=0),
        raw(b"SSH-2.0-garbage\r\n\r\n"),
        raw(b"\x00\xff" * 50_000),
        raw(stays=0),
        raw(ACCEPT + b"sec-websocket-accept: wrong\r\n\r\n"),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        raw(b"HTTP/1.1 500 No\r\ncontent-length: 10000000\r\n\r\n", *[b"x" * 50_000] * 10),
    ],
)
async def test_an_upstream_that_does_not_speak_websocket_is_asked_over_http_from_then_on(
    autojump_clock: MockClock, script: Script
) -> None:
    http = FakeUpstream(Reply([OVER_HTTP]))
    async with session(script, http=http) as (asking, peer):
        for _ in range(3):
            assert await ask(asking) == (200, OVER_HTTP)
        assert len(peer.called) == 1
        assert trio.current_time() == 0
    assert [asked.body for asked in http.asked] == [BODY] * 3


@pytest.mark.parametrize("status", [401, 429, 500, 502, 503])
async def test_a_refusal_for_a_reason_is_the_answer(autojump_clock: MockClock, status: int) -> None:
    refusal = refuse(status, b'{"error":{}}', ("content-type", "application/json"), ("retry-after", "3"))
    async with session(refusal, talk(answer())) as (asking, peer):
        async with asking.request(ASK) as response:
            assert response.status == status
            assert (b"content-type", b"application/json") in response.headers
            assert (b"retry-after", b"3") in response.headers
            assert await read(response) == b'{"error":{}}'
        await trio.sleep(0.1)
        assert peer.links[0].gone_at == 0
        assert await ask(asking) == (200, sse(*answer()))  # it is not the socket's fault


async def test_a_refusal_without_a_body_has_an_empty_one(autojump_clock: MockClock) -> None:
    async with session(refuse(503)) as (asking, _):
        assert await ask(asking) == (503, b"")


# -- failures ------------------------------------------------------------------------------------------------------


async def failure(asking: SocketUpstream) -> tuple[Failure, str]:
    with pytest.raises(UpstreamFailedError) as raised:
        await ask(asking)
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return raised.value.failure, raised.value.reason


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(OSError("no"), "OSError"), (trio.BrokenResourceError(), "BrokenResourceError"), (UnicodeError(), "UnicodeError")],
)
async def test_a_connection_that_cannot_be_had_is_an_upstream_out_of_reach(
    autojump_clock: MockClock, fault: Exception, reason: str
) -> None:
    async with session(fault) as (asking, _):
        assert await failure(asking) == (Failure.UNREACHABLE, reason)


async def test_a_connection_that_takes_too_long_is_a_timeout(autojump_clock: MockClock) -> None:
    async def connect(_: Address) -> trio.abc.Stream:
        await trio.sleep(math.inf)
        raise AssertionError

    async with UpstreamClient({"up": TARGET}) as client, SocketUpstream(client, connect=connect) as asking:
        assert await failure(asking) == (Failure.TIMEOUT, "ConnectTimeout")
    assert trio.current_time() == 10


@pytest.mark.parametrize("script", [raw(), raw(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n")])
async def test_a_handshake_that_takes_too_long_is_a_timeout(autojump_clock: MockClock, script: Script) -> None:
    async with session(script) as (asking, peer):
        assert await failure(asking) == (Failure.TIMEOUT, "HandshakeTimeout")
        assert trio.current_time() == 10
    assert peer.links[0].gone_at == 10


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (b'{"type":"response.created"}', "a frame of the upstream is not text"),
        ("hello", "a frame of the upstream is not an event"),
        ('{"type":"x\\ny"}', "a frame of the upstream has a type that no event has"),
        (event("response.created", x="x" * 1000), "a frame is too big"),
        (CUT, "closed with 1006"),
        (Close(1011), "closed with 1011"),
    ],
    ids=["binary", "no-json", "no-type", "too-big", "cut", "closed"],
)
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "mid-answer"])
async def test_what_is_no_answer_breaks_it_and_its_connection(
    autojump_clock: MockClock, step: Step, reason: str, late: bool
) -> None:
    turn = [answer()[0], step] if late else [step]
    async with session(talk(turn)) as (asking, peer):
        assert await failure(asking) == (Failure.BROKEN, reason)
        await trio.sleep(1)
        assert peer.links[0].closed_at == 0
    assert len(peer.called) == 1  # it was asked; whoever asks twice pays twice


async def test_a_protocol_error_of_the_peer_breaks_the_answer(autojump_clock: MockClock) -> None:
    async def script(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, link.stream)).accept()
            await socket.get_message()
            await link.stream.send_all(b"\x83\x7f\xff")  # no such opcode
            nursery.cancel_scope.cancel()

    async with session(script) as (asking, _):
        assert (await failure(asking))[0] is Failure.BROKEN


# -- errors that the upstream tells --------------------------------------------------------------------------------


async def test_an_error_before_any_event_is_an_http_answer(autojump_clock: MockClock) -> None:
    frame = error(429, "rate_limit_exceeded", headers={"Retry-After": "7", "x-account": "acme"}, param="p")
    async with session(talk([frame]), talk(answer())) as (asking, peer):
        async with asking.request(ASK) as response:
            assert response.status == 429
            assert response.headers == ((b"content-type", b"application/json"), (b"retry-after", b"7"))
            told = {"code": "rate_limit_exceeded", "message": "why", "param": "p", "type": "rate_limit_error"}
            assert json.loads(await read(response)) == {"error": told}
        assert await ask(asking) == (200, sse(*answer()))
    assert len(peer.links) == 2


async def test_an_error_after_events_is_an_event_and_ends_the_answer(autojump_clock: MockClock) -> None:
    first = answer()[0]
    async with session(talk([first, error(500, "server_error"), *answer()])) as (asking, peer):
        status, body = await ask(asking)
        assert status == 200
        flat = event("error", code="server_error", message="why", param=None).replace(": ", ":").replace(", ", ",")
        assert body == sse(first) + f"event: error\ndata: {flat}\n\n".encode()
        await trio.sleep(1)
        assert peer.links[0].gone_at is not None


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
async def test_a_connection_whose_time_is_up_is_replaced_once(autojump_clock: MockClock, used: bool) -> None:
    limit = error(400, "websocket_connection_limit_reached")
    before = [answer()] if used else []
    async with session(talk(*before, [limit]), talk([limit]), talk(answer())) as (asking, peer):
        for _ in before:
            await ask(asking)
        status, body = await ask(asking)
        assert status == 400
        assert json.loads(body)["error"]["code"] == "websocket_connection_limit_reached"
        assert await ask(asking) == (200, sse(*answer()))
    assert len(peer.links) == 3


# -- one connection, many requests ---------------------------------------------------------------------------------


async def test_requests_of_a_session_share_a_connection(autojump_clock: MockClock) -> None:
    async with session(talk(answer("a"), answer("b"), answer("c"), between=[0.5])) as (asking, peer):
        for text in "abc":
            assert await ask(asking) == (200, sse(*answer(text)))
            await trio.sleep(1000)  # pinged before it is used again
    assert len(peer.links) == 1
    assert len(peer.links[0].asked) == 3


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
async def test_an_answer_that_ended_leaves_its_connection_to_the_next(autojump_clock: MockClock, kind: str) -> None:
    async with session(talk([event(kind)], answer())) as (asking, peer):
        assert await ask(asking) == (200, sse(event(kind)))
        assert await ask(asking) == (200, sse(*answer()))
    assert len(peer.links) == 1


async def test_requests_at_the_same_time_have_a_connection_each(autojump_clock: MockClock) -> None:
    slow: list[Step] = [1.0, *answer()]
    async with session(talk(slow, answer()), talk(slow, answer())) as (asking, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, asking)
            nursery.start_soon(ask, asking)
        assert len(peer.links) == 2
        await ask(asking)  # one of them was kept
        assert sum(link.gone_at is not None for link in peer.links) <= 1
    assert sorted(len(link.asked) for link in peer.links) == [1, 2]


@pytest.mark.parametrize("end", [Close(), CUT, event("late")], ids=["closed", "cut", "a-frame-nobody-asked-for"])
async def test_a_connection_that_ended_while_idle_is_replaced(autojump_clock: MockClock, end: Step) -> None:
    async with session(talk(answer(), between=[1.0, end]), talk(answer("b"))) as (asking, peer):
        await ask(asking)
        await trio.sleep(2)
        assert peer.links[0].closed_at == 1  # it is not kept open until somebody asks
        assert await ask(asking) == (200, sse(*answer("b")))
    assert len(peer.links) == 2


async def test_a_frame_that_nobody_asked_for_is_no_part_of_the_next_answer(autojump_clock: MockClock) -> None:
    """Even when it comes together with the end of the answer before."""
    async with session(talk(answer(), between=[event("late")]), talk(answer("b"))) as (asking, _):
        await ask(asking)
        await wait_all_tasks_blocked()
        assert await ask(asking) == (200, sse(*answer("b")))


@pytest.mark.parametrize("end", [Close(), CUT], ids=["closed", "cut"])
async def test_a_used_connection_that_takes_a_request_and_ends_is_not_asked_again(
    autojump_clock: MockClock, end: Step
) -> None:
    """It may have begun to answer, and would bill the answer twice."""
    async with session(talk(answer(), [end]), talk(answer("b"))) as (asking, peer):
        await ask(asking)
        assert (await failure(asking))[0] is Failure.BROKEN
        assert len(peer.links) == 1
        assert await ask(asking) == (200, sse(*answer("b")))
    assert [len(link.asked) for link in peer.links] == [2, 1]


async def test_a_request_that_a_used_connection_never_took_is_asked_on_another(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ended between the look at it and the sending."""

    async def lives(_: Connection) -> bool:
        return True

    monkeypatch.setattr(Connection, "lives", lives)
    async with session(talk(answer(), between=[1.0, CUT]), talk(answer("b"))) as (asking, peer):
        await ask(asking)
        await trio.sleep(2)
        assert await ask(asking) == (200, sse(*answer("b")))
    assert [len(link.asked) for link in peer.links] == [1, 1]


async def test_a_used_connection_that_ends_within_its_answer_is_not_asked_again(autojump_clock: MockClock) -> None:
    async with session(talk(answer(), [answer()[0], CUT])) as (asking, peer):
        await ask(asking)
        assert (await failure(asking))[0] is Failure.BROKEN
    assert len(peer.called) == 1


async def test_a_connection_is_not_used_when_its_hour_is_nearly_over(autojump_clock: MockClock) -> None:
    async with session(talk(answer(), answer()), talk(answer())) as (asking, peer):
        await ask(asking)
        await trio.sleep(55 * 60 - 1)
        await ask(asking)
        assert len(peer.links) == 1
        await trio.sleep(1)
        await ask(asking)
        assert len(peer.links) == 2
        assert [link.gone_at is None for link in peer.links] == [False, True]


async def test_a_peer_that_is_silent_after_a_long_idle_time_is_not_asked(autojump_clock: MockClock) -> None:
    """What is between may have forgotten the connection without a word to either end."""

    async with session(script_without_a_reader(), talk(answer("b"))) as (asking, peer):
        await ask(asking)
        await trio.sleep(31)
        assert await ask(asking) == (200, sse(*answer("b")))
        assert trio.current_time() == 36
    assert len(peer.links) == 2


def script_without_a_reader() -> Script:
    """Answers once, then reads no more, as if it had vanished."""

    async def script(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, link.stream)).accept()
            await socket.get_message()
            for frame in answer():
                assert isinstance(frame, str)
                await socket.send_message(frame)
            nursery.cancel_scope.cancel()
        await trio.sleep(37)

    return script


async def test_another_key_or_another_asker_needs_another_connection(autojump_clock: MockClock) -> None:
    async with session(talk(answer()), talk(answer()), talk(answer())) as (asking, peer):
        await ask(asking)
        await ask(asking, SendRequest("up", Operation.RESPONSES, (*HEADERS, (b"x-who", b"acme")), BODY))
        other = upstream_request_headers(stream=True, request_id="req_2")
        await ask(asking, SendRequest("up", Operation.RESPONSES, (*other, (b"x-who", b"beta")), BODY))
        await trio.sleep(1)
        assert [link.gone_at is None for link in peer.links] == [False, False, True]


async def test_a_changed_target_needs_another_connection(autojump_clock: MockClock) -> None:
    renewed = UpstreamTarget("up", TARGET.base_url, Secret("renewed"), websocket=True)
    async with (
        UpstreamClient({"up": TARGET}) as client,
        Peer(talk(answer()), talk(answer())).running() as peer,
        SocketUpstream(client, connect=peer.connect) as asking,
    ):
        await ask(asking)
        client.set_targets({"up": renewed})
        await ask(asking)
    assert peer.links[1].headers["authorization"] == "Bearer renewed"


# -- nothing is left behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [talk([math.inf]), talk([answer()[0], math.inf]), talk([*answer()[:2]] * 100, [math.inf])],
    ids=["before-a-frame", "mid-answer", "flooded"],
)
async def test_cancellation_closes_the_connection(autojump_clock: MockClock, script: Script) -> None:
    async with session(script) as (asking, peer):
        with trio.move_on_after(5) as limit:
            await ask(asking)
        assert limit.cancelled_caught
        assert trio.current_time() == 5
        await trio.sleep(0.1)
        assert (peer.links[0].code, peer.links[0].closed_at) == (1000, 5)
        assert peer.links[0].gone_at == 5


async def test_leaving_early_closes_the_connection(autojump_clock: MockClock) -> None:
    async with session(talk(answer() * 50), talk(answer("b"))) as (asking, peer):
        async with asking.request(ASK) as response:
            async for _ in response.chunks():
                break
        await trio.sleep(0.1)
        assert peer.links[0].gone_at == 0
        assert await ask(asking) == (200, sse(*answer("b")))


async def test_what_the_caller_raises_is_not_the_upstreams_failure(autojump_clock: MockClock) -> None:
    async with session(talk([answer()[0], math.inf])) as (asking, peer):
        with pytest.raises(ZeroDivisionError):
            async with asking.request(ASK):
                raise ZeroDivisionError
        await trio.sleep(0.1)
        assert peer.links[0].gone_at == 0


@pytest.mark.parametrize("mid_answer", [False, True], ids=["idle", "mid-answer"])
async def test_a_peer_that_never_answers_the_close_is_left_within_a_second(
    autojump_clock: MockClock, mid_answer: bool
) -> None:
    gone: list[float] = []

    async def script(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, link.stream)).accept()
            await socket.get_message()
            for frame in answer()[: 1 if mid_answer else 3]:
                assert isinstance(frame, str)
                await socket.send_message(frame)
            nursery.cancel_scope.cancel()
        while await link.stream.receive_some():
            pass
        gone.append(trio.current_time())

    async with session(script) as (asking, _):
        with trio.move_on_after(5):
            await ask(asking)
        at = trio.current_time()
    assert at == (5 if mid_answer else 0)  # nobody waits for the close but the session's end
    assert gone == [at + 1]


async def test_a_session_that_ends_says_goodbye(autojump_clock: MockClock) -> None:
    async with session(talk(answer())) as (asking, peer):
        await ask(asking)
    assert peer.links[0].code == 1000
    assert trio.current_time() < 0.1


@pytest.mark.parametrize("turn", [answer(), [answer()[0], math.inf], [math.inf]], ids=["idle", "mid-answer", "waiting"])
async def test_a_session_that_is_cancelled_says_goodbye(autojump_clock: MockClock, turn: list[Step]) -> None:
    async with UpstreamClient({"up": TARGET}) as client, Peer(talk(turn)).running() as peer:
        with trio.move_on_after(5) as limit:
            async with SocketUpstream(client, connect=peer.connect) as asking:
                await ask(asking)
                await trio.sleep(math.inf)
        assert limit.cancelled_caught
        await trio.sleep(0.1)
        assert (peer.links[0].code, peer.links[0].closed_at) == (1000, 5)


@pytest.mark.parametrize("script", [raw(), raw(b"HTTP/1.1 101 Sw")], ids=["silent", "half"])
async def test_cancellation_within_the_handshake_leaves_nothing(autojump_clock: MockClock, script: Script) -> None:
    async with session(script) as (asking, peer):
        with trio.move_on_after(5) as limit:
            await ask(asking)
        assert limit.cancelled_caught
        await trio.sleep(0.1)
        assert peer.links[0].gone_at == 5


async def test_what_the_session_raises_is_not_wrapped(autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with UpstreamClient({"up": TARGET}) as client, SocketUpstream(client):
            raise ZeroDivisionError


async def test_outside_of_its_session_nothing_is_opened(autojump_clock: MockClock) -> None:
    async with UpstreamClient({"up": TARGET}) as client:
        asking = SocketUpstream(client)
        with pytest.raises(RuntimeError, match="only inside"):
            await ask(asking)
        await asking.__aexit__(None, None, None)


async def test_an_answer_that_outlives_its_session_is_broken(autojump_clock: MockClock) -> None:
    async def outlive(asking: SocketUpstream, *, task_status: trio.TaskStatus[None]) -> None:
        async with asking.request(ASK) as response:
            task_status.started()
            with pytest.raises(UpstreamFailedError):
                await read(response)

    async with trio.open_nursery() as nursery, session(talk([answer()[0], math.inf])) as (asking, _):
        await nursery.start(outlive, asking)


async def test_no_secret_is_shown(autojump_clock: MockClock) -> None:
    async with session(talk(answer())) as (asking, _), asking.request(ASK) as response:
        for shown in (repr(asking), repr(response), repr(vars(asking)), repr(ASK)):
            assert KEY not in shown
            assert "acme" not in shown
        await read(response)


# -- what an exchange makes of it ----------------------------------------------------------------------------------


async def exchanged(asking: SocketUpstream) -> tuple[Exchange, bytes]:
    exchange = Exchange(Operation.RESPONSES, SETTINGS, request_id="req_1")
    (request,) = exchange.receive_request(b'{"model":"m","stream":true,"input":"x"}')
    assert isinstance(request, SendRequest)
    async with asking.request(request) as response:
        commands = exchange.receive_head(response.status, response.headers)
        async for chunk in response.chunks():
            commands += exchange.receive_data(chunk)
        commands += exchange.receive_eof()
    return exchange, b"".join(command.data for command in commands if isinstance(command, SendBody))


async def test_an_exchange_over_a_socket_ends_as_one_over_http(autojump_clock: MockClock) -> None:
    done = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": []}
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    turn: list[Step] = [
        event("response.created", sequence_number=0, response={**done, "status": "in_progress"}),
        event("response.completed", sequence_number=1, response={**done, "usage": usage}),
    ]
    async with session(talk(turn)) as (asking, _):
        exchange, body = await exchanged(asking)
    assert b"event: response.completed" in body
    record = exchange.record()
    assert (record.outcome, record.status) == (Outcome.OK, 200)
    assert record.usage is not None
    assert (record.usage.uncached_input, record.usage.output) == (3, 2)


async def test_an_exchange_over_a_socket_fails_as_one_over_http(autojump_clock: MockClock) -> None:
    async with session(talk([error(429, "rate_limit_exceeded")])) as (asking, _):
        exchange, body = await exchanged(asking)
    assert exchange.record().status == 429
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
