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
