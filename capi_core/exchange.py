"""One proxied request as one machine: a client's request in, an answer and its account out.

The embedder owns the sockets and the clock. It makes an `Exchange` for each request, feeds it what arrives, and
carries out the commands it returns, in order:

    exchange = Exchange(Operation.CHAT, Settings(catalog), request_id="...")
    commands = exchange.receive_request(body)

- `SendRequest`: ask that upstream; add its credential to the headers. Then report what comes back with
  `receive_head`, `receive_data` and one of `receive_eof` or `receive_failure`. A later one takes the place of the one
  before: that upstream failed, so close its response if it is still open.
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
from typing import TYPE_CHECKING, Final

from capi_core import headers as header_rules
from capi_core.aliases import ModelRefusedError, OutOfScopeError
from capi_core.attempts import Attempts, Settings, may_fall_back
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
from capi_core.failures import failure_of, own_problem
from capi_core.planning import Plan, Planner
from capi_core.protocols.registry import CODECS
from capi_core.protocols.stream import StreamState
from capi_core.sse import KEEP_ALIVE
from capi_core.usage import Usage, UsageSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.headers import Headers
    from capi_core.planning import Answers
    from capi_core.protocols.stream import StreamMachine

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
    "Settings",
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

    `request_id`: ours; visible ASCII. `now_s`: seconds since epoch, for answers that carry a date. `client_headers`:
    the client's `anthropic-version` and `anthropic-beta`, which go to a Messages upstream; all others are ignored.
    """

    def __init__(
        self,
        operation: Operation,
        settings: Settings,
        *,
        request_id: str,
        now_s: int = 0,
        client_headers: Headers = (),
    ) -> None:
        self.state = State.IDLE
        self.outcome: Outcome | None = None
        self._operation = operation
        self._settings = settings
        self._codec = CODECS[operation.protocol]
        self._request_id = request_id
        self._limits = settings.limits
        planner = Planner(request_id, now_s, client_headers, settings.limits.max_event_bytes)
        self._attempts = Attempts(operation, settings, planner)
        self._plan: Plan | None = None
        self._stream: StreamMachine | None = None
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
        return self.state is State.STREAMING and self._stream is not None and self._stream.state is StreamState.DONE

    @property
    def model(self) -> str | None:
        """The name that the client asked for; `None` when its request was not read that far."""
        return self._attempts.model

    @property
    def upstream(self) -> str | None:
        """The name of the upstream that is asked; `None` when the request was refused before that was decided."""
        resolution = self._attempts.resolution
        return None if resolution is None else resolution.upstream

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
        resolution = self._attempts.resolution
        return Record(
            operation=self._operation,
            outcome=self.outcome,
            status=self._status,
            model=self.model,
            upstream=self.upstream,
            upstream_model=None if resolution is None else resolution.upstream_model,
            stream=self.streams,
            usage=usage,
            usage_source=source,
            upstream_protocol=None if self._plan is None else self._plan.operation.protocol,
            losses=0 if self._plan is None else self._plan.answers.ledger.losses,
            failed_upstreams=self._attempts.failed,
        )

    # -- inputs -------------------------------------------------------------------------------------------------

    def receive_request(self, body: bytes) -> list[Command]:
        """The client's whole request body. The first input of every exchange but a refused one."""
        if self._ended(State.IDLE):
            return []
        try:
            plan = self._attempts.first(body)
        except ProtocolError as error:
            return self._answer_problem(Problem.of(error), _refusal(error))
        if isinstance(plan, bytes):
            return self._answer(200, plan, Outcome.OK)
        return self._ask(plan)

    def refuse(self, problem: Problem, outcome: Outcome) -> list[Command]:
        """The runtime will not serve this request (too large, no slot, shutting down)."""
        if self._ended(State.IDLE, State.REQUESTED, State.WAITING):
            return []
        return self._answer_problem(problem, outcome)

    def no_seat(self, problem: Problem) -> list[Command]:
        """Nobody can take the request to the upstream: no slot came free in time, or no identity serves the caller."""
        if self._ended(State.REQUESTED, State.WAITING):
            return []
        outcome = Outcome.REFUSED_SCOPE if problem.status == _FORBIDDEN else Outcome.REFUSED_BUSY
        return self._fall_back(_BUSY) or self._answer_problem(problem, outcome)

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
        return self._fall_back(failure) or self._answer_problem(*failure_of(failure, self.upstream))

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

    def _ask(self, plan: Plan) -> list[Command]:
        self.state, self._plan, self._stream = State.REQUESTED, plan, plan.answers.machine
        self._upstream_status, self._upstream_headers = 0, ()  # what another one said is no word of this one's
        return [SendRequest(plan.upstream, plan.operation, plan.headers, plan.body)]

    def _fall_back(self, why: int | Failure) -> list[Command]:
        """Asks the next upstream, if there is one and the client has nothing yet; no command otherwise."""
        plan = self._attempts.next() if self._status is None and may_fall_back(why) else None
        if plan is None:
            return []
        self._parts.clear()
        self._size = 0
        self._answer_usage = None
        return self._ask(plan)

    def _live_plan(self) -> Plan:
        if self._plan is None:
            raise AssertionError("an upstream that answers was asked by a plan")
        return self._plan

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
        answers = self._live_plan().answers
        error = answers.codec.decode_error(body, self._upstream_status)
        if error is not None:  # some servers say 200 and mean an error
            self._answer_usage = _reported_usage(answers, body)
            return self._answer_upstream_error(error.status, body)
        try:
            if self.streams:  # some answer a streaming request with a document
                out, self._answer_usage = answers.as_stream(body)
                commands = self._send(out)
                self._end(Outcome.OK)
                return [*commands, EndResponse()]
            answer = answers.whole(body)
        except ProtocolError as broken:
            self._answer_usage = _reported_usage(answers, body)
            return self._answer_problem(Problem.of(broken), Outcome.UPSTREAM_BROKE)
        self._answer_usage = answer.usage
        if answer.error:
            return self._answer_upstream_error(502, body)
        return self._answer(self._upstream_status, answer.body, Outcome.OK)

    def _answer_upstream_error(self, status: int, body: bytes) -> list[Command]:
        """An upstream's error goes to the client as it is, if it is in the client's shape and the client's business."""
        instead = self._fall_back(status)
        if instead:
            return instead
        problem = own_problem(status)
        if problem is not None:
            return self._answer_problem(problem, Outcome.UPSTREAM_ERROR)
        codec = self._live_plan().answers.codec
        body = self._without_secrets(body)
        problem = codec.decode_error(body, status)
        if problem is None:
            text = f"the upstream answered {status} without an error that could be read"
            return self._answer_problem(Problem(status, "upstream_error", text), Outcome.UPSTREAM_ERROR)
        if codec is not self._codec or self._status is not None:
            return self._answer_problem(problem, Outcome.UPSTREAM_ERROR)
        return self._answer(status, body, Outcome.UPSTREAM_ERROR)

    def _without_secrets(self, body: bytes) -> bytes:
        for secret in filter(None, self._settings.hidden()):
            body = body.replace(secret, b"***")
        return body

    # -- a stream -----------------------------------------------------------------------------------------------

    def _live_stream(self) -> StreamMachine:
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
                return self._answer_early_error(stream.error)
            commands = self._send(self._without_secrets(out))
            self._end(Outcome.UPSTREAM_ERROR)
            return [*commands, EndResponse()]
        return self._send(out)

    def _answer_early_error(self, error: bytes) -> list[Command]:
        """The stream has nothing but an error, in the client's shape by now: it becomes a real HTTP status."""
        status = self._live_plan().answers.error_status(error)
        instead = self._fall_back(status)
        if instead:
            return instead
        problem = own_problem(status)
        if problem is not None:
            return self._answer_problem(problem, Outcome.UPSTREAM_ERROR)
        return self._answer(status, self._without_secrets(error), Outcome.UPSTREAM_ERROR)

    def _send(self, out: bytes) -> list[Command]:
        return [*self._start_stream(), SendBody(out)] if out else []

    def _start_stream(self) -> list[Command]:
        if self._status is not None:
            return []
        self.state = State.WAITING if self.state is State.REQUESTED else State.STREAMING
        self._status = 200
        return [StartResponse(200, (*_STREAM_HEADERS, *self._fidelity()))]

    # -- the end ------------------------------------------------------------------------------------------------

    def _answer_problem(self, problem: Problem, outcome: Outcome) -> list[Command]:
        if self._status is not None:
            last = self._live_stream().fail(problem)
            self._end(outcome)
            return [SendBody(last), EndResponse()] if last else [EndResponse()]
        if problem.retry_after_s is not None:
            self._upstream_headers = ((b"retry-after", str(problem.retry_after_s).encode()),)
        return self._answer(problem.status, self._codec.encode_error(problem, self._request_id), outcome)

    def _answer(self, status: int, body: bytes, outcome: Outcome) -> list[Command]:
        """The whole answer at once."""
        self._status = status
        self._end(outcome)
        headers = (
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self._upstream_headers,
            *(self._fidelity() if outcome is Outcome.OK else ()),
        )
        return [StartResponse(status, headers), SendBody(body), EndResponse()]

    def _fidelity(self) -> Headers:
        """What the client is told of the translation: nothing where there is no model's answer to speak of."""
        if self._plan is None or self._operation in _NOT_GENERATED:
            return ()
        return ((b"x-capi-fidelity", self._plan.answers.ledger.header().encode()),)

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


_FORBIDDEN: Final = 403
_BUSY: Final = 429
_NOT_GENERATED: Final = frozenset({Operation.EMBEDDINGS, Operation.COUNT_TOKENS})
_KEEP_ALIVE_STATES: Final = frozenset({State.REQUESTED, State.WAITING, State.HOLDING, State.STREAMING})

_STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front would otherwise collect the stream
)


def _refusal(error: ProtocolError) -> Outcome:
    if isinstance(error, OutOfScopeError):
        return Outcome.REFUSED_SCOPE
    return Outcome.REFUSED_MODEL if isinstance(error, ModelRefusedError) else Outcome.REFUSED_INVALID


def _reported_usage(answers: Answers, body: bytes) -> Usage | None:
    """What an error's document says of tokens: they are paid for all the same."""
    try:
        return answers.codec.pass_answer(body, upstream_model="", public_name="").usage
    except ProtocolError:
        return None


def _is_document(content_type: bytes) -> bool:
    """Whether a media type says that the body is one document, not a stream. Servers mislabel streams, so only JSON
    and HTML do; the stream machine finds out about the rest."""
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type in {b"application/json", b"application/problem+json", b"text/html"}
