"""The device flow on trio's clock: every way it ends, through lost networks, and safe to break off."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from capi_core.errors import LocalError
from capi_core.github import (
    GITHUB,
    Account,
    Authorized,
    Denied,
    DeviceFlow,
    Expired,
    Failed,
    FlowFailure,
    ShowCode,
    TokenProblem,
)
from capi_trio.demo.github import CLIENT_ID, Call, Decision, DemoGitHub, Trouble
from capi_trio.github.client import GitHubClient, GitHubFailedError
from capi_trio.github.linking import FlowEnd, LinkedAccount, account_of, link, run_device_flow
from capi_trio.upstream import Secret, UpstreamClient
from tests.support.github_peer import BASE, HOST, TOKEN, GitHubPeer, github_client


@define(eq=False)
class Desk:
    """An operator who links an identity, and what was shown to them."""

    peer: GitHubPeer
    client: GitHubClient
    shown: list[ShowCode] = field(factory=list)

    @property
    def github(self) -> DemoGitHub:
        return self.peer.github

    def flow(self, client_id: str = CLIENT_ID) -> DeviceFlow:
        return DeviceFlow(client_id, user_agent="capi/1.0", host=HOST)

    async def run(self, client_id: str = CLIENT_ID) -> FlowEnd:
        return await run_device_flow(self.client, self.flow(client_id), self.shown.append)

    async def link(self) -> LinkedAccount | Denied | Expired | Failed:
        return await link(self.client, self.flow(), self.shown.append)


@asynccontextmanager
async def open_desk(latency_s: float = 0.1) -> AsyncIterator[Desk]:
    peer = GitHubPeer(latency_s)
    async with UpstreamClient({}, transport=peer) as fetcher:
        yield Desk(peer, github_client(peer, fetcher))


LOST = httpx.ConnectError("no route")


# -- how it ends ----------------------------------------------------------------------------------------------------


async def test_a_code_is_shown_once_and_its_token_is_the_accounts(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.pending_polls, desk.github.login = 3, "octo-cat"
        linked = await desk.link()
        assert isinstance(linked, LinkedAccount)
        assert linked.account == Account(1001, "octo-cat")
        assert linked.token.reveal().startswith("ghu_")
        (code,) = desk.shown
        assert (code.user_code, code.verification_uri) == ("DEMO-0001", f"{BASE}/login/device")
        assert desk.github.early_polls == 0
        assert 20 < trio.current_time() < 25


async def test_the_user_says_no(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.decision = Decision.DENY
        assert await desk.run() == Denied()
        assert await desk.link() == Denied()


async def test_nobody_enters_the_code(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.decision = Decision.IGNORE
        assert await desk.run() == Expired()
        assert 890 < trio.current_time() < 910


async def test_github_says_that_the_code_has_expired(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.fail(Call.ACCESS_TOKEN, Trouble.oauth("expired_token"))
        assert await desk.run() == Expired()


@pytest.mark.parametrize("call", [Call.DEVICE_CODE, Call.ACCESS_TOKEN])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("device_flow_disabled", FlowFailure.DISABLED),
        ("incorrect_client_credentials", FlowFailure.WRONG_CLIENT),
        ("incorrect_device_code", FlowFailure.WRONG_CODE),
        ("unsupported_grant_type", FlowFailure.WRONG_GRANT),
        ("something_new", FlowFailure.REFUSED),
    ],
)
async def test_github_says_that_it_cannot_be_done(
    autojump_clock: MockClock, call: Call, error: str, reason: FlowFailure
) -> None:
    async with open_desk() as desk:
        desk.github.fail(call, Trouble.oauth(error))
        assert await desk.run() == Failed(reason)


async def test_a_client_id_that_github_does_not_know(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        assert await desk.run("Iv1.0000000000000000") == Failed(FlowFailure.REFUSED)
        assert desk.shown == []


# -- slower, later, again -------------------------------------------------------------------------------------------


async def test_polls_are_as_slow_as_github_wants(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.fail(Call.ACCESS_TOKEN, Trouble.oauth("slow_down", interval=30))
        assert isinstance(await desk.run(), Authorized)
        assert trio.current_time() > 5 + 30 + 30
        assert desk.github.early_polls == 0


@pytest.mark.parametrize(
    "trouble", [Trouble.http(500), Trouble.http(503, 1), Trouble.http(429), Trouble.garbage(), Trouble.stall()]
)
@pytest.mark.parametrize("call", [Call.DEVICE_CODE, Call.ACCESS_TOKEN])
async def test_what_passes_is_waited_out(autojump_clock: MockClock, call: Call, trouble: Trouble) -> None:
    async with open_desk() as desk:
        desk.github.fail(call, trouble, times=2)
        assert isinstance(await desk.run(), Authorized)
        assert len(desk.shown) == 1


async def test_a_network_that_is_lost_for_minutes_does_not_cost_the_code(autojump_clock: MockClock) -> None:
    async with open_desk() as desk, trio.open_nursery() as nursery:
        desk.github.pending_polls = 2

        async def lose() -> None:
            await trio.sleep(7)
            desk.peer.losses.extend([LOST] * 5)

        nursery.start_soon(lose)
        assert isinstance(await desk.run(), Authorized)
        assert len(desk.shown) == 1
        assert not desk.peer.losses


async def test_without_a_network_there_is_no_code_and_an_end(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.peer.losses.extend([LOST] * 100)
        assert await desk.run() == Failed(FlowFailure.UNREACHABLE)
        assert desk.shown == []
        assert trio.current_time() < 300


# -- whose token ----------------------------------------------------------------------------------------------------


async def test_github_is_asked_again_whose_token_it_is(autojump_clock: MockClock) -> None:
    """The user has just done their part."""
    async with open_desk() as desk:
        desk.github.fail(Call.USER, Trouble.http(502))
        desk.github.fail(Call.USER, Trouble.http(429, 9))
        desk.github.fail(Call.USER, Trouble.garbage())
        assert isinstance(await desk.link(), LinkedAccount)
        assert desk.github.calls[Call.USER] == 4


async def test_it_is_not_asked_for_ever(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.github.fail(Call.USER, Trouble.http(429, 3600), times=None)
        with pytest.raises(GitHubFailedError) as raised:
            await account_of(desk.client, TOKEN)
        assert raised.value.problem is TokenProblem.RATE_LIMITED
        assert raised.value.retry_after_s == 3600
        assert trio.current_time() < 100


async def test_a_token_that_github_does_not_know_is_told_at_once(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        with pytest.raises(GitHubFailedError, match="link the identity again") as raised:
            await account_of(desk.client, Secret("ghu_unknown"))
        assert raised.value.problem is TokenProblem.REVOKED
        assert desk.github.calls[Call.USER] == 1


# -- breaking off ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.05, 1.0, 5.15, 100.0])
async def test_it_can_be_broken_off_at_any_moment(autojump_clock: MockClock, after_s: float) -> None:
    async with open_desk() as desk:
        desk.github.decision = Decision.IGNORE
        with trio.move_on_after(after_s) as scope:
            await desk.run()
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(after_s)
        assert desk.peer.under_way == 0


async def test_a_flow_runs_once(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        flow = desk.flow()
        await run_device_flow(desk.client, flow, desk.shown.append)
        with pytest.raises(LocalError):
            await run_device_flow(desk.client, flow, desk.shown.append)


async def test_a_flow_of_another_host_is_not_sent(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        flow = DeviceFlow(CLIENT_ID, user_agent="capi/1.0", host=GITHUB)
        with pytest.raises(LocalError, match="another host"):
            await run_device_flow(desk.client, flow, desk.shown.append)
        assert desk.peer.asked == []


async def test_nothing_secret_is_shown(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        linked = await desk.link()
        assert isinstance(linked, LinkedAccount)
        assert linked.token.reveal() not in repr(linked)
        assert desk.shown[0].user_code not in repr(desk.shown)
