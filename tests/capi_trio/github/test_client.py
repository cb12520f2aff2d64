"""What is asked of a GitHub host: that host and no other, small and soon, and nothing secret shown."""

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import structlog
import trio
from attrs import define
from trio.testing import MockClock

from capi_core.errors import LocalError
from capi_core.github import (
    GITHUB,
    Account,
    CopilotToken,
    Endpoint,
    GitHubHost,
    GitHubRequest,
    TokenProblem,
    TokenRefusal,
)
from capi_trio.demo.github import Call, DemoGitHub, Trouble
from capi_trio.github.client import GitHubClient, GitHubFailedError, own_traits
from capi_trio.upstream import Secret, UpstreamClient, UpstreamFailedError, version_headers
from tests.support.fakes import FakeUpstream, Reply, json_reply
from tests.support.github_peer import BASE, HOST, NOW, TOKEN, TRAITS, GitHubPeer, github_client


@define(eq=False)
class Asking:
    peer: GitHubPeer
    client: GitHubClient

    @property
    def github(self) -> DemoGitHub:
        return self.peer.github


@asynccontextmanager
async def open_client() -> AsyncIterator[Asking]:
    peer = GitHubPeer()
    async with UpstreamClient({}, transport=peer) as fetcher:
        yield Asking(peer, github_client(peer, fetcher))


@asynccontextmanager
async def scripted(up: FakeUpstream, host: GitHubHost = GITHUB) -> AsyncIterator[GitHubClient]:
    async with UpstreamClient({}, transport=up) as fetcher:
        yield GitHubClient(fetcher, host, own_traits(), now=lambda: NOW)


# -- what is asked --------------------------------------------------------------------------------------------------


async def test_an_account_its_token_and_its_quota_are_read(autojump_clock: MockClock) -> None:
    async with open_client() as asking:
        assert await asking.client.account(TOKEN) == Account(1000, "demo-octocat")
        token = await asking.client.copilot_token(TOKEN)
        assert isinstance(token, CopilotToken)
        assert token.api == BASE
        assert asking.github.is_live(token.token, asking.peer.now())
        report = await asking.client.usage(TOKEN)
        assert (report.login, report.plan) == ("demo-octocat", "individual")
        assert [quota.kind for quota in report.quotas] == ["premium_interactions", "chat", "completions"]


async def test_the_gateway_says_what_it_is(autojump_clock: MockClock) -> None:
    up = FakeUpstream(json_reply({"login": "octocat", "id": 1}))
    async with scripted(up) as client:
        await client.account(TOKEN)
    (asked,) = up.asked
    assert asked.url == "https://api.github.com/user"
    assert asked.header(b"user-agent") == [version_headers()["user-agent"].encode()]
    assert asked.header(b"authorization") == [b"token " + TOKEN.reveal().encode()]
    assert asked.header(b"accept-encoding") == [b"identity"]
    assert asked.limits["connect"] == 10


@pytest.mark.parametrize(
    "url",
    [
        "https://api.github.com.evil.example/user",
        "https://evil.example/user",
        "http://api.github.com/user",
        "https://github.com@evil.example/",
        "https://api.githubcopilot.com/models",
    ],
)
async def test_no_other_host_is_ever_asked(autojump_clock: MockClock, url: str) -> None:
    up = FakeUpstream(Reply())
    async with scripted(up) as client:
        with pytest.raises(LocalError, match="another host"):
            await client.send(GitHubRequest("GET", url, TRAITS.github_headers(TOKEN.reveal())))
    assert up.asked == []


async def test_a_redirect_is_an_answer_and_is_not_followed(autojump_clock: MockClock) -> None:
    """The place that it names would be sent the token."""
    up = FakeUpstream(Reply(status=302, headers=(("location", "https://evil.example/"),)))
    async with scripted(up) as client:
        assert await client.copilot_token(TOKEN) == TokenRefusal(TokenProblem.GARBAGE)
        with pytest.raises(GitHubFailedError) as raised:
            await client.account(TOKEN)
        assert raised.value.problem is TokenProblem.GARBAGE
    assert {asked.url for asked in up.asked} == {
        "https://api.github.com/copilot_internal/v2/token",
        "https://api.github.com/user",
    }


# -- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        (Trouble.http(401), TokenProblem.REVOKED),
        (Trouble.http(403, 5), TokenProblem.RATE_LIMITED),
        (Trouble.no_copilot(), TokenProblem.NO_SUBSCRIPTION),
        (Trouble.http(404), TokenProblem.NOT_FOUND),
        (Trouble.http(429), TokenProblem.RATE_LIMITED),
        (Trouble.http(500), TokenProblem.SERVER_ERROR),
        (Trouble.garbage(), TokenProblem.GARBAGE),
        (Trouble.stall(), TokenProblem.UNREACHABLE),
    ],
)
async def test_a_failure_is_told_as_what_it_is(
    autojump_clock: MockClock, trouble: Trouble, problem: TokenProblem
) -> None:
    async with open_client() as asking:
        for call in (Call.USER, Call.COPILOT_TOKEN, Call.COPILOT_USER):
            asking.github.fail(call, trouble)
        answer = await asking.client.copilot_token(TOKEN)
        assert isinstance(answer, TokenRefusal)
        assert answer.problem is problem
        with pytest.raises(GitHubFailedError) as raised:
            await asking.client.usage(TOKEN)
        assert (raised.value.problem, str(raised.value)) == (problem, problem.next_step)
        with pytest.raises(GitHubFailedError) as raised:
            await asking.client.account(TOKEN)
        # Who may not even say who they are needs no seat.
        assert raised.value.problem is (TokenProblem.REFUSED if problem is TokenProblem.NO_SUBSCRIPTION else problem)


async def test_an_answer_that_is_too_long_is_broken_off(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b"x" * 600_000] * 100))
    async with scripted(up) as client:
        assert await client.copilot_token(TOKEN) == TokenRefusal(TokenProblem.UNREACHABLE)
    assert up.asked[0].taken == 2
    assert up.asked[0].closed_at is not None


async def test_an_answer_that_trickles_in_is_broken_off(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply([b" ", 4.0] * 1000))
    async with scripted(up) as client:
        assert await client.copilot_token(TOKEN) == TokenRefusal(TokenProblem.UNREACHABLE)
    assert trio.current_time() == pytest.approx(15)
    assert up.open == 0


@pytest.mark.parametrize(
    ("host", "api"),
    [
        (GITHUB, "https://evil.example"),
        (GITHUB, "http://127.0.0.1:4000"),
        (GITHUB, "https://169.254.169.254"),
        (GitHubHost.of("octo.ghe.com"), "https://other.ghe.com"),
        (HOST, "https://api.githubcopilot.com"),
    ],
)
async def test_a_token_for_another_place_than_copilots_is_no_token(
    autojump_clock: MockClock, host: GitHubHost, api: str
) -> None:
    answer = {"token": "tid=1;exp=2", "expires_at": NOW + 1800, "endpoints": {"api": api}}
    up = FakeUpstream(json_reply(answer))
    with structlog.testing.capture_logs() as logged:
        async with scripted(up, host) as client:
            assert await client.copilot_token(TOKEN) == TokenRefusal(TokenProblem.GARBAGE)
    assert [line["event"] for line in logged if line["event"] == "copilot_base_url_refused"] or api.startswith("http:")


# -- secrets --------------------------------------------------------------------------------------------------------


def shown_by(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


async def test_no_token_is_shown(autojump_clock: MockClock) -> None:
    """Not in a repr, a log line, or a traceback, even one that shows locals."""
    up = FakeUpstream(httpx.ConnectError(f"no way with {TOKEN.reveal()}"))
    with structlog.testing.capture_logs() as logged:
        async with scripted(up) as client:
            with pytest.raises(GitHubFailedError) as raised:
                await client.account(TOKEN)
            request = client.request(Endpoint.USER, TOKEN)
            with pytest.raises(UpstreamFailedError) as failed:
                await client.send(request)
    for text in (repr(request), repr(client), repr(logged), shown_by(raised.value), str(failed.value)):
        assert TOKEN.reveal() not in text


async def test_what_cannot_be_a_token_is_not_sent(autojump_clock: MockClock) -> None:
    up = FakeUpstream(Reply())
    async with scripted(up) as client:
        with pytest.raises(LocalError):
            await client.account(Secret("ghu_token\r\nx-evil: 1"))
    assert up.asked == []
