"""A Responses request for an upstream of its own protocol: the model's name, and the items that a client gives back.

Two things of earlier answers must not reach the upstream. Reasoning of another protocol's provider, which we carried in
`encrypted_content` (`carriage`), means nothing to it: the whole item goes. And ids: Copilot gives an item another id in
every event and then refuses the item under the wrong one, but takes it without (wire.md 1.8, Replay).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.carriage import MARK
from capi_core.protocols.openai import json_string
from capi_core.protocols.splice import edit_items, without

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Replay", "encode_passed_request"]


class Replay(enum.Enum):
    """What becomes of the ids of items that a client replays."""

    KEEP = "keep"
    """They pass. The default: OpenAI itself takes its own ids, and with `store` finds the item by it."""
    STRIP = "strip"
    """They are taken out, and a `status` that is null with them. For Copilot."""


_STRIPPED: Final = frozenset(
    {
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    }
)
"""Items that are known to be taken without an id. Others may be found by it (`item_reference`)."""


class _Item(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    id: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()
    encrypted_content: msgspec.Raw = msgspec.Raw()


_ITEM: Final = msgspec.json.Decoder(_Item)
_CARRIED: Final = b'"%b' % MARK.encode()


def encode_passed_request(document: JSONObject, *, model: str, upstream_model: str, replay: Replay) -> bytes:
    """The request's text with the upstream's name for the model; every byte that need not change is the client's."""
    changes: dict[str, bytes] = {}
    if upstream_model != model:
        changes["model"] = json_string(upstream_model)
    items = document.get("input")
    if items is not None and items.startswith(b"["):
        edited = edit_items(items, _editor(replay))
        if edited != items:
            changes["input"] = edited
    return document.edit(changes) if changes else document.text


def _editor(replay: Replay) -> Callable[[int, bytes], bytes | None]:
    def edit(place: int, text: bytes) -> bytes | None:
        try:
            item, _ = decode(_ITEM, text)
        except msgspec.DecodeError:  # of a shape that only the upstream may judge
            return text
        kind = item.type or ("message" if item.role is not None else None)
        if kind == "reasoning" and bytes(item.encrypted_content).startswith(_CARRIED):
            return None
        if replay is Replay.KEEP or kind not in _STRIPPED:
            return text
        unwanted = [name for name, value in (("id", item.id), ("status", item.status)) if _unwanted(name, value)]
        try:
            return without(JSONObject(text), unwanted) if unwanted else text
        except MembersError:  # a name stands in it twice
            return text

    return edit


def _unwanted(name: str, value: msgspec.Raw) -> bool:
    return bool(value) and (name == "id" or bytes(value) == b"null")
