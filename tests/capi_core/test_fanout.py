"""The fan-out meter: counts what a list of all requests would tell, in bounded memory, and warns once an hour."""

import ipaddress
import itertools
import sys
from collections.abc import Iterator

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capi_core import fanout
from capi_core.errors import LocalError
from capi_core.fanout import (
    MAX_DISTINCT,
    Distinct,
    FanoutMeter,
    FanoutReport,
    FanoutThresholds,
    FanoutWarning,
    Measure,
)

HASH_KEY = bytes(range(32))
HOUR = 3_600_000
NOON = 490_000 * HOUR
"""The start of some hour."""
WIDE = FanoutThresholds(owners=MAX_DISTINCT, keys=MAX_DISTINCT, addresses=MAX_DISTINCT)


def a_meter(thresholds: FanoutThresholds | None = None) -> FanoutMeter:
    return FanoutMeter(HASH_KEY, thresholds or FanoutThresholds())


def request(
    meter: FanoutMeter,
    identity: str = "seat",
    *,
    owner: str | None = "alice",
    key_id: str | None = "k1",
    address: str | None = "192.0.2.1",
    now_ms: int = NOON,
) -> None:
    """A request that is over at once."""
    meter.begin(identity, owner=owner, key_id=key_id, address=address, now_ms=now_ms)
    meter.end(identity, now_ms)


def only(reports: tuple[FanoutReport, ...]) -> FanoutReport:
    [report] = reports
    return report


def addresses_of(*addresses: str | None) -> int:
    """As how many these count."""
    meter = a_meter()
    for address in addresses:
        request(meter, address=address)
    return only(meter.report(NOON)).addresses.count


def warned(warnings: tuple[FanoutWarning, ...]) -> list[tuple[str, int]]:
    """Of whom, and for how many hours from noon."""
    return [(warning.report.identity, (warning.report.hour_ms - NOON) // HOUR) for warning in warnings]


# -- what is counted ------------------------------------------------------------------------------------------------


def test_one_human_on_one_seat() -> None:
    meter = a_meter()
    for second in range(10):
        request(meter, now_ms=NOON + 1000 * second)
    one = Distinct(1)
    assert meter.report(NOON + 10_000) == (
        FanoutReport(identity="seat", hour_ms=NOON, owners=one, keys=one, addresses=one, peak_in_flight=1, requests=10),
    )
    assert meter.warnings(NOON + 10_000) == ()


def test_each_hour_and_identity_is_counted_by_itself() -> None:
    meter = a_meter()
    request(meter, "b", owner="alice")
    request(meter, "a", owner="alice")
    request(meter, "a", owner="bob")
    request(meter, "b", owner="bob", now_ms=NOON + HOUR)
    found = [(report.identity, report.hour_ms, report.owners.count) for report in meter.report(NOON + HOUR)]
    assert found == [("a", NOON, 2), ("b", NOON, 1), ("b", NOON + HOUR, 1)]


def test_no_owner_key_or_address_is_one_more() -> None:
    """What nobody answers for is not taken for the owner's own; also not the empty text for none."""
    meter = a_meter()
    for given_ in (None, "", "x", None):
        request(meter, owner=given_, key_id=given_, address=given_)
    report = only(meter.report(NOON))
    assert (report.owners.count, report.keys.count, report.addresses.count) == (3, 3, 3)


def test_a_request_counts_in_the_hour_in_which_it_begins_and_as_in_flight_while_it_lasts() -> None:
    meter = a_meter()
    for _ in range(3):
        meter.begin("seat", owner="alice", key_id="k1", address="::1", now_ms=NOON)
    meter.end("seat", NOON + 2 * HOUR + 1)
    assert [
        (report.hour_ms - NOON, report.owners.count, report.requests, report.peak_in_flight)
        for report in meter.report(NOON + 3 * HOUR)
    ] == [(0, 1, 3, 3), (HOUR, 0, 0, 3), (2 * HOUR, 0, 0, 3), (3 * HOUR, 0, 0, 2)]


def test_the_running_hour_and_the_24_before_are_told() -> None:
    meter = a_meter()
    for hour in range(40):
        request(meter, now_ms=NOON + hour * HOUR)
    assert [report.hour_ms for report in meter.report(NOON + 39 * HOUR)] == [
        NOON + hour * HOUR for hour in range(15, 40)
    ]
    assert len(meter.report(NOON + 63 * HOUR)) == 1
    assert meter.report(NOON + 64 * HOUR) == ()


def test_a_request_that_lasts_for_days_is_in_flight_in_all_hours_that_are_kept() -> None:
    meter = a_meter()
    meter.begin("seat", owner="alice", key_id="k1", address="::1", now_ms=NOON)
    reports = meter.report(NOON + 10**6 * HOUR)
    assert [report.hour_ms for report in reports] == [NOON + (10**6 - back) * HOUR for back in range(24, -1, -1)]
    assert {(report.peak_in_flight, report.requests) for report in reports} == {(1, 0)}


@pytest.mark.parametrize("started", [0, 1], ids=["never begun", "ended before"])
def test_an_end_without_a_beginning_is_the_embedders_fault(started: int) -> None:
    meter = a_meter()
    for _ in range(started):
        request(meter)
    with pytest.raises(LocalError):
        meter.end("seat", NOON)
    request(meter)
    assert only(meter.report(NOON)).peak_in_flight == 1, "it has changed nothing"


# -- addresses ------------------------------------------------------------------------------------------------------


def test_one_machine_has_many_ipv6_addresses() -> None:
    assert addresses_of("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:0DB8:1:2::1%eth0") == 1
    assert addresses_of("2001:db8:1:2::1", "2001:db8:1:3::1") == 2


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    assert addresses_of("192.0.2.1", "::ffff:192.0.2.1", "::FFFF:c000:201", "::ffff:192.0.2.2") == 2


def test_what_is_no_address_counts_as_it_is_written() -> None:
    assert addresses_of("unix", "unix", "UNIX", "192.0.2.01", "192.0.2.1", "192.0.2.1:80", "x" * 100_000) == 6
    assert addresses_of("\ud800", "\udc00", "?") == 3, "also what is no Unicode"


def test_no_text_passes_for_an_address() -> None:
    """Whatever the bytes that are hashed in place of an address."""
    assert addresses_of("61.65.66.67", "ABC", "=ABC", "4=ABC") == 4
    assert addresses_of("3d41:4243:4445:4647::", "ABCDEFG", "=ABCDEFG", "6=ABCDEFG") == 4


@given(
    high=st.integers(0, 2**64 - 1),
    low=st.integers(0, 2**64 - 1),
    other=st.integers(0, 2**64 - 1),
    ipv4=st.ip_addresses(v=4),
)
def test_an_address_counts_the_same_in_each_notation(
    high: int, low: int, other: int, ipv4: ipaddress.IPv4Address
) -> None:
    one, another = ipaddress.IPv6Address(high << 64 | low), ipaddress.IPv6Address(high << 64 | other)
    if high:  # else it might be one that holds an IPv4 address
        assert addresses_of(str(one), one.exploded, another.exploded.upper()) == 1
    assert addresses_of(str(ipv4), f"::ffff:{ipv4}", str(ipaddress.IPv6Address(0xFFFF << 32 | int(ipv4)))) == 1


# -- what is kept ---------------------------------------------------------------------------------------------------


def reachable(start: object) -> Iterator[object]:
    """All that can be reached from an object of this module."""
    stack, seen = [start], {id(start)}
    while stack:
        item = stack.pop()
        yield item
        if isinstance(item, dict):
            inside = list(item.keys()) + list(item.values())
        elif isinstance(item, (list, tuple, set)):
            inside = list(item)
        elif type(item).__module__ == fanout.__name__:
            names = [*getattr(item, "__dict__", ()), *getattr(type(item), "__slots__", ())]
            inside = [getattr(item, name) for name in names if not name.startswith("__")]
        else:
            inside = []
        fresh = [one for one in inside if id(one) not in seen]
        seen.update(id(one) for one in fresh)
        stack += fresh


def hashes(meter: FanoutMeter) -> set[bytes]:
    return {item for item in reachable(meter) if isinstance(item, bytes) and len(item) < 16}


def test_only_hashes_are_kept_and_only_while_their_hour_runs() -> None:
    meter = a_meter()
    for name in ("alice", "bob"):
        request(meter, owner=name, key_id=f"key of {name}", address=f"house of {name}")
    kept = repr(list(reachable(meter)))
    assert not any(text in kept for text in ("alice", "bob", "key of", "house of"))
    assert len(hashes(meter)) == 6
    assert only(meter.report(NOON + HOUR)).owners == Distinct(2)
    assert hashes(meter) == set()


def test_nobody_without_the_key_can_try_an_address_out() -> None:
    ours, theirs, again = (FanoutMeter(key, WIDE) for key in (HASH_KEY, b"\0" * 32, HASH_KEY))
    for meter in (ours, theirs, again):
        request(meter)
    assert hashes(ours) == hashes(again)
    assert hashes(ours).isdisjoint(hashes(theirs))


def test_equal_texts_are_not_seen_to_be_equal() -> None:
    meter = a_meter()
    request(meter, owner="alice", key_id="alice", address="alice")
    assert len(hashes(meter)) == 3


def test_a_new_key_counts_nobody_twice() -> None:
    """It takes effect with the next hour; what was counted before stays."""
    meter, new_key = a_meter(), b"n" * 16
    request(meter)
    first = hashes(meter)
    meter.rekey(new_key)
    request(meter, now_ms=NOON + HOUR - 1)
    assert only(meter.report(NOON)).addresses == Distinct(1)
    request(meter, now_ms=NOON + HOUR)
    assert hashes(meter).isdisjoint(first)
    assert [report.addresses for report in meter.report(NOON + HOUR)] == [Distinct(1), Distinct(1)]


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_key_that_could_be_guessed_or_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(LocalError):
        FanoutMeter(b"k" * length, FanoutThresholds())
    meter = a_meter()
    with pytest.raises(LocalError):
        meter.rekey(b"k" * length)


def test_the_count_is_exact_up_to_a_bound_and_says_so_beyond() -> None:
    meter = a_meter(WIDE)
    for number in range(MAX_DISTINCT):
        request(meter, owner=f"o{number}", key_id=f"k{number}", address=f"a{number}")
    full = only(meter.report(NOON))
    assert full.owners == full.keys == full.addresses == Distinct(MAX_DISTINCT)
    assert str(full.owners) == "1024"
    assert meter.warnings(NOON) == ()
    request(meter, owner="o7", key_id="one more", address="a7")
    more = only(meter.report(NOON))
    assert (str(more.owners), str(more.keys), str(more.addresses)) == ("1024", ">= 1024", "1024")
    [warning] = meter.warnings(NOON)
    assert warning.over == (Measure.KEYS,)
    assert "by >= 1024 keys (more than 1024)" in warning.text


def test_memory_is_bounded_whatever_comes() -> None:
    """A quarter of a MB for an identity, as the module promises."""
    meter = FanoutMeter(HASH_KEY, WIDE, max_identities=2)

    def flood(numbers: range, now_ms: int) -> int:
        for number, identity in itertools.product(numbers, "abcd"):
            text = f"{identity} {number}" * 20
            request(meter, identity, owner=text, key_id=text, address=text, now_ms=now_ms)
        return sum(sys.getsizeof(item) for item in reachable(meter))

    for hour in range(30):
        flood(range(hour + 1), NOON + hour * HOUR)
    last = NOON + 30 * HOUR
    full = flood(range(MAX_DISTINCT), last)
    assert full < 2 * 250_000
    assert flood(range(MAX_DISTINCT, 2 * MAX_DISTINCT), last) <= full + 100, "some numbers are longer"
    assert len(meter.report(last)) == 2 * 25


def test_an_identity_without_room_is_not_metered_but_its_requests_are_counted() -> None:
    meter = FanoutMeter(HASH_KEY, FanoutThresholds(), max_identities=1)
    request(meter, "a")
    meter.begin("b", owner=None, key_id=None, address=None, now_ms=NOON)
    meter.begin("b", owner=None, key_id=None, address=None, now_ms=NOON)
    assert [report.identity for report in meter.report(NOON)] == ["a"]
    assert meter.unmetered == 2
    later = NOON + 25 * HOUR
    meter.begin("b", owner=None, key_id=None, address=None, now_ms=later)  # now there is room
    assert only(meter.report(later)).requests == 1
    for _ in range(3):
        meter.end("b", later)
    assert meter.unmetered == 2
    with pytest.raises(LocalError):
        meter.end("b", later)


def test_without_room_nothing_would_be_metered() -> None:
    with pytest.raises(LocalError):
        FanoutMeter(HASH_KEY, FanoutThresholds(), max_identities=0)


# -- warnings -------------------------------------------------------------------------------------------------------


def test_the_defaults_suit_one_human_with_some_tools_and_places() -> None:
    meter = a_meter()
    for number in range(5):
        request(meter, key_id=f"k{number}", address=f"192.0.2.{number}")
    assert meter.warnings(NOON) == ()


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (Measure.OWNERS, ["by 2 owners (more than 1)", "capi identities share seat", "capi identities set seat"]),
        (Measure.KEYS, ["by 6 keys (more than 5)", "capi keys list"]),
        (Measure.ADDRESSES, ["by 6 client addresses (more than 5)", "capi keys rotate", "capi identities stop seat"]),
    ],
)
def test_a_warning_says_what_is_wrong_and_what_to_do_next(measure: Measure, said: list[str]) -> None:
    meter = a_meter()
    for number in range(2 if measure is Measure.OWNERS else 6):
        request(
            meter,
            owner=f"o{number}" if measure is Measure.OWNERS else "o",
            key_id=f"k{number}" if measure is Measure.KEYS else "k",
            address=f"192.0.2.{number}" if measure is Measure.ADDRESSES else None,
        )
    [warning] = meter.warnings(NOON)
    assert warning.over == (measure,)
    assert warning.report == only(meter.report(NOON))
    assert warning.text.startswith("the identity seat was used within one hour by ")
    assert [text for text in said if text not in warning.text] == []
    assert warning.text.count("more than") == 1


def test_all_that_is_over_is_in_one_warning() -> None:
    meter = a_meter()
    for number in range(6):
        request(meter, owner=f"o{number}", key_id=f"k{number}", address=f"192.0.2.{number}")
    [warning] = meter.warnings(NOON)
    assert warning.over == (Measure.OWNERS, Measure.KEYS, Measure.ADDRESSES)
    assert warning.text.count("; and by ") == 2


def test_of_a_seat_that_is_shared_on_purpose_only_other_things_are_warned_about() -> None:
    """And what is over later is told then, as nothing of the hour was told before."""
    meter = a_meter(FanoutThresholds(keys=2))
    for number, owner in enumerate(("alice", "bob")):
        request(meter, owner=owner, key_id=f"k{number}")
    assert meter.warnings(NOON, {"seat"}) == meter.new_warnings(NOON, {"seat"}) == ()
    request(meter, key_id="k2")
    (warning,) = meter.new_warnings(NOON, {"seat"})
    assert warning.over == (Measure.KEYS,)
    assert meter.new_warnings(NOON, {"seat"}) == ()
    (again,) = meter.warnings(NOON, {"other"})
    assert again.over == (Measure.OWNERS, Measure.KEYS)


def test_warnings_are_of_this_hour_and_the_one_before() -> None:
    meter = a_meter()
    for hour, identity, owner in itertools.product(range(3), "ba", ("alice", "bob")):
        request(meter, identity, owner=owner, now_ms=NOON + hour * HOUR)
    assert warned(meter.warnings(NOON + 2 * HOUR)) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert warned(meter.warnings(NOON + 3 * HOUR)) == [("a", 2), ("b", 2)]
    assert warned(meter.warnings(NOON + 4 * HOUR)) == []


def test_a_new_warning_is_told_once_an_hour() -> None:
    meter = a_meter()
    assert meter.new_warnings(NOON) == ()
    request(meter, owner="alice")
    request(meter, owner="bob")
    assert meter.new_warnings(NOON) == meter.warnings(NOON) != ()
    for number in range(9):
        request(meter, key_id=f"k{number}")
    assert meter.new_warnings(NOON) == (), "although it is over in more than before"
    assert len(meter.warnings(NOON)[0].over) == 2
    request(meter, owner="alice", now_ms=NOON + HOUR)
    request(meter, owner="bob", now_ms=NOON + HOUR)
    assert warned(meter.new_warnings(NOON + HOUR)) == [("seat", 1)]
    assert meter.new_warnings(NOON + 2 * HOUR) == ()


def test_what_was_over_just_before_the_hour_was_full_is_told_after_it() -> None:
    meter = a_meter()
    request(meter, owner="alice")
    request(meter, owner="bob", now_ms=NOON + HOUR - 1)
    assert warned(meter.new_warnings(NOON + HOUR)) == [("seat", 0)]
    assert meter.new_warnings(NOON + HOUR) == ()


def test_other_thresholds_hold_at_once_and_for_what_was_before() -> None:
    meter = a_meter()
    request(meter, owner="alice")
    request(meter, owner="bob")
    meter.set_thresholds(FanoutThresholds(owners=2))
    assert meter.warnings(NOON + HOUR) == ()
    meter.set_thresholds(FanoutThresholds(owners=1))
    assert warned(meter.warnings(NOON + HOUR)) == [("seat", 0)]


@pytest.mark.parametrize("value", [-1, 0, MAX_DISTINCT + 1])
@pytest.mark.parametrize("measure", Measure, ids=lambda measure: measure.value)
def test_a_threshold_that_means_nothing_is_refused(measure: Measure, value: int) -> None:
    """0 is not "unlimited", and beyond the bound nothing is counted."""
    with pytest.raises(LocalError):
        FanoutThresholds(
            owners=value if measure is Measure.OWNERS else 1,
            keys=value if measure is Measure.KEYS else 1,
            addresses=value if measure is Measure.ADDRESSES else 1,
        )


# -- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_a_little_stands_still() -> None:
    meter = a_meter()
    request(meter, owner="alice", now_ms=NOON + 5)
    request(meter, owner="bob", now_ms=NOON - 1)
    request(meter, owner="alice", now_ms=NOON - HOUR)
    assert only(meter.report(NOON - HOUR)).requests == 3
    assert warned(meter.new_warnings(NOON - 1)) == [("seat", 0)]
    assert meter.new_warnings(NOON) == ()


@pytest.mark.parametrize(("back_ms", "hours"), [(HOUR, 1), (HOUR + 1, 0), (2 * HOUR, 0)])
def test_back_into_the_hour_before_is_a_little(back_ms: int, hours: int) -> None:
    meter = a_meter()
    request(meter, now_ms=NOON)
    assert len(meter.report(NOON - back_ms)) == hours


def test_a_clock_that_was_far_ahead_is_not_waited_for() -> None:
    """Else all days until then would be one hour, in which everybody is over everything."""
    meter = a_meter()
    request(meter, owner="alice", now_ms=NOON)
    request(meter, owner="alice", now_ms=NOON + HOUR)
    request(meter, owner="bob", now_ms=NOON + HOUR)
    assert warned(meter.new_warnings(NOON + HOUR)) == [("seat", 1)]
    meter.begin("seat", owner="bob", key_id="k1", address="::1", now_ms=NOON + 20 * HOUR)
    now = NOON + HOUR + 5
    assert [(report.hour_ms - NOON, report.requests, report.peak_in_flight) for report in meter.report(now)] == [
        (0, 1, 1),
        (HOUR, 0, 1),
    ]
    request(meter, owner="carol", now_ms=now)
    assert meter.new_warnings(now) == ()
    request(meter, owner="alice", now_ms=now)
    assert warned(meter.new_warnings(now)) == [("seat", 1)], "counted anew, told anew"


def test_an_hour_that_is_not_counted_anew_is_not_told_anew() -> None:
    meter = a_meter()
    request(meter, owner="alice")
    request(meter, owner="bob")
    assert len(meter.new_warnings(NOON)) == 1
    assert meter.new_warnings(NOON + 9 * HOUR) == ()
    assert warned(meter.warnings(NOON + HOUR)) == [("seat", 0)]
    assert meter.new_warnings(NOON + HOUR) == ()


# -- against a naive model ------------------------------------------------------------------------------------------


@define
class Log:
    """All requests of an identity in one list, and all that was ever in flight in another."""

    identity: str
    begun: list[tuple[int, str | None, str | None, str]] = field(factory=list)  # hour, owner, key, network
    levels: list[tuple[int, int]] = field(factory=list)  # hour, in flight
    in_flight: int = 0
    told: set[int] = field(factory=set)

    def forget_all_but(self, hours: range) -> None:
        self.begun = [entry for entry in self.begun if entry[0] in hours]
        self.levels = [entry for entry in self.levels if entry[0] in hours]
        self.told = {hour for hour in self.told if hour in hours}

    def report(self, hour: int) -> FanoutReport | None:
        begun = [entry for entry in self.begun if entry[0] == hour]
        peak = max((level for at, level in self.levels if at == hour), default=0)
        if not peak:
            return None
        owners, keys, networks = (Distinct(len({entry[column] for entry in begun})) for column in (1, 2, 3))
        return FanoutReport(
            identity=self.identity,
            hour_ms=hour * HOUR,
            owners=owners,
            keys=keys,
            addresses=networks,
            peak_in_flight=peak,
            requests=len(begun),
        )


NAMES = st.sampled_from("abc")
OWNERS = st.sampled_from([None, "", "alice", "bob"])
KEYS = st.sampled_from(["k1", "k2", "k3", None])
# As it comes, and as what it counts.
ADDRESSES = st.sampled_from(
    [
        ("192.0.2.1", "1"),
        ("::ffff:192.0.2.1", "1"),
        ("192.0.2.2", "2"),
        ("2001:db8::1", "db8"),
        ("2001:db8::2", "db8"),
        ("2001:db8:0:1::1", "db8:1"),
        ("unix", "unix"),
    ]
)
STEPS_MS = st.one_of(
    st.integers(0, HOUR // 2),
    st.integers(0, 30 * HOUR),
    st.integers(-HOUR, 0),
    st.integers(-3, 3).map(lambda hours: hours * HOUR),
    st.integers(-40 * HOUR, 40 * HOUR),
)


class Metered(RuleBasedStateMachine):
    """The meter against lists of all that was, but what is too old, or untrue because the clock was set back."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = FanoutThresholds(owners=1, keys=2, addresses=2)
        self.meter = FanoutMeter(HASH_KEY, self.thresholds)
        self.now_ms = NOON
        self.hour = NOON // HOUR
        self.logs = {name: Log(name) for name in "abc"}
        self.meter.report(self.now_ms)

    def tick(self) -> None:
        """What the clock says now has become known to the meter."""
        hour = self.now_ms // HOUR
        if hour == self.hour - 1:
            return
        for log in self.logs.values():
            log.forget_all_but(range(hour - 24, hour if hour < self.hour else hour + 1))
            first = max(min(self.hour + 1, hour), hour - 24)
            log.levels += [(at, log.in_flight) for at in range(first, hour + 1)]
        self.hour = hour

    @rule(by_ms=STEPS_MS)
    def let_time_pass(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule(name=NAMES, owner=OWNERS, key_id=KEYS, address=ADDRESSES)
    def begin(self, name: str, owner: str | None, key_id: str | None, address: tuple[str, str]) -> None:
        self.meter.begin(name, owner=owner, key_id=key_id, address=address[0], now_ms=self.now_ms)
        self.tick()
        log = self.logs[name]
        log.in_flight += 1
        log.begun.append((self.hour, owner, key_id, address[1]))
        log.levels.append((self.hour, log.in_flight))

    @precondition(lambda self: any(log.in_flight for log in self.logs.values()))
    @rule(pick=st.integers(0, 2))
    def end(self, pick: int) -> None:
        running = [log for log in self.logs.values() if log.in_flight]
        log = running[pick % len(running)]
        self.meter.end(log.identity, self.now_ms)
        self.tick()
        log.in_flight -= 1

    @rule()
    def report(self) -> None:
        found = self.meter.report(self.now_ms)
        self.tick()
        assert found == tuple(self.expected(24))

    @rule()
    def warn(self) -> None:
        found = self.meter.warnings(self.now_ms)
        self.tick()
        assert [(warning.report, warning.over) for warning in found] == self.expected_warnings()

    @rule()
    def warn_once(self) -> None:
        found = self.meter.new_warnings(self.now_ms)
        self.tick()
        new = [
            (report, over)
            for report, over in self.expected_warnings()
            if report.hour_ms // HOUR not in self.logs[report.identity].told
        ]
        assert [(warning.report, warning.over) for warning in found] == new
        for report, _ in new:
            self.logs[report.identity].told.add(report.hour_ms // HOUR)

    @rule(owners=st.integers(1, 3), keys=st.integers(1, 4))
    def change_thresholds(self, owners: int, keys: int) -> None:
        self.thresholds = evolve(self.thresholds, owners=owners, keys=keys)
        self.meter.set_thresholds(self.thresholds)

    @rule(byte=st.integers(0, 255))
    def rekey(self, byte: int) -> None:
        self.meter.rekey(bytes([byte]) * 16)

    @invariant()
    def has_room(self) -> None:
        assert self.meter.unmetered == 0

    def expected(self, hours_back: int) -> list[FanoutReport]:
        found = [log.report(hour) for log in self.logs.values() for hour in self.hours(hours_back)]
        return [report for report in found if report is not None]

    def expected_warnings(self) -> list[tuple[FanoutReport, tuple[Measure, ...]]]:
        limits = [(each, self.thresholds.of(each)) for each in Measure]
        judged = [
            (report, tuple(each for each, limit in limits if report.of(each).count > limit))
            for report in self.expected(1)
        ]
        return [(report, over) for report, over in judged if over]

    def hours(self, back: int) -> range:
        return range(self.hour - back, self.hour + 1)


Metered.TestCase.settings = settings(stateful_step_count=60)
TestMetered = Metered.TestCase
