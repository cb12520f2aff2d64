"""The demo provider's routes, refusals, disconnects and records."""

from collections.abc import Iterable

import msgspec
import pytest
import trio
from hypercorn.typing import (
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    HTTPScope,
    LifespanScope,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Model
from trio.testing import MockClock

from capi_trio.asgi import ResetConnectionError
from capi_trio.demo import DemoProvider, IdCounter, Outcome
from capi_trio.demo.answers import Request
from capi_trio.demo.catalog import MODELS
from capi_trio.demo.github import DemoGitHub
from tests.support.asgi_harness import connect

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
ASK = {"model": "demo-chat", "messages": HI}
CLAUDE = {"model": "demo-claude", "messages": HI, "max_tokens": 99}
VERSION = [("anthropic-version", "2023-06-01")]
KEY = "sk-upstream-secret"

Errors = dict[str, dict[str, str | None]]


class Listing(msgspec.Struct):
    data: list[dict[str, object]]


def provider(*, api_key: str | None = None, kept_records: int = 100, max_body_bytes: int = 10**6) -> DemoProvider:
    return DemoProvider(
        lambda: 1_800_000_000.0, api_key=api_key, kept_records=kept_records, max_body_bytes=max_body_bytes
    )


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_every_route_is_there_with_and_without_its_version(autojump_clock: MockClock, prefix: str) -> None:
    async with connect(provider()) as client:
        listed = await client.request("GET", f"{prefix}/models")
        models = [Model.model_validate(model) for model in listed.json(Listing).data]
        assert [model.id for model in models] == [model.id for model in MODELS]
        model = await client.request("GET", f"{prefix}/models/demo-chat")
        assert Model.model_validate_json(model.body) == models[0]
        chat = await client.request("POST", f"{prefix}/chat/completions", ASK)
        assert chat.json(dict[str, object])["object"] == "chat.completion"
        embedded = await client.request("POST", f"{prefix}/embeddings", {"model": "demo-embed", "input": "x"})
        assert embedded.json(dict[str, object])["object"] == "list"
        responded = await client.request("POST", f"{prefix}/responses", {"model": "demo-gpt", "input": "hi"})
        assert responded.json(dict[str, object])["object"] == "response"
        message = await client.request("POST", f"{prefix}/messages", CLAUDE, VERSION)
        assert message.json(dict[str, object])["type"] == "message"
        counted = await client.request("POST", f"{prefix}/messages/count_tokens", CLAUDE, VERSION)
        assert counted.json(dict[str, int]).keys() == {"input_tokens"}
        health = await client.request("GET", "/healthz")
        assert health.json(dict[str, str]) == {"status": "ok"}
        for response in (listed, model, chat, embedded, responded, message, counted, health):
            assert (response.status, response.headers["content-type"]) == (200, "application/json")
            assert response.headers["x-request-id"].startswith("req_")
            assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_head_gives_the_headers_of_get(autojump_clock: MockClock) -> None:
    async with connect(provider()) as client:
        await client.send_bytes(b"HEAD /v1/models HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        head = await client.read_to_end()
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length: " in head
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", b"", 404, "unknown_url"),
        ("GET", "/", b"", 404, "unknown_url"),
        ("GET", "/v1/models/gpt-12", b"", 404, "model_not_found"),
        ("GET", "/v1/models/a/b", b"", 404, "model_not_found"),
        ("GET", CHAT, b"", 405, "method_not_allowed"),
        ("POST", "/v1/models", b"{}", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/demo-chat", b"", 405, "method_not_allowed"),
        ("POST", CHAT, b"", 400, "invalid_json"),
        ("POST", CHAT, b"{", 400, "invalid_json"),
        ("POST", CHAT, b"[]", 400, "invalid_type"),
        ("POST", CHAT, b"{}", 400, "missing_required_parameter"),
        ("POST", CHAT, b'{"model":"demo-chat"}', 400, "missing_required_parameter"),
        ("POST", CHAT, b'{"model":"gpt-12"}', 404, "model_not_found"),
        ("POST", CHAT, b'{"model":"demo-chat","demo":{"fault":"?"}}', 400, "invalid_demo_options"),
    ],
)
async def test_refusals_have_openais_shape_and_leave_the_connection_usable(
    autojump_clock: MockClock, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    async with connect(provider()) as client:
        response = await client.request(method, path, body)
        assert response.status == status
        error = response.json(Errors)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert "x-request-id" in response.headers
        assert (await client.request("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b'{"messages":[{"role":"tool"}]}', 400, "invalid_request_error"),
        ("POST", "/v1/messages", b'{"model":"claude-12"}', 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens", b"{", 400, "invalid_request_error"),
        ("POST", "/messages", b" " * 2000, 413, "request_too_large"),
    ],
)
async def test_refusals_of_messages_have_anthropics_shape(
    autojump_clock: MockClock, method: str, path: str, body: bytes, status: int, kind: str
) -> None:
    async with connect(provider(max_body_bytes=1000)) as client:
        response = await client.request(method, path, body, VERSION)
        assert response.status == status
        told = response.json(dict[str, object])
        assert told.keys() == {"type", "error", "request_id"}
        assert (told["type"], told["request_id"]) == ("error", response.headers["request-id"])
        assert msgspec.convert(told["error"], dict[str, str])["type"] == kind
        refused = await client.request("POST", "/v1/responses", b"{}")
        assert refused.json(Errors)["error"]["code"] == "missing_required_parameter"


async def test_a_wrong_key_is_refused_in_the_shape_of_the_protocol(autojump_clock: MockClock) -> None:
    async with connect(provider(api_key=KEY)) as client:
        response = await client.request("POST", "/v1/messages", CLAUDE, VERSION)
        assert response.status == 401
        assert msgspec.convert(response.json(dict[str, object])["error"], dict[str, str])["type"] == (
            "authentication_error"
        )
        assert (await client.request("POST", "/v1/messages", CLAUDE, [*VERSION, ("x-api-key", KEY)])).status == 200


async def test_a_405_says_what_is_allowed(autojump_clock: MockClock) -> None:
    async with connect(provider()) as client:
        assert (await client.request("GET", CHAT)).headers["allow"] == "POST"
        assert (await client.request("PUT", "/models")).headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([("authorization", f"Bearer {KEY}x")], "invalid_api_key"),
        ([("authorization", KEY)], "invalid_api_key"),
        ([("x-api-key", f"{KEY}x")], "invalid_api_key"),
        ([("x-api-key", "other"), ("authorization", f"Bearer {KEY}")], "invalid_api_key"),
    ],
)
async def test_with_a_key_every_other_is_refused(
    autojump_clock: MockClock, headers: Iterable[tuple[str, str]], code: str
) -> None:
    async with connect(provider(api_key=KEY)) as client:
        response = await client.request("POST", CHAT, ASK, headers)
        assert response.status == 401
        assert response.json(Errors)["error"]["code"] == code
        assert KEY.encode() not in response.body


async def test_the_key_opens_and_health_needs_none(autojump_clock: MockClock) -> None:
    app = provider(api_key=KEY)
    async with connect(app) as client:
        bearer = [("Authorization", f"Bearer {KEY}")]
        assert (await client.request("POST", CHAT, ASK, bearer)).status == 200
        assert (await client.request("GET", "/healthz")).status == 200
        assert (await client.request("POST", CHAT, ASK, [("x-api-key", KEY)])).status == 200
    assert app.requests[0].header(b"authorization") == f"Bearer {KEY}".encode()
    assert app.requests[1].header(b"authorization") is None


async def test_a_large_body_is_read_whole_and_one_too_large_is_refused(autojump_clock: MockClock) -> None:
    app = provider(max_body_bytes=1_000_000)
    async with connect(app) as client:
        padded = msgspec.json.encode(ASK).ljust(1_000_000)
        assert (await client.request("POST", CHAT, padded)).status == 200
        response = await client.request("POST", CHAT, padded + b" ")
        assert response.status == 413
        assert response.json(Errors)["error"]["code"] == "request_too_large"
        assert (await client.request("GET", "/healthz")).status == 200
    assert [len(record.body) for record in app.requests] == [1_000_000, 0, 0]


async def test_a_record_tells_what_came_and_how_it_ended(autojump_clock: MockClock) -> None:
    app = provider()
    body = ASK | {"stream": True, "demo": {"events": 3, "pace_ms": 500}}
    async with connect(app) as client:
        response = await client.start("POST", CHAT, body, [("X-Some", "thing")])
        assert app.active == 1
        assert not app.requests
        await response.read()
        await app.until(lambda: app.active == 0)
    (record,) = app.requests
    assert (record.method, record.path, record.status) == ("POST", CHAT, 200)
    assert record.header(b"x-some") == b"thing"
    assert msgspec.json.decode(record.body) == body
    assert (record.outcome, record.started, record.ended) == (Outcome.COMPLETED, 0, 1)
    assert KEY not in repr(record)


async def test_only_so_many_records_are_kept(autojump_clock: MockClock) -> None:
    app = provider(kept_records=2)
    async with connect(app) as client:
        for path in ("/one", "/two", "/three"):
            await client.request("GET", path)
    assert [record.path for record in app.requests] == ["/two", "/three"]


async def test_a_client_that_goes_ends_its_stream_at_once(autojump_clock: MockClock) -> None:
    app = provider()
    async with connect(app) as client:
        response = await client.start("POST", CHAT, ASK | {"stream": True, "demo": {"events": 1000, "pace_ms": 1000}})
        while (chunk := await response.chunk()) and chunk.at < 3:
            pass
        await client.aclose()
        await app.until(lambda: bool(app.requests))
        assert trio.current_time() == 3
    (record,) = app.requests
    assert (record.outcome, record.status, record.ended) == (Outcome.CLIENT_GONE, 200, 3)
    assert app.active == 0


async def test_a_client_that_goes_before_the_head_is_noticed(autojump_clock: MockClock) -> None:
    app = provider()
    async with connect(app) as client:
        await client.send_request("POST", CHAT, ASK | {"demo": {"fault": "slow_head", "delay_ms": 10_000}})
        await app.until(lambda: app.active == 1)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await app.until(lambda: app.active == 0)
    (record,) = app.requests
    assert (record.outcome, record.status, record.ended) == (Outcome.CLIENT_GONE, None, 0)


async def test_a_client_that_goes_within_its_body_is_noticed(autojump_clock: MockClock) -> None:
    app = provider()
    async with connect(app) as client:
        await client.send_bytes(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n{")
        await app.until(lambda: app.active == 1)
        await client.aclose()
        await app.until(lambda: app.active == 0)
    (record,) = app.requests
    assert (record.outcome, record.status, record.body) == (Outcome.CLIENT_GONE, None, b"")


async def test_bytes_that_a_client_sends_too_early_are_no_disconnect(autojump_clock: MockClock) -> None:
    """A server that hands on more of a request after its body (HTTP/2 trailers) does not end the answer."""
    app = provider()
    peer = Peer(
        {"type": "http.request", "body": msgspec.json.encode(ASK), "more_body": False},
        {"type": "http.request", "body": b"", "more_body": False},
    )
    await app(http_scope(), peer.receive, peer.send)
    assert app.requests[0].outcome is Outcome.COMPLETED


async def test_a_stopped_server_is_not_mistaken_for_a_client_gone(autojump_clock: MockClock) -> None:
    app = provider()
    with trio.move_on_after(5):
        async with connect(app) as client:
            await client.request("POST", CHAT, ASK | {"stream": True, "demo": {"fault": "silence"}})
    assert app.requests[0].outcome is Outcome.CANCELLED
    assert app.active == 0


async def test_a_connection_carries_one_request_after_another(autojump_clock: MockClock) -> None:
    app = provider()
    async with connect(app) as client:
        for stream in (True, False, True):
            assert (await client.request("POST", CHAT, ASK | {"stream": stream})).complete
    assert [record.outcome for record in app.requests] == [Outcome.COMPLETED] * 3


async def test_ids_and_times_come_from_outside(autojump_clock: MockClock) -> None:
    app = DemoProvider(lambda: 12.9, IdCounter("seed-"))
    async with connect(app) as client:
        response = await client.request("POST", CHAT, ASK)
    completion = response.json(dict[str, object])
    assert (completion["created"], completion["id"]) == (12, "chatcmpl-seed-00000002")
    assert response.headers["x-request-id"] == "req_seed-00000001"


class Peer:
    """The server's side of an ASGI call: a script of messages in, a list of messages out."""

    def __init__(self, *messages: ASGIReceiveEvent) -> None:
        self._messages = list(messages)
        self.sent: list[ASGISendEvent] = []

    async def receive(self) -> ASGIReceiveEvent:
        if not self._messages:
            await trio.sleep_forever()
        return self._messages.pop(0)

    async def send(self, message: ASGISendEvent) -> None:
        self.sent.append(message)


async def test_lifespan_is_acknowledged() -> None:
    peer = Peer({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    scope: LifespanScope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    await provider()(scope, peer.receive, peer.send)
    assert peer.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


def http_scope(path: str = CHAT) -> HTTPScope:
    return {
        "type": "http", "asgi": {}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None,
        "headers": ((b"anthropic-version", b"2023-06-01"),),
        "server": None, "state": ConnectionState({}), "extensions": {},
    }  # fmt: skip


async def call(app: DemoProvider, body: bytes, path: str = CHAT) -> Peer:
    peer = Peer({"type": "http.request", "body": body, "more_body": False})
    await app(http_scope(path), peer.receive, peer.send)
    return peer


async def test_only_a_dropped_connection_is_raised_and_after_its_record(autojump_clock: MockClock) -> None:
    app = provider()
    with pytest.raises(ResetConnectionError):
        await call(app, msgspec.json.encode(ASK | {"demo": {"fault": "reset"}}))
    assert app.requests[0].outcome is Outcome.FAULTED
    assert app.active == 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
TOOLS = JSON.map(lambda schema: [{"name": "hi", "parameters": schema, "input_schema": schema, "type": "function"}])
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | JSON},
        optional=dict.fromkeys(("role", "content", "call_id", "name", "arguments", "output"), JSON),
    )
)
BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking"]) | JSON},
        optional=dict.fromkeys(("text", "id", "name", "input", "tool_use_id", "content", "signature"), JSON),
    )
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.just(HI)
        | JSON
        | BLOCKS.map(
            lambda blocks: [*HI, {"role": "assistant", "content": blocks}, {"role": "user", "content": blocks}]
        ),
        "input": st.text() | JSON | ITEMS,
        "system": JSON | BLOCKS,
        "stop": JSON,
        "stop_sequences": JSON,
        "n": JSON,
        "max_tokens": st.integers(0, 50) | JSON,
        "max_output_tokens": st.integers(0, 50) | JSON,
        "tools": JSON
        | TOOLS
        | JSON.map(lambda schema: [{"type": "function", "function": {"name": "hi", "parameters": schema}}]),
        "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "any"}]) | JSON,
        "thinking": st.just({"type": "adaptive"}) | JSON,
        "reasoning": st.just({"summary": "auto"}) | JSON,
        "response_format": JSON
        | JSON.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}),
        "text": JSON | JSON.map(lambda schema: {"format": {"type": "json_schema", "name": "n", "schema": schema}}),
        "demo": JSON,
        "stream": st.booleans() | JSON,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=MEMBERS, path=st.sampled_from([CHAT, "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"]))
async def test_any_json_gets_an_answer_and_never_an_exception(
    autojump_clock: MockClock, members: dict[str, object], path: str
) -> None:
    asked: dict[str, object] = {"model": "demo-all", "messages": HI, "input": "hi", "max_tokens": 99}
    peer = await call(provider(), msgspec.json.encode(asked | members), path)
    first, last = peer.sent[0], peer.sent[-1]
    assert first["type"] == "http.response.start"
    assert first["status"] in (200, 400)
    assert last["type"] == "http.response.body"
    assert not last["more_body"]


def test_a_request_does_not_show_its_headers_or_body() -> None:
    assert "secret" not in repr(Request("GET", "/", ((b"a", b"secret"),), b"secret"))


async def test_a_demo_with_github_lets_copilot_tokens_in_and_api_keys_as_before(autojump_clock: MockClock) -> None:
    github = DemoGitHub(base_url="http://demo.test")
    provider = DemoProvider(lambda: 1000.0, github=github, api_key="sk-demo")
    github.link("ghu_alice", "alice")
    copilot = [("editor-version", "x/1"), ("copilot-integration-id", "y")]
    async with connect(provider) as client:
        alice = [("authorization", "token ghu_alice"), ("user-agent", "capi/1")]
        told = await client.request("GET", "/copilot_internal/v2/token", headers=alice)
        token = msgspec.json.decode(told.body, type=dict[str, object])["token"]
        assert isinstance(token, str)
        for authorization, more, status in (
            (f"Bearer {token}", copilot, 200),
            (f"Bearer {token}", [], 400),
            ("Bearer tid=dead", copilot, 401),
            ("Bearer sk-demo", [], 200),
            ("Bearer other", [], 401),
        ):
            response = await client.request("GET", "/models", headers=[("authorization", authorization), *more])
            assert response.status == status, authorization
