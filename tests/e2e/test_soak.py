"""Half an hour in the life of a gateway in which nothing stays as it is, on trio's clock.

Clients of several owners, over HTTP and WebSocket, come, wait, read and leave whenever they like. Meanwhile tokens end
early and in time, GitHub fails for minutes, upstreams limit, break and hang, the operator pauses, stops, shares, adds,
removes and resizes identities and edits the configuration. Whatever happens, the books agree in the end: every request
has one account, no slot is lost, nothing is open, and no request outlived its client.
"""

import gc
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import attrs
import h11
import msgspec
import pytest
import trio
from attrs import define, field
from structlog.testing import capture_logs
from trio.testing import MockClock
from trio_websocket import wrap_client_stream

from capi_core.commands import Outcome
from capi_core.config import Config, FallbackConfig, LimitsConfig, ModelConfig, UpstreamConfig
from capi_core.framing import FramingLimits
from capi_core.identities import IdentityRecord, IdentityState
from capi_core.keys import KeyRecord
from capi_core.protocols.kinds import Protocol
from capi_trio.access import ANONYMOUS
from capi_trio.app import Gateway, Snapshot
from capi_trio.copilot import CopilotSeats
from capi_trio.demo.github import Call, Trouble
from capi_trio.fanout import FanoutWatch
from capi_trio.perimeter import Perimeter
from capi_trio.request import SESSION_PATHS
from capi_trio.seats import Seats
from capi_trio.slots import Slots
from capi_trio.upstream import UpstreamClient, UpstreamTarget
from tests.support.asgi_harness import ResponseStream
from tests.support.guarded_harness import Guarded, context, request_ids, serve
from tests.support.process import FAULT_EVENTS
from tests.support.scale import FULL, tell
from tests.support.soak import BASE, NOW, KeyDoor, Outside, Shelf

LIFE_S: Final = 1800.0 if FULL else 600.0
SEEDS: Final = range(8) if FULL else range(1)
CLIENTS: Final = 14
LEFT_WITHIN_S: Final = 0.25
LAST_BYTE_S: Final = 1.0
"""How long an upstream may take to end its response after its last event (capi_trio/relay.py)."""
PATHS: Final = {
    "/v1/chat/completions": '"messages":[{"role":"user","content":"%s"}]',
    "/v1/messages": '"max_tokens":99,"messages":[{"role":"user","content":"%s"}]',
    "/v1/responses": '"input":"%s","store":false',
}
LISTS: Final = {"gh": {"seat": b'{"id":"seat"}'}, "metered": {"m": b'{"id":"m"}'}, "free": {"f": b'{"id":"f"}'}}
MODELS: Final = {
    "seat": ModelConfig(upstream="seat", via="gh"),
    "metered": ModelConfig(upstream="m", via="metered"),
    "free": ModelConfig(upstream="f", via="free"),
    "any": ModelConfig(
        upstream="m",
        via="metered",
        fallbacks=(FallbackConfig(upstream="seat", via="gh"), FallbackConfig(upstream="f", via="free")),
    ),
}
OWNERS: Final = ("Ann", "Ben", None)


def key(name: str, owner: str | None, bound: str | None = None) -> KeyRecord:
    return attrs.evolve(ANONYMOUS, id=name, owner=owner, identity=bound)


KEYS: Final = {
    f"sk-{name}": key(name, owner, bound)
    for name, owner, bound in (
        ("ann", "Ann", None),
        ("ann-too", "Ann", None),
        ("ben", "Ben", None),
        ("ben-bound", "Ben", "ben-0"),
        ("cid", "Cid", None),
        ("nobody", None, None),
    )
}


def config(*, cap: int | None = 2, max_queued: int = 4, queue_timeout_s: float = 8.0, without: str = "") -> Config:
    """`without`: an upstream that is not in it, nor what leads there."""
    gives_up = UpstreamConfig(kind="openai", head_timeout_s=5.0, idle_timeout_s=5.0, total_timeout_s=40.0)
    use = partial(msgspec.structs.replace, gives_up)
    upstreams = {
        "gh": use(kind="copilot", protocols=(Protocol.CHAT,)),
        "metered": use(base_url="http://metered.test/v1", max_in_flight=cap),
        "free": use(base_url="http://free.test/v1"),
    }
    limits = LimitsConfig(
        max_in_flight_per_identity=2,
        max_queued_per_identity=max_queued,
        queue_timeout_s=queue_timeout_s,
        keep_alive_s=3.0,
    )
    models = {
        name: msgspec.structs.replace(model, fallbacks=tuple(one for one in model.fallbacks if one.via != without))
        for name, model in MODELS.items()
        if model.via != without
    }
    upstreams.pop(without, None)
    return Config(upstreams=upstreams, models=models, limits=limits)


@define(eq=False)
class Request:
    """One request as its client saw it. `sent`: wholly."""

    number: int
    key: str
    websocket: bool = False
    sent: bool = False
    left_at: float | None = None
    ended_at: float | None = None
    status: int | None = None
    id: str | None = None


@define(eq=False)
class Soak:
    """The gateway, what is around it, and what its clients remember."""

    seed: int
    outside: Outside
    shelf: Shelf = field(factory=Shelf)
    requests: list[Request] = field(factory=list)
    acts: Counter[str] = field(factory=Counter)
    config: Config = field(factory=config)
    seats: Seats = field(init=False)
    gateway: Gateway = field(init=False)
    copilot: CopilotSeats = field(init=False)
    fanout: FanoutWatch = field(init=False)
    asking: UpstreamClient = field(init=False)

    def __attrs_post_init__(self) -> None:
        def now_s() -> float:
            return NOW + trio.current_time()

        self.asking = UpstreamClient({}, transport=self.outside)
        rng = random.Random(f"{self.seed} jitter")
        self.fanout = FanoutWatch(self.shelf.live, now_ms=lambda: int(now_s() * 1000), random_bytes=rng.randbytes)
        self.copilot = CopilotSeats(self.shelf, self.asking, self.fanout, now_s=now_s, fraction=rng.random)
        self.seats = Seats(self.asking, self.config, now_s=now_s, copilot=self.copilot)
        self.gateway = Gateway(
            snapshot=self.snapshot,
            client=self.asking,
            seats=self.seats,
            door=KeyDoor(KEYS),
            perimeter=Perimeter(),
            ready=lambda: True,
            sealed=lambda: False,
            new_request_id=request_ids(),
            now_ms=lambda: int(now_s() * 1000),
            max_body_bytes=100_000,
        )
        self.use(self.config)

    async def snapshot(self) -> Snapshot:
        return Snapshot(self.config, self.config.catalog({name: LISTS[name] for name in self.config.upstreams}))

    def use(self, new: Config) -> None:
        """As a reload does."""
        urls = {name: f"http://{name}.test/v1" for name in new.upstreams if name != "gh"}
        self.asking.set_targets({name: UpstreamTarget(name, url) for name, url in urls.items()})
        self.seats.set_config(new)
        self.config = new
        cap = new.upstreams["metered"].max_in_flight
        self.outside.caps.set("metered", math.inf if cap is None else cap)

    def put(self, record: IdentityRecord) -> None:
        self.outside.caps.set(f"gh:{record.login}", record.max_in_flight or 2)
        self.shelf.put(record)

    def link(self, name: str, owner: str | None, cap: int | None = None) -> None:
        """A new identity: of an account that no other ever had, so that the outside can tell them apart."""
        self.acts["linked"] += 1
        login = f"{name}.{self.acts['linked']}"
        self.shelf.tokens[name] = token = f"ghu_{login.replace('.', '')}00000000000000"
        self.outside.link(token, login)
        record = IdentityRecord(
            id=f"idn_{login}",
            name=name,
            host=BASE,
            owner=owner,
            login=login,
            max_in_flight=cap,
            created_at=0,
            updated_at=0,
        )
        self.put(record)


# -- the clients ------------------------------------------------------------------------------------------------


class Client:
    """Somebody who opens connections, asks a few times on each, and now and then leaves in the middle."""

    def __init__(self, soak: Soak, number: int, *, websocket: bool) -> None:
        self._soak = soak
        self._rng = random.Random(f"{soak.seed} client {number}")
        self._websocket = websocket
        self._framing = FramingLimits(body=100_000, websockets=SESSION_PATHS)

    async def run(self, until: float) -> None:
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                await trio.sleep(self._rng.expovariate(1 / 3))
                guarded = serve(nursery, self._soak.gateway, context(framing=self._framing))
                async with guarded.end:
                    await (self._talk_frames if self._websocket else self._talk)(guarded)
                with trio.fail_after(5):
                    await guarded.over.wait()

    def _request(self) -> Request:
        name = self._rng.choice(sorted(KEYS))
        request = Request(len(self._soak.requests) + 1, name, self._websocket)
        self._soak.requests.append(request)
        return request

    def _patience(self) -> float:
        """How long it waits for the whole answer. Two of five leave before."""
        return self._rng.choice((0.0, self._rng.uniform(0, 3), self._rng.uniform(0, 15), 200.0, 200.0))

    async def _talk(self, guarded: Guarded) -> None:
        for _ in range(self._rng.randint(1, 4)):
            request = self._request()
            path = self._rng.choice(list(PATHS))
            text = PATHS[path] % f"ask-{request.number:06}"
            stream = self._rng.choice(("true", "true", "false"))
            body = f'{{"model":"{self._rng.choice(list(MODELS))}","stream":{stream},{text}}}'.encode()
            fields = [("authorization", f"Bearer {request.key}"), ("content-type", "application/json")]
            if self._rng.random() < 0.03:
                head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {request.key}\r\n"
                await guarded.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:-20])
                return
            await guarded.client.send_request("POST", path, body, fields)
            request.sent = True
            with trio.move_on_after(self._patience()) as waiting:
                head_, complete = await self._answer(guarded)
                request.status, request.id = head_.status, head_.headers["x-request-id"]
                assert complete, f"the answer to {request} was cut"
                request.ended_at = trio.current_time()
            if waiting.cancelled_caught:
                assert waiting.deadline < trio.current_time() + 1e-6
                request.left_at = trio.current_time()
                return
            if self._rng.random() < 0.3:
                await trio.sleep(self._rng.uniform(0, 2))

    async def _answer(self, guarded: Guarded) -> tuple[ResponseStream, bool]:
        event = await guarded.client.next_event()
        assert isinstance(event, h11.Response)
        response = ResponseStream(guarded.client, event)
        return response, (await response.read()).complete

    async def _talk_frames(self, guarded: Guarded) -> None:
        name = self._rng.choice(sorted(KEYS))
        async with trio.open_nursery() as nursery:
            opening = wrap_client_stream(
                nursery,
                guarded.end,  # type: ignore[arg-type]  # the library asks for a socket's stream; it uses what any has
                "localhost",
                "/v1/responses",
                extra_headers=[(b"authorization", f"Bearer {name}".encode())],
            )
            connection = await opening
            for _ in range(self._rng.randint(1, 4)):
                request = self._request()
                request.key = name
                model = self._rng.choice(list(MODELS))
                document = {"type": "response.create", "model": model, "input": f"ask-{request.number:06}"}
                await connection.send_message(msgspec.json.encode({**document, "store": False}).decode())
                request.sent = True
                with trio.move_on_after(self._patience()) as waiting:
                    while not self._is_last(await connection.get_message()):
                        pass
                    request.ended_at = trio.current_time()
                if waiting.cancelled_caught:
                    request.left_at = trio.current_time()
                    break
            await guarded.end.aclose()
            nursery.cancel_scope.cancel()

    @staticmethod
    def _is_last(frame: str | bytes) -> bool:
        kind = msgspec.json.decode(frame, type=dict[str, object])["type"]
        return kind in {"response.completed", "response.incomplete", "response.failed", "error"}


# -- what changes -----------------------------------------------------------------------------------------------


class Operator:
    """Everybody else's hand: the operator's, GitHub's and fate's."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._rng = random.Random(f"{soak.seed} operator")
        self._acts: Mapping[str, Callable[[], None]] = {
            act.__name__.strip("_"): act
            for act in (
                self._pause,
                self._resume,
                self._resume,
                self._stop,
                self._share,
                self._resize,
                self._remove,
                self._add,
                self._relink,
                self._reload,
                self._expire,
                self._break_github,
                self._heal_github,
            )
        }

    async def run(self) -> None:
        while True:
            await trio.sleep(self._rng.uniform(1, 12))
            name = self._rng.choice(list(self._acts))
            self._acts[name]()
            self._soak.acts[name] += 1

    def _any(self) -> IdentityRecord:
        return self._rng.choice(self._soak.shelf.live())

    def _set(self, state: IdentityState) -> None:
        self._soak.put(attrs.evolve(self._any(), state=state))

    def _pause(self) -> None:
        self._set(IdentityState.PAUSED)

    def _resume(self) -> None:
        for record in self._soak.shelf.live():
            self._soak.put(attrs.evolve(record, state=IdentityState.ACTIVE))

    def _stop(self) -> None:
        self._set(IdentityState.STOPPED)

    def _share(self) -> None:
        record = self._any()
        self._soak.put(attrs.evolve(record, shared=not record.shared and record.owner is not None))

    def _resize(self) -> None:
        self._soak.put(attrs.evolve(self._any(), max_in_flight=self._rng.choice((None, 1, 2, 3))))

    def _remove(self) -> None:
        if len(self._soak.shelf.records) > 2:
            self._soak.shelf.drop(self._any().name)

    def _add(self) -> None:
        if len(self._soak.shelf.records) < 6:
            owner = self._rng.choice(OWNERS)
            names = [f"{(owner or 'pool').lower()}-{number}" for number in range(3)]
            free = [name for name in names if name not in self._soak.shelf.records]
            if free:
                self._soak.link(free[0], owner, self._rng.choice((None, 1, 3)))

    def _relink(self) -> None:
        """Another token of the same account."""
        record = self._any()
        token = f"ghu_{self._rng.getrandbits(96):024x}"
        self._soak.outside.link(token, str(record.login))
        self._soak.shelf.tokens[record.name] = token
        self._soak.put(attrs.evolve(record, updated_at=record.updated_at + 1))

    def _reload(self) -> None:
        rng = self._rng
        caps = (1, 2, 3, None)
        new = config(
            cap=rng.choice(caps),
            max_queued=rng.randint(0, 8),
            queue_timeout_s=rng.uniform(1, 15),
            without=rng.choice(("", "", "free", "gh")),
        )
        self._soak.use(new)

    def _expire(self) -> None:
        self._soak.outside.github.expire_copilot_tokens()

    def _break_github(self) -> None:
        troubles = (
            Trouble.http(401),
            Trouble.http(429, 5),
            Trouble.http(503),
            Trouble.no_copilot(),
            Trouble.garbage(),
            Trouble.stall(),
        )
        self._soak.outside.github.fail(Call.COPILOT_TOKEN, self._rng.choice(troubles), self._rng.choice((1, 5, None)))

    def _heal_github(self) -> None:
        self._soak.outside.github.heal(Call.COPILOT_TOKEN)


# -- the books --------------------------------------------------------------------------------------------------


def judge(soak: Soak, accounts: Sequence[Mapping[str, object]]) -> None:
    """Everything that has to be true in the end."""
    assert soak.outside.faults == []
    assert {str(line["outcome"]) for line in accounts} <= {outcome.value for outcome in Outcome}
    assert not [line for line in accounts if line["outcome"] == Outcome.INTERNAL_ERROR.value]
    ids = Counter(line["request_id"] for line in accounts)
    assert set(ids.values()) == {1}
    by_id = {line["request_id"]: line for line in accounts}
    for request in soak.requests:
        if request.id is not None:
            assert by_id[request.id]["status"] == request.status
    for transport in ("http", "websocket"):
        for name, key in KEYS.items():
            mine = [one for one in soak.requests if one.key == name and one.websocket == (transport == "websocket")]
            told = sum(line["key_id"] == key.id and line["transport"] == transport for line in accounts)
            sent, ended = sum(one.sent for one in mine), sum(one.ended_at is not None for one in mine)
            # A frame whose sender leaves in the same instant may never have become a request.
            assert told == sent if transport == "http" else ended <= told <= sent
    judge_times(soak)


def judge_times(soak: Soak) -> None:
    """No request outlived its client, and none began after it."""
    requests = {request.number: request for request in soak.requests}
    for asked in soak.outside.asked:
        request = requests[asked.number]
        assert request.sent
        assert asked.closed_at is not None
        end = request.left_at if request.left_at is not None else request.ended_at
        assert end is not None
        late = LEFT_WITHIN_S + (0 if request.left_at is not None else LAST_BYTE_S)
        assert asked.began <= end + LEFT_WITHIN_S, f"{asked} began after {request}"
        assert asked.closed_at <= end + late, f"{asked} outlived {request}"


@pytest.mark.parametrize("seed", SEEDS)
async def test_in_the_end_the_books_agree(autojump_clock: MockClock, seed: int) -> None:
    """Zero slots, zero waiters, zero open answers; one account for each request; no cap was ever passed."""
    soak = Soak(seed, Outside(seed))
    soak.outside.github.token_life_s = 90
    before = all_slots()
    for name, owner in (("ann-0", "Ann"), ("ann-1", "Ann"), ("ben-0", "Ben"), ("pool-0", None)):
        soak.link(name, owner)
    soak.outside.caps.set("free", math.inf)
    with capture_logs() as logs:
        async with soak.asking, trio.open_nursery() as background:
            background.start_soon(soak.copilot.run)
            background.start_soon(soak.fanout.run)
            background.start_soon(Operator(soak).run)
            async with trio.open_nursery() as clients:
                for number in range(CLIENTS):
                    clients.start_soon(Client(soak, number, websocket=number % 4 == 3).run, LIFE_S)
            assert soak.gateway.running == 0
            mine = [slots for slots in all_slots() if slots not in before]
            assert [(slots.in_flight, slots.queued) for slots in mine] == [(0, 0)] * len(mine)
            background.cancel_scope.cancel()
    assert sum(soak.outside.in_flight.values()) == 0
    accounts = [dict(line) for line in logs if line["event"] == "exchange"]
    failed = [line for line in logs if line["event"] in FAULT_EVENTS]
    assert failed == []
    judge(soak, accounts)
    outcomes = Counter(str(line["outcome"]) for line in accounts)
    left = sum(request.left_at is not None for request in soak.requests)
    tell(
        f"soak, seed {seed}: {LIFE_S:.0f} s, {len(soak.requests)} requests, {left} of their clients left, "
        f"{len(soak.outside.asked)} asked upstream, {soak.outside.unauthorized} with a dead token, "
        f"{sum(soak.acts.values())} changes; {dict(outcomes.most_common())}"
    )
    assert len(outcomes) >= 6, "hardly anything went wrong: nothing was tested"


def all_slots() -> list[Slots]:
    """Every gate that is alive, also those of identities that are gone."""
    return [found for found in gc.get_objects() if isinstance(found, Slots)]
