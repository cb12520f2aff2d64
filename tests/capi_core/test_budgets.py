"""Budgets: overspent by one request at most, charged to the right period, and each reservation ends exactly once."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from capi_core.budgets import (
    WARN_PERCENT,
    Account,
    AccountKind,
    Amounts,
    Balance,
    BudgetWarning,
    Claim,
    Exceeded,
    Ledger,
    Reserved,
    Settled,
)
from capi_core.errors import LocalError
from capi_core.keys import Budget, BudgetPeriod, BudgetUnit

DAY_MS = 24 * 3600 * 1000
KEY = Account(AccountKind.KEY, "k1")
OWNER = Account(AccountKind.OWNER, "ann")


def at(iso: str) -> int:
    return int(datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp() * 1000)


NOON = at("2026-11-24T12:00:00")


def tokens(amount: int, account: Account = KEY, period: BudgetPeriod = BudgetPeriod.DAY) -> Claim:
    return Claim(account, Budget(BudgetUnit.TOKENS, amount, period))


def money(amount: int, account: Account = KEY, period: BudgetPeriod = BudgetPeriod.DAY) -> Claim:
    return Claim(account, Budget(BudgetUnit.MONEY, amount, period))


def begin(ledger: Ledger, claims: Sequence[Claim], estimate: int, now_ms: int = NOON) -> int:
    """The ticket of a request that must be let through; it is estimated alike in both units."""
    answer = ledger.reserve(claims, Amounts(estimate, estimate), now_ms)
    assert isinstance(answer, Reserved)
    return answer.ticket


def refused(ledger: Ledger, claims: Sequence[Claim], now_ms: int = NOON) -> Exceeded:
    answer = ledger.reserve(claims, Amounts(1, 1), now_ms)
    assert isinstance(answer, Exceeded)
    return answer


def spend(ledger: Ledger, claim: Claim, amount: int, now_ms: int = NOON) -> tuple[BudgetWarning, ...]:
    """One whole request; what it warned of."""
    settled = ledger.settle(begin(ledger, [claim], amount, now_ms), None, now_ms)
    assert settled is not None
    return settled.warnings


def stand(ledger: Ledger, claim: Claim, now_ms: int = NOON) -> tuple[int, int]:
    """What is spent, and what is reserved."""
    balance = ledger.balance(claim, now_ms)
    return balance.spent, balance.reserved


# -- the bound --------------------------------------------------------------------------------------------------------


def test_concurrent_requests_cannot_overspend_by_more_than_the_last_of_them() -> None:
    """A thousand at once, each estimated right: without reservations, all would be let through."""
    ledger, claim = Ledger(), tokens(100)
    answers = [ledger.reserve([claim], Amounts(tokens=30), NOON) for _ in range(1000)]
    begun = [answer.ticket for answer in answers if isinstance(answer, Reserved)]
    assert begun == [0, 1, 2, 3]
    assert stand(ledger, claim) == (0, 120)
    for ticket in begun:
        ledger.settle(ticket, Amounts(tokens=30), NOON)
    assert stand(ledger, claim) == (120, 0)
    assert refused(ledger, [claim]).used_up


def test_a_request_need_not_fit_in_what_is_left() -> None:
    """Else a budget below one estimate would let nothing through, and the rest of any could never be used."""
    ledger, claim = Ledger(), tokens(10)
    ticket = begin(ledger, [claim], 32_000)
    assert not refused(ledger, [claim]).used_up
    ledger.settle(ticket, Amounts(tokens=9), NOON)
    assert stand(ledger, claim) == (9, 0)
    begin(ledger, [claim], 1)
    assert not refused(ledger, [claim]).used_up


def test_without_estimates_each_open_request_overspends_by_itself_once() -> None:
    ledger, claim = Ledger(), tokens(1)
    open_tickets = [begin(ledger, [claim], 0) for _ in range(3)]
    for ticket in open_tickets:
        ledger.settle(ticket, Amounts(tokens=50), NOON)
        refused(ledger, [claim])
    assert stand(ledger, claim) == (150, 0)


@given(
    amount=st.integers(1, 200),
    requests=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=40),
)
def test_who_never_estimates_too_low_overspends_by_less_than_one_estimate(
    amount: int, requests: list[tuple[int, int]]
) -> None:
    """However many run at once: here, as many as are let through."""
    ledger, claim = Ledger(), tokens(amount)
    begun = []
    for estimate, excess in requests:
        answer = ledger.reserve([claim], Amounts(tokens=estimate + excess), NOON)
        if isinstance(answer, Reserved):
            begun.append((answer.ticket, estimate, estimate + excess))
    for ticket, actual, _ in begun:
        ledger.settle(ticket, Amounts(tokens=actual), NOON)
    spent, reserved = stand(ledger, claim)
    assert reserved == 0
    assert spent == sum(actual for _, actual, _ in begun)
    assert not begun or spent < amount + begun[-1][2]


# -- what is charged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "charged"),
    [
        (Amounts(7, 70), Amounts(7, 70)),
        (Amounts(0, 0), Amounts(0, 0)),
        (Amounts(900, 9000), Amounts(900, 9000)),
        (Amounts(tokens=7), Amounts(7, 50)),
        (Amounts(money=70), Amounts(5, 70)),
        (Amounts(), Amounts(5, 50)),
        (None, Amounts(5, 50)),
    ],
)
def test_a_request_is_charged_what_it_cost_and_the_unknown_as_estimated(
    actual: Amounts | None, charged: Amounts
) -> None:
    ledger, claims = Ledger(), [tokens(100), money(1000)]
    answer = ledger.reserve(claims, Amounts(5, 50), NOON)
    assert isinstance(answer, Reserved)
    settled = ledger.settle(answer.ticket, actual, NOON)
    assert settled is not None
    assert settled.charged == charged
    assert [stand(ledger, claim) for claim in claims] == [(charged.tokens, 0), (charged.money, 0)]


def test_what_nobody_estimated_or_reported_is_not_charged_and_stays_unknown() -> None:
    """A model without a price: the record must not say that it was free."""
    ledger, claim = Ledger(), money(1)
    answer = ledger.reserve([claim], Amounts(tokens=5), NOON)
    assert isinstance(answer, Reserved)
    assert ledger.settle(answer.ticket, Amounts(tokens=6), NOON) == Settled(Amounts(6, None), ())
    assert stand(ledger, claim) == (0, 0)


def test_what_is_cancelled_costs_nothing() -> None:
    ledger, claim = Ledger(), tokens(10)
    ticket = begin(ledger, [claim], 10)
    refused(ledger, [claim])
    ledger.cancel(ticket)
    assert stand(ledger, claim) == (0, 0)
    begin(ledger, [claim], 10)


def test_a_request_without_budgets_has_a_ticket_too() -> None:
    ledger = Ledger()
    ticket = begin(ledger, [], 10)
    assert (ledger.open_tickets, len(ledger)) == (1, 0)
    assert ledger.settle(ticket, Amounts(3), NOON) == Settled(Amounts(3, 10), ())
    assert ledger.open_tickets == 0


def test_nothing_costs_less_than_nothing() -> None:
    for amounts in ((-1, 0), (0, -1), (-1, None), (None, -1), (-1, 9)):
        with pytest.raises(LocalError):
            Amounts(*amounts)
    ledger = Ledger()
    with pytest.raises(LocalError):
        ledger.load(tokens(10), -1, NOON)
    assert len(ledger) == 0


# -- tickets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["settle", "cancel"])
@pytest.mark.parametrize("second", ["settle", "cancel"])
def test_a_ticket_ends_once(first: str, second: str) -> None:
    ledger, claim = Ledger(), tokens(100)
    ticket, other = begin(ledger, [claim], 10), begin(ledger, [claim], 20)
    for way in (first, second):
        if way == "cancel":
            ledger.cancel(ticket)
        else:
            settled = ledger.settle(ticket, Amounts(tokens=5), NOON)
            assert (settled is None) == (ledger.repeated == 1)
    assert stand(ledger, claim) == (5 if first == "settle" else 0, 20)
    assert (ledger.repeated, ledger.open_tickets) == (1, 1)
    ledger.cancel(other)
    assert (ledger.repeated, ledger.open_tickets) == (1, 0)


@pytest.mark.parametrize("ticket", [-1, 1, 2**63])
def test_a_ticket_that_was_never_given_out_is_the_embedders_fault(ticket: int) -> None:
    ledger, claim = Ledger(), tokens(100)
    begin(ledger, [claim], 10)
    with pytest.raises(LocalError):
        ledger.settle(ticket, None, NOON)
    with pytest.raises(LocalError):
        ledger.cancel(ticket)
    assert (stand(ledger, claim), ledger.repeated) == ((0, 10), 0)


# -- several budgets --------------------------------------------------------------------------------------------------


def test_all_budgets_are_reserved_or_none() -> None:
    ledger, key, owner = Ledger(), tokens(100), tokens(20, OWNER, BudgetPeriod.MONTH)
    ledger.load(owner, 20, NOON)
    for claims in ([key, owner], [owner, key]):
        assert refused(ledger, claims).claim == owner
    assert stand(ledger, key) == (0, 0)
    assert ledger.open_tickets == 0
    ticket = begin(ledger, [key, tokens(21, OWNER, BudgetPeriod.MONTH)], 5)
    assert (stand(ledger, key), stand(ledger, owner)) == ((0, 5), (20, 5))
    ledger.settle(ticket, Amounts(tokens=8), NOON)
    assert (stand(ledger, key), stand(ledger, owner)) == ((8, 0), (28, 0))


def test_an_owner_pays_for_all_keys() -> None:
    ledger, owner = Ledger(), tokens(100, OWNER)
    keys = [tokens(90, Account(AccountKind.KEY, name)) for name in "ab"]
    for key in keys:
        ledger.settle(begin(ledger, [key, owner], 60), None, NOON)
    assert [stand(ledger, key)[0] for key in keys] == [60, 60]
    assert refused(ledger, [keys[0], owner]).claim == owner


def test_accounts_units_and_periods_do_not_mix() -> None:
    """An owner that has the name of a key's id is somebody else."""
    ledger = Ledger()
    spend(ledger, tokens(10), 10)
    refused(ledger, [tokens(10)])
    for other in (
        tokens(10, Account(AccountKind.OWNER, KEY.id)),
        tokens(10, Account(AccountKind.KEY, "k2")),
        tokens(10, period=BudgetPeriod.MONTH),
        money(10),
    ):
        assert stand(ledger, other) == (0, 0)
        spend(ledger, other, 10)
    assert len(ledger) == 5


def test_one_account_cannot_be_claimed_twice() -> None:
    """It would be charged twice. Nothing is reserved."""
    ledger = Ledger()
    with pytest.raises(LocalError):
        ledger.reserve([tokens(10), tokens(20)], Amounts(1), NOON)
    assert (len(ledger), ledger.open_tickets) == (0, 0)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_who_has_used_up_a_budget_is_told_when_it_starts_anew() -> None:
    ledger, now = Ledger(), at("2026-11-24T23:59:58.500")
    for claim in (tokens(10), money(10, OWNER, BudgetPeriod.MONTH)):
        ledger.load(claim, 10, now)
    day, month = refused(ledger, [tokens(10)], now), refused(ledger, [money(10, OWNER, BudgetPeriod.MONTH)], now)
    assert (day.used_up, day.reset_ms) == (True, at("2026-11-25T00:00:00"))
    assert (day.problem.status, day.problem.code, day.problem.retry_after_s) == (429, "budget_exceeded", 2)
    assert day.problem.message == ("the budget of this key for the day is used up; it starts anew at midnight UTC")
    assert (month.used_up, month.reset_ms) == (True, at("2026-12-01T00:00:00"))
    assert month.problem.retry_after_s == 6 * 86_400 + 2
    assert month.problem.message == (
        "the budget of this key's owner for the month is used up;"
        " it starts anew at midnight UTC on the first of the month"
    )


@pytest.mark.parametrize(
    ("now", "retry_after_s"),
    [("2026-11-24T12:00:00", 10), ("2026-11-24T23:59:57", 3), ("2026-11-24T23:59:59.999", 1)],
)
def test_who_is_kept_out_by_requests_in_flight_may_retry_soon(now: str, retry_after_s: int) -> None:
    """Not only next month: one of them may cost less than it was estimated at."""
    ledger, claim = Ledger(), tokens(10)
    begin(ledger, [claim], 10, at(now))
    answer = refused(ledger, [claim], at(now))
    assert (answer.used_up, answer.reset_ms) == (False, at("2026-11-25T00:00:00"))
    assert (answer.problem.status, answer.problem.code) == (429, "budget_exceeded")
    assert answer.problem.retry_after_s == retry_after_s
    assert answer.problem.message == (
        "requests in flight hold what is left of the budget of this key for the day; retry when one of them has ended"
    )


def test_of_several_refusals_the_one_to_wait_for_longest_is_told() -> None:
    """A budget that is used up before one that is held, then the one that starts anew last."""
    ledger = Ledger()
    day, month, held = tokens(10), tokens(10, period=BudgetPeriod.MONTH), tokens(5, OWNER, BudgetPeriod.MONTH)
    begin(ledger, [held], 5)
    ledger.load(day, 10, NOON)
    assert refused(ledger, [held, day]).claim == refused(ledger, [day, held]).claim == day
    ledger.load(month, 10, NOON)
    assert refused(ledger, [held, day, month]).claim == refused(ledger, [month, day, held]).claim == month


@pytest.mark.parametrize("amount", [0, -5])
def test_a_budget_of_nothing_lets_nothing_through(amount: int) -> None:
    """0 and less never mean "unlimited" (spec.md 1.5, S8)."""
    assert refused(Ledger(), [tokens(amount)]).used_up


def test_a_refusal_changes_nothing() -> None:
    """Who hammers on is not locked out by that."""
    ledger, claim = Ledger(), tokens(10)
    ticket = begin(ledger, [claim], 10)
    for _ in range(100):
        refused(ledger, [claim])
    assert stand(ledger, claim) == (0, 10)
    ledger.cancel(ticket)
    assert begin(ledger, [claim], 1) == ticket + 1


def test_a_changed_budget_takes_effect_at_once_and_what_was_spent_stays_spent() -> None:
    ledger = Ledger()
    spend(ledger, tokens(100), 50)
    assert refused(ledger, [tokens(50)]).used_up
    begin(ledger, [tokens(51)], 1)


# -- periods and clocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "last", "first"),
    [
        (BudgetPeriod.DAY, "2026-11-24T23:59:59.999", "2026-11-25T00:00:00"),
        (BudgetPeriod.DAY, "2026-12-31T23:59:59.999", "2027-01-01T00:00:00"),
        (BudgetPeriod.MONTH, "2028-02-29T23:59:59.999", "2028-03-01T00:00:00"),
        (BudgetPeriod.MONTH, "2026-12-31T23:59:59.999", "2027-01-01T00:00:00"),
    ],
)
def test_a_budget_starts_anew_by_the_calendar_in_utc(period: BudgetPeriod, last: str, first: str) -> None:
    ledger, claim = Ledger(), tokens(10, period=period)
    spend(ledger, claim, 10, at(last))
    assert refused(ledger, [claim], at(last)).problem.retry_after_s == 1
    spend(ledger, claim, 10, at(first))
    assert refused(ledger, [claim], at(first)).used_up


def test_a_request_counts_in_the_period_in_which_it_began() -> None:
    ledger, claim = Ledger(), tokens(100)
    ticket = begin(ledger, [claim], 10)
    ledger.reserve([claim], Amounts(tokens=1), NOON + DAY_MS)
    ledger.settle(ticket, Amounts(tokens=70), NOON + DAY_MS)
    assert stand(ledger, claim, NOON) == (70, 0)
    assert stand(ledger, claim, NOON + DAY_MS) == (0, 1)


def test_a_request_may_end_when_its_period_is_long_forgotten() -> None:
    ledger, claim = Ledger(), tokens(100)
    ticket = begin(ledger, [claim], 10)
    for days in range(1, 5):
        spend(ledger, claim, days, NOON + days * DAY_MS)
    assert ledger.settle(ticket, Amounts(tokens=90), NOON) == Settled(
        Amounts(90, 10), (BudgetWarning(claim, 90, at("2026-11-25T00:00:00")),)
    )
    assert [stand(ledger, claim, NOON + days * DAY_MS) for days in range(5)] == [(0, 0), (0, 0), (0, 0), (3, 0), (4, 0)]


def test_a_clock_that_goes_back_and_forth_over_midnight_gives_nothing_away() -> None:
    ledger, claim = Ledger(), tokens(10)
    before, after = at("2026-11-24T23:59:59"), at("2026-11-25T00:00:01")
    spend(ledger, claim, 10, before)
    spend(ledger, claim, 10, after)
    for now in (before, before, after, after) * 10:
        refused(ledger, [claim], now)


def test_a_clock_that_was_years_ahead_refuses_nobody_for_years() -> None:
    """And when it is right again, today's account is still what it was."""
    ledger, claim = Ledger(), tokens(10)
    spend(ledger, claim, 4)
    spend(ledger, claim, 10, at("2031-01-01T00:00:00"))
    assert stand(ledger, claim) == (4, 0)
    spend(ledger, claim, 6)
    assert refused(ledger, [claim]).reset_ms == at("2026-11-25T00:00:00")


@pytest.mark.parametrize("now", [-1, at("9999-01-01T00:00:00"), 2**63])
def test_a_clock_out_of_range_is_the_embedders_fault_and_changes_nothing(now: int) -> None:
    ledger, claim = Ledger(), tokens(10)
    ticket = begin(ledger, [claim], 3)
    with pytest.raises(LocalError):
        ledger.reserve([claim], Amounts(1), now)
    with pytest.raises(LocalError):
        ledger.settle(ticket, None, now)
    with pytest.raises(LocalError):
        ledger.load(claim, 5, now)
    with pytest.raises(LocalError):
        ledger.balance(claim, now)
    assert (stand(ledger, claim), ledger.open_tickets) == ((0, 3), 1)


@pytest.mark.parametrize("now", [0, at("9999-01-01T00:00:00") - 1])
@pytest.mark.parametrize("period", BudgetPeriod)
def test_the_first_and_the_last_instant_have_a_period(now: int, period: BudgetPeriod) -> None:
    ledger, claim = Ledger(), tokens(10, period=period)
    spend(ledger, claim, 10, now)
    assert refused(ledger, [claim], now).reset_ms > now


# -- storage ----------------------------------------------------------------------------------------------------------


def test_what_storage_knows_counts() -> None:
    ledger, claim = Ledger(), tokens(10, period=BudgetPeriod.MONTH)
    ledger.load(claim, 10, at("2026-11-01T00:00:00"))
    assert ledger.balance(claim, NOON) == Balance(10, 0, at("2026-11-01T00:00:00"), at("2026-12-01T00:00:00"))
    assert refused(ledger, [claim]).used_up


def test_loading_again_changes_nothing_and_never_lowers_what_is_known() -> None:
    """Rows reach storage after the ledger, so that storage may know less."""
    ledger, claim = Ledger(), tokens(100)
    begin(ledger, [claim], 7)
    for spent, known in ((30, 30), (30, 30), (20, 30), (0, 30), (31, 31)):
        ledger.load(claim, spent, NOON)
        assert stand(ledger, claim) == (known, 7)


def test_who_asks_how_things_stand_changes_nothing() -> None:
    ledger, claim = Ledger(), tokens(100)
    assert ledger.balance(claim, NOON) == Balance(0, 0, at("2026-11-24T00:00:00"), at("2026-11-25T00:00:00"))
    assert len(ledger) == 0
    spend(ledger, claim, 5)
    for days in range(1, 9):
        assert stand(ledger, claim, NOON + days * DAY_MS) == (0, 0)
    assert stand(ledger, claim) == (5, 0)


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_a_warning_comes_at_four_fifths_once_a_period() -> None:
    assert WARN_PERCENT == 80
    ledger, claim = Ledger(), tokens(1000)
    assert spend(ledger, claim, 799) == ()
    assert spend(ledger, claim, 1) == (BudgetWarning(claim, 800, at("2026-11-25T00:00:00")),)
    assert spend(ledger, claim, 100) == spend(ledger, claim, 500) == ()
    tomorrow = NOON + DAY_MS
    assert spend(ledger, claim, 900, tomorrow) == (BudgetWarning(claim, 900, at("2026-11-26T00:00:00")),)
    assert spend(ledger, claim, 50, tomorrow) == ()


def test_a_reservation_is_no_cause_for_a_warning() -> None:
    ledger, claim = Ledger(), tokens(1000)
    begin(ledger, [claim], 999)
    assert spend(ledger, claim, 1) == ()


def test_each_budget_has_its_own_warning() -> None:
    ledger, key, owner = Ledger(), tokens(100), money(1000, OWNER, BudgetPeriod.MONTH)
    settled = ledger.settle(begin(ledger, [key, owner], 90), None, NOON)
    assert settled == Settled(Amounts(90, 90), (BudgetWarning(key, 90, at("2026-11-25T00:00:00")),))
    settled = ledger.settle(begin(ledger, [key, owner], 0), Amounts(0, 710), NOON)
    assert settled == Settled(Amounts(0, 710), (BudgetWarning(owner, 800, at("2026-12-01T00:00:00")),))


def test_a_raised_budget_has_a_warning_of_its_own_and_a_lowered_one_has_not() -> None:
    ledger = Ledger()
    assert len(spend(ledger, tokens(100), 80)) == 1
    assert spend(ledger, tokens(90), 1) == ()
    assert spend(ledger, tokens(1000), 700) == ()
    assert len(spend(ledger, tokens(1000), 19)) == 1
    assert spend(ledger, tokens(900), 1) == ()


def test_a_restart_does_not_warn_again() -> None:
    ledger, claim = Ledger(), tokens(100)
    ledger.load(claim, 80, NOON)
    assert spend(ledger, claim, 1) == ()
    almost = Ledger()
    almost.load(claim, 79, NOON)
    assert len(spend(almost, claim, 1)) == 1


@pytest.mark.parametrize(("ends", "warned"), [("2026-11-24T23:59:59.999", 1), ("2026-11-25T00:00:00", 0)])
def test_nobody_is_warned_of_a_period_that_is_over(ends: str, warned: int) -> None:
    ledger, claim = Ledger(), tokens(100)
    settled = ledger.settle(begin(ledger, [claim], 90), None, at(ends))
    assert settled is not None
    assert len(settled.warnings) == warned


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_ledger_has_room(capacity: int) -> None:
    with pytest.raises(LocalError):
        Ledger(capacity)


def test_accounts_whose_period_is_over_make_room_for_others() -> None:
    """Years of keys that come and go."""
    ledger = Ledger(capacity=3)
    for day in range(100):
        for name in "abc":
            spend(ledger, tokens(10, Account(AccountKind.KEY, f"{name}{day}")), 10, NOON + day * DAY_MS)
        assert len(ledger) == 3


def test_what_was_spent_is_not_forgotten_while_it_counts() -> None:
    """More accounts than room: the one too many is refused, and a month is not over with the day."""
    ledger, daily, monthly = Ledger(capacity=2), tokens(10), tokens(10, period=BudgetPeriod.MONTH)
    other = Account(AccountKind.KEY, "other")
    for claim in (daily, monthly, evolve(daily, account=OWNER), evolve(monthly, account=OWNER)):
        spend(ledger, claim, 10)
    for claim in (daily, monthly):
        with pytest.raises(LocalError):
            ledger.reserve([evolve(claim, account=other)], Amounts(1), NOON)
        with pytest.raises(LocalError):
            ledger.load(evolve(claim, account=other), 1, NOON)
        refused(ledger, [claim])
    spend(ledger, evolve(daily, account=other), 10, NOON + DAY_MS)
    with pytest.raises(LocalError):
        spend(ledger, evolve(monthly, account=other), 10, NOON + DAY_MS)
    refused(ledger, [monthly], NOON + DAY_MS)
    assert (len(ledger), ledger.open_tickets) == (4, 0)


def test_an_account_makes_room_as_soon_as_its_period_is_over_and_not_before() -> None:
    ledger, other = Ledger(capacity=1), tokens(10, OWNER)
    spend(ledger, tokens(10), 10)
    with pytest.raises(LocalError):
        spend(ledger, other, 10, at("2026-11-24T23:59:59.999"))
    spend(ledger, other, 10, at("2026-11-25T00:00:00"))
    assert stand(ledger, tokens(10)) == (0, 0)


def test_an_account_whose_clock_was_set_back_is_not_forgotten_for_that() -> None:
    """Of its two periods, the one used last is over, but the other is not."""
    ledger, claim = Ledger(capacity=1), tokens(10)
    spend(ledger, claim, 10)
    spend(ledger, claim, 10, NOON - DAY_MS)
    with pytest.raises(LocalError):
        spend(ledger, tokens(10, OWNER), 10)
    refused(ledger, [claim])


def test_the_account_that_was_used_last_goes_last() -> None:
    ledger, accounts = Ledger(capacity=2), [Account(AccountKind.KEY, name) for name in "abc"]
    a, b, c = (tokens(10, account) for account in accounts)
    for claim in (a, b):
        spend(ledger, claim, 10)
    refused(ledger, [a])
    spend(ledger, c, 1, NOON + DAY_MS)
    assert [stand(ledger, claim)[0] for claim in (a, b)] == [10, 0]


# -- any order of anything --------------------------------------------------------------------------------------------

_Slot = tuple[Account, BudgetUnit, BudgetPeriod]
_Life = tuple[_Slot, str, int]
"""One period of an account, from when it is first used until it is forgotten."""


@define
class Ticket:
    parts: list[tuple[_Life, Claim]]
    estimate: Amounts


@define
class Naive:
    """The same by a journal of all that ever was, and calendars read off a date's text."""

    journal: dict[_Life, list[int]] = field(factory=dict)
    running: dict[int, Ticket] = field(factory=dict)
    recent: dict[_Slot, list[str]] = field(factory=dict)
    forgotten: Counter[tuple[_Slot, str]] = field(factory=Counter)
    warned: dict[_Life, int] = field(factory=dict)

    @staticmethod
    def where(claim: Claim, now_ms: int) -> tuple[_Slot, str]:
        text = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat()
        period = claim.budget.period
        return (claim.account, claim.budget.unit, period), text[: 10 if period is BudgetPeriod.DAY else 7]

    def look(self, claim: Claim, now_ms: int) -> _Life:
        slot, name = self.where(claim, now_ms)
        return slot, name, self.forgotten[slot, name]

    def use(self, claim: Claim, now_ms: int) -> _Life:
        slot, name = self.where(claim, now_ms)
        names = self.recent.setdefault(slot, [])
        if name in names:
            names.remove(name)
        names.append(name)
        if len(names) > 2:
            self.forgotten[slot, names.pop(0)] += 1
        return self.look(claim, now_ms)

    def spent(self, life: _Life) -> int:
        return sum(self.journal.get(life, []))

    def charge(self, life: _Life, amount: int) -> None:
        self.journal.setdefault(life, []).append(amount)

    def reserved(self, life: _Life) -> int:
        return sum(
            ticket.estimate.of(claim.budget.unit) or 0
            for ticket in self.running.values()
            for where, claim in ticket.parts
            if where == life
        )

    def is_news(self, life: _Life, amount: int) -> bool:
        due = self.spent(life) >= 0.8 * amount and amount > self.warned.get(life, 0)
        if due:
            self.warned[life] = amount
        return due


ACCOUNTS = [KEY, OWNER, Account(AccountKind.OWNER, KEY.id)]
CLAIMS = st.builds(
    Claim,
    st.sampled_from(ACCOUNTS),
    st.builds(
        Budget,
        st.sampled_from([BudgetUnit.TOKENS, BudgetUnit.TOKENS, BudgetUnit.MONEY]),
        st.sampled_from([50, 50, 50, 1, 20, 80]),
        st.sampled_from(BudgetPeriod),
    ),
)
SEVERAL = st.lists(
    CLAIMS, min_size=1, max_size=3, unique_by=lambda claim: (claim.account, claim.budget.unit, claim.budget.period)
)
AMOUNTS = st.builds(Amounts, st.none() | st.integers(0, 40), st.none() | st.integers(0, 40))
STEPS_MS = st.one_of(
    st.integers(0, DAY_MS // 2),
    st.integers(-DAY_MS // 2, 0),
    st.sampled_from([-DAY_MS, DAY_MS, 31 * DAY_MS, -31 * DAY_MS, 4000 * DAY_MS, -4000 * DAY_MS]),
)


class LedgerAgainstTheModel(RuleBasedStateMachine):
    """Any order of inputs on any clock: the same decisions as the model's, and the bound at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.model = Ledger(), Naive()
        self.now_ms = NOON
        self.issued = self.repeated = 0
        self.bound: dict[_Life, int] = {}
        """What `spent + reserved` of a period stays below, as the module's docstring has it."""

    @rule(by_ms=STEPS_MS)
    def time_passes(self, by_ms: int) -> None:
        self.now_ms = max(0, self.now_ms + by_ms)

    @rule(claims=SEVERAL, estimate=AMOUNTS)
    def reserve(self, claims: list[Claim], estimate: Amounts) -> None:
        answer = self.ledger.reserve(claims, estimate, self.now_ms)
        parts = [(self.model.use(claim, self.now_ms), claim) for claim in claims]
        full = {
            claim: self.model.spent(life) >= claim.budget.amount
            for life, claim in parts
            if self.model.spent(life) + self.model.reserved(life) >= claim.budget.amount
        }
        if isinstance(answer, Exceeded):
            assert answer.used_up == full[answer.claim] == any(full.values())
            wait_s = answer.problem.retry_after_s
            assert wait_s is not None
            assert self.now_ms < answer.reset_ms <= self.now_ms + 31 * DAY_MS
            assert 1 <= wait_s <= (31 * 86_400 if answer.used_up else 10)
            assert self.model.where(answer.claim, answer.reset_ms) != self.model.where(answer.claim, self.now_ms)
            return
        assert full == {}
        assert answer.ticket == self.issued
        self.issued += 1
        self.model.running[answer.ticket] = Ticket(parts, estimate)
        for life, claim in parts:
            self.bound[life] = claim.budget.amount + (estimate.of(claim.budget.unit) or 0)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), actual=st.none() | AMOUNTS)
    def settle(self, data: st.DataObject, actual: Amounts | None) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.model.running))), actual)

    def end(self, number: int, actual: Amounts | None) -> None:
        settled = self.ledger.settle(number, actual, self.now_ms)
        ticket = self.model.running.pop(number)
        assert settled is not None
        warned = []
        for life, claim in ticket.parts:
            estimate = ticket.estimate.of(claim.budget.unit)
            known = None if actual is None else actual.of(claim.budget.unit)
            charge = estimate if known is None else known
            assert settled.charged.of(claim.budget.unit) == charge
            self.model.charge(life, charge or 0)
            self.bound[life] += max(0, (charge or 0) - (estimate or 0))
            over = self.model.where(claim, self.now_ms)[1] > life[1]
            if not over and self.model.is_news(life, claim.budget.amount):
                warned.append((claim, self.model.spent(life)))
        assert [(warning.claim, warning.spent) for warning in settled.warnings] == warned

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.running)))
        self.ledger.cancel(number)
        del self.model.running[number]

    @precondition(lambda self: self.issued > len(self.model.running))
    @rule(data=st.data(), cancel=st.booleans())
    def end_again(self, data: st.DataObject, cancel: bool) -> None:
        number = data.draw(st.sampled_from(sorted(set(range(self.issued)) - set(self.model.running))))
        if cancel:
            self.ledger.cancel(number)
        else:
            assert self.ledger.settle(number, Amounts(9, 9), self.now_ms) is None
        self.repeated += 1

    @rule(claim=CLAIMS, spent=st.integers(0, 60))
    def load(self, claim: Claim, spent: int) -> None:
        self.ledger.load(claim, spent, self.now_ms)
        life = self.model.use(claim, self.now_ms)
        more = max(0, spent - self.model.spent(life))
        self.model.charge(life, more)
        self.bound[life] = self.bound.get(life, 1) + more
        self.model.is_news(life, claim.budget.amount)

    @invariant()
    def each_account_stands_as_in_the_model_and_below_the_bound(self) -> None:
        for (account, unit, period), names in self.model.recent.items():
            claim = Claim(account, Budget(unit, 1, period))
            for name in names:
                instant = at(name if period is BudgetPeriod.DAY else f"{name}-01") + DAY_MS // 3
                life = self.model.look(claim, instant)
                spent, reserved = stand(self.ledger, claim, instant)
                assert (spent, reserved) == (self.model.spent(life), self.model.reserved(life))
                assert spent + reserved < self.bound.get(life, 1)

    @invariant()
    def tickets_are_conserved(self) -> None:
        assert self.ledger.open_tickets == len(self.model.running)
        assert self.ledger.repeated == self.repeated
        assert len(self.ledger) == len(self.model.recent)

    @override
    def teardown(self) -> None:
        """Whatever happened, nothing stays reserved, and who has not used up a budget is let through."""
        for number in sorted(self.model.running):
            self.end(number, None)
        for account, unit, period in self.model.recent:
            claim = Claim(account, Budget(unit, 50, period))
            balance = self.ledger.balance(claim, self.now_ms)
            assert balance.reserved == 0
            answer = self.ledger.reserve([claim], Amounts(1, 1), self.now_ms)
            assert isinstance(answer, Reserved) == (balance.spent < 50)


TestLedgerAgainstTheModel = LedgerAgainstTheModel.TestCase
TestLedgerAgainstTheModel.settings = settings(stateful_step_count=40)
