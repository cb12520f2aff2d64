"""Blocks become content blocks that Anthropic takes; what is lost on the way is noted."""

import json

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
    Signature,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolRef,
    ToolResult,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.cache_marks import CacheMarks
from capi_core.protocols.messages.content_encoder import ContentEncoder
from capi_core.protocols.writing import json_bytes
from capi_core.target import Target
from capi_core.tool_names import ToolNames

URL = Source(SourceKind.URL, "https://x")


class Encoded:
    """An encoder, and what it noted."""

    def __init__(self, target: Target | None = None, sender: Protocol = Protocol.CHAT) -> None:
        self.ledger = Ledger()
        conversation = Conversation(sender, "m", ())
        marks = CacheMarks(self.ledger)
        self.encoder = ContentEncoder(conversation, target or Target("up"), ToolNames(), marks, self.ledger)

    def user(self, block: Block) -> object:
        return json.loads(json_bytes(self.encoder.user(block)))

    def assistant(self, block: Block) -> object:
        return json.loads(json_bytes(self.encoder.assistant(block, "id")))

    def result(self, result: ToolResult) -> object:
        return json.loads(json_bytes(self.encoder.result(result, "id")))

    @property
    def noted(self) -> list[Change]:
        return [entry.change for entry in self.ledger]


def test_text_keeps_its_mark_and_blank_text_is_nothing() -> None:
    encoded = Encoded()
    assert encoded.user(Text("a", CacheMark())) == [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    ]
    assert encoded.assistant(Text("a")) == [{"type": "text", "text": "a"}]
    assert [encoded.user(Text(blank)) for blank in ("", " \n")] == [[], []]
    assert encoded.noted == []


def test_system_prompts_are_text() -> None:
    encoded = Encoded()
    blocks = (Text("a"), Refusal("b"), Refusal(" "), Audio("x", "wav"))
    assert [part for block in blocks for part in encoded.encoder.system(block)] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert encoded.noted == [Change.DROPPED]


def test_refusals_are_text() -> None:
    encoded = Encoded()
    assert encoded.assistant(Refusal("no")) == [{"type": "text", "text": "no"}]
    assert encoded.noted == [Change.ALTERED]
    assert encoded.user(Refusal("no")) == [{"type": "text", "text": "no"}]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (URL, {"type": "url", "url": "https://x"}),
        (
            Source(SourceKind.BASE64, "QQ==", "image/webp"),
            {"type": "base64", "media_type": "image/webp", "data": "QQ=="},
        ),
        (
            Source(SourceKind.BASE64, "QQ==", "image/jpg"),
            {"type": "base64", "media_type": "image/jpeg", "data": "QQ=="},
        ),
        (Source(SourceKind.BASE64, "/9j/4"), {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4"}),
        (Source(SourceKind.BASE64, "QQ=="), {"type": "base64", "media_type": "image/png", "data": "QQ=="}),
        (Source(SourceKind.FILE_ID, "f"), None),
    ],
)
def test_images(source: Source, told: object) -> None:
    encoded = Encoded()
    assert encoded.user(Image(source)) == ([{"type": "image", "source": told}] if told else [])
    assert encoded.noted == ([] if told else [Change.DROPPED])


def test_the_resolution_of_an_image_is_not_chosen() -> None:
    encoded = Encoded()
    encoded.user(Image(URL, "auto"))
    assert encoded.noted == []
    encoded.user(Image(URL, "high"))
    assert encoded.noted == [Change.DROPPED]


def test_files_of_messages_own_pass() -> None:
    found = Encoded(sender=Protocol.MESSAGES).user(Document(Source(SourceKind.FILE_ID, "f")))
    assert found == [{"type": "document", "source": {"type": "file", "file_id": "f"}}]


@pytest.mark.parametrize("target", [Target("up", images=False), Target("up", image_urls=False)])
def test_an_image_that_the_model_cannot_have_is_refused(target: Target) -> None:
    with pytest.raises(ProtocolError) as caught:
        Encoded(target).user(Image(URL, at="$.messages[0].content[1]"))
    assert (caught.value.code, caught.value.status_hint) == ("untranslatable", 400)
    assert caught.value.param == "messages[0].content[1]"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (URL, {"type": "url", "url": "https://x"}),
        (Source(SourceKind.BASE64, "QQ=="), {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}),
        (Source(SourceKind.TEXT, "t"), {"type": "text", "media_type": "text/plain", "data": "t"}),
        (
            Source(SourceKind.BASE64, "QQ==", "text/markdown"),
            {"type": "text", "media_type": "text/plain", "data": "A"},
        ),
        (Source(SourceKind.BASE64, "/w==", "text/plain"), None),
        (Source(SourceKind.BASE64, "*", "text/plain"), None),
        (Source(SourceKind.BASE64, "IA==", "text/plain"), None),
        (Source(SourceKind.BASE64, "QQ==", "application/zip"), None),
        (Source(SourceKind.TEXT, " "), None),
        (Source(SourceKind.FILE_ID, "f"), None),
    ],
)
def test_documents(source: Source, told: object) -> None:
    encoded = Encoded()
    found = encoded.user(Document(source, "T", CacheMark()))
    mark = {"cache_control": {"type": "ephemeral"}}
    assert found == ([{"type": "document", "source": told, "title": "T", **mark}] if told else [])
    assert encoded.noted == ([] if told else [Change.DROPPED])


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (
            Reasoning(("a", "b"), Signature(Protocol.MESSAGES, "S")),
            {"type": "thinking", "thinking": "a\n\nb", "signature": "S"},
        ),
        (
            Reasoning((), Signature(Protocol.MESSAGES, "unshown.S")),
            {"type": "thinking", "thinking": "", "signature": "S"},
        ),
        (Reasoning((), Signature(Protocol.MESSAGES, "D")), {"type": "redacted_thinking", "data": "D"}),
        (Reasoning(("a",), Signature(Protocol.CHAT, "S")), None),
        (Reasoning(("a",), Signature(Protocol.MESSAGES, "")), None),
        (Reasoning(("a",)), None),
    ],
)
def test_only_reasoning_that_anthropic_signed_goes_back_to_it(block: Reasoning, told: object) -> None:
    encoded = Encoded()
    assert encoded.assistant(block) == ([told] if told else [])
    assert encoded.noted == ([] if told else [Change.DROPPED])


@pytest.mark.parametrize(
    ("arguments", "kind", "told", "noted"),
    [
        ('{"a":1}', ToolKind.FUNCTION, {"a": 1}, []),
        (" ", ToolKind.FUNCTION, {}, []),
        ("[1]", ToolKind.FUNCTION, {"arguments": "[1]"}, [Change.ALTERED]),
        ('{"a":', ToolKind.FUNCTION, {"arguments": '{"a":'}, [Change.ALTERED]),
        ("free", ToolKind.CUSTOM, {"input": "free"}, []),
    ],
)
def test_calls(arguments: str, kind: ToolKind, told: object, noted: list[Change]) -> None:
    encoded = Encoded()
    found = encoded.assistant(ToolCall("t", ToolRef("f"), arguments, kind, CacheMark()))
    mark = {"cache_control": {"type": "ephemeral"}}
    assert found == [{"type": "tool_use", "id": "id", "name": "f", "input": told, **mark}]
    assert encoded.noted == noted


@pytest.mark.parametrize(
    ("result", "told", "noted"),
    [
        (ToolResult("t", ()), {}, []),
        (ToolResult("t", (Text("x"),), True), {"content": "x", "is_error": True}, []),
        (ToolResult("t", (Text(" "),)), {}, []),
        (ToolResult("t", (Text("a"), Text("b"))), {"content": [{"type": "text", "text": one} for one in "ab"]}, []),
        (
            ToolResult("t", (Image(URL),), cache=CacheMark()),
            {"content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}
            | {"cache_control": {"type": "ephemeral"}},
            [],
        ),
        (
            ToolResult("t", (), True),
            {"content": "The tool failed and gave no output.", "is_error": True},
            [Change.SYNTHESISED],
        ),
    ],
)
def test_results(result: ToolResult, told: dict[str, object], noted: list[Change]) -> None:
    encoded = Encoded()
    assert encoded.result(result) == {"type": "tool_result", "tool_use_id": "id", **told}
    assert encoded.noted == noted


def test_what_has_no_place_is_dropped() -> None:
    encoded = Encoded()
    own = Opaque(Protocol.MESSAGES, "server_tool_use", b'{"type":"server_tool_use"}')
    assert (encoded.user(own), encoded.assistant(own)) == ([{"type": "server_tool_use"}], [{"type": "server_tool_use"}])
    for block in (Opaque(Protocol.CHAT, "x", b"{}"), Audio("x", "wav"), Reasoning(("x",))):
        assert encoded.user(block) == []
    assert encoded.assistant(Image(URL, at="$.i")) == []
    assert encoded.ledger.losses == 3 + 1
