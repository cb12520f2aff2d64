"""Scripts for `Exchange`: what is put in and what must come out, as one plain list.

    play(exchange, [Request(b"..."), SendRequest(...), Head(200), Data(b"..."), StartResponse(...), SendBody(b"...")])

The commands between two inputs are all that the first of the two must be answered with. `ErrorBody` and `ErrorEvent`
stand for a `SendBody` that tells of an error with that code, whatever its words. A mismatch shows how the script should
have gone and how it went.

`Client` is the other side of the commands: it takes them in order and fails on any that a server could not carry out.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from attrs import field, frozen

from capi_core.errors import Problem
from capi_core.exchange import Command, EndResponse, Exchange, Failure, Outcome, SendBody, SendRequest, StartResponse
from capi_core.sse import SSEDecoder

__all__ = [
    "Client",
    "ClientGone",
    "Data",
    "Eof",
    "ErrorBody",
    "ErrorEvent",
    "Expected",
    "Fail",
    "Head",
    "Input",
    "KeepAlive",
    "Refuse",
    "Request",
    "feed",
    "play",
]

EVENT_STREAM = ((b"content-type", b"text/event-stream"),)


@frozen
class Request:
    body: bytes


@frozen
class Refuse:
    problem: Problem
    outcome: Outcome


@frozen
class Head:
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = EVENT_STREAM


@frozen
class Data:
    data: bytes


@frozen
class Eof:
    pass


@frozen
class Fail:
    failure: Failure


@frozen
class ClientGone:
    pass


@frozen
class KeepAlive:
    pass


Input = Request | Refuse | Head | Data | Eof | Fail | ClientGone | KeepAlive
INPUTS = (Request, Refuse, Head, Data, Eof, Fail, ClientGone, KeepAlive)


@frozen
class ErrorBody:
    """A JSON body that is one OpenAI error object."""

    code: str
    param: str | None = None


@frozen
class ErrorEvent:
    """An event of a stream whose data is one OpenAI error object."""

    code: str
    param: str | None = None


Expected = Command | ErrorBody | ErrorEvent


def feed(exchange: Exchange, given: Input) -> list[Command]:
    """Calls the method that `given` stands for."""
    match given:
        case Request(body):
            return exchange.receive_request(body)
        case Refuse(problem, outcome):
            return exchange.refuse(problem, outcome)
        case Head(status, headers):
            return exchange.receive_head(status, headers)
        case Data(data):
            return exchange.receive_data(data)
        case Eof():
            return exchange.receive_eof()
        case Fail(failure):
            return exchange.receive_failure(failure)
        case ClientGone():
            return exchange.client_gone()
        case KeepAlive():
            return exchange.keep_alive()
        case _:
            assert_never(given)


def play(exchange: Exchange, script: Sequence[Input | Expected]) -> "Client":
    """Runs the script; returns the client that got the answer."""
    client = Client()
    wanted: list[str] = []
    seen: list[str] = []
    for given, expected in _turns(script):
        commands = feed(exchange, given)
        client.take(commands)
        turn = f"> {given}"
        wanted += [turn, *(_shown(command) for command in expected)]
        seen += [turn, *(_shown(command) for command in _in_terms_of(commands, expected))]
    assert seen == wanted, "\n".join(["", *difflib.ndiff(wanted, seen)])
    return client


def _turns(script: Sequence[Input | Expected]) -> Iterator[tuple[Input, list[Expected]]]:
    at = 0
    while at < len(script):
        given = script[at]
        assert isinstance(given, INPUTS), f"the script expects {given} before anything is put in"
        end = next((i for i in range(at + 1, len(script)) if isinstance(script[i], INPUTS)), len(script))
        yield given, [step for step in script[at + 1 : end] if not isinstance(step, INPUTS)]
        at = end


def _in_terms_of(commands: Sequence[Command], expected: Sequence[Expected]) -> Iterator[Expected]:
    """What came out, its errors told by their codes where the script tells them so."""
    for at, command in enumerate(commands):
        pattern = expected[at] if at < len(expected) else None
        if isinstance(command, SendBody) and isinstance(pattern, ErrorBody | ErrorEvent):
            yield _as_error(command, type(pattern)) or command
        else:
            yield command


def _as_error(command: SendBody, kind: type[ErrorBody | ErrorEvent]) -> ErrorBody | ErrorEvent | None:
    data = command.data
    if kind is ErrorEvent:
        decoder = SSEDecoder()
        events = decoder.feed(data)
        if len(events) != 1 or decoder.residue or events[0].data is None:
            return None
        data = events[0].data
    try:
        error = json.loads(data)["error"]
        whole = error.keys() == {"message", "type", "param", "code"} and bool(error["message"]) and bool(error["type"])
        return kind(error["code"], error["param"]) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _shown(command: Expected) -> str:
    """A command on one line, with its body, which its own repr leaves out."""
    match command:
        case SendRequest(upstream, operation, headers, body):
            return f"SendRequest({upstream}, {operation.name}, {headers}, {body!r})"
        case StartResponse(status, headers):  # `Client` has checked the length against the body
            return f"StartResponse({status}, {[header for header in headers if header[0] != b'content-length']})"
        case SendBody(data):
            return f"SendBody({data!r})"
        case _:
            return str(command)


@frozen
class Client:
    """What a client has got. Fails on commands that no server could carry out in this order."""

    requests: list[SendRequest] = field(factory=list)
    heads: list[StartResponse] = field(factory=list)
    bodies: list[bytes] = field(factory=list)
    ends: list[EndResponse] = field(factory=list)

    @property
    def status(self) -> int | None:
        return self.heads[0].status if self.heads else None

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    def take(self, commands: Iterable[Command]) -> None:
        for command in commands:
            assert not self.ends, f"{command} after the end"
            match command:
                case SendRequest():
                    assert not self.requests
                    assert not self.heads
                    self.requests.append(command)
                case StartResponse(status):
                    assert not self.heads
                    assert 200 <= status <= 599
                    self.heads.append(command)
                case SendBody(data):
                    assert self.heads, "a body without a head"
                    assert data
                    self.bodies.append(data)
                case EndResponse():
                    assert self.heads, "an end without a head"
                    self._check_length(dict(self.heads[0].headers))
                    self.ends.append(command)
                case _:
                    assert_never(command)

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        assert headers.keys() >= {b"content-type"}
        if b"content-length" in headers:
            assert int(headers[b"content-length"]) == len(self.body)
        else:
            assert headers[b"content-type"].startswith(b"text/event-stream")
