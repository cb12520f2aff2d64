"""Responses over WebSocket through a real gateway: the official `openai` SDK, and by hand, over all three upstreams."""

import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import openai
import pytest
from openai.resources.responses.responses import ResponsesConnection
from openai.types.responses import FunctionToolParam, ResponsesServerEvent
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.conftest import faultless
from tests.support.process import Capi, demo, gateway

MODELS: Final = ["demo-chat", "demo-gpt", "demo-claude"]
TOOL: Final[FunctionToolParam] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
QUICK: Final = '[[demo {"pace_ms": 0}]]'


def client(capi: Capi, key: str = "sk-unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{capi.url}/v1", api_key=key, max_retries=0, timeout=10)


def until_end(connection: ResponsesConnection) -> list[ResponsesServerEvent]:
    events = [connection.recv()]
    while events[-1].type not in {"response.completed", "response.failed", "error"}:
        events.append(connection.recv())
    return events


def text(events: list[ResponsesServerEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@pytest.fixture(scope="module")
def capi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capi]:
    with faultless(demo(tmp_path_factory.mktemp("socket"))) as capi:
        yield capi


@pytest.mark.parametrize("model", MODELS)
def test_a_turn_with_a_tool_goes_over_every_kind_of_upstream(capi: Capi, model: str) -> None:
    """The second frame has the tool's result only; the model is told what it answers."""
    with client(capi).responses.connect() as connection:
        connection.response.create(model=model, input=f"call get_weather for Oslo {QUICK}", tools=[TOOL], store=False)
        last = until_end(connection)[-1]
        assert last.type == "response.completed"
        (call,) = (item for item in last.response.output if item.type == "function_call")
        assert call.name == "get_weather"
        connection.response.create(
            model=model,
            previous_response_id=last.response.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain-in-oslo"}],
            tools=[TOOL],
            store=False,
        )
        answer = until_end(connection)
    assert answer[-1].type == "response.completed"
    assert "rain-in-oslo" in text(answer)


@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_leaves_in_the_middle_stops_the_upstream(capi: Capi, model: str) -> None:
    with client(capi).responses.connect() as connection:
        slow = 'Count. [[demo {"pace_ms": 50, "events": 400}]]'
        connection.response.create(model=model, input=slow, store=False)
        while connection.recv().type != "response.output_text.delta":
            pass
    line = capi.log_line("exchange", model=model, outcome="client_gone", transport="websocket")
    assert line["latency_ms"] is not None


def test_an_upstream_that_goes_away_is_told_of_and_the_connection_lives_on(capi: Capi) -> None:
    with client(capi).responses.connect() as connection:
        for model in MODELS:
            broken = 'Speak. [[demo {"pace_ms": 0, "fault": "reset"}]]'
            connection.response.create(model=model, input=broken, store=False)
            last = until_end(connection)[-1]
            assert last.type in {"response.failed", "error"}
            connection.response.create(model=model, input=f"hello {QUICK}", store=False)
            assert until_end(connection)[-1].type == "response.completed"


def test_who_has_no_key_gets_a_status(tmp_path_factory: pytest.TempPathFactory) -> None:
    with faultless(gateway(tmp_path_factory.mktemp("keys"), {"upstreams": {"d": {"kind": "demo"}}}, auth=True)) as capi:
        with pytest.raises(InvalidStatus) as refused, client(capi, "sk-cap-wrong").responses.connect():
            raise AssertionError("the handshake went well")
        assert refused.value.response.status_code == 401
        assert b"invalid_api_key" in refused.value.response.body
        assert capi.admin_key is not None
        with client(capi, capi.admin_key).responses.connect() as connection:
            connection.response.create(model="demo-gpt", input=f"hello {QUICK}", store=False)
            assert until_end(connection)[-1].type == "response.completed"


def test_a_gateway_that_stops_lets_a_turn_end_and_closes(tmp_path_factory: pytest.TempPathFactory) -> None:
    with demo(tmp_path_factory.mktemp("stop")) as capi, client(capi).responses.connect() as connection:
        slow = 'Count. [[demo {"pace_ms": 20, "events": 60}]]'
        connection.response.create(model="demo-gpt", input=slow, store=False)
        connection.recv()
        capi.terminate()
        assert until_end(connection)[-1].type == "response.completed"
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert capi.wait() == 0


def test_a_client_without_manners_harms_nobody_else(capi: Capi) -> None:
    """Frames that are no frames end their own connection: unmasked, reserved bits, a control frame that is too long."""
    for frame in (b"\x81\x02{}", b"\xf1\x80\0\0\0\0", b"\x89\xfe" + struct.pack(">H", 200) + bytes(204), bytes(64)):
        with socket.create_connection(("127.0.0.1", capi.port), timeout=10) as raw:
            raw.sendall(
                b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert raw.recv(4096).startswith(b"HTTP/1.1 101 ")
            raw.sendall(frame)
            while raw.recv(4096):
                pass
    with client(capi).responses.connect() as connection:
        connection.response.create(model="demo-gpt", input=f"hello {QUICK}", store=False)
        assert until_end(connection)[-1].type == "response.completed"


# -- over a WebSocket to the upstream, too: the upstream is another capi ---------------------------------------------


def behind(upstream: Capi) -> dict[str, object]:
    there = {"kind": "openai", "base_url": f"{upstream.url}/v1", "protocols": ["responses"], "websocket": True}
    return {"upstreams": {"there": there}}


def test_two_turns_go_over_one_connection_to_the_upstream(tmp_path: Path) -> None:
    with (
        faultless(demo(tmp_path / "up")) as upstream,
        faultless(gateway(tmp_path / "down", behind(upstream))) as capi,
        client(capi).responses.connect() as connection,
    ):
        connection.response.create(model="demo-gpt", input=f"Say one. {QUICK}", store=False)
        first = until_end(connection)[-1]
        assert first.type == "response.completed"
        last_id = first.response.id
        connection.response.create(
            model="demo-gpt", input=f"And two. {QUICK}", previous_response_id=last_id, store=False
        )
        assert until_end(connection)[-1].type == "response.completed"
        upstream.wait_for(lambda: len(upstream.events("exchange", transport="websocket")) == 2)
        http = client(capi).responses.create(model="demo-gpt", input=f"hello {QUICK}", store=False)
        assert http.output_text
        upstream.wait_for(lambda: len(upstream.events("exchange", transport="http")) == 1)


def test_a_client_that_leaves_takes_the_upstreams_turn_with_it(tmp_path: Path) -> None:
    with faultless(demo(tmp_path / "up")) as upstream, faultless(gateway(tmp_path / "down", behind(upstream))) as capi:
        with client(capi).responses.connect() as connection:
            slow = 'Count. [[demo {"pace_ms": 50, "events": 400}]]'
            connection.response.create(model="demo-gpt", input=slow, store=False)
            while connection.recv().type != "response.output_text.delta":
                pass
        capi.log_line("exchange", outcome="client_gone")
        upstream.log_line("exchange", outcome="client_gone", transport="websocket")


def test_an_upstream_that_is_killed_in_a_turn_is_told_of(tmp_path: Path) -> None:
    with demo(tmp_path / "up") as upstream, faultless(gateway(tmp_path / "down", behind(upstream))) as capi:
        with client(capi).responses.connect() as connection:
            slow = 'Count. [[demo {"pace_ms": 50, "events": 400}]]'
            connection.response.create(model="demo-gpt", input=slow, store=False)
            while connection.recv().type != "response.output_text.delta":
                pass
            upstream.send_signal(signal.SIGKILL)
            assert until_end(connection)[-1].type in {"response.failed", "error"}
            connection.response.create(model="demo-gpt", input="again", store=False)
            assert until_end(connection)[-1].type == "error"
        capi.log_line("exchange", outcome="upstream_broke")
        capi.log_line("exchange", outcome="upstream_unreachable")
