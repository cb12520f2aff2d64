"""JSON text, whatever is in the strings: the writing twin of `reading`."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["json_bytes", "json_text"]

_JSON: Final = msgspec.json.Encoder()


def json_bytes(value: object) -> bytes:
    """`value` as JSON; an unpaired surrogate in it is written as `?`, as UTF-8 has none."""
    try:
        return _JSON.encode(value)
    except UnicodeEncodeError:
        return _JSON.encode(_paired(value))


def json_text(text: str) -> bytes:
    """`text` as a JSON string: the hot path of the stream encoder."""
    try:
        return _JSON.encode(text)
    except UnicodeEncodeError:
        return _JSON.encode(text.encode("utf-8", "replace").decode())


def _paired(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_paired(name): _paired(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_paired(inner) for inner in value]
        case _:
            return value
