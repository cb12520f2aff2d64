"""Routes that ask no model: which paths there are, and what is told to whom. Models themselves: in test_app.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, ConnectionState, HTTPScope
from structlog.testing import capture_logs
from trio.testing import MockClock

from capi_core.config import Config
from capi_core.identities import IdentityState
from capi_core.keys import KeyRecord
from capi_trio.demo.github import Call, Trouble
from capi_trio.quotas import SeatUsage
from capi_trio.readings import answer_reading
from capi_trio.request import Request
from capi_trio.seats import Seats
from capi_trio.storage.database import Mutation
from capi_trio.storage.tables import usage_minutes
from capi_trio.storage.usage import UsageBatch
from capi_trio.usage_reports import UsageBy, UsageReport, UsageReports
from tests.capi_trio.storage.helpers import Store, draft, open_store
from tests.capi_trio.test_copilot import CONFIG, NOW, Scene, identity, key
from tests.support.usage_rows import MINUTE, usage_event


class _Told(msgspec.Struct):
    code: str
    message: str


class _Refusal(msgspec.Struct):
    error: _Told


class Answer:
    """What a request for a path was answered."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message["body"]

    @property
    def usage(self) -> SeatUsage:
        assert (self.status, self.headers[b"content-type"]) == (200, b"application/json")
        return msgspec.json.decode(self.body, type=SeatUsage)

    @property
    def refusal(self) -> tuple[int, str]:
        assert self.headers[b"content-type"] == b"application/json"
        return self.status, msgspec.json.decode(self.body, type=_Refusal).error.code


async def nothing() -> ASGIReceiveEvent:
    raise AssertionError("the body was read")


async def get(
    seats: Seats,
    path: bytes = b"/usage",
    rider: KeyRecord | None = None,
    method: str = "GET",
    *,
    query: bytes = b"",
    reports: UsageReports | None = None,
    **headers: str,
) -> Answer:
    answer = Answer()
    scope: HTTPScope = {
        "type": "http",
        "asgi": {},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": ConnectionState({}),
        "extensions": {},
    }
    request = Request(scope, nothing, answer.send, "req_1", 10)
    await answer_reading(request, rider or key(), CONFIG.catalog({}), seats, reports)
    assert answer.headers[b"x-request-id"] == b"req_1"
    return answer


async def test_a_caller_is_told_what_is_left_of_the_seat_that_its_key_rides(autojump_clock: MockClock) -> None:
    async with Scene(identity("ann", owner="Ann"), identity("ben", owner="Ben")).open() as world:
        for _ in range(3):
            await world.ask(key(owner="Ben"))
        usage = (await get(world.seats, rider=key(owner="Ben"))).usage
        assert (usage.identity, usage.plan) == ("ben", "individual")
        assert usage.resets_at is not None
        assert usage.resets_at > NOW * 1000
        premium = usage.quotas[0]
        assert (premium.kind, premium.entitlement, premium.used, premium.remaining) == (
            "premium_interactions", 300, 3, 297,
        )  # fmt: skip
        named = (await get(world.seats, rider=key(owner="Ann", bound="ann"))).usage
        assert (named.identity, named.quotas[0].used) == ("ann", 0)


async def test_github_is_asked_once_a_minute_whoever_asks(autojump_clock: MockClock) -> None:
    async with Scene(identity("pool")).open() as world:
        for owner in ("Ann", "Ben", None):
            assert (await get(world.seats, rider=key(owner=owner))).usage.identity == "pool"
        assert world.peer.github.calls[Call.COPILOT_USER] == 1


async def test_who_may_ride_no_seat_is_told_of_none(autojump_clock: MockClock) -> None:
    records = identity("ann", owner="Ann"), identity("off", owner="Off", state=IdentityState.STOPPED)
    async with Scene(*records).open() as world:
        for rider in (key(), key(owner="Ben"), key(bound="ann"), key(owner="Off")):
            assert (await get(world.seats, rider=rider)).refusal == (403, "no_identity")
        assert world.peer.github.calls[Call.COPILOT_USER] == 0


async def test_a_github_that_does_not_say_is_told_in_the_callers_shape(autojump_clock: MockClock) -> None:
    world = Scene(identity("ann"), identity("lost", owner="Lost"))
    world.book.without_token.add("lost")
    world.peer.github.fail(Call.COPILOT_USER, Trouble.http(429, retry_after=20))
    async with world.open():
        limited = await get(world.seats)
        assert limited.refusal == (503, "usage_unavailable")
        assert limited.headers[b"retry-after"] == b"20"
        assert b"capi identities usage ann" in limited.body
        messages = await get(world.seats, anthropic_version="2023-06-01")
        assert msgspec.json.decode(messages.body, type=dict[str, object])["type"] == "error"
        unreadable = await get(world.seats, rider=key(owner="Lost"))
        assert unreadable.refusal == (503, "identity_unusable")
        assert b"retry-after" not in unreadable.headers


@pytest.mark.parametrize("path", [b"/usage", b"/v1/usage", b"/usage/", b"/v1/copilot/usage", b"/v1"])
async def test_without_identities_there_is_no_such_route(autojump_clock: MockClock, path: bytes) -> None:
    world = Scene(identity("a"), config=Config())
    for method in ("GET", "POST"):
        assert (await get(world.seats, path, method=method)).refusal == (404, "unknown_route")
    without = Seats(world.client, CONFIG, now_s=lambda: 0.0)
    assert (await get(without, path)).refusal == (404, "unknown_route")
    if path != b"/usage":
        world.seats.set_config(CONFIG)
        assert (await get(world.seats, path)).refusal == (404, "unknown_route")


async def test_it_is_only_for_reading(autojump_clock: MockClock) -> None:
    async with Scene(identity("a")).open() as world:
        refused = await get(world.seats, method="POST")
        assert refused.refusal == (405, "method_not_allowed")
        assert refused.headers[b"allow"] == b"GET, HEAD"
        assert (await get(world.seats, method="HEAD")).status == 200
        asking = await get(world.seats, b"/v1/messages")
        assert (asking.status, asking.headers[b"allow"]) == (405, b"POST")


# -- what a key has used --------------------------------------------------------------------------------------------

DAY = 86_400_000
MINE = key().id


@asynccontextmanager
async def used(directory: Path) -> AsyncIterator[tuple[Store, UsageReports]]:
    """A database with requests of this key, today's and older ones, and of another."""
    events = [
        usage_event(1, key_id=MINE),
        usage_event(2, key_id=MINE, model="slow"),
        usage_event(3, key_id=MINE, ts_ms=MINUTE - 2 * DAY),
        usage_event(4, key_id="key_other", model="secret"),
    ]
    async with open_store(directory) as store:
        await store.database.store_usage(UsageBatch("batch", events))
        yield store, UsageReports(store.database, lambda: MINUTE + 30_000)


@pytest.mark.parametrize(
    ("query", "models"),
    [
        (b"", {"fast": 1, "slow": 1}),
        (b"since=7d", {"fast": 2, "slow": 1}),
        (b"since=2026-09-20", {"fast": 1, "slow": 1}),
        (b"since=2026%2d09%2d01&other=1", {"fast": 2, "slow": 1}),
    ],
)
async def test_a_caller_is_told_what_its_own_key_has_used(tmp_path: Path, query: bytes, models: dict[str, int]) -> None:
    """By model, and of nobody else's requests whatever else is asked for."""
    scene = Scene(identity("a"), config=Config())
    async with used(tmp_path / "data") as (_, reports):
        answer = await get(scene.seats, b"/v1/usage", query=query, reports=reports)
    assert (answer.status, answer.headers[b"content-type"]) == (200, b"application/json")
    report = msgspec.json.decode(answer.body, type=UsageReport)
    assert report.by is UsageBy.MODEL
    assert {line.name: line.requests for line in report.lines} == models
    assert report.total.requests == sum(models.values())
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    "query",
    [b"since=", b"since=soon", b"since=0h", b"since=401d", b"since=2999-01-01", b"since=1h&since=2h", b"since=%ff",
     b"since=\xff", b"since=7d%00"],
)  # fmt: skip
async def test_nonsense_is_refused_and_not_told_back(tmp_path: Path, query: bytes) -> None:
    scene = Scene(identity("a"), config=Config())
    async with used(tmp_path / "data") as (_, reports):
        answer = await get(scene.seats, b"/v1/usage", query=query, reports=reports)
    assert answer.refusal == (400, "invalid_since")
    assert b"soon" not in answer.body


async def test_a_database_that_cannot_be_read_is_told_to_the_operator(tmp_path: Path) -> None:
    scene = Scene(identity("a"), config=Config())
    async with used(tmp_path / "data") as (store, reports):
        await store.database.mutate(
            lambda connection: Mutation(
                connection.execute(usage_minutes.update().values(ttft='{"9999":1}')).rowcount, (draft(),)
            )
        )
        with capture_logs() as logs:
            answer = await get(scene.seats, b"/v1/usage", reports=reports)
    assert answer.refusal == (503, "usage_unavailable")
    assert b"minute" not in answer.body
    assert [(line["event"], "is damaged" in line["reason"]) for line in logs] == [("usage_not_read", True)]


async def test_it_takes_no_identities_and_is_only_for_reading(tmp_path: Path) -> None:
    scene = Scene(identity("a"), config=Config())
    async with used(tmp_path / "data") as (_, reports):
        assert (await get(scene.seats, b"/v1/usage", method="HEAD", reports=reports)).status == 200
        assert (await get(scene.seats, b"/v1/usage", method="POST", reports=reports)).refusal[0] == 405
        assert (await get(scene.seats, b"/usage", reports=reports)).refusal == (404, "unknown_route")
        assert (await get(scene.seats, b"/v1/usage/", reports=reports)).refusal == (404, "unknown_route")
