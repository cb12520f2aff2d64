"""An ASGI application behind hypercorn's own connection code, on a memory stream, on trio's clock.

    async with connect(app) as client:
        response = await client.request("POST", "/v1/chat/completions", {"model": "demo-chat", ...})

The bytes are real HTTP/1.1; only the socket is not. With `autojump_clock` every chunk of a body carries the virtual
time at which it came.
"""

import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import h11
import msgspec
import trio
import trio.testing
from attrs import frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework
from typing_extensions import override

__all__ = ["Chunk", "Client", "Response", "ResponseStream", "connect", "event_data"]

T = TypeVar("T")

_READ: Final = 65536
# Long past any timeout of hypercorn's own; what still runs then would run for ever.
_GRACE_S: Final = 60.0


@frozen
class Chunk:
    """A piece of a body as the server wrote it, and the time (`trio.current_time`) at which it came."""

    at: float
    data: bytes


@frozen
class Response:
    """A whole response. `complete` is False when the connection ended before the body did."""

    status: int
    headers: Mapping[str, str]
    chunks: tuple[Chunk, ...]
    complete: bool
    headed_at: float

    @property
    def body(self) -> bytes:
        """All of the body."""
        return b"".join(chunk.data for chunk in self.chunks)

    def json(self, kind: type[T]) -> T:
        """The body as JSON of the type `kind`."""
        return msgspec.json.decode(self.body, type=kind)


def event_data(body: bytes) -> list[str]:
    """The data of each event in an event stream (WHATWG HTML 9.2.6): comments and unfinished events dropped."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if line.startswith("data:")]
        if lines:
            found.append("\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines))
    return found


class _ServerHalf(trio.abc.HalfCloseableStream):
    """A memory stream with as much of a socket as hypercorn asks for. (trio's own pair cannot be subclassed.)"""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self.socket = _Addresses()

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        await self._stream.send_eof()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


class _Addresses:
    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 80)


class ResponseStream:
    """A response whose head is here and whose body is read chunk by chunk."""

    def __init__(self, client: "Client", head: h11.Response) -> None:
        self._client = client
        self.status = head.status_code
        self.headers = {name.decode(): value.decode() for name, value in head.headers}
        self.headed_at = trio.current_time()
        self.complete = False

    async def chunk(self) -> Chunk | None:
        """The next chunk, or None at the end: then `complete` tells whether it was a proper one."""
        try:
            event = await self._client.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Data):
            return Chunk(trio.current_time(), bytes(event.data))
        self.complete = isinstance(event, h11.EndOfMessage)
        return None

    async def read(self) -> Response:
        """The rest of the body, and with it the whole response."""
        chunks = []
        while (chunk := await self.chunk()) is not None:
            chunks.append(chunk)
        return Response(self.status, self.headers, tuple(chunks), self.complete, self.headed_at)


class Client:
    """The client's end of one connection. One request at a time, any number after each other."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, *, host: str = "test") -> None:
        self._stream = stream
        self._host = host
        self._connection = h11.Connection(h11.CLIENT)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, object] = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """Sends a request (a mapping goes as JSON) and reads its response to the end."""
        return await (await self.start(method, path, body, headers)).read()

    async def start(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, object] = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> ResponseStream:
        """Sends a request and waits for the head of its response."""
        await self.send_request(method, path, body, headers)
        while not isinstance(event := await self.next_event(), h11.Response):
            assert isinstance(event, h11.InformationalResponse), event
        return ResponseStream(self, event)

    async def send_request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, object] = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Sends a request and waits for nothing."""
        if self._connection.our_state is not h11.IDLE:
            self._connection.start_next_cycle()
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        fields = [("host", self._host), ("content-length", str(len(data))), *headers]
        head = h11.Request(method=method, target=path, headers=fields)
        for event in (head, h11.Data(data=data), h11.EndOfMessage()):
            await self._stream.send_all(self._connection.send(event) or b"")

    async def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are, past the HTTP machine."""
        await self._stream.send_all(data)

    async def read_to_end(self) -> bytes:
        """Everything that still comes, as it is, until the server closes."""
        received = bytearray()
        while data := await self._stream.receive_some(_READ):
            received += data
        return bytes(received)

    async def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event of the HTTP machine. Raises `h11.RemoteProtocolError` for a cut or broken response."""
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(bytes(await self._stream.receive_some(_READ)))
        return event

    async def aclose(self) -> None:
        """Closes the connection, as a client does that goes away."""
        await self._stream.aclose()


@asynccontextmanager
async def connect(app: ASGIFramework) -> AsyncIterator[Client]:
    """A client connected to `app`. Leaving closes the connection, and expects the server to end by itself."""
    client_end, server_end = trio.testing.memory_stream_pair()
    config = Config()
    config.errorlog = None
    server = TCPServer(
        ASGIWrapper(app),
        config,
        WorkerContext(None),
        {},
        _ServerHalf(server_end),  # type: ignore[arg-type]  # says SSL, takes any stream
    )
    client = Client(client_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()
            nursery.cancel_scope.deadline = trio.current_time() + _GRACE_S
    assert not nursery.cancel_scope.cancelled_caught, "the server did not notice that its client has gone"
