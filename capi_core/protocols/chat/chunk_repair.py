"""Chunks that an upstream left out, repeated or began too early, put right for a client of the same protocol.

no finish_reason       openai-js throws and others lose the answer: one is made, where [DONE] says that all was there
the same finish twice  readers that close a choice at its finish fail on the second one: it is taken out
a first chunk, about the prompt, without an id (Copilot, Azure; wire.md 1.8): openai-python calls the whole answer by
                       the first id, so the chunk waits for the answer's first one and goes out under its name
"""

from __future__ import annotations

from typing import Final

import msgspec
from attrs import frozen

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.splice import edit_items, one_line

__all__ = ["Identity", "is_nameless", "read_identity", "without_repeated"]


class _Head(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw()
    created: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    delta: dict[str, msgspec.Raw] | None = None


_HEAD: Final = msgspec.json.Decoder(_Head)
_CHOICE: Final = msgspec.json.Decoder(_Choice)
_SAYS_NOTHING: Final = frozenset({b"null", b'""', b"[]", b"{}"})


@frozen
class Identity:
    """What an answer is called in each of its chunks, raw JSON."""

    id: bytes
    created: bytes
    model: bytes

    def chunk(self, choice: int, *, delta: bytes = b"{}", reason: bytes = b"null") -> bytes:
        """A chunk of this answer; `delta` and `reason` are raw JSON."""
        return (
            b'{"id":%b,"object":"chat.completion.chunk","created":%b,"model":%b,'
            b'"choices":[{"index":%d,"delta":%b,"finish_reason":%b}]}'
            % (self.id, self.created, self.model, choice, delta, reason)
        )

    def name(self, text: bytes) -> bytes:
        """A chunk's text as one of this answer. As it is when a name stands twice in it."""
        names = {"id": self.id, "object": b'"chat.completion.chunk"', "created": self.created, "model": self.model}
        try:
            return JSONObject(text).edit(names)
        except MembersError:
            return text


def read_identity(text: bytes, name: bytes | None) -> Identity:
    """The identity in a chunk, a JSON object; with `name` for its model, unless that is `None`."""
    head = decode(_HEAD, text)[0]
    model = name or bytes(head.model) or b'""'
    return Identity(one_line(bytes(head.id) or b'""'), one_line(bytes(head.created) or b"0"), one_line(model))


def is_nameless(text: bytes) -> bool:
    """Whether a chunk has an id that says nothing."""
    return bytes(decode(_HEAD, text)[0].id) == b'""'


def without_repeated(text: bytes, finished: dict[int, str]) -> bytes:
    """A chunk's text without the choices that do nothing but finish again as they have: `finished`, the reasons by
    index. As it is when it cannot be read; then it is not ours to judge."""

    def edit(_: int, item: bytes) -> bytes | None:
        choice = decode(_CHOICE, item)[0]
        if choice.finish_reason is None or finished.get(choice.index) != choice.finish_reason:
            return item
        said = (bytes(value) for name, value in (choice.delta or {}).items() if name != "role")
        return None if all(value in _SAYS_NOTHING for value in said) else item

    try:
        document = JSONObject(text)
        return document.edit({"choices": edit_items(document.get("choices") or b"", edit)})
    except (msgspec.DecodeError, MembersError, UnicodeError, RecursionError):
        return text
