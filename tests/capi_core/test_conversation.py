"""A conversation is plain data: it compares by what it says, and does not show it."""

import attrs
import pytest

from capi_core.conversation import Conversation, Role, Source, SourceKind, Text, Turn
from capi_core.protocols.kinds import Protocol


def conversation(path: str) -> Conversation:
    return Conversation(Protocol.CHAT, "m", (Turn(Role.USER, (Text("hi", at=path),), at=path),))


def test_where_a_part_stood_does_not_count_for_equality() -> None:
    assert conversation("$.messages[0]") == conversation("$.input[3]")
    assert hash(conversation("a")) == hash(conversation("b"))


def test_what_was_said_is_not_shown() -> None:
    """A log line or a traceback that holds a part must not hold a prompt."""
    assert "secret" not in repr((Text("secret"), Source(SourceKind.BASE64, "secret")))


def test_it_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        conversation("").model = "other"  # type: ignore[misc]  # what is tested
