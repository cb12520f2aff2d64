"""One request as the gateway's routes see it: what came, and how an answer of ours goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from capi_core.errors import Problem
from capi_core.exchange import Operation
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_trio.asgi import BodyTooLargeError, ClientGoneError, drain_body, header, respond

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

    from capi_core.headers import Headers
    from capi_core.protocols.codec import Codec
    from capi_trio.upstream import UpstreamSource

__all__ = ["JSON", "OPERATIONS", "READING", "SESSION_PATHS", "Call", "Request", "id_headers", "wrong_method"]

JSON: Final = (b"content-type", b"application/json")
READING: Final = frozenset({"GET", "HEAD"})
"""The methods of routes that only tell something."""

OPERATIONS: Final[Mapping[bytes, Operation]] = {
    b"/v1/chat/completions": Operation.CHAT,
    b"/chat/completions": Operation.CHAT,
    b"/v1/responses": Operation.RESPONSES,
    b"/responses": Operation.RESPONSES,
    b"/v1/messages": Operation.MESSAGES,
    b"/messages": Operation.MESSAGES,
    b"/v1/messages/count_tokens": Operation.COUNT_TOKENS,
    b"/messages/count_tokens": Operation.COUNT_TOKENS,
    b"/v1/embeddings": Operation.EMBEDDINGS,
    b"/embeddings": Operation.EMBEDDINGS,
}
SESSION_PATHS: Final = frozenset({"/v1/responses", "/responses"})
"""Where a WebSocket may be opened."""


def id_headers(request_id: str) -> Headers:
    """What every answer has: the id under the names that OpenAI's and Anthropic's SDKs read."""
    value = request_id.encode("ascii")
    return ((b"x-request-id", value), (b"request-id", value))


def wrong_method(allowed: str) -> Problem:
    """The 405 of a route that only takes `allowed`."""
    return Problem(405, "method_not_allowed", f"this path takes {allowed} requests")


@frozen
class Call:
    """One question to a model, whatever it came in by. `client_headers`: the client's; `headers`: for its answer.

    `address`: where the client is, as far as it is known.
    """

    id: str
    transport: Literal["http", "websocket"]
    address: str | None
    client_headers: Headers
    headers: Headers
    receive: ASGIReceiveCallable
    send: ASGISendCallable
    upstream: UpstreamSource


@frozen
class Request:
    """One HTTP request as the server gave it, with the id that its answer and its log line carry."""

    scope: HTTPScope
    receive: ASGIReceiveCallable
    send: ASGISendCallable
    id: str
    max_body_bytes: int

    @property
    def headers(self) -> Headers:
        return id_headers(self.id)

    @property
    def codec(self) -> Codec:
        """Whose shape an answer of ours has: the route's, and on routes of both the client's, which says a version."""
        operation = OPERATIONS.get(self.scope["raw_path"])
        if operation is not None:
            return CODECS[operation.protocol]
        speaks_messages = header(self.scope, b"anthropic-version") is not None
        return CODECS[Protocol.MESSAGES if speaks_messages else Protocol.CHAT]

    def call(self, upstream: UpstreamSource, address: str | None) -> Call:
        """The question to a model that this request is, from a client at that address."""
        headers = tuple(self.scope["headers"])
        return Call(self.id, "http", address, headers, self.headers, self.receive, self.send, upstream)

    async def respond(
        self, status: int, content_type: tuple[bytes, bytes], body: bytes, *more: tuple[bytes, bytes]
    ) -> None:
        await respond(self.send, status, (content_type, *self.headers, *more), body)

    async def refuse(self, problem: Problem, *more: tuple[bytes, bytes]) -> None:
        await self.respond(problem.status, JSON, self.codec.encode_error(problem, self.id), *more)

    async def turn_away(self, problem: Problem, *more: tuple[bytes, bytes]) -> None:
        """Refuses without keeping any of the body in memory: whoever was not let in cannot fill it."""
        try:
            await drain_body(self.scope, self.receive, limit=self.max_body_bytes)
        except ClientGoneError:
            return
        except BodyTooLargeError:
            pass  # the refusal is the same
        await self.refuse(problem, *more)
