"""The guard around hypercorn's connection server: framing, waits, stalls, disconnects, and what an app raises.

Each test drives `serve_connection` over a memory stream; times are virtual.
"""

import math
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NoReturn

import h11
import msgspec
import pytest
import trio
import trio.testing
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
)
from structlog.testing import capture_logs
from trio.testing import MockClock
from typing_extensions import override

from capi_core.framing import FramingLimits
from capi_trio import connection
from capi_trio.asgi import BodyTooLargeError, ClientGoneError, read_body, respond
from capi_trio.connection import ConnectionTimeouts, GuardedStream, serve_connection
from tests.support.framing_cases import CASES, FramingCase
from tests.support.guarded_harness import Addresses, Guarded, Wire, connect, context, serve

TEXT: Final = ((b"content-type", b"text/plain"),)
GET: Final = b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n"
SECRET: Final = "sk-in-the-text-of-an-exception"


def post(length: int, *fields: bytes) -> bytes:
    """The head of a request whose body has `length` bytes."""
    return b"\r\n".join([b"POST /v1/x HTTP/1.1", b"host: h", b"content-length: %d" % length, *fields, b"", b""])


class App:
    """Reads the body, does `work`, answers with the path and the body. Notes what it saw, and when a client left."""

    def __init__(self, work: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint, *, limit: int = 10**8) -> None:
        self.paths: list[str] = []
        self.gone_at: list[float] = []
        self.running = self.most_running = 0
        self._work = work
        self._limit = limit

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        self.paths.append(scope["path"])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            body = await read_body(scope, receive, limit=self._limit)
            await self._work()
            await respond(send, 200, TEXT, scope["raw_path"] + b" " + body)
        except BodyTooLargeError:
            await respond(send, 413, TEXT, b"too large")
        except ClientGoneError:
            self.gone_at.append(trio.current_time())
        finally:
            self.running -= 1


class Waiting:
    """Takes a request, starts an answer if asked to, and waits until its client has left."""

    def __init__(self, *, start: bool = False) -> None:
        self.waiting = trio.Event()
        self.gone_at: float | None = None
        self._start = start

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        await read_body(scope, receive, limit=100)
        if self._start:
            await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
            await send(HTTPResponseBodyEvent(type="http.response.body", body=b"one", more_body=True))
        self.waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        self.gone_at = trio.current_time()


class _Error(msgspec.Struct):
    code: str
    message: str
    type: str


class _Envelope(msgspec.Struct):
    error: _Error


def last_answer(raw: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the last of the answers in `raw`; its head must be the one that h11 reads."""
    start = [match.start() for match in re.finditer(rb"HTTP/1\.1 [2-5]\d\d ", raw)][-1]
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    client.receive_data(raw[start:])
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return response.status_code, dict(response.headers), body


def assert_refusal(raw: bytes, status: int, code: str) -> None:
    """The last answer is an error in OpenAI's shape that also ends the connection."""
    got, headers, body = last_answer(raw)
    error = msgspec.json.decode(body, type=_Envelope).error
    assert (got, error.code) == (status, code)
    assert error.message
    assert error.type
    assert headers[b"connection"] == b"close"
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"].startswith(b"req_")


# -- a good client --------------------------------------------------------------------------------------------------


async def test_a_connection_serves_one_request_after_the_other(autojump_clock: MockClock) -> None:
    app = App()
    async with connect(app) as peer:
        for number in range(4):
            response = await peer.client.request("POST", f"/{number}", b"body")
            assert (response.status, response.body) == (200, b"/%d body" % number)
        await peer.send(post(0, b"transfer-encoding: chunked").replace(b"content-length: 0\r\n", b""))
        await peer.send(b"3\r\none\r\n3;x=y\r\ntwo\r\n0\r\n\r\n")
        assert (await peer.receive()).startswith(b"HTTP/1.1 200")
    assert app.paths == ["/0", "/1", "/2", "/3", "/v1/x"]


async def test_nothing_is_said_about_the_server(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        response = await peer.client.request("GET", "/")
    assert sorted(response.headers) == ["content-length", "content-type", "date"]


async def test_a_pipelined_request_is_answered_after_the_one_before_it(autojump_clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(5)

    app = App(work)
    async with connect(app) as peer:
        await peer.send(GET + post(4) + b"body" + GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        raw = await peer.read_to_end()
        assert trio.current_time() == pytest.approx(15, abs=0.1)
    assert app.paths == ["/v1/models", "/v1/x", "/v1/models"]
    assert app.most_running == 1
    assert raw.count(b"HTTP/1.1 200") == 3
    assert raw.index(b"/v1/models ") < raw.index(b"/v1/x body") < raw.rindex(b"/v1/models ")


async def test_a_client_that_waits_long_for_its_answer_is_not_cut(autojump_clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(3000)

    async with connect(App(work)) as peer:
        assert (await peer.client.request("POST", "/", b"patience")).body == b"/ patience"


async def test_head_has_no_body_and_leaves_the_connection_usable(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        head = await peer.client.request("HEAD", "/x")
        assert (head.status, head.headers["content-length"], head.body) == (200, "3", b"")
        assert (await peer.client.request("GET", "/y")).body == b"/y "


# -- strict framing ------------------------------------------------------------------------------------------------


REFUSED: Final = [case for case in CASES if case.status and case.code != "pipeline_too_long"]
"""All but what may break in the middle of an answer: see the tests below."""


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_is_framed_wrongly_is_refused_before_any_routing(
    autojump_clock: MockClock, case: FramingCase
) -> None:
    """And the connection ends, so that nothing behind it is ever taken for a request."""
    app = App()
    async with connect(app) as peer:
        await peer.send(case.data)
        raw = await peer.read_to_end()
        await peer.over.wait()
        assert trio.current_time() < 3
    assert case.status is not None
    assert case.code is not None
    assert_refusal(raw, case.status, case.code)
    # An app may have begun on a request whose body broke off; it never answers it.
    assert len(re.findall(rb"HTTP/1\.1 [45]\d\d ", raw)) == 1


async def test_a_refusal_is_logged_by_its_code_only(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with connect(App()) as peer:
            await peer.send(b"GET http://sk-secret@h/ HTTP/1.1\r\nhost: h\r\n\r\n")
            await peer.read_to_end()
    assert [(line["event"], line["code"], line["status"]) for line in logs] == [
        ("request_refused", "invalid_target", 400)
    ]
    assert "secret" not in str(logs)


async def test_bytes_behind_a_refusal_do_not_reset_it_away(autojump_clock: MockClock) -> None:
    """The client is still sending when it is refused: what it sends is taken for a moment."""
    async with connect(App()) as peer:
        await peer.send(b"BAD\r\n")
        for _ in range(8):
            await trio.sleep(0.1)
            await peer.send(b"x" * 1000)  # would raise had the server closed
        assert_refusal(await peer.read_to_end(), 400, "invalid_request_line")
        await peer.over.wait()
        assert trio.current_time() == pytest.approx(1, abs=0.1)


async def test_a_refused_client_that_floods_is_not_listened_to_for_long(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        await peer.send(b"BAD\r\n")
        await peer.send(b"x" * (8 * 1024 * 1024))
        await peer.over.wait()
        assert trio.current_time() == pytest.approx(0)


async def test_a_refused_client_that_has_left_is_no_fault(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with connect(App()) as peer:
            await peer.send(b"BAD\r\n")
            await peer.end.aclose()
            await peer.over.wait()
    assert [line["event"] for line in logs] == ["request_refused"]


@pytest.mark.parametrize(
    "upgrade",
    [
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n",
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAA\r\n",
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    ],
    ids=["websocket", "h2c-bad", "h2c-good"],
)
async def test_an_upgrade_is_declined_and_a_byte_behind_it_is_harmless(
    autojump_clock: MockClock, upgrade: bytes
) -> None:
    """Each of these packets ends a stock hypercorn process."""
    app = App()
    with capture_logs() as logs:
        async with connect(app) as peer:
            await peer.send(b"GET /up HTTP/1.1\r\nhost: h\r\n" + upgrade + b"\r\nX")
            raw = await peer.read_to_end()
    assert raw.startswith(b"HTTP/1.1 200")
    assert app.paths == ["/up"]
    assert [line.get("code") for line in logs] == ["slow_head"]  # of the byte behind it, 10 s later


async def test_http2_by_prior_knowledge_is_refused(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        await peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert_refusal(await peer.read_to_end(), 505, "unsupported_version")


async def test_a_broken_rule_in_the_middle_of_an_answer_cuts_it(autojump_clock: MockClock) -> None:
    """A refusal written into an answer would be read as part of it."""
    app = Waiting(start=True)
    async with connect(app, framing=FramingLimits(held=10)) as peer:
        await peer.send(GET)
        await app.waiting.wait()
        await peer.send(b"x" * 11)
        raw = await peer.read_to_end()
        await peer.over.wait()
    assert app.gone_at == pytest.approx(1)
    assert raw.count(b"HTTP/1.1") == 1
    assert b"pipeline_too_long" not in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_a_broken_rule_before_an_answer_is_the_answer(autojump_clock: MockClock) -> None:
    """What the app sends after that goes nowhere, and is no fault."""

    async def work() -> None:
        await trio.sleep(5)

    app = App(work)
    with capture_logs() as logs:
        async with connect(app, framing=FramingLimits(held=10)) as peer:
            await peer.send(GET + b"x" * 11)
            await trio.sleep(0.5)
            raw = await peer.read_to_end()
            await peer.over.wait()
    assert_refusal(raw, 400, "pipeline_too_long")
    assert raw.count(b"HTTP/1.1") == 1
    assert [line["event"] for line in logs] == ["request_refused"]


# -- a client that leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("behind", [b"", b"G", GET], ids=["alone", "one-byte-behind", "request-behind"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
async def test_a_client_that_leaves_is_seen_at_once(
    autojump_clock: MockClock, started: bool, behind: bytes, half: bool
) -> None:
    """With stock hypercorn one pipelined byte hides it for as long as the answer takes."""
    app = Waiting(start=started)
    async with connect(app) as peer:
        await peer.send(GET + behind)
        await app.waiting.wait()
        await trio.sleep(20)
        await (peer.end.send_eof() if half else peer.end.aclose())
        await peer.over.wait()
    assert app.gone_at == pytest.approx(20)


async def test_bytes_that_come_one_by_one_behind_a_request_do_not_hide_it_either(autojump_clock: MockClock) -> None:
    app = Waiting()
    async with connect(app) as peer:
        await peer.send(GET)
        await app.waiting.wait()
        for byte in b"GET /":
            await peer.send(bytes([byte]))
            await trio.sleep(1)
        await peer.end.aclose()
        await peer.over.wait()
    assert app.gone_at == pytest.approx(5)


async def test_a_client_that_leaves_in_its_body_is_seen_at_once(autojump_clock: MockClock) -> None:
    app = App()
    async with connect(app) as peer:
        await peer.send(post(10) + b"half")
        await trio.sleep(2)
        await peer.end.aclose()
        await peer.over.wait()
    assert app.gone_at == [pytest.approx(2)]


# -- a client that is slow -----------------------------------------------------------------------------------------


async def drip(peer: Guarded, data: bytes) -> None:
    """Sends a byte each half second, until the server has closed."""
    with suppress(trio.BrokenResourceError):
        for byte in data:
            await peer.send(bytes([byte]))
            await trio.sleep(0.5)
        pytest.fail("the server took all of it")


async def test_a_head_that_drips_is_refused_in_time(autojump_clock: MockClock) -> None:
    async with connect(App(), timeouts=ConnectionTimeouts(head=10)) as peer:
        await trio.sleep(50)  # idle first: another limit
        await drip(peer, GET * 10)
        assert trio.current_time() == pytest.approx(61, abs=1)
        assert_refusal(await peer.read_to_end(), 408, "slow_head")


async def test_a_body_that_drips_is_refused_in_time(autojump_clock: MockClock) -> None:
    """One byte per half second passes every limit that is per read."""
    app = App()
    async with connect(app, timeouts=ConnectionTimeouts(body=30, min_body_rate=4096)) as peer:
        await peer.send(post(1000))
        await drip(peer, b"x" * 1000)
        assert trio.current_time() == pytest.approx(31, abs=1.1)
        assert_refusal(await peer.read_to_end(), 408, "slow_body")
    assert app.gone_at == [pytest.approx(31, abs=1.1)]


async def test_a_large_body_that_comes_steadily_may_take_its_time(autojump_clock: MockClock) -> None:
    async with connect(App(), timeouts=ConnectionTimeouts(body=30, min_body_rate=4096)) as peer:
        await peer.send(post(200 * 5000))
        for _ in range(200):
            await peer.send(b"x" * 5000)
            await trio.sleep(1)
        assert trio.current_time() == pytest.approx(200)
        assert (await peer.receive()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("requests", [0, 1, 3])
async def test_an_idle_connection_is_closed_without_a_word(autojump_clock: MockClock, requests: int) -> None:
    async with connect(App(), timeouts=ConnectionTimeouts(idle=75)) as peer:
        for _ in range(requests):
            await trio.sleep(60)
            assert (await peer.client.request("GET", "/")).status == 200
        assert await peer.read_to_end() == b""
        assert trio.current_time() == pytest.approx(60 * requests + 75)


async def test_empty_lines_do_not_keep_a_connection(autojump_clock: MockClock) -> None:
    async with connect(App(), timeouts=ConnectionTimeouts(idle=75)) as peer:
        await trio.sleep(70)
        await peer.send(b"\r\n")
        assert await peer.read_to_end() == b""
        assert trio.current_time() == pytest.approx(75)


async def test_a_client_that_takes_nothing_is_dropped(autojump_clock: MockClock) -> None:
    """Whatever the app has on its way to it: the app is told, and the connection is over."""
    app = Waiting(start=True)
    with capture_logs() as logs:
        async with connect(app, timeouts=ConnectionTimeouts(write_stall=30)) as peer:
            peer.wire.delay = math.inf
            await peer.send(GET)
            await peer.over.wait()
            assert trio.current_time() == pytest.approx(30)
    assert app.gone_at == pytest.approx(30)
    assert [(line["event"], line["after_s"]) for line in logs] == [("client_stalled", 30)]


async def test_a_client_that_takes_little_by_little_gets_everything(autojump_clock: MockClock) -> None:
    """The limit is for a piece, not for an answer."""
    body = b"x" * 200_000
    async with connect(App(), timeouts=ConnectionTimeouts(write_stall=30)) as peer:
        await peer.send(post(len(body)) + body)
        peer.wire.delay = 29
        raw = await peer.receive()
        while len(raw) < len(body):
            raw += await peer.receive()
        assert trio.current_time() > 300
        assert max(peer.wire.pieces) <= 16 * 1024
        assert raw.endswith(body)


async def test_cancellation_does_not_tear_a_message_in_two(autojump_clock: MockClock) -> None:
    """What is being sent is sent whole, within the write-stall time, even while the server stops."""
    done = trio.Event()

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
        with trio.move_on_after(1):
            await send(HTTPResponseBodyEvent(type="http.response.body", body=b"a" * 40_000, more_body=True))
        await send(HTTPResponseBodyEvent(type="http.response.body", body=b"b", more_body=False))
        done.set()

    async with connect(app) as peer:
        peer.wire.delay = 2
        await peer.send(GET)
        await done.wait()
        _, _, body = last_answer(await peer.receive())
    assert body == b"a" * 40_000 + b"b"


async def test_an_app_that_does_nothing_but_send_does_not_stop_all_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel takes at once is sent without a turn of the scheduler; but not for ever."""
    taken = 0
    turns: list[int] = []

    def take_all(stream: object, data: bytes) -> int:
        nonlocal taken
        taken += len(data)
        return len(data)

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send(HTTPResponseStartEvent(type="http.response.start", status=200, headers=[]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(1000):
                await send(HTTPResponseBodyEvent(type="http.response.body", body=b"x" * 1000, more_body=True))
            nursery.cancel_scope.cancel()

    async def count() -> None:
        while True:
            turns.append(taken)
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(connection, "send_now", take_all)
    async with connect(app) as peer:
        await peer.send(GET)
        await peer.over.wait()
    assert taken > 1_000_000
    assert 10 <= len(turns) <= 20  # one for each 64 KiB: none for each event


# -- bodies that nobody reads --------------------------------------------------------------------------------------


async def test_an_answer_before_the_body_was_read_does_not_hang(autojump_clock: MockClock) -> None:
    """hypercorn queues ten pieces of a body; an app that reads none of them could never end its answer."""
    took: list[float] = []

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await trio.sleep(1)
        await respond(send, 401, TEXT, b"who are you?")
        took.append(trio.current_time())

    async with connect(app) as peer:
        await peer.send(post(4_000_000))
        await peer.send(b"x" * 3_000_000)
        raw = await peer.read_to_end()
        await peer.over.wait()
        assert trio.current_time() < 5
    assert last_answer(raw)[0] == 401
    assert took == [pytest.approx(1)]


async def test_an_app_that_fails_before_the_body_was_read_does_not_hang(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> NoReturn:
        await trio.sleep(1)
        raise ValueError(SECRET)

    async with connect(app) as peer:
        await peer.send(post(4_000_000))
        await peer.send(b"x" * 3_000_000)
        assert last_answer(await peer.read_to_end())[0] == 500


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_answered_and_the_connection_lingers(
    autojump_clock: MockClock, chunked: bool
) -> None:
    """The client is still sending: closing on what it sends would reset the answer away."""
    app = App(limit=1000)
    async with connect(app, framing=FramingLimits(body=1000)) as peer:
        if chunked:
            await peer.send(b"POST /v1/x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
            await peer.send(b"1000\r\n" + b"x" * 4096)
        else:
            await peer.send(post(4096))
        for _ in range(8):
            await trio.sleep(0.1)
            await peer.send(b"x" * 500)
        assert last_answer(await peer.read_to_end())[0] == 413
        await peer.over.wait()
        assert trio.current_time() == pytest.approx(1, abs=0.2)


async def test_a_client_that_stops_after_its_413_is_let_go_at_once(autojump_clock: MockClock) -> None:
    async with connect(App(limit=10), framing=FramingLimits(body=10)) as peer:
        await peer.send(post(11))
        while not (await peer.receive()).endswith(b"too large"):
            pass
        await peer.end.aclose()
        await peer.over.wait()
        assert trio.current_time() == pytest.approx(0)


# -- Expect: 100-continue ------------------------------------------------------------------------------------------


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_once(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        for _ in range(2):  # each request anew
            await peer.send(post(8, b"expect: 100-continue"))
            assert await peer.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await peer.send(b"half")
            await trio.sleep(1)
            await peer.send(b"half")
            raw = b""
            while not raw.endswith(b"halfhalf"):
                raw += await peer.receive()
            assert b"100 Continue" not in raw
            assert last_answer(raw)[::2] == (200, b"/v1/x halfhalf")


async def test_a_body_that_has_come_needs_no_asking(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        await peer.send(post(4, b"expect: 100-continue") + b"body")
        assert (await peer.receive()).startswith(b"HTTP/1.1 200")


async def test_a_body_that_is_too_large_is_not_asked_for(autojump_clock: MockClock) -> None:
    async with connect(App(limit=10), framing=FramingLimits(body=10)) as peer:
        await peer.send(post(11, b"expect: 100-continue"))
        raw = await peer.read_to_end()
    assert raw.count(b"HTTP/1.1") == 1
    assert last_answer(raw)[0] == 413


async def test_a_client_that_leaves_instead_of_being_asked_is_no_fault(autojump_clock: MockClock) -> None:
    app = App()
    with capture_logs() as logs:
        async with connect(app) as peer:
            await peer.send(post(4, b"expect: 100-continue"))
            await peer.end.aclose()
            await peer.over.wait()
    assert logs == []


async def test_a_client_that_takes_nothing_is_not_asked_for_ever(autojump_clock: MockClock) -> None:
    async with connect(App(), timeouts=ConnectionTimeouts(write_stall=30)) as peer:
        peer.wire.delay = math.inf
        await peer.send(post(4, b"expect: 100-continue"))
        with trio.fail_after(60):
            await peer.over.wait()


# -- the end -------------------------------------------------------------------------------------------------------


async def test_without_keep_alive_a_connection_ends_with_its_answer(autojump_clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(5)

    app = App(work)
    async with connect(app) as peer:
        await peer.send(GET + GET)
        await trio.sleep(1)
        await peer.context.stop_keep_alive()
        peer.stream.close_if_idle()  # it is not: nothing happens
        assert not peer.stream.idle
        raw = await peer.read_to_end()
        assert trio.current_time() == pytest.approx(5)
        await peer.over.wait()
    assert last_answer(raw)[::2] == (200, b"/v1/models ")
    assert app.paths == ["/v1/models"]


@pytest.mark.parametrize("requests", [0, 1])
async def test_an_idle_connection_can_be_closed(autojump_clock: MockClock, requests: int) -> None:
    async with connect(App()) as peer:
        for _ in range(requests):
            await peer.client.request("GET", "/")
        await trio.sleep(1)
        assert peer.stream.idle
        peer.stream.close_if_idle()
        assert await peer.read_to_end() == b""
        assert trio.current_time() == pytest.approx(1)


async def test_a_connection_that_comes_too_late_is_closed_at_once(autojump_clock: MockClock) -> None:
    shared = context()
    await shared.stop_keep_alive()
    async with trio.open_nursery() as nursery:
        peer = serve(nursery, App(), shared)
        assert await peer.read_to_end() == b""
    assert trio.current_time() == pytest.approx(0)


async def test_a_request_half_sent_is_still_taken_while_connections_end(autojump_clock: MockClock) -> None:
    async with connect(App()) as peer:
        await peer.send(GET[:10])
        await trio.sleep(1)
        await peer.context.stop_keep_alive()
        peer.stream.close_if_idle()
        await peer.send(GET[10:])
        assert last_answer(await peer.read_to_end())[0] == 200


async def test_cancelling_a_connection_cancels_its_app(autojump_clock: MockClock) -> None:
    cancelled = trio.Event()

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            peer = serve(nursery, app, context())
            await peer.send(GET)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert cancelled.is_set()
    assert peer.wire.closed
    assert logs == []


async def test_what_goes_wrong_in_a_connection_ends_that_connection_only(autojump_clock: MockClock) -> None:
    class Broken(Wire):
        @override
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise RuntimeError(SECRET)

    _, end = trio.testing.memory_stream_pair()
    wire = Broken(end)
    shared = context()
    with capture_logs() as logs:
        await serve_connection(GuardedStream(wire, Addresses(), shared), App(), shared)
    assert wire.closed
    assert [(line["event"], line["errors"]) for line in logs] == [("connection_failed", ["RuntimeError"])]
    assert SECRET not in str(logs)


async def test_a_socket_that_has_no_peer_any_more_is_no_fault(autojump_clock: MockClock) -> None:
    class Gone(Addresses):
        @override
        def getpeername(self) -> NoReturn:
            raise OSError(107, "Transport endpoint is not connected")

    _, end = trio.testing.memory_stream_pair()
    wire = Wire(end)
    shared = context()
    with capture_logs() as logs:
        await serve_connection(GuardedStream(wire, Gone(), shared), App(), shared)
    assert wire.closed
    assert logs == []
