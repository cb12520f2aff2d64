"""What OpenAI's HTTP protocols have in common: the error object, the model listing, and JSON answers.

Source: OpenAI API reference (error codes, models, embeddings, chat), read as in wire.md 1.1 to 1.4.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.errors import Problem, ProtocolError
from capi_core.members import JSONObject, MemberRewriter, decode
from capi_core.protocols.codec import PassedAnswer
from capi_core.usage import openai_usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.aliases import ListedModel

__all__ = [
    "decode_answer",
    "decode_string",
    "encode_error",
    "encode_model",
    "encode_models",
    "json_string",
    "read_request",
    "required_model",
    "says_error",
]

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class _ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class _ErrorEnvelope(msgspec.Struct):
    error: _ErrorBody


class _Envelope(msgspec.Struct):
    """The members of an answer that the gateway reads; all the rest passes unread."""

    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _ModelRecord(msgspec.Struct):
    """The members of a model record that are told to clients, in OpenAI's and in Anthropic's list shape at once.

    One merged object satisfies all four official SDKs (wire.md 1.3).
    """

    id: str
    object: str = "model"
    type: str = "model"
    created: int = 0
    created_at: datetime = datetime.fromtimestamp(0, UTC)
    owned_by: str = "capi"
    display_name: str = ""


class _ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[_ModelRecord]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


class _UpstreamRecord(msgspec.Struct):
    created: int | None = None
    owned_by: str | None = None
    vendor: str | None = None


_MAX_MODEL: Final = 256  # characters; it is repeated in logs and accounts, which must not hold a prompt
_LATEST: Final = 253_402_300_799  # 9999-12-31, the last second that can be written as a date
_JSON: Final = msgspec.json.Encoder()
_STRING: Final = msgspec.json.Decoder(str)
_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_RECORD: Final = msgspec.json.Decoder(_UpstreamRecord)


def json_string(text: str) -> bytes:
    """`text` as a JSON string."""
    return _JSON.encode(text)


def decode_string(raw: bytes) -> str | None:
    """The text of a raw JSON string; `None` when it is anything else."""
    try:
        return _STRING.decode(raw)
    except (msgspec.DecodeError, UnicodeError):
        return None


def read_request(body: bytes) -> JSONObject:
    """Reads a request body as one JSON object. Raises `ProtocolError` with a code, status 400."""
    if not body.strip():
        raise ProtocolError(
            "the request has no body; send a JSON object with at least a `model` member", code="empty_body"
        )
    return JSONObject(body)


def required_model(document: JSONObject) -> str:
    """The request's `model` member. Raises `ProtocolError` when there is none, or it is not a name."""
    raw = document.get("model")
    if raw is None:
        raise ProtocolError(
            "the request names no model; add a `model` member (GET /v1/models lists the names)",
            code="missing_model",
            param="model",
        )
    model = decode_string(raw)
    if not model or len(model) > _MAX_MODEL:
        text = f"`model` must be a string of 1 to {_MAX_MODEL} characters"
        raise ProtocolError(text, code="invalid_model", param="model")
    return model


def encode_error(problem: Problem) -> bytes:
    """A problem as OpenAI's error body, which the official SDKs map to their exception classes by status."""
    kind = _ERROR_TYPES.get(problem.status) or ("api_error" if problem.status >= 500 else "invalid_request_error")
    return _JSON.encode(_ErrorEnvelope(_ErrorBody(problem.message, kind, problem.param, problem.code)))


def says_error(raw: msgspec.Raw) -> bool:
    """Whether a raw `error` member tells of an error: present and not null."""
    return bool(raw) and bytes(raw) != b"null"


def decode_answer(body: bytes, *, public_name: str | None) -> PassedAnswer:
    """Reads an upstream's whole answer; with `public_name` its top-level `model` is replaced, and nothing else.

    Raises `ProtocolError` (502) when the body is not a JSON object.
    """
    try:
        envelope, _ = decode(_ENVELOPE, body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ProtocolError(
            "the upstream's answer is not a JSON object; it may be a proxy's page: check the upstream's base_url",
            code="upstream_garbage",
            status_hint=502,
        ) from error
    if public_name is not None:
        body = MemberRewriter("model", json_string(public_name)).rewrite(body)
    usage = openai_usage(envelope.usage) if envelope.usage else None
    return PassedAnswer(body, usage, says_error(envelope.error))


def encode_models(models: Iterable[ListedModel]) -> bytes:
    """GET /v1/models: one object that OpenAI's and Anthropic's SDKs both read as their own list."""
    records = [_public_record(model) for model in models]
    first, last = (records[0].id, records[-1].id) if records else (None, None)
    return _JSON.encode(_ModelList(data=records, first_id=first, last_id=last))


def encode_model(model: ListedModel) -> bytes:
    """GET /v1/models/{id}: one entry of the listing."""
    return _JSON.encode(_public_record(model))


def _public_record(model: ListedModel) -> _ModelRecord:
    """Built member by member: an upstream's record also holds its own id, its prices and its policy."""
    try:
        source = _RECORD.decode(model.record) if model.record else _UpstreamRecord()
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        source = _UpstreamRecord()
    owner = source.owned_by or source.vendor or "capi"
    created = min(max(source.created or 0, 0), _LATEST)
    at = datetime.fromtimestamp(created, UTC)
    return _ModelRecord(model.name, created=created, created_at=at, owned_by=owner, display_name=model.name)
