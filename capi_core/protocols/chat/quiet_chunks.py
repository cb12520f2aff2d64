"""Chunks of a Chat Completions stream that pass by the hundred (`quiet`): they only bring more of what has begun."""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from capi_core.protocols.quiet import Quiet, QuietReader

__all__ = ["pass_quiet"]


class _QuietFunction(msgspec.Struct, gc=False):
    name: Literal[""] | None = None


class _QuietCall(msgspec.Struct, gc=False):
    """More arguments for a call."""

    id: Literal[""] | None = None
    function: _QuietFunction | None = None
    custom: _QuietFunction | None = None


class _QuietDelta(msgspec.Struct, gc=False):
    tool_calls: list[_QuietCall] | None = None


class _QuietChoice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _QuietDelta | None = None
    finish_reason: None = None


class _QuietChunk(Quiet, gc=False, kw_only=True):
    """A chunk that neither begins a tool call nor ends a choice, and has neither usage nor an error."""

    choices: list[_QuietChoice]
    usage: None = None
    error: None = None


class _QuietNamedChunk(_QuietChunk, gc=False, kw_only=True):
    model: msgspec.Raw


_QUIET: Final = QuietReader(_QuietChunk)
_QUIET_NAMED: Final = QuietReader(_QuietNamedChunk)
_MODEL_NAME: Final = b'"model"'
_MODEL: Final = re.compile(rb'("model":\s?)"[^"\\]*+"')
_ESCAPE: Final = b"\\u00"
"""What each letter of a member's name would start with, were it spelled as an escape."""


def pass_quiet(run: bytes, name: bytes | None) -> tuple[bytes, int] | None:
    """A run of chunks with `name`, raw JSON, for the model of each, unless that is `None`; and how many they are.

    `None` unless all are quiet: then there is nothing to note of them but that they came.
    """
    chunks = (_QUIET if name is None else _QUIET_NAMED).read(run)
    if chunks is None:
        return None
    out = run if name is None else _with_names(run, name, len(chunks))
    return None if out is None else (out, len(chunks))


def _with_names(run: bytes, name: bytes, chunks: int) -> bytes | None:
    """`run` with `name` for the top-level `model` of each of its chunks; `None` where that is not plain to see.

    Each chunk is known to have the member. If its name stands as often in the run as there are chunks, and cannot be
    spelled with escapes, these places are all of them; and if the same value follows each, they can be replaced alike.
    """
    found = _MODEL.search(run)
    if found is None or _ESCAPE in run or run.count(_MODEL_NAME) != chunks:
        return None
    pieces = run.split(found[0])
    return (found[1] + name).join(pieces) if len(pieces) == chunks + 1 else None
