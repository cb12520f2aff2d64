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

__all__ = [
    "Usage",
    "UsageSource",
    "anthropic_usage",
    "encode_anthropic_usage",
    "encode_openai_usage",
    "encode_responses_usage",
    "merge_anthropic_usage",
    "openai_usage",
    "responses_usage",
]


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


def encode_openai_usage(usage: Usage) -> bytes:
    """The `usage` member of a Chat Completions answer, raw JSON. `CompletionUsage` requires the three totals: what is
    not known is 0 there. The details are left out where nothing is known, so that all else reads back as it was."""
    given = (usage.uncached_input or 0) + (usage.cache_read or 0) + (usage.cache_write or 0)
    made = (usage.output or 0) + (usage.reasoning or 0)
    text = b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d' % (given, made, given + made)
    prompt = [
        b'"%b":%d' % (name, count)
        for name, count in ((b"cached_tokens", usage.cache_read), (b"cache_write_tokens", usage.cache_write))
        if count is not None
    ]
    if prompt:
        text += b',"prompt_tokens_details":{%b}' % b",".join(prompt)
    if usage.reasoning is not None:
        text += b',"completion_tokens_details":{"reasoning_tokens":%d}' % usage.reasoning
    return text + b"}"


class _InputDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _ResponsesUsage(msgspec.Struct):
    input_tokens: _Tokens | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens: _Tokens | None = None
    output_tokens_details: _OutputDetails | None = None
    total_tokens: int = 0


_RESPONSES_DECODER = msgspec.json.Decoder(_ResponsesUsage)


def responses_usage(text: bytes | msgspec.Raw) -> Usage | None:
    """Reads the `usage` member of a Responses object (OpenAI API reference, `ResponseUsage`); see `openai_usage`."""
    try:
        reported = _RESPONSES_DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    prompt = reported.input_tokens_details or _InputDetails()
    answer = reported.output_tokens_details or _OutputDetails()
    usage = Usage(
        uncached_input=_minus(reported.input_tokens, prompt.cached_tokens, prompt.cache_write_tokens),
        cache_read=_count(prompt.cached_tokens),
        cache_write=_count(prompt.cache_write_tokens),
        output=_minus(reported.output_tokens, answer.reasoning_tokens),
        reasoning=_count(answer.reasoning_tokens),
    )
    return usage if usage != Usage() else None


def encode_responses_usage(usage: Usage | None) -> bytes:
    """The `usage` member of a Responses object, raw JSON; `null` when nothing is known.

    `ResponseUsage` requires all its counts but `cache_write_tokens`, and readers with static types (Codex) drop an
    answer that lacks one: what is not known is 0 there. All else reads back as it was.
    """
    if usage is None or usage == Usage():
        return b"null"
    given = (usage.uncached_input or 0) + (usage.cache_read or 0) + (usage.cache_write or 0)
    made = (usage.output or 0) + (usage.reasoning or 0)
    prompt = b'{"cached_tokens":%d' % (usage.cache_read or 0)
    if usage.cache_write is not None:
        prompt += b',"cache_write_tokens":%d' % usage.cache_write
    return (
        b'{"input_tokens":%d,"input_tokens_details":%b},"output_tokens":%d,'
        b'"output_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}'
        % (given, prompt, made, usage.reasoning or 0, given + made)
    )


class _ThinkingDetails(msgspec.Struct):
    thinking_tokens: _Tokens | None = None


class _AnthropicUsage(msgspec.Struct):
    input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    output_tokens_details: _ThinkingDetails | None = None


_ANTHROPIC_DECODER = msgspec.json.Decoder(_AnthropicUsage)


def anthropic_usage(text: bytes | msgspec.Raw, *, opening: bool = False) -> Usage | None:
    """Reads the `usage` member of a Message, of `message_start` or of `message_delta` (Anthropic API, `Usage`).

    There `input_tokens` are without the cached ones, and `output_tokens` with those of thinking. `opening`: it is the
    one of `message_start`, where servers that know nothing yet write 0: no prompt is empty, so 0 tokens that were given
    with none from a cache, and 0 that were made, are then not known. Returns `None` when nothing usable is reported.
    """
    try:
        reported = _ANTHROPIC_DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    details = reported.output_tokens_details or _ThinkingDetails()
    given, made = reported.input_tokens, reported.output_tokens
    if opening:
        cached = reported.cache_creation_input_tokens or reported.cache_read_input_tokens
        given, made = given or (given if cached else None), made or None
    usage = Usage(
        uncached_input=_count(given),
        cache_read=_count(reported.cache_read_input_tokens),
        cache_write=_count(reported.cache_creation_input_tokens),
        output=_minus(made, details.thinking_tokens),
        reasoning=_count(details.thinking_tokens),
    )
    return usage if usage != Usage() else None


def merge_anthropic_usage(before: Usage | None, after: Usage | None) -> Usage | None:
    """The figures of a Messages stream after one more report: what `after` has replaces what `before` had, as both are
    cumulative. Output and reasoning are two parts of one figure, and come from the same report."""
    if before is None or after is None:
        return after if before is None else before
    told = before if after.output is None else after
    return Usage(
        uncached_input=before.uncached_input if after.uncached_input is None else after.uncached_input,
        cache_read=before.cache_read if after.cache_read is None else after.cache_read,
        cache_write=before.cache_write if after.cache_write is None else after.cache_write,
        output=told.output,
        reasoning=told.reasoning,
    )


def encode_anthropic_usage(usage: Usage | None, *, whole: bool) -> bytes:
    """The `usage` member of a Message (`whole`) or of `message_delta`, raw JSON.

    What is not known is left out, but `output_tokens`, and of a Message also `input_tokens`, are required and then 0.
    All else reads back as it was.
    """
    usage = usage or Usage()
    given = usage.uncached_input
    if given is None and whole:
        given = 0
    counts = (
        (b'"input_tokens":%d,', given),
        (b'"cache_creation_input_tokens":%d,', usage.cache_write),
        (b'"cache_read_input_tokens":%d,', usage.cache_read),
    )
    known = b"".join(form % count for form, count in counts if count is not None)
    made = b'"output_tokens":%d' % ((usage.output or 0) + (usage.reasoning or 0))
    if usage.reasoning is not None:
        made += b',"output_tokens_details":{"thinking_tokens":%d}' % usage.reasoning
    return b"{%b%b}" % (known, made)
