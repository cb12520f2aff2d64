"""Invariant: any bytes of an upstream become deltas that keep the rules, the same however they are split.

The stream that Chat's encoder writes of them is a legal one by the protocol's grammar, and what it says reads back to
the same end. As a whole answer the same bytes are either read or refused.
The first byte of an input chooses the limit (its low bit) and the size of the pieces.
"""

from capi_core.conformance import checker_for
from capi_core.deltas import AnswerDelta, End, Failed, Reply, assemble
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.chat.reply import decode_reply, encode_reply
from capi_core.protocols.chat.stream_decoder import ChatDecoder
from capi_core.protocols.chat.stream_encoder import ChatEncoder
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.usage import encode_openai_usage, openai_usage

__all__ = ["test_one_input"]

TIGHT = 256  # bytes: mutated events fall on both sides of it
DEFAULT = 4 * 1024 * 1024
ENVELOPE = Envelope("rid", "pub", now_s=1)


def run(pieces: list[bytes], limit: int) -> list[AnswerDelta]:
    decoder = ChatDecoder(Ledger(), max_event_bytes=limit)
    found = [delta for piece in pieces for delta in decoder.receive_data(piece)]
    found += decoder.finish()
    assert decoder.receive_data(b"data: {}\n\n") == decoder.finish() == []
    return found


def check_reply(body: bytes) -> None:
    try:
        reply = decode_reply(body, Ledger())
    except ProtocolError:  # the body is the peer's
        return
    assert decode_reply(encode_reply(reply, ENVELOPE, Ledger()), Ledger()).finish == reply.finish


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limit = TIGHT if data[0] & 1 else DEFAULT
    size, stream = 1 + (data[0] >> 1), data[1:]

    whole = run([stream], limit)
    assert run([stream[at : at + 1] for at in range(len(stream))], limit) == whole
    assert run([stream[at : at + size] for at in range(0, len(stream), size)], limit) == whole

    assert isinstance(whole[-1], End | Failed)
    answer = assemble(whole)
    written = ChatEncoder(ENVELOPE, Ledger()).encode(whole)
    checker = checker_for(Protocol.CHAT)
    assert [*checker.receive_data(written), *checker.finish()] == []
    again = assemble(run([written], 2 * DEFAULT))
    if isinstance(answer, Reply):
        assert isinstance(again, Reply)
        assert again.finish == answer.finish
        # Chat requires its totals: what nobody reported reads back as 0.
        assert again.usage == (answer.usage and openai_usage(encode_openai_usage(answer.usage)))
    else:
        assert isinstance(again, Failed)
    check_reply(stream)
