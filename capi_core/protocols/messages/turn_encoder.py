"""Turns as the `system` and the `messages` of a Messages request.

Source: Anthropic API reference, "Create a Message", `messages`; "Mid-conversation system messages"; wire.md 1.5, 1.8.
What comes out starts with the user, alternates, answers every call in the message behind it, results first, and has
system messages only where they may stand: behind a message of the user, before the assistant's next or at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from capi_core.conversation import Conversation, Role, ToolCall, ToolResult, Turn
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.call_pairing import PairedCall, pair_calls

if TYPE_CHECKING:
    from capi_core.protocols.messages.content_encoder import ContentEncoder

__all__ = ["Message", "TurnEncoder", "plain"]

_INSTRUCTING: Final = (Role.SYSTEM, Role.DEVELOPER)
_THINKING: Final = ("thinking", "redacted_thinking")
_PLACEHOLDER: Final = "Continue."
_NO_RESULT: Final = "The tool gave no result: the call was not carried out."


@define
class Message:
    """A message in the making. `parts`: its content blocks."""

    role: Role
    parts: list[object] = field(factory=list)

    def encoded(self) -> dict[str, object]:
        """As JSON has it; one plain text is a string."""
        return {"role": self.role.value, "content": plain(self.parts)}

    def first_type(self) -> object:
        """The type of its first block; `None` for one that passes unread."""
        return _type(self.parts[0])


class TurnEncoder:
    """Encodes the turns of one conversation: `system` and `messages` are there once it is made.

    Raises `ProtocolError` (400) when nothing is left that could be asked.
    """

    def __init__(self, conversation: Conversation, blocks: ContentEncoder, ledger: Ledger) -> None:
        self.system: list[object] = []
        self.messages: list[Message] = []
        self._blocks = blocks
        self._ledger = ledger
        self._open: list[PairedCall] = []
        self._waiting: list[object] = []
        self._placeholder: Message | None = None
        for turn, calls in zip(conversation.turns, pair_calls(conversation.turns, ledger), strict=True):
            self._turn(turn, calls)
        self._close()
        if not self.messages:
            self._ask_with_system()
        self._strip_end()

    def _turn(self, turn: Turn, calls: list[PairedCall]) -> None:
        if turn.role is Role.ASSISTANT:
            self._assistant(turn, calls)
        elif turn.role in _INSTRUCTING:
            parts = [part for block in turn.blocks for part in self._blocks.system(block)]
            if self.messages:
                self._waiting += parts
            else:
                self.system += parts
        else:
            self._answer_calls()
            blocks = [block for block in turn.blocks if not isinstance(block, ToolResult)]
            parts = [part for block in blocks for part in self._blocks.user(block)]
            if parts and self._waiting:
                self._ledger.add(Change.ALTERED, turn.at, "it stands before the system message that it followed")
            self._add(Role.USER, parts)

    def _assistant(self, turn: Turn, calls: list[PairedCall]) -> None:
        ids = iter(calls)
        parts: list[object] = []
        for block in turn.blocks:
            if isinstance(block, ToolResult):
                continue
            wire_id = next(ids).wire_id if isinstance(block, ToolCall) else ""
            parts += self._blocks.assistant(block, wire_id)
        if not parts:
            return
        if self._waiting:
            self._close()
        if not self.messages:
            self._ledger.add(Change.SYNTHESISED, turn.at, "a conversation starts with the user: one word is put before")
            self._placeholder = Message(Role.USER, [_text(_PLACEHOLDER)])
            self.messages.append(self._placeholder)
        self._add(Role.ASSISTANT, parts)
        self._open += calls

    def _add(self, role: Role, parts: list[object]) -> None:
        if not parts:
            return
        if self.messages and self.messages[-1].role is not role:
            self._end_assistant()
        if not self.messages or self.messages[-1].role is not role:
            self.messages.append(Message(role))
        self.messages[-1].parts += parts

    def _answer_calls(self) -> None:
        """Puts the results of the calls that are open into the message behind them."""
        results = [self._result(paired) for paired in self._open]
        self._open = []
        self._add(Role.USER, results)

    def _result(self, paired: PairedCall) -> object:
        if paired.result is not None:
            return self._blocks.result(paired.result, paired.wire_id)
        self._ledger.add(Change.SYNTHESISED, paired.call.at, "a call without a result is answered by an error")
        return {"type": "tool_result", "tool_use_id": paired.wire_id, "content": _NO_RESULT, "is_error": True}

    def _close(self) -> None:
        """Before the assistant speaks again after instructions, and at the end: what is held back takes its place."""
        self._answer_calls()
        self._end_assistant()
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        if not self.messages:
            self.system += waiting
            return
        if self.messages[-1].role is Role.USER:
            self._add(Role.SYSTEM, waiting)
            return
        self._ledger.add(Change.ALTERED, "$.messages", "a system message behind the assistant goes as the user's")
        self._add(Role.USER, waiting)

    def _end_assistant(self) -> None:
        """A message of the assistant's does not end in thinking."""
        last = self.messages[-1] if self.messages else None
        if last is None or last.role is not Role.ASSISTANT:
            return
        while last.parts and _type(last.parts[-1]) in _THINKING:
            last.parts.pop()
            self._ledger.dropped("$.messages", "reasoning that nothing follows is not taken back")
        if last.parts:
            return
        self.messages.pop()
        if self.messages[-1] is self._placeholder:  # both made room for what is gone
            self.messages.pop()
        elif self.messages[-1].role is Role.SYSTEM:
            self._waiting = self.messages.pop().parts + self._waiting

    def _ask_with_system(self) -> None:
        if not self.system:
            raise ProtocolError("nothing is left of the conversation to ask the model", code="empty_conversation")
        self._ledger.add(Change.ALTERED, "$.messages", "a conversation of system turns only is asked as the user's")
        self._add(Role.USER, self.system)
        self.system = []

    def _strip_end(self) -> None:
        """The assistant's words that the answer is to go on from do not end in white space."""
        last = self.messages[-1]
        end = last.parts[-1]
        if last.role is Role.ASSISTANT and isinstance(end, dict) and end["type"] == "text":
            end["text"] = end["text"].rstrip()


def plain(parts: list[object]) -> object:
    """The content of a message or the system prompt: one text without a mark as a string."""
    match parts:
        case [{"type": "text", "text": text, **rest}] if not rest:
            return text
        case _:
            return parts


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _type(part: object) -> object:
    return part["type"] if isinstance(part, dict) else None
