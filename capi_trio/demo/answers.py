"""A ready HTTP answer, and the ways to refuse one.

Handlers return an `Answer` or raise `Refused`; `app` sends the one and shapes the other.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import msgspec
from attrs import field, frozen

from capi_core.errors import Problem

__all__ = [
    "Answer",
    "Drop",
    "ErrorShape",
    "Pause",
    "Refused",
    "Request",
    "Step",
    "World",
    "Write",
    "decode",
    "error_object",
    "json_answer",
    "json_headers",
    "refusal",
]

T = TypeVar("T")


@frozen
class Write:
    """Send these bytes of the body in one write."""

    data: bytes = field(repr=False)


@frozen
class Pause:
    """Wait so many seconds; infinity waits until the client goes."""

    seconds: float


@frozen
class Drop:
    """Break the connection off, without a proper end of the body."""


Step = Write | Pause | Drop


@frozen
class Answer:
    """A response: the head after `delay_s` seconds, then the body step by step.

    `sound` is False when a fault makes the answer improper (an error, a broken or early end).
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    steps: Iterable[Step]
    delay_s: float = 0.0
    sound: bool = True


@frozen
class Request:
    """A request as it came: method in capitals, path without its query, header names in small letters.

    `id` is the request's id as the answer's headers give it.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    id: str = ""

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of that name (small letters), or None."""
        return next((value for found, value in self.headers if found == name), None)


@frozen
class World:
    """What a handler may use of the outside: the time (Unix seconds), new ids by prefix, the usual pace (s)."""

    clock: Callable[[], float]
    new_id: Callable[[str], str]
    pace_s: float


class Refused(Exception):
    """The request gets `problem` for an answer, in the shape of its protocol."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem

    @classmethod
    def because(cls, message: str, code: str, param: str | None = None, status: int = 400) -> "Refused":
        """A refusal with a new problem; `param` is the member of the request that is to blame."""
        return cls(Problem(status, code, message, param=param))


# A problem as the body of an error answer, in the shape of a protocol.
ErrorShape = Callable[[Problem], Mapping[str, object]]

_AT: Final = re.compile(r" - at `\$\.?(.*)`$")


def decode(body: bytes, kind: type[T]) -> T:
    """The request body as `kind`. Raises `Refused` (400) for what is not JSON or has the wrong types."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        found = _AT.search(str(error))
        raise Refused.because(f"Invalid request: {error}.", "invalid_type", found and found[1]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "We could not parse the JSON body of your request."
        raise Refused.because(message, "invalid_json") from None


def error_object(problem: Problem) -> dict[str, object]:
    """The problem as OpenAI's servers put it: `{"error": {message, type, param, code}}`."""
    if problem.status == 429:
        kind = "rate_limit_error"
    elif problem.status >= 500:
        kind = "server_error"
    else:
        kind = "invalid_request_error"
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def json_answer(value: object, status: int = 200) -> Answer:
    """An answer with `value` as its JSON body."""
    body = msgspec.json.encode(value)
    return Answer(status, json_headers(len(body)), (Write(body),))


def json_headers(length: int) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a JSON body of `length` bytes."""
    return ((b"content-type", b"application/json"), (b"content-length", b"%d" % length))


def refusal(problem: Problem, shape: ErrorShape = error_object) -> Answer:
    """The answer for a problem in a protocol's shape (OpenAI's), with `retry-after` when the problem has one."""
    answer = json_answer(shape(problem), problem.status)
    if problem.retry_after_s is None:
        return answer
    retry_after = (b"retry-after", b"%d" % problem.retry_after_s)
    return Answer(answer.status, (*answer.headers, retry_after), answer.steps)
