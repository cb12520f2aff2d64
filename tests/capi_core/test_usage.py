"""Usage: disjoint counts from the upstream's own figures, and never a made-up one."""

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.usage import Usage, UsageSource, openai_usage


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
