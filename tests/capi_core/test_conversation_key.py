"""Requests of one conversation have one key, however long it has become; others have other keys."""

import json

import pytest

from capi_core.conversation_key import conversation_key
from capi_core.protocols.kinds import Protocol

FIRST = {"role": "user", "content": "first words"}
MORE = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]


def key(protocol: Protocol, *turns: object) -> bytes | None:
    member = "input" if protocol is Protocol.RESPONSES else "messages"
    return conversation_key(protocol, json.dumps({"model": "m", member: turns}).encode())


@pytest.mark.parametrize("protocol", Protocol)
def test_a_conversation_keeps_its_key_as_it_grows(protocol: Protocol) -> None:
    system = {"role": "system", "content": "changes from turn to turn"}
    assert key(protocol, FIRST) == key(protocol, system, FIRST, *MORE) is not None
    assert key(protocol, FIRST) != key(protocol, MORE[1])


def test_marks_that_move_from_turn_to_turn_change_nothing() -> None:
    """Claude Code marks the last message of the user for the cache: the first one, in the first request."""
    text = {"type": "text", "text": "first words"}
    marked = {"role": "user", "content": [text | {"cache_control": {"type": "ephemeral"}}]}
    assert key(Protocol.MESSAGES, marked) == key(Protocol.MESSAGES, {"role": "user", "content": [text]}, *MORE)
    image = {"role": "user", "content": [{"type": "image", "source": {}}, text]}
    assert key(Protocol.MESSAGES, image) != key(Protocol.MESSAGES, marked)
    assert key(Protocol.MESSAGES, {"role": "user"}) is not None


def test_the_clients_own_word_for_a_conversation_comes_first() -> None:
    """Sessions of Codex in one directory begin alike."""
    keys = {
        conversation_key(Protocol.RESPONSES, b'{"prompt_cache_key":"%b","input":"hello"}' % name)
        for name in (b"a", b"b")
    }
    assert len(keys) == 2
    no_text = conversation_key(Protocol.RESPONSES, b'{"prompt_cache_key":5,"input":"hello"}')
    assert no_text == conversation_key(Protocol.RESPONSES, b'{"input":"hello"}')


def test_a_text_as_input_is_its_own_key() -> None:
    hello = conversation_key(Protocol.RESPONSES, b'{"input":"hello"}')
    assert hello is not None
    assert hello != conversation_key(Protocol.RESPONSES, b'{"input":"hello!"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"messages":[]}',
        b'{"messages":[5]}',
        b'{"messages":{}}',
        b'{"messages":[{"role":"system"}]}',
        b'{"messages":[{"role":"user"',
        b'{"messages":[{"role":"\xff"}]}',
        b'{"messages":' + b"[" * 5000,
    ],
)
def test_what_has_no_user_in_it_has_no_key(body: bytes) -> None:
    assert conversation_key(Protocol.CHAT, body) is None


@pytest.mark.parametrize("before", [1000, 1_000_001], ids=["many", "a-crowd"])
def test_a_request_of_more_turns_than_any_client_sends_is_not_read_through(before: int) -> None:
    """One whole body of them would hold up everybody for a second, and cost a gigabyte."""
    turns = b",".join([*[b"{}"] * before, json.dumps(FIRST).encode()])
    assert conversation_key(Protocol.CHAT, b'{"messages":[%b]}' % turns) is None
    assert key(Protocol.CHAT, *[{}] * 999, FIRST) == key(Protocol.CHAT, FIRST)
