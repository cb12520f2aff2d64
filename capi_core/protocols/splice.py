"""Edits inside raw JSON that `members` does not do: a member taken out, the items of an array changed or taken out.

As there, every byte that need not change stays as it came.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.members import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from capi_core.members import JSONObject

__all__ = ["edit_items", "one_line", "without"]

_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NAME: Final = re.compile(rb'[{,\s]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:\s*+', re.DOTALL)
_OPEN: Final = b"{"


def without(document: JSONObject, names: Collection[str]) -> bytes:
    """The object's text without the members called `names`, and without the comma that went with each."""
    if not any(name in names for name in document.names):
        return document.text
    text = document.text
    kept: list[bytes] = []
    first = end = text.index(_OPEN) + 1
    for name in document.names:
        found = _NAME.match(text, end)
        if found is None:
            raise AssertionError("a member has a name")
        start, end = end, found.end() + len(document.get(name) or b"")
        if name not in names:
            leads = not kept and start > first  # what stood before it is gone, so its comma goes too
            kept.append(text[start:end].lstrip(b", \t\r\n") if leads else text[start:end])
    return text[:first] + b"".join(kept) + text[end:]


def edit_items(text: bytes, edit: Callable[[int, bytes], bytes | None]) -> bytes:
    """The JSON array `text`, each item replaced by what `edit` makes of its place and its text; `None` takes it out.

    Raises `msgspec.DecodeError` when `text` is no array.
    """
    items, readable = decode(_ITEMS, text)
    parts: list[bytes] = []
    first = end = readable.index(b"[") + 1
    for place, item in enumerate(items):
        # Only white space and a comma come before an item, so the first place where its text stands is its own.
        start = readable.index(bytes(item), end)
        separator, value = text[end:start], text[start : start + len(item)]
        end = start + len(item)
        edited = edit(place, value)
        if edited is not None:
            parts += [separator if parts or not place else b"", edited]
    return text[:first] + b"".join(parts) + text[end:]


def one_line(text: bytes) -> bytes:
    """Raw JSON without line ends, which in JSON are only white space between tokens: fit for one `data:` line."""
    if b"\n" not in text and b"\r" not in text:
        return text
    return text.replace(b"\r", b" ").replace(b"\n", b" ")
