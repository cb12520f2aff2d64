"""Which chunks pass by the hundred, and under whose name."""

import pytest

from capi_core.protocols.chat.quiet_chunks import pass_quiet

TEXT = b'data: {"id":"c","model":"up","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize(
    "run",
    [
        TEXT,
        TEXT * 3,
        TEXT.replace(b"]}", b'],"usage":null,"error":null}'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"function":{"arguments":"{"}}]'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"id":"","function":{"name":"","arguments":"{"}}]'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"id":null,"custom":{"name":null,"input":"{"}}]'),
        TEXT.replace(b'"model":', b'"model": '),
    ],
)
def test_chunks_that_bring_more_of_what_has_begun_pass(run: bytes) -> None:
    chunks = run.count(b"\n\n")
    assert pass_quiet(run, None) == (run, chunks)
    assert pass_quiet(run, b'"pub"') == (run.replace(b'"up"', b'"pub"'), chunks)


@pytest.mark.parametrize(
    "other",
    [
        b"data: [DONE]\n\n",
        b'data: {"id":"c","model":"up"}\n\n',
        TEXT.replace(b"null", b'"stop"'),
        TEXT.replace(b"null", b'""'),
        TEXT.replace(b"]}", b'],"usage":{}}'),
        TEXT.replace(b"]}", b'],"error":{}}'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"id":"c","function":{"arguments":"{"}}]'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"function":{"name":"f"}}]'),
        TEXT.replace(b'"content":"x"', b'"tool_calls":[{"index":0,"custom":{"name":"f"}}]'),
    ],
)
def test_chunks_of_which_something_is_noted_do_not(other: bytes) -> None:
    for run in (other, TEXT + other, other + TEXT):
        assert pass_quiet(run, None) is pass_quiet(run, b'"pub"') is None


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace(b'"model":"up",', b""),
        TEXT.replace(b'"up"', b'"other"'),
        TEXT.replace(b'"up"', b"null"),
        TEXT.replace(b'"model"', b'"mod\\u0065l"'),
        TEXT.replace(b'"content"', b'"model":"up","content"'),
        TEXT.replace(b'"x"', b'"model"'),
        TEXT.replace(b'"model":"up"', b'"model":"up","model":"up"'),
    ],
)
def test_a_name_is_changed_only_where_it_is_plain_to_see(other: bytes) -> None:
    for run in (TEXT + other, other + TEXT, TEXT + other + TEXT):
        assert pass_quiet(run, b'"pub"') is None
        assert pass_quiet(run, None) == (run, run.count(b"\n\n"))


def test_a_name_in_a_text_is_left_alone() -> None:
    run = TEXT.replace(b'"x"', b'"say \\"model\\":\\"up\\""')
    assert pass_quiet(run, b'"pub"') == (run.replace(b'"up"', b'"pub"', 1), 1)
