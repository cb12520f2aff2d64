"""A gateway's answers to one client, written by the protocols' own encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.deltas import Finish, FinishReason, Reply, ReplyBlock, ReplyText
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.registry import CODECS
from capi_core.usage import Usage
from tests.support import fakes

if TYPE_CHECKING:
    from capi_core.protocols.kinds import Protocol

__all__ = ["HELLO", "model_list", "refusal", "streamed"]

HELLO: Final = ReplyText("Hello there.")
SPENT: Final = Usage(uncached_input=5, output=4)


def streamed(protocol: Protocol, *blocks: ReplyBlock, usage: Usage | None = SPENT) -> bytes:
    """A whole, legal stream with these blocks."""
    reply = Reply("r_1", "m-1", blocks or (HELLO,), Finish(FinishReason.STOP), usage)
    encoder = CODECS[protocol].stream_encoder(Envelope("req_1", "m-1"), Ledger())
    return encoder.encode(reply.deltas())


def refusal(protocol: Protocol, status: int, code: str) -> fakes.Reply:
    """An error in the protocol's shape."""
    error = {"message": "SECRET words", "type": code, "param": None, "code": code}
    document: object = {"type": "error", "error": error} if protocol.value == "messages" else {"error": error}
    return fakes.json_reply(document, status)


def model_list(*names: str) -> fakes.Reply:
    """The answer to GET /v1/models."""
    return fakes.json_reply({"object": "list", "data": [{"id": name} for name in names]})
