"""What is left of each identity's seat, as GitHub says: asked for whoever wants to know, but not too often.

What GitHub answered holds for a minute, for everybody; a failure only for some seconds, so that who mends it sees that
it is. Whoever asks while GitHub is being asked waits for that answer. There is no background task: the first one asks
for all, and when it is cancelled, the next one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio
from attrs import define, field

from capi_core.github.copilot_token import TokenRefusal
from capi_core.github.endpoints import GitHubHost
from capi_trio.github.client import GitHubClient, GitHubFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from capi_core.github.headers import ClientTraits
    from capi_core.github.quota import Quota, QuotaReport
    from capi_core.identities import IdentityRecord
    from capi_trio.upstream import Secret, UpstreamClient

__all__ = ["QuotaView", "Quotas", "SeatUsage", "TokenSource"]

_HOLDS_S: Final = 60.0
_FAILURE_HOLDS_S: Final = 10.0


class QuotaView(msgspec.Struct, kw_only=True):
    """What is left of one kind. A figure that nobody told is `None`; it may be a fraction, and below 0."""

    kind: str
    entitlement: float | None
    used: float | None
    remaining: float | None
    percent_remaining: float | None
    unlimited: bool
    overage_count: float | None
    overage_permitted: bool | None

    @classmethod
    def of(cls, quota: Quota) -> Self:
        percent = quota.percent_remaining
        if percent is None and quota.entitlement and quota.remaining is not None:
            percent = round(100 * quota.remaining / quota.entitlement, 1)
        return cls(
            kind=quota.kind,
            entitlement=quota.entitlement,
            used=quota.used,
            remaining=quota.remaining,
            percent_remaining=percent,
            unlimited=quota.unlimited,
            overage_count=quota.overage_count,
            overage_permitted=quota.overage_permitted,
        )


class SeatUsage(msgspec.Struct, kw_only=True):
    """What is left of an identity's seat, as commands and `GET /usage` show it. `resets_at`: ms since the epoch."""

    identity: str
    plan: str | None
    quotas: list[QuotaView]
    resets_at: int | None

    @classmethod
    def of(cls, identity: str, report: QuotaReport) -> Self:
        return cls(
            identity=identity,
            plan=report.plan,
            quotas=[QuotaView.of(quota) for quota in report.quotas],
            resets_at=None if report.resets_at is None else round(report.resets_at * 1000),
        )


class TokenSource(Protocol):
    """Where GitHub tokens come from: the part of `IdentityBook` that is needed here."""

    async def token(self, name: str, /) -> Secret:
        """The GitHub token of an identity. Raises `StorageError`."""
        ...


@define(eq=False)
class _Asked:
    """The last answer about one identity. `token_of`: the change of its record that it was asked after."""

    token_of: int
    outcome: QuotaReport | TokenRefusal | None = None
    until: float = 0.0
    asking: trio.Lock = field(factory=trio.Lock)


class Quotas:
    """Asks through `client`. `now_s`: seconds since epoch; `traits`: how the gateway presents itself to GitHub."""

    def __init__(
        self,
        tokens: TokenSource,
        client: UpstreamClient,
        *,
        traits: Callable[[], ClientTraits],
        now_s: Callable[[], float],
    ) -> None:
        self._tokens = tokens
        self._client = client
        self._traits = traits
        self._now_s = now_s
        self._asked: dict[str, _Asked] = {}  # by the identity's id

    async def of(self, record: IdentityRecord) -> QuotaReport | TokenRefusal:
        """What is left of that seat, or why GitHub does not say. Raises `StorageError`: its token cannot be read."""
        asked = self._asked.get(record.id)
        if asked is None or asked.token_of != record.updated_at:  # there may be another token now
            self._forget()
            asked = self._asked[record.id] = _Asked(record.updated_at)
        async with asked.asking:
            if asked.outcome is None or trio.current_time() >= asked.until:
                asked.outcome = await self._ask(record)
                asked.until = trio.current_time() + _holds_s(asked.outcome)
            return asked.outcome

    async def _ask(self, record: IdentityRecord) -> QuotaReport | TokenRefusal:
        token = await self._tokens.token(record.name)
        github = GitHubClient(self._client, GitHubHost.of(record.host), self._traits(), now=self._now_s)
        try:
            return await github.usage(token)
        except GitHubFailedError as error:
            return TokenRefusal(error.problem, error.retry_after_s)

    def _forget(self) -> None:
        """Drops what nobody will look at again, such as of identities that are gone."""
        now = trio.current_time()
        for name in [name for name, asked in self._asked.items() if now >= asked.until and not asked.asking.locked()]:
            del self._asked[name]


def _holds_s(outcome: QuotaReport | TokenRefusal) -> float:
    if isinstance(outcome, TokenRefusal):
        return min(max(_FAILURE_HOLDS_S, outcome.retry_after_s or 0), _HOLDS_S)
    return _HOLDS_S
