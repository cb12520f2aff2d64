"""What is left of a seat: the answer to GET /copilot_internal/user, in one form for all plans.

Undocumented by GitHub. Paid plans answer with `quota_snapshots`; free ones with `monthly_quotas`, and what is left of
them in `limited_user_quotas`; some with neither, which is an empty report and no error (spec.md 5, 32). A figure that
was not told is `None`, never 0.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from attrs import frozen

from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CHAT", "COMPLETIONS", "PREMIUM_INTERACTIONS", "Quota", "QuotaReport", "read_quota"]

PREMIUM_INTERACTIONS: Final = "premium_interactions"
CHAT: Final = "chat"
COMPLETIONS: Final = "completions"
_ORDER: Final = (PREMIUM_INTERACTIONS, CHAT, COMPLETIONS)
_MOST_KINDS: Final = 32
_MOST_NAME: Final = 64
_YEAR_10000: Final = 253_402_300_800
"""Unix seconds: no calendar that shows it goes further."""


@frozen
class Quota:
    """What may be used of one kind until the reset. Figures are requests, or whatever the plan counts; they may be
    fractions, and `remaining` falls below 0 when more was used than was given."""

    kind: str
    entitlement: float | None = None
    remaining: float | None = None
    percent_remaining: float | None = None
    unlimited: bool = False
    overage_count: float | None = None
    overage_permitted: bool | None = None

    @property
    def used(self) -> float | None:
        """`None` when nothing is counted, or not told."""
        if self.unlimited or self.entitlement is None or self.remaining is None:
            return None
        return self.entitlement - self.remaining


@frozen
class QuotaReport:
    """`quotas`: the known kinds first, then others by name. `resets_at`: Unix seconds."""

    quotas: tuple[Quota, ...]
    plan: str | None = None
    sku: str | None = None
    login: str | None = None
    chat_enabled: bool | None = None
    resets_at: float | None = None

    def get(self, kind: str) -> Quota | None:
        return next((quota for quota in self.quotas if quota.kind == kind), None)


_Figure = Annotated[float, msgspec.Meta(ge=-(2.0**53), le=2.0**53)]
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class _Snapshot(msgspec.Struct):
    entitlement: _Figure | None = None
    remaining: _Figure | None = None
    quota_remaining: _Figure | None = None
    percent_remaining: _Figure | None = None
    unlimited: bool | None = None
    overage_count: _Figure | None = None
    overage_permitted: bool | None = None


class _CopilotUser(msgspec.Struct):
    login: _Short | None = None
    copilot_plan: _Short | None = None
    access_type_sku: _Short | None = None
    chat_enabled: bool | None = None
    quota_snapshots: dict[str, _Snapshot | None] | None = None
    quota_reset_date: _Short | None = None
    quota_reset_date_utc: _Short | None = None
    monthly_quotas: dict[str, _Figure | None] | None = None
    limited_user_quotas: dict[str, _Figure | None] | None = None
    limited_user_reset_date: _Short | _Figure | None = None


_USER: Final = msgspec.json.Decoder(_CopilotUser)


def read_quota(body: bytes) -> QuotaReport:
    """The report in the body of a 200. Raises `ProtocolError` (502, `upstream_garbage`) for wrong types."""
    user = read_json(_USER, body, status=502)
    quotas = _of_snapshots(user.quota_snapshots or {}) or _of_free_plan(user)
    dates = (user.quota_reset_date_utc, user.quota_reset_date, user.limited_user_reset_date)
    instants = (_instant(date) for date in dates)
    return QuotaReport(
        quotas=quotas,
        plan=user.copilot_plan,
        sku=user.access_type_sku,
        login=user.login,
        chat_enabled=user.chat_enabled,
        resets_at=next((instant for instant in instants if instant is not None), None),
    )


def _of_snapshots(snapshots: Mapping[str, _Snapshot | None]) -> tuple[Quota, ...]:
    return tuple(
        Quota(
            kind=kind,
            entitlement=snapshot.entitlement,
            remaining=snapshot.quota_remaining if snapshot.remaining is None else snapshot.remaining,
            percent_remaining=snapshot.percent_remaining,
            unlimited=bool(snapshot.unlimited),
            overage_count=snapshot.overage_count,
            overage_permitted=snapshot.overage_permitted,
        )
        for kind in _ordered(snapshots)
        if (snapshot := snapshots[kind]) is not None
    )


def _of_free_plan(user: _CopilotUser) -> tuple[Quota, ...]:
    given, left = user.monthly_quotas or {}, user.limited_user_quotas or {}
    return tuple(Quota(kind, given.get(kind), left.get(kind)) for kind in _ordered({**given, **left}))


def _ordered(kinds: Mapping[str, object]) -> list[str]:
    """The kinds in the order of reports: as many and as long as anybody could read."""
    known = [kind for kind in _ORDER if kind in kinds]
    others = sorted(kind for kind in kinds if kind not in _ORDER and len(kind) <= _MOST_NAME)
    return (known + others)[:_MOST_KINDS]


def _instant(date: str | float | None) -> float | None:
    """Unix seconds of a date, which starts at midnight UTC, or of an instant (RFC 3339). `None` for what is neither."""
    if isinstance(date, str):
        try:
            found = datetime.fromisoformat(date)
            date = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return date if date is not None and 0 <= date < _YEAR_10000 else None
