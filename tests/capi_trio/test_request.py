"""What a request knows of its own answer: whose shape it has, and the ids that go out with it."""

import pytest
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, ConnectionState, HTTPScope

from capi_core.exchange import Operation
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_trio.request import OPERATIONS, SESSION_PATHS, Request, id_headers


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
