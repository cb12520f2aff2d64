"""Items of a request become turns, and what is wrong with one is told with its path."""

import json

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
from capi_core.fidelity import Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.input_items import read_input

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


def turns(*items: object, ledger: Ledger | None = None) -> list[Turn]:
    return read_input(json.dumps(items).encode(), ledger or Ledger())


def blocks(part: dict[str, object]) -> tuple[Block, ...]:
    (turn,) = turns({"role": "user", "content": [part]})
    return turn.blocks


def refusal(*items: object) -> tuple[str, str | None]:
    with pytest.raises(ProtocolError) as caught:
        turns(*items)
    assert caught.value.status_hint == 400
    return caught.value.code, caught.value.param


def test_a_text_is_one_message_of_the_user() -> None:
    assert read_input(b'"hi"', Ledger()) == [Turn(Role.USER, (Text("hi"),))]
    assert read_input(b'""', Ledger()) == []


def test_messages_keep_their_roles_and_the_assistants_items_are_one_turn() -> None:
    found = turns(
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "s"}]},
        {"role": "user", "content": "u"},
        {"role": "user", "content": ""},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "t"}], "content": None},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "r"}]},
        {**CALL, "namespace": "n"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
        {"type": "function_call_output", "call_id": "c", "output": "", "status": "incomplete"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "o"}]},
        {"role": "user", "content": "v"},
    )
    assert found == [
        Turn(Role.DEVELOPER, (Text("d"),)),
        Turn(Role.SYSTEM, (Text("s"),)),
        Turn(Role.USER, (Text("u"),)),
        Turn(Role.USER, ()),
        Turn(
            Role.ASSISTANT,
            (
                Reasoning(("t",)),
                Refusal("r"),
                ToolCall("c", ToolRef("f", "n"), "{}"),
                ToolCall("d", ToolRef("g"), "x", ToolKind.CUSTOM),
            ),
        ),
        Turn(Role.USER, (ToolResult("c", (), True), ToolResult("d", (Text("o"),), kind=ToolKind.CUSTOM))),
        Turn(Role.USER, (Text("v"),)),
    ]
    assert found[4].blocks[1].at == "$.input[5].content[0]"


def test_results_after_a_message_without_content_are_a_turn() -> None:
    found = turns(
        CALL, {"role": "user", "content": ""}, {"type": "function_call_output", "call_id": "c", "output": "o"}
    )
    assert [len(turn.blocks) for turn in found] == [1, 1]


def test_reasoning_comes_back_to_where_it_was_made() -> None:
    def signature(blob: str) -> Signature | None:
        (turn,) = turns({"type": "reasoning", "summary": [], "encrypted_content": blob})
        (block,) = turn.blocks
        assert isinstance(block, Reasoning)
        return block.signature

    assert signature("abc") == Signature(Protocol.RESPONSES, "abc")
    assert signature("capi1.messages.abc") == Signature(Protocol.MESSAGES, "abc")
    assert turns({"type": "reasoning", "summary": [], "encrypted_content": None}) == []


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"type": "output_text", "text": "a", "annotations": []}, Text("a")),
        ({"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"ttl": "30m"}}, Text("a", CacheMark("30m"))),
        (
            {"type": "input_image", "image_url": "data:image/png;base64,QQ==", "detail": "low"},
            Image(Source(SourceKind.BASE64, "QQ==", "image/png"), "low"),
        ),
        ({"type": "input_image", "image_url": "http://x"}, Image(Source(SourceKind.URL, "http://x"))),
        ({"type": "input_image", "image_url": "data:image/png,x"}, Image(Source(SourceKind.URL, "data:image/png,x"))),
        ({"type": "input_image", "file_id": "f"}, Image(Source(SourceKind.FILE_ID, "f"))),
        (
            {"type": "input_file", "file_data": "data:;base64,QQ==", "filename": "n"},
            Document(Source(SourceKind.BASE64, "QQ=="), "n"),
        ),
        ({"type": "input_file", "file_data": "QQ=="}, Document(Source(SourceKind.BASE64, "QQ=="))),
        ({"type": "input_file", "file_url": "u"}, Document(Source(SourceKind.URL, "u"))),
        ({"type": "input_file", "file_id": "f"}, Document(Source(SourceKind.FILE_ID, "f"))),
        ({"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}, Audio("QQ==", "wav")),
        ({"type": "input_video"}, Opaque(Protocol.RESPONSES, "input_video", b'{"type": "input_video"}')),
    ],
)
def test_parts_become_blocks(part: dict[str, object], block: Block) -> None:
    assert blocks(part) == (block,)


def test_unknown_items_are_opaque_on_the_side_that_makes_them() -> None:
    found = turns({"type": "web_search_call", "id": "w"}, {"type": "shell_call_output"}, {"type": "additional_tools"})
    assert [(turn.role, type(turn.blocks[0])) for turn in found] == [(Role.ASSISTANT, Opaque), (Role.USER, Opaque)]


def test_what_is_lost_is_noted() -> None:
    ledger = Ledger()
    cited = {"type": "output_text", "text": "a", "annotations": [{}]}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "refusal", "refusal": "r"}]}
    turns({"role": "assistant", "content": [cited]}, CALL, output, ledger=ledger)
    assert [entry.path for entry in ledger] == ["$.input[0].content[0].annotations", "$.input[2].output[0]"]


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (5, "invalid_request", "input[0]"),
        ({"type": 5}, "invalid_request", "input[0].type"),
        ({"type": ""}, "invalid_request", "input[0].type"),
        ({"type": "x" * 65}, "invalid_request", "input[0].type"),
        ({"role": "user"}, "invalid_request", "input[0]"),
        ({"role": "king", "content": ""}, "invalid_request", "input[0].role"),
        ({"role": "user", "content": [5]}, "invalid_request", "input[0].content[0]"),
        ({"role": "user", "content": [{}]}, "invalid_request", "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "invalid_request", "input[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "input_text", "text": 5}]},
            "invalid_request",
            "input[0].content[0].text",
        ),
        ({"role": "user", "content": [{"type": "refusal"}]}, "invalid_request", "input[0].content[0].refusal"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "invalid_request", "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "invalid_request", "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "invalid_request", "input[0].content[0].input_audio"),
        ({"type": "reasoning", "summary": [{"text": []}]}, "invalid_request", "input[0].summary[0].text"),
        ({**CALL, "call_id": ""}, "invalid_request", "input[0]"),
        ({**CALL, "arguments": {}}, "invalid_request", "input[0].arguments"),
        ({"type": "function_call_output", "call_id": "c", "output": ""}, "invalid_request", "input[0].call_id"),
        ({"type": "item_reference", "id": "x"}, "untranslatable", "input[0]"),
        ({"id": "x"}, "untranslatable", "input[0]"),
        ({"type": "compaction", "encrypted_content": "x"}, "untranslatable", "input[0]"),
        ({"type": "compaction_trigger"}, "untranslatable", "input[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(item: object, code: str, param: str) -> None:
    assert refusal(item) == (code, param)
