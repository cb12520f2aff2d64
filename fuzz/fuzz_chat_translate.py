"""Invariant: any bytes as a Chat request are a conversation or a `ProtocolError` of status 400; a conversation is a
request again or, when nothing of it can be sent, an error of status 400; and that request decodes without an error to a
conversation that stays the same from then on. OpenAI is not known to refuse it.
The first byte of an input chooses what the target is known to take.
"""

from capi_core.conversation import Conversation
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.chat.request_decoder import decode_request
from capi_core.protocols.chat.request_encoder import encode_request
from capi_core.target import ReasoningMember, Target
from tests.support.chat_requests import check_legal

__all__ = ["test_one_input"]

TARGETS = (
    Target("up"),
    Target("up", reasoning_member=ReasoningMember.REASONING_TEXT, developer_role=False, max_output_tokens=4096),
    Target("up", reasoning_member=ReasoningMember.REASONING_CONTENT, efforts=("low", "high"), sampling=False),
    Target("up", images=False, image_urls=False, ask_usage=False, max_tokens_member="max_tokens"),
)


def check_status(error: ProtocolError) -> None:
    assert error.status_hint == 400


def decoded(body: bytes) -> Conversation | None:
    try:
        return decode_request(JSONObject(body), Ledger())
    except ProtocolError as error:  # the body is the peer's
        check_status(error)
        return None


def encoded(conversation: Conversation, target: Target) -> bytes | None:
    try:
        return encode_request(conversation, target, Ledger()).body
    except ProtocolError as error:  # nothing may be left of it, or the target cannot have it
        check_status(error)
        return None


def test_one_input(data: bytes) -> None:
    if not data:
        return
    target, body = TARGETS[data[0] % len(TARGETS)], data[1:]
    conversation = decoded(body)
    request = None if conversation is None else encoded(conversation, target)
    if request is None:
        return
    check_legal(request)
    again = decode_request(JSONObject(request), Ledger())
    assert decode_request(JSONObject(encode_request(again, target, Ledger()).body), Ledger()) == again
