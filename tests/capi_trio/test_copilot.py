"""Copilot's seats: which identity, with a live token, in one of its slots; while identities come, go, pause and stop.

Against the demo provider's GitHub and Copilot in the place of httpx's connections, on virtual time.
"""

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from typing_extensions import override

from capi_core.commands import Operation, SendRequest
from capi_core.config import Config, FanoutConfig, LimitsConfig, UpstreamConfig
from capi_core.headers import find
from capi_core.identities import IdentityRecord, IdentityState
from capi_core.keys import KeyRecord
from capi_trio.access import ANONYMOUS
from capi_trio.copilot import CopilotSeats, client_traits, configured_traits
from capi_trio.demo.answers import Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.github import Call, DemoGitHub, Trouble
from capi_trio.fanout import FanoutWatch
from capi_trio.github.tokens import TokenStatus
from capi_trio.seat import NoSeatError, Seat
from capi_trio.seats import Seats
from capi_trio.storage.errors import IdentityNotFound
from capi_trio.upstream import Secret, UpstreamClient, UpstreamFailedError

NOW: Final = 1_800_000_000.0
BASE: Final = "http://127.0.0.1:4000"
CONFIG: Final = Config(
    upstreams={"gh": UpstreamConfig(kind="copilot", extra_headers={"x-more": "1"})},
    limits=LimitsConfig(max_in_flight_per_identity=2),
)


class Peer(httpx.AsyncBaseTransport):
    """GitHub and Copilot. Answers to models carry the name of the seat, whose token they came with."""

    def __init__(self) -> None:
        self.github = DemoGitHub(base_url=BASE)
        self.asked: list[Request] = []
        self._world = World(lambda: NOW + trio.current_time(), IdCounter(), 0.0)

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = tuple((name.lower(), value) for name, value in request.headers.raw)
        asked = Request(request.method, request.url.path, headers, await request.aread())
        self.asked.append(asked)
        await trio.sleep(0.1)
        answer = self.github.answer(asked, self._world)
        if answer is not None:
            await trio.sleep(answer.delay_s)
            body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
            return httpx.Response(answer.status, headers=[*answer.headers], stream=httpx.ByteStream(body))
        try:
            self.github.admit(asked, self._world.clock())
        except Refused as refused:
            return httpx.Response(refused.problem.status, stream=httpx.ByteStream(b"{}"))
        return httpx.Response(200, stream=httpx.ByteStream(b'{"data":[{"id":"gpt"}]}'))


class Book:
    """Identities in memory."""

    def __init__(self, *records: IdentityRecord) -> None:
        self.records = {record.name: record for record in records}
        self.without_token: set[str] = set()
        self.tokens: dict[str, str] = {}
        self._watchers: list[Callable[[tuple[IdentityRecord, ...]], None]] = []

    def live(self) -> tuple[IdentityRecord, ...]:
        return tuple(self.records[name] for name in sorted(self.records))

    async def token(self, name: str) -> Secret:
        await trio.lowlevel.checkpoint()
        if name in self.without_token:
            raise IdentityNotFound("no token")
        return Secret(self.tokens.get(name, f"ghu_{name}0000000000"))

    def watch(self, watcher: Callable[[tuple[IdentityRecord, ...]], None]) -> None:
        self._watchers.append(watcher)
        watcher(self.live())

    def put(self, *records: IdentityRecord, drop: str | None = None) -> None:
        self.records |= {record.name: record for record in records}
        self.records.pop(drop or "", None)
        for watcher in self._watchers:
            watcher(self.live())


def identity(
    name: str,
    owner: str | None = None,
    *,
    state: IdentityState = IdentityState.ACTIVE,
    reason: str | None = None,
    cap: int | None = None,
) -> IdentityRecord:
    return IdentityRecord(
        id=f"idn_{name}",
        name=name,
        host=BASE,
        owner=owner,
        state=state,
        state_reason=reason,
        max_in_flight=cap,
        created_at=0,
        updated_at=0,
    )


def key(name: str = "k", owner: str | None = None, bound: str | None = None) -> KeyRecord:
    return attrs.evolve(ANONYMOUS, id=name, owner=owner, identity=bound)


def request(words: str = "hi") -> SendRequest:
    body = json.dumps({"messages": [{"role": "user", "content": words}]}).encode()
    return SendRequest("gh", Operation.CHAT, ((b"x-initiator", b"user"),), body)


class Scene:
    """All of it."""

    def __init__(self, *records: IdentityRecord, config: Config = CONFIG) -> None:
        self.peer = Peer()
        for record in records:
            self.peer.github.link(f"ghu_{record.name}0000000000", record.name)
        self.book = Book(*records)
        self.client = UpstreamClient({}, transport=self.peer)
        self.linked = 0
        self.fanout = FanoutWatch(
            self.book.live,
            now_ms=lambda: round((NOW + trio.current_time()) * 1000),
            random_bytes=random.Random(0).randbytes,
        )
        self.copilot = CopilotSeats(
            self.book,
            self.client,
            self.fanout,
            now_s=lambda: NOW + trio.current_time(),
            fraction=lambda: 0.5,
            on_linked=self.count_linked,
        )
        self.seats = Seats(self.client, config, now_s=lambda: NOW + trio.current_time(), copilot=self.copilot)

    def count_linked(self) -> None:
        self.linked += 1

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Scene"]:
        async with self.client, trio.open_nursery() as nursery:
            nursery.start_soon(self.copilot.run)
            nursery.start_soon(self.fanout.run)
            await wait_all_tasks_blocked()
            yield self
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def seat(self, rider: KeyRecord | None = None, words: str = "hi") -> AsyncIterator[Seat]:
        async with self.seats.take(rider or key(), request(words)) as seat:
            yield seat

    async def ask(self, rider: KeyRecord | None = None, words: str = "hi") -> tuple[int, str | None]:
        """The status, and whose seat it was; as the relay asks."""
        async with self.seat(rider, words) as seat:
            while True:
                async with self.client.request(request(words), seat.target) as response:
                    status = response.status
                    again = status == 401 and seat.may_renew()
                if not again:
                    return status, seat.identity
                await seat.renew()


async def test_a_request_rides_its_owners_seat_and_says_who_it_is(autojump_clock: MockClock) -> None:
    async with Scene(identity("ann", owner="Ann"), identity("ben", owner="Ben"), identity("pool")).open() as world:
        assert await world.ask(key(owner="Ann")) == (200, "ann")
        assert await world.ask(key(owner="Ben")) == (200, "ben")
        assert await world.ask(key(owner="Cid")) == (200, "pool")
        assert await world.ask(key(bound="pool")) == (200, "pool")
        asked = world.peer.asked[-1]
    assert find(asked.headers, b"copilot-integration-id") == b"vscode-chat"
    assert (find(asked.headers, b"editor-version") or b"").startswith(b"capi/")
    assert (find(asked.headers, b"user-agent") or b"").startswith(b"capi/")
    assert find(asked.headers, b"x-more") == b"1"
    assert find(asked.headers, b"x-initiator") == b"user"
    assert asked.path == "/chat/completions"


async def test_messages_have_a_version_in_their_path(autojump_clock: MockClock) -> None:
    """Copilot's URLs have none but for these (wire.md 1.8)."""
    async with Scene(identity("a")).open() as world, world.seat() as seat:
        paths = {operation: seat.target.path(operation) for operation in Operation}
    assert paths[Operation.MESSAGES] == "/v1/messages"
    assert paths[Operation.CHAT] == "/chat/completions"
    assert paths[Operation.RESPONSES] == "/responses"


async def test_nobody_rides_a_seat_that_is_not_theirs(autojump_clock: MockClock) -> None:
    async with Scene(identity("ann", owner="Ann")).open() as world:
        for rider in (key(), key(owner="Ben"), key(bound="ann"), key(bound="gone")):
            with pytest.raises(NoSeatError) as refused:
                await world.ask(rider)
            assert (refused.value.problem.status, refused.value.problem.code) == (403, "no_identity")


async def test_a_conversation_stays_where_it_began_and_others_spread(autojump_clock: MockClock) -> None:
    async with Scene(identity("a"), identity("b")).open() as world:
        async with world.seat(words="first") as first:
            assert first.identity == "a"
            async with world.seat(words="second") as second:
                assert second.identity == "b"
                async with world.seat(words="second") as again:
                    assert again.identity == "b"
        assert await world.ask(words="second") == (200, "b")
        assert await world.ask(words="third") == (200, "a")


@pytest.mark.parametrize("trouble", ["no-file", "revoked", "paused"])
async def test_a_seat_that_cannot_serve_draws_nothing_from_one_that_can(
    autojump_clock: MockClock, trouble: str
) -> None:
    """Also no conversation that began on it; and it has its share again when it is well."""
    world = Scene(identity("a"), identity("b"))
    if trouble == "no-file":
        world.book.without_token.add("a")
    elif trouble == "revoked":
        world.peer.github.revoke("ghu_a0000000000")
    async with world.open():
        await trio.sleep(5)
        if trouble == "paused":
            async with world.seat(words="0") as seat:
                assert seat.identity == "a"
                seat.heard(429, ((b"retry-after", b"600"),))
        for number in range(6):
            assert await world.ask(words=str(number)) == (200, "b")


async def test_each_identity_has_its_cap(autojump_clock: MockClock) -> None:
    records = identity("a", owner="Ann"), identity("b", owner="Ben", cap=1)
    async with Scene(*records).open() as world:
        async with world.seat(key("1", "Ann")), world.seat(key("2", "Ann")):
            with trio.move_on_after(5) as waiting:
                await world.ask(key("3", "Ann"))
            assert waiting.cancelled_caught
        async with world.seat(key("4", "Ben")):
            with trio.move_on_after(5) as waiting:
                await world.ask(key("5", "Ben"))
            assert waiting.cancelled_caught
            world.book.put(identity("b", owner="Ben", cap=2))
            await wait_all_tasks_blocked()
            assert await world.ask(key("5", "Ben")) == (200, "b")


# -- tokens --------------------------------------------------------------------------------------------------------


async def test_a_token_that_died_early_is_renewed_once_and_the_request_sent_again(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        await world.ask()
        await trio.sleep(120)
        world.peer.github.expire_copilot_tokens()
        assert await world.ask() == (200, "a")
        assert world.peer.github.calls[Call.COPILOT_TOKEN] == 2


async def test_a_hundred_requests_at_expiry_are_one_exchange(autojump_clock: MockClock) -> None:
    config = Config(upstreams=CONFIG.upstreams, limits=LimitsConfig(max_in_flight_per_identity=1000))
    async with Scene(identity("a"), config=config).open() as world:
        await world.ask()
        await trio.sleep(120)
        world.peer.github.expire_copilot_tokens()
        answers: list[tuple[int, str | None]] = []

        async def ask() -> None:
            answers.append(await world.ask())

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert answers == [(200, "a")] * 100
        assert world.peer.github.calls[Call.COPILOT_TOKEN] == 2


async def test_no_request_fails_while_a_token_expires_fifty_times(autojump_clock: MockClock) -> None:
    world = Scene(identity("a"))
    world.peer.github.token_life_s = 60
    world.peer.github.entitlement = 10_000
    async with world.open():
        while world.peer.github.calls[Call.COPILOT_TOKEN] < 50:
            assert await world.ask() == (200, "a")
            await trio.sleep(2)


async def test_a_seat_without_a_live_token_is_told_of(autojump_clock: MockClock) -> None:
    world = Scene(identity("a"), identity("b", owner="Ben"))
    world.peer.github.fail(Call.COPILOT_TOKEN, Trouble.no_copilot(), 1000)
    world.book.without_token.add("b")
    async with world.open():
        for rider in (key(), key(owner="Ben")):
            with pytest.raises(NoSeatError) as refused:
                await world.ask(rider)
            assert (refused.value.problem.status, refused.value.problem.code) == (503, "identity_unusable")
        with pytest.raises(UpstreamFailedError):
            await world.seats.list_models("gh")
        token, gate = world.copilot.snapshots()["a"]
        assert token is not None
        assert (token.status, gate.in_flight) == (TokenStatus.REFUSED, {})
        assert world.copilot.snapshots()["b"][0] is None
        world.book.without_token.clear()
        world.peer.github.heal(Call.COPILOT_TOKEN)
        await trio.sleep(61)
        assert await world.ask(key(owner="Ben")) == (200, "b")


async def test_an_identity_that_has_just_come_has_no_token_yet(autojump_clock: MockClock) -> None:
    async with Scene().open() as world:
        world.peer.github.link("ghu_new0000000000", "new")
        world.book.put(identity("new"))
        with pytest.raises(NoSeatError) as refused:
            await world.ask()
        assert refused.value.problem.code == "identity_unusable"
        await wait_all_tasks_blocked()
        assert await world.ask() == (200, "new")


async def test_models_are_listed_by_any_seat_that_can(autojump_clock: MockClock) -> None:
    stopped = identity("a", state=IdentityState.STOPPED)
    async with Scene(stopped, identity("b", owner="Ben")).open() as world:
        assert b"gpt" in await world.seats.list_models("gh")
        secrets = world.seats.secrets
    assert b"ghu_b0000000000" in secrets
    assert any(secret.startswith(b"tid=") for secret in secrets)


# -- how widely a seat is used -----------------------------------------------------------------------------------


async def test_who_rides_a_seat_is_metered_from_its_taking_to_its_end(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        async with (
            world.seats.take(key("1", "Ann"), request(), address="192.0.2.1"),
            world.seats.take(key("2", "Ben"), request(), address="2001:db8::1"),
        ):
            with trio.move_on_after(5):
                await world.ask(key("3", "Cid"))
        with pytest.raises(ZeroDivisionError):
            async with world.seats.take(key("2", "Ben"), request()):
                raise ZeroDivisionError
        assert await world.ask(key("1", "Ann")) == (200, "a")
        (report,) = world.fanout.reports("a")
    assert (report.owners.count, report.keys.count) == (2, 2), "who never had a slot does not count"
    assert report.addresses.count == 3, "one of them is not known"
    assert (report.requests, report.peak_in_flight) == (4, 2)


async def test_a_request_that_finds_no_token_is_no_ride(autojump_clock: MockClock) -> None:
    world = Scene(identity("a"))
    world.peer.github.fail(Call.COPILOT_TOKEN, Trouble.no_copilot(), None)
    async with world.open():
        with pytest.raises(NoSeatError):
            await world.ask()
        assert world.fanout.reports("a") == ()


async def test_the_thresholds_are_those_of_the_configuration_of_the_moment(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        for number in range(3):
            await world.ask(key(str(number)))
        assert world.fanout.warnings() == ()
        limits = LimitsConfig(fanout=FanoutConfig(keys=2))
        world.seats.set_config(Config(upstreams=CONFIG.upstreams, limits=limits))
        (warning,) = world.fanout.warnings()
        assert warning.report.identity == "a"


# -- what is left --------------------------------------------------------------------------------------------------


async def test_usage_is_that_of_the_seat_with_the_least_to_do(autojump_clock: MockClock) -> None:
    async with Scene(identity("a"), identity("b")).open() as world:
        assert (await world.seats.usage(key())).identity == "a"
        async with world.seat():
            assert (await world.seats.usage(key())).identity == "b"
        asked = [one for one in world.peer.asked if one.path == Call.COPILOT_USER.value[1]]
    assert len(asked) == 2
    assert {find(one.headers, b"editor-version") for one in asked} == {
        client_traits(CONFIG.upstreams["gh"]).user_agent.encode()
    }


async def test_a_seat_of_which_nothing_is_told_is_refused_with_the_operators_next_step(
    autojump_clock: MockClock,
) -> None:
    async with Scene(identity("a")).open() as world:
        world.peer.github.fail(Call.COPILOT_USER, Trouble.http(503))
        with pytest.raises(NoSeatError) as refused:
            await world.seats.usage(key())
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.retry_after_s) == (503, "usage_unavailable", None)
    assert "capi identities usage a" in problem.message


# -- the operator's hand -------------------------------------------------------------------------------------------


async def test_an_identity_that_is_paused_serves_nobody_until_it_goes_on(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        await world.ask()
        world.book.put(identity("a", state=IdentityState.PAUSED))
        await wait_all_tasks_blocked()
        for _ in range(20):
            with pytest.raises(NoSeatError) as refused:
                await world.ask()
            assert refused.value.problem.code == "identity_paused"
            await trio.sleep(50)
        world.book.put(identity("a"))
        await wait_all_tasks_blocked()
        assert await world.ask() == (200, "a")


async def test_an_upstream_that_was_away_still_counts_what_is_in_flight(autojump_clock: MockClock) -> None:
    """An edit of the configuration that is taken back must not let more through than the cap; who waits is told."""
    async with Scene(identity("a", cap=1)).open() as world:
        async with world.seat(), trio.open_nursery() as nursery:
            refused: list[str] = []

            async def wait() -> None:
                try:
                    await world.ask(key("waits"))
                except NoSeatError as error:
                    refused.append(error.problem.code)

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            world.seats.set_config(Config())
            await wait_all_tasks_blocked()
            world.seats.set_config(CONFIG)
            await wait_all_tasks_blocked()
            with trio.move_on_after(30) as waiting:
                await world.ask(key("b"))
            assert waiting.cancelled_caught
        assert await world.ask(key("b")) == (200, "a")
    assert refused == ["identity_stopped"]


async def test_the_kill_switch_refuses_all_and_lets_what_runs_finish(autojump_clock: MockClock) -> None:
    async with Scene(identity("a", owner="Ann")).open() as world:
        async with world.seat(key(owner="Ann")):
            world.book.put(identity("a", owner="Ann", state=IdentityState.STOPPED, reason="abuse"))
            await wait_all_tasks_blocked()
            with pytest.raises(NoSeatError) as refused:
                await world.ask(key(owner="Ann"))
            assert refused.value.problem.code == "no_identity"
            asked = world.peer.github.calls[Call.COPILOT_TOKEN]
            await trio.sleep(5000)
            assert world.peer.github.calls[Call.COPILOT_TOKEN] == asked, "its token is not kept alive either"
        world.book.put(identity("a", owner="Ann"))
        await wait_all_tasks_blocked()
        assert await world.ask(key(owner="Ann")) == (200, "a")


@pytest.mark.parametrize("end", ["stopped", "removed", "linked-again", "upstream-taken-out"])
async def test_a_credential_is_masked_for_as_long_as_a_request_runs_with_it(
    autojump_clock: MockClock, end: str
) -> None:
    """What the upstream answers may hold it, whatever has become of the seat since."""
    async with Scene(identity("a")).open() as world:
        async with world.seat() as seat:
            token = (find(seat.target.headers, b"authorization") or b"").split()[-1]
            assert token in world.seats.secrets
            match end:
                case "stopped":
                    world.book.put(identity("a", state=IdentityState.STOPPED))
                case "removed":
                    world.book.put(drop="a")
                case "linked-again":
                    world.peer.github.link("ghu_again00000000", "a")
                    world.book.tokens["a"] = "ghu_again00000000"
                    world.book.put(attrs.evolve(identity("a"), updated_at=1))
                case _:
                    world.seats.set_config(Config())
            await trio.sleep(60)
            assert token in world.seats.secrets
        assert token not in world.seats.secrets


async def test_an_upstream_that_is_taken_out_just_before_it_is_asked_is_no_fault(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world, world.seat() as seat:
        world.copilot.set_config(Config())
        with pytest.raises(NoSeatError) as refused:
            await seat.renew()
        assert refused.value.problem.code == "identity_unusable"


async def test_identities_come_and_go_while_it_runs(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        world.peer.github.link("ghu_new0000000000", "new")
        world.book.put(identity("new", owner="Nora"))
        await wait_all_tasks_blocked()
        assert await world.ask(key(owner="Nora")) == (200, "new")
        assert world.linked == 2, "there may be other models now"
        world.book.put(drop="a")
        await wait_all_tasks_blocked()
        assert list(world.copilot.snapshots()) == ["new"]


async def test_an_identity_that_is_linked_again_rides_its_new_token(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        await world.ask()
        world.peer.github.revoke("ghu_a0000000000")
        world.book.tokens["a"] = "ghu_again0000000000"
        world.peer.github.link("ghu_again0000000000", "a")
        world.book.put(identity("a", cap=3))
        await wait_all_tasks_blocked()
        assert await world.ask() == (200, "a")
        world.peer.github.expire_copilot_tokens()
        await trio.sleep(120)
        assert await world.ask() == (200, "a")


async def test_without_an_upstream_of_that_kind_github_is_left_alone(autojump_clock: MockClock) -> None:
    world = Scene(identity("a"), config=Config())
    async with world.open():
        await trio.sleep(500)
        assert world.peer.asked == []
        world.seats.set_config(CONFIG)
        await wait_all_tasks_blocked()
        assert await world.ask() == (200, "a")
        world.seats.set_config(Config())
        await wait_all_tasks_blocked()
        assert world.copilot.snapshots() == {}


def test_how_the_gateway_presents_itself_is_the_operators_choice() -> None:
    chosen = UpstreamConfig(kind="copilot", editor_version="vscode/1.99", integration_id="x", extra_headers={"a": "b"})
    traits = client_traits(chosen)
    assert (traits.editor_version, traits.integration_id, traits.extra) == ("vscode/1.99", "x", ((b"a", b"b"),))
    assert client_traits(UpstreamConfig(kind="copilot")).editor_version.startswith("capi/")
    assert configured_traits(Config(upstreams={"gh": chosen})) == traits
    for without in (None, Config(), Config(upstreams={"up": UpstreamConfig(kind="demo")})):
        assert configured_traits(without).editor_version.startswith("capi/")
