"""Responses over WebSocket: one client's connection, many turns.

    reader      takes frames, and sees the client leave
    lane        answers the requests of one `stream_id`, one after the other; lanes run beside each other
    end         closes the connection as soon as nothing runs, once it is too old or the gateway goes

A turn is an exchange like any other: it gets a `receive` that tells when the client has left, and a `send` that makes
frames of the answer's bytes. What a turn said is remembered for the next one (`ResponseHistory`). Source: OpenAI API
reference, "WebSocket mode"; wire.md 1.2 and 0.4.
"""

from __future__ import annotations

import http
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import frozen
from hypercorn.typing import HTTPDisconnectEvent, WebsocketAcceptEvent, WebsocketCloseEvent, WebsocketSendEvent

from capi_core.errors import Problem, ProtocolError
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.protocols.responses.history import ResponseHistory
from capi_core.protocols.responses.websocket import (
    ClientFrame,
    FrameEncoder,
    FrameError,
    encode_error_frame,
    in_lane,
    read_client_frame,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import (
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        ASGISendEvent,
        WebsocketReceiveEvent,
    )

    from capi_core.headers import Headers
    from capi_core.members import JSONObject
    from capi_trio.access import Access

__all__ = ["Caller", "ResponsesSession", "SessionLimits"]

_GOING_AWAY: Final = 1001
"""Why a WebSocket is closed (RFC 6455 7.4.1)."""
_MOST_ITEMS: Final = 1024
"""Items of one answer that are kept for the next turn."""
_CLOSING_S: Final = 1.0
"""How long a client may take to answer a close frame."""


@frozen
class Caller:
    """The gateway as the caller of one connection sees it; asked anew for each request.

    `enter`: lets the caller in, or says why not (any more). `refusal`: why a request for that model would be refused.
    `answer`: answers a request of the HTTP route, in ASGI's messages of HTTP; it gets an id and the request's body.
    """

    enter: Callable[[], Access | Problem]
    refusal: Callable[[Access, JSONObject], Awaitable[Problem | None]]
    answer: Callable[[Access, str, bytes, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]


@frozen
class SessionLimits:
    """`age_s`: seconds after which a connection takes no more requests, as OpenAI's own do. `lanes`: at once.
    `waiting`: requests that wait in all lanes together; `waiting_bytes`: what they may hold. `event_bytes`: one event
    of an answer."""

    age_s: float = 3600.0
    lanes: int = 8
    waiting: int = 16
    waiting_bytes: int = 32 * 1024 * 1024
    event_bytes: int = 64 * 1024 * 1024


_TOO_OLD: Final = Problem(400, "websocket_connection_limit_reached", "this connection is too old: open a new one")
_STOPPING: Final = Problem(503, "shutting_down", "this gateway is stopping: open a new connection")
_TOO_MANY: Final = Problem(429, "too_many_requests", "too many requests wait on this connection: await some answers")


class ResponsesSession:
    """One connection, from its handshake to its end. Use once.

    `headers` go out with the handshake. `new_request_id` makes ids of ASCII letters, digits, `_` and `-`; `now_s` gives
    the seconds since epoch.
    """

    def __init__(
        self,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        caller: Caller,
        *,
        headers: Headers,
        new_request_id: Callable[[], str],
        now_s: Callable[[], int],
        limits: SessionLimits,
    ) -> None:
        self._receive = receive
        self._send = send
        self._caller = caller
        self._headers = headers
        self._new_request_id = new_request_id
        self._now_s = now_s
        self._limits = limits
        self._history = ResponseHistory()
        self._lanes: dict[str | None, deque[ClientFrame]] = {}
        self._waiting_bytes = 0
        self._reading = trio.CancelScope()
        self._gone = trio.Event()
        self._closed = False
        self._ending: Problem | None = None
        self._end = trio.Event()
        self._lane_over = trio.Event()

    def drain(self) -> None:
        """Takes no more requests, and ends when those that run are answered."""
        self._refuse_from_now(_STOPPING)

    async def run(self) -> None:
        """Serves the client until it leaves, or the connection's time is over."""
        if (await self._receive())["type"] != "websocket.connect":
            return
        await self._send(WebsocketAcceptEvent(type="websocket.accept", subprotocol=None, headers=self._headers))
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._end_in_time)
            async with trio.open_nursery() as lanes:
                await self._read(lanes)
            tasks.cancel_scope.cancel()

    # -- tasks --------------------------------------------------------------------------------------------------

    async def _read(self, lanes: trio.Nursery) -> None:
        with self._reading:
            while (message := await self._receive())["type"] == "websocket.receive":
                await self._take(message, lanes)
        self._gone.set()  # running turns see it, and end as those of any client that leaves
        for queue in self._lanes.values():
            queue.clear()

    async def _take(self, message: WebsocketReceiveEvent, lanes: trio.Nursery) -> None:
        try:
            frame = read_client_frame(message["text"] or message["bytes"] or b"")
        except FrameError as error:
            await self._tell(Problem.of(error), error.stream_id)
            return
        problem = self._ending or self._crowded(frame)
        if problem is not None:
            await self._tell(problem, frame.stream_id)
            return
        self._waiting_bytes += len(frame.document.text)
        queue = self._lanes.get(frame.stream_id)
        if queue is not None:
            queue.append(frame)
            return
        self._lanes[frame.stream_id] = deque((frame,))
        lanes.start_soon(self._serve_lane, frame.stream_id)

    def _crowded(self, frame: ClientFrame) -> Problem | None:
        """Why there is no room for another request."""
        limits = self._limits
        waiting = sum(map(len, self._lanes.values()))
        new_lane = frame.stream_id not in self._lanes
        full = waiting >= limits.waiting or (new_lane and len(self._lanes) >= limits.lanes)
        # One request of any legal size always has room, as it has over HTTP.
        heavy = self._waiting_bytes > 0 and self._waiting_bytes + len(frame.document.text) > limits.waiting_bytes
        return _TOO_MANY if full or heavy else None

    async def _serve_lane(self, stream_id: str | None) -> None:
        queue = self._lanes[stream_id]
        while queue:
            frame = queue.popleft()
            try:
                await self._serve(frame)
            finally:
                self._waiting_bytes -= len(frame.document.text)
        del self._lanes[stream_id]
        self._lane_over.set()

    async def _end_in_time(self) -> None:
        with trio.move_on_after(self._limits.age_s):
            await self._end.wait()
        self._refuse_from_now(_TOO_OLD)
        while self._lanes:
            self._lane_over = trio.Event()
            await self._lane_over.wait()
        if self._ending is _TOO_OLD:
            await self._tell(_TOO_OLD, None)
        self._closed = True
        await self._send(WebsocketCloseEvent(type="websocket.close", code=_GOING_AWAY, reason=None))
        self._reading.deadline = trio.current_time() + _CLOSING_S

    # -- turns --------------------------------------------------------------------------------------------------

    async def _serve(self, frame: ClientFrame) -> None:
        stream_id = frame.stream_id
        try:
            document = self._history.expand(frame.document)
        except ProtocolError as error:
            await self._tell(Problem.of(error), stream_id)
            return
        access = self._caller.enter()
        if isinstance(access, Problem):  # the key has been taken back
            await self._tell(access, stream_id)
            self._refuse_from_now(access)
        elif frame.generate:
            await self._answer(access, document, stream_id)
        else:
            await self._warm_up(access, document, stream_id)

    async def _warm_up(self, access: Access, document: JSONObject, stream_id: str | None) -> None:
        problem = await self._caller.refusal(access, document)
        if problem is not None:
            await self._tell(problem, stream_id)
            return
        try:
            texts = self._history.warm_up(document, f"resp_{self._new_request_id()}", self._now_s())
        except ProtocolError as error:
            await self._tell(Problem.of(error), stream_id)
            return
        for text in texts:
            await self._send_frame(in_lane(text, stream_id))

    async def _answer(self, access: Access, document: JSONObject, stream_id: str | None) -> None:
        turn = _Turn(stream_id, self._send_frame, self._gone, self._limits.event_bytes)
        await self._caller.answer(access, self._new_request_id(), document.text, turn.receive, turn.send)
        if turn.response is not None:
            with suppress(ProtocolError):  # then nobody can refer to it
                self._history.remember(turn.response.id, document, turn.response.text)

    def _refuse_from_now(self, problem: Problem) -> None:
        self._ending = self._ending or problem
        self._end.set()

    async def _tell(self, problem: Problem, stream_id: str | None) -> None:
        await self._send_frame(encode_error_frame(problem, stream_id=stream_id))

    async def _send_frame(self, text: str) -> None:
        if not self._closed:
            await self._send(WebsocketSendEvent(type="websocket.send", bytes=None, text=text))


class _Response(msgspec.Struct):
    id: str


class _Last(msgspec.Struct):
    type: str
    response: msgspec.Raw


class _Output(msgspec.Struct):
    output: list[msgspec.Raw] | None = None


class _Item(msgspec.Struct):
    type: str
    item: msgspec.Raw
    output_index: int | None = None


_ITEM: Final = msgspec.json.Decoder(_Item)
_ITEM_DONE: Final = "response.output_item.done"
_OUTPUT: Final = msgspec.json.Decoder(_Output)
_LAST: Final = msgspec.json.Decoder(_Last)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_LAST_TYPES: Final = frozenset({"response.completed", "response.incomplete"})


@frozen
class _Said:
    """A response that the client has got whole. `text`: its JSON."""

    id: str
    text: bytes


class _Turn:
    """What an exchange sees as its client: an HTTP request of this connection's.

    `response` is what the client may refer to afterwards: nothing, if the answer did not come to its end.
    """

    def __init__(
        self,
        stream_id: str | None,
        send_frame: Callable[[str], Awaitable[None]],
        gone: trio.Event,
        max_event_bytes: int,
    ) -> None:
        self.response: _Said | None = None
        self._stream_id = stream_id
        self._send_frame = send_frame
        self._gone = gone
        self._frames = FrameEncoder(stream_id=stream_id, max_event_bytes=max_event_bytes)
        self._status = 0
        self._headers: Headers = ()
        self._error = bytearray()
        self._items: dict[int, bytes] = {}

    async def receive(self) -> ASGIReceiveEvent:
        """There is no body to read: the next that comes of this client is its end."""
        await self._gone.wait()
        return HTTPDisconnectEvent(type="http.disconnect")

    async def send(self, message: ASGISendEvent) -> None:
        match message["type"]:
            case "http.response.start":
                self._status = message["status"]
                self._headers = tuple(message["headers"])
            case "http.response.body" if self._status == http.HTTPStatus.OK:
                for text in self._frames.receive_data(message["body"]):
                    self._note(text)
                    await self._send_frame(text)
            case "http.response.body":
                self._error += message["body"]
                if not message["more_body"]:
                    await self._send_frame(self._refused())
            case _:
                raise AssertionError("an exchange answers with a head and a body")

    def _refused(self) -> str:
        """The frame for an answer that is no stream."""
        problem = CODECS[Protocol.RESPONSES].decode_error(bytes(self._error), self._status)
        if problem is None:
            raise AssertionError("a refusal has the shape of an error")
        return encode_error_frame(problem, headers=self._headers, stream_id=self._stream_id)

    def _note(self, text: str) -> None:
        with suppress(msgspec.DecodeError, RecursionError):  # the upstream's own kind of event
            if any(kind in text for kind in _LAST_TYPES):  # a look at most frames, a decode of few
                last = _LAST.decode(text)
                if last.type in _LAST_TYPES:
                    self.response = _Said(_RESPONSE.decode(last.response).id, self._whole(bytes(last.response)))
            elif _ITEM_DONE in text:
                done = _ITEM.decode(text)
                if done.type == _ITEM_DONE and len(self._items) < _MOST_ITEMS:
                    place = len(self._items) if done.output_index is None else done.output_index
                    self._items[place] = bytes(done.item)

    def _whole(self, response: bytes) -> bytes:
        """The response with its output: some servers leave that out of the last event (wire.md 1.7)."""
        if not self._items or _OUTPUT.decode(response).output:
            return response
        return b'{"output":[%b]}' % b",".join(item for _, item in sorted(self._items.items()))
