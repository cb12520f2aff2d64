"""Which conversation a request goes on with, told by how it began.

Reasoning that an upstream encrypted can be read by the account that it was made for, and by no other: a conversation
that has begun on one account goes on there. Requests of one conversation begin with the same words of the user.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.kinds import Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["conversation_key"]

_MEMBERS: Final[Mapping[Protocol, str]] = {
    Protocol.CHAT: "messages",
    Protocol.RESPONSES: "input",
    Protocol.MESSAGES: "messages",
}


class _Turn(msgspec.Struct):
    role: str | None = None


_TURNS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TURN: Final = msgspec.json.Decoder(_Turn)


def conversation_key(protocol: Protocol, body: bytes) -> bytes | None:
    """A digest of the first turn of the user in a request's body; `None` where none can be told."""
    try:
        turns = JSONObject(body).get(_MEMBERS[protocol]) or b"[]"
        if turns.startswith(b'"'):
            return _digest(turns)
        for turn in decode(_TURNS, turns)[0]:
            if decode(_TURN, bytes(turn))[0].role == "user":
                return _digest(bytes(turn))
    except (msgspec.DecodeError, MembersError, RecursionError, UnicodeError):
        pass  # the upstream will say what it thinks of it
    return None


def _digest(turn: bytes) -> bytes:
    return hashlib.blake2b(turn, digest_size=16).digest()
