"""The answer to a request for a token count that no upstream gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capi_core.fidelity import Ledger
from capi_core.protocols.messages.request_decoder import decode_request
from capi_core.tokens import ESTIMATOR, count_conversation, encode_count

if TYPE_CHECKING:
    from capi_core.members import JSONObject
    from capi_core.tokens import TextCounter

__all__ = ["count_request", "estimate_request"]


def count_request(document: JSONObject, counter: TextCounter, *, vendor_factor: float = 1.0) -> bytes:
    """Counts the tokens of a Messages request; `max_tokens` may be missing. Raises `ProtocolError` (400).

    `vendor_factor`: by how much the model's own tokenizer is known to count more than `counter`.
    """
    conversation = decode_request(document, Ledger(), counting=True)
    return encode_count(count_conversation(conversation, counter, vendor_factor=vendor_factor))


def estimate_request(document: JSONObject, model: str) -> bytes:
    """The same without any tokenizer, whatever the model."""
    return count_request(document, ESTIMATOR)
