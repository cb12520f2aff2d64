"""Content blocks become blocks, and what is wrong with one is told with its path."""

import json

import msgspec
import pytest

from capi_core.conversation import (
    Block,
    CacheMark,
    Document,
    Image,
    Opaque,
    Reasoning,
    Signature,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolRef,
    ToolResult,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.content_decoder import ContentReader

URL = {"type": "url", "url": "https://x/y"}


def blocks(*content: object, ledger: Ledger | None = None) -> list[Block]:
    raws = [msgspec.Raw(json.dumps(one).encode()) for one in content]
    return ContentReader(ledger or Ledger()).blocks(raws, "$.c")


def noted(*content: object) -> list[tuple[Change, str]]:
    ledger = Ledger()
    blocks(*content, ledger=ledger)
    return [(entry.change, entry.path) for entry in ledger]


def refusal(*content: object) -> str | None:
    with pytest.raises(ProtocolError) as caught:
        blocks(*content)
    assert (caught.value.status_hint, caught.value.code) == (400, "invalid_request")
    return caught.value.param


def test_text_is_a_block_and_blocks_know_where_they_stood() -> None:
    reader = ContentReader(Ledger())
    assert reader.blocks("hi", "$.c") == [Text("hi")]
    assert reader.blocks("", "$.c") == []
    (block,) = blocks({"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}})
    assert (block, block.at) == (Text("hi", CacheMark("1h")), "$.c[0]")


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "QQ=="}, Source(SourceKind.BASE64, "QQ==", "image/png")),
        (URL, Source(SourceKind.URL, "https://x/y")),
        ({"type": "file", "file_id": "f"}, Source(SourceKind.FILE_ID, "f")),
    ],
)
def test_images_and_documents_have_the_same_sources(source: object, read: Source) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    found = blocks({"type": "image", "source": source, **mark}, {"type": "document", "source": source, "title": "t"})
    assert found == [Image(read, None, CacheMark()), Document(read, "t")]


def test_documents_of_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "words"}
    assert blocks({"type": "document", "source": plain}) == [Document(Source(SourceKind.TEXT, "words", "text/plain"))]
    content = [{"type": "text", "text": "a"}, {"type": "image", "source": URL}, {"type": "text", "text": "b"}]
    ledger = Ledger()
    found = blocks({"type": "document", "source": {"type": "content", "content": content}}, ledger=ledger)
    assert found == [Document(Source(SourceKind.TEXT, "a\n\nb")), Image(Source(SourceKind.URL, "https://x/y"))]
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.ALTERED, "$.c[0]")]
    found = blocks({"type": "document", "source": {"type": "content", "content": "w"}})
    assert found == [Document(Source(SourceKind.TEXT, "w"))]


def test_a_search_result_is_text() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    block = {"type": "search_result", "source": "https://x", "title": "T", "content": content}
    assert blocks(block) == [Text("T\nhttps://x\n\none\n\ntwo")]
    assert noted(block) == [(Change.ALTERED, "$.c[0]")]


def test_a_calls_input_is_kept_byte_for_byte() -> None:
    raw = b'{"type":"tool_use","id":"t","name":"f","input":{ "b" : 1e2,"a":"\\u00e4" }}'
    (call,) = ContentReader(Ledger()).blocks([msgspec.Raw(raw)], "$.c")
    assert call == ToolCall("t", ToolRef("f"), '{ "b" : 1e2,"a":"\\u00e4" }')


def test_results() -> None:
    inner = [
        {"type": "text", "text": "a"},
        {"type": "image", "source": URL},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "d"}]}},
        {"type": "search_result", "source": "s", "title": "t", "content": []},
    ]
    result = {"type": "tool_result", "tool_use_id": "t"}
    assert blocks(
        result,
        {**result, "content": "x", "is_error": True, "cache_control": {"type": "ephemeral"}},
        {**result, "content": inner},
    ) == [
        ToolResult("t", ()),
        ToolResult("t", (Text("x"),), True, cache=CacheMark()),
        ToolResult(
            "t",
            (
                Text("a"),
                Image(Source(SourceKind.URL, "https://x/y")),
                Document(Source(SourceKind.TEXT, "d")),
                Text("t\ns"),
            ),
        ),
    ]
    odd = {**result, "content": [{"type": "tool_reference", "tool_name": "f"}]}
    assert blocks(odd) == [ToolResult("t", ())]
    assert noted(odd) == [(Change.DROPPED, "$.c[0].content[0]")]


@pytest.mark.parametrize(
    ("block", "read"),
    [
        ({"thinking": "hm", "signature": "S"}, [Reasoning(("hm",), Signature(Protocol.MESSAGES, "S"))]),
        ({"thinking": "hm", "signature": "capi1.chat.B"}, [Reasoning(("hm",), Signature(Protocol.CHAT, "B"))]),
        ({"thinking": "", "signature": "S"}, [Reasoning((), Signature(Protocol.MESSAGES, "unshown.S"))]),
        ({"thinking": "", "signature": "capi1.responses.E"}, [Reasoning((), Signature(Protocol.RESPONSES, "E"))]),
        ({"thinking": "hm", "signature": "capi1.chat."}, [Reasoning(("hm",))]),
        ({"thinking": "hm"}, [Reasoning(("hm",))]),
        ({"thinking": "", "signature": ""}, []),
        ({"type": "redacted_thinking", "data": "D"}, [Reasoning((), Signature(Protocol.MESSAGES, "D"))]),
        ({"type": "redacted_thinking", "data": "capi1.chat.B"}, [Reasoning((), Signature(Protocol.CHAT, "B"))]),
        ({"type": "redacted_thinking", "data": ""}, []),
    ],
)
def test_thinking_comes_back_with_the_signature_that_it_had(block: dict[str, str], read: list[Block]) -> None:
    assert blocks({"type": "thinking", **block}) == read


def test_blocks_of_the_provider_pass_unread() -> None:
    given = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    (block,) = blocks(given)
    assert isinstance(block, Opaque)
    assert (block.type, json.loads(block.raw)) == ("server_tool_use", given)


def test_options_that_only_messages_has_are_noted() -> None:
    text = {"type": "text", "text": "a"}
    assert noted({**text, "citations": []}, {**text, "citations": None}) == []
    assert noted({**text, "citations": [{"type": "char_location"}]}) == [(Change.DROPPED, "$.c[0].citations")]
    document = {"type": "document", "source": URL}
    assert noted({**document, "citations": {"enabled": True}, "context": "c"}) == [
        (Change.DROPPED, "$.c[0].context"),
        (Change.DROPPED, "$.c[0].citations"),
    ]
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert noted({**call, "caller": {"type": "direct"}}) == []
    assert noted({**call, "toolset_name": "browser"}) == [(Change.DROPPED, "$.c[0].toolset_name")]


@pytest.mark.parametrize(
    ("block", "param"),
    [
        (1, "c[0]"),
        ({}, "c[0].type"),
        ({"type": "x" * 65}, "c[0].type"),
        ({"type": 1}, "c[0].type"),
        ({"type": "text"}, "c[0]"),
        ({"type": "text", "text": 1}, "c[0].text"),
        ({"type": "text", "text": "", "cache_control": 1}, "c[0].cache_control"),
        ({"type": "image", "source": {"type": "text", "data": "x"}}, "c[0].source.type"),
        ({"type": "image", "source": {"type": "base64", "data": "x"}}, "c[0].source"),
        ({"type": "image", "source": {"type": "url"}}, "c[0].source"),
        ({"type": "document", "source": {"type": "odd"}}, "c[0].source"),
        ({"type": "document", "source": {"type": "content"}}, "c[0].source"),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "odd"}]}},
            "c[0].source.content[0]",
        ),
        ({"type": "search_result", "source": "s", "title": "t", "content": [{"text": 1}]}, "c[0].content[0].text"),
        ({"type": "tool_use", "id": "", "name": "f", "input": {}}, "c[0]"),
        ({"type": "tool_use", "id": "t", "name": "f", "input": []}, "c[0].input"),
        ({"type": "tool_use", "id": "t", "name": "f"}, "c[0]"),
        ({"type": "tool_result", "tool_use_id": "t", "content": 1}, "c[0].content"),
        (
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
            "c[0].content[0].type",
        ),
        ({"type": "thinking", "signature": "S"}, "c[0]"),
        ({"type": "redacted_thinking"}, "c[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(block: object, param: str) -> None:
    assert refusal(block) == param


def test_documents_inside_documents_do_not_nest() -> None:
    source: dict[str, object] = {**URL}
    for _ in range(200):
        source = {"type": "content", "content": [{"type": "document", "source": source}]}
    assert refusal({"type": "document", "source": source}) == "c[0].source.content[0].type"
