"""What a request knows of its own answer: whose shape it has, and the ids that go out with it."""

import pytest
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, ConnectionState, HTTPScope

from capi_core.exchange import Operation
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_trio.request import OPERATIONS, READING, SESSION_PATHS, Request, id_headers, wrong_method
from capi_trio.upstream import UpstreamClient


async def receive() -> ASGIReceiveEvent:
    raise AssertionError("nothing is received")


async def send(message: ASGISendEvent) -> None:
    raise AssertionError("nothing is sent")


def request(path: bytes, *headers: tuple[bytes, bytes]) -> Request:
    scope: HTTPScope = {
        "type": "http",
        "asgi": {},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path.decode(),
        "raw_path": path,
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": ConnectionState({}),
        "extensions": {},
    }
    return Request(scope, receive, send, "req_1", 10)


@pytest.mark.parametrize(
    ("path", "headers", "protocol"),
    [
        (b"/v1/messages", (), Protocol.MESSAGES),
        (b"/responses", (), Protocol.RESPONSES),
        (b"/v1/embeddings", (), Protocol.CHAT),
        (b"/v1/models", (), Protocol.CHAT),
        (b"/v1/models", ((b"anthropic-version", b"2023-06-01"),), Protocol.MESSAGES),
        (b"/v1/chat/completions", ((b"anthropic-version", b"2023-06-01"),), Protocol.CHAT),
    ],
)
def test_an_error_has_the_shape_that_the_client_reads(
    path: bytes, headers: tuple[tuple[bytes, bytes], ...], protocol: Protocol
) -> None:
    assert request(path, *headers).codec is CODECS[protocol]


def test_an_answer_carries_its_id_under_both_names() -> None:
    assert dict(request(b"/v1/models").headers) == {b"x-request-id": b"req_1", b"request-id": b"req_1"}
    assert request(b"/").headers == id_headers("req_1")


def test_sockets_open_where_responses_are_asked_for() -> None:
    paths = {path.decode() for path, operation in OPERATIONS.items() if operation is Operation.RESPONSES}
    assert paths == SESSION_PATHS


def test_a_question_to_a_model_knows_where_its_client_is() -> None:
    asked = request(b"/v1/messages", (b"x-a", b"b"))
    call = asked.call(UpstreamClient({}), "192.0.2.1")
    assert (call.id, call.transport, call.address) == ("req_1", "http", "192.0.2.1")
    assert (call.client_headers, call.headers) == (((b"x-a", b"b"),), asked.headers)


def test_a_route_says_which_methods_it_takes() -> None:
    assert (wrong_method("POST").status, wrong_method("POST").code) == (405, "method_not_allowed")
    assert {"GET", "HEAD"} == READING
