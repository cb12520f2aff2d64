"""Tool names on their way to an upstream and back.

Upstreams take names of `[A-Za-z0-9_-]`, 64 characters at most, and know no namespaces; a custom tool (free text instead
of JSON arguments) is unknown to most and goes as a function with the one argument `input`. What was changed on the way
in is changed back in the answer, so that the client's own dispatch finds its tool.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from capi_core.conversation import ToolKind, ToolRef

__all__ = ["CUSTOM_INPUT_SCHEMA", "MAX_TOOL_NAME", "ToolNames"]

MAX_TOOL_NAME: Final = 64
CUSTOM_INPUT_SCHEMA: Final = (
    b'{"type":"object","properties":{"input":{"type":"string","description":"The whole input of the tool, as text."}},'
    b'"required":["input"],"additionalProperties":false}'
)
"""The arguments of a function that stands for a custom tool."""

_HEX: Final = 8
_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_-]")


class ToolNames:
    """The names of one request. The same reference always gives the same name, in every process: prompt caches and
    replayed histories depend on it."""

    __slots__ = ("_by_ref", "_by_wire")

    def __init__(self) -> None:
        self._by_ref: dict[ToolRef, str] = {}
        self._by_wire: dict[str, tuple[ToolRef, ToolKind]] = {}

    def wire(self, ref: ToolRef, kind: ToolKind = ToolKind.FUNCTION) -> str:
        """The name under which the upstream gets `ref`. `kind` CUSTOM: it is a custom tool that goes as a function."""
        name = self._by_ref.get(ref)
        if name is None:
            name = self._new_name(ref)
            self._by_ref[ref] = name
            self._by_wire[name] = (ref, kind)
        return name

    def client(self, name: str) -> tuple[ToolRef, ToolKind]:
        """What the upstream's `name` stands for. A name that was never sent is taken as it is."""
        return self._by_wire.get(name) or (ToolRef(name), ToolKind.FUNCTION)

    @property
    def plain(self) -> bool:
        """Whether nothing has to be changed back."""
        return all(ref == ToolRef(name) and kind is ToolKind.FUNCTION for name, (ref, kind) in self._by_wire.items())

    def _new_name(self, ref: ToolRef) -> str:
        whole = ref.name if ref.namespace is None else f"{ref.namespace}__{ref.name}"
        name = _FORBIDDEN.sub("_", whole)
        if name == whole and 0 < len(name) <= MAX_TOOL_NAME and name not in self._by_wire:
            return name
        digest = hashlib.sha256(f"{ref.namespace}\0{ref.name}".encode("utf-8", "replace")).hexdigest()[:_HEX]
        return f"{name[: MAX_TOOL_NAME - _HEX - 1]}_{digest}"
