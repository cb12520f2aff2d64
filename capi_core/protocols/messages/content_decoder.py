"""Content blocks of a request, as blocks in no protocol's shape.

Source: Anthropic API reference, "Create a Message", `messages[].content`; wire.md 1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Block,
    CacheMark,
    Document,
    Image,
    Opaque,
    Reasoning,
    ResultBlock,
    Signature,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolRef,
    ToolResult,
)
from capi_core.fidelity import Change
from capi_core.protocols.carriage import unwrap
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSHOWN
from capi_core.protocols.messages.request_wire import MOST_TYPE, NULL, TYPED, CacheControl, invalid, is_one_of
from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from capi_core.fidelity import Ledger

__all__ = ["ContentReader", "note_options"]

_PLAIN: Final = (b"", NULL, b"false", b"[]", b'{"type":"direct"}', b'{"enabled":false}')
"""Values of the options of blocks that change nothing."""
_IN_RESULT: Final = frozenset({"text", "image", "document", "search_result"})
_IN_DOCUMENT: Final = frozenset({"text", "image"})


class _Text(msgspec.Struct):
    text: str
    cache_control: CacheControl | None = None
    citations: msgspec.Raw = msgspec.Raw()


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: str | list[msgspec.Raw] | None = None


class _Image(msgspec.Struct):
    source: _Source
    cache_control: CacheControl | None = None
    transformations: msgspec.Raw = msgspec.Raw()


class _Document(msgspec.Struct):
    source: _Source
    title: str | None = None
    cache_control: CacheControl | None = None
    context: msgspec.Raw = msgspec.Raw()
    citations: msgspec.Raw = msgspec.Raw()


class _SearchResult(msgspec.Struct):
    source: str
    title: str
    content: list[_Text]
    cache_control: CacheControl | None = None


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: msgspec.Raw
    cache_control: CacheControl | None = None
    caller: msgspec.Raw = msgspec.Raw()
    toolset_name: msgspec.Raw = msgspec.Raw()


class _ToolResult(msgspec.Struct):
    tool_use_id: str
    content: str | list[msgspec.Raw] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class _Thinking(msgspec.Struct):
    thinking: str
    signature: str | None = None


class _Redacted(msgspec.Struct):
    data: str


_TEXT: Final = msgspec.json.Decoder(_Text)
_IMAGE: Final = msgspec.json.Decoder(_Image)
_DOCUMENT: Final = msgspec.json.Decoder(_Document)
_SEARCH_RESULT: Final = msgspec.json.Decoder(_SearchResult)
_TOOL_USE: Final = msgspec.json.Decoder(_ToolUse)
_TOOL_RESULT: Final = msgspec.json.Decoder(_ToolResult)
_THINKING: Final = msgspec.json.Decoder(_Thinking)
_REDACTED: Final = msgspec.json.Decoder(_Redacted)


def note_options(ledger: Ledger, at: str, **options: msgspec.Raw) -> None:
    """Notes the options that have no place in another protocol, unless they change nothing."""
    for name, value in options.items():
        if not is_one_of(bytes(value), _PLAIN):
            ledger.dropped(f"{at}.{name}", "only Messages has this option")


class ContentReader:
    """Reads blocks; what has no place is noted in `ledger`. Each method raises `ProtocolError` (400)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._readers: Final[dict[str, Callable[[bytes, str], list[Block]]]] = {
            "text": self._text,
            "image": self._image,
            "document": self._document,
            "search_result": self._search_result,
            "tool_use": self._tool_use,
            "tool_result": self._tool_result,
            "thinking": self._thinking,
            "redacted_thinking": self._redacted,
        }

    def blocks(self, content: str | list[msgspec.Raw], at: str, within: frozenset[str] | None = None) -> list[Block]:
        """The blocks of a `content`, which stands at the JSON path `at`.

        `within`: which of the types that are known here may stand inside another block; so blocks nest three deep.
        """
        if isinstance(content, str):
            return [Text(content, at=at)] if content else []
        found: list[Block] = []
        for place, raw in enumerate(content):
            found += self._block(bytes(raw), f"{at}[{place}]", within)
        return found

    def _block(self, raw: bytes, at: str, within: frozenset[str] | None) -> list[Block]:
        kind = read_json(TYPED, raw, at).type
        if not kind or len(kind) > MOST_TYPE:
            raise invalid(f"{at}.type", f"must be the name of a block type, of 1 to {MOST_TYPE} characters")
        reader = self._readers.get(kind)
        if reader is None:
            return [Opaque(Protocol.MESSAGES, kind, raw, at=at)]
        if within is not None and kind not in within:
            raise invalid(f"{at}.type", "such a block does not stand inside another one")
        return reader(raw, at)

    def _text(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_TEXT, raw, at)
        if not is_one_of(bytes(block.citations), _PLAIN):
            self._ledger.dropped(f"{at}.citations", "citations are not given back to the model")
        return [Text(block.text, _cache(block.cache_control), at=at)]

    def _image(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_IMAGE, raw, at)
        note_options(self._ledger, at, transformations=block.transformations)
        source = _source(block.source, f"{at}.source")
        if source is None:
            raise invalid(f"{at}.source.type", "must be base64, url or file")
        return [Image(source, None, _cache(block.cache_control), at=at)]

    def _document(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_DOCUMENT, raw, at)
        note_options(self._ledger, at, context=block.context, citations=block.citations)
        given, cache = block.source, _cache(block.cache_control)
        inside = f"{at}.source"
        source = _source(given, inside)
        if source is not None:
            return [Document(source, block.title, cache, at=at)]
        if given.type == "text" and given.data is not None:
            return [Document(Source(SourceKind.TEXT, given.data, given.media_type), block.title, cache, at=at)]
        if given.type != "content" or given.content is None:
            raise invalid(inside, "must be of type base64, text, content, url or file, and hold what that needs")
        texts, images = _sorted(self.blocks(given.content, f"{inside}.content", _IN_DOCUMENT))
        if images:
            self._ledger.add(Change.ALTERED, at, "the images in a document follow its text")
        words = "\n\n".join(text.text for text in texts)
        return [Document(Source(SourceKind.TEXT, words), block.title, cache, at=at), *images]

    def _search_result(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_SEARCH_RESULT, raw, at)
        self._ledger.add(Change.ALTERED, at, "a search result is sent as text: title, source and content")
        words = "\n\n".join([f"{block.title}\n{block.source}", *(text.text for text in block.content)])
        return [Text(words, _cache(block.cache_control), at=at)]

    def _tool_use(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_TOOL_USE, raw, at)
        arguments = bytes(block.input)
        if not block.id or not block.name:
            raise invalid(at, "a tool_use has an `id` and a `name` that are not empty")
        if not arguments.startswith(b"{"):
            raise invalid(f"{at}.input", "must be an object")
        note_options(self._ledger, at, caller=block.caller, toolset_name=block.toolset_name)
        return [ToolCall(block.id, ToolRef(block.name), arguments.decode(), cache=_cache(block.cache_control), at=at)]

    def _tool_result(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_TOOL_RESULT, raw, at)
        content: list[ResultBlock] = []
        for part in self.blocks(block.content or [], f"{at}.content", _IN_RESULT):
            if isinstance(part, Text | Image | Document):
                content.append(part)
            else:
                self._ledger.dropped(part.at, "a tool's result holds text, images and documents only")
        failed, cache = bool(block.is_error), _cache(block.cache_control)
        return [ToolResult(block.tool_use_id, tuple(content), failed, cache=cache, at=at)]

    def _thinking(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_THINKING, raw, at)
        parts = (block.thinking,) if block.thinking else ()
        signature = unwrap(block.signature or "", Protocol.MESSAGES)
        if not signature.value:
            return [Reasoning(parts, at=at)] if parts else []
        if not parts and signature.origin is Protocol.MESSAGES:
            signature = Signature(Protocol.MESSAGES, UNSHOWN + signature.value)
        return [Reasoning(parts, signature, at=at)]

    def _redacted(self, raw: bytes, at: str) -> list[Block]:
        block = read_json(_REDACTED, raw, at)
        return [Reasoning((), unwrap(block.data, Protocol.MESSAGES), at=at)] if block.data else []


def _cache(control: CacheControl | None) -> CacheMark | None:
    return None if control is None else CacheMark(control.ttl)


def _source(given: _Source, at: str) -> Source | None:
    """What images and documents have in common; `None` for a source of another type."""
    match given:
        case _Source(type="base64", data=str(data), media_type=str(media_type)):
            return Source(SourceKind.BASE64, data, media_type)
        case _Source(type="url", url=str(url)):
            return Source(SourceKind.URL, url)
        case _Source(type="file", file_id=str(file_id)):
            return Source(SourceKind.FILE_ID, file_id)
        case _Source(type="base64" | "url" | "file"):
            raise invalid(at, "lacks what its type needs: `data` and `media_type`, a `url` or a `file_id`")
        case _:
            return None


def _sorted(parts: Iterable[Block]) -> tuple[list[Text], list[Image]]:
    texts, images = [], []
    for part in parts:
        if isinstance(part, Text):
            texts.append(part)
        elif isinstance(part, Image):
            images.append(part)
        else:
            raise invalid(part.at, "a document's content is made of text and images")
    return texts, images
