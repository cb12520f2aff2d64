"""Token usage in one normal form, whatever the protocol that reported it.

The five counts are disjoint: a prompt's tokens are either uncached, read from a cache or written to one; what the
model produced is either output or reasoning. Adding them up never counts a token twice. A count the upstream did
not report is `None`, never 0: an unknown figure must not look like a free request.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from attrs import frozen

__all__ = ["Usage", "UsageSource", "openai_usage"]


class UsageSource(enum.Enum):
    """Where a request's usage figures came from."""

    UPSTREAM_FINAL = "upstream_final"
    """The upstream's own figures for the finished answer."""
    UPSTREAM_PARTIAL = "upstream_partial"
    """The upstream's own figures, but the answer did not end: more may have been billed."""
    NONE = "none"
    """The upstream reported nothing."""


@frozen
class Usage:
    """Disjoint token counts of one exchange; `None` means not reported."""

    uncached_input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None


# No count of tokens is larger: what is comes from a broken upstream, and would not fit the columns of a database.
_Tokens = Annotated[int, msgspec.Meta(le=2**53 - 1)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None  # how Copilot spells cache_write_tokens (wire.md 1.8)


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _OpenAIUsage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


_DECODER = msgspec.json.Decoder(_OpenAIUsage)


def openai_usage(text: bytes | msgspec.Raw) -> Usage | None:
    """Reads the `usage` member of a Chat Completions or Embeddings answer (OpenAI API reference, `CompletionUsage`).

    `text` is the member's raw JSON. OpenAI counts cached and cache-written tokens inside `prompt_tokens`, and
    reasoning tokens inside `completion_tokens`; here they are taken apart. Figures that contradict each other
    (more cached than prompt tokens) are clamped at 0. Returns `None` when nothing usable is reported.
    """
    try:
        reported = _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    prompt = reported.prompt_tokens_details or _PromptDetails()
    completion = reported.completion_tokens_details or _CompletionDetails()
    cache_write = prompt.cache_write_tokens
    if cache_write is None:
        cache_write = prompt.cache_creation_input_tokens
    usage = Usage(
        uncached_input=_minus(reported.prompt_tokens, prompt.cached_tokens, cache_write),
        cache_read=_count(prompt.cached_tokens),
        cache_write=_count(cache_write),
        output=_minus(reported.completion_tokens, completion.reasoning_tokens),
        reasoning=_count(completion.reasoning_tokens),
    )
    return usage if usage != Usage() else None


def _count(tokens: int | None) -> int | None:
    return None if tokens is None else max(tokens, 0)


def _minus(total: int | None, *parts: int | None) -> int | None:
    if total is None:
        return None
    return max(total - sum(max(part or 0, 0) for part in parts), 0)
