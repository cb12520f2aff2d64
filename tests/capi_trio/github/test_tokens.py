"""A live token for whoever asks, from as few exchanges as possible, whatever happens around it."""

import itertools
import random
import traceback
from functools import partial

import httpx
import pytest
import structlog
import trio
import trio.testing
from attrs import define
from trio.testing import MockClock

from capi_core.errors import LocalError
from capi_core.github import TokenProblem
from capi_trio.demo.answers import Refused, Request
from capi_trio.demo.github import Call, Trouble
from capi_trio.github.tokens import (
    CopilotAccess,
    CopilotTokens,
    NoTokenError,
    TokenCounts,
    TokenState,
    TokenStatus,
)
from capi_trio.upstream import Secret, UpstreamClient
from tests.support.github_peer import BASE, TOKEN, TRAITS, GitHubPeer, Seat, github_client, open_seat

LIFE_S = 1800


def exchanges(seat: Seat) -> int:
    return seat.github.calls[Call.COPILOT_TOKEN]


def life_of(seat: Seat) -> float:
    """How long the token lives from now on, in seconds."""
    expires_at = seat.tokens.state.expires_at
    assert expires_at is not None
    return expires_at - seat.peer.now()


def is_live(seat: Seat, access: CopilotAccess) -> bool:
    return seat.github.is_live(access.token.reveal(), seat.peer.now())


@define
class Crowd:
    """Callers that all want the token of one seat, and what each got."""

    seat: Seat
    got: list[CopilotAccess]
    refused: list[NoTokenError]

    @classmethod
    def of(cls, seat: Seat) -> "Crowd":
        return cls(seat, [], [])

    async def one(self, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            try:
                self.got.append(await self.seat.tokens.token())
            except NoTokenError as error:
                self.refused.append(error)

    async def come(self, size: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(self.one)


# -- one exchange for all -------------------------------------------------------------------------------------------


async def test_the_first_token_is_fetched_before_anybody_asks(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        await trio.sleep(1)
        assert exchanges(seat) == 1
        began = trio.current_time()
        access = await seat.tokens.token()
        assert trio.current_time() == began, "nobody waits for a token that is there"
        assert is_live(seat, access)
        assert access.api == BASE
        assert seat.tokens.counts == TokenCounts(refreshes=1)


async def test_a_hundred_callers_at_the_start_are_one_exchange(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        crowd = Crowd.of(seat)
        await crowd.come(100)
        assert (len(crowd.got), len({access.token.reveal() for access in crowd.got})) == (100, 1)
        assert exchanges(seat) == 1
        assert seat.tokens.counts == TokenCounts(refreshes=1, waits=100)


async def test_a_hundred_callers_at_a_tokens_end_are_one_exchange(autojump_clock: MockClock) -> None:
    """GitHub was away when the token was due, and is back when all of them find it dead."""
    async with open_seat() as seat:
        old = await seat.tokens.token()
        seat.peer.slept_s += LIFE_S + 1
        assert not is_live(seat, old)
        crowd = Crowd.of(seat)
        await crowd.come(100)
        assert (len(crowd.got), len({access.token.reveal() for access in crowd.got})) == (100, 1)
        assert all(is_live(seat, access) for access in crowd.got)
        assert exchanges(seat) == 2


async def test_callers_that_come_one_after_the_other_during_an_exchange_share_it(autojump_clock: MockClock) -> None:
    peer = GitHubPeer(latency_s=10)
    async with open_seat(peer) as seat, trio.open_nursery() as nursery:
        crowd = Crowd.of(seat)
        for _ in range(20):
            nursery.start_soon(crowd.one)
            await trio.sleep(0.3)
        await trio.sleep(10)
        assert len(crowd.got) == 20
        assert exchanges(seat) == 1


# -- ahead of its end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.75), (0.5, 0.80), (1.0, 0.85)])
async def test_a_token_is_renewed_in_the_background_at_about_80_percent_of_its_life(
    autojump_clock: MockClock, fraction: float, share: float
) -> None:
    async with open_seat(fraction=fraction) as seat:
        await seat.tokens.token()
        await trio.sleep(life_of(seat) * share - 2)
        assert exchanges(seat) == 1
        await trio.sleep(5)
        assert exchanges(seat) == 2
        assert seat.tokens.counts == TokenCounts(refreshes=2, waits=1), "nobody has asked since"


async def test_fifty_lives_of_a_token_without_a_failed_request(autojump_clock: MockClock) -> None:
    """A request each second, each with a token that Copilot takes; nobody waits but the first."""
    async with open_seat() as seat:
        seat.github.token_life_s = 60
        seen = set()
        for _ in range(50 * 60):
            access = await seat.tokens.token()
            assert is_live(seat, access)
            seen.add(access.token.reveal())
            await trio.sleep(1)
        assert len(seen) == exchanges(seat) == seat.tokens.counts.refreshes > 50
        assert seat.tokens.counts.waits == 1
        assert [state.status for state in seat.told] == [TokenStatus.LINKED]


def trouble_of(dice: random.Random) -> Trouble:
    return dice.choice([Trouble.http(503), Trouble.http(429, 3), Trouble.garbage(), Trouble.stall(), Trouble.http(500)])


async def test_fifty_lives_of_a_token_with_a_github_that_often_fails_and_no_failed_request(
    autojump_clock: MockClock,
) -> None:
    """Each renewal fails once or twice before it succeeds: there is time for that before the old token ends."""
    dice = random.Random(7)
    async with open_seat() as seat:
        seat.github.token_life_s = 300
        crowd = Crowd.of(seat)
        await crowd.come(1)
        renewed = 0
        while seat.tokens.counts.refreshes <= 50:
            if renewed < seat.tokens.counts.refreshes:
                renewed = seat.tokens.counts.refreshes
                for _ in range(dice.randint(1, 2)):
                    seat.github.fail(Call.COPILOT_TOKEN, trouble_of(dice))
            await crowd.come(2)
            assert crowd.refused == []
            assert is_live(seat, crowd.got[-1])
            await trio.sleep(1)
        assert seat.tokens.counts.failures >= 50
        assert seat.tokens.counts.waits == 1


async def test_tokens_that_hardly_live_do_not_become_a_storm(autojump_clock: MockClock) -> None:
    async with open_seat(GitHubPeer(latency_s=0)) as seat:
        seat.github.token_life_s = 0
        await trio.sleep(100)
        assert exchanges(seat) <= 101


# -- clocks ---------------------------------------------------------------------------------------------------------


async def test_after_a_sleep_a_dead_token_is_renewed_before_it_is_used(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        old = await seat.tokens.token()
        seat.peer.slept_s += 8 * 3600
        new = await seat.tokens.token()
        assert new.token.reveal() != old.token.reveal()
        assert is_live(seat, new)
        assert exchanges(seat) == 2


async def test_after_a_sleep_the_token_is_renewed_soon_although_nobody_asks(autojump_clock: MockClock) -> None:
    """The pause until 80 % of its life was set on a clock that stood still."""
    async with open_seat() as seat:
        await trio.sleep(10)
        seat.peer.slept_s += life_of(seat) * 0.81
        await trio.sleep(31)
        assert exchanges(seat) == 2


async def test_a_sleep_during_an_exchange_harms_nobody(autojump_clock: MockClock) -> None:
    peer = GitHubPeer(latency_s=5)
    async with open_seat(peer) as seat, trio.open_nursery() as nursery:
        crowd = Crowd.of(seat)
        nursery.start_soon(crowd.come, 5)
        await trio.sleep(2)
        seat.peer.slept_s += 8 * 3600
        await trio.sleep(10)
        assert all(is_live(seat, access) for access in crowd.got)
        assert len(crowd.got) == 5
        assert exchanges(seat) == 1


async def test_a_clock_that_was_set_back_makes_a_new_token(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        old = await seat.tokens.token()
        seat.peer.slept_s -= 3600
        new = await seat.tokens.token()
        assert new.token.reveal() != old.token.reveal()
        assert is_live(seat, new)


# -- Copilot refuses a token ----------------------------------------------------------------------------------------


def ask_copilot(seat: Seat, access: CopilotAccess) -> bool:
    """Whether Copilot takes a request with that token."""
    request = Request("GET", "/models", TRAITS.copilot_headers(access.token.reveal()), b"")
    try:
        seat.github.admit(request, seat.peer.now())
    except Refused:
        return False
    return True


async def request(seat: Seat) -> bool:
    """One request as the relay makes it: sent once more after a 401, if that may help."""
    access = await seat.tokens.token()
    if ask_copilot(seat, access):
        return True
    if not seat.tokens.refused(access.token, replayed=False):
        return False
    return ask_copilot(seat, await seat.tokens.token())


async def test_a_refused_token_is_renewed_once_for_all_that_it_was_refused_to(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        old = await seat.tokens.token()
        await trio.sleep(60)
        seat.github.expire_copilot_tokens()
        took = []

        async def one() -> None:
            took.append(await request(seat))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert took == [True] * 50
        assert exchanges(seat) == 2
        assert seat.tokens.refused(old.token, replayed=False), "the token is another one already: no new exchange"
        await trio.sleep(10)
        assert exchanges(seat) == 2


async def test_a_request_is_sent_again_once_only(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        access = await seat.tokens.token()
        await trio.sleep(60)
        assert not seat.tokens.refused(access.token, replayed=True)
        await trio.sleep(60)
        assert exchanges(seat) == 1


async def test_a_token_that_is_refused_as_soon_as_it_came_is_not_renewed(autojump_clock: MockClock) -> None:
    """It is not its age that Copilot dislikes."""
    async with open_seat() as seat:
        access = await seat.tokens.token()
        assert not seat.tokens.refused(access.token, replayed=False)
        await trio.sleep(60)
        assert exchanges(seat) == 1


# -- GitHub fails or refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        (Trouble.http(401), TokenProblem.REVOKED),
        (Trouble.no_copilot(), TokenProblem.NO_SUBSCRIPTION),
        (Trouble.no_copilot("spammy_user"), TokenProblem.BLOCKED),
        (Trouble.http(404), TokenProblem.NOT_FOUND),
        (Trouble.http(422), TokenProblem.REFUSED),
    ],
)
async def test_a_refusal_is_told_with_what_to_do_and_not_tried_again_in_a_loop(
    autojump_clock: MockClock, trouble: Trouble, problem: TokenProblem
) -> None:
    async with open_seat() as seat:
        seat.github.fail(Call.COPILOT_TOKEN, trouble, times=None)
        crowd = Crowd.of(seat)
        await crowd.come(3)
        assert [error.problem for error in crowd.refused] == [problem] * 3
        state = seat.tokens.state
        assert (state.status, state.problem, state.next_step) == (TokenStatus.REFUSED, problem, problem.next_step)
        assert seat.told == [state]
        for _ in range(400):  # requests that keep coming change nothing
            await crowd.come(1)
            await trio.sleep(1)
        assert exchanges(seat) == 1
        await trio.sleep(4 * 3600)
        assert exchanges(seat) <= (1 if problem is TokenProblem.REVOKED else 4 * 8 + 3)
        assert seat.told == [state], "told once"


async def test_a_revoked_token_is_used_until_it_ends_and_never_exchanged_again(autojump_clock: MockClock) -> None:
    """GitHub's own Copilot tokens outlive the token they were made of."""
    async with open_seat() as seat:
        await seat.tokens.token()
        seat.github.revoke(TOKEN.reveal())
        await trio.sleep(life_of(seat) * 0.9)
        assert seat.tokens.state.status is TokenStatus.REFUSED
        assert seat.tokens.state.retry_at is None
        assert is_live(seat, await seat.tokens.token())
        await trio.sleep(LIFE_S)
        with pytest.raises(NoTokenError) as raised:
            await seat.tokens.token()
        assert (raised.value.problem, raised.value.retry_at) == (TokenProblem.REVOKED, None)
        assert str(raised.value) == "no Copilot token for alice: revoked"
        assert exchanges(seat) == 2


async def test_a_seat_that_was_assigned_in_the_meantime_is_found(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        seat.github.fail(Call.COPILOT_TOKEN, Trouble.no_copilot())
        await trio.sleep(1)
        assert seat.tokens.state.status is TokenStatus.REFUSED
        await trio.sleep(901)
        assert [state.status for state in seat.told] == [TokenStatus.REFUSED, TokenStatus.LINKED]
        assert seat.told[-1] == TokenState(TokenStatus.LINKED, expires_at=seat.tokens.state.expires_at, sku="demo_seat")
        assert seat.told[-1].next_step is None


async def test_failures_are_tried_again_at_a_growing_interval_that_has_an_end(autojump_clock: MockClock) -> None:
    async with open_seat(GitHubPeer(latency_s=0)) as seat:
        seat.github.fail(Call.COPILOT_TOKEN, Trouble.http(503), times=None)
        counts = []
        for _ in range(12):
            await trio.sleep(600)
            counts.append(exchanges(seat))
        assert 5 <= counts[0] <= 12
        assert all(2 <= later - earlier <= 4 for earlier, later in itertools.pairwise(counts[2:]))
        assert [state.status for state in seat.told] == [TokenStatus.FAILING]
        with pytest.raises(NoTokenError) as raised:
            await seat.tokens.token()
        assert raised.value.problem is TokenProblem.SERVER_ERROR
        assert raised.value.retry_at is not None
        seat.github.heal(Call.COPILOT_TOKEN)
        await trio.sleep(600)
        assert is_live(seat, await seat.tokens.token())


async def test_a_pause_that_github_asks_for_is_kept(autojump_clock: MockClock) -> None:
    async with open_seat(GitHubPeer(latency_s=0)) as seat:
        seat.github.fail(Call.COPILOT_TOKEN, Trouble.http(429, 1000))
        await trio.sleep(998)
        assert exchanges(seat) == 1
        await trio.sleep(5)
        assert exchanges(seat) == 2


async def test_a_github_that_never_answers_holds_callers_up_for_seconds_only(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        seat.github.fail(Call.COPILOT_TOKEN, Trouble.stall(), times=None)
        with pytest.raises(NoTokenError) as raised:
            await seat.tokens.token()
        assert raised.value.problem is TokenProblem.UNREACHABLE
        assert trio.current_time() < 20
        assert seat.peer.under_way == 0


async def test_a_lost_network_is_not_noticed_while_the_token_lives(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        await trio.sleep(10)
        seat.peer.losses.extend([httpx.ConnectError("no route")] * 5)
        while exchanges(seat) == 1:
            assert is_live(seat, await seat.tokens.token())
            await trio.sleep(1)
        assert seat.tokens.counts.failures == 5
        await trio.sleep(1)
        assert [state.status for state in seat.told] == [
            TokenStatus.LINKED,
            TokenStatus.FAILING,
            TokenStatus.LINKED,
        ]


async def test_a_token_for_another_place_than_copilots_is_not_used(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        seat.github.base_url = "https://evil.example"
        with pytest.raises(NoTokenError) as raised:
            await seat.tokens.token()
        assert raised.value.problem is TokenProblem.GARBAGE


# -- cancellation ---------------------------------------------------------------------------------------------------


async def test_callers_that_are_cancelled_take_nothing_from_the_others(autojump_clock: MockClock) -> None:
    dice = random.Random(3)
    peer = GitHubPeer(latency_s=10)
    async with open_seat(peer) as seat, trio.open_nursery() as nursery:
        crowd = Crowd.of(seat)
        scopes: list[trio.CancelScope] = [await nursery.start(crowd.one) for _ in range(100)]
        for scope in dice.sample(scopes, 60):
            await trio.sleep(0.1)
            scope.cancel()
        await trio.sleep(10)
        assert len(crowd.got) == 40
        assert exchanges(seat) == 1


async def test_the_exchange_goes_on_when_everybody_has_left(autojump_clock: MockClock) -> None:
    peer = GitHubPeer(latency_s=10)
    async with open_seat(peer) as seat:
        with trio.move_on_after(1):
            await seat.tokens.token()
        await trio.sleep(10)
        assert exchanges(seat) == 1
        assert is_live(seat, await seat.tokens.token())


async def test_a_storm_of_cancellations_over_many_lives_of_a_token(autojump_clock: MockClock) -> None:
    """Callers come and are cancelled at any moment; GitHub fails; the machine sleeps: still one exchange at a time."""
    dice = random.Random(11)
    async with open_seat(GitHubPeer(latency_s=0.5)) as seat, trio.open_nursery() as nursery:
        seat.github.token_life_s = 60
        crowd = Crowd.of(seat)

        async def caller() -> None:
            with trio.move_on_after(dice.uniform(0, 1)):
                await crowd.one()

        for _ in range(5000):
            nursery.start_soon(caller)
            await trio.sleep(dice.uniform(0, 0.3))
            assert seat.peer.under_way <= 1
            if dice.random() < 0.005:
                seat.peer.slept_s += dice.uniform(0, 200)
            if dice.random() < 0.01:
                seat.github.fail(Call.COPILOT_TOKEN, Trouble.http(503))
        seat.github.heal(Call.COPILOT_TOKEN)
        await trio.sleep(400)
        assert len(crowd.got) > 1500
        assert len(crowd.refused) > 100
        assert is_live(seat, await seat.tokens.token())


async def test_callers_are_told_when_the_identity_is_taken_out(autojump_clock: MockClock) -> None:
    peer = GitHubPeer(latency_s=10)
    async with open_seat(peer) as seat, trio.open_nursery() as nursery:
        crowd = Crowd.of(seat)
        nursery.start_soon(crowd.come, 10)
        await trio.sleep(1)
        seat.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert [error.problem for error in crowd.refused] == [None] * 10
        assert seat.peer.under_way == 0, "nor does the exchange go on"
        with pytest.raises(NoTokenError, match="no Copilot token for alice: taken out"):
            await seat.tokens.token()


# -- secrets --------------------------------------------------------------------------------------------------------


async def test_what_may_be_alive_is_known_for_masking(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        assert seat.tokens.secrets == (TOKEN.reveal().encode(),)
        first = await seat.tokens.token()
        await trio.sleep(life_of(seat) * 0.9)
        second = await seat.tokens.token()
        await trio.sleep(life_of(seat) * 0.9)
        third = await seat.tokens.token()
        alive = {access.token.reveal().encode() for access in (second, third)}
        assert {*seat.tokens.secrets} == {TOKEN.reveal().encode(), *alive}
        assert first.token.reveal().encode() not in seat.tokens.secrets


def shown_by(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


async def test_no_token_is_shown(autojump_clock: MockClock) -> None:
    """Not in a repr, a log line, or a traceback, even one that shows locals."""
    with structlog.testing.capture_logs() as logged:
        async with open_seat() as seat:
            access = await seat.tokens.token()
            seat.github.fail(Call.COPILOT_TOKEN, Trouble.http(401))
            await trio.sleep(LIFE_S)
            with pytest.raises(NoTokenError) as raised:
                await seat.tokens.token()
            shown = [repr(access), repr(seat.tokens), repr(seat.tokens.state), repr(raised.value), repr(logged)]
            shown.append(shown_by(raised.value))
    assert [line["event"] for line in logged if line["log_level"] != "debug"] == ["identity_linked", "no_new_token"]
    assert logged[-1]["next_step"] == TokenProblem.REVOKED.next_step
    for text in shown:
        assert TOKEN.reveal() not in text
        assert access.token.reveal() not in text


async def test_what_cannot_be_a_token_is_refused_at_once(autojump_clock: MockClock) -> None:
    peer = GitHubPeer()
    async with UpstreamClient({}, transport=peer) as fetcher:
        make = partial(CopilotTokens, "alice", client=github_client(peer, fetcher), now=peer.now, fraction=lambda: 0.5)
        async with trio.open_nursery() as nursery:
            tokens = make(github_token=TOKEN)
            nursery.start_soon(tokens.run)
            assert (await tokens.token()).api == BASE, "nobody has to listen to what becomes of it"
            nursery.cancel_scope.cancel()
        for text in ("", "two words", "a line\n", "ä"):
            with pytest.raises(LocalError, match="a token is visible ASCII"):
                make(github_token=Secret(text))
