"""Seats: an upstream with a cap has so many, everybody waits in turn, and what it says of itself pauses all."""

from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio
from trio.testing import MockClock

from capi_core.commands import Operation, SendRequest
from capi_core.config import Config, LimitsConfig, UpstreamConfig
from capi_core.gate_events import GateState
from capi_trio.access import ANONYMOUS
from capi_trio.seat import NoSeatError, Seat
from capi_trio.seats import Seats
from capi_trio.upstream import UpstreamFailedError
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply


def config(cap: int | None, **limits: float) -> Config:
    up = UpstreamConfig(kind="openai", base_url="http://up.test/v1", max_in_flight=cap)
    chosen = {"max_queued_per_identity": 2, "queue_timeout_s": 60.0, **limits}
    return Config(upstreams={"up": up}, limits=LimitsConfig(**chosen))  # type: ignore[arg-type] # counts are whole


def seats(cap: int | None, **limits: float) -> Seats:
    return Seats(fakes.client(FakeUpstream(Reply())), config(cap, **limits), now_s=lambda: 0.0)


def take(book: Seats, key: str, upstream: str = "up") -> AbstractAsyncContextManager[Seat]:
    return book.take(attrs.evolve(ANONYMOUS, id=key), SendRequest(upstream, Operation.CHAT, (), b"{}"))


async def hold(book: Seats, key: str, for_s: float, order: list[tuple[str, float]]) -> None:
    async with take(book, key) as seat:
        assert seat.target.name == "up"
        order.append((key, trio.current_time()))
        await trio.sleep(for_s)


async def test_without_a_cap_there_is_always_a_seat(autojump_clock: MockClock) -> None:
    book, order = seats(None), list[tuple[str, float]]()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(hold, book, "a", 5.0, order)
    assert {at for _, at in order} == {0.0}
    assert book.snapshots() == {}
    async with take(book, "a") as seat:
        seat.heard(429, ((b"retry-after", b"9"),))  # nobody is held back by it
        assert seat.slot is None


async def test_there_are_no_identities_to_ask_about_without_seats_of_copilot() -> None:
    book = seats(None)
    assert not book.have_identities
    with pytest.raises(AssertionError):
        await book.usage(ANONYMOUS)


async def test_with_a_cap_each_key_has_its_turn(autojump_clock: MockClock) -> None:
    book, order = seats(1, max_queued_per_identity=10), list[tuple[str, float]]()
    async with trio.open_nursery() as nursery:
        for key in ("a", "a", "a", "b"):
            nursery.start_soon(hold, book, key, 1.0, order)
            await trio.testing.wait_all_tasks_blocked()
    assert [key for key, _ in order] in (["a", "a", "b", "a"], ["a", "b", "a", "a"])
    assert [at for _, at in order] == [0, 1, 2, 3]
    assert book.snapshots()["up"].peak_in_flight == 1


async def test_who_finds_no_place_is_told_when_to_come_back(autojump_clock: MockClock) -> None:
    book, order = seats(1), list[tuple[str, float]]()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, book, "a", 100.0, order)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NoSeatError) as full:
            await hold(book, "a", 0, order)
        assert (full.value.problem.status, full.value.problem.code) == (429, "queue_full")
        assert full.value.problem.retry_after_s is not None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "headers", "pauses_s"),
    [
        (429, ((b"retry-after", b"20"),), 20),
        (503, ((b"retry-after-ms", b"1500"),), 1.5),
        (503, ((b"retry-after", b"Thu, 01 Jan 1970 00:00:07 GMT"),), 7),
        (529, ((b"retry-after", b"20"),), 20),
        (429, (), 0),
        (429, ((b"retry-after", b"0"),), 0),
        (500, ((b"retry-after", b"20"),), 0),
        (200, ((b"retry-after", b"20"),), 0),
    ],
)
async def test_an_upstream_that_wants_to_be_left_alone_is(
    autojump_clock: MockClock, status: int, headers: tuple[tuple[bytes, bytes], ...], pauses_s: float
) -> None:
    book, order = seats(4), list[tuple[str, float]]()
    async with take(book, "a") as seat:
        seat.heard(status, headers)
    await hold(book, "b", 0, order)
    assert trio.current_time() == pytest.approx(pauses_s)


async def test_refusals_in_a_row_cool_down(autojump_clock: MockClock) -> None:
    book = seats(4)
    async with take(book, "a") as seat:
        for _ in range(5):
            seat.heard(429, ())
    assert book.snapshots()["up"].pause_left_s == 60


async def test_limits_change_while_requests_run_and_wait(autojump_clock: MockClock) -> None:
    book, order = seats(1), list[tuple[str, float]]()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, book, "a", 10.0, order)
        await trio.testing.wait_all_tasks_blocked()
        assert len(order) == 1
        book.set_config(config(3))
        await trio.testing.wait_all_tasks_blocked()
        assert len(order) == 3
        book.set_config(config(None))
        await hold(book, "b", 0, order)
    assert trio.current_time() == 10
    book.set_config(config(2))
    assert book.snapshots()["up"].state is GateState.OPEN


async def test_an_upstream_that_is_not_there_has_no_seat() -> None:
    with pytest.raises(UpstreamFailedError):
        async with take(seats(None), "a", "gone"):
            raise AssertionError("somebody sits there")


async def test_a_cap_that_was_away_still_counts_what_is_in_flight(autojump_clock: MockClock) -> None:
    """An edit of the configuration that is taken back must not let twice as many through."""
    book, order = seats(1), list[tuple[str, float]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, book, "a", 10.0, order)
        await trio.testing.wait_all_tasks_blocked()
        book.set_config(config(None))
        book.set_config(config(1))
        await hold(book, "b", 0, order)
    assert order == [("a", 0), ("b", 10)]
