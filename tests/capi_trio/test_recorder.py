"""What requests cost is stored soon, in groups, and once; and whatever the database does, no request notices."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from capi_core.commands import Outcome
from capi_core.errors import LocalError
from capi_trio.recorder import Recorder, RecorderOptions
from capi_trio.storage.errors import CommitUnknown, DatabaseUnavailable
from tests.support.usage_rows import MINUTE, FakeSink, recorder_of, refusal, usage_event

DAY_MS = 24 * 3600 * 1000
NEVER = float("inf")


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[trio.Nursery]:
    """Within, the recorder runs; afterwards it has ended as on shutdown."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        yield nursery
        nursery.cancel_scope.cancel()


def ids(first: int, last: int) -> list[str]:
    return [f"req_{number}" for number in range(first, last)]


def down() -> None:
    raise DatabaseUnavailable("test", "cannot be used now")


def unanswered() -> None:
    raise CommitUnknown("test", "the connection broke")


def never_storable() -> None:
    raise LocalError("a prompt that must not be logged")


async def test_a_request_is_stored_within_a_quarter_of_a_second(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink)
    async with running(recorder):
        await trio.sleep(10)
        noted = trio.current_time()
        recorder.note(usage_event(1))
        await trio.sleep(0.15)
        recorder.note(usage_event(2))
        assert sink.batches == []
        await trio.sleep(0.1)
        assert sink.at == [pytest.approx(noted + 0.2)]
        assert sink.ids == ids(1, 3)
        recorder.note(usage_event(3))
        await trio.sleep(0.25)
        assert sink.at[1:] == [pytest.approx(noted + 0.45)]
        assert (recorder.waiting, recorder.dropped, recorder.failure) == (0, 0, None)


async def test_each_wait_begins_with_the_oldest_that_waits(autojump_clock: MockClock) -> None:
    """Also while another group is being stored, which takes a while."""
    sink = FakeSink(slow_s=0.15)
    recorder = recorder_of(sink)
    async with running(recorder):
        recorder.note(usage_event(1))
        await trio.sleep(0.3)
        recorder.note(usage_event(2))
        await trio.sleep(1)
        assert sink.at == [pytest.approx(0.35), pytest.approx(0.3 + 0.2 + 0.15)]


async def test_a_full_group_does_not_wait(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink)
    async with running(recorder):
        await trio.sleep(1)
        for number in range(1200):
            recorder.note(usage_event(number))
        await trio.sleep(0.01)
        assert [len(batch.events) for batch in sink.batches] == [500, 500]
        await trio.sleep(0.25)
        assert sink.ids == ids(0, 1200)
        recorder.note(usage_event(1200))
        await trio.sleep(0.1)
        for number in range(1201, 1700):
            recorder.note(usage_event(number))
        await trio.sleep(0.01)
        assert sink.ids == ids(0, 1700)


async def test_what_waits_is_stored_before_the_end(autojump_clock: MockClock) -> None:
    sink = FakeSink(slow_s=0.1)
    recorder = recorder_of(sink)
    async with running(recorder):
        for number in range(1300):
            recorder.note(usage_event(number))
    assert sink.ids == ids(0, 1300)
    assert (recorder.waiting, recorder.dropped) == (0, 0)


async def test_a_cancelled_commit_is_neither_lost_nor_repeated(autojump_clock: MockClock) -> None:
    sink = FakeSink(slow_s=0.1)
    recorder = recorder_of(sink)
    async with running(recorder):
        recorder.note(usage_event(1))
        await trio.sleep(0.25)
        assert (len(sink.tried), sink.batches) == (1, [])
    assert sink.ids == ["req_1"]


async def test_the_end_is_bounded_and_says_what_is_lost(autojump_clock: MockClock) -> None:
    """A database that is away at the end must not keep the process."""
    sink = FakeSink(down)
    recorder = recorder_of(sink, RecorderOptions(refusal_rows=1, sweep_s=NEVER))
    with capture_logs() as logs:
        async with running(recorder):
            for number in range(700):
                recorder.note(usage_event(number))
            for number in range(5):
                recorder.note(refusal(number))
            began = trio.current_time()
        assert trio.current_time() == pytest.approx(began + 3.0)
    assert (recorder.waiting, recorder.dropped, sink.batches) == (0, 705, [])
    assert (logs[-1]["event"], logs[-1]["requests"], logs[-1]["total"]) == ("usage_dropped", 705, 705)


async def test_what_comes_after_the_end_is_counted_as_dropped(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink)
    async with running(recorder):
        pass
    recorder.note(usage_event())
    assert (recorder.waiting, recorder.dropped) == (0, 1)


@pytest.mark.parametrize("fault", [down, unanswered])
async def test_while_the_database_is_away_all_is_kept_and_tried_again(
    fault: Callable[[], None], autojump_clock: MockClock
) -> None:
    """The same batch first, so that a COMMIT without an answer is not done twice; later and later, to the bound."""
    sink = FakeSink(fault)
    recorder = recorder_of(sink)
    with capture_logs() as logs:
        async with running(recorder):
            recorder.note(usage_event(0))
            await trio.sleep(0.3)
            failure = recorder.failure
            assert failure is not None
            for number in range(1, 100):
                recorder.note(usage_event(number))
            await trio.sleep(300)
            assert len({batch.id for batch in sink.tried}) == 1
            assert 10 < len(sink.tried) < 20
            assert recorder.waiting == 100
            sink.fail = lambda: None
            await trio.sleep(31)
            assert (recorder.waiting, recorder.dropped) == (0, 0)
        assert recorder.failure is None
    assert sink.ids == ids(0, 100)
    assert len({batch.id for batch in sink.batches}) == 2
    told = [line["event"] for line in logs if line["event"] != "usage_not_swept"]
    assert told == ["usage_not_stored", "usage_stored_again"]


async def test_a_full_queue_drops_the_newest_and_says_so_once_a_minute(autojump_clock: MockClock) -> None:
    sink = FakeSink(down)
    recorder = recorder_of(sink, RecorderOptions(max_waiting=50, sweep_s=NEVER))
    with capture_logs() as logs:
        async with running(recorder):
            for number in range(300):
                recorder.note(usage_event(number))
                await trio.sleep(1)
            assert (recorder.waiting, recorder.dropped) == (50, 250)
            sink.fail = lambda: None
            await trio.sleep(31)
    assert sink.ids == ids(0, 50)
    told = [line for line in logs if line["event"] == "usage_dropped"]
    assert 4 <= len(told) <= 6
    assert sum(line["requests"] for line in told) == told[-1]["total"] == 250


async def test_what_can_never_be_stored_does_not_hold_up_the_rest(autojump_clock: MockClock) -> None:
    sink = FakeSink(never_storable)
    recorder = recorder_of(sink)
    with capture_logs() as logs:
        async with running(recorder):
            recorder.note(usage_event(1))
            await trio.sleep(1)
            assert (recorder.waiting, recorder.dropped) == (0, 1)
            sink.fail = lambda: None
            recorder.note(usage_event(2))
    assert sink.ids == ["req_2"]
    told = [line for line in logs if line["event"] == "usage_dropped"]
    assert [line["errors"] for line in told] == [["LocalError"]]
    assert "prompt" not in repr(logs)


async def test_noting_never_raises(autojump_clock: MockClock) -> None:
    """Not even for what is no event at all."""
    sink = FakeSink()
    recorder = recorder_of(sink)
    with capture_logs() as logs:
        async with running(recorder):
            recorder.note(None)  # type: ignore[arg-type]  # the point
            recorder.note(usage_event(1))
    assert (sink.ids, recorder.dropped) == (["req_1"], 1)
    assert [(line["event"], line["errors"]) for line in logs] == [("usage_dropped", ["AttributeError"])]


async def test_refusals_in_a_flood_are_summed_up_and_leave_few_rows(autojump_clock: MockClock) -> None:
    """Each key has its own share, anew each minute; other requests are not concerned."""
    sink = FakeSink()
    recorder = recorder_of(sink, RecorderOptions(refusal_rows=3, sweep_s=NEVER))
    async with running(recorder):
        for number in range(1000):
            recorder.note(refusal(number))
        recorder.note(refusal(1000, key_id="key_b", outcome=Outcome.REFUSED_BUSY))
        recorder.note(usage_event(1001))
        await trio.sleep(0.25)
        assert sink.ids == [*ids(0, 3), *ids(1000, 1002)]
        assert (sink.summed.requests, sink.summed.refused) == (997, 997)
        await trio.sleep(60)
        for number in range(2000, 2005):
            recorder.note(refusal(number))
    assert sink.ids[5:] == ids(2000, 2003)
    assert sink.summed.requests == 999
    assert recorder.dropped == 0


async def test_refusals_without_a_row_are_stored_as_soon_as_those_with_one(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink, RecorderOptions(refusal_rows=0, sweep_s=NEVER))
    async with running(recorder):
        await trio.sleep(1)
        recorder.note(refusal(1))
        await trio.sleep(0.1)
        recorder.note(usage_event(2))
        await trio.sleep(1)
        assert sink.at == [pytest.approx(1.2)]
        [batch] = sink.batches
        assert [key.key_id for key in batch.rollups] == ["key_a"]
        assert sink.ids == ["req_2"]


async def test_a_flood_of_refusals_takes_no_room_from_others_and_is_bounded(autojump_clock: MockClock) -> None:
    """Of ever new keys, while the database is away: at some point they are not even counted any more."""
    sink = FakeSink(down)
    recorder = recorder_of(sink, RecorderOptions(max_waiting=50, refusal_rows=0, sweep_s=NEVER))
    async with running(recorder):
        for number in range(1000):
            recorder.note(refusal(number, key_id=f"key_{number}"))
        recorder.note(usage_event(1))
        dropped = recorder.dropped
        assert 800 <= dropped <= 950
        sink.fail = lambda: None
    assert sink.ids == ["req_1"]
    assert sink.summed.requests == 1000 - dropped


async def test_keys_without_number_do_not_each_have_a_share_of_rows(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink, RecorderOptions(max_waiting=10, max_batch=5, refusal_rows=1, sweep_s=NEVER))
    async with running(recorder):
        for number in range(100):
            recorder.note(refusal(number, key_id=f"key_{number}"))
            await trio.sleep(0.01)
    assert sink.ids == ids(0, 10)
    assert sink.summed.requests + recorder.dropped == 90


async def test_a_clock_that_is_set_back_makes_no_negative_duration(autojump_clock: MockClock) -> None:
    sink = FakeSink()
    recorder = recorder_of(sink, RecorderOptions(refusal_rows=0, sweep_s=NEVER), now_ms=lambda: -5)
    async with running(recorder):
        recorder.note(refusal(1, ts_ms=MINUTE, latency_ms=-3600_000.0))
        recorder.note(refusal(2, ts_ms=MINUTE - 3600_000, latency_ms=float("nan")))
        recorder.note(usage_event(3, ts_ms=-1, latency_ms=-1.0))
    assert (sink.ids, recorder.dropped) == (["req_3"], 0)
    assert sink.summed.requests == 2


async def test_what_is_too_old_goes_every_hour_with_pauses(autojump_clock: MockClock) -> None:
    """For how long it is kept is asked each time."""
    days = 30
    sink = FakeSink(old_rows=2500)
    recorder = recorder_of(sink, RecorderOptions(), now_ms=lambda: MINUTE, keep_days=lambda: days)
    with capture_logs() as logs:
        async with running(recorder):
            await trio.sleep(1)
            assert {before for _, before in sink.swept} == {MINUTE - 30 * DAY_MS}
            assert [at for at, _ in sink.swept] == [pytest.approx(turn * 0.05) for turn in range(4)]
            days, sink.old_rows = 7, 10
            await trio.sleep(3600)
            assert sink.swept[-1][1] == MINUTE - 7 * DAY_MS
            assert (sink.old_rows, len(sink.swept)) == (0, 6)
    assert [(line["event"], line["rows"]) for line in logs] == [("usage_swept", 2500), ("usage_swept", 10)]


@pytest.mark.parametrize("fault", [down, never_storable])
async def test_a_sweep_that_fails_is_tried_the_next_hour(fault: Callable[[], None], autojump_clock: MockClock) -> None:
    sink = FakeSink(fault, old_rows=10)
    recorder = recorder_of(sink, RecorderOptions())
    with capture_logs() as logs:
        async with running(recorder):
            await trio.sleep(1)
            sink.fail = lambda: None
            recorder.note(usage_event(1))
            await trio.sleep(3600)
    assert (sink.old_rows, sink.ids) == (0, ["req_1"])
    assert [line["event"] for line in logs] == ["usage_not_swept", "usage_swept"]
    assert "prompt" not in repr(logs)
