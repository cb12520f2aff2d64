"""Budgets of keys, held against what their requests cost: reserved when one begins, settled when it has ended.

What was spent before this process is read from the database when a key's first request of a period comes, and is added
to here from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from capi_core.budgets import Account, AccountKind, Amounts, Claim, Exceeded, Ledger
from capi_core.commands import Outcome
from capi_core.errors import Problem
from capi_core.usage import UsageSource
from capi_trio.logs import get_logger
from capi_trio.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from capi_core.keys import Budget, KeyRecord
    from capi_core.usage_events import UsageEvent

__all__ = ["Budgets", "Ticket"]

_BYTES_PER_TOKEN: Final = 4
"""A guess at what a request's body comes to; what the answer will be, nobody knows."""
_FREE: Final = frozenset(
    {Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_UNREACHABLE, Outcome.SHUTDOWN, Outcome.INTERNAL_ERROR}
)
"""Ends that cost nothing unless an upstream says otherwise."""
_UNREADABLE: Final = Problem(
    503,
    "budget_unavailable",
    "what this key has spent cannot be read now, so its budget cannot be held; try again in a moment",
    retry_after_s=5,
)


@frozen
class Ticket:
    """A request that has begun, and is to be settled. `estimate`: in tokens."""

    number: int
    estimate: int


class Budgets:
    """`spent` reads what a key has spent since a time: its id and milliseconds since epoch to tokens and micro-dollars.

    It may raise `StorageError`. `now_ms`: the wall clock.
    """

    def __init__(self, spent: Callable[[str, int], Awaitable[Amounts]], *, now_ms: Callable[[], int]) -> None:
        self._spent = spent
        self._now_ms = now_ms
        self._ledger = Ledger()
        self._loaded: dict[str, tuple[Budget, int]] = {}
        self._log = get_logger("budgets")

    async def begin(self, key: KeyRecord, size: int) -> Ticket | Problem | None:
        """A request of `size` bytes may begin, or may not; `None`: the key has no budget."""
        if key.budget is None:
            return None
        claim = Claim(Account(AccountKind.KEY, key.id), key.budget)
        start_ms, _ = key.budget.window(self._now_ms())
        if self._loaded.get(key.id) != (key.budget, start_ms):
            try:
                spent = await self._spent(key.id, start_ms)
            except StorageError as error:
                self._log.warning("budget_unreadable", key_id=key.id, reason=str(error))
                return _UNREADABLE
            self._ledger.load(claim, spent.of(key.budget.unit) or 0, start_ms)
            self._loaded[key.id] = (key.budget, start_ms)
        estimate = size // _BYTES_PER_TOKEN
        held = self._ledger.reserve([claim], Amounts(tokens=estimate), self._now_ms())
        return held.problem if isinstance(held, Exceeded) else Ticket(held.ticket, estimate)

    def cancel(self, ticket: Ticket) -> None:
        """The request was never begun."""
        self._ledger.cancel(ticket.number)

    def end(self, ticket: Ticket, event: UsageEvent) -> None:
        """The request has ended, as `event` says; its cost in it."""
        refused = event.outcome.value.startswith("refused")
        if event.usage is None and (event.upstream is None or refused or event.outcome in _FREE):
            self._ledger.cancel(ticket.number)
            return
        settled = self._ledger.settle(ticket.number, _amounts(event, ticket), self._now_ms())
        for warning in () if settled is None else settled.warnings:
            budget = warning.claim.budget
            self._log.warning(
                "budget_warning",
                key_id=warning.claim.account.id,
                spent=warning.spent,
                amount=budget.amount,
                unit=budget.unit.value,
                period=budget.period.value,
            )


def _amounts(event: UsageEvent, ticket: Ticket) -> Amounts:
    """What the request did cost. Figures that were not the last ones are what it cost at least."""
    usage = event.usage
    if usage is None:
        return Amounts(money=event.cost_micros)
    counts = (usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)
    known = [count for count in counts if count is not None]
    least = 0 if event.usage_source is UsageSource.UPSTREAM_FINAL else ticket.estimate
    return Amounts(max(least, sum(known)) if known else None, event.cost_micros)
