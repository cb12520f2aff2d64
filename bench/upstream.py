"""The model server of all runs: speaks Chat Completions, streams at a fixed pace, costs next to nothing.

`python -m bench.upstream PORT --events 100 --gap-ms 20`. Each content delta holds the time at which it was sent (the
monotonic clock, in ns, which all processes of a machine share), so that a load generator on the same machine knows how
late it is. A stream pauses after each event, whether or not the reader keeps up: what is behind falls behind further.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, cast

import click
import msgspec
import uvloop
from typing_extensions import override

__all__ = ["MODEL", "RequestReader", "StreamText", "main"]

MODEL: Final = "gpt-4.1"
_CREATED: Final = 1_764_000_000
_PLACE: Final = b"@time@"
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024


class RequestReader:
    """Cuts what comes in on a connection into requests. Only as strict as its own clients need."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._head: bytes | None = None
        self._body_bytes = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Takes the next bytes; returns the request line and the body of each request that they complete."""
        self._held += data
        requests = []
        while (self._head is not None or self._take_head()) and len(self._held) >= self._body_bytes:
            assert self._head is not None
            line = self._head.partition(b"\r\n")[0]
            requests.append((line, bytes(self._held[: self._body_bytes])))
            del self._held[: self._body_bytes]
            self._head = None
        return requests

    def _take_head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = bytes(self._held[:end])
        del self._held[: end + 4]
        self._body_bytes = 0
        for line in self._head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._body_bytes = min(int(value), _MAX_BODY_BYTES)
        return True


class StreamText:
    """The bytes of a stream of `events` content deltas, in HTTP chunks of one event each."""

    head = _STREAM_HEAD

    def __init__(self, events: int) -> None:
        delta = {"content": f" {_PLACE.decode()}"}
        self._delta = _event(
            system_fingerprint="fp_bench",
            choices=[{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}],
        )
        usage = {"prompt_tokens": 11, "completion_tokens": events, "total_tokens": 11 + events}
        tail = _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]) + _event(choices=[], usage=usage)
        self.tail = _chunk(tail + b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def delta(self, now_ns: int) -> bytes:
        return _chunk(self._delta.replace(_PLACE, b"%d" % now_ns))


def _event(**members: object) -> bytes:
    return b"data: %b\n\n" % _object("chat.completion.chunk", **members)


def _object(kind: str, **members: object) -> bytes:
    chunk = {"id": "chatcmpl-bench", "object": kind, "created": _CREATED, "model": f"{MODEL}-2025-04-14", **members}
    return msgspec.json.encode(chunk)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _document(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_ANSWER: Final = _document(
    _object(
        "chat.completion",
        choices=[
            {"index": 0, "message": {"role": "assistant", "content": "hello " * 50}, "finish_reason": "stop"},
        ],
        usage={"prompt_tokens": 11, "completion_tokens": 100, "total_tokens": 111},
    )
)
_MODELS: Final = _document(
    msgspec.json.encode(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "bench"}]}
    )
)


class _Asked(msgspec.Struct):
    stream: bool = False


class _Connection(asyncio.Protocol):
    def __init__(self, text: StreamText, events: int, gap_s: float) -> None:
        self._text = text
        self._events = events
        self._gap_s = gap_s
        self._requests = RequestReader()
        self._transport: asyncio.WriteTransport | None = None
        self._streaming: asyncio.Task[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not its subclasses

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    @override
    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for line, body in self._requests.feed(data):
            if line.startswith(b"GET"):
                self._transport.write(_MODELS)
            elif msgspec.json.decode(body, type=_Asked).stream:
                self._streaming = asyncio.get_running_loop().create_task(self._stream(self._transport))
            else:
                self._transport.write(_ANSWER)

    async def _stream(self, transport: asyncio.WriteTransport) -> None:
        transport.write(self._text.head)
        for _ in range(self._events):
            transport.write(self._text.delta(time.monotonic_ns()))
            await asyncio.sleep(self._gap_s)
        transport.write(self._text.tail)


async def _serve(port: int, events: int, gap_s: float) -> None:
    text = StreamText(events)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(text, events, gap_s), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@click.command()
@click.argument("port", type=int)
@click.option("--events", default=100, show_default=True, help="Content events of a stream.")
@click.option("--gap-ms", default=20.0, show_default=True, help="The pause after each of them.")
def main(port: int, events: int, gap_ms: float) -> None:
    """Serve model answers on 127.0.0.1 until interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(port, events, gap_ms / 1000))


if __name__ == "__main__":
    main()
