"""Turns as the messages of a Chat request. Source: OpenAI API reference, "Create chat completion"; wire.md 1.1, 1.5,
1.8.

Neighbouring turns of the assistant's are one message. Each of its calls is answered right behind it, by exactly one
message; a result of a tool has text only there, so its images follow in a user message. A call without a result is
answered by a text that says so: servers refuse calls that are left open.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import define, field

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    Role,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.call_pairing import PairedCall, pair_calls
from capi_core.protocols.chat.tool_encoder import wire_name
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes
from capi_core.target import ReasoningMember

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capi_core.target import Target
    from capi_core.tool_names import ToolNames

__all__ = ["MessageEncoder"]

_OPENAI: Final = (Protocol.CHAT, Protocol.RESPONSES)
_FAILED: Final = "The tool failed: "
"""Before the result of a tool that failed: Chat has no other way to say so."""
_NO_RESULT: Final = "The tool gave no result: the call was not carried out."
_MOST_CALL_ID: Final = 40
"""Characters of a call's id, which OpenAI refuses when it is longer (`string_above_max_length`)."""
_HEX: Final = 32
_APART: Final = "\n\n"

Part = dict[str, object]


@define
class _Speech:
    """What a message of the assistant's is made of. `opaque`: the signature of its reasoning."""

    texts: list[str] = field(factory=list)
    refusals: list[str] = field(factory=list)
    thoughts: list[str] = field(factory=list)
    calls: list[Part] = field(factory=list)
    opaque: str = ""

    def say(self, text: str, *, apart: bool) -> None:
        """Texts that follow each other are one, which was cut where its citations are; others stand apart."""
        if text and self.texts and apart:
            self.texts.append(_APART)
        if text:
            self.texts.append(text)

    def message(self, member: ReasoningMember) -> Part:
        """The message, with its reasoning under the name `member`."""
        message: Part = {"role": "assistant", "content": "".join(self.texts) or None}
        if any(self.refusals):
            message["refusal"] = "".join(self.refusals)
        if self.calls:
            message["tool_calls"] = self.calls
        if self.thoughts:
            message[member.value] = _APART.join(self.thoughts)
        if self.opaque:
            message["reasoning_opaque"] = self.opaque
        return message


class MessageEncoder:
    """Encodes the turns of one conversation: `messages` is there once it is made.

    Raises `ProtocolError` (400) for an image that the model does not take.
    """

    def __init__(self, conversation: Conversation, target: Target, names: ToolNames, ledger: Ledger) -> None:
        self.messages: list[Part] = []
        self._target = target
        self._names = names
        self._ledger = ledger
        self._openai = conversation.protocol in _OPENAI
        self._speech: list[Turn] = []
        self._calls: list[PairedCall] = []
        self._late: list[object] = []
        """What results hold that is no text, until the user speaks."""
        self._taken: set[str] = set()
        paired = pair_calls(conversation.turns, Ledger())  # its notes are of ids that other upstreams want otherwise
        self._note_left_over(conversation.turns, paired)
        for turn, calls in zip(conversation.turns, paired, strict=True):
            self._turn(turn, calls)
        self._end_speech()
        self._add("user", self._taken_late())

    def _note_left_over(self, turns: Sequence[Turn], paired: Iterable[list[PairedCall]]) -> None:
        answers = {id(one.result) for calls in paired for one in calls}
        for turn in turns:
            for block in turn.blocks:
                if isinstance(block, ToolResult) and id(block) not in answers:
                    self._ledger.dropped(block.at, "it answers no call before it, or one that has its answer")

    def _turn(self, turn: Turn, calls: list[PairedCall]) -> None:
        if turn.role is Role.ASSISTANT:
            self._speech.append(turn)
            self._calls += calls
            return
        part = self._part if turn.role is Role.USER else self._instruction
        parts = [one for block in turn.blocks for one in part(block)]
        if parts or self._calls:
            self._end_speech()
        if not parts:
            return
        if turn.role is Role.USER:
            parts = self._taken_late() + parts
        role = turn.role
        if role is Role.DEVELOPER and not self._target.developer_role:
            role = Role.SYSTEM
        self._add(role.value, parts)

    def _add(self, role: str, parts: list[object]) -> None:
        """One text alone is a string, which every server takes."""
        match parts:
            case []:
                return
            case [{"type": "text", "text": text, **rest}] if not rest:
                self.messages.append({"role": role, "content": text})
            case _:
                self.messages.append({"role": role, "content": parts})

    def _taken_late(self) -> list[object]:
        late, self._late = self._late, []
        return late

    # -- the assistant's messages -------------------------------------------------------------------------------

    def _end_speech(self) -> None:
        """Adds the message of the assistant's turns so far, and the results of its calls right behind it."""
        turns, calls = self._speech, self._calls
        self._speech, self._calls = [], []
        ids = [self._call_id(one.call) for one in calls]
        message = self._assistant(turns, ids)
        if message is None:
            return
        self._add("user", self._taken_late())
        self.messages.append(message)
        for paired, wire_id in zip(calls, ids, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": wire_id, "content": self._answer(paired, wire_id)})

    def _assistant(self, turns: Sequence[Turn], call_ids: Iterable[str]) -> Part | None:
        """The message of turns that follow each other; `None` when nothing is left of them."""
        speech = _Speech()
        ids = iter(call_ids)
        for turn in turns:
            before: Block | None = None
            for block in turn.blocks:
                match block:
                    case Text():
                        speech.say(block.text, apart=not isinstance(before, Text))
                        self._note_cache(block.cache, block.at)
                    case Refusal():
                        speech.refusals.append(block.text)
                    case Reasoning():
                        self._think(block, speech)
                    case ToolCall():
                        speech.calls.append(self._call(block, next(ids)))
                    case ToolResult():
                        pass  # right behind its call, wherever it stands
                    case _:
                        self._ledger.dropped(block.at, "an assistant's message has only text and calls here")
                before = block
        if speech.calls or any(speech.texts) or any(speech.refusals):
            return speech.message(self._target.reasoning_member)
        if speech.thoughts or speech.opaque:
            self._ledger.dropped(turns[0].at, "reasoning that nothing follows is not taken back")
        return None

    def _think(self, block: Reasoning, speech: _Speech) -> None:
        member = self._target.reasoning_member
        signature = block.signature
        if member is ReasoningMember.NONE:
            self._ledger.dropped(block.at, "this upstream takes no reasoning back")
            return
        speech.thoughts += filter(None, block.parts)
        if signature is None or not signature.value:
            return
        mine = member is ReasoningMember.REASONING_TEXT and signature.origin is Protocol.CHAT
        if mine and not speech.opaque:
            speech.opaque = signature.value
        else:
            self._ledger.dropped(block.at, "only a signature of the upstream's own, one in a message, is taken back")

    def _call(self, call: ToolCall, wire_id: str) -> Part:
        self._note_cache(call.cache, call.at)
        name = wire_name(call.tool, call.kind, self._names, self._ledger, call.at)
        arguments = call.arguments or "{}"
        if call.kind is ToolKind.CUSTOM:
            arguments = json_bytes({"input": call.arguments}).decode()
        return {"id": wire_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _call_id(self, call: ToolCall) -> str:
        """The call's id, or in place of one that is refused or was there before a digest: the same in every request
        that repeats the conversation."""
        wire_id = call.id
        if not 0 < len(wire_id) <= _MOST_CALL_ID or wire_id in self._taken:
            digest = hashlib.sha256(f"{call.id}\0{len(self._taken)}".encode("utf-8", "replace")).hexdigest()
            wire_id = f"call_{digest[:_HEX]}"
            note = f"the upstream takes call ids of 1 to {_MOST_CALL_ID} characters, each once"
            self._ledger.add(Change.RENAMED, call.at, note)
        self._taken.add(wire_id)
        return wire_id

    def _answer(self, paired: PairedCall, wire_id: str) -> str:
        """The text of a call's result; what else is in it waits until the user speaks."""
        result = paired.result
        if result is None:
            self._ledger.add(Change.SYNTHESISED, paired.call.at, "a call without a result is answered by saying so")
            return _NO_RESULT
        self._note_cache(result.cache, result.at)
        texts, more = [], list[object]()
        for block in result.content:
            if isinstance(block, Text):
                self._note_cache(block.cache, block.at)
                texts.append(block.text)
            else:
                more += self._part(block)
        if more:
            self._ledger.add(Change.ALTERED, result.at, "a tool's result has text only: the rest follows as the user's")
            said = f"This belongs to the result of the tool call {wire_id}:"
            self._late += [{"type": "text", "text": said}, *more]
        text = "\n".join(texts)
        if result.is_error:
            self._ledger.add(Change.ALTERED, result.at, "that the tool failed is said in the text of its result")
            text = _FAILED + text
        return text

    # -- parts --------------------------------------------------------------------------------------------------

    def _instruction(self, block: Block) -> list[object]:
        """The part of a system or developer message, which have text only."""
        if isinstance(block, Text | Refusal | ToolResult):
            return self._part(block)
        self._ledger.dropped(block.at, "a system message has only text here")
        return []

    def _part(self, block: Block) -> list[object]:
        """The part of a user's message, in a list that is empty when nothing is left of it."""
        match block:
            case Text():
                return self._marked({"type": "text", "text": block.text}, block.cache, block.at) if block.text else []
            case Refusal():
                return [{"type": "text", "text": block.text}] if block.text else []
            case Image():
                return self._marked(self._image(block), block.cache, block.at)
            case Document():
                return self._marked(self._document(block), block.cache, block.at)
            case Audio():
                return [{"type": "input_audio", "input_audio": {"data": block.data, "format": block.format}}]
            case ToolResult():
                return []  # right behind its call, wherever it stands
            case Opaque(protocol=Protocol.CHAT):
                return [msgspec.Raw(block.raw)]
            case _:
                self._ledger.dropped(block.at, "only its own provider knows it")
                return []

    def _marked(self, part: Part | None, cache: CacheMark | None, at: str) -> list[object]:
        if part is None:
            return []
        if cache is not None and self._openai:
            mark: Part = {"mode": "explicit"}
            if cache.ttl is not None:
                mark["ttl"] = cache.ttl
            part["prompt_cache_breakpoint"] = mark
        else:
            self._note_cache(cache, at)
        return [part]

    def _note_cache(self, cache: CacheMark | None, at: str) -> None:
        if cache is not None:
            self._ledger.dropped(at, "the provider decides itself what it caches")

    def _image(self, image: Image) -> Part | None:
        source = image.source
        if self._target.images is False:
            raise _no_image(image.at, "this model takes no images: choose one that does")
        match source.kind:
            case SourceKind.BASE64:
                url = f"data:{source.media_type or 'image/png'};base64,{source.value}"
            case SourceKind.URL if self._target.image_urls:
                url = source.value
            case SourceKind.URL:
                raise _no_image(image.at, "this upstream does not fetch images: send it as base64")
            case _:
                self._ledger.dropped(image.at, "an id of another provider's file")
                return None
        detail = {} if image.detail is None else {"detail": image.detail}
        return {"type": "image_url", "image_url": {"url": url, **detail}}

    def _document(self, document: Document) -> Part | None:
        source = document.source
        match source.kind:
            case SourceKind.BASE64:
                data = f"data:{source.media_type or 'application/pdf'};base64,{source.value}"
                return {"type": "file", "file": {"filename": document.title or "document.pdf", "file_data": data}}
            case SourceKind.FILE_ID if self._openai:
                return {"type": "file", "file": {"file_id": source.value}}
            case SourceKind.TEXT if source.value:
                self._ledger.add(Change.ALTERED, document.at, "the text of a document is sent as plain text")
                text = f"{document.title}\n\n{source.value}" if document.title else source.value
                return {"type": "text", "text": text}
            case _:
                self._ledger.dropped(document.at, "Chat takes files as base64 only, and no empty texts")
                return None


def _no_image(at: str, message: str) -> ProtocolError:
    return ProtocolError(message, code="image_not_supported", param=at.removeprefix("$."))
