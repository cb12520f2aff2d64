"""Turns become items that OpenAI takes, and what does not fit is noted with its path."""

import pytest

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
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
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.item_encoder import ItemEncoder
from capi_core.target import Target
from capi_core.tool_names import ToolNames


def encode(
    role: Role,
    *blocks: Block,
    ledger: Ledger | None = None,
    sender: Protocol = Protocol.MESSAGES,
    target: Target | None = None,
    before: tuple[Turn, ...] = (),
) -> list[object]:
    turn = Turn(role, blocks)
    conversation = Conversation(sender, "m", (*before, turn))
    return ItemEncoder(conversation, target or Target("up"), ToolNames(), ledger or Ledger()).items(turn)


def test_results_come_before_the_words_of_the_same_turn() -> None:
    items = encode(Role.USER, Text("a"), ToolResult("c", (Text("r"),)), Text("b"))
    assert items == [
        {"type": "function_call_output", "call_id": "c", "output": "r"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
    ]


def test_the_assistants_items_keep_their_order() -> None:
    ledger = Ledger()
    mine, foreign = Signature(Protocol.RESPONSES, "E"), Signature(Protocol.MESSAGES, "S")
    items = encode(
        Role.ASSISTANT,
        Reasoning(("t", ""), mine),
        Reasoning(("x",), foreign, at="r1"),
        Reasoning(("x",), at="r2"),
        Reasoning(("x",), Signature(Protocol.RESPONSES, ""), at="r3"),
        Text("a", CacheMark(), at="t"),
        Refusal("no"),
        Text(""),
        ToolCall("c", ToolRef("f"), ""),
        ToolCall("d", ToolRef("g"), "in", ToolKind.CUSTOM),
        Opaque(Protocol.MESSAGES, "server_tool_use", b"{}", at="o"),
        Image(Source(SourceKind.URL, "u"), at="i"),
        Audio("QQ==", "wav", at="au"),
        ledger=ledger,
    )
    assert items == [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}], "encrypted_content": "E"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "in"},
    ]
    assert [entry.path for entry in ledger] == ["r1", "r2", "r3", "t", "o", "i", "au"]


@pytest.mark.parametrize(
    ("role", "known", "told"),
    [
        (Role.DEVELOPER, True, "developer"),
        (Role.DEVELOPER, False, "system"),
        (Role.SYSTEM, True, "system"),
    ],
)
def test_a_system_turn_stays_where_it_is(role: Role, known: bool, told: str) -> None:
    (item,) = encode(role, Text("a"), target=Target("up", developer_role=known))
    assert isinstance(item, dict)
    assert item["role"] == told


def test_a_turn_without_content_is_no_item() -> None:
    assert encode(Role.USER, Text("")) == encode(Role.USER) == []


def test_cache_points_pass_between_openais_protocols_only() -> None:
    ledger = Ledger()
    marked = Text("a", CacheMark("30m"), at="t")
    (kept,) = encode(Role.USER, marked, Image(Source(SourceKind.FILE_ID, "f"), None, CacheMark()), sender=Protocol.CHAT)
    assert isinstance(kept, dict)
    assert [part["prompt_cache_breakpoint"] for part in kept["content"]] == [
        {"mode": "explicit", "ttl": "30m"},
        {"mode": "explicit"},
    ]
    call, result = (
        ToolCall("c", ToolRef("f"), "{}", cache=CacheMark(), at="c"),
        ToolResult("c", (marked,), cache=CacheMark(), at="r"),
    )
    encode(Role.USER, marked, call, result, ledger=ledger)
    assert sorted(entry.path for entry in ledger) == ["c", "r", "t"]


def test_a_result_answers_the_kind_of_call_that_was_made_and_tells_a_failure() -> None:
    ledger = Ledger()
    call = Turn(Role.ASSISTANT, (ToolCall("c", ToolRef("f"), "x", ToolKind.CUSTOM),))
    (item,) = encode(Role.USER, ToolResult("c", (), True, at="r"), before=(call,), ledger=ledger)
    assert item == {"type": "custom_tool_call_output", "call_id": "c", "output": "", "status": "incomplete"}
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.ALTERED, "r")]


def test_a_result_with_several_parts_or_images_is_a_list() -> None:
    image = Image(Source(SourceKind.BASE64, "QQ==", "image/gif"))
    (item,) = encode(Role.USER, ToolResult("c", (Text("a"), image)))
    assert isinstance(item, dict)
    assert [part["type"] for part in item["output"]] == ["input_text", "input_image"]
    (none,) = encode(Role.USER, ToolResult("c", (image,)), target=Target("up", images=False))
    assert isinstance(none, dict)
    assert none["output"] == ""


def test_a_call_id_that_is_too_long_becomes_the_same_digest_at_both_ends() -> None:
    ledger = Ledger()
    call, result = encode(
        Role.USER, ToolCall("c" * 65, ToolRef("f"), "{}", at="x"), ToolResult("c" * 65, ()), ledger=ledger
    )[::-1]
    assert isinstance(call, dict)
    assert isinstance(result, dict)
    assert call["call_id"] == result["call_id"] != "c" * 65
    assert {entry.change for entry in ledger} == {Change.SYNTHESISED}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (Image(Source(SourceKind.BASE64, "QQ==")), {"detail": "auto", "image_url": "data:image/png;base64,QQ=="}),
        (Image(Source(SourceKind.URL, "u"), "low"), {"detail": "low", "image_url": "u"}),
        (Image(Source(SourceKind.FILE_ID, "f")), {"detail": "auto", "file_id": "f"}),
        (
            Document(Source(SourceKind.BASE64, "QQ==")),
            {"filename": "document.pdf", "file_data": "data:application/pdf;base64,QQ=="},
        ),
        (Document(Source(SourceKind.URL, "u"), "n"), {"filename": "n", "file_url": "u"}),
        (Document(Source(SourceKind.FILE_ID, "f")), {"file_id": "f"}),
        (Document(Source(SourceKind.TEXT, "words"), "n"), {"text": "n\n\nwords"}),
        (Document(Source(SourceKind.TEXT, "words")), {"text": "words"}),
        (Refusal("r"), {"text": "r"}),
    ],
)
def test_parts_of_a_message(block: Block, part: dict[str, str]) -> None:
    (item,) = encode(Role.USER, block, sender=Protocol.CHAT)
    assert isinstance(item, dict)
    (found,) = item["content"]
    assert {name: value for name, value in found.items() if name != "type"} == part


@pytest.mark.parametrize(
    ("block", "target"),
    [
        (Image(Source(SourceKind.BASE64, "QQ=="), at="x"), Target("up", images=False)),
        (Image(Source(SourceKind.URL, "u"), at="x"), Target("up", image_urls=False)),
        (Image(Source(SourceKind.FILE_ID, "f"), at="x"), Target("up")),
        (Document(Source(SourceKind.FILE_ID, "f"), at="x"), Target("up")),
        (Document(Source(SourceKind.TEXT, ""), at="x"), Target("up")),
        (Audio("QQ==", "wav", at="x"), Target("up")),
    ],
)
def test_what_the_target_cannot_take_is_left_out_and_noted(block: Block, target: Target) -> None:
    ledger = Ledger()
    assert encode(Role.USER, block, target=target, ledger=ledger) == []
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.DROPPED, "x")]
