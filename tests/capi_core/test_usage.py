"""Usage: disjoint counts from the upstream's own figures, and never a made-up one."""

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.usage import (
    Usage,
    UsageSource,
    anthropic_usage,
    encode_anthropic_usage,
    encode_openai_usage,
    encode_responses_usage,
    merge_anthropic_usage,
    openai_usage,
    responses_usage,
)


def read(
    prompt: object = None, completion: object = None, details: object = None, parts: object = None
) -> Usage | None:
    """Usage of a document with these members; the members that are None are left out."""
    members = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": parts,
    }
    return openai_usage(msgspec.json.encode({name: value for name, value in members.items() if value is not None}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}', Usage(uncached_input=10, output=5)),
        (b'{"prompt_tokens":8,"total_tokens":8}', Usage(uncached_input=8)),  # embeddings
        (b' { "completion_tokens" : 0 } ', Usage(output=0)),
        (
            b'{"prompt_tokens":100,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":60,"audio_tokens":0},'
            b'"completion_tokens_details":{"reasoning_tokens":20,"audio_tokens":0}}',
            Usage(uncached_input=40, cache_read=60, output=30, reasoning=20),
        ),
        (
            b'{"prompt_tokens":100,"prompt_tokens_details":{"cached_tokens":60,"cache_write_tokens":30}}',
            Usage(uncached_input=10, cache_read=60, cache_write=30),
        ),
        (
            b'{"prompt_tokens":100,"prompt_tokens_details":{"cache_creation_input_tokens":30}}',
            Usage(uncached_input=70, cache_write=30),
        ),
        (
            b'{"prompt_tokens":100,"prompt_tokens_details":{"cache_write_tokens":0,"cache_creation_input_tokens":30}}',
            Usage(uncached_input=100, cache_write=0),
        ),
        (b'{"prompt_tokens":7,"prompt_tokens_details":null,"completion_tokens_details":null}', Usage(uncached_input=7)),
        (b'{"prompt_tokens_details":{"cached_tokens":3}}', Usage(cache_read=3)),
        (b'{"prompt_tokens":3,"note":"\xff"}', Usage(uncached_input=3)),
    ],
)
def test_what_servers_report_is_taken_apart(text: bytes, expected: Usage) -> None:
    assert openai_usage(text) == expected
    assert openai_usage(msgspec.Raw(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"prompt_tokens":10,"prompt_tokens_details":{"cached_tokens":50}}', Usage(uncached_input=0, cache_read=50)),
        (b'{"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":9}}', Usage(output=0, reasoning=9)),
        (b'{"prompt_tokens":-4,"completion_tokens":-1}', Usage(uncached_input=0, output=0)),
        (b'{"prompt_tokens":10,"prompt_tokens_details":{"cached_tokens":-5}}', Usage(uncached_input=10, cache_read=0)),
    ],
)
def test_figures_that_contradict_each_other_never_go_below_nothing(text: bytes, expected: Usage) -> None:
    assert openai_usage(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"17",
        b'"prompt_tokens"',
        b'{"prompt_tokens":"10"}',
        b'{"prompt_tokens":true}',
        b'{"prompt_tokens":1.5}',
        b'{"prompt_tokens":10,',
        b'{"prompt_tokens":10} {}',
        b'{"prompt_tokens":null,"prompt_tokens_details":{"cached_tokens":null}}',
        b'{"prompt_tokens":1,"prompt_tokens_details":[1]}',
        b'{"total_tokens":15}',
        b'{"x":' + b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_cannot_be_read_is_unknown_and_not_nothing(text: bytes) -> None:
    assert openai_usage(text) is None


@pytest.mark.parametrize("digits", [b"9007199254740992", b"9" * 30, b"9" * 5000], ids=["2**53", "30", "5000"])
def test_a_count_beyond_all_reason_is_unknown(digits: bytes) -> None:
    """It would not fit a database's column, and no answer has that many tokens."""
    assert openai_usage(b'{"prompt_tokens":%b,"completion_tokens":5}' % digits) is None
    assert openai_usage(b'{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":%b}}' % digits) is None


counts = st.none() | st.integers(-10, 2**53 - 1)
figures = counts | st.text(max_size=2) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@given(counts, counts, counts, counts, counts)
def test_every_token_is_counted_once(
    prompt: int | None, cached: int | None, written: int | None, completion: int | None, reasoning: int | None
) -> None:
    """The parts add up to the upstream's totals, unless it reported more parts than a whole."""
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    usage = read(prompt, completion, details, {"reasoning_tokens": reasoning}) or Usage()
    known = [max(part, 0) for part in (cached, written) if part is not None]
    if prompt is not None:
        parts = (usage.uncached_input, usage.cache_read, usage.cache_write)
        assert sum(part or 0 for part in parts) == max(prompt, sum(known), 0)
    if completion is not None:
        assert (usage.output or 0) + (usage.reasoning or 0) == max(completion, reasoning or 0, 0)
    reported = {
        "uncached_input": prompt,
        "cache_read": cached,
        "cache_write": written,
        "output": completion,
        "reasoning": reasoning,
    }
    assert {name for name, value in attrs.asdict(usage).items() if value is not None} == {
        name for name, value in reported.items() if value is not None
    }


@given(figures, figures, st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "x"]), figures))
def test_any_document_gives_counts_that_fit_a_column_or_nothing(
    prompt: object, completion: object, details: dict[str, object]
) -> None:
    usage = read(prompt, completion, details)
    if usage is not None:
        assert usage != Usage()
        assert all(value is None or 0 <= value < 2**53 for value in attrs.asdict(usage).values())


@given(st.binary(max_size=40))
def test_no_bytes_raise(text: bytes) -> None:
    openai_usage(text)


def test_where_figures_come_from_is_spelled_as_it_is_stored() -> None:
    assert [source.value for source in UsageSource] == ["upstream_final", "upstream_partial", "none"]


known = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (
            b'{"input_tokens":10,"input_tokens_details":{"cached_tokens":3,"cache_write_tokens":2},'
            b'"output_tokens":9,"output_tokens_details":{"reasoning_tokens":4},"total_tokens":19}',
            Usage(5, 3, 2, 5, 4),
        ),
        (b'{"input_tokens":10,"output_tokens":1}', Usage(10, None, None, 1, None)),
        (b'{"input_tokens":1,"input_tokens_details":{"cached_tokens":3},"output_tokens":null}', Usage(0, 3)),
        (b'{"total_tokens":5}', None),
        (b"null", None),
        (b"[" * 3000, None),
    ],
)
def test_what_responses_reports_is_taken_apart(text: bytes, usage: Usage | None) -> None:
    assert responses_usage(text) == usage


@given(st.builds(Usage, known, known, known | st.none(), known, known))
def test_what_is_written_for_responses_reads_back_the_same(usage: Usage) -> None:
    written = encode_responses_usage(usage)
    assert responses_usage(written) == usage
    told = msgspec.json.decode(written)
    assert told["total_tokens"] == told["input_tokens"] + told["output_tokens"]


@given(st.builds(Usage, *[known | st.none()] * 5))
def test_the_counts_that_readers_of_responses_require_are_always_there(usage: Usage) -> None:
    told = msgspec.json.decode(encode_responses_usage(usage))
    if usage == Usage():
        assert told is None
        return
    assert told["input_tokens_details"]["cached_tokens"] == (usage.cache_read or 0)
    assert told["output_tokens_details"]["reasoning_tokens"] == (usage.reasoning or 0)


def test_usage_that_is_not_known_is_null_in_responses() -> None:
    assert encode_responses_usage(None) == encode_responses_usage(Usage()) == b"null"


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (
            b'{"input_tokens":10,"cache_creation_input_tokens":2,"cache_read_input_tokens":3,"output_tokens":9,'
            b'"output_tokens_details":{"thinking_tokens":4},"service_tier":"standard"}',
            Usage(10, 3, 2, 5, 4),
        ),
        (b'{"input_tokens":0,"output_tokens":0}', Usage(0, None, None, 0, None)),
        (
            b'{"input_tokens":-1,"output_tokens":1,"output_tokens_details":{"thinking_tokens":4}}',
            Usage(0, output=0, reasoning=4),
        ),
        (b'{"output_tokens":null,"output_tokens_details":null}', None),
        (b"null", None),
        (b"[" * 3000, None),
    ],
)
def test_what_messages_reports_is_taken_as_it_is_but_for_thinking(text: bytes, usage: Usage | None) -> None:
    assert anthropic_usage(text) == usage


def test_zeros_when_a_message_starts_are_not_known_figures() -> None:
    assert anthropic_usage(b'{"input_tokens":0,"output_tokens":0}', opening=True) is None
    assert anthropic_usage(b'{"input_tokens":5,"output_tokens":1}', opening=True) == Usage(5, output=1)
    cached = b'{"input_tokens":0,"cache_read_input_tokens":9,"cache_creation_input_tokens":0,"output_tokens":0}'
    assert anthropic_usage(cached, opening=True) == Usage(0, 9, 0)


def test_later_figures_of_a_messages_stream_replace_the_earlier_ones() -> None:
    begun = Usage(5, 3, 2, 1, 0)
    assert merge_anthropic_usage(begun, Usage(output=9)) == Usage(5, 3, 2, 9, None)
    assert merge_anthropic_usage(begun, Usage(6, 4, 1, 9, 8)) == Usage(6, 4, 1, 9, 8)
    assert merge_anthropic_usage(begun, Usage(uncached_input=7)) == Usage(7, 3, 2, 1, 0)
    assert merge_anthropic_usage(None, begun) == merge_anthropic_usage(begun, None) == begun
    assert merge_anthropic_usage(None, None) is None


@given(st.builds(Usage, known, known | st.none(), known | st.none(), known, known | st.none()))
def test_what_is_written_for_messages_reads_back_the_same(usage: Usage) -> None:
    assert anthropic_usage(encode_anthropic_usage(usage, whole=True)) == usage
    assert anthropic_usage(encode_anthropic_usage(usage, whole=False)) == usage


@given(st.builds(Usage, *[known | st.none()] * 5))
def test_what_messages_does_not_require_is_left_out_when_not_known(usage: Usage) -> None:
    whole = msgspec.json.decode(encode_anthropic_usage(usage, whole=True))
    told = msgspec.json.decode(encode_anthropic_usage(usage, whole=False))
    assert whole["output_tokens"] == told["output_tokens"] == (usage.output or 0) + (usage.reasoning or 0)
    assert whole["input_tokens"] == (usage.uncached_input or 0)
    assert ("input_tokens" in told) == (usage.uncached_input is not None)
    assert ("cache_read_input_tokens" in told) == (usage.cache_read is not None)
    assert ("output_tokens_details" in told) == (usage.reasoning is not None)


def test_usage_of_messages_is_never_left_out() -> None:
    assert encode_anthropic_usage(None, whole=False) == b'{"output_tokens":0}'
    assert encode_anthropic_usage(None, whole=True) == b'{"input_tokens":0,"output_tokens":0}'


@given(st.builds(Usage, known, known | st.none(), known | st.none(), known, known | st.none()))
def test_what_is_written_for_chat_reads_back_the_same(usage: Usage) -> None:
    """Also what is not known: details that nobody reported are left out."""
    assert openai_usage(encode_openai_usage(usage)) == usage


@given(st.builds(Usage, *[known | st.none()] * 5))
def test_the_totals_that_readers_of_chat_require_are_always_there(usage: Usage) -> None:
    told = msgspec.json.decode(encode_openai_usage(usage))
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    assert ("prompt_tokens_details" in told) == (usage.cache_read is not None or usage.cache_write is not None)
    assert ("completion_tokens_details" in told) == (usage.reasoning is not None)
