"""Embeddings, passed through: one JSON request, one JSON answer. Source: OpenAI API reference, "Create embeddings"."""

from __future__ import annotations

from attrs import frozen

from capi_core.members import JSONObject
from capi_core.protocols.openai import json_string, read_request, required_model

__all__ = ["EmbeddingsRequest", "decode_request", "encode_request"]


@frozen
class EmbeddingsRequest:
    """What the gateway reads of an embeddings request."""

    document: JSONObject
    model: str


def decode_request(body: bytes) -> EmbeddingsRequest:
    """Reads a request body. Raises `ProtocolError` (400)."""
    document = read_request(body)
    return EmbeddingsRequest(document, required_model(document))


def encode_request(request: EmbeddingsRequest, *, upstream_model: str) -> bytes:
    """The request as the upstream gets it: only the model's name may differ."""
    if upstream_model == request.model:
        return request.document.text
    return request.document.edit({"model": json_string(upstream_model)})
