"""Invariant: in any order of inputs on any clock, no budget is overspent beyond the bound, and each ticket ends once.

An input is a script of letters (`play`): `a` to `h` begin a request that has some budgets, a digit moves the clock,
capitals are the other inputs. The bytes behind a letter are its numbers. What is reserved must be the estimates of the
open requests, to the last token, and a refused request must leave everything as it was.
"""

from collections.abc import Iterator
from itertools import product

from attrs import define, field

from capi_core.budgets import Account, AccountKind, Amounts, Claim, Exceeded, Ledger, Reserved
from capi_core.errors import LocalError
from capi_core.keys import Budget, BudgetPeriod, BudgetUnit

__all__ = ["test_one_input"]

MOST_STEPS = 2000
MOST_OPEN = 100
START_MS = 1_795_564_799_000  # a second before midnight UTC
LAST_MS = 253_370_764_799_999  # of the year 9998
DAY_MS = 24 * 3600 * 1000
CLOCK_MS = (0, 999, 1000, 3_600_000, DAY_MS, 31 * DAY_MS, 3650 * DAY_MS, -1001, -DAY_MS, -3650 * DAY_MS)
KEY, OTHER_KEY = Account(AccountKind.KEY, "a"), Account(AccountKind.KEY, "b")
OWNER = Account(AccountKind.OWNER, "a")
PAYERS: tuple[list[tuple[Account, BudgetPeriod]], ...] = (
    [(KEY, BudgetPeriod.DAY)],
    [(KEY, BudgetPeriod.DAY), (OWNER, BudgetPeriod.DAY)],
    [(OTHER_KEY, BudgetPeriod.DAY), (OWNER, BudgetPeriod.DAY)],
    [(OTHER_KEY, BudgetPeriod.MONTH), (OWNER, BudgetPeriod.MONTH)],
    [(OWNER, BudgetPeriod.MONTH), (KEY, BudgetPeriod.DAY), (KEY, BudgetPeriod.MONTH)],
    [(OWNER, BudgetPeriod.MONTH)],
    [(KEY, BudgetPeriod.MONTH), (KEY, BudgetPeriod.DAY)],
    [],
)
SLOTS = list(product((KEY, OTHER_KEY, OWNER), BudgetPeriod))

Slot = tuple[Account, BudgetPeriod]
Life = tuple[Slot, int, int]
"""A period of an account, from its first use until it is forgotten."""


@define
class Watch:
    """What is promised of each period, and which of them is still remembered."""

    now_ms: int = START_MS
    issued: int = 0
    repeated: int = 0
    estimates: dict[int, tuple[int, list[Life]]] = field(factory=dict)
    """The open tickets."""
    spent: dict[Life, int] = field(factory=dict)
    bound: dict[Life, int] = field(factory=dict)
    recent: dict[Slot, list[Life]] = field(factory=dict)
    lives: int = 0

    def use(self, claim: Claim) -> Life:
        """The period of now: of each account, two are remembered."""
        slot = claim.account, claim.budget.period
        start, _ = claim.budget.window(self.now_ms)
        known = self.recent.setdefault(slot, [])
        life = next((life for life in known if life[1] == start), None)
        if life is None:
            self.lives += 1
            life = slot, start, self.lives
            self.spent[life], self.bound[life] = 0, 1
        self.recent[slot] = [life, *(other for other in known if other != life)][:2]
        return life

    def reserved(self, life: Life) -> int:
        return sum(estimate for estimate, lives in self.estimates.values() if life in lives)


def budget_of(slot: Slot, amount: int = 1) -> Claim:
    account, period = slot
    return Claim(account, Budget(BudgetUnit.TOKENS, amount, period))


def begin(ledger: Ledger, watch: Watch, payers: list[Slot], estimate: int, amount: int) -> None:
    claims = [budget_of(slot, amount) for slot in payers]
    answer = ledger.reserve(claims, Amounts(estimate), watch.now_ms)
    lives = [watch.use(claim) for claim in claims]
    full = [life for life in lives if watch.spent[life] + watch.reserved(life) >= amount]
    if isinstance(answer, Reserved):
        assert full == []
        assert answer.ticket == watch.issued
        watch.issued += 1
        watch.estimates[answer.ticket] = estimate, lives
        watch.bound.update(dict.fromkeys(lives, amount + estimate))
    else:
        refused(watch, answer, full, amount)


def refused(watch: Watch, answer: Exceeded, full: list[Life], amount: int) -> None:
    """For a reason, and the caller is told when to come again."""
    used_up = {life for life in full if watch.spent[life] >= amount}
    blamed = next(life for life in full if life[0] == (answer.claim.account, answer.claim.budget.period))
    assert answer.used_up == (blamed in used_up) == bool(used_up)
    wait_s = answer.problem.retry_after_s
    assert wait_s is not None
    until_reset_ms = answer.reset_ms - watch.now_ms
    assert 0 < until_reset_ms <= 31 * DAY_MS
    assert 1 <= wait_s <= (until_reset_ms + 999) // 1000
    assert not answer.used_up or wait_s * 1000 >= until_reset_ms


def settle(ledger: Ledger, watch: Watch, ticket: int, actual: int | None) -> None:
    settled = ledger.settle(ticket, Amounts(actual), watch.now_ms)
    open_ticket = watch.estimates.pop(ticket, None)
    if open_ticket is None:
        assert settled is None
        watch.repeated += 1
        return
    assert settled is not None
    estimate, lives = open_ticket
    charged = estimate if actual is None else actual
    assert settled.charged == Amounts(charged)
    for life in lives:
        watch.spent[life] += charged
        watch.bound[life] += max(0, charged - estimate)


def cancel(ledger: Ledger, watch: Watch, ticket: int) -> None:
    ledger.cancel(ticket)
    if watch.estimates.pop(ticket, None) is None:
        watch.repeated += 1


def load(ledger: Ledger, watch: Watch, slot: Slot, spent: int) -> None:
    ledger.load(budget_of(slot), spent, watch.now_ms)
    life = watch.use(budget_of(slot))
    more = max(0, spent - watch.spent[life])
    watch.spent[life] += more
    watch.bound[life] += more


def play(ledger: Ledger, watch: Watch, letter: str, rest: Iterator[int]) -> None:
    """One step. `S`, `N` and `C` end any ticket, perhaps one that was never given out."""
    match letter:
        case "S" | "N" | "C":
            ticket = next(rest, 0) % (watch.issued + 1)
            try:
                if letter == "C":
                    cancel(ledger, watch, ticket)
                else:
                    settle(ledger, watch, ticket, next(rest, 0) if letter == "S" else None)
            except LocalError:  # there is no such ticket; `check` sees that nothing has changed
                assert ticket == watch.issued
        case "L":
            load(ledger, watch, SLOTS[next(rest, 0) % len(SLOTS)], next(rest, 0))
        case _ if letter in "0123456789":
            watch.now_ms = min(max(watch.now_ms + CLOCK_MS[int(letter)], 0), LAST_MS)
        case _ if "a" <= letter <= "h" and len(watch.estimates) < MOST_OPEN:
            begin(ledger, watch, PAYERS[ord(letter) - ord("a")], next(rest, 0), 1 + next(rest, 0))


def check(ledger: Ledger, watch: Watch) -> None:
    assert (ledger.open_tickets, ledger.repeated) == (len(watch.estimates), watch.repeated)
    assert len(ledger) == len(watch.recent) <= len(SLOTS)
    for slot, lives in watch.recent.items():
        for life in lives:
            balance = ledger.balance(budget_of(slot), life[1])
            assert (balance.spent, balance.reserved) == (watch.spent[life], watch.reserved(life))
            assert balance.spent + balance.reserved < watch.bound[life], "overspent"


def test_one_input(data: bytes) -> None:
    ledger, watch = Ledger(), Watch()
    rest = iter(data[:MOST_STEPS])
    for byte in rest:
        play(ledger, watch, chr(byte), rest)
        check(ledger, watch)
    for ticket in sorted(watch.estimates):
        settle(ledger, watch, ticket, 0)
    check(ledger, watch)
    assert all(watch.reserved(life) == 0 for life in watch.spent)
