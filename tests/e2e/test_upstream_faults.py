"""What upstreams do wrong: a client is told so in its own protocol, in time, and never with a clean end."""

from collections.abc import Iterator, Mapping
from socket import create_server, socket
from typing import Final

import pytest
import trio

from tests.e2e.conftest import Start, faultless
from tests.e2e.peers import (
    RawUpstream,
    Response,
    Script,
    UpstreamRequest,
    answer,
    assert_refused,
    chunked,
    connect,
    error_event,
    post,
    reset,
    sse_head,
)
from tests.support.process import Capi, gateway

CHAT: Final = b'{"model":"real","messages":[{"role":"user","content":"hi"}]}'
STREAM: Final = CHAT[:-1] + b',"stream":true}'
CHUNK: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
FINISH: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


class Faulty:
    """A gateway with short patience, and the upstream to blame."""

    def __init__(self, capi: Capi, listener: socket) -> None:
        self._capi = capi
        self._listener = listener

    async def ask(self, script: Script, document: bytes) -> Response:
        """What a client gets while the upstream does as in `script`."""
        async with RawUpstream.serving(script, self._listener), connect(self._capi.port) as client:
            await client.send(post(document))
            return await client.response()

    async def logged(self, response: Response, outcome: str, status: int) -> None:
        """Its one log line says what happened."""
        request_id = (response.header(b"x-request-id") or b"").decode()
        line = await trio.to_thread.run_sync(lambda: self._capi.log_line("exchange", request_id=request_id))
        assert (line["outcome"], line["status"]) == (outcome, status)
        assert len(self._capi.events("exchange", request_id=request_id)) == 1


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        raw = {"kind": "openai", "base_url": base_url, "models": ["real"]}
        patience = {"head_timeout_s": 0.3, "idle_timeout_s": 0.3}
        config = {"upstreams": {"raw": {**raw, **patience}}, "limits": {"max_event_bytes": 65_536}}
        with faultless(gateway(tmp_path_factory.mktemp("faulty"), config)) as capi:
            yield Faulty(capi, listener)


def saying(*data: bytes, then: str = "close") -> Script:
    """An upstream that sends `data` whatever it was asked, and then closes, resets or waits for ever."""

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        for piece in data:
            await stream.send_all(piece)
        match then:
            case "close":
                await stream.aclose()
            case "reset":
                await trio.sleep(0.05)  # else the reset overtakes what was sent
                await reset(stream)
            case _:
                await trio.sleep_forever()

    return script


HTML: Final = b"<html><body>502 Bad Gateway</body></html>\n\n"
ERROR: Final = b'{"error":{"message":"m","type":"t","code":"c","param":null}}'
LIMITED: Final = ERROR[:-2] + b',"status":429}}'

Wanted = tuple[int, str, str]
"""Status and code that the client gets, and the outcome in the log."""

OK: Final = (200, "", "ok")
BROKE: Final = (502, "upstream_broke", "upstream_broke")
GARBAGE: Final = (502, "upstream_garbage", "upstream_broke")
TIMEOUT: Final = (504, "upstream_timeout", "timeout")
UNAUTHORIZED: Final = (502, "upstream_unauthorized", "upstream_error")
REDIRECT: Final = b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
PAGE_AS_STREAM: Final = answer(HTML, content_type=b"text/event-stream")

# Name: what the upstream does; what comes of a request that does not stream, and of one that does.
FAULTS: Final[Mapping[str, tuple[Script, Wanted, Wanted]]] = {
    "closes_at_once": (saying(), BROKE, BROKE),
    "resets_at_once": (saying(then="reset"), BROKE, BROKE),
    "is_no_http": (saying(b"\x15\x03\x01\x00\x02\x02\x28" * 9), BROKE, BROKE),
    "never_answers": (saying(then="wait"), TIMEOUT, TIMEOUT),
    "stops_in_the_head": (saying(b"HTTP/1.1 200 OK\r\ncontent-", then="wait"), TIMEOUT, TIMEOUT),
    "says_interim_things": (saying(b"HTTP/1.1 102 x\r\n\r\n" * 100, then="wait"), TIMEOUT, TIMEOUT),
    "is_a_page": (saying(answer(HTML, content_type=b"text/html")), GARBAGE, GARBAGE),
    "is_a_page_called_a_stream": (saying(PAGE_AS_STREAM), GARBAGE, GARBAGE),
    "is_an_array": (saying(answer(b"[]")), GARBAGE, GARBAGE),
    "is_empty": (saying(answer(b"")), GARBAGE, GARBAGE),
    "is_cut": (saying(answer(b"{" + b" " * 99)[:-40]), BROKE, BROKE),
    "has_an_error_page": (
        saying(answer(HTML, status=503)),
        (503, "upstream_error", "upstream_error"),
        (503, "upstream_error", "upstream_error"),
    ),
    "has_an_error_and_says_200": (
        saying(answer(ERROR)),
        (502, "c", "upstream_error"),
        (502, "c", "upstream_error"),
    ),
    "redirects": (
        saying(REDIRECT),
        (502, "upstream_redirect", "upstream_error"),
        (502, "upstream_redirect", "upstream_error"),
    ),
    "needs_a_key": (saying(answer(ERROR, status=401)), UNAUTHORIZED, UNAUTHORIZED),
    "needs_a_proxys_key": (saying(answer(HTML, status=407)), UNAUTHORIZED, UNAUTHORIZED),
    "does_not_stream": (
        saying(answer(b'{"choices":[]}')),
        OK,
        (502, "upstream_garbage", "upstream_broke"),
    ),
    "streams_nothing": (
        saying(sse_head(), chunked()),
        GARBAGE,
        (502, "upstream_truncated", "upstream_broke"),
    ),
    "streams_an_error_first": (
        saying(sse_head(), chunked(b"data: " + LIMITED + b"\n\n")),
        GARBAGE,
        (429, "c", "upstream_error"),
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", FAULTS)
async def test_an_upstream_at_fault_before_its_first_event_is_a_status(faulty: Faulty, name: str, stream: bool) -> None:
    """A stream of which nothing has come yet can still be an error like any other."""
    script, *wanted = FAULTS[name]
    status, code, outcome = wanted[stream]
    response = await faulty.ask(script, STREAM if stream else CHAT)
    if status == 200:
        assert response.status == 200
    else:
        assert_refused(response, status, code)
    assert b"127.0.0.1" not in response.body
    await faulty.logged(response, outcome, status)


# Name: what the upstream does behind its first event; code and outcome.
MID_STREAM: Final[Mapping[str, tuple[Script, str, str]]] = {
    name: (saying(sse_head(), chunked(CHUNK, end=False), *more, then=then), code, outcome)
    for name, more, then, code, outcome in (
        ("resets", (), "reset", "upstream_broke", "upstream_broke"),
        ("closes", (), "close", "upstream_broke", "upstream_broke"),
        ("falls_silent", (), "wait", "upstream_timeout", "timeout"),
        ("ends", (chunked(),), "close", "upstream_truncated", "upstream_broke"),
        ("sends_a_bad_chunk", (b"zz\r\n",), "wait", "upstream_broke", "upstream_broke"),
        ("sends_no_json", (chunked(b"data: <html>\n\n", end=False),), "wait", "upstream_garbage", "upstream_broke"),
        ("sends_no_event", (chunked(b"<html>\n\n", end=False),), "wait", "upstream_garbage", "upstream_broke"),
        (
            "sends_a_huge_event",
            (chunked(b"data: " + b"x" * 70_000, end=False),),
            "wait",
            "upstream_event_too_large",
            "upstream_broke",
        ),
        ("sends_an_error", (chunked(b"data: " + ERROR + b"\n\n", end=False),), "wait", "c", "upstream_error"),
    )
}


@pytest.mark.parametrize("name", MID_STREAM)
async def test_a_stream_that_breaks_ends_with_an_error_event(faulty: Faulty, name: str) -> None:
    """And with a proper end of the response: what came before it counts."""
    script, code, outcome = MID_STREAM[name]
    response = await faulty.ask(script, STREAM)
    assert response.status == 200
    assert response.complete
    assert response.body.startswith(CHUNK)
    assert b"[DONE]" not in response.body
    assert error_event(response.body).code == code
    await faulty.logged(response, outcome, 200)


async def test_an_upstream_that_does_not_close_after_its_end_mark_is_not_waited_for(faulty: Faulty) -> None:
    """Nor is heard what it says behind it."""
    end = FINISH + b"data: [DONE]\n\n"
    response = await faulty.ask(saying(sse_head(), chunked(CHUNK, end, CHUNK, end=False), then="wait"), STREAM)
    assert response.complete
    assert response.body == CHUNK + end
    await faulty.logged(response, "ok", 200)


@pytest.mark.parametrize("document", [CHAT, STREAM])
async def test_an_upstream_that_is_down(start: Start, document: bytes) -> None:
    with create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    raw = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "models": ["real"]}
    with start({"upstreams": {"raw": raw}}) as capi:
        async with connect(capi.port) as client:
            await client.send(post(document))
            response = await client.response()
        assert_refused(response, 502, "upstream_unreachable")
        line = await trio.to_thread.run_sync(capi.log_line, "exchange")
    assert (line["outcome"], line["upstream_failure"]) == ("upstream_unreachable", "ConnectError")


async def test_a_silent_upstream_is_bridged_by_comments(start: Start) -> None:
    """A client and the proxies between see life; an SDK ignores it. The answer comes whole all the same."""

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await trio.sleep(0.35)
        await stream.send_all(sse_head() + chunked(CHUNK, FINISH, b"data: [DONE]\n\n"))

    async with RawUpstream.serving(script) as upstream:
        raw = {"kind": "openai", "base_url": upstream.base_url, "models": ["real"]}
        with start({"upstreams": {"raw": raw}, "limits": {"keep_alive_s": 0.1}}) as capi:
            async with connect(capi.port) as client:
                await client.send(post(STREAM))
                response = await client.response()
    *comments, _ = response.body.split(CHUNK)[0].split(b"\n\n")
    assert len(comments) == 3
    assert all(comment.startswith(b":") for comment in comments)
    assert response.body.endswith(CHUNK + FINISH + b"data: [DONE]\n\n")
