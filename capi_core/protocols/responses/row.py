"""The row of Responses in the table of protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from attrs import frozen

from capi_core.protocols.codec import ClientRequest, EncodedRequest, Passage, PassedAnswer
from capi_core.protocols.openai import encode_error, read_request, required_model
from capi_core.protocols.reading import read_json
from capi_core.protocols.responses.errors import decode_error
from capi_core.protocols.responses.passthrough import ResponsesStream
from capi_core.protocols.responses.replay import Replay, encode_passed_request
from capi_core.protocols.responses.reply import decode_reply, encode_reply, pass_answer
from capi_core.protocols.responses.request_decoder import decode_request
from capi_core.protocols.responses.request_encoder import encode_request
from capi_core.protocols.responses.stream_decoder import ResponsesDecoder
from capi_core.protocols.responses.stream_encoder import ResponsesEncoder

if TYPE_CHECKING:
    from capi_core.conversation import Conversation
    from capi_core.deltas import Reply
    from capi_core.errors import Problem
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject
    from capi_core.protocols.codec import Codec, Envelope
    from capi_core.target import Target

__all__ = ["RESPONSES", "RESPONSES_WITHOUT_IDS", "ResponsesCodec"]

_BOOL: Final = msgspec.json.Decoder(bool | None)


@frozen
class ResponsesCodec:
    """OpenAI Responses; a `Codec`. `replay`: what becomes of the ids of items that a client gives back."""

    replay: Replay = Replay.KEEP

    def read(self, body: bytes) -> ClientRequest:
        """Reads what routing needs of a client's request."""
        document = read_request(body)
        model = required_model(document)
        stream = read_json(_BOOL, document.get("stream") or b"null", "$.stream")
        return ClientRequest(document, model, bool(stream))

    def pass_through(
        self, request: ClientRequest, *, upstream_model: str, public_name: str, ask_usage: bool, max_event_bytes: int
    ) -> Passage:
        """The request for an upstream of Responses. Usage needs not be asked for: the last event always has it."""
        body = encode_passed_request(
            request.document, model=request.model, upstream_model=upstream_model, replay=self.replay
        )
        if not request.stream:
            return Passage(body, None)
        return Passage(body, ResponsesStream(public_name=public_name, max_event_bytes=max_event_bytes))

    def pass_answer(self, body: bytes, *, upstream_model: str, public_name: str) -> PassedAnswer:
        """A whole answer from an upstream of Responses."""
        return pass_answer(body, public_name=public_name)

    def decode_request(self, document: JSONObject, ledger: Ledger) -> Conversation:
        """A client's request in no protocol's shape."""
        return decode_request(document, ledger)

    def encode_request(self, conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
        """A request for an upstream of Responses."""
        return encode_request(conversation, target, ledger)

    def decode_reply(self, body: bytes, ledger: Ledger) -> Reply:
        """An upstream's whole answer."""
        return decode_reply(body)

    def encode_reply(self, reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
        """A whole answer for a client of Responses."""
        return encode_reply(reply, envelope, ledger)

    def stream_decoder(self, ledger: Ledger, *, max_event_bytes: int) -> ResponsesDecoder:
        """For one upstream's stream."""
        return ResponsesDecoder(max_event_bytes=max_event_bytes)

    def stream_encoder(self, envelope: Envelope, ledger: Ledger) -> ResponsesEncoder:
        """For one client's stream."""
        return ResponsesEncoder(envelope, ledger)

    def encode_error(self, problem: Problem, request_id: str) -> bytes:
        """The body of an error answer."""
        return encode_error(problem)

    def decode_error(self, body: bytes, status: int) -> Problem | None:
        """An upstream's error in no protocol's shape."""
        return decode_error(body, status)


RESPONSES: Final[Codec] = ResponsesCodec()
"""For OpenAI, and whoever takes ids of items back as it does."""

RESPONSES_WITHOUT_IDS: Final[Codec] = ResponsesCodec(Replay.STRIP)
"""For Copilot, which refuses an item under any id but one of the many that it gave it."""
