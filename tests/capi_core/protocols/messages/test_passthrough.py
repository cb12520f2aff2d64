"""A Messages stream passes through: what is right is not touched, what a client would fail on is put right."""

import json
from collections.abc import Callable

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from capi_core.conformance.checker import StreamChecker
from capi_core.conformance.messages import MessagesGrammar
from capi_core.errors import LocalError, Problem
from capi_core.protocols.messages.passthrough import MessagesStream
from capi_core.protocols.stream import StreamState
from capi_core.usage import Usage
from tests.support.messages_events import STOP, block, delta, event, everything, finish, start, written
from tests.support.quiet_runs import assert_quiet_is_only_faster, mutated

LIMIT = 1 << 12
TEXT = {"type": "text", "text": ""}
HELLO = block(0, TEXT, {"type": "text_delta", "text": "hi"})
ANSWER = written(start(), *HELLO, finish())
WHOLE = ANSWER + written(STOP)
MADE = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DONE = b"data: [DONE]\n\n"


def run(stream: bytes, size: int | None = None, name: str | None = None) -> tuple[bytes, MessagesStream]:
    machine = MessagesStream(public_name=name, max_event_bytes=LIMIT)
    out = b""
    for at in range(0, len(stream), size or len(stream) or 1):
        if machine.state is not StreamState.BROKEN:
            out += machine.receive_data(stream[at : at + (size or len(stream))])
    if machine.state is not StreamState.BROKEN:
        out += machine.finish()
    return out, machine


def data_only(stream: bytes) -> bytes:
    return b"\n".join([line for line in stream.split(b"\n") if not line.startswith(b"event:")])


def test_a_steady_stream_is_not_touched() -> None:
    stream = written(*everything())
    out, machine = run(b": hello\n\n" + stream, name="up")
    assert out == b": hello\n\n" + stream
    assert (machine.state, machine.usage) == (StreamState.DONE, Usage(5, None, None, 7, None))
    assert machine.chunks == len(everything()) - 1  # all but the ping


def test_only_the_model_of_the_start_has_the_clients_name() -> None:
    model = event("x_model", model="up", message={"model": "up"})
    stream = written(start(), model, *HELLO, finish(), STOP)
    assert run(stream, name="pub")[0] == stream.replace(b'"up"', b'"pub"', 1)
    assert run(stream)[0] == stream


@pytest.mark.parametrize("message", [None, {}, {"usage": None}])
def test_a_start_may_lack_what_there_is_to_change(message: object) -> None:
    members = {} if message is None else {"message": message}
    stream = written(event("message_start", **members), *HELLO, finish(), STOP)
    assert run(stream, name="pub")[0] == stream


@given(size=st.integers(1, 40))
@pytest.mark.parametrize(
    "make",
    [
        lambda: written(*everything()),
        lambda: data_only(ANSWER) + DONE,
        lambda: ANSWER[:-2],
        lambda: written(start(), *HELLO) + b"event: ping\n\n<html>\n\n",
    ],
)
def test_how_the_bytes_are_cut_does_not_matter(make: Callable[[], bytes], size: int) -> None:
    stream = make()
    out, machine = run(stream, size, "pub")
    whole, same = run(stream, name="pub")
    assert (out, machine.state, machine.usage) == (whole, same.state, same.usage)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (written(STOP), written(STOP)),
        (written(STOP) + DONE, written(STOP)),
        (written(STOP) + b"garbage", written(STOP)),
        (written(STOP)[:-2], written(STOP)),
        (written(STOP)[:-9], MADE),
        (DONE, MADE),
        (DONE[:-2], MADE),
        (b"", MADE),
        (b"<html>\n\n", MADE),
        (b"data: <html>\n\n", MADE),
        (b"data: " + b"x" * LIMIT + b"\n\n", MADE),
    ],
)
def test_after_its_stop_reason_an_answer_has_its_stop_once(tail: bytes, expected: bytes) -> None:
    out, machine = run(ANSWER + tail)
    assert (out, machine.state) == (ANSWER + expected, StreamState.DONE)
    assert machine.receive_data(b"x") == machine.finish() == b""


def test_the_finish_may_lack_its_blank_line() -> None:
    out, machine = run(ANSWER[:-2])
    assert (out, machine.state) == (ANSWER + MADE, StreamState.DONE)


def test_the_sdk_reads_copilots_ends() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        out = run(data_only(ANSWER) + DONE, name="pub")[0]
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=out)

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as http,
        anthropic.Anthropic(api_key="x", base_url="http://x", http_client=http) as sdk,
        sdk.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        found = stream.get_final_message()
    assert (found.model, found.content[0].type, found.stop_reason) == ("pub", "text", "end_turn")


def test_frames_without_their_name_or_with_a_wrong_one_get_it() -> None:
    assert run(data_only(WHOLE))[0] == WHOLE
    assert run(WHOLE.replace(b"event: content_block_stop", b"event: message"))[0] == WHOLE
    spaced = WHOLE.replace(b"event: ", b"event:")
    assert run(spaced)[0] == spaced
    assert run(data_only(written(event("new_event"))) + WHOLE)[0] == written(event("new_event")) + WHOLE


def test_a_name_that_no_field_can_hold_is_not_written() -> None:
    odd = b'data: {"type":"a\\nb"}\n\n'
    assert run(odd + WHOLE)[0] == odd + WHOLE


def test_data_without_a_type_has_the_events() -> None:
    nameless = b'event: content_block_stop\ndata: {"index":0}\n\n'
    assert run(nameless + WHOLE)[0] == nameless + WHOLE


def test_data_in_several_lines_or_twice_in_an_event_is_written_anew() -> None:
    data = json.dumps(start()).encode()
    renamed = data.replace(b'"up"', b'"pub"')
    for stream in (
        b"event: message_start\ndata: " + data.replace(b", ", b",\ndata: ", 1) + b"\n\n",
        b"event: message_start\n: " + data + b"\ndata: " + data + b"\n\n",
    ):
        out = run(stream + WHOLE, name="pub")[0].partition(b"event: content_block_start")[0]
        assert b'"up"' not in out.partition(b"\ndata: ")[2]
        assert json.loads(
            b"".join([line[6:] for line in out.split(b"\n\n")[0].split(b"\n") if line[:4] == b"data"])
        ) == (json.loads(renamed))


def signed(*signatures: str, stop: bool = True) -> list[dict[str, object]]:
    deltas = [{"type": "signature_delta", "signature": each} for each in signatures]
    found = block(0, {"type": "thinking", "thinking": "x", "signature": ""}, *deltas)
    return found if stop else found[:-1]


@pytest.mark.parametrize("stop", [True, False])
def test_several_pieces_of_a_signature_go_out_as_one(stop: bool) -> None:
    out = run(written(start(), *signed("A", "B", "C", stop=stop), finish(), STOP))[0]
    joined = b'{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"ABC"}}'
    one = b"event: content_block_delta\ndata: " + joined + b"\n\n"
    assert out == written(start(), *signed(stop=False)) + one + written(*signed()[1 if stop else 2 :], finish(), STOP)


def test_a_signature_waits_for_the_last_event_at_most() -> None:
    stream = written(start(), *signed("A", stop=False), STOP)
    assert run(stream)[0] == stream


def test_signatures_that_wait_are_bounded() -> None:
    halves = signed("x" * (LIMIT // 2), "x" * (LIMIT // 2), "x")
    machine = run(written(start(), *halves, finish(), STOP))[1]
    assert machine.failure is not None
    assert (machine.failure.code, machine.state) == ("upstream_event_too_large", StreamState.BROKEN)
    many = [delta(place, "signature_delta", signature="") for place in range(129)]
    assert run(written(start(), *many))[1].state is StreamState.BROKEN


def test_signatures_that_were_sent_wait_no_more() -> None:
    thinking = {"type": "thinking", "thinking": "x", "signature": ""}
    piece = {"type": "signature_delta", "signature": "x" * (LIMIT // 3)}
    blocks = [told for index in range(9) for told in block(index, thinking, piece)]
    assert run(written(start(), *blocks, finish(), STOP))[1].state is StreamState.DONE


@pytest.mark.parametrize("usage", [{}, {"usage": None}])
def test_a_finish_without_figures_gets_those_of_the_start(usage: dict[str, object]) -> None:
    told = event("message_delta", delta={"stop_reason": "end_turn"}, **usage)
    out, machine = run(written(start(), *HELLO, told, STOP))
    assert json.loads(out.split(b"data: ")[-2].split(b"\n")[0])["usage"] == {"input_tokens": 5, "output_tokens": 1}
    assert machine.usage == Usage(5, output=1)


def test_figures_before_the_finish_count() -> None:
    begun = start(input_tokens=5, cache_read_input_tokens=3, output_tokens=1)
    out, machine = run(written(begun, finish(None, {"output_tokens": 4}), event("message_delta", usage={})))
    assert (machine.usage, machine.state) == (Usage(5, 3, None, 4), StreamState.BROKEN)
    assert out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            event("error", error={"type": "overloaded_error", "message": "m"}),
            event("error", error={"type": "overloaded_error", "message": "m"}),
        ),
        ({"error": {"message": "m", "code": "c"}}, event("error", error={"type": "api_error", "message": "m"})),
        (
            {"error": 3},
            event("error", error={"type": "api_error", "message": "the upstream reported an error"}),
        ),
    ],
)
def test_an_error_of_the_upstream_ends_the_stream(error: dict[str, object], told: dict[str, object]) -> None:
    data = json.dumps(error).encode()
    out, machine = run(written(start()) + b"data: " + data + b"\n\n" + WHOLE)
    assert (machine.state, machine.error) == (StreamState.ERRORED, data)
    name, _, body = out.removeprefix(written(start())).partition(b"\ndata: ")
    assert (name, json.loads(body)) == (b"event: error", told)
    assert machine.fail(Problem(502, "c", "m")) == b""


@pytest.mark.parametrize("before", [b"", written(start()), ANSWER, written(start(), *HELLO[:2]), b"<html>\n\n"])
def test_a_stream_that_cannot_go_on_ends_with_an_error_event(before: bytes) -> None:
    machine = MessagesStream()
    out = machine.receive_data(before)
    tail = machine.fail(Problem(502, "upstream_truncated", "m"))
    assert tail == b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m"}}\n\n'
    assert machine.state is StreamState.ERRORED
    assert machine.receive_data(b"x") == machine.fail(Problem(502, "c", "m")) == b""
    checker = StreamChecker(MessagesGrammar(), max_event_bytes=LIMIT)
    checker.receive_data(out + tail)
    checker.finish()
    assert {violation.rule for violation in checker.violations} == set()


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"", "upstream_truncated"),
        (written(start(), *HELLO), "upstream_truncated"),
        (written(start()) + DONE, "upstream_truncated"),
        (written(start(), *HELLO) + b"data: {", "upstream_truncated"),
        (b"<html>\n\n", "upstream_garbage"),
        (b"data: {\n\n", "upstream_garbage"),
        (b'data: {"type":"message_start","message":3}\n\n', "upstream_garbage"),
        (b'data: {"type":"message_start","message":{"model":"a","model":"b"}}\n\n', "upstream_garbage"),
        (b'data: {"type":"message_start","index":"x","message":{"model":"a"}}\n\n', "upstream_garbage"),
        (b"data: " + b"[" * 3000 + b"\n\n", "upstream_garbage"),
        (b"data: " + b"x" * LIMIT + b"\n\n", "upstream_event_too_large"),
    ],
)
def test_what_is_cut_or_cannot_be_read_breaks_the_stream(stream: bytes, code: str) -> None:
    machine = run(stream, name="pub")[1]
    assert machine.failure is not None
    assert (machine.state, machine.failure.code, machine.failure.status_hint) == (StreamState.BROKEN, code, 502)
    with pytest.raises(LocalError):
        machine.receive_data(b"x")
    with pytest.raises(LocalError):
        machine.finish()


def test_what_says_nothing_passes_unless_an_sdk_fails_on_it() -> None:
    passed = b": comment\n\nevent: ping\n\ndata: [1]\n\n\n\n"
    dropped = b"event: later\n\nid: 1\n\nretry: 5\n\ndata:\n\n" + DONE
    assert run(passed + dropped + WHOLE)[0] == passed + WHOLE


# --- runs of deltas, and deltas alone ---


class Slow(MessagesStream):
    """Looks at each event alone."""

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        return None


RUN_EVENTS = [
    written(delta(0, "text_delta", text="x")),
    written(delta(0, "input_json_delta", partial_json='{"a":')),
    written(delta(1, "thinking_delta", thinking="h\\m")),
    written(delta(1, "signature_delta", signature="s")),
    written(delta(1, "new_delta", x=[{}])),
    written(delta(0, "text_delta", text="x", signature="s")),
    written(event("content_block_delta", index=0)),
    written(event("content_block_delta", delta={"type": "text_delta", "stop_reason": 5})),
    written(event("content_block_stop", index=1)),
    written(start()),
    written(finish()),
    written(STOP),
    data_only(written(delta(0, "text_delta", text="x"))),
    b"event: content_block_delta\ndata: [1]\n\n",
    b"event: content_block_delta\ndata: {}\n\n",
    b"event: content_block_delta\n\n",
    b": c\n\n",
    DONE,
]


@given(mutated(RUN_EVENTS), st.sampled_from([90, 1 << 20]), st.data())
def test_a_run_of_deltas_is_passed_as_each_of_them_would_be(stream: bytes, limit: int, chosen: st.DataObject) -> None:
    assert_quiet_is_only_faster(
        lambda: MessagesStream(public_name="pub", max_event_bytes=limit),
        lambda: Slow(public_name="pub", max_event_bytes=limit),
        stream,
        chosen,
    )


def test_a_run_of_plain_deltas_is_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what makes it fast."""
    deltas = b"".join(RUN_EVENTS[:3])
    stream = MessagesStream(public_name="pub")
    stream.receive_data(b": hi\n\n")
    with monkeypatch.context() as patch:
        patch.delattr(MessagesStream, "_forward_data")
        assert stream.receive_data(deltas + deltas[:9]) == deltas
    assert stream.chunks == 3
