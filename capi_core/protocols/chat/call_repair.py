"""Tool calls whose id and name come in different chunks, put together for a client of the same protocol.

Both must be in the first part of a call: openai-python's helper fails on a first part without `function`, and other
readers open a call when they see its id. So the parts of a call are held until both are known, and go out as one. A
server that gives one of them never is not waited for: what was held goes out with the first part that brings neither.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.reading import is_json
from capi_core.protocols.splice import edit_items, one_line, without

__all__ = ["CallRepair"]


class _Named(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct):
    """What a chunk has of a call."""

    index: int | None = None
    id: str | None = None
    function: _Named | None = None
    custom: _Named | None = None

    @property
    def name(self) -> str | None:
        """The tool's name."""
        named = self.function or self.custom
        return None if named is None else named.name


class _Delta(msgspec.Struct):
    tool_calls: list[_Part] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_CHOICE: Final = msgspec.json.Decoder(_Choice)
_PART: Final = msgspec.json.Decoder(_Part)
_EMPTY: Final = (b"null", b'""')
_NO_INDEX: Final = -1
_MOST_HELD: Final = 128
_MOST_BYTES: Final = 8 * 1024
"""Of one call that is held. An id and a name are far shorter; what is longer is passed on as it comes."""
_MOST_CALLS: Final = 4096

_Key = tuple[int, int]


class CallRepair:
    """The calls of one stream. `held`: parts of calls that wait, by choice and by index of the call."""

    def __init__(self) -> None:
        self.held: dict[_Key, bytes] = {}
        self._begun: set[_Key] = set()

    def has_calls(self, choice: int) -> bool:
        """Whether the choice has called a tool."""
        return any(key[0] == choice for key in (*self._begun, *self.held))

    def release(self, choice: int) -> list[bytes]:
        """The parts of the choice that still wait, which nothing will complete any more."""
        waiting = [key for key in self.held if key[0] == choice]
        self._begun.update(waiting)
        return [self.held.pop(key) for key in waiting]

    def repair(self, text: bytes) -> bytes:
        """The text of a chunk without what is held of it, and with what was held for it. As it is if it cannot be read:
        whoever sends something else is not understood, but passed on."""
        held, begun = dict(self.held), set(self._begun)
        try:
            if not self._concerns(decode(_CHUNK, text)[0]):
                return text
            document = JSONObject(text)
            edited = edit_items(document.get("choices") or b"[]", lambda _, choice: self._choice(choice))
            return document.edit({"choices": edited})
        except (msgspec.DecodeError, MembersError, UnicodeError, RecursionError):
            self.held, self._begun = held, begun
            return text

    def _concerns(self, chunk: _Chunk) -> bool:
        """Whether the chunk has a part of a call that waits, or that has to."""
        concerns = False
        for choice in chunk.choices or ():
            for part in (choice.delta.tool_calls if choice.delta is not None else None) or ():
                key = (choice.index, _NO_INDEX if part.index is None else part.index)
                if part.index is None and (part.id or part.name):  # there is no telling what would belong to it
                    self._begin(key)
                elif key in self.held:
                    concerns = True
                elif part.id and part.name:
                    self._begin(key)
                elif (part.id or part.name) and key not in self._begun:
                    concerns = True
        return concerns

    def _choice(self, text: bytes) -> bytes:
        found = decode(_CHOICE, text)[0]
        if found.delta is None or not found.delta.tool_calls:
            return text
        choice = JSONObject(text)
        delta = JSONObject(choice.get("delta") or b"")
        parts = edit_items(delta.get("tool_calls") or b"", lambda _, part: self._part(found.index, part))
        left = delta.edit({"tool_calls": parts}) if parts.strip(b"[] \t\r\n") else without(delta, {"tool_calls"})
        return choice.edit({"delta": left})

    def _part(self, choice: int, text: bytes) -> bytes | None:
        part = decode(_PART, text)[0]
        if part.index is None:
            return text
        key = (choice, part.index)
        held = self.held.pop(key, None)
        if key in self._begun or (held is None and not part.id and not part.name):
            return text
        if held is not None and _is_another(decode(_PART, held)[0], part):
            self._begin(key)
            return held + b"," + text
        merged = text if held is None else _merged(JSONObject(held), JSONObject(text))
        whole = decode(_PART, merged)[0]
        waits = bool(part.id or part.name) and not (whole.id and whole.name)
        if waits and len(merged) <= _MOST_BYTES and len(self.held) < _MOST_HELD:
            self.held[key] = one_line(merged)
            return None
        self._begin(key)
        return merged

    def _begin(self, key: _Key) -> None:
        if len(self._begun) < _MOST_CALLS:
            self._begun.add(key)


def _is_another(held: _Part, part: _Part) -> bool:
    """Whether the part is no more of the call that waits, but a call of its own at the same index."""
    if held.id and part.id:
        return held.id != part.id
    return bool(held.name and part.name) and (held.name != part.name or _has_arguments(held))


def _has_arguments(part: _Part) -> bool:
    """Whether the arguments are whole: nothing can follow them."""
    written = bytes(part.function.arguments) if part.function is not None else b""
    return written.startswith(b'"') and is_json(msgspec.json.decode(written, type=str).encode())


def _merged(first: JSONObject, second: JSONObject) -> bytes:
    """Two parts of a call as one: what the second one says counts, and its arguments follow the first one's."""
    changes: dict[str, bytes] = {}
    for name in second.names:
        before, after = first.get(name) or b"null", second.get(name) or b"null"
        if after in _EMPTY:
            continue
        if before.startswith(b"{") and after.startswith(b"{"):
            after = _merged(JSONObject(before), JSONObject(after))
        elif name in {"arguments", "input"} and before.startswith(b'"') and after.startswith(b'"'):
            after = before[:-1] + after[1:]
        changes[name] = after
    return first.edit(changes)
