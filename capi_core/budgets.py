"""What keys and owners may spend in a day or a month: reserved when a request begins, reconciled when it ends.

Theory of operation. What a request costs is known when it ends, and many may run by then. So each reserves an estimate,
and gets a ticket, which ends exactly once:

    reserve --> open --settle--> ended: the reservation becomes what it did cost
                     --cancel--> ended: the reservation is given back, nothing is charged

A request begins when `spent + reserved < amount` holds for each of its budgets, the key's and the owner's, and then
reserves with all of them; otherwise with none. It need not fit in what is left: else a budget could never be used up,
and an estimate above it would refuse its only request. The bound that follows, for each budget and period:

    spent + reserved < amount + estimate(L) + sum of max(0, charged(i) - estimate(i))

where L is the request that began last, at that `amount`, and i are the requests that have ended since: L itself, and no
other than those that were open when L began. With estimates that are never too low, a period is thus overspent by less
than one request's estimate, however many run at once. With estimates of nothing, each request that was open overspends
by itself, once.

A request counts in the period in which it began, also when it ends in the next one. Periods are those of the calendar
in UTC, as the clock tells them at that moment. When it is set back it finds the earlier period as it was left: the two
last used of each account are remembered. A clock that was a year ahead thus refuses nobody for a year.

Amounts are integers: tokens, or millionths of the currency. Times are milliseconds since the epoch, UTC.
"""

import enum
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, frozen

from capi_core.errors import LocalError, Problem
from capi_core.keys import Budget, BudgetPeriod, BudgetUnit

__all__ = [
    "WARN_PERCENT",
    "Account",
    "AccountKind",
    "Amounts",
    "Balance",
    "BudgetWarning",
    "Claim",
    "Exceeded",
    "Ledger",
    "Reserved",
    "Settled",
]

WARN_PERCENT: Final = 80
"""So much of a budget is spent when its warning comes."""

_LAST_MS: Final = 253_370_764_799_999  # of the year 9998: the end of its periods is still a date
_REMEMBERED: Final = 2
_IN_FLIGHT_RETRY_S: Final = 10
"""A guess at when one of the requests in flight has ended; until the next period, nobody waits for that."""


class AccountKind(enum.Enum):
    """Whose budget it is. An owner may be called what a key's id is, and is not that key."""

    KEY = "key"
    OWNER = "owner"


_WHOSE: Final[Mapping[AccountKind, str]] = {AccountKind.KEY: "this key", AccountKind.OWNER: "this key's owner"}
_ANEW: Final[Mapping[BudgetPeriod, str]] = {
    BudgetPeriod.DAY: "at midnight UTC",
    BudgetPeriod.MONTH: "at midnight UTC on the first of the month",
}


@frozen
class Account:
    """Who spends: a key by its id, or an owner by name."""

    kind: AccountKind
    id: str


@frozen
class Amounts:
    """What a request is expected to cost, or did. `None`: nobody knows. Raises `LocalError` for less than nothing."""

    tokens: int | None = None
    money: int | None = None

    def __attrs_post_init__(self) -> None:
        if min(self.tokens or 0, self.money or 0) < 0:
            raise LocalError("nothing costs less than nothing")

    def of(self, unit: BudgetUnit) -> int | None:
        """The amount in this unit."""
        return self.tokens if unit is BudgetUnit.TOKENS else self.money

    def or_else(self, other: "Amounts") -> "Amounts":
        """These amounts, and those of `other` where they are not known."""
        return Amounts(
            other.tokens if self.tokens is None else self.tokens,
            other.money if self.money is None else self.money,
        )


@frozen
class Claim:
    """A budget that a request needs a part of."""

    account: Account
    budget: Budget


@frozen
class Reserved:
    """The request may begin. `ticket`: to be settled or cancelled when it has ended."""

    ticket: int


@frozen
class Exceeded:
    """The request may not begin, and nothing was reserved. Of several such budgets, the one to wait for longest.

    `reset_ms`: when it starts anew. `used_up`: for certain not before; otherwise requests in flight hold the rest, and
    one that costs less than its estimate makes room: `problem` then says to retry sooner.
    """

    claim: Claim
    used_up: bool
    reset_ms: int
    problem: Problem


@frozen
class BudgetWarning:
    """`WARN_PERCENT` of a budget are spent, or more. Comes once a period, and again if the budget is raised."""

    claim: Claim
    spent: int
    reset_ms: int


@frozen
class Settled:
    """What a request was charged, for the record that `load` will be told from: the unknown is charged as estimated.

    `charged` is `None` in a unit in which there was no estimate either: nothing was charged, and nobody knows.
    """

    charged: Amounts
    warnings: tuple[BudgetWarning, ...]


@frozen
class Balance:
    """How an account stands in one period. `reserved`: the estimates of its requests in flight."""

    spent: int
    reserved: int
    start_ms: int
    reset_ms: int


@define
class _Window:
    start_ms: int
    end_ms: int
    spent: int = 0
    reserved: int = 0
    warned_of: int = 0
    """The highest amount whose warning was given."""

    def is_news(self, amount: int) -> bool:
        """Whether the warning for a budget of this amount has become due. It is taken as given."""
        if amount <= self.warned_of or self.spent * 100 < amount * WARN_PERCENT:
            return False
        self.warned_of = amount
        return True


@frozen
class _Open:
    estimate: Amounts
    claims: tuple[tuple[Claim, _Window], ...]


class Ledger:
    """The budgets of all accounts.

    What is remembered is bounded by `capacity` accounts for each kind of period, and by the requests in flight. An
    account whose periods are over makes room for another one. When there is none such, `LocalError` is raised: to
    forget what was spent would be to give it back.

    Tickets are numbered in order, so that one that has ended is known without remembering it. To end it again changes
    nothing and is counted.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        if capacity < 1:
            raise LocalError("without room for an account, nobody may spend anything")
        self._capacity = capacity
        # Of each account and unit, the periods last used, latest first. The account unused for longest comes first.
        self._windows: Mapping[BudgetPeriod, OrderedDict[tuple[Account, BudgetUnit], list[_Window]]] = {
            period: OrderedDict() for period in BudgetPeriod
        }
        self._open: dict[int, _Open] = {}
        self._next_ticket = 0
        self._repeated = 0

    def __len__(self) -> int:
        """How many accounts are remembered; one for each unit and kind of period."""
        return sum(map(len, self._windows.values()))

    @property
    def open_tickets(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._open)

    @property
    def repeated(self) -> int:
        """How many times a ticket was to be ended that had ended already."""
        return self._repeated

    def load(self, claim: Claim, spent: int, start_ms: int) -> None:
        """Tells what storage knows to be spent in the period that `start_ms` lies in: at start, and for a new budget.

        It raises what is known, and never lowers it: telling it again changes nothing. A warning that was due by then
        has been given before. Raises `LocalError` for less than nothing, and for a time that is out of range.
        """
        if spent < 0:
            raise LocalError("nothing costs less than nothing")
        window = self._window(claim, start_ms)
        window.spent = max(window.spent, spent)
        window.is_news(claim.budget.amount)

    def reserve(self, claims: Sequence[Claim], estimate: Amounts, now_ms: int) -> Reserved | Exceeded:
        """Asks for all these budgets at once, at today's amounts. What is not known is estimated at nothing.

        The better the estimate, the tighter the bound; one that is too high keeps others waiting while the request
        runs. Raises `LocalError` for two claims on one account in the same unit and period, and for a time that is out
        of range.
        """
        if len({(claim.account, claim.budget.unit, claim.budget.period) for claim in claims}) < len(claims):
            raise LocalError("an account has one budget for each unit and period")
        held = tuple((claim, self._window(claim, now_ms)) for claim in claims)
        refusals = [
            _exceeded(claim, window, now_ms)
            for claim, window in held
            if window.spent + window.reserved >= claim.budget.amount
        ]
        if refusals:
            return max(refusals, key=lambda refusal: (refusal.used_up, refusal.reset_ms))
        for claim, window in held:
            window.reserved += estimate.of(claim.budget.unit) or 0
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._open[ticket] = _Open(estimate, held)
        return Reserved(ticket)

    def settle(self, ticket: int, actual: Amounts | None, now_ms: int) -> Settled | None:
        """Charges what a request did cost, in the period in which it began; `None` when it has ended before.

        What is not known is charged as estimated: a client that goes away before the figures come has still spent.
        No warning is given of a period that is over. Raises `LocalError` for a ticket that was never given out, and for
        a time that is out of range.
        """
        _check_time(now_ms)
        ended = self._end(ticket)
        if ended is None:
            return None
        charged = (actual or Amounts()).or_else(ended.estimate)
        for claim, window in ended.claims:
            window.spent += charged.of(claim.budget.unit) or 0
        warnings = tuple(
            BudgetWarning(claim, window.spent, window.end_ms)
            for claim, window in ended.claims
            if now_ms < window.end_ms and window.is_news(claim.budget.amount)
        )
        return Settled(charged, warnings)

    def cancel(self, ticket: int) -> None:
        """Ends a request that cost nothing, such as one that no upstream was asked about.

        Raises `LocalError` for a ticket that was never given out.
        """
        self._end(ticket)

    def balance(self, claim: Claim, now_ms: int) -> Balance:
        """How the account stands in the period that `now_ms` lies in; changes nothing.

        Raises `LocalError` for a time that is out of range.
        """
        start_ms, end_ms = _period(claim.budget, now_ms)
        for window in self._windows[claim.budget.period].get((claim.account, claim.budget.unit), ()):
            if window.start_ms == start_ms:
                return Balance(window.spent, window.reserved, start_ms, end_ms)
        return Balance(0, 0, start_ms, end_ms)

    def _end(self, ticket: int) -> _Open | None:
        """Gives back what the ticket reserved."""
        if not 0 <= ticket < self._next_ticket:
            raise LocalError("there is no such ticket")
        ended = self._open.pop(ticket, None)
        if ended is None:
            self._repeated += 1
            return None
        for claim, window in ended.claims:
            window.reserved -= ended.estimate.of(claim.budget.unit) or 0
        return ended

    def _window(self, claim: Claim, now_ms: int) -> _Window:
        """The period that `now_ms` lies in, from now on the one of its account that was used last."""
        start_ms, end_ms = _period(claim.budget, now_ms)
        accounts = self._windows[claim.budget.period]
        key = claim.account, claim.budget.unit
        windows = accounts.get(key)
        if windows is None:
            if len(accounts) >= self._capacity:
                _make_room(accounts, now_ms)
            windows = accounts[key] = []
        accounts.move_to_end(key)
        window = next((known for known in windows if known.start_ms == start_ms), None)
        if window is None:
            window = _Window(start_ms, end_ms)
        # A period that is dropped may have tickets: they end as any, only that nobody will ask what they came to.
        windows[:] = [window, *(known for known in windows if known is not window)][:_REMEMBERED]
        return window


def _make_room(accounts: OrderedDict[tuple[Account, BudgetUnit], list[_Window]], now_ms: int) -> None:
    """Forgets the account that was unused for longest. If its periods are not over, neither are those of the others."""
    oldest = next(iter(accounts))
    if any(now_ms < window.end_ms for window in accounts[oldest]):
        raise LocalError("there are more accounts with a budget than the ledger has room for")
    del accounts[oldest]


def _check_time(now_ms: int) -> None:
    if not 0 <= now_ms <= _LAST_MS:
        raise LocalError("the clock must be in milliseconds since 1970, and before the year 9999")


def _period(budget: Budget, now_ms: int) -> tuple[int, int]:
    _check_time(now_ms)
    return budget.window(now_ms)


def _exceeded(claim: Claim, window: _Window, now_ms: int) -> Exceeded:
    """The answer for a budget with nothing left (RFC 6585 section 4)."""
    period = claim.budget.period
    which = f"the budget of {_WHOSE[claim.account.kind]} for the {period.value}"
    until_reset_s = -((now_ms - window.end_ms) // 1000)
    used_up = window.spent >= claim.budget.amount
    if used_up:
        message, wait_s = f"{which} is used up; it starts anew {_ANEW[period]}", until_reset_s
    else:
        message = f"requests in flight hold what is left of {which}; retry when one of them has ended"
        wait_s = min(until_reset_s, _IN_FLIGHT_RETRY_S)
    problem = Problem(429, "budget_exceeded", message, retry_after_s=wait_s)
    return Exceeded(claim, used_up, window.end_ms, problem)
