"""Invariant: any bytes as a stream become deltas that keep the rules and end once, the same however they are split.

What they tell, told again as a stream, decodes to the same answer; but for an answer that failed, which stays failed.
Any bytes as a request are a conversation or a `ProtocolError` of status 400, and a conversation is a request again,
which decodes without an error; as a whole answer they are a reply or a `ProtocolError` of status 502.
The first byte of an input chooses the limit (its lowest bit) and the size of the pieces.
"""

from capi_core.conversation import Opaque
from capi_core.deltas import AnswerDelta, End, Failed, Reply, ReplyBlock, ReplyText, assemble
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.codec import Envelope
from capi_core.protocols.responses.row import RESPONSES
from capi_core.target import Target

__all__ = ["test_one_input"]

TIGHT = 256  # bytes: mutated events fall on both sides of it
DEFAULT = 4 * 1024 * 1024
ENVELOPE = Envelope("q", "m")


def decoded(pieces: list[bytes], limit: int) -> list[AnswerDelta]:
    decoder = RESPONSES.stream_decoder(Ledger(), max_event_bytes=limit)
    found: list[AnswerDelta] = []
    for piece in pieces:
        found += decoder.receive_data(piece)
    return found + decoder.finish()


def shape(block: ReplyBlock) -> object:
    """The block without raw JSON, in which white space may change."""
    match block:
        case ReplyText():
            return block.text, len(block.annotations)
        case Opaque():
            return block.type
        case _:
            return block


def check_answer(found: list[AnswerDelta]) -> None:
    assert sum(isinstance(delta, End | Failed) for delta in found) == 1
    assert isinstance(found[-1], End | Failed)
    told = assemble(found)
    stream = RESPONSES.stream_encoder(ENVELOPE, Ledger()).encode(found)
    again = assemble(decoded([stream], DEFAULT))
    if isinstance(told, Failed):
        assert isinstance(again, Failed)
        return
    assert isinstance(again, Reply)
    assert again.finish.reason == told.finish.reason
    assert [shape(block) for block in again.blocks] == [shape(block) for block in told.blocks]


def check_status(error: ProtocolError, status: int) -> None:
    assert error.status_hint == status


def check_request(body: bytes) -> None:
    try:
        conversation = RESPONSES.decode_request(JSONObject(body), Ledger())
    except ProtocolError as error:  # the body is the peer's
        check_status(error, 400)
        return
    try:
        encoded = RESPONSES.encode_request(conversation, Target("up"), Ledger())
    except ProtocolError as error:  # nothing may be left of it
        check_status(error, 400)
        return
    RESPONSES.decode_request(JSONObject(encoded.body), Ledger())


def check_reply(body: bytes) -> None:
    try:
        reply = RESPONSES.decode_reply(body, Ledger())
    except ProtocolError as error:  # the body is the peer's
        check_status(error, 502)
        return
    RESPONSES.encode_reply(reply, ENVELOPE, Ledger())


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limit, size, stream = TIGHT if data[0] & 1 else DEFAULT, 1 + (data[0] >> 1), data[1:]
    whole = decoded([stream], limit)
    assert decoded([stream[at : at + 1] for at in range(len(stream))], limit) == whole
    assert decoded([stream[at : at + size] for at in range(0, len(stream), size)], limit) == whole
    check_answer(whole)
    check_request(stream)
    check_reply(stream)
