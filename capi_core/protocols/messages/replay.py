"""A Messages request for an upstream of its own protocol: the model's name, and the thinking that a client gives back.

Thinking of another protocol's provider was carried to the client in `signature` or `data` (`carriage`). Anthropic
refuses a signature that is not its own, so those blocks go, and a turn that had nothing else goes with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.carriage import MARK
from capi_core.protocols.openai import json_string
from capi_core.protocols.splice import edit_items

if TYPE_CHECKING:
    from capi_core.protocols.codec import ClientRequest

__all__ = ["encode_passed_request"]


class _Turn(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()


class _Block(msgspec.Struct):
    type: str | None = None
    signature: str | None = None
    data: str | None = None


_TURN: Final = msgspec.json.Decoder(_Turn)
_BLOCK: Final = msgspec.json.Decoder(_Block)
_CARRIED: Final = b'"%b' % MARK.encode()


def encode_passed_request(request: ClientRequest, *, upstream_model: str) -> bytes:
    """The request's text with the upstream's name for the model; every byte that need not change is the client's."""
    document = request.document
    changes: dict[str, bytes] = {}
    if upstream_model != request.model:
        changes["model"] = json_string(upstream_model)
    turns = document.get("messages")
    if turns is not None and turns.startswith(b"[") and _CARRIED in turns:
        edited = edit_items(turns, _own_turn)
        if edited != turns:
            changes["messages"] = edited
    return document.edit(changes) if changes else document.text


def _own_turn(place: int, text: bytes) -> bytes | None:
    """The turn without carried thinking; `None` when nothing else is in it."""
    if _CARRIED not in text:
        return text
    try:
        content = bytes(decode(_TURN, text)[0].content)
        if not content.startswith(b"["):
            return text
        kept = edit_items(content, _own_block)
        if kept == content:
            return text
        return JSONObject(text).edit({"content": kept}) if kept.strip(b"[] \t\r\n") else None
    except (msgspec.DecodeError, MembersError, UnicodeError):  # of a shape that only the upstream may judge
        return text


def _own_block(place: int, text: bytes) -> bytes | None:
    if _CARRIED not in text:
        return text
    try:
        block, _ = decode(_BLOCK, text)
    except msgspec.DecodeError:
        return text
    carried = {"thinking": block.signature, "redacted_thinking": block.data}.get(block.type or "")
    return None if carried is not None and carried.startswith(MARK) else text
