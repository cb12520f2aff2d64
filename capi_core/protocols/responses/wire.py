"""What several modules of Responses read and write: content parts and items.

Sources: OpenAI API reference, "The response object", "Input items"; wire.md 1.2. All members are optional here where a
server or a client is known to leave them out or to send null.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "CALLS",
    "ITEM",
    "TYPED",
    "ItemPart",
    "OutputItem",
    "Typed",
]

CALLS: Final = {"function_call": "arguments", "custom_tool_call": "input"}
"""Items that call a client's tool, and the member with what it is called with."""


class Typed(msgspec.Struct):
    """The one member that all items, parts, tools and events have."""

    type: str | None = None


class ItemPart(msgspec.Struct):
    """A part of a message's content, of a reasoning item's summary or of its content."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    annotations: list[msgspec.Raw] | None = None

    @property
    def words(self) -> str:
        """Its text, whichever member that is in."""
        return self.text or self.refusal or ""


class OutputItem(msgspec.Struct):
    """An item of an answer: message, reasoning, function_call or custom_tool_call."""

    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    summary: list[ItemPart] | None = None
    content: list[ItemPart] | None = None
    encrypted_content: str | None = None

    @property
    def called_with(self) -> str:
        """A call's arguments or free input."""
        return self.arguments or self.input or ""

    @property
    def thoughts(self) -> tuple[str, ...]:
        """The texts of a reasoning item: its summary, or what it gives of the reasoning itself."""
        parts = self.summary or self.content or []
        return tuple(part.words for part in parts if part.words)


TYPED: Final = msgspec.json.Decoder(Typed)
ITEM: Final = msgspec.json.Decoder(OutputItem)
