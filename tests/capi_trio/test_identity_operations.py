"""Every command about identities: what it answers, what it changes, what it audits, and that no token is shown."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from attrs import asdict, evolve

from capi_core.gate_events import GateLimits
from capi_core.github import TokenProblem
from capi_core.identities import IdentityRecord, IdentityState
from capi_trio.access import ANONYMOUS
from capi_trio.fanout import FanoutWatch
from capi_trio.github.tokens import TokenState, TokenStatus
from capi_trio.identities import IdentityView
from capi_trio.identity_operations import (
    AddIdentity,
    IdentitiesAnswer,
    IdentityAnswer,
    IdentityCommand,
    IdentityStatus,
    IdentityUsage,
    ListIdentities,
    PauseIdentity,
    RemoveIdentity,
    ResumeIdentity,
    SeatUsageAnswer,
    SetIdentity,
    ShareIdentity,
    ShowIdentity,
    ShowSeatUsage,
    StopIdentity,
    UnshareIdentity,
    run_identity_command,
)
from capi_trio.operations import Answer, Command, Operations, Refused
from capi_trio.quotas import Quotas
from capi_trio.seat_status import SeatStatuses
from capi_trio.slots import Slots
from capi_trio.token_files import TOKENS_NAME
from capi_trio.upstream import UpstreamClient
from tests.capi_trio.helpers import Ring, audit_lines, open_ring, stored_identities
from tests.capi_trio.storage.helpers import NOW
from tests.support.github_peer import BASE, TRAITS, GitHubPeer

TOKEN = "gho_" + "a1B" * 12
ADD = AddIdentity(name="a", token=TOKEN, owner="Ann")


async def run(ring: Ring, command: Command) -> Answer:
    """Carries a command out as it arrives over the control socket: encoded and decoded, as is its answer."""
    sent: Command = msgspec.json.decode(msgspec.json.encode(command), type=Command)
    answer = await ring.operations.run(sent)
    encoded = msgspec.json.encode(answer)
    assert b"gho_a" not in encoded
    received: Answer = msgspec.json.decode(encoded, type=Answer)
    assert received == answer
    return received


async def status_of(ring: Ring, command: Command) -> IdentityStatus:
    answer = await run(ring, command)
    assert isinstance(answer, IdentityAnswer)
    return answer.identity


async def refusal(ring: Ring, command: Command) -> str:
    """Why a command is refused; refused commands change nothing and leave no audit row."""
    before = ring.book.live(), await stored_identities(ring.store), await audit_lines(ring.store)
    answer = await run(ring, command)
    assert isinstance(answer, Refused)
    assert (ring.book.live(), await stored_identities(ring.store), await audit_lines(ring.store)) == before
    return answer.message


def shown(record: IdentityRecord, problem: str | None = None) -> IdentityStatus:
    return IdentityStatus(**msgspec.structs.asdict(IdentityView.of(record)), token_problem=problem)


async def test_an_added_identity_is_answered_without_its_token(tmp_path: Path) -> None:
    everything = AddIdentity(
        name="b", token=TOKEN, host="octo.ghe.com", login="octo", owner="Bob Ünïcödé", max_in_flight=2
    )
    async with open_ring(tmp_path / "data") as ring:
        plain, full = await status_of(ring, ADD), await status_of(ring, everything)
        first, second = ring.book.live()
        assert (plain, full) == (shown(first), shown(second))
        assert (first.host, first.login, first.owner, first.max_in_flight) == ("github.com", None, "Ann", None)
        assert (second.host, second.login, second.owner, second.max_in_flight) == (
            "octo.ghe.com", "octo", "Bob Ünïcödé", 2,
        )  # fmt: skip
        assert (await ring.book.token("b")).reveal() == TOKEN
        assert [line.action for line in await audit_lines(ring.store)] == ["identity.add"] * 2
    assert TOKEN not in repr(ADD)


async def test_adding_the_same_account_again_gives_it_the_new_token(tmp_path: Path) -> None:
    """What `link the identity again` comes down to when a token was revoked."""
    new = "ghu_" + "c2D" * 12
    async with open_ring(tmp_path / "data") as ring:
        first = await status_of(ring, AddIdentity(name="a", token=TOKEN, login="octo", owner="Ann"))
        again = await status_of(ring, AddIdentity(name="a", token=new, login="octo"))
        assert again == first
        assert (await ring.book.token("a")).reveal() == new
        assert [line.action for line in await audit_lines(ring.store)] == ["identity.add", "identity.link"]


@pytest.mark.parametrize(
    ("command", "changes", "action", "reason"),
    [
        (PauseIdentity("a", "ill"), {"state": IdentityState.PAUSED, "state_reason": "ill"}, "pause", "ill"),
        (PauseIdentity("a"), {"state": IdentityState.PAUSED}, "pause", None),
        (StopIdentity("a", "abuse"), {"state": IdentityState.STOPPED, "state_reason": "abuse"}, "stop", "abuse"),
        (ShareIdentity("a", "on call"), {"shared": True, "share_reason": "on call"}, "share", "on call"),
        (SetIdentity(name="a", owner="Bob"), {"owner": "Bob"}, "edit", None),
        (SetIdentity(name="a", owner=None), {"owner": None}, "edit", None),
        (SetIdentity(name="a", max_in_flight=9), {"max_in_flight": 9}, "edit", None),
        (SetIdentity(name="a", login="octo"), {"login": "octo"}, "edit", None),
    ],
)
async def test_a_change_is_answered_as_it_is_made(
    tmp_path: Path, command: IdentityCommand, changes: dict[str, object], action: str, reason: str | None
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await run(ring, ADD)
        [before] = ring.book.live()
        ring.clock.now += 1
        answer = await status_of(ring, command)
        after = IdentityRecord(**{**asdict(before), "updated_at": NOW + 1, **changes})
        assert ring.book.live() == (after,)
        assert answer == shown(after)
        line = (await audit_lines(ring.store))[-1]
        assert (line.action, line.reason) == (f"identity.{action}", reason)


async def test_what_was_done_can_be_undone(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        first = await status_of(ring, ADD)
        for done, undone in (
            (PauseIdentity("a", "ill"), ResumeIdentity("a")),
            (StopIdentity("a", "abuse"), ResumeIdentity("a")),
            (ShareIdentity("a", "on call"), UnshareIdentity("a")),
            (SetIdentity(name="a", max_in_flight=3, login="x"), SetIdentity(name="a", max_in_flight=None, login=None)),
        ):
            assert await status_of(ring, done) != first
            assert await status_of(ring, undone) == first


async def test_a_removed_identity_is_shown_once_more(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        first = await status_of(ring, ADD)
        gone = await status_of(ring, RemoveIdentity("a", "left"))
        assert gone == msgspec.structs.replace(first, removed_at=NOW)
        assert await run(ring, ListIdentities()) == IdentitiesAnswer([])
        line = (await audit_lines(ring.store))[-1]
        assert (line.action, line.reason) == ("identity.remove", "left")


async def test_looking_changes_nothing_and_tells_of_tokens_that_cannot_be_used(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert await run(ring, ListIdentities()) == IdentitiesAnswer([])
        second = await status_of(ring, AddIdentity(name="b", token=TOKEN))
        first = await status_of(ring, AddIdentity(name="a", token=TOKEN))
        assert await run(ring, ListIdentities()) == IdentitiesAnswer([first, second])
        (tmp_path / "data" / TOKENS_NAME / "b.token").chmod(0o644)
        told = await status_of(ring, ShowIdentity("b"))
        assert told.token_problem is not None
        assert "others can read" in told.token_problem
        assert await run(ring, ListIdentities()) == IdentitiesAnswer([first, told])
        assert len(await audit_lines(ring.store)) == 2


# -- how seats are, and what is left of them -----------------------------------------------------------------------


def with_seats(ring: Ring) -> Operations:
    """As in a server: the identity `a` has a seat, and is used."""
    dice = random.Random(0)
    watch = FanoutWatch(lambda: (), now_ms=ring.clock, random_bytes=dice.randbytes)
    slots = Slots(GateLimits(cap=3))
    with watch.riding("a", ANONYMOUS, "192.0.2.1"):
        pass
    token = TokenState(TokenStatus.REFUSED, TokenProblem.REVOKED)
    seats = SeatStatuses(lambda: {"a": (token, slots.snapshot())}, watch, ring.clock)
    return evolve(ring.operations, seats=seats)


async def test_a_server_also_tells_how_the_seats_are_to_those_who_look(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        operations = with_seats(ring)
        await run(ring, ADD)
        await run(ring, AddIdentity(name="b", token=TOKEN))
        shown_one = await operations.run(ShowIdentity("a"))
        assert isinstance(shown_one, IdentityAnswer)
        seat = shown_one.identity.seat
        assert seat is not None
        assert (seat.token, seat.token_problem, seat.cap, len(seat.fanout)) == ("refused", "revoked", 3, 1)
        listed = await operations.run(ListIdentities())
        assert isinstance(listed, IdentitiesAnswer)
        first, second = listed.identities
        assert first.seat == msgspec.structs.replace(seat, fanout=[])
        assert second.seat is None, "no upstream uses it"
        assert msgspec.json.decode(msgspec.json.encode(listed), type=IdentitiesAnswer) == listed
        changed = await operations.run(PauseIdentity("a"))
        assert isinstance(changed, IdentityAnswer)
        assert changed.identity.seat is None, "the gate has not followed yet"


async def usages(ring: Ring, peer: GitHubPeer, name: str | None = None) -> list[IdentityUsage]:
    async with UpstreamClient({}, transport=peer) as client:
        quotas = Quotas(ring.book, client, traits=lambda: TRAITS, now_s=peer.now)
        answer = await evolve(ring.operations, quotas=quotas).run(ShowSeatUsage(name))
    assert isinstance(answer, SeatUsageAnswer), answer
    assert msgspec.json.decode(msgspec.json.encode(answer), type=Answer) == answer
    return answer.identities


async def test_what_is_left_is_asked_for_each_or_for_one(tmp_path: Path) -> None:
    peer = GitHubPeer(latency_s=0.01)
    async with open_ring(tmp_path / "data") as ring:
        assert await usages(ring, peer) == []
        for number in range(12):
            await run(ring, AddIdentity(name=f"seat-{number:02}", token=f"{TOKEN}{number}", host=BASE))
            peer.github.link(f"{TOKEN}{number}", f"login-{number}")
        peer.github.revoke(f"{TOKEN}3")
        (tmp_path / "data" / TOKENS_NAME / "seat-04.token").unlink()
        found = await usages(ring, peer)
        assert [one.identity for one in found] == [f"seat-{number:02}" for number in range(12)]
        assert [number for number, one in enumerate(found) if one.usage is None] == [3, 4]
        assert found[3].problem == TokenProblem.REVOKED.next_step
        assert found[4].problem is not None
        assert found[0].usage is not None
        assert (found[0].usage.plan, found[0].problem) == ("individual", None)
        assert [one.identity for one in await usages(ring, peer, "seat-11")] == ["seat-11"]
        assert len(await audit_lines(ring.store)) == 12


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (AddIdentity(name="A", token=TOKEN), "name must be 1 to 64 lower-case letters"),
        (AddIdentity(name="b", token="", max_in_flight=0), "max_in_flight must be from 1"),
        (AddIdentity(name="b", token="x"), "token must be a GitHub token"),
        (ADD, "the identity 'a' is there already, for another account: remove it first"),
        (ShareIdentity("a", ""), "reason must not be empty"),
        (ShareIdentity("pool", "x"), "the identity 'pool' has no owner"),
        (UnshareIdentity("a"), "the identity 'a' is not shared"),
        (ResumeIdentity("a"), "the identity 'a' is active already"),
        (SetIdentity(name="a", owner=f"my {TOKEN}"), "owner must not hold a token"),
        *[
            (command, "there is no identity 'nobody'; capi identities list shows their names")
            for command in (
                SetIdentity(name="nobody", owner="x"),
                PauseIdentity("nobody"),
                ResumeIdentity("nobody"),
                StopIdentity("nobody"),
                ShareIdentity("nobody", "x"),
                UnshareIdentity("nobody"),
                RemoveIdentity("nobody"),
                ShowIdentity("nobody"),
            )
        ],
    ],
)
async def test_what_an_operator_gets_wrong_is_refused_in_words(
    tmp_path: Path, command: IdentityCommand, why: str
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await run(ring, ADD)
        await run(ring, AddIdentity(name="pool", token=TOKEN))
        assert why in await refusal(ring, command)


async def test_a_refused_token_is_not_repeated(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert "s3cret" not in await refusal(ring, AddIdentity(name="a", token="s3cret value"))
        answer = await run_identity_command(ring.book, ADD)
        assert TOKEN not in repr(answer)


async def test_nobody_is_asked_about_who_is_not_there(tmp_path: Path) -> None:
    peer = GitHubPeer()
    async with open_ring(tmp_path / "data") as ring, UpstreamClient({}, transport=peer) as client:
        quotas = Quotas(ring.book, client, traits=lambda: TRAITS, now_s=peer.now)
        answer = await evolve(ring.operations, quotas=quotas).run(ShowSeatUsage("nobody"))
        assert answer == Refused("there is no identity 'nobody'; capi identities list shows their names")
        with pytest.raises(AssertionError):
            await ring.operations.run(ShowSeatUsage())
    assert peer.asked == []
