"""The row of Messages in the table of protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from attrs import frozen

from capi_core.protocols.codec import ClientRequest, EncodedRequest, Passage, PassedAnswer
from capi_core.protocols.messages.errors import decode_error, encode_error
from capi_core.protocols.messages.passthrough import MessagesStream
from capi_core.protocols.messages.replay import encode_passed_request
from capi_core.protocols.messages.reply import decode_reply, encode_reply, pass_answer
from capi_core.protocols.messages.request_decoder import decode_request
from capi_core.protocols.messages.request_encoder import encode_request
from capi_core.protocols.messages.stream_decoder import MessagesDecoder
from capi_core.protocols.messages.stream_encoder import MessagesEncoder
from capi_core.protocols.openai import read_request, required_model
from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from capi_core.conversation import Conversation
    from capi_core.deltas import Reply
    from capi_core.errors import Problem
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject
    from capi_core.protocols.codec import Codec, Envelope
    from capi_core.target import Target

__all__ = ["MESSAGES", "MessagesCodec"]

_BOOL: Final = msgspec.json.Decoder(bool | None)


@frozen
class MessagesCodec:
    """Anthropic Messages; a `Codec`."""

    def read(self, body: bytes) -> ClientRequest:
        """Reads what routing needs of a client's request."""
        document = read_request(body)
        model = required_model(document)
        stream = read_json(_BOOL, document.get("stream") or b"null", "$.stream")
        return ClientRequest(document, model, bool(stream))

    def pass_through(
        self, request: ClientRequest, *, upstream_model: str, public_name: str, ask_usage: bool, max_event_bytes: int
    ) -> Passage:
        """The request for an upstream of Messages. Usage needs not be asked for: a stream always has it."""
        body = encode_passed_request(request, upstream_model=upstream_model)
        if not request.stream:
            return Passage(body, None)
        return Passage(body, MessagesStream(public_name=public_name, max_event_bytes=max_event_bytes))

    def pass_answer(self, body: bytes, *, upstream_model: str, public_name: str) -> PassedAnswer:
        """A whole answer from an upstream of Messages."""
        return pass_answer(body, public_name=public_name)

    def decode_request(self, document: JSONObject, ledger: Ledger) -> Conversation:
        """A client's request in no protocol's shape."""
        return decode_request(document, ledger)

    def encode_request(self, conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
        """A request for an upstream of Messages."""
        return encode_request(conversation, target, ledger)

    def decode_reply(self, body: bytes, ledger: Ledger) -> Reply:
        """An upstream's whole answer."""
        return decode_reply(body, ledger)

    def encode_reply(self, reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
        """A whole answer for a client of Messages."""
        return encode_reply(reply, envelope, ledger)

    def stream_decoder(self, ledger: Ledger, *, max_event_bytes: int) -> MessagesDecoder:
        """For one upstream's stream."""
        return MessagesDecoder(ledger, max_event_bytes=max_event_bytes)

    def stream_encoder(self, envelope: Envelope, ledger: Ledger) -> MessagesEncoder:
        """For one client's stream."""
        return MessagesEncoder(envelope, ledger)

    def encode_error(self, problem: Problem, request_id: str) -> bytes:
        """The body of an error answer."""
        return encode_error(problem, request_id)

    def decode_error(self, body: bytes, status: int) -> Problem | None:
        """An upstream's error in no protocol's shape."""
        return decode_error(body, status)


MESSAGES: Final[Codec] = MessagesCodec()
