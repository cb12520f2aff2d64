"""Both neighbours of the gateway, played by a script on trio's clock.

`FakeUpstream` stands in for httpx's connections: `UpstreamClient(targets, transport=FakeUpstream(Reply(...)))`.
`FakePeer` stands in for a server and the client behind it: it is what `Relay` receives from and sends to.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import httpx
import msgspec
import trio
from attrs import field, frozen
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPDisconnectEvent
from typing_extensions import override

from capi_trio.upstream import Secret, UpstreamClient, UpstreamTarget

__all__ = [
    "DONE",
    "Asked",
    "FakePeer",
    "FakeUpstream",
    "Reply",
    "Sent",
    "chat_answer",
    "chat_stream",
    "chunk",
    "client",
    "finish",
    "json_reply",
    "texts",
    "usage",
]

Step = bytes | Exception | float | Callable[[], Awaitable[None]]
"""What comes next: bytes, a failure, so many seconds of silence, or whatever the call waits for."""

DONE: Final = b"data: [DONE]\n\n"
SSE: Final = (("content-type", "text/event-stream"),)


@frozen
class Reply:
    """An upstream's answer: its head comes after `head_after` seconds, its body as scripted, then it ends.

    Without a proper end when the script's last step is an exception; not at all when it is `math.inf`.
    """

    script: Sequence[Step] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = SSE
    head_after: float = 0.0


@frozen(eq=False)
class Asked:
    """One request as the upstream saw it, and the body that it got."""

    method: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    limits: Mapping[str, float | None]
    """httpx's own time limits for it, in seconds."""
    answer: "_Body" = field(repr=False)
    at: float
    """When it was asked."""

    @property
    def taken(self) -> int:
        """How many steps of the script were taken."""
        return self.answer.taken

    @property
    def closed_at(self) -> float | None:
        """When the answer was closed; None: it is still open."""
        return self.answer.closed_at

    def header(self, name: bytes) -> list[bytes]:
        return [value for field_name, value in self.headers if field_name.lower() == name]


class _Body(httpx.AsyncByteStream):
    """Not a generator: one that is left early would have to be closed by somebody."""

    def __init__(self, script: Sequence[Step]) -> None:
        self.taken = 0
        self.closed_at: float | None = None
        self._script = script

    @override
    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while self.taken < len(self._script):
            step = self._script[self.taken]
            self.taken += 1
            if isinstance(step, bytes):
                return step
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float | int):
                await trio.sleep(step)
            else:
                await step()
        raise StopAsyncIteration

    @override
    async def aclose(self) -> None:
        if self.closed_at is None:
            self.closed_at = trio.current_time()


class FakeUpstream(httpx.AsyncBaseTransport):
    """Gives each request the next of `replies`, the last one to all that follow. An exception is raised instead.

    `asked` holds every request in order; `waiting` counts those that have no response head yet.
    """

    def __init__(self, *replies: Reply | Exception) -> None:
        self.asked: list[Asked] = []
        self.waiting = 0
        self.closed = False
        self._replies = list(replies)

    @property
    def open(self) -> int:
        """Answers that have begun and were not closed."""
        return sum(asked.closed_at is None for asked in self.asked) - self.waiting

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        body = _Body(() if isinstance(reply, Exception) else reply.script)
        headers = tuple(request.headers.raw)
        limits = msgspec.convert(request.extensions["timeout"], dict[str, float | None])
        sent = await request.aread()
        self.asked.append(Asked(request.method, str(request.url), headers, sent, limits, body, trio.current_time()))
        if isinstance(reply, Exception):
            await body.aclose()
            raise reply
        self.waiting += 1
        try:
            await trio.sleep(reply.head_after)
        except BaseException:
            await body.aclose()
            raise
        finally:
            self.waiting -= 1
        return httpx.Response(reply.status, headers=list(reply.headers), stream=body)

    @override
    async def aclose(self) -> None:
        self.closed = True


def client(upstream: httpx.AsyncBaseTransport, *names: str, key: str | None = "sk-upstream-key") -> UpstreamClient:
    """A client for upstreams of these names, at http://NAME.test/v1."""
    secret = None if key is None else Secret(key)
    targets = {name: UpstreamTarget(name, f"http://{name}.test/v1", secret) for name in names or ("up",)}
    return UpstreamClient(targets, transport=upstream)


# -- what upstreams say --------------------------------------------------------------------------------------------


def chunk(text: str, **members: object) -> bytes:
    """One event of a Chat Completions stream."""
    return _event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **members)


def finish(reason: str = "stop") -> bytes:
    return _event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


def usage(prompt: int, completion: int) -> bytes:
    return _event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion})


def chat_stream(*texts: str) -> bytes:
    """A whole stream."""
    return b"".join(map(chunk, texts)) + finish() + usage(3, 4) + DONE


def chat_answer(text: str = "hello") -> dict[str, object]:
    """A whole JSON answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def json_reply(document: object, status: int = 200, *headers: tuple[str, str], head_after: float = 0.0) -> Reply:
    kind = ("content-type", "application/json")
    return Reply([msgspec.json.encode(document)], status, (kind, *headers), head_after)


def _event(**members: object) -> bytes:
    return b"data: " + msgspec.json.encode({"id": "c", "model": "m", **members}) + b"\n\n"


# -- the client's side ---------------------------------------------------------------------------------------------


@frozen
class Sent:
    """A message that was sent, and when the send began."""

    at: float
    message: ASGISendEvent


class FakePeer:
    """A server as an ASGI app sees it.

    `delays`: how long each send takes, in turn; `math.inf`: until the client leaves, as in `capi_trio.connection`,
    where a send to one that takes nothing ends by dropping it. Sends cannot be cancelled, as there. After the client
    has left they do nothing, and one under way ends after `receive` has told.
    """

    def __init__(self, *delays: float) -> None:
        self.sent: list[Sent] = []
        self._delays = delays or (0.0,)
        self._gone = trio.Event()
        self._told = trio.Event()

    def leave(self) -> None:
        """The client goes away."""
        self._gone.set()

    async def receive(self) -> ASGIReceiveEvent:
        await self._gone.wait()
        self._told.set()
        return HTTPDisconnectEvent(type="http.disconnect")

    async def send(self, message: ASGISendEvent) -> None:
        if self._gone.is_set():
            return
        delay = self._delays[len(self.sent) % len(self._delays)]
        self.sent.append(Sent(trio.current_time(), message))
        if delay:
            with trio.move_on_after(delay, shield=True):
                await self._told.wait()

    @property
    def status(self) -> int | None:
        """The status that was sent; None: no head was."""
        return next(
            (sent.message["status"] for sent in self.sent if sent.message["type"] == "http.response.start"), None
        )

    @property
    def headers(self) -> dict[bytes, bytes]:
        heads = (sent.message for sent in self.sent)
        return next((dict(head["headers"]) for head in heads if head["type"] == "http.response.start"), {})

    @property
    def pieces(self) -> list[tuple[float, bytes]]:
        """The body as it was sent: when, and what."""
        return [(sent.at, sent.message["body"]) for sent in self.sent if sent.message["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def complete(self) -> bool:
        """Whether the answer's end was sent, once."""
        ends = [not sent.message["more_body"] for sent in self.sent if sent.message["type"] == "http.response.body"]
        return ends.count(True) == 1 and ends[-1]


def texts(body: bytes) -> str:
    """What the chunks of a Chat Completions stream say, put together."""
    found = []
    for line in body.splitlines():
        data = line.removeprefix(b"data: ")
        if line != data and data != b"[DONE]":
            found += [choice.delta.content for choice in msgspec.json.decode(data, type=_Chunk).choices]
    return "".join(found)


class _Delta(msgspec.Struct):
    content: str = ""


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
