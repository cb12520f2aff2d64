"""Which conversation a request goes on with, told by how it began.

Reasoning that an upstream encrypted can be read by the account that it was made for, and by no other: a conversation
that has begun on one account goes on there. Requests of one conversation begin with the same words of the user.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode, is_crowded
from capi_core.protocols.kinds import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["conversation_key"]

_MEMBERS: Final[Mapping[Protocol, str]] = {
    Protocol.CHAT: "messages",
    Protocol.RESPONSES: "input",
    Protocol.MESSAGES: "messages",
}


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None


class _Turn(msgspec.Struct):
    role: str | None = None
    content: str | list[_Part] | None = None


_MOST_TURNS: Final = 1000
"""Before the user's first. Each costs a reading of its own."""
_TURNS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TURN: Final = msgspec.json.Decoder(_Turn)
_STRING: Final = msgspec.json.Decoder(str)


def conversation_key(protocol: Protocol, body: bytes) -> bytes | None:
    """A digest of the first words of the user in a request's body; `None` where none can be told.

    Of the words only: marks beside them, such as `cache_control`, move from turn to turn. A `prompt_cache_key` is the
    client's own word for the same thing, and comes before them.
    """
    try:
        document = JSONObject(body)
        own = document.get("prompt_cache_key") or b""
        if own.startswith(b'"'):
            return _digest("key", decode(_STRING, own)[0])
        turns = document.get(_MEMBERS[protocol]) or b"[]"
        if turns.startswith(b'"'):
            return _digest("text", decode(_STRING, turns)[0])
        if is_crowded(turns):
            return None
        for raw in decode(_TURNS, turns)[0][:_MOST_TURNS]:
            turn = decode(_TURN, bytes(raw))[0]
            if turn.role == "user":
                return _digest("text", *_words(turn))
    except (msgspec.DecodeError, MembersError, RecursionError, UnicodeError):
        pass  # the upstream will say what it thinks of it
    return None


def _words(turn: _Turn) -> Iterator[str]:
    if isinstance(turn.content, str):
        yield turn.content
    else:
        yield from (part.text or part.type or "" for part in turn.content or ())


def _digest(*words: str) -> bytes:
    return hashlib.blake2b("\0".join(words).encode("utf-8", "replace"), digest_size=16).digest()
