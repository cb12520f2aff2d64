"""What is left of a seat: GitHub is asked once for all who ask at a time, and not again within a minute."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from capi_core.github import Quota, QuotaReport, TokenProblem, TokenRefusal
from capi_core.identities import IdentityRecord
from capi_trio.demo.github import Call, Trouble
from capi_trio.quotas import Quotas, QuotaView, SeatUsage
from capi_trio.storage.errors import IdentityNotFound
from capi_trio.upstream import Secret, UpstreamClient
from tests.support.github_peer import BASE, NOW, TOKEN, TRAITS, GitHubPeer

ALICE = IdentityRecord(id="idn_1", name="alice", host=BASE, created_at=0, updated_at=0)


class Tokens:
    """GitHub tokens by the identity's name."""

    def __init__(self) -> None:
        self.by_name = {"alice": TOKEN, "bob": Secret("ghu_theGitHubTokenOfBobby")}

    async def token(self, name: str) -> Secret:
        await trio.lowlevel.checkpoint()
        try:
            return self.by_name[name]
        except KeyError:
            raise IdentityNotFound(f"there is no token of {name}") from None


class Scene:
    """Quotas and the GitHub that they are asked of."""

    def __init__(self, client: UpstreamClient, peer: GitHubPeer) -> None:
        self.peer = peer
        self.tokens = Tokens()
        self.quotas = Quotas(self.tokens, client, traits=lambda: TRAITS, now_s=peer.now)
        peer.github.link("ghu_theGitHubTokenOfBobby", "bob")

    @property
    def asked(self) -> int:
        return self.peer.github.calls[Call.COPILOT_USER]

    async def ask(self, record: IdentityRecord = ALICE) -> QuotaReport:
        report = await self.quotas.of(record)
        assert isinstance(report, QuotaReport)
        return report

    async def problem(self, record: IdentityRecord = ALICE) -> TokenRefusal:
        refusal = await self.quotas.of(record)
        assert isinstance(refusal, TokenRefusal)
        return refusal


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    peer = GitHubPeer()
    async with UpstreamClient({}, transport=peer) as client:
        yield Scene(client, peer)


async def test_each_identity_is_asked_about_with_its_own_token(autojump_clock: MockClock) -> None:
    async with scene() as world:
        assert (await world.ask()).login == "demo-octocat"
        assert (await world.ask(attrs.evolve(ALICE, id="idn_2", name="bob"))).login == "bob"
        assert {dict(asked.headers)[b"user-agent"] for asked in world.peer.asked} == {b"capi/1.0"}


async def test_an_answer_holds_for_a_minute(autojump_clock: MockClock) -> None:
    async with scene() as world:
        first = await world.ask()
        await trio.sleep(59)
        assert await world.ask() is first
        assert world.asked == 1
        await trio.sleep(2)
        assert await world.ask() is not first
        assert world.asked == 2


async def test_a_thousand_who_ask_at_once_are_one_request(autojump_clock: MockClock) -> None:
    async with scene() as world, trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(world.ask)
    assert world.asked == 1


async def test_who_is_cancelled_takes_nothing_from_those_who_wait(autojump_clock: MockClock) -> None:
    reports = []

    async def wait() -> None:
        reports.append(await world.ask())

    async with scene() as world, trio.open_nursery() as nursery, trio.open_nursery() as first:
        first.start_soon(world.ask)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert world.peer.under_way == 1
        first.cancel_scope.cancel()
    assert len(reports) == 3
    assert world.asked == 1, "GitHub answered one of two requests"
    assert len(world.peer.asked) == 2


async def test_a_failure_is_told_to_all_and_holds_for_some_seconds_only(autojump_clock: MockClock) -> None:
    async with scene() as world:
        world.peer.github.fail(Call.COPILOT_USER, Trouble.http(503), None)
        refusals = []

        async def wait() -> None:
            refusals.append((await world.problem()).problem)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(wait)
        assert refusals == [TokenProblem.SERVER_ERROR] * 10
        assert world.asked == 1
        world.peer.github.heal(Call.COPILOT_USER)
        await trio.sleep(9)
        assert (await world.problem()).problem is TokenProblem.SERVER_ERROR
        await trio.sleep(2)
        assert (await world.ask()).plan == "individual"


@pytest.mark.parametrize(("asks_for_s", "holds_s"), [(30, 30), (3000, 60), (1, 10)])
async def test_a_github_that_asks_for_a_pause_gets_up_to_a_minute(
    autojump_clock: MockClock, asks_for_s: int, holds_s: int
) -> None:
    async with scene() as world:
        world.peer.github.fail(Call.COPILOT_USER, Trouble.http(429, retry_after=asks_for_s))
        assert (await world.problem()).problem is TokenProblem.RATE_LIMITED
        await trio.sleep(holds_s - 1)
        assert (await world.problem()).retry_after_s == asks_for_s
        await trio.sleep(2)
        assert (await world.ask()).login == "demo-octocat"


async def test_an_identity_that_has_changed_is_asked_about_anew(autojump_clock: MockClock) -> None:
    """As after `capi auth`, which mends what the failure was about."""
    async with scene() as world:
        world.peer.github.revoke(TOKEN.reveal())
        assert (await world.problem()).problem is TokenProblem.REVOKED
        world.tokens.by_name["alice"] = Secret("ghu_theGitHubTokenOfBobby")
        assert (await world.ask(attrs.evolve(ALICE, updated_at=1))).login == "bob"


async def test_a_token_that_cannot_be_read_is_the_callers_matter_and_not_remembered(autojump_clock: MockClock) -> None:
    async with scene() as world:
        token = world.tokens.by_name.pop("alice")
        with pytest.raises(IdentityNotFound):
            await world.ask()
        assert world.asked == 0
        world.tokens.by_name["alice"] = token
        assert (await world.ask()).login == "demo-octocat"


async def test_identities_that_are_gone_are_forgotten(autojump_clock: MockClock) -> None:
    async with scene() as world:
        for number in range(50):
            await world.ask(attrs.evolve(ALICE, id=f"idn_{number}"))
            await trio.sleep(10)
        assert len(world.quotas._asked) < 10


# -- how it is shown ------------------------------------------------------------------------------------------------


def shown(quota: Quota) -> QuotaView:
    (view,) = SeatUsage.of("a", QuotaReport((quota,))).quotas
    return view


def test_a_paid_seat_is_shown_as_github_tells_of_it() -> None:
    quota = Quota("premium_interactions", 300, 75, 25.0, overage_count=2, overage_permitted=True)
    usage = SeatUsage.of("a", QuotaReport((quota,), plan="business", resets_at=NOW))
    assert (usage.identity, usage.plan, usage.resets_at) == ("a", "business", NOW * 1000)
    assert usage.quotas == [
        QuotaView(
            kind="premium_interactions",
            entitlement=300,
            used=225,
            remaining=75,
            percent_remaining=25.0,
            unlimited=False,
            overage_count=2,
            overage_permitted=True,
        )
    ]


@pytest.mark.parametrize(
    ("quota", "percent"),
    [
        (Quota("chat", 500, 125), 25.0),
        (Quota("chat", 3, 1), 33.3),
        (Quota("chat", 500, 125, 24.9), 24.9),
        (Quota("chat", 0, 0), None),
        (Quota("chat", 500), None),
        (Quota("chat"), None),
        (Quota("chat", unlimited=True, percent_remaining=100.0), 100.0),
    ],
)
def test_a_percentage_that_github_does_not_tell_is_worked_out_where_it_can_be(
    quota: Quota, percent: float | None
) -> None:
    """Free plans have none (spec.md 5, 32)."""
    assert shown(quota).percent_remaining == percent


def test_a_report_without_figures_is_one_without_quotas() -> None:
    usage = SeatUsage.of("a", QuotaReport(()))
    assert (usage.plan, usage.quotas, usage.resets_at) == (None, [], None)
