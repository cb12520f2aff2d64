"""One proxied request as one machine: a client's request in, an answer and its account out.

The embedder owns the sockets and the clock. It makes an `Exchange` for each request, feeds it what arrives, and
carries out the commands it returns, in order:

    exchange = Exchange(Operation.CHAT, catalog, request_id="...")
    commands = exchange.receive_request(body)

- `SendRequest`: ask that upstream; add its credential to the headers. Then report what comes back with
  `receive_head`, `receive_data` and one of `receive_eof` or `receive_failure`.
- `StartResponse`, `SendBody`, `EndResponse`: the answer to the client. After `EndResponse` close the upstream's
  response if it is still open.

Report `client_gone` when the client has left, `keep_alive` when the client has waited for some 15 s, and `refuse` when
the runtime itself will not serve the request. Once `state` is DONE every input is taken and answered with no command,
so that no race between two tasks of the embedder is a fault. Then `record()` is the request's account.

Theory of operation.

    IDLE -> REQUESTED -> COLLECTING -> DONE             a JSON answer, or any error status: read whole, then answered
                      -> HOLDING -> STREAMING -> DONE   an event stream
                      -> WAITING -> STREAMING -> DONE   the same after a keep-alive; or COLLECTING

HOLDING: the upstream said 200, but nothing of its stream has come. The client's response head is held until the first
event, so that a stream that fails at once still becomes a real HTTP status. Once the head is out (the first event, or a
keep-alive) a failure can only be told inside the stream. WAITING: it is out, and the upstream has not answered yet.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from capi_core import headers as header_rules
from capi_core.aliases import ModelRefusedError, OutOfScopeError, anybody
from capi_core.commands import (
    Command,
    EndResponse,
    ExchangeLimits,
    Failure,
    Operation,
    Outcome,
    Record,
    SendBody,
    SendRequest,
    StartResponse,
)
from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.members import decode
from capi_core.protocols import chat, embeddings, openai
from capi_core.sse import KEEP_ALIVE, encode
from capi_core.usage import Usage, UsageSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capi_core.aliases import Catalog, MayCall, Resolution
    from capi_core.headers import Headers

__all__ = [
    "Command",
    "EndResponse",
    "Exchange",
    "ExchangeLimits",
    "Failure",
    "Operation",
    "Outcome",
    "Record",
    "SendBody",
    "SendRequest",
    "StartResponse",
    "State",
]


class State(enum.Enum):
    """See the theory of operation above."""

    IDLE = enum.auto()
    REQUESTED = enum.auto()
    WAITING = enum.auto()
    COLLECTING = enum.auto()
    HOLDING = enum.auto()
    STREAMING = enum.auto()
    DONE = enum.auto()


class Exchange:
    """The machine. See the module for the order of calls.

    `hidden`: secrets, as bytes, that must not reach the client inside an upstream's error text.
    `ask_usage`: names of upstreams that refuse `stream_options` map to False. `may_call`: the caller's scope.
    """

    def __init__(
        self,
        operation: Operation,
        catalog: Catalog,
        *,
        request_id: str,
        limits: ExchangeLimits | None = None,
        hidden: tuple[bytes, ...] = (),
        ask_usage: Mapping[str, bool] | None = None,
        may_call: MayCall = anybody,
    ) -> None:
        self.state = State.IDLE
        self.outcome: Outcome | None = None
        self._operation = operation
        self._catalog = catalog
        self._request_id = request_id
        self._limits = limits or ExchangeLimits()
        self._hidden = hidden
        self._ask_usage = ask_usage or {}
        self._may_call = may_call
        self._model: str | None = None
        self._resolution: Resolution | None = None
        self._stream: chat.ChatStream | None = None
        self._status: int | None = None
        self._upstream_status = 0
        self._upstream_headers: Headers = ()
        self._parts: list[bytes] = []
        self._size = 0
        self._answer_usage: Usage | None = None

    # -- what the embedder asks ---------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether the client asked for an event stream."""
        return self._stream is not None

    @property
    def answered(self) -> bool:
        """The client has the whole answer and only the upstream's end is missing: a short wait for it is enough."""
        return (
            self.state is State.STREAMING and self._stream is not None and self._stream.state is chat.StreamState.DONE
        )

    @property
    def upstream(self) -> str | None:
        """The name of the upstream that is asked; `None` when the request was refused before that was decided."""
        return None if self._resolution is None else self._resolution.upstream

    def record(self) -> Record:
        """The account. Raises `LocalError` before the end."""
        if self.outcome is None:
            raise LocalError("the exchange has not ended")
        usage = self._answer_usage
        if usage is None and self._stream is not None:
            usage = self._stream.usage
        source = UsageSource.NONE
        if usage is not None:
            final = self.outcome is Outcome.OK
            source = UsageSource.UPSTREAM_FINAL if final else UsageSource.UPSTREAM_PARTIAL
        resolution = self._resolution
        return Record(
            operation=self._operation,
            outcome=self.outcome,
            status=self._status,
            model=self._model,
            upstream=self.upstream,
            upstream_model=None if resolution is None else resolution.upstream_model,
            stream=self.streams,
            usage=usage,
            usage_source=source,
        )

    # -- inputs -------------------------------------------------------------------------------------------------

    def receive_request(self, body: bytes) -> list[Command]:
        """The client's whole request body. The first input of every exchange but a refused one."""
        if self._ended(State.IDLE):
            return []
        try:
            request, upstream_body = self._prepare(body)
        except ProtocolError as error:
            return self._answer_problem(Problem.of(error), _refusal(error))
        self.state = State.REQUESTED
        headers = header_rules.upstream_request_headers(stream=self.streams, request_id=self._request_id)
        return [SendRequest(request.upstream, self._operation, headers, upstream_body)]

    def refuse(self, problem: Problem, outcome: Outcome) -> list[Command]:
        """The runtime will not serve this request (too large, no slot, shutting down)."""
        if self._ended(State.IDLE, State.REQUESTED, State.WAITING):
            return []
        return self._answer_problem(problem, outcome)

    def receive_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[Command]:
        """The upstream's response head: names in any case, values as received."""
        if self._ended(State.REQUESTED, State.WAITING):
            return []
        self._upstream_status = status
        all_headers = tuple(headers)
        self._upstream_headers = header_rules.client_response_headers(all_headers)
        content_type = header_rules.find(all_headers, b"content-type") or b""
        is_stream = 200 <= status < 300 and self.streams and not _is_document(content_type)
        if not is_stream:
            self.state = State.COLLECTING
        else:
            self.state = State.HOLDING if self.state is State.REQUESTED else State.STREAMING
        return []

    def receive_data(self, data: bytes) -> list[Command]:
        """Bytes of the upstream's response body, in any chunking."""
        if self._ended(State.COLLECTING, State.HOLDING, State.STREAMING) or not data:
            return []
        if self.state is State.COLLECTING:
            return self._collect(data)
        return self._relay(self._live_stream().receive_data(data))

    def receive_eof(self) -> list[Command]:
        """The upstream's response ended as its framing promised."""
        if self._ended(State.COLLECTING, State.HOLDING, State.STREAMING):
            return []
        if self.state is State.COLLECTING:
            return self._answer_collected()
        commands = self._relay(self._live_stream().finish())
        if self.state is State.DONE:
            return commands
        self._end(Outcome.OK)
        return [*commands, EndResponse()]

    def receive_failure(self, failure: Failure) -> list[Command]:
        """The embedder could not get the upstream's response, or lost it half-way."""
        if self.state is State.DONE:
            return []
        if self.answered:
            self._end(Outcome.OK)
            return [EndResponse()]
        status, code, message, outcome = _FAILURES[failure]
        name = self._resolution.upstream if self._resolution is not None else "?"
        retry_after_s = 5 if failure is Failure.SHUTDOWN else None
        problem = Problem(status, code, message.format(upstream=name), retry_after_s=retry_after_s)
        return self._answer_problem(problem, outcome)

    def client_gone(self) -> list[Command]:
        """The client has left. There is nobody to answer; close the upstream's response."""
        if self.state is not State.DONE:
            self._end(Outcome.OK if self.answered else Outcome.CLIENT_GONE)
        return []

    def keep_alive(self) -> list[Command]:
        """The client of a stream has waited for long. A comment is the one form all SDKs accept (wire.md 1.7)."""
        if not self.streams or self.state not in _KEEP_ALIVE_STATES:
            return []
        return [*self._start_stream(), SendBody(KEEP_ALIVE)]

    # -- the request --------------------------------------------------------------------------------------------

    def _prepare(self, body: bytes) -> tuple[Resolution, bytes]:
        match self._operation:
            case Operation.CHAT:
                return self._prepare_chat(chat.decode_request(body))
            case Operation.EMBEDDINGS:
                request = embeddings.decode_request(body)
                resolution = self._resolve(request.model)
                return resolution, embeddings.encode_request(request, upstream_model=resolution.upstream_model)
            case _:
                assert_never(self._operation)

    def _prepare_chat(self, request: chat.ChatRequest) -> tuple[Resolution, bytes]:
        resolution = self._resolve(request.model)
        injects = self._ask_usage.get(resolution.upstream, True) and not request.asks_usage
        if request.stream:
            self._stream = chat.ChatStream(
                public_name=resolution.public_name if resolution.renames else None,
                swallow_usage=injects,
                choices=request.choices,
                max_event_bytes=self._limits.max_event_bytes,
            )
        upstream_body = chat.encode_request(
            request, upstream_model=resolution.upstream_model, inject_usage=request.stream and injects
        )
        return resolution, upstream_body

    def _resolve(self, model: str) -> Resolution:
        self._model = model
        self._resolution = self._catalog.resolve(model, self._may_call)
        return self._resolution

    # -- a whole answer -----------------------------------------------------------------------------------------

    def _collect(self, data: bytes) -> list[Command]:
        self._parts.append(data)
        self._size += len(data)
        ok = self._upstream_status < 300
        if self._size <= (self._limits.max_answer_bytes if ok else self._limits.max_error_bytes):
            return []
        self._parts.clear()
        return self._answer_problem(
            Problem(502, "upstream_answer_too_large", "the upstream's answer is larger than this gateway takes"),
            Outcome.UPSTREAM_BROKE,
        )

    def _answer_collected(self) -> list[Command]:
        body = b"".join(self._parts)
        self._parts.clear()
        if not 200 <= self._upstream_status < 300:
            return self._answer_upstream_error(self._upstream_status, body)
        renamed = self._resolution is not None and self._resolution.renames
        name = self._resolution.public_name if self._resolution is not None and renamed else None
        try:
            answer = openai.decode_answer(body, public_name=name)
        except ProtocolError as error:
            return self._answer_problem(Problem.of(error), Outcome.UPSTREAM_BROKE)
        self._answer_usage = answer.usage
        if answer.error:  # some servers say 200 and mean an error
            return self._answer_upstream_error(_error_status(body), body)
        if self.streams:
            problem = Problem(
                502,
                "upstream_not_a_stream",
                "the upstream answered a streaming request with a single document",
            )
            return self._answer_problem(problem, Outcome.UPSTREAM_BROKE)
        return self._answer(self._upstream_status, answer.body, Outcome.OK)

    def _answer_upstream_error(self, status: int, body: bytes) -> list[Command]:
        """An upstream's error goes to the client as it is, if it is in the client's shape and the client's business."""
        problem = _OWN_ERRORS.get(status)
        if problem is None and 300 <= status < 400:
            problem = _REDIRECT
        if problem is not None:
            return self._answer_problem(problem, Outcome.UPSTREAM_ERROR)
        if _read_error(body) is None:
            text = f"the upstream answered {status} without an error that could be read"
            return self._answer_problem(Problem(status, "upstream_error", text), Outcome.UPSTREAM_ERROR)
        return self._answer(status, self._without_secrets(body), Outcome.UPSTREAM_ERROR)

    def _without_secrets(self, body: bytes) -> bytes:
        for secret in filter(None, self._hidden):
            body = body.replace(secret, b"***")
        return body

    # -- a stream -----------------------------------------------------------------------------------------------

    def _live_stream(self) -> chat.ChatStream:
        if self._stream is None:
            raise AssertionError("HOLDING and STREAMING are only entered with a stream")
        return self._stream

    def _relay(self, out: bytes) -> list[Command]:
        """Sends what the stream machine let through, and ends the answer if the machine says that it is over."""
        stream = self._live_stream()
        if stream.failure is not None:
            problem = Problem.of(stream.failure)
            return [*self._send(out), *self._answer_problem(problem, Outcome.UPSTREAM_BROKE)]
        if stream.error is not None:
            if self.state is State.HOLDING and stream.chunks == 0:
                return self._answer_upstream_error(_error_status(stream.error), stream.error)
            commands = self._send(self._without_secrets(out))
            self._end(Outcome.UPSTREAM_ERROR)
            return [*commands, EndResponse()]
        return self._send(out)

    def _send(self, out: bytes) -> list[Command]:
        return [*self._start_stream(), SendBody(out)] if out else []

    def _start_stream(self) -> list[Command]:
        if self._status is not None:
            return []
        self.state = State.WAITING if self.state is State.REQUESTED else State.STREAMING
        self._status = 200
        return [StartResponse(200, _STREAM_HEADERS)]

    # -- the end ------------------------------------------------------------------------------------------------

    def _answer_problem(self, problem: Problem, outcome: Outcome) -> list[Command]:
        if problem.retry_after_s is not None:
            self._upstream_headers = ((b"retry-after", str(problem.retry_after_s).encode()),)
        return self._answer(problem.status, openai.encode_error(problem), outcome)

    def _answer(self, status: int, body: bytes, outcome: Outcome) -> list[Command]:
        """The whole answer at once; inside a stream that has begun, as its last event."""
        if self._status is not None:
            self._end(outcome)
            return [SendBody(encode(body)), EndResponse()]
        self._status = status
        self._end(outcome)
        headers = (
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self._upstream_headers,
        )
        return [StartResponse(status, headers), SendBody(body), EndResponse()]

    def _end(self, outcome: Outcome) -> None:
        self.state = State.DONE
        self.outcome = outcome

    def _ended(self, *allowed: State) -> bool:
        """Whether the input is to be ignored because the exchange is over. Raises `LocalError` out of turn."""
        if self.state is State.DONE:
            return True
        if self.state not in allowed:
            raise LocalError(f"an exchange in state {self.state.name} does not take this input")
        return False


class _ErrorCode(msgspec.Struct):
    code: int | str | None = None
    status: int | str | None = None


class _ErrorDocument(msgspec.Struct):
    error: _ErrorCode | str


_ERROR: Final = msgspec.json.Decoder(_ErrorDocument)

_KEEP_ALIVE_STATES: Final = frozenset({State.REQUESTED, State.WAITING, State.HOLDING, State.STREAMING})

_STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front would otherwise collect the stream
)

_FAILURES: Final[Mapping[Failure, tuple[int, str, str, Outcome]]] = {
    Failure.UNREACHABLE: (
        502,
        "upstream_unreachable",
        "the upstream {upstream!r} cannot be reached; check that it runs and that its base_url is right",
        Outcome.UPSTREAM_UNREACHABLE,
    ),
    Failure.TIMEOUT: (
        504,
        "upstream_timeout",
        "the upstream {upstream!r} did not answer in time; try again, or raise its time limits",
        Outcome.TIMEOUT,
    ),
    Failure.BROKEN: (
        502,
        "upstream_broke",
        "the upstream {upstream!r} broke off its answer; try again",
        Outcome.UPSTREAM_BROKE,
    ),
    Failure.SHUTDOWN: (
        503,
        "shutting_down",
        "this gateway is shutting down; try again in a moment",
        Outcome.SHUTDOWN,
    ),
    Failure.INTERNAL: (
        500,
        "internal_error",
        "this gateway failed; its log has the reason under this request's id",
        Outcome.INTERNAL_ERROR,
    ),
}

_UNAUTHORIZED: Final = Problem(
    502,
    "upstream_unauthorized",
    "the upstream does not accept this gateway's credential for it; ask the operator to check the upstream's api key",
)
_REDIRECT: Final = Problem(
    502,
    "upstream_redirect",
    "the upstream answered with a redirect, which is never followed; check its base_url",
)

# Answers about the gateway's own standing with the upstream. A client that got the bare 401 would distrust its own key.
_OWN_ERRORS: Final[Mapping[int, Problem]] = {401: _UNAUTHORIZED, 407: _UNAUTHORIZED}


def _refusal(error: ProtocolError) -> Outcome:
    if isinstance(error, OutOfScopeError):
        return Outcome.REFUSED_SCOPE
    return Outcome.REFUSED_MODEL if isinstance(error, ModelRefusedError) else Outcome.REFUSED_INVALID


def _is_document(content_type: bytes) -> bool:
    """Whether a media type says that the body is one document, not a stream. Servers mislabel streams, so only JSON
    and HTML do; the stream machine finds out about the rest."""
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type in {b"application/json", b"application/problem+json", b"text/html"}


def _read_error(body: bytes) -> _ErrorDocument | None:
    """The error that a body tells of; `None` when it is in no shape that the client's SDK reads."""
    try:
        return decode(_ERROR, body)[0]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _error_status(body: bytes) -> int:
    """The HTTP status for an error that came with a 200: the error's own, if it names one, else 502."""
    document = _read_error(body)
    if document is None or isinstance(document.error, str):
        return 502
    for value in (document.error.status, document.error.code):
        text = str(value)
        if re.fullmatch("[45][0-9][0-9]", text):
            return int(text)
    return 502
