"""Chat Completions passed through: only what must change changes, and a cut stream never looks whole."""

import json
from collections.abc import Callable

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.members import JSONObject
from capi_core.protocols.chat.passthrough import (
    ChatStream,
    StreamState,
    encode_request,
    pass_through,
    read,
)
from capi_core.protocols.openai import encode_error
from capi_core.sse import SSEDecoder, encode
from capi_core.usage import Usage
from tests.support.quiet_runs import assert_quiet_is_only_faster, mutated
from tests.support.trickle import assert_split_invariant

ASKS = b'{"include_usage":true}'

# ===== requests =====


def refusal(body: bytes) -> tuple[str, int, str | None]:
    with pytest.raises(ProtocolError) as caught:
        read(body)
    return caught.value.code, caught.value.status_hint, caught.value.param


@pytest.mark.parametrize(
    ("members", "stream", "asks_usage", "choices"),
    [
        (b"", False, False, 1),
        (b',"stream":true', True, False, 1),
        (b',"stream":false', False, False, 1),
        (b',"stream":null,"stream_options":null,"n":null', False, False, 1),
        (b',"stream_options":{}', False, False, 1),
        (b',"stream_options":{"include_usage":false}', False, False, 1),
        (b',"stream_options": { "include_usage" : true }', False, True, 1),
        (b',"stream_options":{"include_obfuscation":[],"include_usage":true}', False, True, 1),
        (b',"n":3', False, False, 3),
        (b',"n":0', False, False, 1),
        (b',"n":-3', False, False, 1),
        (b',"n":"many"', False, False, 1),
        (b',"n":1.5', False, False, 1),
        (b',"n":[[]]', False, False, 1),
        (b',"messages":[{"stream":true,"n":9,"stream_options":{"include_usage":true}}]', False, False, 1),
    ],
)
def test_what_the_gateway_reads_of_a_request(members: bytes, stream: bool, asks_usage: bool, choices: int) -> None:
    request = read(b'{"model":"m"%b}' % members)
    assert (request.model, request.stream, request.asks_usage, request.choices) == ("m", stream, asks_usage, choices)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "empty_body", None),
        (b"null", "not_an_object", None),
        (b"{", "invalid_json", None),
        (b'\xef\xbb\xbf{"model":"m"}', "invalid_json", None),
        (b'{"model":"m","x":NaN}', "invalid_json", None),
        (b'{"model":"m","x":"\xff"}', "invalid_json", None),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep", None),
        (b'{"messages":[]}', "missing_model", "model"),
        (b'{"model":null}', "invalid_model", "model"),
        (b'{"model":"m","stream":1}', "invalid_stream", "stream"),
        (b'{"model":"m","stream":"true"}', "invalid_stream", "stream"),
        (b'{"model":"m","stream_options":true}', "invalid_stream_options", "stream_options"),
        (b'{"model":"m","stream_options":[]}', "invalid_stream_options", "stream_options"),
        (b'{"model":"m","stream_options":{"include_usage":1}}', "invalid_stream_options", "stream_options"),
        (b'{"model":"m","stream_options":{"include_usage":null}}', "invalid_stream_options", "stream_options"),
        # Two of a name: the upstream might obey the one that we did not look at.
        (b'{"model":"m","model":"m"}', "duplicate_member", None),
        (b'{"model":"m","mod\\u0065l":"x"}', "duplicate_member", None),
        (b'{"model":"m","x":1,"x":2}', "duplicate_member", None),
        (b'{"model":"m","stream":true,"stream":false}', "duplicate_member", None),
        (
            b'{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}',
            "invalid_stream_options",
            "stream_options",
        ),
    ],
)
def test_a_request_that_cannot_be_understood_is_refused(body: bytes, code: str, param: str | None) -> None:
    assert refusal(body) == (code, 400, param)


def test_a_number_of_choices_beyond_all_reason_costs_nothing() -> None:
    """`n` comes from the client, is judged by the upstream, and must not make us hold a set of that size."""
    request = read(b'{"model":"m","stream":true,"n":%d}' % 10**18)
    stream = ChatStream(choices=request.choices)
    stream.receive_data(b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n')
    assert stream.state is StreamState.OPEN


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, b'"stream_options":{"include_usage":true}'),
        (b"null", b'"stream_options":{"include_usage":true}'),
        (b"{}", b'"stream_options":{"include_usage":true}'),
        (b'{ "include_usage" : false }', b'"stream_options":{ "include_usage" : true }'),
        (b'{"a":[1, 2]}', b'"stream_options":{"a":[1, 2],"include_usage":true}'),
        (b'{"a":1,"include_usage":false,"b":2}', b'"stream_options":{"a":1,"include_usage":true,"b":2}'),
        (b'{ "include_usage": true }', b'"stream_options":{ "include_usage": true }'),
    ],
)
def test_usage_is_asked_for_and_the_clients_other_options_stay(options: bytes | None, sent: bytes) -> None:
    body = b'{"model":"m"%b}' % (b"" if options is None else b',"stream_options":' + options)
    request = read(body)
    assert encode_request(request, upstream_model="m", inject_usage=True) == b'{"model":"m",%b}' % sent
    assert encode_request(request, upstream_model="m", inject_usage=False) == body


# --- generated requests: odd white space, spellings, numbers, and duplicates below the top level ---

spaces = st.sampled_from([b"", b"", b" ", b"\n", b"\r\n\t "])
odd_numbers = [b"-0", b"1E+2", b"1e999", b"0.10", b"18446744073709551617", b"7" * 4301]
odd_strings = [b'"\\u00e9"', b'"\\ud83d"', b'"\\/"', b'"\\\\"', b'"\xf0\x9f\x98\x80"', b'"{\\"model\\":\\"fast\\"}"']
odd_objects = [b'{"model":"fast","model":"b"}', b'{"stream_options": null}', b"[ ]", b"{ }", b"[1 ,2]"]
values = st.sampled_from([*odd_numbers, *odd_strings, *odd_objects, b"true", b"null"])
names = st.sampled_from(
    [b'"messages"', b'"n"', b'"tools"', b'"Model"', b'"models"', b'"\\u0061"', b'""', b'"x-\xc3\xa9"']
)
model_names = st.sampled_from([b'"model"', b'"mod\\u0065l"', b'"\\u006dodel"'])
models = st.sampled_from([b'"fast"', b'"f\\u0061st"', b'"\\u0066ast"'])
bare_options = st.sampled_from([b"null", b"{}", b"{\n}", b'{"a" : 1e999}', b'{"include_usage":false , "a":[{}]}'])


@frozen
class Document:
    """A request body in pieces: what stands before, in and after each value at the top level."""

    pieces: tuple[tuple[bytes, bytes, bytes, bytes], ...]  # name, what is before the value, the value, what follows
    empty: bytes

    def text(self, changes: dict[bytes, bytes], added: bytes = b"") -> bytes:
        parts = [
            before + changes.get(name, value) + (added if last else b"") + after
            for (name, before, value, after), last in zip(
                self.pieces, [False] * (len(self.pieces) - 1) + [True], strict=True
            )
        ]
        return b"{" + b",".join(parts) + b"}" + self.empty


@st.composite
def documents(draw: st.DrawFn) -> Document:
    members = [(name, draw(values)) for name in draw(st.lists(names, unique=True, max_size=4))]
    members.append((draw(model_names), draw(models)))
    if draw(st.booleans()):
        members.append((b'"stream_options"', draw(bare_options)))
    return Document(
        tuple(
            (name, draw(spaces) + name + draw(spaces) + b":" + draw(spaces), value, draw(spaces))
            for name, value in draw(st.permutations(members))
        ),
        draw(spaces),
    )


def value_of(document: Document, name: bytes) -> bytes | None:
    return next((value for known, _, value, _ in document.pieces if known == name), None)


@given(documents(), st.sampled_from(["fast", 'up"\n\u2028']), st.booleans())
def test_only_the_model_and_the_usage_option_of_a_request_change(
    document: Document, upstream_model: str, inject: bool
) -> None:
    request = read(document.text({}))
    assert request.model == "fast"
    changes = {}
    if upstream_model != "fast":
        changes = dict.fromkeys([b'"model"', b'"mod\\u0065l"', b'"\\u006dodel"'], b'"up\\"\\n\xe2\x80\xa8"')
    added = b""
    if inject:
        options = value_of(document, b'"stream_options"')
        if options is None:
            added = b',"stream_options":' + ASKS
        elif options == b"null":
            changes[b'"stream_options"'] = ASKS
        else:
            changes[b'"stream_options"'] = JSONObject(options).edit({"include_usage": b"true"})
    sent = encode_request(request, upstream_model=upstream_model, inject_usage=inject)
    assert sent == document.text(changes, added)


@given(documents(), st.booleans())
def test_what_is_sent_is_read_alike(document: Document, inject: bool) -> None:
    request = read(document.text({}))
    again = read(encode_request(request, upstream_model="other", inject_usage=inject))
    assert (again.model, again.asks_usage) == ("other", inject)
    assert (again.stream, again.choices) == (request.stream, request.choices)


# ===== streams =====


@frozen
class Settings:
    public_name: str | None = None
    swallow_usage: bool = False
    choices: int = 1
    max_event_bytes: int = 4 * 1024 * 1024


@frozen
class Seen:
    """All that one stream showed, and where the machine stood at the end."""

    output: bytes
    state: StreamState
    code: str | None
    usage: Usage | None
    chunks: int
    error: bytes | None


class Relay:
    """A `ChatStream` as a transducer that can be fed on after it broke, like the exchange that drops it then."""

    def __init__(self, settings: Settings) -> None:
        self.stream = ChatStream(
            public_name=settings.public_name,
            swallow_usage=settings.swallow_usage,
            choices=settings.choices,
            max_event_bytes=settings.max_event_bytes,
        )

    def feed(self, data: bytes) -> bytes:
        return b"" if self.stream.state is StreamState.BROKEN else self.stream.receive_data(data)

    def finish(self) -> bytes:
        return b"" if self.stream.state is StreamState.BROKEN else self.stream.finish()

    def look(self) -> tuple[StreamState, str | None, Usage | None, int, bytes | None]:
        stream = self.stream
        assert (stream.failure is not None) == (stream.state is StreamState.BROKEN)
        assert (stream.error is not None) == (stream.state is StreamState.ERRORED)
        assert stream.failure is None or stream.failure.status_hint == 502
        code = None if stream.failure is None else stream.failure.code
        return stream.state, code, stream.usage, stream.chunks, stream.error


def relay(data: bytes, settings: Settings | None = None, chosen: st.DataObject | None = None) -> Seen:
    """The stream through the machine, shown to be the same for any chunking."""

    def make() -> Relay:
        return Relay(settings or Settings())

    run = assert_split_invariant(make, data, chosen, Relay.look)
    assert run.error is None
    relay = make()
    output = relay.feed(data) + relay.finish()
    assert tuple(output) == run.outputs
    return Seen(output, *relay.look())


def chunk(content: str = "x", finish: str | None = None, index: int = 0, model: str = "up-2026") -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return json.dumps({"id": "c", "model": model, "choices": [choice], "usage": None}).encode()


def events(*data: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % text for text in data)


USAGE = b'{"id":"c","model":"up-2026","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
SPENT = Usage(uncached_input=3, output=2)
ERROR = b'{"error":{"message":"overloaded","code":529}}'
TOOL = (
    b'{"id":"c","model":"up-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","function":'
    b'{"name":"pick","arguments":"{\\"model\\":\\"up-2026\\"}"}}]},"finish_reason":null}]}'
)
FILTERED = b'{"choices":[],"created":0,"id":"","prompt_filter_results":[{"prompt_index":0}]}'
REFERENCES = b'{"choices":null,"copilot_references":[{"type":"x"}],"id":""}'


@frozen
class Recorded:
    """A stream as a server sends it; `finish` is the data of the event in which the choice finishes."""

    before: bytes
    finish: bytes
    after: bytes

    @property
    def whole(self) -> bytes:
        return self.before + self.finish + self.after

    def spelled(self, old: bytes, new: bytes) -> "Recorded":
        return Recorded(*(piece.replace(old, new) for piece in (self.before, self.finish, self.after)))


STOP = chunk(finish="stop")
STOP_WITH_USAGE = STOP.replace(b"null}", b'{"prompt_tokens":3,"completion_tokens":2}}')
MARK = b"\n\n" + events(b"[DONE]")
EMOJI = '{"choices":[{"delta":{"content":"\U0001f600\u2028\x85"}}]}'.encode()
HALF, OTHER_HALF = b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude00"}}]}'
PLAIN = Recorded(events(chunk("Hi")) + b"data: ", STOP, MARK)
WHOLE = {
    "openai": Recorded(events(chunk(""), chunk("Hi"), TOOL) + b"data: ", chunk(finish="tool_calls"), MARK),
    "openai-with-usage": Recorded(PLAIN.before, STOP, b"\n\n" + events(USAGE, b"[DONE]")),
    "usage-with-finish": Recorded(PLAIN.before, STOP_WITH_USAGE, MARK),
    "no-end-mark": Recorded(PLAIN.before, STOP, b"\n\n"),
    "crlf": PLAIN.spelled(b"\n", b"\r\n"),
    "cr": PLAIN.spelled(b"\n", b"\r"),
    "no-space": PLAIN.spelled(b"data: ", b"data:"),
    "typed": PLAIN.spelled(b"data: ", b"event: message\nid: 1\ndata: "),
    "comments": Recorded(b": PROCESSING\n\n" + events(chunk("Hi")) + b":\n\n\n\ndata: ", STOP, b"\n: c\n\n"),
    "many-lines": Recorded(PLAIN.before, b'{"choices":\ndata: [{"index":0,\ndata:  "finish_reason":"stop"}]}', MARK),
    "copilot": Recorded(
        events(FILTERED, chunk("Hi"), REFERENCES) + b"data: ", STOP, b"\n\ndata: " + USAGE[:-1] + b',"x":{"model":"y"}}'
    ),
    "copilot-no-blank-line": Recorded(events(FILTERED) + b"data: ", STOP, b""),
    "copilot-one-line-end": Recorded(PLAIN.before, STOP, b"\n"),
    "utf-8": Recorded(events(EMOJI) + b"data: ", STOP, MARK),
    "half-an-emoji": Recorded(events(HALF, OTHER_HALF) + b"data: ", STOP, MARK),
    "not-utf-8": Recorded(events(EMOJI.replace(b"\xc2\x85", b"\xff")) + b"data: ", STOP, MARK),
    "finished-twice": Recorded(PLAIN.before, STOP, b"\n\n" + events(chunk("more"), STOP, b"[DONE]")),
}


OPENED = b'{"choices":[],"created":0,"id":"c","prompt_filter_results":[{"prompt_index":0}],"object":%b,"model":"%b"}'


def listed(stream: bytes, model: bytes = b"up-2026") -> bytes:
    """The changes that these streams get without an alias: both official SDKs fail on `choices: null`, and the first
    chunk has the answer's id."""
    opened = OPENED % (b'"chat.completion.chunk"', model)
    return stream.replace(b'"choices":null', b'"choices":[]').replace(FILTERED, opened)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_stream_passes_byte_for_byte(name: str) -> None:
    seen = relay(WHOLE[name].whole)
    stream = listed(WHOLE[name].whole)
    assert seen.output.startswith(stream)
    assert seen.output[len(stream) :] in (b"", b"\n", b"\n\n")  # the blank line that Copilot leaves out
    assert seen.state is (StreamState.DONE if b"[DONE]" in stream else StreamState.FINISHED)
    assert seen.code is None
    assert seen.usage == (SPENT if b"prompt_tokens" in stream else None)


@pytest.mark.parametrize("name", WHOLE)
def test_with_an_alias_only_the_top_level_model_of_each_chunk_changes(name: str) -> None:
    stream = WHOLE[name].whole
    seen = relay(stream, Settings(public_name="fast"))
    expected = stream.replace(b'"id": "c", "model": "up-2026"', b'"id": "c", "model": "fast"')
    expected = listed(expected.replace(b'{"id":"c","model":"up-2026"', b'{"id":"c","model":"fast"'), b"fast")
    assert seen.output.startswith(expected)
    assert all_but_output(seen) == all_but_output(relay(stream))


def all_but_output(seen: Seen) -> tuple[object, ...]:
    return seen.state, seen.code, seen.usage, seen.chunks


def payloads(stream: bytes) -> list[bytes | None]:
    """The data of each complete event; there must be nothing else."""
    decoder = SSEDecoder()
    found = [event.data for event in decoder.feed(stream) + decoder.finish()]
    assert decoder.residue == b""
    return found


@pytest.mark.parametrize("settings", [Settings(), Settings("fast", swallow_usage=True)], ids=["as-it-is", "changed"])
@pytest.mark.parametrize("name", WHOLE)
def test_wherever_a_stream_is_cut_it_ends_well_or_as_broken_and_what_came_before_is_whole(
    name: str, settings: Settings
) -> None:
    """Never a stream that looks complete and is not, and never half an event."""
    recorded = WHOLE[name]
    everything = payloads(Relay(settings).feed(recorded.whole + b"\n\n"))
    for cut in range(len(recorded.whole) + 1):
        made = Relay(settings)
        output = made.feed(recorded.whole[:cut]) + made.finish()
        got = payloads(output)
        assert got == everything[: len(got)]
        if cut < len(recorded.before + recorded.finish):
            assert made.look()[:2] == (StreamState.BROKEN, "upstream_truncated")
        else:
            assert made.look()[0] in (StreamState.FINISHED, StreamState.DONE)


@given(st.data(), st.sampled_from(sorted(WHOLE)), st.booleans(), st.booleans())
def test_no_chunking_changes_anything(chosen: st.DataObject, name: str, renames: bool, swallow: bool) -> None:
    stream = WHOLE[name].whole
    end = chosen.draw(st.integers(0, len(stream)))
    relay(stream[:end], Settings("fast" if renames else None, swallow), chosen)


# --- usage ---


@pytest.mark.parametrize("renames", [False, True])
@pytest.mark.parametrize(
    ("extra", "swallowed"),
    [
        (USAGE, True),
        (USAGE.replace(b'"choices":[]', b'"choices": [ ]'), True),
        (b'{"choices":[],"usage":{"total_tokens":9}}', True),  # it says nothing that we count, and was asked for by us
        (b'{"choices":[],"usage":null}', False),
        (b'{"choices":[]}', False),
        (FILTERED, False),
        (b'{"choices":null,"usage":{"prompt_tokens":3,"completion_tokens":2}}', True),
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}', True),
        (b'{"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}', False),
    ],
)
def test_a_chunk_of_usage_alone_is_swallowed_if_the_gateway_asked_for_it(
    extra: bytes, swallowed: bool, renames: bool
) -> None:
    before, after = events(chunk(finish="stop")), events(b"[DONE]")
    seen = relay(before + events(extra) + after, Settings(swallow_usage=True))
    assert (
        seen.output
        == before + (b"" if swallowed else events(extra).replace(b'"choices":null', b'"choices":[]')) + after
    )
    assert seen.usage == (SPENT if b"prompt_tokens" in extra else None)
    assert seen.chunks == (1 if swallowed else 2)
    shown = relay(before + events(extra) + after, Settings(swallow_usage=False))
    assert shown.output == before + events(extra).replace(b'"choices":null', b'"choices":[]') + after


def test_the_last_usage_counts_and_null_is_no_usage() -> None:
    early = b'{"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1}}'
    seen = relay(
        events(early, USAGE, b'{"choices":[],"usage":null}', b'{"choices":[],"usage":{}}', chunk(finish="stop"))
    )
    assert seen.usage == SPENT


def test_usage_that_came_before_the_stream_broke_is_kept() -> None:
    seen = relay(events(USAGE, b"<html>"))
    assert (seen.state, seen.usage) == (StreamState.BROKEN, SPENT)


# --- finish ---


def test_a_stream_of_several_choices_is_whole_when_each_has_finished() -> None:
    settings = Settings(choices=2)
    one = events(chunk("a", index=0), chunk("b", index=1), chunk(finish="stop", index=0), chunk(finish="stop", index=0))
    assert relay(one, settings).code == "upstream_truncated"
    assert relay(one + events(chunk(finish="length", index=1)), settings).state is StreamState.FINISHED
    assert relay(one + events(b"[DONE]"), settings).state is StreamState.DONE


def test_choices_that_finish_in_one_chunk_all_count() -> None:
    both = b'{"choices":[{"index":1,"finish_reason":"stop"},{"finish_reason":"stop"}]}'
    assert relay(events(both), Settings(choices=2)).state is StreamState.FINISHED


@pytest.mark.parametrize("index", [1, -1, 10**30])
def test_a_choice_that_nobody_asked_for_finishes_nothing(index: int) -> None:
    assert relay(events(chunk(finish="stop", index=index))).code == "upstream_truncated"


def test_an_empty_finish_reason_is_none() -> None:
    """Some servers write "" where others write null."""
    assert relay(events(chunk(finish=""), chunk(finish=""))).code == "upstream_truncated"
    assert relay(events(chunk(finish=""), chunk(finish="stop"))).state is StreamState.FINISHED


def test_what_follows_the_end_mark_is_dropped() -> None:
    stream = events(chunk(finish="stop"), b"[DONE]")
    for junk in (b"\n", events(chunk("late")), b"<html>", b"data: {", events(ERROR), events(b"[DONE]"), b"x" * 9000):
        seen = relay(stream + junk, Settings(max_event_bytes=2000))
        assert (seen.output, seen.state) == (stream, StreamState.DONE)


def test_an_end_mark_alone_is_the_end() -> None:
    """An answer of nothing is the upstream's to give, and the client's to judge."""
    assert relay(b"data:  [DONE] \n\n").state is StreamState.DONE


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n"])
def test_an_end_mark_without_its_blank_line_is_completed(tail: bytes) -> None:
    seen = relay(events(chunk(finish="stop")) + tail)
    assert seen.state is StreamState.DONE
    assert payloads(seen.output)[-1] == b"[DONE]"


@pytest.mark.parametrize(
    "tail",
    [
        b"data: [DO",
        b"data",
        b"d",
        b": keep-al",
        b"event: mess",
        b"data: " + USAGE[:-1],
        b'data: {"choices":5',
        b"data: 12",
        b'data: "x"',
        b"\xef",
    ],
)
def test_half_an_event_at_the_end_is_dropped(tail: bytes) -> None:
    """After the finish it takes nothing from the answer; before it the answer was cut, which is no garbage."""
    whole = events(chunk(finish="stop"))
    seen = relay(whole + tail)
    assert (seen.output, seen.state) == (whole, StreamState.FINISHED)
    seen = relay(events(chunk("Hi")) + tail)
    assert (seen.output, seen.code) == (events(chunk("Hi")), "upstream_truncated")


def test_an_end_without_anything_is_a_broken_stream() -> None:
    assert relay(b"").code == "upstream_truncated"
    assert relay(b": keep-alive\n\n") == Seen(
        b": keep-alive\n\n", StreamState.BROKEN, "upstream_truncated", None, 0, None
    )


# --- errors ---


@pytest.mark.parametrize(
    "error",
    [
        ERROR,
        b'{"error":"out of memory"}',
        b'{"error":{}}',
        b'{"choices":[],"error":{"message":"x"},"usage":{"prompt_tokens":3,"completion_tokens":2}}',
        b'{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}],"error":{"message":"x"}}',
    ],
)
def test_an_error_inside_a_stream_is_forwarded_and_ends_it(error: bytes) -> None:
    start = events(chunk("Hi"))
    for settings in (Settings(), Settings(swallow_usage=True), Settings(public_name="fast")):
        seen = relay(start + events(error) + events(chunk("late"), b"[DONE]"), settings)
        assert payloads(seen.output)[-1] == error
        assert len(payloads(seen.output)) == 2
        assert (seen.state, seen.error, seen.chunks) == (StreamState.ERRORED, error, 1)
        assert seen.usage == (SPENT if b"usage" in error else None)


def test_an_error_that_is_null_is_none() -> None:
    stream = events(chunk("Hi")[:-1] + b',"error":null}', chunk(finish="stop"))
    assert relay(stream).state is StreamState.FINISHED


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html><body>502 Bad Gateway</body></html>\n\n",
        b"HTTP/1.1 200 OK\n\n",
        b'{"id":"a whole JSON answer"}\n\n',
        b"data: <html>\n\n",
        b"data: {\n\n",
        b'data: {"choices":5, and then\n\n',
        b"data: {} {}\n\n",
        b"data: [DONE\n\n",
        b"data: NaN\n\n",
        b"data: \xff\n\n",
        b'data: {"x":' + b"[" * 100_000 + b"\n\n",
        b"\xef\xbb\xbf\n\n\xef\xbb\xbfdata: {}\n\n",
        b"retry: 5\nDATA: {}\n\n",
    ],
)
def test_garbage_breaks_the_stream_and_what_came_before_is_whole(garbage: bytes) -> None:
    start = events(chunk("Hi"))
    for make in (start + garbage, start + garbage + events(chunk("late"), chunk(finish="stop"), b"[DONE]")):
        stream = Relay(Settings(public_name="fast"))
        output = stream.feed(make)
        assert payloads(output)[0] == chunk("Hi", model="fast")
        assert chunk("late") not in output
        assert stream.look()[:2] == (StreamState.BROKEN, "upstream_garbage")


def test_an_event_that_is_too_large_breaks_the_stream_however_it_comes() -> None:
    start = events(chunk("Hi"), chunk("there"))
    large = events(chunk("x" * 400))
    for stream in (large, large[:-2], start + large, start + large + events(chunk(finish="stop")), start + large * 2):
        seen = relay(stream, Settings(max_event_bytes=300))
        assert (seen.code, seen.state) == ("upstream_event_too_large", StreamState.BROKEN)
        assert seen.output == (start if stream.startswith(start) else b"")


def test_an_event_of_exactly_the_limit_passes() -> None:
    stream = events(chunk("x" * 100, finish="stop"))
    assert relay(stream, Settings(max_event_bytes=len(stream))).output == stream
    assert relay(stream, Settings(max_event_bytes=len(stream) - 1)).code == "upstream_event_too_large"


def test_a_broken_stream_takes_nothing_more() -> None:
    stream = ChatStream()
    stream.receive_data(b"data: garbage\n\n")
    with pytest.raises(LocalError):
        stream.receive_data(b"")
    with pytest.raises(LocalError):
        stream.finish()


# --- what passes and what does not ---


@pytest.mark.parametrize(
    "odd",
    [
        b"data: 5\n\n",
        b'data: "x"\n\n',
        b"data: [1]\n\n",
        b"data: {}\n\n",
        b'data: {"choices":{}}\n\n',
        b'data: {"choices":[{"index":null}]}\n\n',
        b'data: {"choices":[{"finish_reason":5}]}\n\n',
        b'data: {"choices":[{"finish_reason":"\xff"}]}\n\n',
        b'event: ping\ndata: {"type":"ping"}\n\n',
        b"id: 7\nretry: 5\ndata: {}\n\n",
        b"note: x\ndata: {}\n\n",
        b"\n",
        b": a comment\n: of two lines\n\n",
        b":\r\n\r\n",
    ],
)
def test_what_this_gateway_does_not_know_passes_as_it_is(odd: bytes) -> None:
    """The client's reader may be newer than we are."""
    before, after = events(chunk("Hi")), events(chunk(finish="stop"))
    for settings in (Settings(), Settings(swallow_usage=True)):
        assert relay(before + odd + after, settings).output == before + odd + after


@pytest.mark.parametrize(
    "harmful",
    [
        b"data:\n\n",
        b"data\n\n",
        b"data: \n\n",
        b"data:\ndata:\n\n",
        b"event: ping\n\n",
        b"event: ping\ndata:\n\n",
        b"id: 1\n\n",
        b"retry: 500\r\n\r\n",
        b": x\nid: 1\n\n",
    ],
)
def test_what_makes_official_sdks_fail_is_dropped(harmful: bytes) -> None:
    """An event without data or with none in it (wire.md 1.7)."""
    before, after = events(chunk("Hi")), events(chunk(finish="stop"))
    assert relay(before + harmful + after).output == before + after


# --- renaming ---


def renamed(stream: bytes) -> bytes:
    end = events(chunk(finish="stop", model="fast"), b"[DONE]")
    return relay(stream + end, Settings(public_name="fast")).output.removesuffix(end)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'data: {"model":"up"}\n\n', b'data: {"model":"fast"}\n\n'),
        (b'data:{ "model" : "up" }\r\n\r\n', b'data:{ "model" : "fast" }\r\n\r\n'),
        (b'event: x\nid: 7\ndata: {"model":"up"}\n: c\n\n', b'event: x\nid: 7\ndata: {"model":"fast"}\n: c\n\n'),
        (b'data: {"mod\\u0065l":null}\n\n', b'data: {"mod\\u0065l":"fast"}\n\n'),
        (b'data: {"model":"up","model":"up"}\n\n', b'data: {"model":"fast","model":"fast"}\n\n'),
        # of another shape
        (b'data: {"model":"up","choices":5}\n\n', b'data: {"model":"fast","choices":5}\n\n'),
        (b'data: {"error":{"model":"up"},"model":"up"}\n\n', b'data: {"error":{"model":"up"},"model":"fast"}\n\n'),
        # over several lines: written anew, with its type and id
        (b'data: {"model":\ndata: "up"}\n\n', b'data: {"model":\ndata: "fast"}\n\n'),
        (
            b'event: x\rid: 7\rdata: {"model":\rdata: "up"}\r\r',
            b'event: x\nid: 7\ndata: {"model":\ndata: "fast"}\n\n',
        ),
        (b'event: a\0b\ndata: {"model":\ndata: "up"}\n\n', b'event: ab\ndata: {"model":\ndata: "fast"}\n\n'),
        # the same text in a comment: it is not the data, and must not stay either
        (b': {"model":"up"}\ndata: {"model":"up"}\n\n', b'data: {"model":"fast"}\n\n'),
        # nothing to change
        (b'data: {"a":\ndata: 1}\nretry: 5\n\n', b'data: {"a":\ndata: 1}\nretry: 5\n\n'),
        (b'data: {"choices":[{"model":"up"}]}\n\n', b'data: {"choices":[{"model":"up"}]}\n\n'),
        (b'data: ["model","up"]\n\n', b'data: ["model","up"]\n\n'),
        (b'data: "model"\n\n', b'data: "model"\n\n'),
        (b': {"model":"up"}\n\n', b': {"model":"up"}\n\n'),
        (events(TOOL.replace(b'"model":"up-2026",', b"")), events(TOOL.replace(b'"model":"up-2026",', b""))),
    ],
)
def test_a_chunk_gets_the_name_that_the_client_knows(event: bytes, expected: bytes) -> None:
    assert renamed(event) == expected


# --- generated streams, each event with what must become of it ---

Rewrite = Callable[[bytes], bytes]


@frozen
class Part:
    """An event's bytes, and what a client gets of it with an alias and with swallowed usage."""

    raw: bytes
    out: bytes
    usage_only: bool = False


@st.composite
def parts(draw: st.DrawFn) -> Part:
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    kind = draw(st.sampled_from(["content", "content", "tool", "usage", "null", "comment", "empty", "filter"]))
    match kind:
        case "comment":
            raw = b": " + draw(st.sampled_from([b"", b"ping", b'{"model":"up-2026"}'])) + end + end
            return Part(raw, raw)
        case "empty":
            return Part(draw(st.sampled_from([b"data:", b"event: ping", b"id: 1"])) + end + end, b"")
        case "content":
            data = chunk(draw(st.text(max_size=8)))
        case "tool":
            data = TOOL
        case "usage":
            data = USAGE
        case "null":
            data = REFERENCES
        case _:
            data = FILTERED
    head = draw(st.sampled_from([b"data: ", b"data:", b"event: message" + end + b"data: ", b": c" + end + b"data: "]))
    out = data.replace(b'"id": "c", "model": "up-2026"', b'"id": "c", "model": "fast"')
    out = out.replace(b'{"id":"c","model":"up-2026"', b'{"id":"c","model":"fast"')
    return Part(head + data + end + end, head + out + end + end, usage_only=kind == "usage")


@given(st.lists(parts(), max_size=6), st.booleans(), st.booleans(), st.data())
def test_what_becomes_of_a_stream_is_the_sum_of_what_becomes_of_its_events(
    given_parts: list[Part], renames: bool, swallow: bool, chosen: st.DataObject
) -> None:
    start, end = events(chunk(model="fast")), events(chunk(finish="stop", model="fast"), b"[DONE]")
    settings = Settings("fast" if renames else None, swallow)
    seen = relay(start + b"".join(part.raw for part in given_parts) + end, settings, chosen)
    kept = [part for part in given_parts if not (swallow and part.usage_only)]
    expected = b"".join(part.out if renames or not part.out else part.raw for part in kept)
    assert seen.output == start + expected.replace(b'"choices":null', b'"choices":[]') + end
    assert seen.state is StreamState.DONE
    assert seen.usage == (SPENT if any(part.usage_only for part in given_parts) else None)


@given(st.binary(max_size=48), st.booleans(), st.data())
def test_any_bytes_are_forwarded_or_break_the_stream(data: bytes, renames: bool, chosen: st.DataObject) -> None:
    seen = relay(data, Settings("fast" if renames else None, True, max_event_bytes=24), chosen)
    assert seen.state in (StreamState.BROKEN, StreamState.FINISHED, StreamState.DONE, StreamState.ERRORED)


def test_a_problem_can_be_told_inside_a_stream() -> None:
    (data,) = payloads(ChatStream().fail(Problem(502, "upstream_broke", "it broke\nhere")))
    assert data is not None
    assert json.loads(data)["error"]["code"] == "upstream_broke"


# ===== both at once =====


@pytest.mark.parametrize(
    ("body", "ask_usage", "sent", "swallows"),
    [
        (b'{"model":"m","stream":true}', True, b'{"model":"up","stream":true,"stream_options":%b}' % ASKS, True),
        (b'{"model":"m","stream":true}', False, b'{"model":"up","stream":true}', False),
        (
            b'{"model":"m","stream":true,"stream_options":%b}' % ASKS,
            True,
            b'{"model":"up","stream":true,"stream_options":%b}' % ASKS,
            False,
        ),
    ],
)
def test_a_stream_passes_with_its_usage_asked_for_and_swallowed(
    body: bytes, ask_usage: bool, sent: bytes, swallows: bool
) -> None:
    passage = pass_through(
        read(body), upstream_model="up", public_name="pub", ask_usage=ask_usage, max_event_bytes=1 << 16
    )
    assert (passage.body, passage.machine is None) == (sent, False)
    assert passage.machine is not None
    usage = b'data: {"model":"up","choices":[],"usage":{"prompt_tokens":1}}\n\n'
    assert passage.machine.receive_data(usage) == (b"" if swallows else usage.replace(b"up", b"pub"))
    assert passage.machine.usage == Usage(1)


def test_a_request_without_a_stream_has_no_machine_and_is_asked_for_nothing() -> None:
    passage = pass_through(
        read(b'{"model":"m"}'), upstream_model="m", public_name="m", ask_usage=True, max_event_bytes=9
    )
    assert (passage.body, passage.machine) == (b'{"model":"m"}', None)


def test_the_same_name_is_left_alone() -> None:
    request = read(b'{"model":"m","stream":true}')
    machine = pass_through(
        request, upstream_model="m", public_name="m", ask_usage=False, max_event_bytes=1 << 16
    ).machine
    assert machine is not None
    dated = b'data: {"model":"m-2026","choices":[]}\n\n'
    assert machine.receive_data(dated) == dated


def test_a_stream_that_cannot_go_on_ends_with_an_error() -> None:
    stream, problem = ChatStream(), Problem(502, "c", "m")
    stream.receive_data(b"data: <\n\n")
    assert stream.state is StreamState.BROKEN
    assert stream.fail(problem) == encode(encode_error(problem))
    assert (stream.state, stream.error) == (StreamState.ERRORED, encode_error(problem))
    assert stream.fail(problem) == stream.receive_data(b"x") == b""


def test_a_stream_that_is_over_does_not_fail() -> None:
    stream = ChatStream()
    stream.receive_data(b"data: [DONE]\n\n")
    assert stream.fail(Problem(502, "c", "m")) == b""
    assert stream.state is StreamState.DONE


def test_another_providers_reasoning_does_not_go_upstream() -> None:
    """Its blob was carried to the client (`carriage`); this provider would refuse it."""
    body = b'{"model":"m","messages":[{"role":"assistant","content":"a"%b}]}'
    request = read(body % b',"reasoning_opaque":"capi1.messages.SIG"')
    assert encode_request(request, upstream_model="m", inject_usage=False) == body % b""


# ===== what clients would fail on is put right =====


def deltas(*texts: bytes) -> bytes:
    """Chunks with these deltas, raw JSON."""
    return events(
        *(
            b'{"id":"c","created":5,"model":"up","choices":[{"index":0,"delta":%b,"finish_reason":null}]}' % t
            for t in texts
        )
    )


def ending(reason: bytes, model: bytes = b"up") -> bytes:
    """A last chunk as it is made where one is missing."""
    return events(
        b'{"id":"c","object":"chat.completion.chunk","created":5,"model":"%b",'
        b'"choices":[{"index":0,"delta":{},"finish_reason":"%b"}]}' % (model, reason)
    )


HELLO = deltas(b'{"content":"hi"}')
IDENTITY = deltas(b'{"tool_calls":[{"index":0,"id":"call_1","type":"function"}]}')
FUNCTION = deltas(b'{"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]}')
ARGUMENTS = deltas(b'{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}')
WHOLE_CALL = deltas(
    b'{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}'
)
END_MARK = events(b"[DONE]")


def test_a_call_whose_id_and_name_come_apart_begins_with_both() -> None:
    seen = relay(IDENTITY + FUNCTION + ARGUMENTS + ending(b"tool_calls") + END_MARK)
    assert seen.output == deltas(b"{}") + WHOLE_CALL + ARGUMENTS + ending(b"tool_calls") + END_MARK
    assert seen.state is StreamState.DONE


@pytest.mark.parametrize("end", [ending(b"tool_calls") + END_MARK, END_MARK])
def test_what_is_held_of_a_call_goes_out_before_its_end(end: bytes) -> None:
    seen = relay(HELLO + IDENTITY + end)
    held = b'{"tool_calls":[{"index":0,"id":"call_1","type":"function"}]}'
    released = ending(b"x").replace(b"{}", held).replace(b'"x"', b"null")
    assert seen.output == HELLO + deltas(b"{}") + released + ending(b"tool_calls") + END_MARK


def test_a_call_that_is_cut_is_no_call() -> None:
    seen = relay(HELLO + IDENTITY)
    assert (seen.output, seen.code) == (HELLO + deltas(b"{}"), "upstream_truncated")


@pytest.mark.parametrize(("start", "reason"), [(HELLO, b"stop"), (HELLO + WHOLE_CALL + ARGUMENTS, b"tool_calls")])
def test_an_end_mark_without_a_finish_gets_one_and_a_cut_stream_gets_none(start: bytes, reason: bytes) -> None:
    assert relay(start + END_MARK).output == start + ending(reason) + END_MARK
    named = relay(start + END_MARK, Settings("pub")).output
    assert named == start.replace(b'"up"', b'"pub"') + ending(reason, b"pub") + END_MARK
    assert relay(start).code == "upstream_truncated"
    assert relay(start + ending(b"length") + END_MARK).output == start + ending(b"length") + END_MARK


def test_every_choice_that_there_is_gets_its_finish() -> None:
    """Not those that were asked for and never came: nobody gave those answers."""
    others = b"".join(HELLO.replace(b'"index":0', b'"index":%d' % index) for index in (2, 1, 2, 7))
    seen = relay(HELLO + others + ending(b"stop") + END_MARK, Settings(choices=3))
    made = [json.loads(data or b"")["choices"][0] for data in payloads(seen.output)[6:-1]]
    assert [(choice["index"], choice["finish_reason"]) for choice in made] == [(1, "stop"), (2, "stop")]
    alone = HELLO + ending(b"stop") + END_MARK
    assert relay(alone, Settings(choices=3)).output == alone
    many = b"".join(HELLO.replace(b'"index":0', b'"index":%d' % index) for index in range(200))
    assert relay(many + END_MARK, Settings(choices=10**18)).output.count(b'"stop"') == 128


def test_a_finish_that_is_made_comes_before_the_usage() -> None:
    """openai-python forgets the usage when a chunk without it follows."""
    usage = events(USAGE)
    seen = relay(HELLO + usage + b": c\n\n" + END_MARK)
    assert seen.output == HELLO + b": c\n\n" + ending(b"stop") + usage + END_MARK
    assert (seen.usage, seen.chunks) == (SPENT, 2)
    assert relay(HELLO + usage + HELLO + ending(b"stop")).output == HELLO + usage + HELLO + ending(b"stop")
    for end in (b"", events(b"<html>"), b"x" * 3000):
        cut = relay(HELLO + usage + end, Settings(max_event_bytes=2000))
        assert (cut.output, cut.state, cut.usage) == (HELLO + usage, StreamState.BROKEN, SPENT)


USED = b'{"id":"c","model":"up","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}'


def test_a_finish_that_comes_again_is_taken_out() -> None:
    once = HELLO + ending(b"stop")
    assert relay(once + ending(b"stop") + END_MARK).output == once + END_MARK
    other = ending(b"tool_calls")
    assert relay(once + other + END_MARK).output == once + other + END_MARK
    with_usage = events(USED)
    seen = relay(once + with_usage + END_MARK)
    assert seen.output == once + with_usage.replace(b'{"index":0,"delta":{},"finish_reason":"stop"}', b"") + END_MARK
    assert seen.usage == Usage(uncached_input=3)
    assert relay(once + with_usage + END_MARK, Settings(swallow_usage=True)).output == once + END_MARK


@pytest.mark.parametrize(
    "late",
    [
        events(USAGE, b'{"usage":null}', b"{}"),
        events(USAGE),
        b"data: x\n\n: c\n\n" + events(USAGE),
        events(USAGE) + b"x" * 3000,
    ],
)
def test_usage_after_the_end_counts_and_is_not_passed_on(late: bytes) -> None:
    stream = HELLO + ending(b"stop") + END_MARK
    seen = relay(stream + late, Settings(max_event_bytes=2000))
    assert (seen.output, seen.state, seen.usage) == (stream, StreamState.DONE, SPENT)


@pytest.mark.parametrize("end", [events(b"<html>"), events(ERROR)])
def test_usage_after_a_failure_does_not_count(end: bytes) -> None:
    assert relay(HELLO + end + events(USAGE)).usage is None


def test_chunks_before_the_answer_get_its_id() -> None:
    """Whoever reads the answer's id off its first chunk finds it."""
    for name in (None, "pub"):
        seen = relay(events(FILTERED) + b": c\n\n" + events(REFERENCES) + HELLO + END_MARK, Settings(name))
        texts = [json.loads(data) for data in payloads(seen.output) if data and data != b"[DONE]"]
        assert {(text["id"], text["model"], text["created"]) for text in texts} == {("c", name or "up", 5)}
        assert [sorted(text.keys() - {"id", "model", "created", "object"})[-1] for text in texts[:2]] == [
            "prompt_filter_results", "copilot_references",
        ]  # fmt: skip
        assert texts[1]["choices"] == []
        assert seen.chunks == 3


def test_chunks_before_an_answer_that_never_begins_go_out_at_its_end() -> None:
    assert relay(events(FILTERED) + END_MARK).output == events(FILTERED) + END_MARK
    assert relay(events(FILTERED)).output == b""
    assert relay(events(FILTERED, USAGE) + END_MARK).output == events(USAGE, FILTERED) + END_MARK


def test_an_error_before_the_answer_comes_alone() -> None:
    """So that it is seen to be early, and another upstream can be asked."""
    seen = relay(events(FILTERED, ERROR))
    assert (seen.output, seen.state, seen.chunks) == (events(ERROR), StreamState.ERRORED, 0)


@pytest.mark.parametrize(
    ("before", "around"),
    [
        (b"", b'{"id":%b,"choices":[{"index":0,"delta":{}}]}'),
        (b"", b'{"x":%b,"choices":[]}'),
        (HELLO + ending(b"stop"), ending(b"stop")[6:-2].replace(b"{}", b"%b")),
    ],
    ids=["id", "nameless", "repeated-finish"],
)
def test_no_depth_of_nesting_is_more_than_the_upstreams_fault(before: bytes, around: bytes) -> None:
    """Some can be read once, and not once more from further down the stack."""
    for depth in range(700, 1050):
        stream = ChatStream()
        stream.receive_data(before)
        stream.receive_data(events(around % (b"[" * depth + b"]" * depth)))
        assert stream.state is not StreamState.BROKEN or (
            stream.failure is not None and stream.failure.status_hint == 502
        )


def test_only_so_many_chunks_wait_for_an_answer() -> None:
    seen = relay(events(FILTERED) * 9 + HELLO + END_MARK)
    assert seen.output.startswith(events(FILTERED))
    assert (seen.output.count(b'"id":""'), seen.output.count(b"prompt_filter_results")) == (1, 9)
    large = events(FILTERED[:-1] + b',"x":"%b"}' % (b"x" * 70_000))
    stream = ChatStream()
    assert stream.receive_data(large) == large


# ===== runs of chunks, and chunks alone =====


class Slow(ChatStream):
    """Looks at each chunk alone."""

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        return None


def compact(*members: bytes, model: bytes = b'"up"') -> bytes:
    return events(b'{"id":"c","model":%b,%b}' % (model, b",".join(members)))


DELTA = compact(b'"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]', b'"usage":null')
RUN_EVENTS = [
    DELTA,
    events(chunk("a")),
    DELTA.replace(b'"x"', b'"he says \\"model\\":\\"up\\""'),
    DELTA.replace(b'"x"', b'"model"'),
    DELTA.replace(b'"up"', b'"other"'),
    DELTA.replace(b'"up"', b"null"),
    DELTA.replace(b'"model"', b'"mod\\u0065l"'),
    DELTA.replace(b'"model":"up",', b""),
    DELTA.replace(b'"model":"up"', b'"model":"up","model":"up"'),
    DELTA.replace(b'"delta"', b'"model":"up","delta"'),
    DELTA.replace(b"null", b'"stop"', 1),
    events(USAGE),
    events(ERROR),
    events(TOOL),
    events(REFERENCES),
    events(b"[1]"),
    b": c\n\n",
    b"event: ping\n\n",
    IDENTITY,
    FUNCTION,
    ARGUMENTS,
    WHOLE_CALL,
    events(FILTERED),
    ending(b"stop"),
    ending(b"stop"),
    events(USED),
    END_MARK,
]


@given(mutated(RUN_EVENTS), st.booleans(), st.booleans(), st.sampled_from([60, 1 << 20]), st.data())
def test_a_run_of_chunks_is_passed_as_each_of_them_would_be(
    stream: bytes, renames: bool, swallow: bool, limit: int, chosen: st.DataObject
) -> None:
    name = "fast" if renames else None
    assert_quiet_is_only_faster(
        lambda: ChatStream(public_name=name, swallow_usage=swallow, max_event_bytes=limit),
        lambda: Slow(public_name=name, swallow_usage=swallow, max_event_bytes=limit),
        stream,
        chosen,
    )


@pytest.mark.parametrize("name", [None, "fast"])
@pytest.mark.parametrize("other", RUN_EVENTS)
def test_a_run_with_any_chunk_in_it_is_passed_as_each_of_them_would_be(name: str | None, other: bytes) -> None:
    for stream in (DELTA * 2 + other + DELTA, other + DELTA, DELTA + other):
        fast, slow = ChatStream(public_name=name), Slow(public_name=name)
        for machine in (fast, slow):
            machine.receive_data(DELTA)
        assert fast.receive_data(stream) == slow.receive_data(stream)
        assert (fast.state, fast.usage, fast.chunks) == (slow.state, slow.usage, slow.chunks)


def test_a_run_of_plain_chunks_is_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what makes it fast."""
    for name in (None, "fast"):
        stream = ChatStream(public_name=name)
        stream.receive_data(DELTA)
        with monkeypatch.context() as patch:
            patch.delattr(ChatStream, "_forward_data")
            out = stream.receive_data(DELTA * 5 + DELTA[:9])
        assert out == DELTA.replace(b"up", b"fast" if name else b"up") * 5
        assert stream.chunks == 6
