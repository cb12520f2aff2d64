"""One exchange carried out: a client on one side, an upstream on the other, one nursery around both.

    watcher   waits for the client to leave, from before the upstream is asked until the answer is out
    timer     sends keep-alives into silence, and gives up on an upstream that stays silent
    reader    waits to be admitted and for a seat, asks the upstream and feeds the machine
    writer    sends everything that the machine has produced, in one go

The reader appends to a small outbox and the writer empties it. While events come slower than they are sent, each leaves
at once; when the process is behind, several leave together, so that lag stays bounded. A client that takes less than
the upstream gives stops the reader at `_OUTBOX_BYTES`.

Leaving the nursery closes the upstream's response, whatever the reason: a request that nobody waits for does not go on.
"""

from __future__ import annotations

import enum
import http
import math
from typing import TYPE_CHECKING, Final

import attrs
import trio
from attrs import frozen
from hypercorn.typing import HTTPResponseBodyEvent, HTTPResponseStartEvent

from capi_core.exchange import EndResponse, Failure, Outcome, SendBody, SendRequest, StartResponse, State
from capi_trio.admission import AdmissionRefusedError, NotAdmitted
from capi_trio.logs import describe, get_logger
from capi_trio.seat import NoSeatError
from capi_trio.upstream import UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable

    from capi_core.exchange import Command, Exchange, Record
    from capi_core.headers import Headers
    from capi_trio.seat import Seat
    from capi_trio.slots import Slot
    from capi_trio.upstream import UpstreamSource

__all__ = ["Relay", "RelayResult", "RelayTimeouts"]

_OUTBOX_BYTES: Final = 8 * 1024
_LAST_BYTE_S: Final = 1.0
"""After [DONE] the upstream has this long to end its response, so that its connection can be used again."""


@frozen
class RelayTimeouts:
    """Seconds. `head`: from the request to the upstream's response head; `idle`: between pieces of its body.

    `drain`: how long an answer is read on when its client has left, to hear what it cost; 0: not at all.
    """

    head: float = 300.0
    idle: float = 300.0
    total: float = 3600.0
    keep_alive: float = 15.0
    drain: float = 0.0


@frozen
class RelayResult:
    """How it went: the machine's account, and what only a clock can tell, in ms. `None`: it never came to that.

    `queue_ms`: the wait for the slot of the last upstream that was asked; `None` where it has no cap. `identity`: whose
    seat that was, where it has some.
    """

    record: Record
    first_byte_ms: float | None
    latency_ms: float
    upstream_failure: str | None
    queue_ms: float | None
    identity: str | None
    asked: bool


class _Phase(enum.Enum):
    """Where the upstream is with the request."""

    QUEUED = enum.auto()
    ASKED = enum.auto()
    ANSWERED = enum.auto()


class _Outbox(enum.Enum):
    """What the writer has still to send."""

    OPEN = enum.auto()
    ENDING = enum.auto()
    SENDING_LAST = enum.auto()
    """The server has all of it. It reports its own end of the request as a disconnect, too."""
    SENT = enum.auto()


_NOT_ADMITTED: Final = {
    NotAdmitted.TOO_EARLY: Outcome.REFUSED_RATE,
    NotAdmitted.QUEUE_FULL: Outcome.REFUSED_BUSY,
    NotAdmitted.DENIED: Outcome.REFUSED_DENIED,
}
_HANDED_OVER: Final = frozenset({_Outbox.SENDING_LAST, _Outbox.SENT})


class Relay:
    """Runs one `Exchange`. Use once. `timeouts`: of an upstream, by its name; `take_seat`: a seat for a request;
    `admit` returns when it may be sent, and raises `AdmissionRefusedError`.
    """

    def __init__(
        self,
        exchange: Exchange,
        client: UpstreamSource,
        *,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        timeouts: Callable[[str], RelayTimeouts],
        take_seat: Callable[[SendRequest], AbstractAsyncContextManager[Seat]],
        extra_headers: Headers,
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._receive = receive
        self._send = send
        self._timeouts_of = timeouts
        self._take_seat = take_seat
        self._timeouts = RelayTimeouts()
        self._next: SendRequest | None = None
        self._extra_headers = extra_headers
        self._admit = admit
        self._admission_s = 0.0
        self._log = get_logger("relay")
        self._began = self._heard = trio.current_time()
        self._phase = _Phase.QUEUED
        self._slot: Slot | None = None
        self._identity: str | None = None
        self._asked_at: float | None = None
        self._answered_at: float | None = None
        self._nap = trio.CancelScope()
        self._first_byte: float | None = None
        self._asking = trio.CancelScope()
        self._aborted: Failure | None = None
        self._failure = Failure.TIMEOUT
        self._upstream_failure: str | None = None
        self._outbox_state = _Outbox.OPEN
        self._head: StartResponse | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._sending = False
        self._cut_short = False
        self._drains = False
        self._to_write = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    def abort(self, failure: Failure) -> None:
        """Stops asking upstreams; the client is told why, in its own protocol."""
        self._aborted = failure
        self._asking.cancel()

    async def run(self, commands: list[Command]) -> RelayResult:
        """Carries out `commands`, the machine's answer to the client's request, and all that follows from them."""
        match commands:
            case [SendRequest() as request]:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_client, nursery.cancel_scope)
                    nursery.start_soon(self._watch_silence)
                    if self._exchange.streams:
                        nursery.start_soon(self._write)
                    await self._ask(request)
                    await (self._flushed() if self._exchange.streams else self._write())
                    nursery.cancel_scope.cancel()
            case _:
                self._emit(commands)
                await self._write()
        return self._result()

    def cut_off(self, failure: Failure) -> RelayResult:
        """The account of a run that was cancelled or failed: every exchange has one, whatever its end."""
        self._exchange.receive_failure(failure)
        self._cut_short = self._outbox_state is not _Outbox.SENT
        return self._result()

    # -- tasks --------------------------------------------------------------------------------------------------

    async def _watch_client(self, everything: trio.CancelScope) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._outbox_state not in _HANDED_OVER:
            self._cut_short = self._unsent  # judged now: sends to a client that has left just return
            if self._phase is _Phase.ANSWERED and self._timeouts.drain and not self._exchange.answered:
                self._drains = True
                self._asking.deadline = min(self._asking.deadline, trio.current_time() + self._timeouts.drain)
            else:
                self._exchange.client_gone()
                everything.cancel()

    async def _watch_silence(self) -> None:
        """The idle deadline and the keep-alives, for the price of a look now and then instead of a scope per read."""
        kept_alive = self._began
        while True:
            now = trio.current_time()
            if self._sending or self._body_bytes > _OUTBOX_BYTES:  # the silence is the client's, and has its own limit
                self._heard = now
            give_up = self._heard + self._patience
            if now >= give_up:
                self._asking.cancel()
                self._heard = now  # another upstream may be asked: its time begins now
                continue
            remind = max(self._heard, kept_alive) + self._timeouts.keep_alive
            if now >= remind:
                self._emit(self._exchange.keep_alive(), answers=False)
                kept_alive = now
                continue
            with trio.CancelScope(deadline=min(give_up, remind, now + self._timeouts.idle)) as self._nap:
                await trio.sleep_forever()

    @property
    def _patience(self) -> float:
        """How long the upstream may be silent now. How long a request waits for a slot is limited by the gate."""
        match self._phase:
            case _Phase.QUEUED:
                return math.inf
            case _Phase.ASKED:
                return self._timeouts.head
            case _Phase.ANSWERED:
                return self._timeouts.idle

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._heard = trio.current_time()
        self._nap.cancel()  # the watcher of silence looks at the new limit

    async def _ask(self, request: SendRequest) -> None:
        """Asks the upstream and feeds the machine, until it has all that it needs; then the next one, if it says so."""
        self._next = request
        while self._next is not None and not self._drains:
            request, self._next = self._next, None
            self._timeouts = self._timeouts_of(request.upstream)
            self._enter(_Phase.QUEUED)
            self._slot = self._identity = self._answered_at = None
            self._failure, self._upstream_failure = Failure.TIMEOUT, None
            await self._ask_one(request)
        if self._drains and self._exchange.state is not State.DONE:
            self._exchange.client_gone()
            self._outbox_state = _Outbox.SENT  # there is nobody to send it to
            self._to_write.unpark_all()
            self._room.unpark_all()

    async def _ask_one(self, request: SendRequest) -> None:
        with trio.CancelScope() as self._asking:
            if self._aborted is not None:
                self._asking.cancel()
            try:
                await self._be_admitted()
                await self._read_response(request)
            except AdmissionRefusedError as turned_away:
                self._emit(self._exchange.refuse(turned_away.problem, _NOT_ADMITTED[turned_away.why]))
            except NoSeatError as refused:
                self._emit(self._exchange.no_seat(refused.problem))
            except UpstreamFailedError as error:
                self._failure = error.failure
                self._upstream_failure = error.reason
            except Exception as error:  # a fault of ours must not leave a client without an end
                self._log.error("exchange_failed", **describe(error))
                self._failure = Failure.INTERNAL
        if self._exchange.state is not State.DONE and self._next is None and not self._drains:
            self._emit(self._exchange.receive_failure(self._aborted or self._failure))

    async def _be_admitted(self) -> None:
        """Once: a request that was let in may ask as many upstreams as it takes."""
        if self._admit is not None:
            began = trio.current_time()
            await self._admit()
            self._admit = None
            self._admission_s = trio.current_time() - began

    async def _read_response(self, request: SendRequest) -> None:
        async with self._take_seat(request) as seat:
            self._slot, self._identity = seat.slot, seat.identity
            self._enter(_Phase.ASKED)
            self._asked_at = self._heard
            self._asking.deadline = self._heard + self._timeouts.total
            while not await self._read_response_on(seat, request):
                await seat.renew()

    async def _read_response_on(self, seat: Seat, request: SendRequest) -> bool:
        """False when the seat's credential was refused, and there may be a better one: nothing was told of it yet."""
        async with self._client.request(request, seat.target) as response:
            if response.status == http.HTTPStatus.UNAUTHORIZED and seat.may_renew():
                return False
            self._enter(_Phase.ANSWERED)
            self._answered_at = self._heard
            seat.heard(response.status, response.headers)
            self._emit(self._exchange.receive_head(response.status, response.headers))
            async for chunk in response.chunks():
                self._heard = trio.current_time()
                self._emit(self._exchange.receive_data(chunk))
                if self._exchange.state is State.DONE or self._next is not None:
                    return True
                if self._exchange.answered and self._asking.deadline > self._heard + _LAST_BYTE_S:
                    self._asking.deadline = self._heard + _LAST_BYTE_S
                while self._body_bytes > _OUTBOX_BYTES:
                    await self._room.park()
            self._emit(self._exchange.receive_eof())
            return True

    async def _write(self) -> None:
        while self._outbox_state is not _Outbox.SENT:
            if self._head is None and not self._body and self._outbox_state is _Outbox.OPEN:
                await self._to_write.park()
                continue
            head, self._head = self._head, None
            body, self._body, self._body_bytes = b"".join(self._body), [], 0
            last = self._outbox_state is _Outbox.ENDING
            if last:
                self._outbox_state = _Outbox.SENDING_LAST
            self._sending = True
            self._room.unpark_all()
            if head is not None:
                await self._send_head(head)
            if body or last:
                await self._send(HTTPResponseBodyEvent(type="http.response.body", body=body, more_body=not last))
            self._sending = False
            if last:
                self._outbox_state = _Outbox.SENT
                self._room.unpark_all()

    # -- the outbox ---------------------------------------------------------------------------------------------

    def _emit(self, commands: list[Command], *, answers: bool = True) -> None:
        """`answers`: these are of the answer; else no more than a sign of life."""
        for command in commands:
            match command:
                case SendBody(data):
                    self._body.append(data)
                    self._body_bytes += len(data)
                case StartResponse():
                    self._head = command
                case EndResponse():
                    self._outbox_state = _Outbox.ENDING
                case SendRequest():
                    self._next = command
        if commands and self._next is None:
            if self._first_byte is None and answers:
                self._first_byte = trio.current_time()
            self._to_write.unpark()

    @property
    def _unsent(self) -> bool:
        """Whether something of the answer, apart from its end, is not with the server yet."""
        pending = self._sending or self._head is not None or bool(self._body)
        return pending and self._outbox_state not in _HANDED_OVER

    async def _flushed(self) -> None:
        while self._outbox_state is not _Outbox.SENT:
            await self._room.park()

    async def _send_head(self, head: StartResponse) -> None:
        headers = [*head.headers, *self._extra_headers, self._timing()]
        await self._send(HTTPResponseStartEvent(type="http.response.start", status=head.status, headers=headers))

    def _timing(self) -> tuple[bytes, bytes]:
        """Where the time has gone until now, in ms: in queues, at the upstream, here (W3C Server Timing)."""
        now = trio.current_time()
        queue = 0.0 if self._slot is None else self._slot.waited_s
        upstream = 0.0 if self._asked_at is None else (self._answered_at or now) - self._asked_at
        parts = [("capi", now - self._began - self._admission_s - queue - upstream, "")]
        if self._asked_at is not None:
            parts.insert(0, ("upstream", upstream, ""))
        if self._slot is not None:
            parts.insert(0, ("queue", queue, f';desc="{self._slot.position}"'))
        if self._admission_s:
            parts.insert(0, ("admission", self._admission_s, ""))
        text = ", ".join(f"{name};dur={max(0.0, spent) * 1000:.1f}{more}" for name, spent, more in parts)
        return b"server-timing", text.encode()

    def _result(self) -> RelayResult:
        record = self._exchange.record()
        if self._drains or (self._cut_short and record.outcome is Outcome.OK):
            record = attrs.evolve(record, outcome=Outcome.CLIENT_GONE)  # it left before it had everything
        first = None if self._first_byte is None else (self._first_byte - self._began) * 1000
        latency = (trio.current_time() - self._began) * 1000
        queue_ms = None if self._slot is None else self._slot.waited_s * 1000
        return RelayResult(
            record, first, latency, self._upstream_failure, queue_ms, self._identity, self._asked_at is not None
        )
