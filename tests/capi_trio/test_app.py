"""Routes, refusals and accounts of the gateway, asked over real HTTP on memory streams, before a scripted upstream."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import attrs
import httpx
import msgspec
import pytest
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, LifespanScope, Scope
from openai.pagination import SyncPage
from openai.types import Model
from structlog.testing import capture_logs
from trio.testing import MockClock
from typing_extensions import override

from capi_core.budgets import Amounts
from capi_core.commands import Operation, Outcome, SendRequest
from capi_core.config import Config, LimitsConfig, ModelConfig, UpstreamConfig
from capi_core.credentials import find_credential
from capi_core.errors import Problem
from capi_core.framing import FramingLimits
from capi_core.keys import KeyRecord, Tier, format_key, hash_prefix, key_hash
from capi_core.limits import RetryAfter, problem_rate_limited
from capi_core.usage_events import UsageEvent
from capi_trio.access import ANONYMOUS, Access, Door, OpenDoor
from capi_trio.admission import OPEN_ADMISSION, Admission, AdmissionRefusedError, Asked, NotAdmitted
from capi_trio.app import Gateway, Snapshot
from capi_trio.budgeting import Budgets, Ticket
from capi_trio.metering import Note
from capi_trio.perimeter import Perimeter, parse_network
from capi_trio.seat import Seat
from capi_trio.seats import Seats
from capi_trio.upstream import UpstreamClient
from tests.support import fakes
from tests.support.asgi_harness import Client, Response
from tests.support.fakes import DONE, FakeUpstream, Reply, chunk, finish
from tests.support.guarded_harness import Guarded, connect, context, request_ids, serve

PROMPT: Final = "the prompt that nobody else may read"
ANSWER: Final = "the answer that nobody else may read"
ASK: Final = {"model": "fast", "messages": [{"role": "user", "content": PROMPT}]}
CONFIG: Final = Config(
    upstreams={"up": UpstreamConfig(kind="openai", base_url="http://up.test/v1")},
    models={
        "fast": ModelConfig(upstream="org/m-1", via="up"),
        "off": ModelConfig(upstream="m-2", via="up", enabled=False),
    },
    limits=LimitsConfig(max_body_bytes=2000),
)
LISTS: Final[Mapping[str, Mapping[str, bytes] | None]] = {
    "up": {
        "org/m-1": b'{"id": "org/m-1", "created": 1700000000, "owned_by": "org", "secret_price": 7}',
        "m-2": b'{"id": "m-2"}',
        "m \u00e9%2F?#": b"{}",
    }
}


class _Watched(Seats):
    """Seats that note where the clients of requests are."""

    def __init__(self, client: UpstreamClient, config: Config) -> None:
        super().__init__(client, config, now_s=lambda: 0.0)
        self.addresses: list[str | None] = []

    @override
    @asynccontextmanager
    async def take(self, key: KeyRecord, request: SendRequest, *, address: str | None = None) -> AsyncIterator[Seat]:
        self.addresses.append(address)
        async with super().take(key, request, address=address) as seat:
            yield seat


class World:
    """A gateway, its upstream, a client, and what was logged."""

    def __init__(self, *replies: Reply | Exception, config: Config = CONFIG) -> None:
        self.up = FakeUpstream(*replies or (fakes.json_reply(fakes.chat_answer(ANSWER)),))
        self.asking = fakes.client(self.up, *config.upstreams)
        self.config = config
        self.is_ready = True
        self.is_sealed = False
        self.door: Door | OpenDoor = OpenDoor()
        self.perimeter = Perimeter()
        self.seats = _Watched(self.asking, self.config)
        self.budgets: Budgets | None = None
        self.gateway = self.gateway_with(self.snapshot)
        self.logs: list[dict[str, object]] = []
        self.peer: Guarded

    def gateway_with(
        self,
        snapshot: Callable[[], Awaitable[Snapshot]],
        admission: Admission = OPEN_ADMISSION,
        note: Note = lambda event, *, named: event,
    ) -> Gateway:
        return Gateway(
            note=note,
            budgets=self.budgets,
            snapshot=snapshot,
            client=self.asking,
            seats=self.seats,
            door=self.door,
            perimeter=self.perimeter,
            ready=lambda: self.is_ready,
            sealed=lambda: self.is_sealed,
            new_request_id=request_ids(),
            now_ms=lambda: 1_700_000_000_000,
            max_body_bytes=self.config.limits.max_body_bytes,
            admission=admission,
        )

    @property
    def client(self) -> Client:
        return self.peer.client

    async def snapshot(self) -> Snapshot:
        return Snapshot(self.config, self.config.catalog(LISTS))

    @asynccontextmanager
    async def open(self) -> AsyncIterator["World"]:
        limits = FramingLimits(body=self.config.limits.max_body_bytes)
        with capture_logs() as logs:
            async with self.asking, connect(self.gateway, framing=limits) as self.peer:
                yield self
        self.logs = [dict(line) for line in logs]
        assert self.up.open == 0
        assert self.gateway.running == 0

    @property
    def account(self) -> dict[str, object]:
        """The one log line of the one exchange."""
        (line,) = (line for line in self.logs if line["event"] == "exchange")
        return line


class _Error(msgspec.Struct):
    code: str
    message: str
    type: str
    param: str | None


class _Envelope(msgspec.Struct):
    error: _Error


def error(response: Response) -> _Error:
    assert response.headers["content-type"] == "application/json"
    return response.json(_Envelope).error


# -- routes and methods --------------------------------------------------------------------------------------------

ASKING: Final = ["/v1/chat/completions", "/chat/completions", "/v1/embeddings", "/embeddings"]
READING: Final = ["/", "/healthz", "/readyz", "/v1/models", "/models", "/v1/models/fast", "/models/fast"]
NOWHERE: Final = [
    "/v1",
    "/v1/",
    "/v1/model",
    "/v2/models",
    "//v1/models",
    "/./v1/models",
    "/v1/../v1/models",
    "/V1/models",
    "/v1/models%2Ffast",
    "/v1%2fmodels",
    "/v1/%6dodels",
    "/v1/chat/completions/",
    "/v1/chat//completions",
    "/v1/chat/completions;x",
    "/v1\\models",
    "/healthz/",
    "/%00",
    "/%ff",
    "/usage",
]
METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]


@pytest.mark.parametrize("method", METHODS)
async def test_each_route_takes_its_own_methods_only(autojump_clock: MockClock, method: str) -> None:
    """And a path that is not exactly a route's is nowhere, however it would look cleaned up."""
    embedding = {"model": "fast", "input": "x"}
    async with World().open() as world:
        for path in ASKING:
            response = await world.client.request(method, path, embedding if "embed" in path else ASK)
            allowed = method == "POST"
            assert response.status == (200 if allowed else 405), path
            assert response.headers.get("allow") == (None if allowed else "POST")
        for path in READING:
            response = await world.client.request(method, path)
            allowed = method in {"GET", "HEAD"}
            assert response.status == (200 if allowed else 405), path
            assert response.headers.get("allow") == (None if allowed else "GET, HEAD")
            if not allowed:
                assert error(response).code == "method_not_allowed"
        for path in NOWHERE:
            response = await world.client.request(method, path)
            assert response.status == 404, path
            if method != "HEAD":
                assert error(response).code == "unknown_route"
    assert len(world.up.asked) == (len(ASKING) if method == "POST" else 0)


async def test_a_seat_is_taken_for_the_clients_address_and_not_for_a_trusted_proxys(autojump_clock: MockClock) -> None:
    world = World()
    async with world.open():
        await world.client.request("POST", "/v1/chat/completions", ASK)
        forwarded = [("x-forwarded-for", "198.51.100.7, 192.0.2.9")]
        await world.client.request("POST", "/v1/chat/completions", ASK, headers=forwarded)
    direct = world.seats.addresses[0]
    assert direct is not None
    assert world.seats.addresses == [direct, direct], "nobody trusts what this client says of itself"
    behind = World()
    behind.perimeter = Perimeter(trusted_proxies=(parse_network(direct),))
    behind.gateway = behind.gateway_with(behind.snapshot)
    async with behind.open():
        await behind.client.request("POST", "/v1/chat/completions", ASK, headers=forwarded)
    assert behind.seats.addresses == ["192.0.2.9"]


@pytest.mark.parametrize("path", READING)
async def test_head_is_get_without_its_body(autojump_clock: MockClock, path: str) -> None:
    async with World().open() as world:
        get = await world.client.request("GET", path)
        head = await world.client.request("HEAD", path)
    assert head.body == b""
    differ = {name for name in get.headers if get.headers[name] != head.headers[name]}
    assert differ <= {"x-request-id", "request-id", "date"}
    assert head.headers["content-length"] == str(len(get.body))


async def test_a_query_does_not_change_the_route(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        assert (await world.client.request("GET", "/v1/models?after_id=x&limit=1000")).status == 200
        assert (await world.client.request("POST", "/v1/chat/completions?api-version=1", ASK)).status == 200
    assert world.up.asked[0].url == "http://up.test/v1/chat/completions"


async def test_every_answer_has_a_request_id_of_its_own(autojump_clock: MockClock) -> None:
    """Under both names that SDKs read; an id that a client sends is not taken over."""
    paths = [("GET", "/"), ("GET", "/v1/nothing"), ("POST", "/v1/models"), ("POST", "/v1/chat/completions")]
    seen = []
    async with World().open() as world:
        for method, path in paths:
            response = await world.client.request(method, path, b"{}", [("x-request-id", "mine")])
            assert response.headers["x-request-id"] == response.headers["request-id"]
            seen.append(response.headers["x-request-id"])
        await world.client.request("POST", "/v1/chat/completions", ASK)
    assert seen == ["req_1", "req_2", "req_3", "req_4"]
    assert world.up.asked[0].header(b"x-request-id") == [b"req_5"]
    assert [line["request_id"] for line in world.logs] == ["req_4", "req_5"]


async def test_health_is_life_and_readiness_is_service(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        assert (await world.client.request("GET", "/readyz")).body == b"ready\n"
        world.is_ready = False
        assert (await world.client.request("GET", "/healthz")).body == b"ok\n"
        not_ready = await world.client.request("GET", "/readyz")
        assert (not_ready.status, not_ready.body) == (503, b"not ready\n")
        assert not_ready.headers["content-type"] == "text/plain; charset=utf-8"


async def test_other_kinds_of_scope_are_left_alone() -> None:
    async def never(*_: object) -> None:
        raise AssertionError("nothing is received or sent")

    async def receive() -> None:
        raise AssertionError("nothing is received")

    scope = LifespanScope(type="lifespan", asgi={"spec_version": "2.0", "version": "3.0"}, state={})
    call: Callable[[Scope, object, object], Awaitable[None]] = World().gateway  # type: ignore[assignment]
    await call(scope, receive, never)


# -- models --------------------------------------------------------------------------------------------------------


class _AnthropicModel(msgspec.Struct, kw_only=True):
    type: str
    id: str
    display_name: str
    created_at: str


class _AnthropicPage(msgspec.Struct, kw_only=True):
    data: list[_AnthropicModel]
    has_more: bool
    first_id: str
    last_id: str


async def test_the_model_list_is_readable_in_both_shapes(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        listed = await world.client.request("GET", "/v1/models")
        assert (await world.client.request("GET", "/models")).body == listed.body
    page = SyncPage[Model].model_validate_json(listed.body)
    assert [model.id for model in page.data] == ["fast", "org/m-1", "m-2", "m \u00e9%2F?#"]
    assert page.object == "list"
    assert page.data[0].owned_by == "org"
    other = listed.json(_AnthropicPage)
    assert (other.first_id, other.last_id, other.has_more) == ("fast", "m \u00e9%2F?#", False)
    assert {model.type for model in other.data} == {"model"}
    assert other.data[0].created_at == "2023-11-14T22:13:20Z"
    assert b"secret_price" not in listed.body


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/fast", "fast"),
        ("/models/fast", "fast"),
        ("/v1/models/org/m-1", "org/m-1"),
        ("/v1/models/org%2Fm-1", "org/m-1"),
        ("/v1/models/%66ast", "fast"),
        ("/v1/models/m%20%C3%A9%252F%3F%23", "m \u00e9%2F?#"),
        ("/v1/models/fast?x=/v1/models/off", "fast"),
    ],
)
async def test_a_model_is_found_by_its_name_percent_encoded_or_not(
    autojump_clock: MockClock, path: str, name: str
) -> None:
    async with World().open() as world:
        found = await world.client.request("GET", path)
    assert Model.model_validate_json(found.body).id == name


@pytest.mark.parametrize("name", ["", "nope", "off", "fast/", "%ff", "fast%00", "FAST", "org%252Fm-1"])
async def test_a_model_that_cannot_be_called_is_not_found(autojump_clock: MockClock, name: str) -> None:
    async with World().open() as world:
        response = await world.client.request("GET", f"/v1/models/{name}")
    assert response.status == 404
    assert (error(response).code, error(response).param) == ("model_not_found", "model")


# -- who may ask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:4141", 200),
        ("127.0.0.1:4141", 200),
        ("127.8.9.10", 200),
        ("[::1]:4141", 200),
        ("evil.test", 421),
        ("localhost.evil.test", 421),
        ("127.0.0.1.evil.test:4141", 421),
        ("192.168.0.1", 421),
        ("[::2]", 421),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/healthz", "/v1/nothing"])
async def test_only_names_of_the_loopback_interface_are_answered_to(
    autojump_clock: MockClock, host: str, status: int, path: str
) -> None:
    """A web page can make its own name point here (DNS rebinding); it cannot change what it is called."""
    method = b"POST" if "chat" in path else b"GET"
    body = msgspec.json.encode(ASK) if "chat" in path else b""
    async with World().open() as world:
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        await world.peer.send(head % (method, path.encode(), host.encode(), len(body)) + body)
        raw = await world.peer.read_to_end()
    wanted = 404 if status == 200 and path == "/v1/nothing" else status
    assert raw.startswith(b"HTTP/1.1 %d" % wanted)
    assert (b"unknown_host" in raw) is (status == 421)
    assert len(world.up.asked) == (status == 200 and bool(body))


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1", True),
        ("https://[::1]:8443", True),
        ("https://evil.test", False),
        ("http://localhost.evil.test", False),
        ("http://127.0.0.1@evil.test", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("http://[::1", False),
        ("http://evil.test\u00e9", False),
    ],
)
async def test_a_page_of_another_site_is_refused(autojump_clock: MockClock, origin: str, allowed: bool) -> None:
    async with World().open() as world:
        body = msgspec.json.encode(ASK)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: %b\r\ncontent-length: %d\r\n"
        await world.peer.send(head % (origin.encode(), len(body)) + b"connection: close\r\n\r\n" + body)
        raw = await world.peer.read_to_end()
    assert raw.startswith(b"HTTP/1.1 200" if allowed else b"HTTP/1.1 403")
    assert (b"cross_site_request" in raw) is not allowed
    assert len(world.up.asked) == allowed


async def test_an_old_client_without_a_host_is_served(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        await world.peer.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await world.peer.read_to_end()).endswith(b"ok\n")


async def test_a_client_gets_no_cors_headers(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        response = await world.client.request("GET", "/v1/models", headers=[("origin", "http://localhost:3000")])
    assert not [name for name in response.headers if name.startswith("access-control")]


# -- exchanges -----------------------------------------------------------------------------------------------------


async def test_a_chat_goes_to_the_aliass_upstream_and_its_answer_comes_back(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        response = await world.client.request("POST", "/v1/chat/completions", ASK, [("authorization", "Bearer mine")])
    assert response.status == 200
    assert response.json(dict[str, object]) == {**fakes.chat_answer(ANSWER), "model": "fast"}
    (asked,) = world.up.asked
    assert msgspec.json.decode(asked.body) == {**ASK, "model": "org/m-1"}
    assert asked.header(b"authorization") == [b"Bearer sk-upstream-key"]
    assert world.account == {
        "part": "exchange",
        "event": "exchange",
        "log_level": "info",
        "request_id": "req_1",
        "key_id": "__noauth__",
        "transport": "http",
        "operation": "chat",
        "outcome": "ok",
        "status": 200,
        "model": "fast",
        "upstream": "up",
        "upstream_model": "org/m-1",
        "upstream_protocol": "chat",
        "losses": 0,
        "failed_upstreams": [],
        "stream": False,
        "first_byte_ms": 0.0,
        "latency_ms": 0.0,
        "queue_ms": None,
        "identity": None,
        "upstream_failure": None,
        "usage_source": "upstream_final",
        "tokens_uncached_input": 3,
        "tokens_cache_read": None,
        "tokens_cache_write": None,
        "tokens_output": 4,
        "tokens_reasoning": None,
    }


async def test_a_stream_is_a_stream(autojump_clock: MockClock) -> None:
    reply = Reply([1.0, chunk("a"), 1.0, chunk("b"), finish(), DONE])
    async with World(reply).open() as world:
        response = await world.client.request("POST", "/v1/chat/completions", {**ASK, "stream": True})
    assert response.complete
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [part.at for part in response.chunks[:2]] == [1.0, 2.0]
    assert fakes.texts(response.body) == "ab"
    assert (world.account["first_byte_ms"], world.account["latency_ms"]) == (1000.0, 2000.0)


async def test_the_connection_is_used_again_after_each_kind_of_answer(autojump_clock: MockClock) -> None:
    async with World(
        Reply([chunk("a"), finish(), DONE]), httpx.ConnectError("x"), fakes.json_reply(fakes.chat_answer())
    ).open() as world:
        statuses = [
            (await world.client.request("POST", "/v1/chat/completions", {**ASK, "stream": number == 0})).status
            for number in range(3)
        ]
    assert statuses == [200, 502, 200]


@pytest.mark.parametrize(
    ("body", "status", "code", "outcome"),
    [
        (b"", 400, "empty_body", "refused_invalid"),
        (b"{", 400, None, "refused_invalid"),
        (b'{"messages": []}', 400, "missing_model", "refused_invalid"),
        (b'{"model": "nope"}', 404, "model_not_found", "refused_model"),
        (b'{"model": "off"}', 404, "model_not_found", "refused_model"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_and_accounted_for(
    autojump_clock: MockClock, body: bytes, status: int, code: str | None, outcome: str
) -> None:
    async with World().open() as world:
        response = await world.client.request("POST", "/v1/chat/completions", body)
    assert response.status == status
    assert code in {error(response).code, None}
    assert (world.account["outcome"], world.account["log_level"]) == (outcome, "warning")
    assert world.up.asked == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/healthz", "/v1/nothing"])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_refused(autojump_clock: MockClock, path: str, declared: bool) -> None:
    async with World().open() as world:
        if declared:
            await world.peer.send(
                b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2001\r\n\r\n" % path.encode()
            )
        else:
            head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n7d1\r\n"
            await world.peer.send(head % path.encode() + b"x" * 2001)
        raw = await world.peer.read_to_end()
    assert raw.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in raw
    assert b"limits.max_body_bytes" in raw
    assert b"x-request-id: req_1" in raw
    assert world.up.asked == []
    if path in ASKING:
        assert world.account["outcome"] == "refused_too_large"


async def test_a_body_at_the_limit_is_taken(autojump_clock: MockClock) -> None:
    body = msgspec.json.encode({**ASK, "pad": ""})
    body = body[:-2] + b"x" * (2000 - len(body)) + body[-2:]
    assert len(body) == 2000
    async with World().open() as world:
        assert (await world.client.request("POST", "/v1/chat/completions", body)).status == 200


async def test_a_client_that_leaves_in_its_body_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with World().open() as world:
        await world.peer.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        await world.peer.end.aclose()
        await world.peer.over.wait()
    assert world.logs == []


@pytest.mark.parametrize("behind", [b"", b"G"])
@pytest.mark.parametrize("script", [[100.0], [chunk("a"), 100.0]])
async def test_a_client_that_leaves_takes_its_upstream_request_with_it(
    autojump_clock: MockClock, behind: bytes, script: list[fakes.Step]
) -> None:
    async with World(Reply(script)).open() as world:
        await world.client.send_request("POST", "/v1/chat/completions", {**ASK, "stream": True})
        await world.peer.send(behind)
        await trio.sleep(5)
        await world.peer.end.aclose()
        await world.peer.over.wait()
        assert world.up.asked[0].closed_at == 5
    assert (world.account["outcome"], world.account["log_level"]) == ("client_gone", "info")


async def test_a_client_that_takes_nothing_loses_its_upstream_request(autojump_clock: MockClock) -> None:
    async with World(Reply([chunk("a"), 1000.0])).open() as world:
        world.peer.wire.delay = math.inf
        await world.client.send_request("POST", "/v1/chat/completions", {**ASK, "stream": True})
        await world.peer.over.wait()
        assert world.up.asked[0].closed_at == pytest.approx(30)
    assert world.account["outcome"] == "client_gone"


async def test_no_log_line_holds_what_was_asked_or_answered(autojump_clock: MockClock) -> None:
    """Whatever the end of the exchange."""
    bad = {"error": {"message": ANSWER, "type": "x", "code": "y"}}
    replies: list[Reply | Exception] = [
        Reply([chunk(ANSWER), finish(), DONE]),
        Reply([chunk(ANSWER), httpx.ReadError(ANSWER)]),
        Reply([chunk(ANSWER), b"data: " + ANSWER.encode() + b"\n\n"]),
        fakes.json_reply(bad, 400),
        httpx.ConnectError(ANSWER),
        fakes.json_reply(fakes.chat_answer(ANSWER)),
    ]
    async with World(*replies).open() as world:
        for _ in replies:
            await world.client.request("POST", "/v1/chat/completions", {**ASK, "stream": True})
        await world.client.request("POST", "/v1/chat/completions", {"model": "x" * 1000, "messages": PROMPT})
        await world.client.request("GET", f"/{PROMPT.replace(' ', '%20')}")
    assert len(world.logs) == len(replies) + 1
    for secret in (PROMPT, ANSWER, "sk-upstream-key", "x" * 129):
        assert secret not in str(world.logs)


async def test_an_upstreams_limits_are_its_own(autojump_clock: MockClock) -> None:
    config = msgspec.structs.replace(
        CONFIG,
        upstreams={
            "up": UpstreamConfig(kind="openai", base_url="http://up.test/v1", head_timeout_s=20),
            "slow": UpstreamConfig(kind="openai", base_url="http://slow.test/v1", models=["s"], idle_timeout_s=50),
        },
        limits=LimitsConfig(keep_alive_s=7),
    )
    lists: Mapping[str, Mapping[str, bytes] | None] = {**LISTS, "slow": {"s": b"{}"}}
    world = World(Reply(head_after=1000.0), Reply([1000.0]), config=config)

    async def snapshot() -> Snapshot:
        return Snapshot(config, config.catalog(lists))

    world.gateway = world.gateway_with(snapshot)
    async with world.open():
        for body in ({**ASK, "stream": True}, {"model": "s", "messages": [], "stream": True}):
            await world.client.request("POST", "/v1/chat/completions", body)
    assert [line["latency_ms"] for line in world.logs] == [20_000, 50_000]
    assert [line["first_byte_ms"] for line in world.logs] == [20_000, 50_000], "a keep-alive is no answer"
    assert [line["outcome"] for line in world.logs] == ["timeout", "timeout"]


async def test_a_request_keeps_the_configuration_that_it_started_with(autojump_clock: MockClock) -> None:
    async with World(Reply([5.0, chunk("a"), finish(), DONE])).open() as world:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await world.client.request("POST", "/v1/chat/completions", {**ASK, "stream": True})

            nursery.start_soon(ask)
            await trio.sleep(1)
            world.config = Config()
        assert (await world.client.request("POST", "/v1/chat/completions", ASK)).status == 404
    assert [line["outcome"] for line in world.logs] == ["ok", "refused_model"]


# -- the end -------------------------------------------------------------------------------------------------------


async def test_stopping_ends_what_runs_and_refuses_what_comes(autojump_clock: MockClock) -> None:
    world = World(Reply([chunk("a"), 1000.0]))
    shared = context()
    with capture_logs() as logs:
        async with world.asking, trio.open_nursery() as nursery:
            first, second = (serve(nursery, world.gateway, shared) for _ in range(2))
            for peer in (first, second):
                await peer.client.send_request("POST", "/v1/chat/completions", {**ASK, "stream": True})
            await trio.sleep(5)
            assert world.gateway.running == 2
            world.gateway.stop()
            for peer in (first, second):
                raw = b""
                while not raw.endswith(b"0\r\n\r\n"):
                    raw += await peer.receive()
                assert b"shutting_down" in raw
            response = await Client(first.end, host="localhost").request("POST", "/v1/chat/completions", ASK)
            assert (response.status, error(response).code) == (503, "shutting_down")
            assert response.headers["retry-after"] == "5"
            nursery.cancel_scope.cancel()
    assert [line["outcome"] for line in logs] == ["shutdown"] * 3
    assert [asked.closed_at for asked in world.up.asked] == [5, 5]


async def test_an_exchange_that_is_cancelled_is_accounted_for(autojump_clock: MockClock) -> None:
    """The server's last resort: a client that takes nothing does not make the account go away."""
    world = World(Reply([chunk("a"), 1000.0]))
    with capture_logs() as logs:
        async with world.asking, trio.open_nursery() as nursery:
            peer = serve(nursery, world.gateway, context())
            await peer.client.send_request("POST", "/v1/chat/completions", {**ASK, "stream": True})
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
    assert [(line["event"], line["outcome"], line["latency_ms"]) for line in logs] == [("exchange", "shutdown", 5000)]
    assert world.gateway.running == 0
    assert world.up.asked[0].closed_at == 5


async def test_an_exchange_that_fails_in_the_server_is_accounted_for(autojump_clock: MockClock) -> None:
    world = World()

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def failing(message: object) -> None:
            raise RuntimeError(PROMPT)

        await world.gateway(scope, receive, failing)

    with capture_logs() as logs:
        async with world.asking, connect(app) as peer:
            response = await peer.client.request("POST", "/v1/chat/completions", ASK)
    assert response.status == 500
    assert [line["event"] for line in logs] == ["exchange", "app_failed"]
    assert logs[0]["outcome"] == "client_gone"  # it has nothing of the answer that was there
    assert PROMPT not in str(logs)


# Who is let in. The door itself is tested in test_access.py.

KEY: Final = KeyRecord(id="key_1", hash="", tier=Tier.CLIENT, label="a", created_at=0, allowed_models=("fast",))


class Doorman(OpenDoor):
    """Lets one key in, and says when it has asked too much."""

    def __init__(self, record: KeyRecord = KEY, *, over_rate: bool = False) -> None:
        self.record = record
        self.over_rate = over_rate

    @override
    def enter(self, headers: Iterable[tuple[bytes, bytes]], *, ip: str | None, admin: bool = False) -> Access | Problem:
        found = find_credential(headers)
        return found if isinstance(found, Problem) else Access(self.record)

    @override
    def grant(self, access: Access, now: float) -> Problem | None:
        return problem_rate_limited(60, RetryAfter(7)) if self.over_rate else None


def behind(door: OpenDoor, *replies: Reply) -> World:
    world = World(*replies)
    world.door = door
    world.gateway = world.gateway_with(world.snapshot)
    return world


WITH_KEY: Final = [("x-api-key", "sk-cap-x")]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/nope")]
)
async def test_nobody_passes_the_door_without_a_key(method: str, path: str, autojump_clock: MockClock) -> None:
    async with behind(Doorman()).open() as world:
        response = await world.client.request(method, path, ASK)
        health = await world.client.request("GET", "/healthz", b"")
    assert (response.status, error(response).code) == (401, "missing_api_key")
    assert response.headers["www-authenticate"] == 'Bearer realm="capi"'
    assert health.status == 200
    assert world.up.asked == []


async def test_a_key_sees_and_calls_what_is_in_its_scope_only(autojump_clock: MockClock) -> None:
    async with behind(Doorman()).open() as world:
        listed = await world.client.request("GET", "/v1/models", b"", WITH_KEY)
        hidden = await world.client.request("GET", "/v1/models/org/m-1", b"", WITH_KEY)
        called = await world.client.request("POST", "/v1/chat/completions", ASK, WITH_KEY)
        refused = await world.client.request("POST", "/v1/chat/completions", {**ASK, "model": "org/m-1"}, WITH_KEY)
    assert [model.id for model in SyncPage[Model].model_validate_json(listed.body).data] == ["fast"]
    assert (hidden.status, called.status) == (404, 200)
    assert (refused.status, error(refused).code) == (403, "model_not_allowed")
    outcomes = [(line["outcome"], line["key_id"]) for line in world.logs if line["event"] == "exchange"]
    assert outcomes == [("ok", "key_1"), ("refused_scope", "key_1")]


async def test_over_its_rate_a_key_is_told_when_to_come_again(autojump_clock: MockClock) -> None:
    async with behind(Doorman(over_rate=True)).open() as world:
        refused = await world.client.request("POST", "/v1/chat/completions", ASK, WITH_KEY)
        listed = await world.client.request("GET", "/v1/models", b"", WITH_KEY)
        reported = await world.client.request("GET", "/v1/usage", b"", WITH_KEY)
    assert (refused.status, error(refused).code) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "7"
    assert (reported.status, error(reported).code) == (429, "rate_limit_exceeded")  # it costs a query
    assert listed.status == 200
    assert world.account["outcome"] == "refused_rate"


async def test_a_sealed_gateway_serves_its_health_only(autojump_clock: MockClock) -> None:
    async with behind(Doorman()).open() as world:
        world.is_sealed = True
        sealed = await world.client.request("POST", "/v1/chat/completions", ASK, WITH_KEY)
        health = await world.client.request("GET", "/healthz", b"")
    assert (sealed.status, error(sealed).code) == (503, "admin_key_unread")
    assert health.status == 200


async def test_a_large_body_of_somebody_unknown_is_taken_and_dropped(autojump_clock: MockClock) -> None:
    async with behind(Doorman()).open() as world:
        response = await world.client.request("POST", "/v1/chat/completions", b"x" * 1900)
        again = await world.client.request("POST", "/v1/chat/completions", ASK, WITH_KEY)
    assert (response.status, again.status) == (401, 200)


async def test_a_key_that_is_sent_as_a_models_name_is_not_logged(autojump_clock: MockClock) -> None:
    text = format_key(bytes(32))
    async with World().open() as world:
        await world.client.request("POST", "/v1/chat/completions", {**ASK, "model": text})
    assert text not in str(world.logs)
    assert world.account["model"] == f"[key sha256:{hash_prefix(key_hash(text))}]"


# -- admission -----------------------------------------------------------------------------------------------------


class Turnstile:
    """Lets every request in but the second; remembers what it was told of each."""

    def __init__(self) -> None:
        self.told: list[Asked] = []

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()

    async def enter(self, asked: Asked) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(asked)
        if len(self.told) == 2:
            raise AdmissionRefusedError(Problem(403, "request_denied", "no"), NotAdmitted.DENIED)


async def test_each_request_for_an_upstream_has_to_be_let_in(autojump_clock: MockClock) -> None:
    """And nothing else: no list, no count of tokens, nothing that is refused before."""
    world, turnstile = World(), Turnstile()
    world.gateway = world.gateway_with(world.snapshot, turnstile)
    asking = msgspec.json.encode(ASK)
    async with world.open():
        first = await world.client.request("POST", "/v1/chat/completions", asking)
        second = await world.client.request("POST", "/v1/chat/completions", asking)
        await world.client.request("POST", "/v1/chat/completions", {"model": "nobody's", "messages": []})
        await world.client.request("POST", "/v1/messages/count_tokens", ASK)
        await world.client.request("GET", "/v1/models")
    assert (first.status, second.status, error(second).code) == (200, 403, "request_denied")
    assert turnstile.told == [Asked(Operation.CHAT, "fast", ANONYMOUS.label or "", len(asking))] * 2
    assert len(world.up.asked) == 1


# -- rows ----------------------------------------------------------------------------------------------------------


def _noting(world: World, events: list[UsageEvent]) -> Gateway:
    def note(event: UsageEvent, *, named: bool) -> UsageEvent:
        events.append(event if named else attrs.evolve(event, model=None, upstream_model=None))
        return event

    return world.gateway_with(world.snapshot, note=note)


async def test_a_row_has_a_models_name_only_if_it_is_somebodys(autojump_clock: MockClock) -> None:
    """An alias, a listed name, one that an upstream answered to; not what a client typed and nobody took."""
    blind = UpstreamConfig(kind="openai", base_url="http://blind.test/v1")
    config = msgspec.structs.replace(CONFIG, upstreams={**CONFIG.upstreams, "blind": blind})
    answer = fakes.json_reply(fakes.chat_answer())
    world = World(answer, answer, answer, fakes.json_reply({"error": {"message": "no such"}}, 404), config=config)
    events: list[UsageEvent] = []
    world.gateway = _noting(world, events)
    async with world.open():
        for model in ("fast", "m-2", "answered", "typed by a client", "\n"):
            await world.client.request("POST", "/v1/chat/completions", {**ASK, "model": model})
    assert [event.model for event in events] == ["fast", "m-2", "answered", None, None]
    assert [event.upstream_model for event in events] == ["org/m-1", "m-2", "answered", None, None]


class _Failing(Budgets):
    @override
    async def begin(self, key: KeyRecord, size: int) -> Ticket | Problem | None:
        raise ZeroDivisionError


async def test_a_request_that_fails_before_it_is_asked_has_its_row_too(autojump_clock: MockClock) -> None:
    async def spent(key_id: str, from_ms: int) -> Amounts:
        return Amounts()

    world, events = World(), list[UsageEvent]()
    world.budgets = _Failing(spent, now_ms=lambda: 0)
    world.gateway = _noting(world, events)
    async with world.open():
        assert (await world.client.request("POST", "/v1/chat/completions", ASK)).status == 500
    assert [event.outcome for event in events] == [Outcome.INTERNAL_ERROR]
    assert world.account["outcome"] == "internal_error"
