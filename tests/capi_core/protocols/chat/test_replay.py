"""A carried blob does not reach a Chat upstream; all else of the messages does, byte for byte."""

import pytest

from capi_core.protocols.carriage import MARK
from capi_core.protocols.chat.passthrough import encode_request, read
from capi_core.protocols.chat.replay import own_messages

USER = b'{ "role":"user", "content":"hi" }'


@pytest.mark.parametrize(
    ("message", "own"),
    [
        (
            b'{"role":"assistant","content":"a","reasoning_content":"t", "reasoning_opaque":"capi1.messages.SIG"}',
            b'{"role":"assistant","content":"a","reasoning_content":"t"}',
        ),
        (b'{"reasoning_opaque":"capi1.responses.X","role":"assistant"}', b'{"role":"assistant"}'),
    ],
)
def test_a_carried_blob_is_left_out(message: bytes, own: bytes) -> None:
    assert own_messages(b"[%b , %b]" % (USER, message)) == b"[%b , %b]" % (USER, own)
    body = b'{"model":"m", "messages":[%b,%b]}'
    request = read(body % (USER, message))
    assert encode_request(request, upstream_model="m", inject_usage=False) == body % (USER, own)


@pytest.mark.parametrize(
    "messages",
    [
        b"[]",
        b'[{"role":"assistant","reasoning_opaque":"its own"}]',
        b'[{"role":"user","content":"\\"capi1.messages.x"}]',
        b'[{"role":"user","content":"capi1.messages.x"}]',
        b'[{"role":"user","name":"capi1.x","reasoning_opaque":7}]',
        b'[{"a":"capi1.","a":1,"reasoning_opaque":"capi1.messages.S"}]',
        b'"capi1.messages.x"',
    ],
)
def test_all_else_stays(messages: bytes) -> None:
    assert own_messages(messages) == messages


def test_no_depth_of_nesting_fails() -> None:
    """Some can be read once, and not once more from further down the stack."""
    for depth in range(700, 1050):
        nested = b"[" * depth + b"]" * depth
        messages = b'[{"reasoning_opaque":"%b","x":%b}]' % (MARK.encode(), nested)
        assert own_messages(messages) in (messages, b'[{"x":%b}]' % nested)
