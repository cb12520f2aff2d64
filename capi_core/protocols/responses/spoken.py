"""Texts of a Responses stream that came only whole: an event `.done` before which there was no `.delta`.

Clients that show or collect what is said as it is said never see such a text (wire.md 1.6), so it is said once more, as
one delta, by whoever passes the stream on.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from capi_core.members import decode

__all__ = ["TEXTS", "PartKey", "Spoken"]


class _Text(NamedTuple):
    """How a kind of text is written: the member with the whole, and the one that tells the parts of an item apart."""

    whole: str
    part: str | None


TEXTS: Final = {
    "response.output_text": _Text("text", "content_index"),
    "response.refusal": _Text("refusal", "content_index"),
    "response.reasoning_text": _Text("text", "content_index"),
    "response.reasoning_summary_text": _Text("text", "summary_index"),
    "response.function_call_arguments": _Text("arguments", None),
    "response.custom_tool_call_input": _Text("input", None),
}
"""By the type of their events, without `.delta` or `.done`."""

_DELTA: Final = ".delta"
_DONE: Final = ".done"
_MOST_PARTS: Final = 4096


class PartKey(NamedTuple):
    """One text of a response."""

    kind: str
    output_index: int
    content_index: int
    summary_index: int


class _Place(msgspec.Struct):
    output_index: int
    content_index: int = 0
    summary_index: int = 0
    text: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()
    arguments: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_PLACE: Final = msgspec.json.Decoder(_Place)


class Spoken:
    """The texts of one stream of which there was a delta."""

    def __init__(self) -> None:
        self._keys: set[PartKey] = set()

    def __contains__(self, key: PartKey) -> bool:
        return key in self._keys

    def note(self, kind: str, data: bytes, item_id: str | None) -> bytes | None:
        """Notes an event of type `kind`; `data` is its JSON. Returns the delta that it lacks, raw JSON without a
        `sequence_number`, when it is the end of a text of which there was none."""
        name = kind.removesuffix(_DELTA) if kind.endswith(_DELTA) else kind.removesuffix(_DONE)
        text = TEXTS.get(name)
        if text is None:
            return None
        try:
            place = decode(_PLACE, data)[0]
        except (msgspec.DecodeError, UnicodeError, RecursionError):  # of another shape: not ours to put right
            return None
        key = PartKey(name, place.output_index, place.content_index, place.summary_index)
        if key in self._keys or len(self._keys) == _MOST_PARTS:
            return None
        self._keys.add(key)
        whole: bytes = bytes(getattr(place, text.whole))
        if kind.endswith(_DELTA) or not whole.startswith(b'"') or whole == b'""':
            return None
        return _delta(key, text, whole, item_id)


def _delta(key: PartKey, text: _Text, whole: bytes, item_id: str | None) -> bytes:
    part = {"content_index": key.content_index, "summary_index": key.summary_index}
    members: dict[str, object] = {"type": key.kind + _DELTA}
    members |= {} if item_id is None else {"item_id": item_id}
    members |= {"output_index": key.output_index}
    members |= {} if text.part is None else {text.part: part[text.part]}
    members |= {"delta": msgspec.Raw(whole)}
    members |= {"logprobs": []} if key.kind == "response.output_text" else {}
    return msgspec.json.encode(members)
