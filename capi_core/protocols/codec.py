"""What each protocol provides, as one table row: the exchange and the tools work on rows and name no protocol.

`protocols/registry.py` holds the rows. A protocol's package has the same modules as the others:

    passthrough      the client's request and the upstream's stream when both sides speak it: edited, never
    re-serialised request_decoder  request -> Conversation request_encoder  Conversation -> request reply
    whole answer <-> Reply stream_decoder   event stream -> deltas stream_encoder   deltas -> event stream errors
    a Problem in its shape, and the upstream's error read back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

if TYPE_CHECKING:
    from capi_core.conversation import Conversation
    from capi_core.deltas import Reply
    from capi_core.errors import Problem
    from capi_core.fidelity import Ledger
    from capi_core.members import JSONObject
    from capi_core.protocols.stream import StreamDecoder, StreamEncoder, StreamMachine
    from capi_core.target import Target
    from capi_core.tool_names import ToolNames
    from capi_core.usage import Usage

__all__ = ["ClientRequest", "Codec", "EncodedRequest", "Envelope", "Passage", "PassedAnswer"]


@frozen
class ClientRequest:
    """What the gateway reads of any request: enough to route it. `asks_usage`: usage on a stream is to be told to the
    client; only Chat leaves that to it."""

    document: JSONObject
    model: str
    stream: bool
    asks_usage: bool = field(default=True, kw_only=True)


@frozen
class Passage:
    """A request that goes to an upstream of its own protocol. `machine`: for its stream; `None` when it asks for
    none."""

    body: bytes = field(repr=False)
    machine: StreamMachine | None


@frozen
class PassedAnswer:
    """A whole JSON answer that goes to the client. `error`: it tells of an error, whatever its status."""

    body: bytes = field(repr=False)
    usage: Usage | None
    error: bool


@frozen
class EncodedRequest:
    """A translated request. `names` tells what the tool names in the answer stand for."""

    body: bytes = field(repr=False)
    names: ToolNames


@frozen
class Envelope:
    """What an answer is wrapped in, where the upstream's own cannot be used.

    `request_id`: our id, from which ids are made when the upstream gave none; ASCII letters, digits, `_` and `-`.
    `model`: the name that the client knows. `now_s`: seconds since epoch, for protocols that stamp an answer.
    `include_usage`: a Chat client asked for the usage chunk. `request`: the client's own request, for a protocol that
    repeats parts of it in the answer.
    """

    request_id: str
    model: str
    now_s: int = 0
    include_usage: bool = True
    request: JSONObject | None = field(default=None, repr=False)


class Codec(Protocol):
    """A protocol's row. Every `decode_*` raises `ProtocolError`: on a client's request with status 400, the code and
    the JSON path as `param`; on an upstream's answer with status 502."""

    def read(self, body: bytes) -> ClientRequest:
        """Reads what routing needs of a client's request."""
        ...

    def pass_through(
        self, request: ClientRequest, *, upstream_model: str, public_name: str, ask_usage: bool, max_event_bytes: int
    ) -> Passage:
        """The request for an upstream of the same protocol, and the machine for its stream. `public_name` takes the
        place of the model's name in the answer; `ask_usage`: usage on streams may be asked for."""
        ...

    def pass_answer(self, body: bytes, *, upstream_model: str, public_name: str) -> PassedAnswer:
        """A whole answer from an upstream of the same protocol."""
        ...

    def decode_request(self, document: JSONObject, ledger: Ledger) -> Conversation:
        """A client's request in no protocol's shape. What has no place there is noted in `ledger`."""
        ...

    def encode_request(self, conversation: Conversation, target: Target, ledger: Ledger) -> EncodedRequest:
        """A request for an upstream of this protocol. Raises `ProtocolError` (400) for what must not be dropped."""
        ...

    def decode_reply(self, body: bytes, ledger: Ledger) -> Reply:
        """An upstream's whole answer."""
        ...

    def encode_reply(self, reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
        """A whole answer for a client of this protocol."""
        ...

    def stream_decoder(self, ledger: Ledger, *, max_event_bytes: int) -> StreamDecoder:
        """For one upstream's stream."""
        ...

    def stream_encoder(self, envelope: Envelope, ledger: Ledger) -> StreamEncoder:
        """For one client's stream."""
        ...

    def encode_error(self, problem: Problem, request_id: str) -> bytes:
        """The body of an error answer, which this protocol's SDKs map to their exceptions by status."""
        ...

    def decode_error(self, body: bytes, status: int) -> Problem | None:
        """An upstream's error in no protocol's shape; `None` when the body is none of this protocol. `status`: the HTTP
        status it came with; an error inside a 200 is given the status that its type or code means, else 502."""
        ...
