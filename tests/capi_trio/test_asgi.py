"""Reading a body, and sending a whole answer."""

from collections.abc import Iterable

import pytest
from hypercorn.typing import (
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    HTTPDisconnectEvent,
    HTTPRequestEvent,
    HTTPScope,
)

from capi_trio.asgi import BodyTooLargeError, ClientGoneError, header, read_body, respond


def scope(*headers: tuple[bytes, bytes]) -> HTTPScope:
    return HTTPScope(
        type="http",
        asgi={"spec_version": "2.1", "version": "3.0"},
        http_version="1.1",
        method="POST",
        scheme="http",
        path="/",
        raw_path=b"/",
        query_string=b"",
        root_path="",
        headers=headers,
        client=None,
        server=None,
        state=ConnectionState({}),
        extensions={},
    )


class Body:
    """A body in pieces; with `gone` the client leaves after them. Counts how many messages were taken."""

    def __init__(self, pieces: Iterable[bytes], *, gone: bool = False) -> None:
        self._pieces = list(pieces)
        self._gone = gone
        self.taken = 0

    async def __call__(self) -> ASGIReceiveEvent:
        if self.taken == len(self._pieces):
            assert self._gone, "nothing more is there to receive"
            return HTTPDisconnectEvent(type="http.disconnect")
        self.taken += 1
        more = self._gone or self.taken < len(self._pieces)
        return HTTPRequestEvent(type="http.request", body=self._pieces[self.taken - 1], more_body=more)


def test_a_header_is_found_by_its_name() -> None:
    asked = scope((b"a", b"1"), (b"b", b"2"), (b"b", b"3"))
    assert (header(asked, b"b"), header(asked, b"c")) == (b"2", None)


@pytest.mark.parametrize("pieces", [[b""], [b"abcd"], [b"ab", b"", b"cd", b""]])
async def test_a_body_is_read_to_its_end(pieces: list[bytes]) -> None:
    body = Body(pieces)
    assert await read_body(scope(), body, limit=4) == b"".join(pieces)
    assert body.taken == len(pieces)


async def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    body = Body([b"abcde"])
    with pytest.raises(BodyTooLargeError):
        await read_body(scope((b"content-length", b"5")), body, limit=4)
    assert body.taken == 0


async def test_a_body_that_becomes_too_large_is_not_read_on() -> None:
    body = Body([b"ab", b"cd", b"e", b"f"])
    with pytest.raises(BodyTooLargeError):
        await read_body(scope(), body, limit=4)
    assert body.taken == 3


@pytest.mark.parametrize("pieces", [[], [b"half"]])
async def test_a_client_that_leaves_in_its_body_is_not_taken_for_its_end(pieces: list[bytes]) -> None:
    with pytest.raises(ClientGoneError):
        await read_body(scope((b"content-length", b"8")), Body(pieces, gone=True), limit=8)


@pytest.mark.parametrize("body", [b"", b"whole"])
async def test_an_answer_says_how_long_it_is(body: bytes) -> None:
    sent: list[ASGISendEvent] = []

    async def send(message: ASGISendEvent) -> None:
        sent.append(message)

    await respond(send, 201, ((b"a", b"b"),), body)
    assert sent == [
        {
            "type": "http.response.start",
            "status": 201,
            "headers": [(b"content-length", str(len(body)).encode()), (b"a", b"b")],
        },
        {"type": "http.response.body", "body": body, "more_body": False},
    ]
