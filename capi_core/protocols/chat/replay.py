"""What a Chat client gives back that an upstream of its own protocol must not get: reasoning of another's provider.

Its blob was carried to the client in `reasoning_opaque` (`carriage`). Providers refuse one that is not their own, so
that member goes; the text of the reasoning stays.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.carriage import MARK
from capi_core.protocols.splice import edit_items, without

__all__ = ["own_messages"]

_MEMBER: Final = "reasoning_opaque"
_CARRIED: Final = b'"%b' % MARK.encode()


class _Message(msgspec.Struct):
    reasoning_opaque: str | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message)


def own_messages(messages: bytes) -> bytes:
    """The array `messages` without carried blobs; every other byte is the client's."""
    if _CARRIED not in messages or not messages.startswith(b"["):
        return messages
    try:
        return edit_items(messages, _own_message)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # as below
        return messages


def _own_message(place: int, text: bytes) -> bytes:
    if _CARRIED not in text:
        return text
    try:
        blob = decode(_MESSAGE, text)[0].reasoning_opaque
        return text if blob is None or not blob.startswith(MARK) else without(JSONObject(text), {_MEMBER})
    except (msgspec.DecodeError, MembersError, UnicodeError, RecursionError):  # only the upstream may judge its shape
        return text
