"""Responses over a WebSocket: one JSON text per frame, both ways (wire.md 1.2, end).

A `response.create` is answered with the events of the HTTP stream. Those of one lane (`stream_id`) are answered one
after the other, lanes at the same time. The connection remembers its last conversations, whatever `store` says, so
that a request may go on from any of them (`previous_response_id`).

Faults are those of the stream. What concerns its bytes only (line ends, comments, `split`) changes nothing; an answer
without its last event ends the connection, with a close frame where an HTTP body would have its proper end.

Source: OpenAI, "WebSocket mode". Nothing is shared with the gateway's own code for it.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, assert_never

import msgspec
import trio
from attrs import define, field
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketReceiveEvent, WebsocketScope

from capi_core.errors import Problem
from capi_trio.asgi import ResetConnectionError
from capi_trio.demo import responses
from capi_trio.demo.answers import Answer, Drop, Pause, Refused, Request, World, Write, decode, error_object, refusal
from capi_trio.demo.records import Ledger, Outcome, RequestRecord
from capi_trio.demo.response_object import Echo
from capi_trio.demo.responses_request import Item, ResponsesRequest

__all__ = ["Socket", "turn_away"]

# Requests on a connection that wait or are being answered, and conversations that it remembers.
_MOST_UNANSWERED: Final = 16
_MOST_REMEMBERED: Final = 16

_NORMAL_CLOSURE: Final = 1000
_TOO_MANY: Final = Problem(
    429, "rate_limit_exceeded", f"At most {_MOST_UNANSWERED} requests may be unanswered on one connection."
)
_DATA: Final = b"data: "


class _Create(ResponsesRequest, frozen=True):
    """A `response.create`: the members of the HTTP request, and the connection's own."""

    type: str | None = None
    stream_id: str | None = None
    generate: bool | None = None
    background: bool | None = None


class _Lane(msgspec.Struct, frozen=True):
    stream_id: str | None = None


class _Response(msgspec.Struct, frozen=True):
    id: str
    output: list[Item]


class _Ended(msgspec.Struct, frozen=True):
    response: _Response


class _Event(msgspec.Struct, frozen=True):
    """An event of the stream; all but `type` only of an `error`."""

    type: str
    sequence_number: int | None = None
    code: str | None = None
    message: str = ""
    param: str | None = None


class _Refusal(msgspec.Struct, frozen=True):
    """The body of an error answer."""

    error: dict[str, object]


_REMEMBERED: Final = frozenset({"response.completed", "response.incomplete"})
_TERMINAL: Final = _REMEMBERED | {"response.failed", "error"}


async def turn_away(
    scope: WebsocketScope, send: ASGISendCallable, answer: Answer, handshake: Request, ledger: Ledger
) -> None:
    """Answers a handshake with a refusal instead, and records it."""
    started = trio.current_time()
    ledger.begin_request()
    outcome = Outcome.CANCELLED
    try:
        if "websocket.http.response" in scope["extensions"]:
            headers = (*answer.headers, (b"x-request-id", handshake.id.encode()))
            await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
            body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
            await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
        else:
            await send({"type": "websocket.close", "code": _NORMAL_CLOSURE, "reason": None})
        outcome = Outcome.COMPLETED
    finally:
        ledger.end_request(_record(handshake, b"", answer.status, outcome, started))


@define
class _Turn:
    """A frame of the client, and how far its answer is.

    `problem`: why the frame is refused unread. `conversation`: the input with what came before it. `told`: the client
    has the last frame of the answer, or will have it next.
    """

    body: bytes = field(repr=False)
    lane: str | None
    problem: Problem | None = None
    conversation: tuple[Item, ...] = ()
    status: int | None = None
    told: bool = False


class Socket:
    """One connection. `max_frame_bytes` bounds a frame of the client, in bytes of UTF-8."""

    def __init__(
        self,
        handshake: Request,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        world: World,
        max_frame_bytes: int,
        ledger: Ledger,
    ) -> None:
        self._handshake = handshake
        self._receive = receive
        self._send = send
        self._world = world
        self._max_frame_bytes = max_frame_bytes
        self._ledger = ledger
        self._nursery: trio.Nursery
        self._lanes: dict[str | None, deque[_Turn]] = {}
        self._memory = _Memory()
        self._dropped = False
        self._cut = Outcome.CANCELLED
        """How an answer ended that did not come to its end."""

    async def run(self) -> None:
        """Serves the connection until it ends. Raises `ResetConnectionError` for the fault of that kind."""
        headers = ((b"x-request-id", self._handshake.id.encode()),)
        await self._send({"type": "websocket.accept", "subprotocol": None, "headers": headers})
        async with trio.open_nursery() as self._nursery:
            await self._read()
            self._nursery.cancel_scope.cancel()
        if self._dropped:
            raise ResetConnectionError

    async def _read(self) -> None:
        """Queues the frames of the client, until it has gone."""
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self._cut = Outcome.CLIENT_GONE
                return
            turn = self._turn_of(message)
            if sum(map(len, self._lanes.values())) >= _MOST_UNANSWERED:
                turn.problem = _TOO_MANY
                await self._serve(turn)
            elif turn.lane in self._lanes:
                self._lanes[turn.lane].append(turn)
            else:
                self._lanes[turn.lane] = deque([turn])
                self._nursery.start_soon(self._serve_lane, turn.lane)

    def _turn_of(self, message: WebsocketReceiveEvent) -> _Turn:
        text = message["text"]
        if text is None:
            return _Turn(b"", None, Problem(400, "invalid_json", "A frame is a JSON text, not binary."))
        body = text.encode(errors="replace")
        if len(body) > self._max_frame_bytes:
            reason = f"The frame is over {self._max_frame_bytes} bytes."
            return _Turn(b"", None, Problem(413, "request_too_large", reason))
        return _Turn(body, _lane_of(body))

    async def _serve_lane(self, lane: str | None) -> None:
        turns = self._lanes[lane]
        while turns:
            await self._serve(turns[0])
            turns.popleft()
        del self._lanes[lane]

    async def _serve(self, turn: _Turn) -> None:
        started = trio.current_time()
        self._ledger.begin_request()
        answer = self._answer(turn)
        try:
            await trio.sleep(answer.delay_s)
            turn.status = answer.status
            if answer.status == 200:
                await self._play(answer, turn)
            else:
                turn.told = True
                await self._send_text(_error_frame(answer), turn.lane)
        finally:
            outcome = self._cut
            if turn.told:
                outcome = Outcome.COMPLETED if answer.sound else Outcome.FAULTED
            self._ledger.end_request(_record(self._handshake, turn.body, turn.status, outcome, started))

    def _answer(self, turn: _Turn) -> Answer:
        if turn.problem is not None:
            return refusal(turn.problem)
        try:
            create = decode(turn.body, _Create)
            _check(create)
            turn.conversation = self._memory.conversation(create)
            asked = msgspec.structs.replace(
                create,
                input=None if create.input is None else list(turn.conversation),
                previous_response_id=None,
                stream=True,
            )
            generate = create.generate is not False
            return responses.respond(asked, decode(turn.body, Echo), self._world, generate=generate)
        except Refused as refused:
            return refusal(refused.problem)

    async def _play(self, answer: Answer, turn: _Turn) -> None:
        lines = _DataLines()
        for step in answer.steps:
            match step:
                case Write(data):
                    for line in lines.feed(data):
                        await self._send_event(line, turn)
                case Pause(seconds):
                    await trio.sleep(seconds)
                case Drop():
                    self._dropped = True
                    self._break_off()
                    return
                case _:
                    assert_never(step)
        if not turn.told:
            # Over HTTP the body ends here. Nothing else would tell the client that no more comes.
            await self._send({"type": "websocket.close", "code": _NORMAL_CLOSURE, "reason": None})
            self._break_off()

    def _break_off(self) -> None:
        self._cut = Outcome.FAULTED
        self._nursery.cancel_scope.cancel()

    async def _send_event(self, data: bytes, turn: _Turn) -> None:
        try:
            event = msgspec.json.decode(data, type=_Event)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a fault has been at it
            await self._send_text(data, None)
            return
        if event.type in _REMEMBERED:
            self._memory.remember(turn.conversation, msgspec.json.decode(data, type=_Ended).response)
        # Not after the send: a client that leaves as soon as it has the last frame has the whole answer.
        turn.told = event.type in _TERMINAL
        await self._send_text(_nested(event) if event.type == "error" else data, turn.lane)

    async def _send_text(self, data: bytes, lane: str | None) -> None:
        """Sends a JSON object (of at least one member), with the name of its lane; or, without a lane, anything."""
        if lane is not None:
            data = data[:-1] + b',"stream_id":' + msgspec.json.encode(lane) + b"}"
        await self._send({"type": "websocket.send", "bytes": None, "text": data.decode(errors="replace")})


class _Memory:
    """The conversations that led to the last responses of a connection, with these, by the id of the response."""

    def __init__(self) -> None:
        self._conversations: dict[str, tuple[Item, ...]] = {}

    def remember(self, conversation: tuple[Item, ...], response: _Response) -> None:
        self._conversations[response.id] = (*conversation, *response.output)
        if len(self._conversations) > _MOST_REMEMBERED:
            del self._conversations[next(iter(self._conversations))]

    def conversation(self, create: _Create) -> tuple[Item, ...]:
        """A request's input, after the conversation that it goes on from. Raises `Refused` when that is unknown."""
        items = (Item(role="user", content=create.input),) if isinstance(create.input, str) else create.input or ()
        previous = create.previous_response_id
        if previous is None:
            return tuple(items)
        earlier = self._conversations.get(previous)
        if earlier is None:
            message = f"Previous response with id '{previous}' not found."
            raise Refused.because(message, "previous_response_not_found", "previous_response_id")
        return (*earlier, *items)


class _DataLines:
    """Takes the data out of an event stream of the demo provider: of one line per event, whatever ends the lines."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of each event that is now there. (An empty line between CR and LF does no harm.)"""
        *ended, rest = data.replace(b"\r", b"\n").split(b"\n")
        for piece in ended:
            self._line += piece
            if self._line.startswith(_DATA):
                yield bytes(self._line.removeprefix(_DATA))
            self._line.clear()
        self._line += rest


def _check(create: _Create) -> None:
    """Raises `Refused` for a frame that only looks like a request."""
    if create.type != "response.create":
        message = f"Invalid value: '{create.type}'. Supported values are: 'response.create'."
        raise Refused.because(message, "invalid_value", "type")
    if create.background:
        raise Refused.because("Unsupported parameter: 'background'.", "unsupported_parameter", "background")


def _lane_of(body: bytes) -> str | None:
    try:
        return decode(body, _Lane).stream_id
    except Refused:
        return None


def _error_frame(answer: Answer) -> bytes:
    """The frame for an error answer: nested, and with the headers that a client must heed."""
    body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
    error = msgspec.json.decode(body, type=_Refusal).error
    headers = {name.decode(): value.decode() for name, value in answer.headers if name == b"retry-after"}
    if headers:
        error["headers"] = headers
    return msgspec.json.encode({"type": "error", "status": answer.status, "error": error})


def _nested(event: _Event) -> bytes:
    """An `error` event of a stream, whose members are flat, as the frame that it is here."""
    problem = Problem(500, event.code or "server_error", event.message, event.param)
    frame = {"type": "error", "sequence_number": event.sequence_number, **error_object(problem)}
    return msgspec.json.encode(frame)


def _record(handshake: Request, body: bytes, status: int | None, outcome: Outcome, started: float) -> RequestRecord:
    return RequestRecord(
        method=handshake.method,
        path=handshake.path,
        headers=handshake.headers,
        body=body,
        status=status,
        outcome=outcome,
        started=started,
        ended=trio.current_time(),
        websocket=True,
    )
