"""Errors of Chat Completions: the body of an error answer, and the error chunk of a stream, which has the same shape.

Sources: OpenAI API reference, "Error codes"; wire.md 1.4, 1.8.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from capi_core.errors import Problem
from capi_core.members import decode
from capi_core.protocols import openai

__all__ = ["UNREADABLE", "decode_error", "encode_error"]

UNREADABLE: Final = Problem(502, "upstream_error", "the upstream reported an error in a form that cannot be read")
"""In place of an error that `decode_error` makes nothing of."""

_MOST_MESSAGE: Final = 4096
_ERROR_STATUS: Final = re.compile("[45][0-9][0-9]")


class _Error(msgspec.Struct):
    """All members are optional, as servers differ in what they leave out."""

    message: str | None = None
    type: str | None = None
    code: int | str | None = None
    param: str | None = None
    status: int | str | None = None


class _Document(msgspec.Struct):
    error: _Error | str


_DOCUMENT: Final = msgspec.json.Decoder(_Document)


def encode_error(problem: Problem, request_id: str) -> bytes:
    """A problem as OpenAI's error body; the request's id is told in a header and not here."""
    return openai.encode_error(problem)


def decode_error(body: bytes, status: int) -> Problem | None:
    """An upstream's error in no protocol's shape; `None` when `body` tells of none.

    A `status` below 400 says nothing: then the error's own `status` or `code` counts if it is an HTTP status, else it
    is 502.
    """
    try:
        error = decode(_DOCUMENT, body)[0].error
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    if isinstance(error, str):
        error = _Error(error)
    if status < 400:
        status = _own_status(error)
    code = str(error.code) if error.code else error.type or "upstream_error"
    message = error.message or "the upstream reported an error without a message"
    return Problem(status, code, message[:_MOST_MESSAGE], error.param)


def _own_status(error: _Error) -> int:
    for value in (error.status, error.code):
        text = str(value)
        if _ERROR_STATUS.fullmatch(text):
            return int(text)
    return 502
