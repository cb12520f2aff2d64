"""The messages of a Chat request become turns: all of them, or an error with its path, or a note."""

import json

import msgspec
import pytest

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    Role,
    Signature,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.message_decoder import read_messages
from capi_core.protocols.kinds import Protocol

USER: dict[str, object] = {"role": "user", "content": "hi"}


def call(call_id: str = "c", name: str = "f", arguments: str = "{}") -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: object) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def decode(*messages: object, ledger: Ledger | None = None) -> list[Turn]:
    raws = [msgspec.Raw(json.dumps(message).encode()) for message in messages]
    return read_messages(raws, ledger or Ledger())


def blocks(message: object, ledger: Ledger | None = None) -> tuple[Block, ...]:
    (turn,) = decode(message, ledger=ledger)
    return turn.blocks


def dropped(ledger: Ledger) -> list[str]:
    assert {entry.change for entry in ledger} <= {Change.DROPPED}
    return [entry.path for entry in ledger]


@pytest.mark.parametrize("role", list(Role))
def test_each_role_is_a_turn_of_its_own(role: Role) -> None:
    message = {"role": role.value, "content": "a"}
    assert decode(message, message) == [Turn(role, (Text("a"),))] * 2


def test_messages_without_content_are_left_out() -> None:
    empty = {"role": "user", "content": ""}
    nothing: dict[str, object] = {"role": "assistant", "content": None, "refusal": "", "tool_calls": []}
    parts = {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "refusal"}]}
    assert decode(empty, USER, nothing, parts, {"role": "system", "content": []}) == [Turn(Role.USER, (Text("hi"),))]


def test_every_part_of_a_message() -> None:
    ledger = Ledger()
    mark = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
    novel = {"type": "novel" * 20, "a": [1]}
    found = blocks(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", **mark},
                {"type": "image_url", "image_url": {"url": "https://h/i", "detail": "low"}, **mark},
                {"type": "image_url", "image_url": "data:image/gif;name=x;base64,QQ=="},
                {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ==", "filename": "n"}},
                {"type": "file", "file": {"file_data": "QQ=="}},
                {"type": "file", "file": {"file_id": "id"}, "prompt_cache_breakpoint": {}},
                {"type": "refusal", "refusal": "no"},
                novel,
            ],
        },
        ledger,
    )
    assert found == (
        Text("a", CacheMark("30m")),
        Image(Source(SourceKind.URL, "https://h/i"), "low", CacheMark("30m")),
        Image(Source(SourceKind.BASE64, "QQ==", "image/gif")),
        Audio("QQ==", "wav"),
        Document(Source(SourceKind.BASE64, "QQ==", "application/pdf"), "n"),
        Document(Source(SourceKind.BASE64, "QQ==")),
        Document(Source(SourceKind.FILE_ID, "id"), None, CacheMark()),
        Refusal("no"),
        Opaque(Protocol.CHAT, ("novel" * 20)[:64], json.dumps(novel).encode()),
    )
    assert [block.at for block in found] == [f"$.messages[0].content[{place}]" for place in range(9)]
    assert ledger.entries == ()


def test_an_answer_of_before_with_reasoning_text_refusal_and_calls() -> None:
    found = blocks(
        {
            "role": "assistant",
            "reasoning_text": "t",
            "reasoning_opaque": "S",
            "content": [{"type": "text", "text": "a"}],
            "refusal": "no",
            "tool_calls": [call(), {"id": "d", "type": "custom", "custom": {"name": "g", "input": "in"}}],
            "function_call": {"name": "old", "arguments": "{}"},
        }
    )
    assert found == (
        Reasoning(("t",), Signature(Protocol.CHAT, "S")),
        Text("a"),
        Refusal("no"),
        ToolCall("c", ToolRef("f"), "{}"),
        ToolCall("d", ToolRef("g"), "in", ToolKind.CUSTOM),
        ToolCall("call_legacy_old", ToolRef("old"), "{}"),
    )
    at = "$.messages[0]"
    assert [block.at for block in found] == [
        f"{at}.reasoning_text",
        f"{at}.content[0]",
        f"{at}.refusal",
        f"{at}.tool_calls[0]",
        f"{at}.tool_calls[1]",
        f"{at}.function_call",
    ]


@pytest.mark.parametrize(
    ("members", "reasoning"),
    [
        ({"reasoning_content": "t"}, Reasoning(("t",))),
        ({"reasoning": "t"}, Reasoning(("t",))),
        ({"reasoning_content": "", "reasoning": "t"}, Reasoning(("t",))),
        ({"reasoning_opaque": "S"}, Reasoning((), Signature(Protocol.CHAT, "S"))),
        ({"reasoning_opaque": "capi1.messages.S"}, Reasoning((), Signature(Protocol.MESSAGES, "S"))),
    ],
)
def test_reasoning_is_read_under_each_of_its_names(members: dict[str, str], reasoning: Reasoning) -> None:
    assert blocks({"role": "assistant", "content": "a", **members}) == (reasoning, Text("a"))


def test_results_that_follow_each_other_are_one_turn() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]}
    found = decode(USER, calls, result("a", "r"), result("b", [{"type": "text", "text": "s"}]), USER)
    assert found[2:] == [
        Turn(Role.USER, (ToolResult("a", (Text("r"),)), ToolResult("b", (Text("s"),)))),
        Turn(Role.USER, (Text("hi"),)),
    ]
    assert [found[2].at, *(block.at for block in found[2].blocks)] == [
        "$.messages[2]",
        "$.messages[2]",
        "$.messages[3]",
    ]
    assert decode(calls, result("a", None))[1:] == [Turn(Role.USER, (ToolResult("a", ()),))]


def test_a_function_of_before_there_were_tools_is_answered_by_its_name() -> None:
    asked = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    found = decode(asked, {"role": "function", "name": "f", "content": "r"})
    assert found[1].blocks == (ToolResult("call_legacy_f", (Text("r"),)),)


def test_a_result_takes_text_images_and_documents() -> None:
    ledger = Ledger()
    content = [
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "file", "file": {"file_id": "i"}},
        {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
    ]
    found = decode({"role": "assistant", "tool_calls": [call()]}, result("c", content), ledger=ledger)
    image, document = Image(Source(SourceKind.URL, "u")), Document(Source(SourceKind.FILE_ID, "i"))
    assert found[1].blocks == (ToolResult("c", (image, document)),)
    assert dropped(ledger) == ["$.messages[1].content[2]"]


def test_what_a_message_has_that_no_other_protocol_has_is_noted() -> None:
    ledger = Ledger()
    decode(
        {"role": "user", "content": "a", "name": "ann"},
        {"role": "assistant", "content": "a", "audio": {"id": "x"}, "reasoning_details": [{}], "annotations": []},
        {"role": "assistant", "content": "a", "audio": None, "reasoning_details": []},
        ledger=ledger,
    )
    assert dropped(ledger) == ["$.messages[0].name", "$.messages[1].audio", "$.messages[1].reasoning_details"]


def test_only_the_assistant_reasons_and_calls() -> None:
    ledger = Ledger()
    odd = {"role": "user", "content": "a", "reasoning": "t", "reasoning_opaque": "S", "tool_calls": [call()]}
    assert blocks({**odd, "function_call": {"name": "f"}}, ledger) == (Text("a"),)
    assert dropped(ledger) == [
        f"$.messages[0].{name}" for name in ("reasoning", "reasoning_opaque", "tool_calls", "function_call")
    ]
    with pytest.raises(ProtocolError):
        decode(odd, result("c", "r"))


def user(part: object) -> dict[str, object]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (5, "messages[0]"),
        ({}, "messages[0]"),
        ({"role": "robot", "content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "system", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "tool", "content": "r"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "r", "tool_call_id": ""}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "r", "tool_call_id": "c"}, "messages[0]"),
        ({"role": "function", "content": "r"}, "messages[0].name"),
        (user(5), "messages[0].content[0]"),
        (user({}), "messages[0].content[0]"),
        (user({"type": ""}), "messages[0].content[0].type"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (user({"type": "image_url"}), "messages[0].content[0].image_url"),
        (user({"type": "image_url", "image_url": {"url": ""}}), "messages[0].content[0].image_url.url"),
        (
            user({"type": "image_url", "image_url": {"url": "data:text/plain,a"}}),
            "messages[0].content[0].image_url.url",
        ),
        (user({"type": "input_audio"}), "messages[0].content[0].input_audio"),
        (user({"type": "file"}), "messages[0].content[0].file"),
        (user({"type": "file", "file": {"filename": "n"}}), "messages[0].content[0].file"),
        (user({"type": "file", "file": {"file_data": "data:a,b"}}), "messages[0].content[0].file.file_data"),
        ({"role": "assistant", "tool_calls": [call("")]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [call("c", "")]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "function_call": {"name": ""}}, "messages[0].function_call"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(message: object, param: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(message)
    assert (caught.value.code, caught.value.param, caught.value.status_hint) == ("invalid_request", param, 400)


def test_half_a_pair_of_surrogates_reads_as_a_replacement() -> None:
    (turn,) = read_messages([msgspec.Raw(b'{"role":"user","content":[{"type":"text","text":"a\\ud83d"}]}')], Ledger())
    assert turn.blocks == (Text("a\ufffd"),)
