"""The two neighbours of a gateway under test, each on raw sockets: a client and an upstream that does as it is told."""

import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Self

import h11
import msgspec
import trio
from attrs import field, frozen

__all__ = [
    "Client",
    "RawUpstream",
    "Response",
    "Script",
    "UpstreamRequest",
    "answer",
    "assert_refused",
    "chunked",
    "connect",
    "error_event",
    "post",
    "request",
    "reset",
    "sse_head",
]

_READ: Final = 65536
_ANSWER_S: Final = 30.0


class _ErrorBody(msgspec.Struct):
    message: str
    type: str
    code: str
    param: str | None


class _Envelope(msgspec.Struct):
    error: _ErrorBody


@frozen
class Response:
    """A response as h11 understands it; `closing`: the server will not take another request. `complete` is False when
    the connection ended before the body did."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)
    complete: bool = True
    continued: bool = False
    """Whether a `100 Continue` came before it."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header `name` (small letters)."""
        return next((value for found, value in self.headers if found == name), None)

    @property
    def error(self) -> _ErrorBody:
        """The body as OpenAI's error object."""
        return msgspec.json.decode(self.body, type=_Envelope).error


class Client:
    """One connection to a gateway. What is sent is bytes as given; what comes back is judged by h11."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_readable(self) -> None:
        """Waits until something has come, without taking it."""
        with trio.fail_after(_ANSWER_S):
            await trio.lowlevel.wait_readable(self.stream.socket)

    async def response(self, method: bytes = b"GET") -> Response:
        """The next response. `method` is that of its request. Raises `trio.TooSlowError` after 30 s."""
        with trio.fail_after(_ANSWER_S):
            return await self._response(method)

    async def _response(self, method: bytes) -> Response:
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        # h11 only reads answers to what it sent; the true request went out by hand.
        self._http.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"h")]))
        self._http.send(h11.EndOfMessage())
        head: h11.Response | None = None
        continued = False
        body = bytearray()
        while True:
            event = self._http.next_event()
            match event:
                case h11.NEED_DATA:
                    if not await self._receive(head):
                        assert head is not None
                        return Response(head.status_code, tuple(head.headers), bytes(body), False, continued)
                case h11.InformationalResponse():
                    continued = True
                case h11.Response():
                    head = event
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage():
                    assert head is not None
                    return Response(head.status_code, tuple(head.headers), bytes(body), True, continued)
                case _:
                    raise AssertionError(f"instead of a response: {event}")

    async def _receive(self, head: h11.Response | None) -> bool:
        """Reads on; False when the connection ended inside a body."""
        try:
            data = await self.stream.receive_some(_READ)
        except trio.BrokenResourceError:
            data = b""
        if not data and head is not None and (b"transfer-encoding", b"chunked") in list(head.headers):
            return False
        if not data and head is None:
            raise EOFError("the connection ended without a response")
        self._http.receive_data(data)
        return True

    async def read_until(self, mark: bytes) -> bytes:
        """Reads raw bytes until `mark` was among them. Do not mix with `response`."""
        data = bytearray()
        with trio.fail_after(_ANSWER_S):
            while mark not in data:
                more = await self.stream.receive_some(_READ)
                if not more:
                    raise EOFError(f"the connection ended after {bytes(data)!r}")
                data += more
        return bytes(data)

    async def ended(self, within_s: float = 5.0) -> bytes:
        """Waits for the server's end of the connection; what came before it. A reset counts as an end."""
        data = bytearray(self._http.trailing_data[0])
        with trio.fail_after(within_s), suppress(trio.BrokenResourceError):
            while more := await self.stream.receive_some(_READ):
                data += more
        return bytes(data)

    async def finish(self) -> None:
        """Closes in the ordinary way: FIN."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Closes with RST."""
        await reset(self.stream)


async def reset(stream: trio.SocketStream) -> None:
    """Closes with RST instead of FIN."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


@asynccontextmanager
async def connect(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    """A connection to a gateway; `receive_buffer` is the kernel's, in bytes."""
    raw = trio.socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with raw:
        await raw.connect(("127.0.0.1", port))
        yield Client(trio.SocketStream(raw))


def request(method: bytes, target: bytes, *fields: bytes, body: bytes | None = None) -> bytes:
    """The bytes of a request with a `Host` and, with `body`, a `Content-Length`."""
    lines = [method + b" " + target + b" HTTP/1.1", *fields]
    if not any(line.lower().startswith(b"host:") for line in fields):
        lines.append(b"Host: localhost")
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


def post(document: bytes, *fields: bytes, target: bytes = b"/v1/chat/completions") -> bytes:
    """The bytes of a POST with a JSON document."""
    return request(b"POST", target, b"Content-Type: application/json", *fields, body=document)


def assert_refused(response: Response, status: int, code: str) -> None:
    """It is an error that every SDK reads, with an id to find it by in the log."""
    assert (response.status, response.error.code) == (status, code)
    assert response.error.message
    assert response.error.type
    assert response.header(b"content-type") == b"application/json"
    assert response.header(b"x-request-id")


def error_event(stream: bytes) -> _ErrorBody:
    """The error in the last event of an event stream."""
    last = stream.strip().rpartition(b"\n\n")[2]
    return msgspec.json.decode(last.removeprefix(b"data: "), type=_Envelope).error


# -- the upstream -----------------------------------------------------------------------------------------------


@frozen
class UpstreamRequest:
    """A request as the upstream received it. `head` is everything before the body."""

    head: bytes
    body: bytes = field(repr=False)

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Names in small letters."""
        lines = self.head.split(b"\r\n")[1:-2]
        return tuple((name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines))


Script = Callable[[trio.SocketStream, UpstreamRequest], Awaitable[None]]
"""What an upstream does with a request. When it returns, the connection takes the next one."""


class RawUpstream:
    """Runs `script` for each request that comes. `requests` has them all, `closed` when each connection ended.

    The peer's end is noticed between requests only: a script that waits for it awaits `RawUpstream.gone`.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[UpstreamRequest] = []
        self.gone_at: list[float] = []
        """`time.monotonic()` of each client that `gone` saw leave."""
        self.open = 0
        self.accepted = 0
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @classmethod
    @asynccontextmanager
    async def serving(cls, script: Script, listener: socket.socket | None = None) -> AsyncIterator[Self]:
        """On a free port, or on a socket that listens already and stays open."""
        upstream = cls(script)
        own = socket.create_server(("127.0.0.1", 0), backlog=1024) if listener is None else listener.dup()
        upstream.port = own.getsockname()[1]
        own.setblocking(False)
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(own))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, upstream._serve, [accepting])
            yield upstream
            nursery.cancel_scope.cancel()

    async def gone(self, stream: trio.SocketStream) -> None:
        """Waits until the client has left."""
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(_READ):
                pass
        self.gone_at.append(time.monotonic())

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.open += 1
        self.accepted += 1
        try:
            async with stream:
                while (received := await _receive_request(stream)) is not None:
                    self.requests.append(received)
                    await self.script(stream, received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the gateway left, or the script closed
        finally:
            self.open -= 1


async def _receive_request(stream: trio.SocketStream) -> UpstreamRequest | None:
    """The next request, `None` at the end. The gateway sends every body with its length."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(_READ)
        if not more:
            return None
        data += more
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    received = UpstreamRequest(head + b"\r\n\r\n", b"")
    length = int(dict(received.headers).get(b"content-length", b"0"))
    while len(body) < length:
        more = await stream.receive_some(_READ)
        if not more:
            return None
        body += more
    return UpstreamRequest(received.head, body)


def answer(body: bytes, *, status: int = 200, content_type: bytes = b"application/json") -> bytes:
    """A whole response."""
    return b"HTTP/1.1 %d x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        content_type,
        len(body),
        body,
    )


def sse_head() -> bytes:
    """The head of an event stream in chunks."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*parts: bytes, end: bool = True) -> bytes:
    """Each part as a chunk; with `end` the last chunk too."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")
