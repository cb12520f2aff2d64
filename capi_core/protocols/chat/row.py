"""The row of Chat Completions in the table of protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from capi_core.errors import LocalError
from capi_core.protocols.chat.errors import decode_error, encode_error
from capi_core.protocols.chat.passthrough import ChatRequest, pass_through, read
from capi_core.protocols.chat.reply import decode_reply, encode_reply, pass_answer
from capi_core.protocols.chat.request_decoder import decode_request
from capi_core.protocols.chat.request_encoder import encode_request
from capi_core.protocols.chat.stream_decoder import ChatDecoder
from capi_core.protocols.chat.stream_encoder import ChatEncoder

if TYPE_CHECKING:
    from capi_core.conversation import Conversation
    from capi_core.deltas import Reply
    from capi_core.errors import Problem
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject
    from capi_core.protocols.codec import ClientRequest, Codec, EncodedRequest, Envelope, Passage, PassedAnswer
    from capi_core.target import Target

__all__ = ["CHAT", "ChatCodec"]


@frozen
class ChatCodec:
    """OpenAI Chat Completions; a `Codec`."""

    def read(self, body: bytes) -> ClientRequest:
        """Reads what routing needs of a client's request."""
        return read(body)

    def pass_through(
        self, request: ClientRequest, *, upstream_model: str, public_name: str, ask_usage: bool, max_event_bytes: int
    ) -> Passage:
        """The request for an upstream of Chat. Raises `LocalError` for one that `read` did not give."""
        if not isinstance(request, ChatRequest):
            raise LocalError("a request of Chat passes through Chat")
        return pass_through(
            request,
            upstream_model=upstream_model,
            public_name=public_name,
            ask_usage=ask_usage,
            max_event_bytes=max_event_bytes,
        )

    def pass_answer(self, body: bytes, *, upstream_model: str, public_name: str) -> PassedAnswer:
        """A whole answer from an upstream of Chat."""
        return pass_answer(body, public_name=None if public_name == upstream_model else public_name)

    def decode_request(self, document: JSONObject, ledger: Ledger) -> Conversation:
        """A client's request in no protocol's shape."""
        return decode_request(document, ledger)

    def encode_request(self, conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
        """A request for an upstream of Chat."""
        return encode_request(conversation, target, ledger)

    def decode_reply(self, body: bytes, ledger: Ledger) -> Reply:
        """An upstream's whole answer."""
        return decode_reply(body, ledger)

    def encode_reply(self, reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
        """A whole answer for a client of Chat."""
        return encode_reply(reply, envelope, ledger)

    def stream_decoder(self, ledger: Ledger, *, max_event_bytes: int) -> ChatDecoder:
        """For one upstream's stream."""
        return ChatDecoder(ledger, max_event_bytes=max_event_bytes)

    def stream_encoder(self, envelope: Envelope, ledger: Ledger) -> ChatEncoder:
        """For one client's stream."""
        return ChatEncoder(envelope, ledger)

    def encode_error(self, problem: Problem, request_id: str) -> bytes:
        """The body of an error answer."""
        return encode_error(problem, request_id)

    def decode_error(self, body: bytes, status: int) -> Problem | None:
        """An upstream's error in no protocol's shape."""
        return decode_error(body, status)


CHAT: Final[Codec] = ChatCodec()
