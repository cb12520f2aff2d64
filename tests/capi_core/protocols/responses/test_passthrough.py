"""Responses passed through: ids and the model's name are made steady, all other bytes are the upstream's."""

import json
from collections.abc import Callable, Iterable

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from typing_extensions import override

from capi_core.errors import LocalError, Problem
from capi_core.protocols.responses.passthrough import ResponsesStream
from capi_core.protocols.stream import StreamState
from capi_core.sse import SSEDecoder
from capi_core.usage import Usage
from tests.support.quiet_runs import assert_quiet_is_only_faster, mutated
from tests.support.responses_events import CREATED, completed, event, numbered, response, text_item

USAGE = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
PLAIN = numbered([CREATED, *text_item(0, "he", "llo"), completed(text_item(0, "he", "llo")[-1]["item"], usage=USAGE)])


def run(stream: bytes, size: int | None = None, name: str | None = None) -> tuple[bytes, ResponsesStream]:
    machine = ResponsesStream(public_name=name, max_event_bytes=1 << 16)
    out = b""
    for at in range(0, len(stream), size or len(stream) or 1):
        if machine.state is not StreamState.BROKEN:
            out += machine.receive_data(stream[at : at + (size or len(stream))])
    if machine.state is not StreamState.BROKEN:
        out += machine.finish()
    return out, machine


def told(stream: bytes) -> list[dict[str, object]]:
    decoder = SSEDecoder()
    events = decoder.feed(stream) + decoder.finish()
    assert decoder.residue == b""
    return [json.loads(found.data) for found in events if found.data]


def data_only(events: Iterable[dict[str, object]]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(members).encode() for members in events)


def test_a_steady_stream_is_not_touched() -> None:
    out, machine = run(b": hi\n\n" + PLAIN)
    assert out == b": hi\n\n" + PLAIN
    assert (machine.state, machine.usage, machine.chunks) == (StreamState.DONE, Usage(5, None, None, 2, None), 9)
    assert run(PLAIN.replace(b"\n", b"\r\n"))[0] == PLAIN.replace(b"\n", b"\r\n")


def test_the_model_has_the_clients_name_in_every_event_and_nothing_else_changes() -> None:
    out, _ = run(PLAIN, name="pub")
    assert out == PLAIN.replace(b'"model": "up"', b'"model": "pub"')
    assert run(PLAIN.replace(b'"up"', b'"pub"'), name="pub")[0] == PLAIN.replace(b'"up"', b'"pub"')


def rotated() -> bytes:
    """As Copilot does it: each event has ids of its own."""
    events: list[dict[str, object]] = []
    item = text_item(1, "x")
    reasoning = {"type": "reasoning", "id": "rs_0", "summary": []}
    call = {"type": "function_call", "id": "fc_0", "call_id": "c", "name": "f", "arguments": "{}"}
    plain = [
        event("response.output_item.added", output_index=0, item=reasoning),
        event("response.output_item.done", output_index=0, item={**reasoning, "id": "rs_9"}),
        *item,
        event("response.output_item.added", output_index=2, item=call),
        event("response.output_item.done", output_index=2, item={**call, "id": "fc_9"}),
    ]
    for number, members in enumerate(plain):
        changed = dict(members)
        if "item_id" in changed:
            changed["item_id"] = f"rot{number}"
        if members is item[-1]:
            changed["item"] = {**text_item(1, "x", item_id="rot")[-1], "id": "rot"}
        events.append(changed)
    final = [
        {**call, "id": "z3"},
        {"type": "message", "id": "z2"},
        {"type": "reasoning", "id": "rs_0"},
        {"type": "m"},
        None,
    ]
    lost = completed({"type": "message", "id": "z1"}, *final)
    lost["response"] = response("completed", output=[{"type": "message", "id": "z1"}, *final], id="resp_9")
    return numbered([CREATED, *events, lost])


def test_ids_that_rotate_are_held_at_the_first_one_seen() -> None:
    events = told(run(rotated())[0])
    assert {members["item_id"] for members in events if "item_id" in members} == {"msg_1"}
    items = [members["item"] for members in events if "item" in members]
    assert [item["id"] for item in items if isinstance(item, dict)] == [
        "rs_0",
        "rs_0",
        "msg_1",
        "msg_1",
        "fc_0",
        "fc_0",
    ]
    last = events[-1]["response"]
    assert isinstance(last, dict)
    assert last["id"] == "resp_1"
    # Each is the next item of its type; what has none keeps the id that it came with.
    assert [item and item.get("id") for item in last["output"]] == ["msg_1", "fc_0", "z2", "rs_0", None, None]


def test_openai_python_reads_a_stream_whose_ids_rotated() -> None:
    item = text_item(0, "a", "b")
    turned = [{**members, "item_id": f"r{n}"} if "item_id" in members else members for n, members in enumerate(item)]
    turned[-1] = {**item[-1], "item": {**text_item(0, "a", "b", item_id="rot")[-1]["item"]}}  # type: ignore[dict-item]  # it is one
    last = completed(text_item(0, "a", "b", item_id="z")[-1]["item"])
    out, _ = run(numbered([CREATED, *turned, last]))

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=out)

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as http,
        OpenAI(api_key="k", base_url="http://t/v1", http_client=http) as client,
        client.responses.stream(model="m", input="x") as stream,
    ):
        assert stream.get_final_response().output_text == "ab"


def test_numbers_that_are_wrong_or_missing_are_put_right() -> None:
    events = [{**CREATED, "sequence_number": 4}, event("response.x"), {**event("response.y"), "sequence_number": 2}]
    events += [
        {**event("response.z"), "sequence_number": 9},
        event("keepalive"),
        {**completed(), "sequence_number": 2**60},
    ]
    numbers = [members.get("sequence_number") for members in told(run(data_only(events))[0])]
    assert numbers == [4, 5, 6, 9, None, 10]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (completed(), StreamState.DONE),
        (event("response.incomplete", response=response("incomplete")), StreamState.DONE),
        (event("response.failed", response=response("failed")), StreamState.ERRORED),
        (event("response.cancelled", response=response("cancelled")), StreamState.ERRORED),
        (event("error", message="m"), StreamState.ERRORED),
        ({"error": {"message": "m"}}, StreamState.ERRORED),
    ],
)
def test_a_terminal_event_ends_the_stream_and_what_follows_is_dropped(
    last: dict[str, object], state: StreamState
) -> None:
    stream = data_only([{**CREATED, "sequence_number": 0}, {**last, "sequence_number": 1}])
    out, machine = run(stream + b"data: [DONE]\n\ndata: junk\n\n")
    assert (out, machine.state) == (stream, state)
    assert machine.receive_data(b"data: {}\n\n") == machine.finish() == b""
    assert (machine.error is not None) == (state is StreamState.ERRORED)
    assert machine.fail(Problem(502, "c", "m")) == b""


def test_an_end_mark_is_dropped_and_is_no_end() -> None:
    out, machine = run(numbered([CREATED]) + b"data: [DONE]\n\n")
    assert (out, machine.state) == (numbered([CREATED]), StreamState.BROKEN)
    assert machine.failure is not None
    assert machine.failure.code == "upstream_truncated"


def test_a_stream_that_is_cut_after_its_last_item_is_broken_and_fails_with_the_response_that_was_begun() -> None:
    cut = numbered([CREATED, *text_item(0, "x")])
    machine = ResponsesStream(public_name="pub")
    out = machine.receive_data(cut) + machine.finish()
    states = [machine.state]
    last = told(machine.fail(Problem(502, "upstream_truncated", "cut")))[0]
    assert (last["type"], last["sequence_number"]) == ("response.failed", len(told(out)))
    assert last["response"] == {
        **response("failed"),
        "model": "pub",
        "error": {"code": "server_error", "message": "cut"},
    }
    assert [*states, machine.state] == [StreamState.BROKEN, StreamState.ERRORED]


def test_before_a_response_was_begun_a_failure_is_an_error_event() -> None:
    machine = ResponsesStream()
    assert told(machine.fail(Problem(429, "c", "m", "p"))) == [
        {"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": "p", "sequence_number": 0}
    ]


def test_the_last_event_may_lack_its_blank_line_but_not_its_end() -> None:
    assert run(PLAIN[:-2])[0] == run(PLAIN[:-1])[0] == PLAIN
    out, machine = run(PLAIN[:-3])
    assert (machine.state, PLAIN.startswith(out)) == (StreamState.BROKEN, True)


def test_lone_fields_and_empty_data_are_dropped() -> None:
    assert run(b"event: ping\n\nid: 1\n\ndata:\n\n" + PLAIN)[0] == PLAIN


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>\n\n",
        b"data: nope\n\n",
        b'data: {"type":"response.created","response":5}\n\n',
        b'data: {"type":"response.created","response":{"model":"a","model":"b"}}\n\n',
        b'data: {"type":"response.completed","response":{"output":{}}}\n\n',
        b'data: {"type":5,"item_id":"x"}\n\n',
        b'data: {"type":"response.x","type":"response.x"}\n\n',
        b'data: {"type":"response.x","output_index":0,"item":5}\n\n',
    ],
)
def test_what_is_no_responses_stream_breaks_it(garbage: bytes) -> None:
    out, machine = run(numbered([CREATED]) + garbage + PLAIN, name="pub")
    assert machine.state is StreamState.BROKEN
    assert machine.failure is not None
    assert (machine.failure.code, machine.failure.status_hint) == ("upstream_garbage", 502)
    assert out == numbered([CREATED]).replace(b'"up"', b'"pub"')
    with pytest.raises(LocalError):
        machine.receive_data(b"")
    with pytest.raises(LocalError):
        machine.finish()


def test_json_of_another_shape_passes() -> None:
    odd = b"data: 5\n\ndata: [1]\n\n"
    assert run(odd + PLAIN)[0] == odd + PLAIN


def test_an_event_that_is_too_large_breaks_the_stream() -> None:
    out, machine = run(numbered([CREATED]) + b"data: " + b"x" * (1 << 17))
    assert machine.failure is not None
    assert machine.failure.code == "upstream_event_too_large"
    assert out == numbered([CREATED])
    assert run(b"data: " + b"x" * (1 << 17))[1].state is StreamState.BROKEN
    assert run(PLAIN + b"data: " + b"x" * (1 << 17))[1].state is StreamState.DONE


def test_data_in_several_lines_or_twice_in_an_event_is_written_anew() -> None:
    split = b'event: e\ndata: {"type":"response.created","sequence_number":0,\ndata: "response":{"model":"up"}}\n\n'
    assert told(run(split, name="pub")[0])[0]["response"] == {"model": "pub"}
    data = b'{"type":"response.created","sequence_number":0,"response":{"model":"up"}}'
    out, _ = run(b": %b\ndata: %b\n\n" % (data, data), name="pub")
    assert out == b"data: %b\n\n" % data.replace(b'"up"', b'"pub"')


def test_ids_are_held_for_a_bounded_number_of_items() -> None:
    events = [event("response.x", output_index=index, item_id=f"a{index}") for index in range(1025)]
    events += [event("response.x", output_index=index, item_id="b") for index in (0, 1024)]
    events.append(event("response.x", output_index=3, item=None))
    out = told(run(numbered([CREATED, *events]))[0])
    assert [members["item_id"] for members in out[-3:-1]] == ["a0", "b"]
    long = [event("response.x", output_index=0, item_id="i" * 5000), event("response.x", output_index=0, item_id="b")]
    assert told(run(numbered([CREATED, *long]))[0])[-1]["item_id"] == "b"


@pytest.mark.parametrize("make", [rotated, lambda: PLAIN])
@given(size=st.integers(1, 40))
def test_how_the_bytes_are_cut_does_not_matter(make: Callable[[], bytes], size: int) -> None:
    stream = make()
    whole, seen = run(stream, None, "pub")
    out, machine = run(stream, size, "pub")
    assert (out, machine.state, machine.usage, machine.chunks) == (whole, seen.state, seen.usage, seen.chunks)


# --- runs of deltas, and deltas alone ---


class Slow(ResponsesStream):
    """Looks at each event alone."""

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        return None


KINDS = ("output_text", "function_call_arguments", "reasoning_summary_text", "reasoning_text")


def deltas(number: int, kind: str = "output_text", **members: object) -> bytes:
    """Three of them, numbered from `number`."""
    name = f"response.{kind}.delta"
    told = {"type": name, "item_id": "msg_1", "output_index": 0, "delta": "x", **members}
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps({**told, "sequence_number": at}).encode())
        for at in range(number, number + 3)
    )


def whole(kind: str, **members: object) -> dict[str, object]:
    return event(f"response.{kind}.done", item_id="msg_1", output_index=0, **members)


ADDED = event("response.output_item.added", output_index=0, item={"type": "message", "id": "msg_1"})
OPENED = numbered([CREATED, ADDED])
RUN_EVENTS = [
    deltas(2),
    deltas(5),
    deltas(8),
    *(deltas(2, kind) for kind in KINDS[1:]),
    deltas(2, "audio"),
    deltas(3),
    deltas(1),
    deltas(2, item_id="msg_2"),
    deltas(2, output_index=1),
    deltas(5, content_index=1),
    deltas(5, summary_index=1),
    deltas(2, item=None),
    deltas(2, response={}),
    deltas(2, sequence_number=None),
    deltas(2, delta="\x7f"),
    deltas(2)[6:],
    numbered([CREATED]),
    numbered([ADDED]),
    numbered([whole("output_text", text="x")]),
    numbered([whole("output_text", text="x", content_index=1)]),
    numbered([whole("reasoning_summary_text", text="x")]),
    numbered([completed(usage=USAGE)]),
    b"event: response.output_text.delta\ndata: {}\n\n",
    b"event: response.output_text.delta\n\n",
    b": c\n\n",
    b"data: [DONE]\n\n",
]


@given(mutated(RUN_EVENTS), st.booleans(), st.sampled_from([200, 1 << 20]), st.data())
def test_a_run_of_deltas_is_passed_as_each_of_them_would_be(
    stream: bytes, opened: bool, limit: int, chosen: st.DataObject
) -> None:
    assert_quiet_is_only_faster(
        lambda: ResponsesStream(public_name="pub", max_event_bytes=limit),
        lambda: Slow(public_name="pub", max_event_bytes=limit),
        (OPENED if opened else b"") + stream,
        chosen,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_plain_deltas_is_not_looked_at_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what makes it fast."""
    stream = ResponsesStream()
    stream.receive_data(OPENED + deltas(2, kind))
    with monkeypatch.context() as patch:
        patch.delattr(ResponsesStream, "_forward_data")
        assert stream.receive_data(deltas(5, kind) + deltas(8, kind)[:9]) == deltas(5, kind)
        assert stream.receive_data(deltas(8, kind)[9:]) == deltas(8, kind)
    assert stream.chunks == 11


@pytest.mark.parametrize("other", [deltas(8, content_index=1), deltas(8, summary_index=1), deltas(9)])
def test_a_run_of_which_the_end_is_another_text_or_out_of_order_is_looked_at(other: bytes) -> None:
    fast, slow = ResponsesStream(), Slow()
    for machine in (fast, slow):
        machine.receive_data(OPENED + deltas(2))
    assert fast.receive_data(deltas(5) + other) == slow.receive_data(deltas(5) + other)
    last = data_only([{**event("response.output_text.done", output_index=0, content_index=1, text="x")}])
    assert fast.receive_data(last) == slow.receive_data(last)
    assert fast.chunks == slow.chunks


def test_a_number_that_javascript_cannot_count_is_never_passed() -> None:
    """However the deltas come."""
    last = 2**53 - 1
    for many in (1, 3):
        stream = ResponsesStream()
        stream.receive_data(OPENED + deltas(last - 3, delta="y"))
        out = b"".join([stream.receive_data(deltas(last)) for _ in range(many)])
        assert told(out)[0]["sequence_number"] == last
        assert stream.chunks == 5 + 3 * many


# --- texts that come only whole ---


def test_a_text_that_comes_only_whole_is_said_before_that() -> None:
    steps = [
        CREATED,
        ADDED,
        whole("output_text", content_index=0, text="a\n", logprobs=[]),
        completed(usage=USAGE),
    ]
    out, machine = run(numbered(steps))
    events = told(out)
    assert events[2] == {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "a\n",
        "logprobs": [],
        "sequence_number": 2,
    }
    assert b"event: response.output_text.delta\ndata: " in out
    assert [members["sequence_number"] for members in events] == [0, 1, 2, 3, 4]
    assert events[3]["text"] == "a\n"
    assert (machine.chunks, machine.state) == (5, StreamState.DONE)


def test_a_text_of_which_there_was_a_delta_is_not_said_again() -> None:
    stream = OPENED + deltas(2) + deltas(5) + data_only([{**whole("output_text", text="x"), "sequence_number": 8}])
    for size in (None, 1, 300):
        assert run(stream, size)[0].count(b"output_text.delta") == stream.count(b"output_text.delta")


def test_a_text_that_is_said_has_the_id_of_its_item() -> None:
    rotated_done = {**whole("function_call_arguments", arguments="{}"), "item_id": "rotated"}
    for steps in ([CREATED, ADDED, rotated_done], [CREATED, whole("function_call_arguments", arguments="{}")]):
        events = told(run(numbered(steps))[0])
        assert (events[-2]["item_id"], events[-1]["item_id"]) == ("msg_1", "msg_1")
        assert (events[-2]["delta"], events[-2]["sequence_number"]) == ("{}", len(steps) - 1)
