"""What the field's own clients send, as recorded (their words replaced by fillers), through every kind of upstream.

Source of the shapes: Claude Code 2.1.197, Codex 0.169.0 over HTTP and over WebSocket, opencode 1.18.33 on each of its
three providers, llm 0.36.
"""

from pathlib import Path
from typing import Final

import msgspec
import pytest
from attrs import frozen

from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.protocols.responses.history import ResponseHistory
from capi_core.target import Target

FIXTURES: Final = Path(__file__).parent / "fixtures" / "clients"
PATHS: Final = {
    "/v1/chat/completions": Protocol.CHAT,
    "/v1/responses": Protocol.RESPONSES,
    "/v1/messages": Protocol.MESSAGES,
}


class _Recorded(msgspec.Struct):
    client: str
    path: str
    headers: list[tuple[str, str]]
    body: msgspec.Raw


@frozen
class Recorded:
    """One request: which client's, in which protocol."""

    name: str
    protocol: Protocol
    body: bytes


def load(path: Path) -> Recorded:
    found = msgspec.json.decode(path.read_bytes(), type=_Recorded)
    return Recorded(path.stem, PATHS[found.path.partition("?")[0]], bytes(found.body))


RECORDED: Final = [load(path) for path in sorted(FIXTURES.glob("*.json"))]
ONE_SHOT: Final = [one for one in RECORDED if "codex_ws" not in one.name]
CLAUDE: Final = next(one for one in RECORDED if one.name == "claude_code_3")


def named(one: object) -> str:
    return one.name if isinstance(one, Recorded) else str(getattr(one, "value", one))


def translated(one: Recorded, upstream: Protocol) -> tuple[dict[str, msgspec.Raw], Ledger]:
    ledger = Ledger()
    request = CODECS[one.protocol].read(one.body)
    conversation = CODECS[one.protocol].decode_request(request.document, ledger)
    encoded = CODECS[upstream].encode_request(conversation, Target("up-model", max_output_tokens=64_000), ledger)
    return msgspec.json.decode(encoded.body, type=dict[str, msgspec.Raw]), ledger


def test_every_client_is_here() -> None:
    assert {one.name.rpartition("_")[0] for one in RECORDED} == {
        "claude_code",
        "codex",
        "codex_ws",
        "llm_chat",
        "llm_messages",
        "opencode_chat",
        "opencode_messages",
        "opencode_responses",
    }


@pytest.mark.parametrize("one", ONE_SHOT, ids=named)
def test_to_its_own_protocol_only_the_models_name_changes(one: Recorded) -> None:
    codec = CODECS[one.protocol]
    request = codec.read(one.body)
    passage = codec.pass_through(
        request, upstream_model="up-model", public_name=request.model, ask_usage=False, max_event_bytes=1 << 20
    )
    assert passage.body == one.body.replace(b'"%b"' % request.model.encode(), b'"up-model"', 1)


@pytest.mark.parametrize("upstream", list(Protocol), ids=named)
@pytest.mark.parametrize("one", ONE_SHOT, ids=named)
def test_it_can_be_asked_in_every_protocol(one: Recorded, upstream: Protocol) -> None:
    """The result is read back by that protocol's own decoder: what we send is what we would take."""
    body, _ = translated(one, upstream)
    assert bytes(body["model"]) == b'"up-model"'
    again = CODECS[upstream].decode_request(JSONObject(msgspec.json.encode(body)), Ledger())
    first = CODECS[one.protocol].decode_request(JSONObject(one.body), Ledger())
    assert len(again.tools) > 0 or len(first.tools) == 0
    assert again.stream == first.stream


@pytest.mark.parametrize("upstream", [Protocol.CHAT, Protocol.RESPONSES], ids=named)
def test_claude_codes_tools_and_results_arrive_whole(upstream: Protocol) -> None:
    body, _ = translated(CLAUDE, upstream)
    text = msgspec.json.encode(body)
    assert text.count(b"toolu_mock0002") == 2
    assert b"echo tool-ok" in text
    assert b'"tool-ok"' in text
    sent = msgspec.json.decode(CLAUDE.body, type=dict[str, msgspec.Raw])
    assert len(msgspec.json.decode(body["tools"], type=list[msgspec.Raw])) == len(
        msgspec.json.decode(sent["tools"], type=list[msgspec.Raw])
    )
    assert b"cache_control" not in text
    assert b"bW9jay1zaWduYXR1cmU=" not in text  # a signature goes to its own provider only


def test_codex_over_a_socket_is_made_whole_from_the_sockets_history() -> None:
    """Warm-up, then two turns that each send only what is new (wire.md 0.4)."""
    frames = [one for one in RECORDED if one.name.startswith("codex_ws")]
    history = ResponseHistory()
    expanded = b""
    for number, one in enumerate(frames):
        document = history.expand(JSONObject(one.body)) if number else JSONObject(one.body)
        expanded = document.text
        answer = b'{"id":"resp_mock%04d","object":"response","status":"completed","output":[%b]}' % (
            number + 3,
            b'{"type":"function_call","call_id":"call_mock0004","name":"exec_command","arguments":"{}"}'
            if number == 1
            else b"",
        )
        history.remember(f"resp_mock{number + 3:04d}", document, answer)
    items = msgspec.json.decode(
        msgspec.json.decode(expanded, type=dict[str, msgspec.Raw])["input"], type=list[dict[str, object]]
    )
    assert [item["type"] for item in items] == ["message"] * 4 + ["function_call", "function_call_output"]
    for upstream in Protocol:
        conversation = CODECS[Protocol.RESPONSES].decode_request(JSONObject(expanded), Ledger())
        assert CODECS[upstream].encode_request(conversation, Target("m"), Ledger()).body
