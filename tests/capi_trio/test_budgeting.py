"""A key's budget: what was spent before counts, what runs is reserved, what failed is free."""

import attrs
import pytest
from structlog.testing import capture_logs

from capi_core.budgets import Amounts
from capi_core.commands import Operation, Outcome
from capi_core.errors import Problem
from capi_core.keys import Budget, BudgetPeriod, BudgetUnit, KeyRecord, Tier
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.budgeting import Budgets, Ticket
from capi_trio.storage.errors import DatabaseUnavailable

NOON = 1_700_000_000_000
KEY = KeyRecord(
    id="key_1",
    hash="",
    tier=Tier.CLIENT,
    label="",
    created_at=0,
    budget=Budget(BudgetUnit.TOKENS, 1000, BudgetPeriod.DAY),
)
EVENT = UsageEvent(
    ts_ms=NOON,
    request_id="req_1",
    key_id="key_1",
    operation=Operation.CHAT,
    transport="http",
    stream=False,
    upstream="up",
    upstream_model="m",
    usage=Usage(uncached_input=100, output=200),
    usage_source=UsageSource.UPSTREAM_FINAL,
    outcome=Outcome.OK,
    latency_ms=1.0,
    cost_micros=50,
)


class Scene:
    def __init__(self, tokens: int = 0, money: int = 0) -> None:
        self.now = NOON
        self.spent = Amounts(tokens, money)
        self.asked: list[tuple[str, int]] = []
        self.fails = False
        self.budgets = Budgets(self.read, now_ms=lambda: self.now)

    async def read(self, key_id: str, from_ms: int) -> Amounts:
        self.asked.append((key_id, from_ms))
        if self.fails:
            raise DatabaseUnavailable("the database", "is away")
        return self.spent

    async def ticket(self, key: KeyRecord = KEY, size: int = 0) -> Ticket:
        held = await self.budgets.begin(key, size)
        assert isinstance(held, Ticket)
        return held

    async def refusal(self, key: KeyRecord = KEY, size: int = 0) -> Problem:
        held = await self.budgets.begin(key, size)
        assert isinstance(held, Problem)
        return held


async def test_a_key_without_a_budget_is_not_asked_about() -> None:
    scene = Scene()
    assert await scene.budgets.begin(attrs.evolve(KEY, budget=None), 10) is None
    assert scene.asked == []


async def test_what_was_spent_before_counts_and_is_read_once_a_period() -> None:
    scene = Scene(tokens=900)
    for _ in range(3):
        scene.budgets.end(await scene.ticket(), attrs.evolve(EVENT, usage=Usage(output=30)))
    assert len(scene.asked) == 1
    scene.budgets.end(await scene.ticket(), attrs.evolve(EVENT, usage=Usage(output=30)))
    refused = await scene.refusal()
    assert (refused.status, refused.code) == (429, "budget_exceeded")
    assert refused.retry_after_s is not None
    scene.now += 24 * 3600 * 1000
    scene.spent = Amounts(0, 0)
    await scene.ticket()
    assert len(scene.asked) == 2


async def test_a_budget_that_was_changed_is_read_anew() -> None:
    scene = Scene(tokens=1000, money=0)
    await scene.refusal()
    raised = attrs.evolve(KEY, budget=Budget(BudgetUnit.MONEY, 60, BudgetPeriod.MONTH))
    scene.budgets.end(await scene.ticket(raised), EVENT)
    scene.budgets.end(await scene.ticket(raised), EVENT)
    assert (await scene.refusal(raised)).code == "budget_exceeded"
    assert len(scene.asked) == 2


async def test_what_runs_is_reserved_so_that_many_at_once_do_not_overspend() -> None:
    scene = Scene()
    first = await scene.ticket(size=4000)
    assert (await scene.refusal()).retry_after_s == 10
    scene.budgets.end(first, EVENT)
    await scene.ticket()


@pytest.mark.parametrize(
    ("event", "charged"),
    [
        (attrs.evolve(EVENT, outcome=Outcome.UPSTREAM_ERROR, usage=None), False),
        (attrs.evolve(EVENT, outcome=Outcome.UPSTREAM_UNREACHABLE, usage=None), False),
        (attrs.evolve(EVENT, outcome=Outcome.REFUSED_BUSY, usage=None), False),
        (attrs.evolve(EVENT, outcome=Outcome.CLIENT_GONE, usage=None, upstream=None), False),
        (attrs.evolve(EVENT, outcome=Outcome.CLIENT_GONE, usage=None), True),
        (attrs.evolve(EVENT, outcome=Outcome.UPSTREAM_ERROR, usage=Usage(output=1000)), True),
        (attrs.evolve(EVENT, usage=Usage()), True),
    ],
)
async def test_who_was_not_served_does_not_pay(event: UsageEvent, charged: bool) -> None:
    """Who left, does: at the estimate, as the figures never came."""
    scene = Scene()
    scene.budgets.end(await scene.ticket(size=4000), event)
    assert isinstance(await scene.budgets.begin(KEY, 0), Problem) is charged


async def test_a_budget_that_cannot_be_read_is_not_passed_over() -> None:
    scene = Scene()
    scene.fails = True
    with capture_logs() as logs:
        assert (await scene.refusal()).code == "budget_unavailable"
    assert [line["event"] for line in logs] == ["budget_unreadable"]
    scene.fails = False
    await scene.ticket()


async def test_most_of_a_budget_spent_is_told_once() -> None:
    scene = Scene()
    with capture_logs() as logs:
        for _ in range(4):
            scene.budgets.end(await scene.ticket(), EVENT)
    assert [(line["event"], line["spent"], line["amount"]) for line in logs] == [("budget_warning", 900, 1000)]
