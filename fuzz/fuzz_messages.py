"""Invariant: any bytes as a Messages stream pass, and become deltas, the same however they are split.

Passed through, what a client gets is complete events, and with an alias no `message_start` has another model's name:
the standard library's `json` is the second opinion. A stream has its `message_stop` exactly when it ends well.
Decoded, the deltas keep their rules and end once; told again as a stream, they keep the protocol's grammar and decode
to the same answer, but for what has no block. As a whole answer the bytes are a reply or a `ProtocolError` of status
502; as a request only the model and carried thinking change.
The first byte of an input chooses the limit and the alias (its low bits) and the size of the pieces.
"""

import json

from attrs import frozen

from capi_core.conformance.checker import StreamChecker
from capi_core.conformance.messages import MessagesGrammar
from capi_core.conversation import Opaque, Reasoning, Signature
from capi_core.deltas import AnswerDelta, End, Failed, FinishReason, Reply, ReplyBlock, ReplyText, assemble
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import ClientRequest, Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSIGNED
from capi_core.protocols.messages.passthrough import MessagesStream
from capi_core.protocols.messages.replay import encode_passed_request
from capi_core.protocols.messages.reply import decode_reply, encode_reply
from capi_core.protocols.messages.stream_decoder import MessagesDecoder
from capi_core.protocols.messages.stream_encoder import MessagesEncoder
from capi_core.protocols.openai import read_request, required_model
from capi_core.protocols.stream import StreamState
from capi_core.sse import SSEDecoder
from capi_core.usage import Usage

__all__ = ["test_one_input"]

TIGHT = 256  # bytes: mutated events fall on both sides of it
DEFAULT = 4 * 1024 * 1024
ALIAS = "an alias"
CODES = {"upstream_truncated", "upstream_garbage", "upstream_event_too_large"}
ENVELOPE = Envelope("q", "m")
INPUT_RULE = "messages-tool-input"
"""A model may write arguments that are no JSON, and a stream cannot take them back."""


@frozen
class Run:
    output: bytes
    state: StreamState
    code: str | None
    usage: Usage | None
    error: bytes | None


def run(pieces: list[bytes], limit: int, renames: bool) -> Run:
    stream = MessagesStream(public_name=ALIAS if renames else None, max_event_bytes=limit)
    output = bytearray()
    for piece in pieces:
        if stream.state is not StreamState.BROKEN:
            output += stream.receive_data(piece)
    if stream.state is not StreamState.BROKEN:
        output += stream.finish()
    code = None if stream.failure is None else stream.failure.code
    return Run(bytes(output), stream.state, code, stream.usage, stream.error)


def check_passed(passed: Run, renames: bool) -> None:
    assert (passed.code in CODES) == (passed.state is StreamState.BROKEN)
    assert (passed.error is not None) == (passed.state is StreamState.ERRORED)
    assert passed.state not in (StreamState.OPEN, StreamState.FINISHED)
    decoder = SSEDecoder(max_event_bytes=2 * DEFAULT)
    events = decoder.feed(passed.output) + decoder.finish()
    assert decoder.residue == b"", "half an event was forwarded"
    kinds = []
    for event in events:
        try:
            members = json.loads((event.data or b"").decode("utf-8", "replace"))
        except (ValueError, RecursionError):  # not JSON, or deeper than this stack allows
            continue
        if not isinstance(members, dict):
            continue
        kinds.append(members.get("type") or event.type.decode("utf-8", "replace"))
        message = members.get("message")
        if renames and kinds[-1] == "message_start" and isinstance(message, dict):
            assert message.get("model", ALIAS) == ALIAS
    assert ("message_stop" in kinds) == (passed.state is StreamState.DONE)


def decoded(pieces: list[bytes], limit: int) -> list[AnswerDelta]:
    decoder = MessagesDecoder(Ledger(), max_event_bytes=limit)
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
        case Reasoning(signature=None):
            return Reasoning(block.parts, Signature(Protocol.MESSAGES, UNSIGNED))
        case _:
            return block


def is_empty(block: ReplyBlock) -> bool:
    """Whether it has no block: a client could not give it back."""
    match block:
        case ReplyText():
            return not (block.text or block.annotations)
        case Reasoning():
            return not block.parts and block.signature is None
        case _:
            return False


def check_answer(found: list[AnswerDelta]) -> None:
    assert sum(isinstance(delta, End | Failed) for delta in found) == 1
    assert isinstance(found[-1], End | Failed)
    told = assemble(found)
    stream = MessagesEncoder(ENVELOPE, Ledger()).encode(found)
    checker = StreamChecker(MessagesGrammar(), max_event_bytes=2 * DEFAULT)
    violations = checker.receive_data(stream) + checker.finish()
    assert {violation.rule for violation in violations} <= {INPUT_RULE}
    again = assemble(decoded([stream], 2 * DEFAULT))
    if isinstance(told, Failed):
        assert isinstance(again, Failed)
        return
    assert isinstance(again, Reply)
    assert again.finish.reason is told.finish.reason or told.finish.reason in (
        FinishReason.STOP,
        FinishReason.TOOL_CALLS,
    )
    assert [shape(block) for block in again.blocks] == [shape(block) for block in told.blocks if not is_empty(block)]


def check_status(error: ProtocolError) -> None:
    assert error.status_hint == 502


def check_reply(body: bytes) -> None:
    try:
        reply = decode_reply(body, Ledger())
    except ProtocolError as error:  # the body is the peer's
        check_status(error)
        return
    again = decode_reply(encode_reply(reply, ENVELOPE, Ledger()), Ledger())
    assert len(again.blocks) <= len(reply.blocks)


def check_request(body: bytes) -> None:
    try:
        document = read_request(body)
        model = required_model(document)
    except ProtocolError:  # the body is the peer's
        return
    again = read_request(encode_passed_request(ClientRequest(document, model, False), upstream_model="up"))
    assert again.names == document.names
    assert required_model(again) == "up"
    for name in document.names:
        assert name in ("model", "messages") or again.get(name) == document.get(name)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limit, renames = TIGHT if data[0] & 1 else DEFAULT, bool(data[0] & 2)
    size, stream = 1 + (data[0] >> 2), data[1:]
    bytewise = [stream[at : at + 1] for at in range(len(stream))]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    whole = run([stream], limit, renames)
    assert run(bytewise, limit, renames) == whole
    assert run(pieces, limit, renames) == whole
    check_passed(whole, renames)

    deltas = decoded([stream], limit)
    assert decoded(bytewise, limit) == deltas
    assert decoded(pieces, limit) == deltas
    check_answer(deltas)
    check_reply(stream)
    check_request(stream)
