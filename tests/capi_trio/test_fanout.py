"""The fan-out while the gateway runs: each ride is metered, what is too much is logged once, nobody is told by name."""

import random
from collections.abc import Iterator
from contextlib import ExitStack

import attrs
import pytest
import trio
from attrs import define, field
from structlog.testing import capture_logs
from trio.testing import MockClock

from capi_core.fanout import FanoutThresholds, Measure
from capi_core.identities import IdentityRecord
from capi_core.keys import KeyRecord
from capi_trio.access import ANONYMOUS
from capi_trio.fanout import FanoutWatch

HOUR_S = 3600
NOON_S = 1_800_014_400
"""An hour begins."""
MIDNIGHT_S = 1_800_057_600


def identity(name: str, *, shared: bool = False) -> IdentityRecord:
    return IdentityRecord(id=f"idn_{name}", name=name, owner="Ann", shared=shared, created_at=0, updated_at=0)


def key(name: str = "k", owner: str | None = "Ann") -> KeyRecord:
    return attrs.evolve(ANONYMOUS, id=name, owner=owner)


@define
class Scene:
    """A watch on trio's clock, which begins at `start_s`, and what it logged."""

    records: tuple[IdentityRecord, ...] = (identity("seat"),)
    start_s: int = NOON_S
    logs: list[dict[str, object]] = field(factory=list)
    dice: random.Random = field(factory=lambda: random.Random(0))
    drawn: list[bytes] = field(factory=list)
    jumped_s: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.watch = FanoutWatch(lambda: self.records, now_ms=self.now_ms, random_bytes=self.random_bytes)

    watch: FanoutWatch = field(init=False)

    def now_ms(self) -> int:
        return round((self.start_s + self.jumped_s + trio.current_time()) * 1000)

    def random_bytes(self, count: int) -> bytes:
        self.drawn.append(self.dice.randbytes(count))
        return self.drawn[-1]

    def ride(self, rider: KeyRecord | None = None, address: str | None = "192.0.2.1", name: str = "seat") -> None:
        with self.watch.riding(name, rider or key(), address):
            pass

    @property
    def told(self) -> list[dict[str, object]]:
        return [line for line in self.logs if line["event"] == "identity_fanout"]


@pytest.fixture
def logs() -> Iterator[list[dict[str, object]]]:
    with capture_logs() as lines:
        yield lines  # type: ignore[misc]  # structlog's type is of mutable mappings


async def test_a_ride_is_counted_while_it_lasts_whatever_ends_it(autojump_clock: MockClock) -> None:
    scene = Scene()
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(scene.watch.riding("seat", key(f"k{number}"), f"192.0.2.{number}"))
    with pytest.raises(ZeroDivisionError), scene.watch.riding("seat", key(), None):
        raise ZeroDivisionError
    scene.ride()
    (report,) = scene.watch.reports("seat")
    assert (report.owners.count, report.keys.count, report.addresses.count) == (1, 4, 4)
    assert (report.requests, report.peak_in_flight) == (5, 3), "three at once, and none is left"
    assert scene.watch.reports("other") == ()


async def test_each_identity_has_its_own_hours(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.ride(name="a")
    scene.ride(name="b")
    await trio.sleep(2 * HOUR_S)
    scene.ride(name="a")
    assert [report.hour_ms // 1000 - NOON_S for report in scene.watch.reports("a")] == [0, 2 * HOUR_S]
    assert [report.identity for report in scene.watch.reports("b")] == ["b"]


async def test_what_is_too_much_is_logged_with_numbers_and_the_next_step(
    autojump_clock: MockClock, logs: list[dict[str, object]]
) -> None:
    scene = Scene(logs=logs)
    scene.ride(key("k1", "Ann"))
    assert scene.told == []
    await trio.sleep(61)
    scene.ride(key("k2", "Ben"), "192.0.2.2")
    (line,) = scene.told
    assert (line["log_level"], line["identity"], line["over"]) == ("warning", "seat", ["owners"])
    assert (line["owners"], line["keys"], line["addresses"]) == ("2", "2", "2")
    assert (line["requests"], line["peak_in_flight"]) == (2, 1)
    assert "capi identities share seat" in str(line["next_step"])
    assert not {"Ann", "Ben", "k1", "192.0.2.2"} & set(str(line).replace("'", " ").split())
    (warning,) = scene.watch.warnings()
    assert warning.over == (Measure.OWNERS,)


async def test_requests_cause_a_look_once_a_minute_and_each_hour_is_told_once(
    autojump_clock: MockClock, logs: list[dict[str, object]]
) -> None:
    scene = Scene(logs=logs)
    for owner in ("Ann", "Ben"):
        scene.ride(key(owner=owner))
    assert scene.told == [], "the first one looked, less than a minute ago"
    await trio.sleep(60)
    for _ in range(3):
        scene.ride()
        await trio.sleep(60)
    assert len(scene.told) == 1
    await trio.sleep(HOUR_S)
    for _ in range(2):
        for owner in ("Ann", "Ben"):
            scene.ride(key(owner=owner))
        await trio.sleep(60)
    assert len(scene.told) == 2


async def test_a_clock_that_was_set_back_holds_no_look_up(
    autojump_clock: MockClock, logs: list[dict[str, object]]
) -> None:
    scene = Scene(logs=logs)
    scene.ride(key(owner="Ann"))
    scene.jumped_s = -30 * 60
    scene.ride(key(owner="Ben"))
    assert len(scene.told) == 1


async def test_it_looks_by_itself_when_nobody_asks_any_more(
    autojump_clock: MockClock, logs: list[dict[str, object]]
) -> None:
    scene = Scene(logs=logs, start_s=NOON_S + HOUR_S - 1)
    for owner in ("Ann", "Ben"):
        scene.ride(key(owner=owner))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.watch.run)
        await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert len(scene.told) == 1, "of the hour that was over one second later"


async def test_an_identity_that_is_shared_may_have_many_owners_and_nothing_else(
    autojump_clock: MockClock, logs: list[dict[str, object]]
) -> None:
    scene = Scene(logs=logs, records=(identity("seat", shared=True),))
    for owner in ("Ann", "Ben"):
        scene.ride(key(owner=owner))
    await trio.sleep(60)
    scene.ride()
    assert scene.told == []
    assert scene.watch.warnings() == ()
    scene.watch.set_thresholds(FanoutThresholds(keys=1))
    scene.ride(key("k2"))
    assert [line["over"] for line in scene.told] == [["keys"]]
    scene.records = (identity("seat"),)
    (warning,) = scene.watch.warnings()
    assert warning.over == (Measure.OWNERS, Measure.KEYS)


async def test_the_hash_key_is_a_new_one_each_day_and_nobody_counts_twice(autojump_clock: MockClock) -> None:
    scene = Scene(start_s=MIDNIGHT_S - HOUR_S // 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.watch.run)
        scene.ride()
        for _ in range(3 * 24):
            await trio.sleep(HOUR_S // 2)
            scene.ride()
            await trio.sleep(HOUR_S // 2)
            scene.ride()
        nursery.cancel_scope.cancel()
    assert [len(drawn) for drawn in scene.drawn] == [32] * 4
    assert len(set(scene.drawn)) == 4
    assert {report.keys.count for report in scene.watch.reports("seat")} == {1}
