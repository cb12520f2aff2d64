"""The fan-out meter: how widely one upstream identity is used, hour by hour, as a pure machine, the clock passed in.

Theory of operation. A seat is for one human. For each identity and hour (UTC) the meter knows how many owners, keys and
client addresses its requests came from, how many of them were in flight at the same time, and how many there were. It
warns when that looks like more than one human:

    meter = FanoutMeter(hash_key, FanoutThresholds())
    meter.begin("alice", owner="alice", key_id=key.id, address="192.0.2.7", now_ms=now_ms)  # for each request
    meter.end("alice", now_ms)  # exactly once for each `begin`
    meter.warnings(now_ms)  # a banner; for the log `new_warnings`, at least once an hour

- A request counts in the hour in which it begins; in the hours that it lasts into, only as one in flight.
- To tell who is new, the hour that runs keeps a keyed hash (BLAKE2b, RFC 7693) of each owner, key and address, and
  nothing else of them. When the hour is over only the numbers stay. Nobody without the hash key can try out which
  address a hash is of, and no hash leaves the meter. The hash key is the embedder's, who may change it with `rekey`,
  say each day.
- An IPv6 address counts by its /64, the part that names a network (RFC 4291 section 2.5.1): within it one machine has
  many, and changes them (RFC 8981). An IPv4-mapped one (RFC 4291 section 2.5.5.2) is the IPv4 address that it holds.
  What is no address counts as it is written. A network behind one address, or in one /64, thus counts as one; and so
  does all the world behind a reverse proxy, unless the embedder passes on the address that a trusted proxy tells.
- Memory is bounded, whatever comes. Up to 1,024 different ones are told exactly; of more, only that they are more.
  That is at most a quarter of a MB for each identity, of which there may be `max_identities`. One that was not used for
  24 hours is forgotten; one for which there is no room is not metered, but its requests are counted.

The clock is a wall clock, and may be set back. Back into the hour before, it stands still until it is again where it
was. Further back, it was wrong until then: the hours from there on are forgotten, and counted anew. Every call moves
the clock, so one that is far ahead of the time takes away the hours before.
"""

import enum
import hashlib
import ipaddress
from collections.abc import Collection, Mapping
from typing import Final

from attrs import define, field, frozen
from typing_extensions import override

from capi_core.errors import LocalError

__all__ = [
    "MAX_DISTINCT",
    "Distinct",
    "FanoutMeter",
    "FanoutReport",
    "FanoutThresholds",
    "FanoutWarning",
    "Measure",
]

MAX_DISTINCT: Final = 1024
"""So many different owners, keys or addresses of an identity and hour are told apart."""

_HOUR_MS: Final = 3_600_000
_HOURS_KEPT: Final = 24  # besides the one that runs
_MIN_HASH_KEY: Final = 16
_DIGEST_SIZE: Final = 8  # among 1,024, two are the same once in 10**13 times
_IPV6_NETWORK: Final = 8  # bytes of a /64


class Measure(enum.Enum):
    """What of an identity's use has a threshold."""

    OWNERS = "owners"
    KEYS = "keys"
    ADDRESSES = "addresses"


@frozen
class Distinct:
    """How many different ones there were: exactly `count`, or at least that many."""

    count: int
    exact: bool = True

    @override
    def __str__(self) -> str:
        return str(self.count) if self.exact else f">= {self.count}"

    def is_over(self, threshold: int) -> bool:
        """Whether there were more. `threshold` is at most `MAX_DISTINCT`: what is not exact is always more."""
        return not self.exact or self.count > threshold


@frozen(kw_only=True)
class FanoutThresholds:
    """How many different ones within an hour one human may be: 1 to `MAX_DISTINCT`, or `LocalError` is raised."""

    owners: int = 1
    keys: int = 5
    """One for each tool, or machine."""
    addresses: int = 5
    """At home, at work, on the way; by IPv4 and IPv6."""

    def __attrs_post_init__(self) -> None:
        if not all(1 <= self.of(measure) <= MAX_DISTINCT for measure in Measure):
            raise LocalError(f"a threshold of the fan-out is from 1 to {MAX_DISTINCT}")

    def of(self, measure: Measure) -> int:
        """The threshold of one measure."""
        return {Measure.OWNERS: self.owners, Measure.KEYS: self.keys, Measure.ADDRESSES: self.addresses}[measure]


@frozen(kw_only=True)
class FanoutReport:
    """The use of one identity in one hour, which began at `hour_ms` (milliseconds since the epoch, UTC).

    `requests`: those that began in it. `peak_in_flight`: the most at one instant, with those that began before.
    """

    identity: str
    hour_ms: int
    owners: Distinct
    keys: Distinct
    addresses: Distinct
    peak_in_flight: int
    requests: int

    def of(self, measure: Measure) -> Distinct:
        """The number for one measure."""
        return {Measure.OWNERS: self.owners, Measure.KEYS: self.keys, Measure.ADDRESSES: self.addresses}[measure]


@frozen(kw_only=True)
class FanoutWarning:
    """An identity that was over one or more thresholds in the report's hour. `text`: that, and what to do next."""

    report: FanoutReport
    over: tuple[Measure, ...]
    text: str


# What to do about it; the commands are those of the operator's program.
_ADVICE: Final[Mapping[Measure, str]] = {
    Measure.OWNERS: (
        "a seat is for one human, so let each owner link their own (keys without an owner count as one more);"
        " `capi identities set {0} --owner NAME` keeps this one for its owner,"
        " `capi identities share {0} --reason WHY` says that others are meant to ride it"
    ),
    Measure.KEYS: "see with `capi keys list` which of them are still needed, and revoke the others",
    Measure.ADDRESSES: (
        "a key may be in other hands: replace it with `capi keys rotate`; `capi identities stop {0}` ends all use"
    ),
}
_NOUN: Final[Mapping[Measure, str]] = {
    Measure.OWNERS: "owners",
    Measure.KEYS: "keys",
    Measure.ADDRESSES: "client addresses",
}


class _Tally:
    """Counts different ones."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._overflown = False

    def add(self, token: bytes) -> None:
        if token in self._seen:
            return
        if len(self._seen) < MAX_DISTINCT:
            self._seen.add(token)
        else:
            self._overflown = True

    def distinct(self) -> Distinct:
        return Distinct(len(self._seen), exact=not self._overflown)


@define(eq=False)
class _RunningHour:
    """The hour that runs, of one identity. `peak` begins with what is in flight already; 0: it is not used."""

    peak: int = 0
    requests: int = 0
    owners: _Tally = field(factory=_Tally)
    keys: _Tally = field(factory=_Tally)
    addresses: _Tally = field(factory=_Tally)


@define(eq=False)
class _Seat:
    """One identity. Hours are numbered from the epoch."""

    identity: str
    in_flight: int = 0
    running: _RunningHour = field(factory=_RunningHour)
    past: dict[int, FanoutReport] = field(factory=dict)  # by hour, in order
    told: set[int] = field(factory=set)  # the hours that were warned about

    @property
    def is_unused(self) -> bool:
        return not self.running.peak and not self.past

    def reports(self, hour: int) -> list[FanoutReport]:
        """All hours in which it was used, the running one, `hour`, last."""
        reports = list(self.past.values())
        if self.running.peak:
            reports.append(self._report(hour, self.running))
        return reports

    def turn(self, old: int, new: int) -> None:
        """Ends the running hour, `old`, and starts `new`, which is later, or far enough before that it is believed."""
        if self.running.peak:
            self.past[old] = self._report(old, self.running)
        if self.in_flight:
            for between in range(max(old + 1, new - _HOURS_KEPT), new):
                self.past[between] = self._report(between, _RunningHour(self.in_flight))
        self.past = {hour: report for hour, report in self.past.items() if new - _HOURS_KEPT <= hour < new}
        self.told.intersection_update(self.past)  # what is counted anew may be told anew
        self.running = _RunningHour(self.in_flight)

    def _report(self, hour: int, counted: _RunningHour) -> FanoutReport:
        return FanoutReport(
            identity=self.identity,
            hour_ms=hour * _HOUR_MS,
            owners=counted.owners.distinct(),
            keys=counted.keys.distinct(),
            addresses=counted.addresses.distinct(),
            peak_in_flight=counted.peak,
            requests=counted.requests,
        )


class FanoutMeter:
    """Meters all identities. `now_ms` is in milliseconds since the epoch, UTC, of a wall clock.

    `hash_key`: 16 to 64 secret, random bytes; it need not outlive the process. Raises `LocalError` for another length,
    and when `max_identities` is below 1.
    """

    def __init__(self, hash_key: bytes, thresholds: FanoutThresholds, *, max_identities: int = 512) -> None:
        if max_identities < 1:
            raise LocalError("without room for an identity, nothing would be metered")
        self._hash_key = self._next_hash_key = _checked(hash_key)
        self._thresholds = thresholds
        self._max_identities = max_identities
        self._seats: dict[str, _Seat] = {}
        self._hour: int | None = None  # the one that runs
        self._unmetered = self._unmetered_in_flight = 0

    # -- requests -------------------------------------------------------------------------------------------------

    def begin(self, identity: str, *, owner: str | None, key_id: str | None, address: str | None, now_ms: int) -> None:
        """A request goes out with this identity. `None`, for no owner, key or address, counts as one more of its kind.

        `address`: without a port; any text will do.
        """
        self._tick(now_ms)
        seat = self._seats.get(identity)
        if seat is None:
            if len(self._seats) >= self._max_identities:
                self._unmetered += 1
                self._unmetered_in_flight += 1
                return
            seat = self._seats[identity] = _Seat(identity)
        seat.in_flight += 1
        running = seat.running
        running.requests += 1
        running.peak = max(running.peak, seat.in_flight)
        running.owners.add(self._token(Measure.OWNERS, _text(owner)))
        running.keys.add(self._token(Measure.KEYS, _text(key_id)))
        running.addresses.add(self._token(Measure.ADDRESSES, _network(address)))

    def end(self, identity: str, now_ms: int) -> None:
        """A request of this identity is over. Raises `LocalError` when none is in flight."""
        self._tick(now_ms)
        seat = self._seats.get(identity)
        if seat is not None and seat.in_flight:
            seat.in_flight -= 1
        elif self._unmetered_in_flight:
            self._unmetered_in_flight -= 1
        else:
            raise LocalError("a request ended that had not begun, or had ended before")

    # -- the operator ---------------------------------------------------------------------------------------------

    def report(self, now_ms: int) -> tuple[FanoutReport, ...]:
        """The running hour and the 24 before it, of each identity those in which it was used; by name, then by hour."""
        hour = self._tick(now_ms)
        return tuple(report for _, seat in sorted(self._seats.items()) for report in seat.reports(hour))

    def warnings(self, now_ms: int, shared: Collection[str] = ()) -> tuple[FanoutWarning, ...]:
        """The identities that are over a threshold, or were so in the hour before; by name, then by hour.

        `shared`: those that have many owners on purpose, of which that alone is no warning.
        """
        hour = self._tick(now_ms)
        found = []
        for _, seat in sorted(self._seats.items()):
            recent = [report for report in seat.reports(hour) if report.hour_ms >= (hour - 1) * _HOUR_MS]
            found += [self._warning(report, over) for report in recent if (over := self._over(report, shared))]
        return tuple(found)

    def new_warnings(self, now_ms: int, shared: Collection[str] = ()) -> tuple[FanoutWarning, ...]:
        """As `warnings`, without those of which this method has told already: one for each identity and hour.

        What an identity goes over later in the same hour is not told again; `warnings` has it.
        """
        new = []
        for warning in self.warnings(now_ms, shared):
            told = self._seats[warning.report.identity].told
            hour = warning.report.hour_ms // _HOUR_MS
            if hour not in told:
                told.add(hour)
                new.append(warning)
        return tuple(new)

    @property
    def unmetered(self) -> int:
        """Requests, since the meter was made, of identities for which there was no room."""
        return self._unmetered

    def set_thresholds(self, thresholds: FanoutThresholds) -> None:
        """Changes the thresholds, also for what was counted before."""
        self._thresholds = thresholds

    def rekey(self, hash_key: bytes) -> None:
        """Changes the hash key when the next hour begins, so that nobody counts twice. Raises as the constructor."""
        self._next_hash_key = _checked(hash_key)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _tick(self, now_ms: int) -> int:
        """The hour that runs, after what has to be done when another one has begun."""
        new = now_ms // _HOUR_MS
        old = self._hour
        if old is not None and old - 1 <= new <= old:
            return old
        self._hour, self._hash_key = new, self._next_hash_key
        if old is not None:
            for seat in self._seats.values():
                seat.turn(old, new)
            self._seats = {name: seat for name, seat in self._seats.items() if not seat.is_unused}
        return new

    def _token(self, measure: Measure, data: bytes) -> bytes:
        """What is kept of an owner, key or address: the same text has another hash for each measure."""
        person = measure.value.encode()
        return hashlib.blake2b(data, digest_size=_DIGEST_SIZE, key=self._hash_key, person=person).digest()

    def _over(self, report: FanoutReport, shared: Collection[str]) -> tuple[Measure, ...]:
        judged = [measure for measure in Measure if measure is not Measure.OWNERS or report.identity not in shared]
        return tuple(measure for measure in judged if report.of(measure).is_over(self._thresholds.of(measure)))

    def _warning(self, report: FanoutReport, over: tuple[Measure, ...]) -> FanoutWarning:
        parts = [
            f"{report.of(measure)} {_NOUN[measure]} (more than {self._thresholds.of(measure)}): "
            + _ADVICE[measure].format(report.identity)
            for measure in over
        ]
        text = f"the identity {report.identity} was used within one hour by " + "; and by ".join(parts)
        return FanoutWarning(report=report, over=over, text=text)


def _checked(hash_key: bytes) -> bytes:
    if not _MIN_HASH_KEY <= len(hash_key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise LocalError(f"the hash key has {_MIN_HASH_KEY} to {hashlib.blake2b.MAX_KEY_SIZE} bytes")
    return hash_key


def _text(text: str | None) -> bytes:
    """Different bytes for different texts, also ones that are no Unicode, and for none."""
    return b"" if text is None else b"=" + text.encode("utf-8", "surrogatepass")


def _network(address: str | None) -> bytes:
    """Different bytes for what counts as different."""
    if address is None:
        return _text(None)
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _text(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return b"6" + parsed.packed[:_IPV6_NETWORK]
        parsed = parsed.ipv4_mapped
    return b"4" + parsed.packed
