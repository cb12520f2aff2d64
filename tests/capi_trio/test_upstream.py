"""What is sent to an upstream, how its failures are told, and that nothing of it outlives its request."""

import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import httpx
import pytest
import trio
from trio.testing import MockClock

from capi_core.exchange import Failure, Operation, SendRequest
from capi_core.headers import upstream_request_headers
from capi_trio.upstream import (
    Address,
    Fetched,
    FetchLimits,
    Secret,
    UpstreamClient,
    UpstreamFailedError,
    UpstreamResponse,
    UpstreamTarget,
    address_of,
    tls_context,
    version_headers,
)
from tests.support.fakes import FakeUpstream, Reply, client, json_reply

KEY: Final = "sk-upstream-key"
ASK: Final = SendRequest(
    "up", Operation.CHAT, upstream_request_headers(stream=True, request_id="req_1"), b'{"model": "m"}'
)


async def read(response: UpstreamResponse) -> bytes:
    return b"".join([part async for part in response.chunks()])


# -- what is sent --------------------------------------------------------------------------------------------------


async def test_a_request_goes_out_as_the_core_made_it(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"one", 1.0, b"two"], headers=(("X-One", "1"),)))
    async with client(up) as asking, asking.request(ASK) as response:
        assert response.status == 200
        assert (b"X-One", b"1") in response.headers
        assert await read(response) == b"onetwo"
    (asked,) = up.asked
    assert (asked.method, asked.url, asked.body) == ("POST", "http://up.test/v1/chat/completions", ASK.body)


async def test_anything_else_can_be_asked_for_with_the_callers_own_headers() -> None:
    up = FakeUpstream(json_reply({}, 404))
    async with client(up) as asking:
        async with asking.ask("up", "GET", "/models?a=b", ((b"user-agent", b"me"),)) as response:
            assert (response.status, await read(response)) == (404, b"{}")
        async with asking.ask("up", "POST", "/x", (), b"body"):
            pass
    first, second = up.asked
    assert (first.method, first.url, first.header(b"user-agent")) == ("GET", "http://up.test/v1/models?a=b", [b"me"])
    assert (second.method, second.body) == ("POST", b"body")
    assert not any(asked.header(b"authorization") for asked in up.asked), "no credential is added"


async def test_whatever_is_asked_its_failures_are_told_alike() -> None:
    async with client(FakeUpstream(httpx.ConnectError("x"))) as asking:
        with pytest.raises(UpstreamFailedError) as caught:
            async with asking.ask("up", "GET", "/models", ()):
                pass
        assert caught.value.failure is Failure.UNREACHABLE
        with pytest.raises(UpstreamFailedError):
            async with asking.ask("other", "GET", "/models", ()):
                pass


async def test_only_headers_of_the_allow_list_go_out(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply())
    async with client(up) as asking, asking.request(ASK):
        pass
    names = sorted(name.decode().lower() for name, _ in up.asked[0].headers)
    assert names == [
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "x-request-id",
    ]
    sent = dict(up.asked[0].headers)
    assert sent[b"accept"] == b"text/event-stream"
    assert sent[b"accept-encoding"] == b"identity"  # a compressed stream cannot be relayed event by event
    assert sent[b"user-agent"].startswith(b"capi/")
    assert sent[b"user-agent"].decode() == version_headers()["user-agent"]


async def test_each_upstream_gets_its_own_credential_and_no_other(autojump_clock: MockClock) -> None:
    up = FakeUpstream(json_reply({}))
    targets = {
        "a": UpstreamTarget("a", "http://a.test/v1", Secret("key-a")),
        "b": UpstreamTarget("b", "http://b.test/v1", Secret("key-b")),
        "none": UpstreamTarget("none", "http://none.test/v1"),
    }
    async with UpstreamClient(targets, transport=up) as asking:
        for name in targets:
            async with asking.request(SendRequest(name, Operation.EMBEDDINGS, (), b"{}")):
                pass
            await asking.list_models(name)
        assert sorted(asking.secrets) == [b"key-a", b"key-b"]
    assert [asked.header(b"authorization") for asked in up.asked] == [
        [b"Bearer key-a"],
        [b"Bearer key-a"],
        [b"Bearer key-b"],
        [b"Bearer key-b"],
        [],
        [],
    ]
    assert up.asked[0].url == "http://a.test/v1/embeddings"
    assert up.asked[1].url == "http://a.test/v1/models"


async def test_a_credential_is_never_shown(autojump_clock: MockClock) -> None:
    target = UpstreamTarget("up", "http://up.test/v1", Secret(KEY))
    assert target.api_key is not None
    assert target.api_key.reveal() == KEY
    asking = UpstreamClient({"up": target}, transport=FakeUpstream(httpx.ConnectError(f"no way to {KEY}")))
    async with asking:
        with pytest.raises(UpstreamFailedError) as raised:
            await asking.list_models("up")
    for shown in (repr(target), str(target.api_key), f"{target.api_key!r}", repr(asking), repr(raised.value)):
        assert KEY not in shown
    assert str(raised.value) == "unreachable: ConnectError"
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__  # nor in a traceback


async def test_no_cookie_is_carried_from_one_request_to_another(autojump_clock: MockClock) -> None:
    """It would mark one client's request with what another one's answer brought."""
    up = FakeUpstream(json_reply({}, 200, ("set-cookie", "who=alice; Path=/"), ("set-cookie", "b=c; Domain=up.test")))
    async with client(up) as asking:
        for _ in range(2):
            async with asking.request(ASK) as response:
                await read(response)
            await asking.list_models("up")
    assert [asked.header(b"cookie") for asked in up.asked] == [[], [], [], []]


async def test_a_redirect_is_not_followed(autojump_clock: MockClock) -> None:
    """The next host would get the key and the prompt."""
    up = FakeUpstream(Reply(status=307, headers=(("location", "http://evil.test/"),)))
    async with client(up) as asking:
        async with asking.request(ASK) as response:
            assert response.status == 307
        with pytest.raises(UpstreamFailedError, match="broken: status 307"):
            await asking.list_models("up")
    assert [asked.url.partition("/v1")[0] for asked in up.asked] == ["http://up.test", "http://up.test"]


async def test_time_limits_within_a_stream_are_not_left_to_httpx(autojump_clock: MockClock) -> None:
    """Its read limit is for each read: a pause between two events would cut the stream."""
    up = FakeUpstream(Reply([b"one", 4000.0, b"two"], head_after=4000.0))
    targets = {"up": UpstreamTarget("up", "http://up.test/v1", None, connect_timeout_s=7)}
    async with UpstreamClient(targets, transport=up) as asking, asking.request(ASK) as response:
        assert await read(response) == b"onetwo"
    assert up.asked[0].limits == {"connect": 7, "read": None, "write": 60, "pool": None}


# -- what comes back -----------------------------------------------------------------------------------------------


async def test_a_compressed_answer_is_understood_although_nobody_asked_for_it(autojump_clock: MockClock) -> None:
    packed = gzip.compress(b"data: [DONE]\n\n")
    up = FakeUpstream(Reply([packed[:7], packed[7:]], headers=(("content-encoding", "gzip"),)))
    async with client(up) as asking, asking.request(ASK) as response:
        assert await read(response) == b"data: [DONE]\n\n"


async def test_a_compressed_answer_that_is_none_is_a_broken_one(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"not gzip"], headers=(("content-encoding", "gzip"),)))
    async with client(up) as asking:
        with pytest.raises(UpstreamFailedError) as raised:
            async with asking.request(ASK) as response:
                await read(response)
    assert raised.value.failure is Failure.BROKEN


def error_classes(root: type[httpx.HTTPError] = httpx.HTTPError) -> Iterator[type[httpx.HTTPError]]:
    yield root
    for derived in root.__subclasses__():
        yield from error_classes(derived)


def make_error(kind: type[httpx.HTTPError]) -> httpx.HTTPError:
    request = httpx.Request("POST", f"http://up.test/{KEY}")
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("status", request=request, response=httpx.Response(500, request=request))
    return kind(f"it went wrong at http://up.test/?key={KEY}")


@pytest.mark.parametrize("kind", sorted(set(error_classes()), key=str))
@pytest.mark.parametrize("late", [False, True], ids=["before-the-head", "in-the-body"])
async def test_each_failure_of_httpx_is_told_in_the_terms_of_the_core(
    autojump_clock: MockClock, kind: type[httpx.HTTPError], late: bool
) -> None:
    """By its kind; its text may hold the URL."""
    error = make_error(kind)
    up = FakeUpstream(Reply([b"some", error]) if late else error)
    async with client(up) as asking:
        with pytest.raises(UpstreamFailedError) as raised:
            async with asking.request(ASK) as response:
                await read(response)
    if issubclass(kind, httpx.TimeoutException):
        wanted = Failure.TIMEOUT
    elif issubclass(kind, httpx.ConnectError | httpx.UnsupportedProtocol):
        wanted = Failure.UNREACHABLE
    else:
        wanted = Failure.BROKEN
    assert (raised.value.failure, raised.value.reason) == (wanted, kind.__name__)
    assert KEY not in str(raised.value)
    assert up.open == 0


async def test_a_url_that_is_none_is_an_upstream_that_cannot_be_reached(autojump_clock: MockClock) -> None:
    targets = {"up": UpstreamTarget("up", "http://[::1/v1", None)}
    async with UpstreamClient(targets, transport=FakeUpstream(Reply())) as asking:
        with pytest.raises(UpstreamFailedError) as raised:
            await asking.list_models("up")
    assert (raised.value.failure, raised.value.reason) == (Failure.UNREACHABLE, "InvalidURL")


async def test_what_the_caller_raises_is_not_the_upstreams_failure(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"one", 1000.0]))
    async with client(up) as asking:
        with pytest.raises(ZeroDivisionError):
            async with asking.request(ASK):
                raise ZeroDivisionError
    assert up.asked[0].closed_at == 0


# -- nothing is left behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "after"),
    [(Reply(head_after=100.0), 5), (Reply([100.0]), 5), (Reply([b"one", 100.0]), 5)],
    ids=["waiting-for-the-head", "waiting-for-the-first-byte", "mid-stream"],
)
async def test_cancellation_closes_the_upstreams_answer(autojump_clock: MockClock, reply: Reply, after: float) -> None:
    up = FakeUpstream(reply)
    async with client(up) as asking:
        with trio.move_on_after(after) as limit:
            async with asking.request(ASK) as response:
                await read(response)
    assert limit.cancelled_caught
    assert up.asked[0].closed_at == after


async def test_leaving_early_closes_the_upstreams_answer(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"one", b"two", 100.0]))
    async with client(up) as asking:
        async with asking.request(ASK) as response:
            chunks = response.chunks()
            assert await anext(chunks) == b"one"
        assert up.asked[0].closed_at == 0
    assert up.closed


# -- model lists ---------------------------------------------------------------------------------------------------


async def test_a_model_list_is_the_body_as_it_came(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b'{"data"', 1.0, b": []}"]))
    async with client(up) as asking:
        assert await asking.list_models("up") == b'{"data": []}'
    assert up.asked[0].method == "GET"
    assert up.asked[0].header(b"accept") == [b"application/json"]


@pytest.mark.parametrize(
    ("reply", "failure", "reason"),
    [
        (Reply([b"x" * 1024] * 10, status=404), Failure.BROKEN, "status 404"),
        (Reply([b"x" * 1024 * 1024] * 100), Failure.BROKEN, "too long"),
        (Reply([1.0, b"x"] * 1000), Failure.TIMEOUT, "within 10 s"),
        (Reply([b"x", 1000.0]), Failure.TIMEOUT, "within 10 s"),
        (Reply(head_after=1000.0), Failure.TIMEOUT, "within 10 s"),
        (httpx.ReadTimeout(""), Failure.TIMEOUT, "ReadTimeout"),
        (Reply([b"x", httpx.ReadError("")]), Failure.BROKEN, "ReadError"),
    ],
    ids=["no-list", "too-long", "drip", "pause", "silence", "timeout", "cut"],
)
async def test_a_model_list_that_cannot_be_had_is_a_failure_soon(
    autojump_clock: MockClock, reply: Reply | Exception, failure: Failure, reason: str
) -> None:
    """And what an upstream sends instead is not collected."""
    up = FakeUpstream(reply)
    async with client(up) as asking:
        with pytest.raises(UpstreamFailedError, match=reason) as raised:
            await asking.list_models("up")
    assert raised.value.failure is failure
    assert trio.current_time() <= 10
    assert up.open == 0
    assert up.asked[0].taken <= 20


async def test_an_error_body_without_end_is_not_read(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"x" * 1024 * 1024] * 100, status=500))
    async with client(up) as asking:
        with pytest.raises(UpstreamFailedError, match="status 500"):
            await asking.list_models("up")
    assert up.asked[0].taken == 0


# -- what only a socket can tell -----------------------------------------------------------------------------------


@asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[str]:
    """A server on the loopback interface: its base URL."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, handler, listeners))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can set it would read every prompt."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with trio.fail_after(5):
        async with listening(handler) as url, UpstreamClient({"up": UpstreamTarget("up", url)}) as asking:
            assert await asking.list_models("up") == b"{}"


async def test_an_answer_read_to_its_end_leaves_its_connection_for_the_next() -> None:
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while await stream.receive_some():
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with trio.fail_after(5):
        async with listening(handler) as url, UpstreamClient({"up": UpstreamTarget("up", url)}) as asking:
            for _ in range(3):
                assert await asking.list_models("up") == b"{}"
    assert connections == 1


async def test_there_is_no_bound_on_connections_and_cancelling_them_leaves_none() -> None:
    """A bounded pool of httpx wedges for good under cancellation; the gate is the cap."""
    count = 150  # httpx's own default is 100
    now = 0
    all_there, all_gone = trio.Event(), trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal now
        now += 1
        if now == count:
            all_there.set()
        while await stream.receive_some():
            pass
        now -= 1
        if not now:
            all_gone.set()

    async def ask(asking: UpstreamClient) -> None:
        async with asking.request(ASK):
            raise AssertionError("nobody answers")

    with trio.fail_after(10):
        async with listening(handler) as url, UpstreamClient({"up": UpstreamTarget("up", url)}) as asking:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(ask, asking)
                await all_there.wait()
                nursery.cancel_scope.cancel()
            await all_gone.wait()


async def test_a_port_that_nobody_listens_on_is_an_upstream_that_cannot_be_reached() -> None:
    async with UpstreamClient({"up": UpstreamTarget("up", "http://127.0.0.1:1/v1")}) as asking:
        with pytest.raises(UpstreamFailedError) as raised:
            await asking.list_models("up")
    assert raised.value.failure is Failure.UNREACHABLE


# -- for who asks without httpx ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("http://up.test/v1", Address(False, "up.test", 80, "up.test", "/v1/responses")),
        ("https://up.test", Address(True, "up.test", 443, "up.test", "/responses")),
        ("https://up.test:8443/a%20b", Address(True, "up.test", 8443, "up.test:8443", "/a%20b/responses")),
        ("http://[::1]:80/v1", Address(False, "::1", 80, "[::1]", "/v1/responses")),
        ("http://bücher.test", Address(False, "xn--bcher-kva.test", 80, "xn--bcher-kva.test", "/responses")),
        ("http://who:secret@up.test", Address(False, "up.test", 80, "up.test", "/responses")),
        ("ftp://up.test", None),
        ("up.test", None),
        ("http://", None),
        ("http://[::1", None),
    ],
)
def test_the_address_of_an_upstream(base: str, address: Address | None) -> None:
    assert address_of(UpstreamTarget("up", base), "/responses") == address


def test_certificates_are_read_once_and_checked() -> None:
    assert tls_context() is tls_context()
    assert tls_context().check_hostname
    assert tls_context().verify_mode is ssl.CERT_REQUIRED


# -- a small answer, whole -----------------------------------------------------------------------------------------

SMALL: Final = FetchLimits(max_bytes=10, total_s=20.0, connect_s=3.0)


async def fetch(up: FakeUpstream, method: str = "GET", body: bytes | None = None) -> Fetched:
    async with client(up) as asking:
        return await asking.fetch(method, "https://other.test/path?q=1", ((b"x-one", b"1"),), body, SMALL)


async def test_any_url_is_fetched_without_a_credential_of_ours(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"one", 1.0, b"two"], 404, (("X-Two", "2"),)))
    fetched = await fetch(up, "POST", b"asked")
    assert (fetched.status, fetched.body) == (404, b"onetwo")
    assert (b"X-Two", b"2") in fetched.headers
    (asked,) = up.asked
    assert (asked.method, asked.url, asked.body) == ("POST", "https://other.test/path?q=1", b"asked")
    assert asked.header(b"x-one") == [b"1"]
    assert asked.header(b"authorization") == []
    assert asked.limits == {"connect": 3, "read": None, "write": None, "pool": None}
    assert "onetwo" not in repr(fetched)


async def test_a_fetched_answer_has_a_longest_length(autojump_clock: MockClock) -> None:
    assert (await fetch(FakeUpstream(Reply([b"12345", b"67890"])))).body == b"1234567890"
    up = FakeUpstream(Reply([b"12345", b"678901", b"never"]))
    with pytest.raises(UpstreamFailedError, match="broken: the answer is too long"):
        await fetch(up)
    assert (up.asked[0].taken, up.open) == (2, 0)


@pytest.mark.parametrize("reply", [Reply(head_after=60.0), Reply([8.0, b".", 8.0, b".", 8.0, b"."])])
async def test_a_fetched_answer_has_a_longest_time(autojump_clock: MockClock, reply: Reply) -> None:
    up = FakeUpstream(reply)
    with pytest.raises(UpstreamFailedError, match="timeout: no whole answer within 20 s"):
        await fetch(up)
    assert trio.current_time() == pytest.approx(20)
    assert up.open == 0


async def test_what_fails_in_fetching_is_told(autojump_clock: MockClock) -> None:
    for reply, failure in (
        (httpx.ConnectError("x"), Failure.UNREACHABLE),
        (httpx.ConnectTimeout("x"), Failure.TIMEOUT),
        (Reply([b"1", httpx.ReadError("x")]), Failure.BROKEN),
    ):
        with pytest.raises(UpstreamFailedError) as raised:
            await fetch(FakeUpstream(reply))
        assert raised.value.failure is failure
