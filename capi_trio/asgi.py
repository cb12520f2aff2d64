"""The small part of ASGI that capi speaks: reading a body, sending a whole answer, dropping a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypercorn.typing import (
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    WebsocketResponseBodyEvent,
    WebsocketResponseStartEvent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, WebsocketScope

    from capi_core.headers import Headers

__all__ = [
    "BodyTooLargeError",
    "ClientGoneError",
    "ResetConnectionError",
    "deny",
    "drain_body",
    "header",
    "read_body",
    "respond",
]


class ClientGoneError(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class BodyTooLargeError(Exception):
    """The request's body is over the limit. What was read of it is dropped."""


class ResetConnectionError(Exception):
    """Raised by an app to drop the connection half-way, without a proper end of the answer."""


def header(scope: HTTPScope | WebsocketScope, name: bytes) -> bytes | None:
    """The first value of the request header `name` (lower case)."""
    for field, value in scope["headers"]:
        if field == name:
            return value
    return None


async def read_body(scope: HTTPScope, receive: ASGIReceiveCallable, *, limit: int) -> bytes:
    """Reads the whole request body, at most `limit` bytes.

    Every handler reads the body before it answers: hypercorn's connection never finishes an answer while body
    messages that nobody takes are queued. Raises `BodyTooLargeError` or `ClientGoneError`.
    """
    parts: list[bytes] = []
    await _each_part(scope, receive, parts.append, limit=limit)
    return b"".join(parts)


async def drain_body(scope: HTTPScope, receive: ASGIReceiveCallable, *, limit: int) -> None:
    """Takes the request body and drops it, holding one message at a time.

    Of a body over `limit` bytes the connection hands on no more than that, so the rest is not waited for. Raises
    `BodyTooLargeError` or `ClientGoneError`.
    """
    await _each_part(scope, receive, lambda part: None, limit=limit)


async def _each_part(
    scope: HTTPScope, receive: ASGIReceiveCallable, take: Callable[[bytes], None], *, limit: int
) -> None:
    declared = header(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise BodyTooLargeError
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        size += len(message["body"])
        if size > limit:
            raise BodyTooLargeError
        take(message["body"])
        if not message["more_body"]:
            return


async def respond(send: ASGISendCallable, status: int, headers: Headers, body: bytes) -> None:
    """Sends a whole answer; `content-length` is added."""
    length = (b"content-length", str(len(body)).encode())
    await send(HTTPResponseStartEvent(type="http.response.start", status=status, headers=[length, *headers]))
    await send(HTTPResponseBodyEvent(type="http.response.body", body=body, more_body=False))


async def deny(send: ASGISendCallable, status: int, headers: Headers, body: bytes) -> None:
    """Refuses a WebSocket handshake with a whole answer, as any other request; `content-length` is added."""
    length = (b"content-length", str(len(body)).encode())
    all_headers = [length, *headers]
    await send(WebsocketResponseStartEvent(type="websocket.http.response.start", status=status, headers=all_headers))
    await send(WebsocketResponseBodyEvent(type="websocket.http.response.body", body=body, more_body=False))
