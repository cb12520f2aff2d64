"""What an app raises: an end of that request, in HTTP or on a WebSocket, and of nothing else."""

from contextlib import suppress
from typing import Final

import msgspec
import pytest
import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
    WebsocketAcceptEvent,
)
from structlog.testing import capture_logs
from trio.testing import MockClock

from capi_core.framing import FramingLimits
from capi_trio.asgi import ResetConnectionError, read_body, respond
from capi_trio.guarded_app import split_cancelled
from tests.support.guarded_harness import connect, context, unserved

TEXT: Final = ((b"content-type", b"text/plain"),)
GET: Final = b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n"
HANDSHAKE: Final = (
    b"GET /socket HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SECRET: Final = "sk-in-the-text-of-an-exception"


class _Error(msgspec.Struct):
    code: str


class _Envelope(msgspec.Struct):
    error: _Error


class Failing:
    """Fails with `error`, before its answer or in the middle of it; answers every other request."""

    def __init__(self, error: BaseException, *, after: str = "nothing") -> None:
        self._error = error
        self._after = after
        self._asked = 0

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        await read_body(scope, receive, limit=1000)
        self._asked += 1
        if self._asked > 1 or self._after == "all":
            await respond(send, 200, TEXT, b"well")
        elif self._after == "start":
            await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
            await send(HTTPResponseBodyEvent(type="http.response.body", body=b"half", more_body=True))
        if self._asked == 1:
            raise self._error


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (ValueError(SECRET), ["ValueError"]),
        (ExceptionGroup(SECRET, [ValueError(SECRET)]), ["ValueError"]),
        (ExceptionGroup(SECRET, [KeyError(SECRET), TypeError(SECRET)]), ["KeyError", "TypeError"]),
    ],
    ids=["alone", "group-of-one", "group"],
)
async def test_an_app_that_fails_before_its_answer_gives_a_500(
    autojump_clock: MockClock, error: Exception, kinds: list[str]
) -> None:
    """In OpenAI's shape, without the exception's text; the connection goes on."""
    with capture_logs() as logs:
        async with connect(Failing(error)) as peer:
            response = await peer.client.request("POST", "/", b"x")
            assert response.status == 500
            assert response.json(_Envelope).error.code == "internal_error"
            assert response.headers["x-request-id"] == "req_1"
            assert (await peer.client.request("GET", "/")).body == b"well"
    assert [line["event"] for line in logs] == ["app_failed"]
    assert logs[0]["errors"] == kinds
    assert SECRET not in str(logs)
    assert SECRET.encode() not in response.body


async def test_an_app_that_fails_in_its_answer_cuts_it(autojump_clock: MockClock) -> None:
    """Half an answer must not look like a whole one."""
    with capture_logs() as logs:
        async with connect(Failing(ValueError(SECRET), after="start")) as peer:
            await peer.send(GET)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert b"half" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert [line["event"] for line in logs] == ["app_failed"]
    assert SECRET not in str(logs)


async def test_an_app_that_fails_after_its_answer_leaves_it_whole(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with connect(Failing(ValueError(SECRET), after="all")) as peer:
            assert (await peer.client.request("GET", "/")).body == b"well"
            assert (await peer.client.request("GET", "/")).body == b"well"
    assert [line["event"] for line in logs] == ["app_failed"]


@pytest.mark.parametrize("after", ["nothing", "start"])
@pytest.mark.parametrize("grouped", [False, True])
async def test_an_app_may_drop_the_connection(autojump_clock: MockClock, after: str, grouped: bool) -> None:
    error = ExceptionGroup("", [ResetConnectionError()]) if grouped else ResetConnectionError()
    with capture_logs() as logs:
        async with connect(Failing(error, after=after)) as peer:
            await peer.send(GET)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert not raw.endswith(b"0\r\n\r\n")
    assert (b"half" in raw) is (after == "start")
    assert logs == []


async def test_an_app_that_returns_without_an_answer_gives_a_500(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        pass

    async with connect(app) as peer:
        await peer.send(GET)
        assert (await peer.receive()).startswith(b"HTTP/1.1 500 ")


async def test_an_exit_goes_through(autojump_clock: MockClock) -> None:
    """Only failures are dealt with here: an exit of the process is not one."""
    peer = unserved(context())
    await peer.send(GET)
    with pytest.raises(BaseExceptionGroup) as raised:
        await peer.serve(Failing(SystemExit(3)))
    assert raised.group_contains(SystemExit)


# -- on a WebSocket ------------------------------------------------------------------------------------------------


class FailingSocket:
    """Fails before or after it has accepted the handshake."""

    def __init__(self, error: Exception, *, accepts: bool) -> None:
        self._error = error
        self._accepts = accepts

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        if self._accepts:
            await send(WebsocketAcceptEvent(type="websocket.accept", subprotocol=None, headers=[]))
        raise self._error


async def test_a_socket_that_fails_before_it_opens_is_answered_with_a_500(autojump_clock: MockClock) -> None:
    app = FailingSocket(ValueError(SECRET), accepts=False)
    with capture_logs() as logs:
        async with connect(app, framing=FramingLimits(websockets=frozenset({"/socket"}))) as peer:
            await peer.send(HANDSHAKE)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert raw.startswith(b"HTTP/1.1 500 ")
    assert b"internal_error" in raw
    assert SECRET.encode() not in raw
    assert [line["event"] for line in logs] == ["app_failed"]


async def test_a_socket_that_fails_later_is_closed_with_a_reason(autojump_clock: MockClock) -> None:
    app = FailingSocket(ValueError(SECRET), accepts=True)
    with capture_logs() as logs:
        async with connect(app, framing=FramingLimits(websockets=frozenset({"/socket"}))) as peer:
            await peer.send(HANDSHAKE)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert raw.startswith(b"HTTP/1.1 101 ")
    assert raw.endswith(b"\x88\x02" + (1011).to_bytes(2, "big"))
    assert [line["event"] for line in logs] == ["app_failed"]


async def test_a_socket_may_drop_the_connection(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        app = FailingSocket(ResetConnectionError(), accepts=True)
        async with connect(app, framing=FramingLimits(websockets=frozenset({"/socket"}))) as peer:
            await peer.send(HANDSHAKE)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert b"\x88" not in raw.partition(b"\r\n\r\n")[2]
    assert logs == []


async def test_a_client_that_floods_an_app_that_does_not_listen_is_cut_off(autojump_clock: MockClock) -> None:
    """Also with messages without a word in them. One that waits to be heard is not."""
    seen: list[int] = []

    async def deaf(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        await send(WebsocketAcceptEvent(type="websocket.accept", subprotocol=None, headers=[]))
        await trio.sleep(5)
        while (message := await receive())["type"] == "websocket.receive":
            seen.append(len(message["text"] or ""))

    sockets = FramingLimits(body=1000, websockets=frozenset({"/socket"}))
    frame = b"\x81\xfe" + (900).to_bytes(2, "big") + bytes(4) + b"x" * 900
    empty = b"\x81\x80\0\0\0\0"
    for frames, kept in ((frame * 2, [900, 900]), (frame * 3, None), (empty, [0]), (empty * 40, None)):
        seen.clear()
        async with connect(deaf, framing=sockets) as peer:
            await peer.send(HANDSHAKE)
            await peer.receive()
            began = trio.current_time()
            with suppress(trio.BrokenResourceError):
                await peer.send(frames)
            if kept is None:
                await peer.over.wait()
                assert trio.current_time() - began <= 5
            else:
                await peer.send(b"\x88\x80\0\0\0\0")
                await peer.over.wait()
                assert seen == kept


def test_a_failure_is_told_from_what_must_go_on() -> None:
    failure, exit_ = ValueError(), SystemExit()
    assert split_cancelled(failure) == (None, failure)
    assert split_cancelled(exit_) == (exit_, None)
    assert split_cancelled(ExceptionGroup("", [ExceptionGroup("", [failure])])) == (None, failure)
    rest, failed = split_cancelled(BaseExceptionGroup("", [exit_, ExceptionGroup("", [failure])]))
    assert isinstance(rest, BaseExceptionGroup)
    assert rest.exceptions == (exit_,)
    assert failed is failure
    both = ExceptionGroup("", [failure, KeyError()])
    rest, failed = split_cancelled(both)
    assert rest is None
    assert isinstance(failed, ExceptionGroup)
    assert failed.exceptions == both.exceptions
