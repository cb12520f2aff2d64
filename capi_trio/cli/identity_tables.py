"""Identities, their seats and what is left of them, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_trio.cli.tables import columns, instant
from capi_trio.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_trio.identity_operations import IdentityStatus, IdentityUsage
    from capi_trio.quotas import QuotaView
    from capi_trio.seat_status import FanoutHour, SeatStatus

__all__ = ["all_identities", "all_usage", "one_identity"]

_NONE_YET: Final = "There are no identities yet. Link one: capi auth"
_HEAD: Final = ("NAME", "HOST", "LOGIN", "OWNER", "STATE", "MAX", "SERVES", "TOKEN")
_SEAT_HEAD: Final = ("IN FLIGHT", "QUEUED", "PEAK", "GATE")


def all_identities(found: Sequence[IdentityStatus]) -> str:
    """A row for each, with its seat where a server uses some; below, what the operator can do."""
    if not found:
        return _NONE_YET
    live = any(one.seat is not None for one in found)
    rows: list[tuple[str, ...]] = [(*_HEAD, *_SEAT_HEAD) if live else _HEAD]
    rows += [(*_record(one), *_seat(one.seat)) if live else _record(one) for one in found]
    steps = [f"{one.name}: {step}" for one in found if one.seat is not None for step in one.seat.next_steps]
    return "\n".join([columns(rows), *([""] if steps else []), *steps])


def one_identity(status: IdentityStatus) -> str:
    """All that is known of it, a line each; and the hours in which it was used."""
    lines = _members(status)
    if status.seat is not None:
        lines += _members(status.seat)
        lines += [f"{'next_step':<20} {step}" for step in status.seat.next_steps]
        if status.seat.fanout:
            lines += ["", _hours(status.seat.fanout)]
    return "\n".join(lines)


def all_usage(found: Sequence[IdentityUsage]) -> str:
    """A row for each kind of each identity."""
    if not found:
        return _NONE_YET
    rows: list[tuple[str, ...]] = [("NAME", "PLAN", "KIND", "USED", "LEFT", "OF", "LEFT %", "RESETS")]
    for one in found:
        usage = one.usage
        if usage is None:
            rows.append((one.identity, *["-"] * 7))
            continue
        resets = "-" if usage.resets_at is None else instant(usage.resets_at)
        head = (one.identity, usage.plan or "-")
        rows += [(*head, *_quota(quota), resets) for quota in usage.quotas] or [(*head, *["-"] * 5, resets)]
    return columns(rows)


def _record(one: IdentityStatus) -> tuple[str, ...]:
    return (
        one.name,
        one.host,
        one.login or "-",
        one.owner or "-",
        one.state,
        "-" if one.max_in_flight is None else str(one.max_in_flight),
        "its owner" if one.owner is not None and not one.shared else "the pool",
        "cannot be used" if one.token_problem is not None else "ok" if one.seat is None else one.seat.token,
    )


def _seat(seat: SeatStatus | None) -> tuple[str, ...]:
    if seat is None:
        return ("-",) * len(_SEAT_HEAD)
    gate = seat.gate
    if seat.pause_cause is not None:
        gate += f" ({seat.pause_cause})" if seat.paused_until is None else f" until {instant(seat.paused_until)}"
    return f"{seat.in_flight} of {seat.cap}", str(seat.queued), str(seat.peak_in_flight), gate


def _members(struct: IdentityStatus | SeatStatus) -> list[str]:
    """A line for each member that has a plain value."""
    lines = []
    for name, value in msgspec.structs.asdict(struct).items():
        if isinstance(value, bool):
            lines.append(f"{name:<20} {'yes' if value else 'no'}")
        elif isinstance(value, int | str):
            dated = name.endswith(("_at", "_until")) and isinstance(value, int)
            lines.append(f"{name:<20} {instant(int(value)) if dated else printable(str(value))}")
    return lines


def _hours(hours: Sequence[FanoutHour]) -> str:
    rows: list[tuple[str, ...]] = [("HOUR", "OWNERS", "KEYS", "ADDRESSES", "PEAK", "REQUESTS")]
    for hour in hours:
        counts = {"owners": hour.owners, "keys": hour.keys, "addresses": hour.addresses}
        told = (f"{'>= ' if name in hour.uncounted else ''}{count}" for name, count in counts.items())
        rows.append((instant(hour.hour_at), *told, str(hour.peak_in_flight), str(hour.requests)))
    return columns(rows)


def _quota(quota: QuotaView) -> tuple[str, ...]:
    if quota.unlimited:
        return quota.kind, "-", "unlimited", "-", "-"
    return quota.kind, *map(_figure, (quota.used, quota.remaining, quota.entitlement, quota.percent_remaining))


def _figure(figure: float | None) -> str:
    """To two digits behind the point, if it has any."""
    return "-" if figure is None else f"{figure:.2f}".rstrip("0").rstrip(".")
