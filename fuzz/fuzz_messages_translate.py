"""Invariant: any bytes as a Messages request are a conversation or a `ProtocolError` of status 400, also when only its
tokens are to be counted; a conversation is a request again or, when nothing of it can be sent, an error of status 400;
and that request decodes without an error to a conversation that stays the same from then on.
The first byte of an input chooses what the target is known to take.
"""

from capi_core.conversation import Conversation
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.messages.request_decoder import decode_request
from capi_core.protocols.messages.request_encoder import encode_request
from capi_core.protocols.messages.versions import merge_betas, upstream_version
from capi_core.target import Target, ThinkingSupport

__all__ = ["test_one_input"]

TARGETS = (
    Target("up"),
    Target("up", thinking=ThinkingSupport.ENABLED, max_output_tokens=4096, sampling=False),
    Target("up", thinking=ThinkingSupport.ADAPTIVE, efforts=("low", "high")),
    Target("up", thinking=ThinkingSupport.NONE, images=False, image_urls=False),
)


def check_status(error: ProtocolError) -> None:
    assert error.status_hint == 400


def decoded(body: bytes, *, counting: bool) -> Conversation | None:
    try:
        return decode_request(JSONObject(body), Ledger(), counting=counting)
    except ProtocolError as error:  # the body is the peer's
        check_status(error)
        return None


def encoded(conversation: Conversation, target: Target) -> bytes | None:
    try:
        return encode_request(conversation, target, Ledger()).body
    except ProtocolError as error:  # nothing may be left of it, or the target cannot have it
        check_status(error)
        return None


def check_headers(data: bytes) -> None:
    betas = merge_betas(data)
    assert merge_betas(betas) == betas
    assert upstream_version(upstream_version(data, translated=False), translated=False)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    target, body = TARGETS[data[0] % len(TARGETS)], data[1:]
    check_headers(body)
    conversation = decoded(body, counting=False)
    counted = decoded(body, counting=True)
    assert conversation is None or conversation == counted
    if counted is None:
        return
    request = encoded(counted, target)
    if request is None:
        return
    again = decode_request(JSONObject(request), Ledger())
    assert decoded(encode_request(again, target, Ledger()).body, counting=False) == again
