"""What clients do wrong, over real sockets: each gets its one answer, in OpenAI's shape, in time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import pytest
import trio

from tests.e2e.conftest import Start
from tests.e2e.peers import Client, assert_refused, chunked, connect, post, request
from tests.support.process import Capi, TcpSocket, eventually, sockets_of

CHAT: Final = b'{"model":"demo-chat","messages":[{"role":"user","content":"hi"}]}'

REFUSED: Final[Mapping[str, tuple[bytes, int, str]]] = {
    "empty_body": (post(b""), 400, "empty_body"),
    "white_space": (post(b" \r\n"), 400, "empty_body"),
    "no_body_at_all": (request(b"POST", b"/v1/chat/completions"), 400, "empty_body"),
    "not_json": (post(b"hello"), 400, "invalid_json"),
    "cut_json": (post(CHAT[:-1]), 400, "invalid_json"),
    "two_documents": (post(CHAT * 2), 400, "invalid_json"),
    "not_utf8": (post(b'{"model":"\xff"}'), 400, "invalid_json"),
    "array": (post(b"[%b]" % CHAT), 400, "not_an_object"),
    "string": (post(b'"model"'), 400, "not_an_object"),
    "two_models": (post(b'{"model":"demo-chat","model":"demo-embed"}'), 400, "duplicate_member"),
    "deep": (post(b'{"model":"demo-chat","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "json_too_deep"),
    "no_model": (post(b'{"messages":[]}'), 400, "missing_model"),
    "null_model": (post(b'{"model":null}'), 400, "invalid_model"),
    "number_as_model": (post(b'{"model":4}'), 400, "invalid_model"),
    "unknown_model": (post(b'{"model":"gpt-12"}'), 404, "model_not_found"),
    "stream_not_boolean": (post(b'{"model":"demo-chat","stream":"yes"}'), 400, "invalid_stream"),
    "bad_stream_options": (post(b'{"model":"demo-chat","stream_options":[]}'), 400, "invalid_stream_options"),
    "embeddings_no_model": (post(b'{"input":"a"}', target=b"/v1/embeddings"), 400, "missing_model"),
    "wrong_method": (request(b"GET", b"/v1/chat/completions"), 405, "method_not_allowed"),
    "wrong_method_models": (request(b"POST", b"/v1/models", body=b"{}"), 405, "method_not_allowed"),
    "wrong_method_healthz": (request(b"DELETE", b"/healthz"), 405, "method_not_allowed"),
    "unknown_route": (request(b"GET", b"/v1/nothing"), 404, "unknown_route"),
    "route_in_another_spelling": (post(CHAT, target=b"/v1//chat/completions"), 404, "unknown_route"),
    "route_percent_encoded": (post(CHAT, target=b"/v1/chat%2fcompletions"), 404, "unknown_route"),
    "route_with_a_slash": (post(CHAT, target=b"/v1/chat/completions/"), 404, "unknown_route"),
    "unknown_model_record": (request(b"GET", b"/v1/models/%00"), 404, "model_not_found"),
    "foreign_host": (request(b"GET", b"/v1/models", b"Host: evil.test"), 421, "unknown_host"),
    "host_that_looks_local": (request(b"GET", b"/v1/models", b"Host: 127.0.0.1.evil.test"), 421, "unknown_host"),
    "all_interfaces_host": (request(b"GET", b"/v1/models", b"Host: 0.0.0.0"), 421, "unknown_host"),
    "cross_site": (post(CHAT, b"Origin: https://evil.test"), 403, "cross_site_request"),
    "cross_site_null": (post(CHAT, b"Origin: null"), 403, "cross_site_request"),
    "cross_site_local_name": (post(CHAT, b"Origin: http://localhost.evil.test"), 403, "cross_site_request"),
    "too_many_fields": (request(b"GET", b"/", *[b"A: b"] * 100), 431, "too_many_fields"),
    "long_field": (request(b"GET", b"/", b"A: " + b"b" * 40_000), 431, "head_too_large"),
    "long_target": (request(b"GET", b"/" + b"a" * 9000), 414, "request_line_too_long"),
    "compressed": (post(CHAT, b"Content-Encoding: gzip"), 415, "unsupported_content_encoding"),
    "declared_over_the_cap": (
        request(b"POST", b"/v1/chat/completions", b"Content-Length: 999999999"),
        413,
        "body_too_large",
    ),
    "declared_over_the_cap_elsewhere": (request(b"PUT", b"/x", b"Content-Length: 999999999"), 413, "body_too_large"),
    "expects_to_go_on_over_the_cap": (
        request(b"POST", b"/v1/embeddings", b"Content-Length: 999999999", b"Expect: 100-continue"),
        413,
        "body_too_large",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_is_refused(shared_demo: Capi, name: str) -> None:
    data, status, code = REFUSED[name]
    async with connect(shared_demo.port) as client:
        await client.send(data)
        response = await client.response()
    assert_refused(response, status, code)
    assert not response.continued
    if status == 405:
        assert response.header(b"allow") in (b"POST", b"GET, HEAD")


async def test_a_refusal_of_what_was_understood_leaves_the_connection_usable(shared_demo: Capi) -> None:
    async with connect(shared_demo.port) as client:
        for name in ("not_json", "unknown_model", "wrong_method", "unknown_route", "foreign_host", "cross_site"):
            data, status, code = REFUSED[name]
            await client.send(data)
            assert_refused(await client.response(), status, code)
        await client.send(request(b"GET", b"/healthz"))
        assert (await client.response()).body == b"ok\n"


async def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(shared_demo: Capi) -> None:
    body = b'{"model":"gpt-12"}'
    async with connect(shared_demo.port) as client:
        head = request(b"POST", b"/v1/chat/completions", b"Expect: 100-continue", b"Content-Length: %d" % len(body))
        await client.send(head)
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert_refused(await client.response(), 404, "model_not_found")


@asynccontextmanager
async def sending(client: Client, data: bytes) -> AsyncIterator[None]:
    """Sends in the background, as long as the server takes it."""

    async def send() -> None:
        with suppress(trio.BrokenResourceError):
            await client.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield
        nursery.cancel_scope.cancel()


BIG: Final = b'{"model":"gpt-12","x":"' + b"x" * 4 * 1024 * 1024 + b'"}'
IN_CHUNKS: Final = request(b"POST", b"/v1/embeddings", b"Transfer-Encoding: chunked") + chunked(*[b"x" * 65536] * 64)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (post(BIG), 404, "model_not_found"),
        (post(BIG, target=b"/v1/nothing"), 404, "unknown_route"),
        (post(BIG, b"Host: evil.test"), 421, "unknown_host"),
        (IN_CHUNKS, 400, "invalid_json"),
    ],
)
async def test_an_early_answer_to_a_big_body_does_not_hang(
    shared_demo: Capi, data: bytes, status: int, code: str
) -> None:
    """Stock hypercorn does, when an app answers before it has read ten messages."""
    async with connect(shared_demo.port) as client, sending(client, data):
        assert_refused(await client.response(), status, code)
        await client.send(request(b"GET", b"/healthz"))
        assert (await client.response()).status == 200


@pytest.mark.parametrize("data", [post(BIG), post(BIG, target=b"/v1/nothing"), IN_CHUNKS])
async def test_a_body_over_the_cap_is_refused_while_it_comes_in(start: Start, data: bytes) -> None:
    """The client, which goes on sending for a while, still gets to read why."""
    with start({"upstreams": {"demo": {"kind": "demo"}}, "limits": {"max_body_bytes": 100_000}}) as capi:
        async with connect(capi.port) as client, sending(client, data):
            assert_refused(await client.response(), 413, "body_too_large")
            await client.ended()
        async with connect(capi.port) as client:
            await client.send(request(b"GET", b"/healthz"))
            assert (await client.response()).status == 200


async def test_slow_clients_are_cut_off(start: Start) -> None:
    """By the whole of a head or a body, not by its pieces: dripping does not help."""
    limits = {"head_timeout_s": 0.3, "body_timeout_s": 0.4, "min_body_rate": 1000, "idle_connection_s": 0.5}
    head, body = request(b"GET", b"/", b"A: " + b"b" * 200), post(b"x" * 200)
    with start({"upstreams": {"demo": {"kind": "demo"}}, "limits": limits}) as capi:
        for data, at, code, after_s in ((head, 0, "slow_head", 0.3), (body, len(body) - 200, "slow_body", 0.4)):
            async with connect(capi.port) as client:
                await client.send(data[:at])
                began = trio.current_time()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drip, client, data[at:])
                    response = await client.response()
                    took = trio.current_time() - began
                    nursery.cancel_scope.cancel()
                assert_refused(response, 408, code)
                assert after_s - 0.05 < took < after_s + 1.5
                await client.ended()
        async with connect(capi.port) as client:  # says nothing at all: it gets nothing
            assert await client.ended(within_s=1.5) == b""


async def _drip(client: Client, data: bytes) -> None:
    for at in range(len(data)):
        with suppress(trio.BrokenResourceError):
            await client.send(data[at : at + 1])
        await trio.sleep(0.02)


async def test_one_address_cannot_take_every_connection(start: Start) -> None:
    """What is over the cap is closed without a word; when others leave there is room again."""
    limits = {"max_connections_per_address": 3}
    with start({"upstreams": {"demo": {"kind": "demo"}}, "limits": limits}) as capi:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                client = await stack.enter_async_context(connect(capi.port))
                await client.send(request(b"GET", b"/healthz"))
                assert (await client.response()).status == 200
            with suppress(ConnectionResetError):
                async with connect(capi.port) as client:
                    assert await client.ended() == b""
            await trio.to_thread.run_sync(capi.log_line, "connection_refused")
        await eventually(lambda: all(peer.state == "listen" for peer in own_sockets(capi)), 2)
        async with connect(capi.port) as client:
            await client.send(request(b"GET", b"/healthz"))
            assert (await client.response()).status == 200


def own_sockets(capi: Capi) -> list[TcpSocket]:
    """Of the gateway's own port."""
    return [peer for peer in sockets_of(capi.pid) if peer.local_port == capi.port]
