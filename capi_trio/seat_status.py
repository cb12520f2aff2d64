"""How each identity's seat is in a running gateway, as commands show it: its token, its gate, how widely it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from attrs import frozen

from capi_core.gate_events import PauseCause
from capi_trio.github.tokens import TokenState, TokenStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from capi_core.fanout import FanoutReport
    from capi_core.gate_events import GateSnapshot
    from capi_trio.fanout import FanoutWatch

__all__ = ["FanoutHour", "SeatStatus", "SeatStatuses"]


class FanoutHour(msgspec.Struct, kw_only=True):
    """The use of an identity in the hour that began at `hour_at`: how many different owners, keys and addresses.

    `uncounted` names those of the three of which there were more than is told.
    """

    hour_at: int
    owners: int
    keys: int
    addresses: int
    uncounted: list[str]
    peak_in_flight: int
    requests: int

    @classmethod
    def of(cls, report: FanoutReport) -> Self:
        distinct = {"owners": report.owners, "keys": report.keys, "addresses": report.addresses}
        return cls(
            hour_at=report.hour_ms,
            owners=report.owners.count,
            keys=report.keys.count,
            addresses=report.addresses.count,
            uncounted=[name for name, found in distinct.items() if not found.exact],
            peak_in_flight=report.peak_in_flight,
            requests=report.requests,
        )


class SeatStatus(msgspec.Struct, kw_only=True):
    """Times in ms since the epoch.

    `token`: `linked`, `new` (GitHub was not asked yet), `failing`, `refused`, or `none` while none is kept. `gate`:
    `open`, `paused` (`paused_until`: `None` when it is the operator who ends it) or `stopped`. `peak_in_flight`: since
    the gateway uses it. `next_steps`: what the operator can do, if anything. `fanout`: the hour that runs and the 24
    before it, those in which it was used, the oldest first; only of one identity that is shown.
    """

    token: str
    token_problem: str | None
    token_expires_at: int | None
    token_retry_at: int | None
    sku: str | None
    gate: str
    pause_cause: str | None
    paused_until: int | None
    in_flight: int
    queued: int
    cap: int
    peak_in_flight: int
    next_steps: list[str]
    fanout: list[FanoutHour]


@frozen
class SeatStatuses:
    """`snapshots`: by the name of each identity, as `CopilotSeats.snapshots`. `now_ms` is the wall clock."""

    snapshots: Callable[[], Mapping[str, tuple[TokenState | None, GateSnapshot]]]
    fanout: FanoutWatch
    now_ms: Callable[[], int]

    def all(self) -> Mapping[str, SeatStatus]:
        """The seat of each identity that the gateway uses, by name; without the hours of their fan-out."""
        warnings = self.fanout.warnings()
        found = {}
        for name, (token, gate) in self.snapshots().items():
            steps = [] if token is None or token.next_step is None else [token.next_step]
            steps += [warning.text for warning in warnings if warning.report.identity == name]
            found[name] = self._status(token or _NONE_KEPT, gate, steps, kept=token is not None)
        return found

    def one(self, identity: str) -> SeatStatus | None:
        """The seat of that identity, with the hours; `None` when the gateway does not use it."""
        status = self.all().get(identity)
        if status is not None:
            status.fanout = [FanoutHour.of(report) for report in self.fanout.reports(identity)]
        return status

    def _status(self, token: TokenState, gate: GateSnapshot, next_steps: list[str], *, kept: bool) -> SeatStatus:
        paused = gate.pause_cause
        return SeatStatus(
            token=token.status.value if kept else "none",
            token_problem=None if token.problem is None else token.problem.value,
            token_expires_at=_ms(token.expires_at),
            token_retry_at=_ms(token.retry_at),
            sku=token.sku,
            gate=gate.state.value,
            pause_cause=None if paused is None else paused.value,
            # The operator's own pause lasts until it is ended; the gate's is set anew all the while.
            paused_until=None
            if paused in (None, PauseCause.OPERATOR)
            else self.now_ms() + round(gate.pause_left_s * 1000),
            in_flight=sum(gate.in_flight.values()),
            queued=sum(gate.queued.values()),
            cap=gate.limits.cap,
            peak_in_flight=gate.peak_in_flight,
            next_steps=next_steps,
            fanout=[],
        )


_NONE_KEPT: Final = TokenState(TokenStatus.NEW)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
