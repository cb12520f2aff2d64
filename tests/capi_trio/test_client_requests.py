"""What the clients ask: as recorded, and as the gateway understands it."""

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest

from capi_core.conversation import ReasoningRequest, Role, ToolResult
from capi_core.fidelity import Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_trio.client_requests import VOICES, Voice
from capi_trio.client_setup import Client

RECORDED: Final = Path(__file__).parents[1] / "fixtures/clients"
ALL: Final = [voice for voices in VOICES.values() for voice in voices]


class _Recorded(msgspec.Struct):
    path: str
    headers: list[tuple[str, str]]
    body: dict[str, object]


def recorded(name: str) -> _Recorded:
    return msgspec.json.decode((RECORDED / f"{name}.json").read_bytes(), type=_Recorded)


def test_every_client_that_can_be_set_up_has_a_voice() -> None:
    assert set(VOICES) == set(Client)
    assert {voice.protocol for voice in VOICES[Client.ENV]} == set(Protocol), "SDKs speak all three"


@pytest.mark.parametrize(
    ("client", "name"),
    [(Client.CLAUDE_CODE, "claude_code_2"), (Client.CODEX, "codex_1"), (Client.OPENCODE, "opencode_chat_2")],
)
def test_a_request_is_as_the_client_was_recorded(client: Client, name: str) -> None:
    (voice,) = VOICES[client]
    asked, was = voice.request("m", "hello"), recorded(name)
    assert (voice.path, set(asked)) == (was.path, set(was.body))
    for member in ("thinking", "context_management", "output_config", "stream_options", "include", "reasoning"):
        assert asked.get(member) == was.body.get(member), member
    headers = dict(voice.head("k"))
    for header, value in was.headers:
        assert header.encode() in headers, header
        if not header.startswith("x-session"):
            assert headers[header.encode()] == value.encode(), header


@pytest.mark.parametrize("voice", ALL)
@pytest.mark.parametrize("thinking", [False, True])
def test_the_gateway_understands_every_request_and_the_turn_after_it(voice: Voice, thinking: bool) -> None:
    codec = CODECS[voice.protocol]
    first = voice.request("m-1", "hello", thinking=thinking)
    called: object
    match voice.protocol:
        case Protocol.CHAT:
            function = {"name": voice.tool, "arguments": "{}"}
            called = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        case Protocol.RESPONSES:
            called = {"type": "function_call", "call_id": "c1", "name": voice.tool, "arguments": "{}"}
        case Protocol.MESSAGES:
            block = {"type": "tool_use", "id": "c1", "name": voice.tool, "input": {}}
            called = {"role": "assistant", "content": [block]}
    second = voice.go_on(first, [called, voice.result("c1", "out")])
    for body, answered in ((first, False), (second, True)):
        request = codec.read(msgspec.json.encode(body))
        conversation = codec.decode_request(request.document, Ledger())
        spoken = [turn for turn in conversation.turns if turn.role is not Role.SYSTEM]
        assert (request.model, request.stream, spoken[-1].role) == ("m-1", True, Role.USER)
        assert conversation.tools
        results = [block.call_id for block in spoken[-1].blocks if isinstance(block, ToolResult)]
        assert results == (["c1"] if answered else [])


@pytest.mark.parametrize("voice", ALL)
def test_reasoning_can_be_asked_for(voice: Voice) -> None:
    codec = CODECS[voice.protocol]
    request = codec.read(msgspec.json.encode(voice.request("m", "hello", thinking=True)))
    assert codec.decode_request(request.document, Ledger()).reasoning != ReasoningRequest()


def test_the_key_goes_where_each_client_sends_it() -> None:
    def sent(client: Client) -> list[set[tuple[bytes, bytes]]]:
        names = {b"authorization", b"x-api-key"}
        return [{header for header in voice.head("k") if header[0] in names} for voice in VOICES[client]]

    bearer, own = (b"authorization", b"Bearer k"), (b"x-api-key", b"k")
    assert sent(Client.CLAUDE_CODE) == [{bearer, own}]
    assert sent(Client.CODEX) == sent(Client.OPENCODE) == [{bearer}]
    assert sent(Client.ENV) == [{bearer}, {bearer}, {own}]


def test_tokens_are_counted_by_those_clients_that_do() -> None:
    assert [voice.count_path for voice in VOICES[Client.CLAUDE_CODE]] == ["/v1/messages/count_tokens?beta=true"]
    assert [bool(voice.count_path) for voice in ALL] == [voice.protocol is Protocol.MESSAGES for voice in ALL]
    (voice,) = VOICES[Client.CLAUDE_CODE]
    assert b"token-counting-2024-11-01" in dict(voice.head("k", count=True))[b"anthropic-beta"]
    assert b"token-counting" not in dict(voice.head("k"))[b"anthropic-beta"]
    assert set(voice.count("m", "hello")) == {"model", "messages", "tools"}


def test_no_request_changes_another() -> None:
    for voice in ALL:
        before = json.dumps(voice.request("m", "one"))
        voice.go_on(voice.request("m", "one"), ["more"])
        assert json.dumps(voice.request("m", "one")) == before
        assert "tools" not in voice.request("m", "one", tools=False)
