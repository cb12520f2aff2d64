"""One exchange carried out: what leaves when, how it ends, and that nothing of it goes on after its end.

Both neighbours are fakes on a virtual clock; the machine is the real one.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import attrs
import httpx
import msgspec
import pytest
import trio
from hypercorn.typing import ASGIReceiveEvent, HTTPRequestEvent
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock
from typing_extensions import override

from capi_core.aliases import Alias, Catalog, Fallback, UpstreamModels
from capi_core.config import Config, LimitsConfig, UpstreamConfig
from capi_core.errors import Problem
from capi_core.exchange import Command, Exchange, Failure, Operation, Outcome, SendBody, SendRequest, Settings, State
from capi_core.usage import Usage, UsageSource
from capi_trio.access import ANONYMOUS
from capi_trio.admission import AdmissionRefusedError, NotAdmitted
from capi_trio.relay import Relay, RelayResult, RelayTimeouts
from capi_trio.seat import Seat
from capi_trio.seats import Seats
from capi_trio.upstream import UpstreamTarget
from tests.support import fakes
from tests.support.fakes import DONE, FakePeer, FakeUpstream, Reply, Step, chunk, finish

KEEP_ALIVE: Final = b": keep-alive\n\n"
OUTBOX: Final = 8 * 1024
CATALOG: Final = Catalog(aliases={"alias": Alias("alias", "m")}, upstreams=(UpstreamModels("up"),))
PATIENT: Final = RelayTimeouts(head=10_000, idle=10_000, total=100_000, keep_alive=9_000)


class Play:
    """A relay between a scripted upstream and a client that takes `delay` seconds for each send."""

    def __init__(
        self,
        reply: Reply | Exception,
        *,
        stream: bool = True,
        delay: float = 0.0,
        timeouts: RelayTimeouts | None = None,
        exchange: Exchange | None = None,
        peer: FakePeer | None = None,
        model: str = "m",
    ) -> None:
        self.up = FakeUpstream(reply)
        self.peer = peer or FakePeer(delay)
        self.exchange = exchange or Exchange(Operation.CHAT, Settings(CATALOG), request_id="req_1")
        self.body = msgspec.json.encode({"model": model, "messages": [], "stream": stream})
        self.asking = fakes.client(self.up)
        self.results: list[RelayResult] = []
        self.relay = Relay(
            self.exchange,
            self.asking,
            receive=self.peer.receive,
            send=self.peer.send,
            timeouts=lambda upstream: timeouts or RelayTimeouts(),
            take_seat=partial(Seats(self.asking, Config(), now_s=lambda: 0.0).take, ANONYMOUS),
            extra_headers=((b"x-request-id", b"req_1"),),
        )

    async def run(self, commands: list[Command] | None = None) -> RelayResult:
        """Plays it to its end; afterwards nothing is open at the upstream."""
        async with self.asking:
            try:
                result = await self.relay.run(
                    self.exchange.receive_request(self.body) if commands is None else commands
                )
                self.results.append(result)
            finally:
                assert self.up.open == 0
                assert self.up.waiting == 0
        return result

    async def run_until(self, at: float, act: Callable[[], None]) -> RelayResult:
        """Plays it, and acts at a certain time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._act, at, act)
            result = await self.run()
        return result

    @staticmethod
    async def _act(at: float, act: Callable[[], None]) -> None:
        await trio.sleep_until(at)
        act()

    @property
    def closed_at(self) -> float | None:
        return self.up.asked[0].closed_at


def relay_of(
    play: Play,
    timeouts: Callable[[str], RelayTimeouts],
    book: Seats | None = None,
    admit: Callable[[], Awaitable[None]] | None = None,
) -> Relay:
    """Another relay of the same parts."""
    return Relay(
        play.exchange,
        play.asking,
        receive=play.peer.receive,
        send=play.peer.send,
        timeouts=timeouts,
        take_seat=partial((book or Seats(play.asking, Config(), now_s=lambda: 0.0)).take, ANONYMOUS),
        extra_headers=(),
        admit=admit,
    )


class _Error(msgspec.Struct):
    code: str
    message: str


class _Envelope(msgspec.Struct):
    error: _Error


def error_code(play: Play) -> str:
    """The code of the error that the answer consists of, or that a stream ends with."""
    last = play.peer.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    return msgspec.json.decode(last.removeprefix(b"data: "), type=_Envelope).error.code


# -- a good end ----------------------------------------------------------------------------------------------------


async def test_a_stream_is_relayed_event_by_event_as_it_comes(autojump_clock: MockClock) -> None:
    play = Play(Reply([2.0, chunk("a"), 1.0, chunk("b"), 1.0, finish(), fakes.usage(3, 4), DONE], head_after=1.0))
    result = await play.run()
    assert play.peer.status == 200
    assert play.peer.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert play.peer.headers[b"x-request-id"] == b"req_1"
    assert play.peer.pieces[:2] == [(3.0, chunk("a")), (4.0, chunk("b"))]
    assert play.peer.body == chunk("a") + chunk("b") + finish() + DONE
    assert play.peer.complete
    assert result.record.outcome is Outcome.OK
    assert result.record.usage == Usage(uncached_input=3, output=4)
    assert result.record.usage_source is UsageSource.UPSTREAM_FINAL
    assert (result.first_byte_ms, result.latency_ms, result.upstream_failure) == (3000, 5000, None)


async def test_a_json_answer_is_sent_whole_when_it_is_whole(autojump_clock: MockClock) -> None:
    answer = msgspec.json.encode(fakes.chat_answer())
    reply = Reply([answer[:9], 5.0, answer[9:]], headers=(("content-type", "application/json"),), head_after=100.0)
    play = Play(reply, stream=False)
    result = await play.run()
    assert play.peer.pieces == [(105.0, answer)]
    assert play.peer.complete
    assert result.record.outcome is Outcome.OK
    assert (result.first_byte_ms, result.latency_ms) == (105_000, 105_000)


async def test_the_head_waits_for_the_first_event_so_that_an_error_is_still_a_status(autojump_clock: MockClock) -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "slow"}}
    for reply in (
        fakes.json_reply(error, 429, ("retry-after", "7")),
        Reply([1.0, b"data: " + msgspec.json.encode({"error": {**error["error"], "status": 429}}) + b"\n\n"]),
    ):
        play = Play(reply)
        result = await play.run()
        assert play.peer.status == 429
        assert error_code(play) == "slow"
        assert play.peer.complete
        assert result.record.outcome is Outcome.UPSTREAM_ERROR


async def test_a_refusal_asks_nobody(autojump_clock: MockClock) -> None:
    play = Play(Reply())
    refusal = play.exchange.refuse(Problem(413, "body_too_large", "too large"), Outcome.REFUSED_TOO_LARGE)
    result = await play.run(refusal)
    assert play.up.asked == []
    assert (play.peer.status, error_code(play), play.peer.complete) == (413, "body_too_large", True)
    assert result.record.outcome is Outcome.REFUSED_TOO_LARGE


@pytest.mark.parametrize("rest", [[math.inf], [chunk("more"), math.inf], [0.2, b": ping\n\n"] * 1000])
async def test_after_the_last_event_an_upstream_that_stays_open_holds_nobody_up(
    autojump_clock: MockClock, rest: list[Step]
) -> None:
    play = Play(Reply([chunk("a"), finish(), DONE, *rest]))
    result = await play.run()
    assert trio.current_time() == pytest.approx(1, abs=0.3)
    assert play.peer.body == chunk("a") + finish() + DONE
    assert play.peer.complete
    assert result.record.outcome is Outcome.OK
    assert result.record.status == 200


async def test_a_total_limit_that_is_nearer_than_that_stays(autojump_clock: MockClock) -> None:
    play = Play(Reply([4.5, chunk("a"), finish(), DONE, math.inf]), timeouts=RelayTimeouts(total=5))
    assert (await play.run()).record.outcome is Outcome.OK
    assert trio.current_time() == 5


# -- lag and pressure ----------------------------------------------------------------------------------------------


async def test_what_comes_while_a_send_is_under_way_leaves_in_one(autojump_clock: MockClock) -> None:
    """So that a process that is behind catches up, instead of falling further behind."""
    events = [chunk(str(number)) for number in range(20)]
    script: list[Step] = []
    for event in events:
        script += [event, 0.1]
    play = Play(Reply([*script, finish(), DONE]), delay=0.35)
    result = await play.run()
    assert play.peer.body == b"".join(events) + finish() + DONE
    assert max(data.count(b"data: ") for _, data in play.peer.pieces) >= 4
    assert len(play.peer.pieces) <= 8
    assert result.latency_ms < 3500


async def test_a_client_that_takes_nothing_stops_the_upstream(autojump_clock: MockClock) -> None:
    """What is held is bounded: the outbox, one chunk beyond it, and what is being sent."""
    event = chunk("x" * 60_000)
    play = Play(Reply([event] * 1000), delay=math.inf, timeouts=PATIENT)
    result = await play.run_until(1000, play.peer.leave)
    held = play.up.asked[0].taken * len(event)
    assert OUTBOX < held <= OUTBOX + 3 * len(event)
    assert play.closed_at == 1000
    assert result.record.outcome is Outcome.CLIENT_GONE


async def test_a_slow_client_gets_everything_with_little_held(autojump_clock: MockClock) -> None:
    event = chunk("x" * 60_000)
    most = 0

    async def look() -> None:
        nonlocal most
        most = max(most, play.up.asked[0].taken // 2 * len(event) - len(play.peer.body))

    script: list[Step] = [event, look]
    play = Play(Reply([*script * 100, finish(), DONE]), delay=20.0, timeouts=PATIENT)
    result = await play.run()
    assert result.record.outcome is Outcome.OK
    assert play.peer.body == event * 100 + finish() + DONE
    assert OUTBOX < most <= OUTBOX + 2 * len(event)


async def test_silence_that_is_the_clients_is_not_held_against_the_upstream(autojump_clock: MockClock) -> None:
    event = chunk("x" * 60_000)
    play = Play(Reply([*[event] * 10, finish(), DONE]), delay=400.0, timeouts=RelayTimeouts(idle=100, total=10_000))
    result = await play.run()
    assert result.record.outcome is Outcome.OK
    assert play.peer.body == event * 10 + finish() + DONE  # nor is any keep-alive added to what it does not take


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.integers(0, len(data)), max_size=12).map(
        lambda places: [data[a:b] for a, b in zip([0, *sorted(places)], [*sorted(places), len(data)], strict=True)]
    )


@given(
    pieces=cuts(b"".join(chunk(text) for text in ("one", "two\u2028", "", "x" * 300)) + finish() + DONE),
    pauses=st.lists(st.sampled_from([0.0, 0.01, 0.5, 3.0, 20.0]), min_size=13, max_size=13),
    delays=st.lists(st.sampled_from([0.0, 0.02, 1.0, 7.0]), min_size=1, max_size=5),
    model=st.sampled_from(["m", "alias"]),
)
def test_a_client_gets_the_machines_bytes_in_the_machines_order(
    pieces: list[bytes], pauses: list[float], delays: list[float], model: str
) -> None:
    """However the upstream's pieces and the client's sends fall together."""
    machine = Exchange(Operation.CHAT, Settings(CATALOG), request_id="req_1")
    machine.receive_request(msgspec.json.encode({"model": model, "messages": [], "stream": True}))
    machine.receive_head(200, [(b"content-type", b"text/event-stream")])
    commands = [command for piece in pieces for command in machine.receive_data(piece)] + machine.receive_eof()
    wanted = b"".join(command.data for command in commands if isinstance(command, SendBody))

    async def main() -> None:
        script = [step for pair in zip(pauses, pieces, strict=False) for step in pair]
        play = Play(Reply(script), peer=FakePeer(*delays), model=model)
        result = await play.run()
        assert result.record.outcome is Outcome.OK
        assert play.peer.body.replace(KEEP_ALIVE, b"") == wanted
        assert play.peer.complete
        assert sum(sent.message["type"] == "http.response.start" for sent in play.peer.sent) == 1
        assert play.peer.sent[0].message["type"] == "http.response.start"

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- silence -------------------------------------------------------------------------------------------------------


async def test_a_stream_is_kept_alive_through_silence_before_its_head_too(autojump_clock: MockClock) -> None:
    script: list[Step] = [20.0, chunk("a"), 14.0, chunk("b"), 31.0, finish(), DONE]
    play = Play(Reply(script, head_after=40.0))
    result = await play.run()
    comments = [at for at, data in play.peer.pieces if data == KEEP_ALIVE]
    assert comments == [15, 30, 55, 89, 104]
    assert play.peer.body.replace(KEEP_ALIVE, b"") == chunk("a") + chunk("b") + finish() + DONE
    assert result.record.outcome is Outcome.OK


async def test_a_json_answer_is_not_kept_alive(autojump_clock: MockClock) -> None:
    play = Play(fakes.json_reply(fakes.chat_answer(), head_after=100.0), stream=False)
    await play.run()
    assert KEEP_ALIVE not in play.peer.body


async def test_an_error_after_a_keep_alive_is_told_inside_the_stream(autojump_clock: MockClock) -> None:
    error = {"error": {"message": "no", "type": "server_error", "code": "down"}}
    play = Play(fakes.json_reply(error, 500, head_after=20.0))
    result = await play.run()
    assert play.peer.status == 200
    assert play.peer.body.startswith(KEEP_ALIVE + b"data: {")
    assert error_code(play) == "down"
    assert b"[DONE]" not in play.peer.body
    assert play.peer.complete
    assert result.record.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize(
    ("reply", "timeouts", "at"),
    [
        (Reply(head_after=math.inf), RelayTimeouts(head=50), 50),
        (Reply([math.inf]), RelayTimeouts(head=10, idle=60), 60),
        (Reply([39.0, chunk("a"), math.inf], head_after=1.0), RelayTimeouts(idle=60), 100),
        (Reply([chunk("a"), 20.0] * 1000), RelayTimeouts(total=90), 90),
        (Reply(head_after=math.inf), RelayTimeouts(total=70), 70),
        (Reply([b": ping\n\n", 30.0] * 1000), RelayTimeouts(idle=60, total=200), 200),
    ],
    ids=["head", "first-byte", "idle", "total", "total-before-the-head", "pings-are-life"],
)
@pytest.mark.parametrize("keep_alive", [15.0, 1000.0])
async def test_an_upstream_that_takes_too_long_is_given_up(
    autojump_clock: MockClock, reply: Reply, timeouts: RelayTimeouts, at: float, keep_alive: float
) -> None:
    """With a status as long as there is none, inside the stream after that."""
    timeouts = RelayTimeouts(timeouts.head, timeouts.idle, timeouts.total, keep_alive)
    play = Play(reply, timeouts=timeouts)
    result = await play.run()
    assert trio.current_time() == at
    assert play.closed_at == at
    assert error_code(play) == "upstream_timeout"
    assert play.peer.status == (200 if play.peer.body.startswith((b"data: ", b":")) else 504)
    assert (play.peer.status == 504) is (keep_alive > at and not any(isinstance(step, bytes) for step in reply.script))
    assert play.peer.complete
    assert b"[DONE]" not in play.peer.body
    assert result.record.outcome is Outcome.TIMEOUT


async def test_a_json_answer_that_takes_too_long_is_given_up(autojump_clock: MockClock) -> None:
    play = Play(Reply(head_after=math.inf), stream=False, timeouts=RelayTimeouts(head=50))
    result = await play.run()
    assert (play.peer.status, error_code(play), trio.current_time()) == (504, "upstream_timeout", 50)
    assert result.record.outcome is Outcome.TIMEOUT


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code", "outcome"),
    [
        (httpx.ConnectError("x"), 502, "upstream_unreachable", Outcome.UPSTREAM_UNREACHABLE),
        (httpx.ConnectTimeout("x"), 504, "upstream_timeout", Outcome.TIMEOUT),
        (httpx.ReadError("x"), 502, "upstream_broke", Outcome.UPSTREAM_BROKE),
    ],
)
async def test_an_upstream_that_gives_no_answer_is_an_error_status(
    autojump_clock: MockClock, error: Exception, status: int, code: str, outcome: Outcome
) -> None:
    play = Play(error)
    result = await play.run()
    assert (play.peer.status, error_code(play), play.peer.complete) == (status, code, True)
    assert (result.record.outcome, result.record.status) == (outcome, status)
    assert result.upstream_failure == type(error).__name__


@pytest.mark.parametrize("rest", [[httpx.ReadError("x")], [httpx.RemoteProtocolError("x")], []])
async def test_a_stream_that_is_cut_ends_with_an_error_never_as_if_it_were_whole(
    autojump_clock: MockClock, rest: Sequence[Step]
) -> None:
    play = Play(Reply([chunk("a"), 1.0, *rest]))
    result = await play.run()
    assert play.peer.status == 200
    assert play.peer.body.startswith(chunk("a"))
    assert error_code(play) in {"upstream_broke", "upstream_truncated"}
    assert b"[DONE]" not in play.peer.body
    assert play.peer.complete
    assert result.record.outcome is Outcome.UPSTREAM_BROKE


async def test_a_stream_that_turns_into_garbage_is_left_at_once(autojump_clock: MockClock) -> None:
    play = Play(Reply([chunk("a"), 1.0, b"data: <html>\n\n", 1.0] * 100))
    result = await play.run()
    assert play.closed_at == 1
    assert error_code(play) == "upstream_garbage"
    assert play.peer.complete
    assert result.record.outcome is Outcome.UPSTREAM_BROKE


class _Faulty(Exchange):
    """Fails at its second piece of data."""

    fed = 0

    @override
    def receive_data(self, data: bytes) -> list[Command]:
        self.fed += 1
        if self.fed == 2:
            raise RuntimeError("a prompt")
        return super().receive_data(data)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_our_own_gives_the_client_an_end(autojump_clock: MockClock, stream: bool) -> None:
    kind = "text/event-stream" if stream else "application/json"
    reply = Reply([chunk("a"), 1.0, chunk("b"), math.inf], headers=(("content-type", kind),))
    play = Play(reply, stream=stream, exchange=_Faulty(Operation.CHAT, Settings(CATALOG), request_id="req_1"))
    with capture_logs() as logs:
        result = await play.run()
    assert play.closed_at == 1
    assert play.peer.status == (200 if stream else 500)
    assert error_code(play) == "internal_error"
    assert play.peer.complete
    assert result.record.outcome is Outcome.INTERNAL_ERROR
    assert [(line["event"], line["errors"]) for line in logs] == [("exchange_failed", ["RuntimeError"])]
    assert "prompt" not in str(logs)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(head_after=math.inf), 503),
        (Reply([math.inf]), 503),
        (Reply([chunk("a"), math.inf]), 200),
    ],
    ids=["waiting-for-the-head", "holding", "streaming"],
)
async def test_a_gateway_that_stops_tells_its_client_so(autojump_clock: MockClock, reply: Reply, status: int) -> None:
    play = Play(reply)
    result = await play.run_until(5, lambda: play.relay.abort(Failure.SHUTDOWN))
    assert trio.current_time() == 5
    assert play.closed_at == 5
    assert (play.peer.status, error_code(play), play.peer.complete) == (status, "shutting_down", True)
    assert (b"retry-after" in play.peer.headers) is (status == 503)
    assert result.record.outcome is Outcome.SHUTDOWN


async def test_a_gateway_may_stop_before_it_asks(autojump_clock: MockClock) -> None:
    play = Play(Reply([chunk("a"), math.inf]))
    play.relay.abort(Failure.SHUTDOWN)
    result = await play.run()
    assert (result.record.outcome, play.peer.status, trio.current_time()) == (Outcome.SHUTDOWN, 503, 0)


async def test_stopping_after_the_last_event_changes_nothing(autojump_clock: MockClock) -> None:
    play = Play(Reply([chunk("a"), finish(), DONE, math.inf]))
    result = await play.run_until(0.5, lambda: play.relay.abort(Failure.SHUTDOWN))
    assert result.record.outcome is Outcome.OK
    assert play.peer.body.endswith(DONE)
    assert play.peer.complete


# -- the queue -----------------------------------------------------------------------------------------------------


def queued_play(book: Seats, reply: Reply | Exception, *, stream: bool = True) -> Play:
    play = Play(reply, stream=stream)
    play.relay = relay_of(play, lambda upstream: RelayTimeouts(head=5, idle=5), book)
    return play


def one_at_a_time(queue_timeout_s: float = 60.0) -> Seats:
    up = UpstreamConfig(kind="openai", base_url="http://up.test/v1", max_in_flight=1)
    config = Config(upstreams={"up": up}, limits=LimitsConfig(queue_timeout_s=queue_timeout_s))
    return Seats(fakes.client(FakeUpstream(Reply())), config, now_s=lambda: 0.0)


async def taken(book: Seats, for_s: float) -> None:
    async with book.take(attrs.evolve(ANONYMOUS, id="other"), SendRequest("up", Operation.CHAT, (), b"")):
        await trio.sleep(for_s)


async def test_a_client_that_waits_for_a_slot_is_kept_alive_and_then_served(autojump_clock: MockClock) -> None:
    """The wait is nobody's silence: the upstream's time begins when it is asked."""
    book = one_at_a_time()
    play = queued_play(book, Reply([4.0, chunk("a"), finish(), DONE]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, book, 40.0)
        await trio.testing.wait_all_tasks_blocked()
        result = await play.run()
    assert result.record.outcome is Outcome.OK
    assert result.queue_ms == 40_000
    assert [at for at, data in play.peer.pieces if data == KEEP_ALIVE] == [15, 30]
    assert fakes.texts(play.peer.body) == "a"


async def test_a_short_wait_is_told_in_the_head(autojump_clock: MockClock) -> None:
    book = one_at_a_time()
    play = queued_play(book, fakes.json_reply(fakes.chat_answer(), head_after=2.0), stream=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, book, 3.0)
        await trio.testing.wait_all_tasks_blocked()
        await play.run()
    assert play.peer.headers[b"server-timing"] == b'queue;dur=3000.0;desc="1", upstream;dur=2000.0, capi;dur=0.0'


@pytest.mark.parametrize(("stream", "status"), [(True, 200), (False, 429)])
async def test_a_wait_has_its_end(autojump_clock: MockClock, stream: bool, status: int) -> None:
    book = one_at_a_time(queue_timeout_s=20.0)
    play = queued_play(book, Reply([chunk("never")]), stream=stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, book, 100.0)
        await trio.testing.wait_all_tasks_blocked()
        result = await play.run()
        assert trio.current_time() == 20
        nursery.cancel_scope.cancel()
    assert (result.record.outcome, play.peer.status) == (Outcome.REFUSED_BUSY, status)
    assert error_code(play) == "queue_timeout"
    assert play.up.asked == []


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_leaves_or_is_stopped_in_the_queue_asks_nobody(autojump_clock: MockClock, leaves: bool) -> None:
    book = one_at_a_time()
    play = queued_play(book, Reply([chunk("never")]))
    act = play.peer.leave if leaves else lambda: play.relay.abort(Failure.SHUTDOWN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, book, 100.0)
        await trio.testing.wait_all_tasks_blocked()
        result = await play.run_until(5, act)
        assert trio.current_time() == 5
        assert book.snapshots()["up"].queued == {}
        nursery.cancel_scope.cancel()
    assert result.record.outcome is (Outcome.CLIENT_GONE if leaves else Outcome.SHUTDOWN)
    assert play.up.asked == []


async def test_a_slot_is_free_again_after_each_end(autojump_clock: MockClock) -> None:
    book = one_at_a_time()
    whole, broken, silent = (
        Reply([chunk("a"), finish(), DONE]),
        Reply([httpx.ReadError("x")]),
        Reply(head_after=math.inf),
    )
    for reply in (whole, broken, httpx.ConnectError("x"), silent):
        await queued_play(book, reply).run()
    gone = queued_play(book, Reply([chunk("a"), math.inf]))
    await gone.run_until(trio.current_time() + 1, gone.peer.leave)
    snapshot = book.snapshots()["up"]
    assert (dict(snapshot.in_flight), snapshot.released, snapshot.repeated) == ({}, 5, 0)


# -- reading on for the bill ---------------------------------------------------------------------------------------

DRAINING: Final = RelayTimeouts(head=100, idle=100, drain=30)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_may_be_read_on_to_hear_what_it_cost(autojump_clock: MockClock, stream: bool) -> None:
    script: list[Step] = [chunk("a"), 9.0, finish(), fakes.usage(3, 4), DONE]
    document: list[Step] = [b"{", 9.0, msgspec.json.encode(fakes.chat_answer())[1:]]
    reply = Reply(script) if stream else Reply(document, headers=(("content-type", "application/json"),))
    play = Play(reply, stream=stream, timeouts=DRAINING)
    result = await play.run_until(2, play.peer.leave)
    assert result.record.outcome is Outcome.CLIENT_GONE
    assert result.record.usage is not None
    assert result.record.usage.output == 4
    assert play.closed_at == 9


@pytest.mark.parametrize("second", [Reply([chunk("never")]), httpx.ConnectError("x")])
@pytest.mark.parametrize(
    ("script", "ends"),
    [([chunk("a"), math.inf], 32), ([chunk("a"), 7.0, httpx.ReadError("x")], 7), ([7.0, httpx.ReadError("x")], 7)],
)
async def test_it_is_not_read_for_long_and_nobody_else_is_asked(
    autojump_clock: MockClock, second: Reply | Exception, script: list[Step], ends: float
) -> None:
    play = spare_play(Reply(script), second)
    play.relay = relay_of(play, lambda upstream: DRAINING)
    result = await play.run_until(2, play.peer.leave)
    assert (result.record.outcome, play.closed_at, len(play.up.asked)) == (Outcome.CLIENT_GONE, ends, 1)


@pytest.mark.parametrize("timeouts", [DRAINING, RelayTimeouts(head=100, idle=100)], ids=["drains", "does-not"])
async def test_a_client_that_has_its_answer_has_not_left_early(
    autojump_clock: MockClock, timeouts: RelayTimeouts
) -> None:
    """It closes at the end mark; the upstream's connection takes a little longer."""
    play = Play(Reply([chunk("a"), finish(), fakes.usage(3, 4), DONE, 0.5]), timeouts=timeouts)
    result = await play.run_until(0.2, play.peer.leave)
    assert (result.record.outcome, result.record.usage is not None) == (Outcome.OK, True)


async def test_what_was_not_answered_yet_is_not_waited_for(autojump_clock: MockClock) -> None:
    play = Play(Reply(head_after=20.0), timeouts=DRAINING)
    await play.run_until(2, play.peer.leave)
    assert trio.current_time() == 2


# -- a seat whose credential is refused ------------------------------------------------------------------------------


class Renewable(Seat):
    """Has a better credential `renewals` times."""

    renewals = 1

    @override
    def may_renew(self) -> bool:
        self.renewals -= 1
        return self.renewals >= 0

    @override
    async def renew(self) -> None:
        self.target = UpstreamTarget("up", "http://renewed.test/v1")


@pytest.mark.parametrize("second", [401, 200])
async def test_a_refused_credential_is_renewed_once_before_anything_is_told(
    autojump_clock: MockClock, second: int
) -> None:
    refused = fakes.json_reply({"error": {"message": "expired"}}, 401)
    play = Play(refused, stream=False)
    play.up = FakeUpstream(refused, fakes.json_reply(fakes.chat_answer(), second))
    play.asking = fakes.client(play.up)

    @asynccontextmanager
    async def take(request: SendRequest) -> AsyncIterator[Seat]:
        yield Renewable(play.asking.target("up"), None, identity="ann", now_s=lambda: 0.0)

    play.relay = Relay(
        play.exchange,
        play.asking,
        receive=play.peer.receive,
        send=play.peer.send,
        timeouts=lambda upstream: RelayTimeouts(),
        take_seat=take,
        extra_headers=(),
    )
    result = await play.run()
    assert [asked.url.split("/")[2] for asked in play.up.asked] == ["up.test", "renewed.test"]
    assert (play.peer.status, result.identity) == (200 if second == 200 else 502, "ann")


# -- another upstream ----------------------------------------------------------------------------------------------

SPARE: Final = Catalog(
    aliases={"m": Alias("m", "m-1", via="up", fallbacks=(Fallback("m-2", "spare"),))},
    upstreams=(UpstreamModels("up"), UpstreamModels("spare")),
)


def spare_play(*replies: Reply | Exception, stream: bool = True) -> Play:
    play = Play(replies[0], stream=stream, exchange=Exchange(Operation.CHAT, Settings(SPARE), request_id="req_1"))
    play.up = FakeUpstream(*replies)
    play.asking = fakes.client(play.up, "up", "spare")
    first = RelayTimeouts(head=5, idle=5, keep_alive=60)
    play.relay = relay_of(play, lambda upstream: first if upstream == "up" else RelayTimeouts())
    return play


GOOD: Final = Reply([chunk("a"), finish(), DONE])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("first", "asked_at"),
    [
        (httpx.ConnectError("refused"), 0),
        (Reply(head_after=math.inf), 5),
        (Reply([math.inf]), 5),
        (Reply([b'{"error":{"message":"no"}}', math.inf], 503, (("content-type", "application/json"),)), 5),
    ],
    ids=["unreachable", "no head", "no body", "half an error"],
)
async def test_an_upstream_that_fails_has_another_take_its_place(
    autojump_clock: MockClock, first: Reply | Exception, asked_at: float, stream: bool
) -> None:
    """Each within its own time limits; the first one's answer is closed before the second one is asked."""
    second = GOOD if stream else fakes.json_reply(fakes.chat_answer(), head_after=200.0)
    play = spare_play(first, second, stream=stream)
    result = await play.run()
    assert result.record.outcome is Outcome.OK
    assert result.record.failed_upstreams == ("up",)
    assert play.peer.status == 200
    assert play.peer.complete
    assert [asked.url.split("/")[2] for asked in play.up.asked] == ["up.test", "spare.test"]
    assert play.closed_at == asked_at


async def test_a_client_that_leaves_between_two_attempts_ends_both(autojump_clock: MockClock) -> None:
    play = spare_play(Reply(head_after=math.inf), Reply(head_after=math.inf))
    result = await play.run_until(7, play.peer.leave)
    assert result.record.outcome is Outcome.CLIENT_GONE
    assert trio.current_time() == 7
    assert len(play.up.asked) == 2


async def test_a_gateway_that_stops_asks_nobody_else(autojump_clock: MockClock) -> None:
    play = spare_play(Reply(head_after=math.inf), GOOD)
    result = await play.run_until(3, lambda: play.relay.abort(Failure.SHUTDOWN))
    assert result.record.outcome is Outcome.SHUTDOWN
    assert len(play.up.asked) == 1


# -- the end of everything: each await, each way to end ------------------------------------------------------------

BIG: Final = chunk("x" * 60_000)
# What is going on at second 5, by its name: the upstream's script, the client's pace, and whether it streams.
MOMENTS: Final[dict[str, tuple[Reply, float, bool]]] = {
    "waiting for the head": (Reply(head_after=100.0), 0.0, True),
    "waiting for the head of a JSON answer": (Reply(head_after=100.0), 0.0, False),
    "waiting for the first event": (Reply([100.0]), 0.0, True),
    "between two events": (Reply([chunk("a"), 100.0]), 0.0, True),
    "in a send, upstream quiet": (Reply([chunk("a"), 100.0]), math.inf, True),
    "in a send, outbox full": (Reply([BIG] * 100), math.inf, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_client_that_leaves_takes_its_upstream_request_with_it(autojump_clock: MockClock, moment: str) -> None:
    reply, delay, stream = MOMENTS[moment]
    play = Play(reply, delay=delay, stream=stream)
    with capture_logs() as logs:
        result = await play.run_until(5, play.peer.leave)
    assert trio.current_time() == 5
    assert play.closed_at == 5
    assert not play.peer.complete
    assert result.record.outcome is Outcome.CLIENT_GONE
    assert result.latency_ms == 5000
    assert play.exchange.state is State.DONE
    assert logs == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_cancelling_a_relay_closes_its_upstream_and_still_gives_an_account(
    autojump_clock: MockClock, moment: str
) -> None:
    """The client takes nothing more by then, or it would have had its end from `abort`."""
    reply, delay, stream = MOMENTS[moment]
    play = Play(reply, delay=min(delay, 6.0), stream=stream)
    with trio.move_on_at(5) as limit:
        await play.run()
    assert limit.cancelled_caught
    assert play.results == []
    assert play.closed_at == 5
    result = play.relay.cut_off(Failure.SHUTDOWN)
    assert result.record.outcome is Outcome.SHUTDOWN
    assert result.latency_ms >= 5000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_in_the_last_send_has_had_everything(
    autojump_clock: MockClock, stream: bool
) -> None:
    """The server reports its own end of a request as a disconnect, too: the two cannot be told apart."""
    reply = Reply([chunk("a") + finish() + DONE, 0.5]) if stream else fakes.json_reply(fakes.chat_answer())
    play = Play(reply, delay=3.0, stream=stream)
    result = await play.run_until(7 if stream else 4, play.peer.leave)
    assert play.peer.complete
    assert trio.current_time() == (7 if stream else 4)  # the last send was under way
    assert result.record.outcome is Outcome.OK


async def test_a_client_that_leaves_with_the_rest_unsent_has_not(autojump_clock: MockClock) -> None:
    play = Play(Reply([chunk("a"), 1.0, chunk("b"), finish(), DONE]), delay=10.0)
    result = await play.run_until(5, play.peer.leave)
    assert play.closed_at == 1
    assert result.record.outcome is Outcome.CLIENT_GONE


@pytest.mark.parametrize(("delay", "outcome"), [(0.0, Outcome.OK), (2.0, Outcome.CLIENT_GONE)])
async def test_a_client_that_leaves_at_the_last_event_while_the_upstream_lingers(
    autojump_clock: MockClock, delay: float, outcome: Outcome
) -> None:
    """SDKs hang up at [DONE]: if that has been sent, they have had everything."""
    play = Play(Reply([chunk("a"), finish(), DONE, math.inf]), delay=delay)
    result = await play.run_until(0.5, play.peer.leave)
    assert play.closed_at == 0.5
    assert result.record.outcome is outcome
    assert result.record.usage_source is UsageSource.NONE


async def test_only_a_disconnect_is_taken_for_one(autojump_clock: MockClock) -> None:
    class Talking(FakePeer):
        said = 0

        @override
        async def receive(self) -> ASGIReceiveEvent:
            self.said += 1
            if self.said < 3:
                return HTTPRequestEvent(type="http.request", body=b"", more_body=False)
            return await super().receive()

    play = Play(Reply([1.0, chunk("a"), finish(), DONE]), peer=Talking())
    assert (await play.run()).record.outcome is Outcome.OK


# -- admission -----------------------------------------------------------------------------------------------------


class Gatekeeper:
    """Lets a request in after so many seconds, or refuses it then; counts how often it was asked."""

    def __init__(self, after_s: float, refusal: AdmissionRefusedError | None = None) -> None:
        self.asked = 0
        self._after_s = after_s
        self._refusal = refusal

    async def __call__(self) -> None:
        self.asked += 1
        await trio.sleep(self._after_s)
        if self._refusal is not None:
            raise self._refusal


def guarded_play(gatekeeper: Gatekeeper, *replies: Reply | Exception, stream: bool = True) -> Play:
    play = spare_play(*replies, stream=stream)
    play.relay = relay_of(play, lambda upstream: RelayTimeouts(head=5, idle=5), admit=gatekeeper)
    return play


async def test_who_is_not_admitted_yet_is_kept_alive_and_then_served(autojump_clock: MockClock) -> None:
    play = guarded_play(Gatekeeper(40.0), Reply([4.0, chunk("a"), finish(), DONE]))
    result = await play.run()
    assert result.record.outcome is Outcome.OK
    assert [at for at, data in play.peer.pieces if data == KEEP_ALIVE] == [15, 30]
    assert fakes.texts(play.peer.body) == "a"


async def test_admission_is_no_time_of_ours(autojump_clock: MockClock) -> None:
    play = guarded_play(Gatekeeper(3.0), fakes.json_reply(fakes.chat_answer(), head_after=2.0), stream=False)
    await play.run()
    assert play.peer.headers[b"server-timing"] == b"admission;dur=3000.0, upstream;dur=2000.0, capi;dur=0.0"


async def test_who_was_let_in_may_ask_as_many_upstreams_as_it_takes(autojump_clock: MockClock) -> None:
    gatekeeper = Gatekeeper(1.0)
    play = guarded_play(gatekeeper, httpx.ConnectError("x"), Reply([chunk("a"), finish(), DONE]))
    assert (await play.run()).record.outcome is Outcome.OK
    assert (gatekeeper.asked, len(play.up.asked)) == (1, 2)


@pytest.mark.parametrize(
    ("why", "outcome"),
    [
        (NotAdmitted.TOO_EARLY, Outcome.REFUSED_RATE),
        (NotAdmitted.QUEUE_FULL, Outcome.REFUSED_BUSY),
        (NotAdmitted.DENIED, Outcome.REFUSED_DENIED),
    ],
)
@pytest.mark.parametrize(("after_s", "status"), [(1.0, 429), (20.0, 200)])
async def test_who_is_not_let_in_asks_nobody_and_is_told_why(
    autojump_clock: MockClock, why: NotAdmitted, outcome: Outcome, after_s: float, status: int
) -> None:
    refusal = AdmissionRefusedError(Problem(429, "some_code", "x", retry_after_s=7), why)
    play = guarded_play(Gatekeeper(after_s, refusal), Reply([chunk("never")]), Reply([chunk("nor this")]))
    result = await play.run()
    assert (result.record.outcome, play.peer.status, error_code(play)) == (outcome, status, "some_code")
    assert play.peer.complete
    assert play.up.asked == []
    assert play.peer.headers.get(b"retry-after") == (b"7" if status == 429 else None)


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_leaves_or_is_stopped_before_it_is_admitted_asks_nobody(
    autojump_clock: MockClock, leaves: bool
) -> None:
    play = guarded_play(Gatekeeper(100.0), Reply([chunk("never")]))
    result = await play.run_until(5, play.peer.leave if leaves else lambda: play.relay.abort(Failure.SHUTDOWN))
    assert trio.current_time() == 5
    assert result.record.outcome is (Outcome.CLIENT_GONE if leaves else Outcome.SHUTDOWN)
    assert play.up.asked == []
