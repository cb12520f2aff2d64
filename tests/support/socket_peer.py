"""An upstream that offers Responses over WebSocket, played by scripts over memory streams, on trio's clock.

`Peer(talk([frames...], [frames...]), refuse(426))` serves the first connection with the first script, and so on.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import define, field, frozen
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from capi_trio.upstream import Address

__all__ = ["CUT", "Close", "Link", "Peer", "Script", "Step", "answer", "event", "raw", "refuse", "serve", "talk"]

CUT: Final = None
"""The connection ends without a close frame."""


@frozen
class Close:
    """The peer closes, and waits for the answer."""

    code: int = 1000


Step = str | bytes | float | Close | None
"""What comes next: a frame of text or of bytes, so many seconds of silence, or the end."""


@define(eq=False)
class Link:
    """One connection as the peer saw it. `asked`: the requests; `code`, `closed_at`: the client's close frame;
    `gone_at`: the end of its bytes."""

    stream: trio.abc.Stream = field(repr=False)
    path: str = ""
    headers: dict[str, str] = field(factory=dict)
    asked: list[dict[str, object]] = field(factory=list)
    code: int | None = None
    closed_at: float | None = None
    gone_at: float | None = None
    gone: trio.Event = field(factory=trio.Event, repr=False)


Script = Callable[[Link], Awaitable[None]]


class Peer:
    """Gives each connection the next of `scripts`; without one, there is no connection."""

    def __init__(self, *scripts: Script | Exception) -> None:
        self.links: list[Link] = []
        self.called: list[Address] = []
        self._scripts = list(scripts)
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        """Its links may not outlive what is inside."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            yield self
            with trio.fail_after(2):
                for link in self.links:
                    await link.gone.wait()
            nursery.cancel_scope.cancel()

    async def connect(self, address: Address) -> trio.abc.Stream:
        assert self._nursery is not None
        self.called.append(address)
        script = self._scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        here, there = memory_stream_pair()
        self._nursery.start_soon(self._serve, Link(there), script)
        return here

    async def _serve(self, link: Link, script: Script) -> None:
        self.links.append(link)
        await script(link)
        await trio.aclose_forcefully(link.stream)
        link.gone_at = trio.current_time()
        link.gone.set()


def event(kind: str, **members: object) -> str:
    return json.dumps({"type": kind, **members})


def answer(text: str = "hi") -> list[Step]:
    """The frames of a whole answer."""
    return [
        event("response.created", sequence_number=0),
        event("response.output_text.delta", sequence_number=1, delta=text),
        event("response.completed", sequence_number=2, response={"id": "resp_1"}),
    ]


def talk(*turns: Sequence[Step], before: Sequence[Step] = (), between: Sequence[Step] = ()) -> Script:
    """Accepts, and answers each request with the next of `turns`; `before` comes at once, `between` after each turn."""

    async def script(link: Link) -> None:
        async with trio.open_nursery() as nursery:
            await serve(link, nursery, turns, before, between)
            nursery.cancel_scope.cancel()

    return script


async def serve(
    link: Link, nursery: trio.Nursery, turns: Sequence[Sequence[Step]], before: Sequence[Step], between: Sequence[Step]
) -> None:
    request = await wrap_server_stream(nursery, link.stream)
    link.path = request.path
    link.headers = {name.decode().lower(): value.decode() for name, value in request.headers}
    socket = await request.accept()
    try:
        await _say(socket, link, before)
        for turn in turns:
            link.asked.append(json.loads(await socket.get_message()))
            await _say(socket, link, turn)
            await _say(socket, link, between)
        link.asked.append(json.loads(await socket.get_message()))
        await trio.sleep(math.inf)  # asked for more than it has: it says nothing
    except ConnectionClosed as closed:
        link.closed_at = trio.current_time()
        link.code = closed.reason.code if closed.reason else None


async def _say(socket: WebSocketConnection, link: Link, steps: Sequence[Step]) -> None:
    for step in steps:
        match step:
            case None:
                await trio.aclose_forcefully(link.stream)
            case Close(code):
                await socket.aclose(code)
            case str() | bytes():
                await socket.send_message(step)
            case _:
                await _sleep_or_close(socket, step)


async def _sleep_or_close(socket: WebSocketConnection, seconds: float) -> None:
    """A client sends nothing into an answer, so that what comes is its close."""
    with trio.move_on_after(seconds):
        await socket.get_message()


def raw(*parts: bytes, stays: float = math.inf) -> Script:
    """Answers the handshake with these bytes; ends `stays` seconds later, or when the client has."""

    async def script(link: Link) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await link.stream.receive_some()
        with contextlib.suppress(trio.BrokenResourceError):
            for part in parts:
                await link.stream.send_all(part)
            with trio.move_on_after(stays):
                while await link.stream.receive_some():
                    pass

    return script


def refuse(status: int, body: bytes = b"", *headers: tuple[str, str]) -> Script:
    """Answers the handshake with an HTTP response."""
    lines = [f"HTTP/1.1 {status} No", f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
    return raw("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)
