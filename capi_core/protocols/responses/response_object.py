"""The `response` object of our own answers: what its events and a whole answer have in common.

Source: OpenAI API reference, "The response object"; wire.md 1.2. The members that repeat the request are the client's
own, or the API's default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.deltas import FinishReason
from capi_core.protocols.splice import one_line
from capi_core.protocols.writing import json_text
from capi_core.usage import encode_responses_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_core.protocols.codec import Envelope
    from capi_core.usage import Usage

__all__ = ["INCOMPLETE", "ResponseObject"]

_NULL: Final = b"null"

_REPEATED: Final = {
    "instructions": _NULL,
    "max_output_tokens": _NULL,
    "max_tool_calls": _NULL,
    "metadata": b"{}",
    "parallel_tool_calls": b"true",
    "previous_response_id": _NULL,
    "prompt_cache_key": _NULL,
    "reasoning": b'{"effort":null,"summary":null}',
    "safety_identifier": _NULL,
    "service_tier": b'"auto"',
    "store": b"false",
    "temperature": b"1.0",
    "text": b'{"format":{"type":"text"}}',
    "tool_choice": b'"auto"',
    "tools": b"[]",
    "top_logprobs": b"0",
    "top_p": b"1.0",
    "truncation": b'"disabled"',
    "user": _NULL,
}
"""Members that repeat the request, with the API's defaults; but nothing is stored here."""

INCOMPLETE: Final = {
    FinishReason.LENGTH: b"max_output_tokens",
    FinishReason.CONTEXT_FULL: b"max_output_tokens",
    FinishReason.CONTENT_FILTER: b"content_filter",
}
"""Ends that make a response incomplete, and `incomplete_details.reason`."""


class ResponseObject:
    """The response of one request. `created_s`: seconds since epoch, the upstream's time or ours."""

    def __init__(self, envelope: Envelope) -> None:
        self.id = f"resp_{envelope.request_id}"
        self.created_s = envelope.now_s
        request = envelope.request
        repeated = []
        for name, default in _REPEATED.items():
            given = None if request is None else request.get(name)
            value = default if given is None or given == _NULL else one_line(given)
            repeated.append(b'"%b":%b' % (name.encode(), value))
        self._fixed = b'"model":%b,"background":false,%b' % (json_text(envelope.model), b",".join(repeated))

    def text(
        self,
        status: bytes,
        output: Sequence[bytes] = (),
        *,
        usage: Usage | None = None,
        error: bytes = _NULL,
        incomplete: bytes | None = None,
    ) -> bytes:
        """Raw JSON. `output`: the done items; `error`: raw; `incomplete`: why it is."""
        details = _NULL if incomplete is None else b'{"reason":"%b"}' % incomplete
        return (
            b'{"id":%b,"object":"response","created_at":%d,"status":"%b","error":%b,"incomplete_details":%b,%b,'
            b'"output":[%b],"usage":%b}'
            % (
                json_text(self.id),
                self.created_s,
                status,
                error,
                details,
                self._fixed,
                b",".join(output),
                encode_responses_usage(usage),
            )
        )
