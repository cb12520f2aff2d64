"""Translation: any upstream's answer as any client's, the same however it was cut, and legal wherever it ends."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conformance import checker_for
from capi_core.conversation import Reasoning, ToolCall, ToolKind, ToolRef
from capi_core.delta_filters import MAX_CUSTOM_INPUT
from capi_core.deltas import Finish, FinishReason, Reply, ReplyText, assemble
from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.protocols.stream import StreamState
from capi_core.tool_names import ToolNames
from capi_core.translation import TranslatedStream, Translation
from capi_core.usage import Usage
from tests.support import streams
from tests.support.streams import SPENT, answer_document, answer_events, answer_stream
from tests.support.trickle import pieces

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
PAIRS = list(itertools.product(Protocol, Protocol))
PROBLEM = Problem(502, "upstream_broke", "the upstream broke off")
MOST = 64 * 1024


def translation(
    upstream: Protocol, client: Protocol, *, names: ToolNames | None = None, stop: tuple[str, ...] = ()
) -> Translation:
    envelope = Envelope("req_1", "fast", now_s=9)
    return Translation(CODECS[upstream], CODECS[client], envelope, Ledger(), names or ToolNames(), stop)


def machine_for(upstream: Protocol, client: Protocol, *, stop: tuple[str, ...] = ()) -> TranslatedStream:
    return translation(upstream, client, stop=stop).stream(max_event_bytes=MOST)


def held(client: Protocol, stream: bytes, *, usage_known: bool = True) -> bytes:
    """The stream, which is a legal one. Usage that nobody reported is `null` in Responses, never 0."""
    checker = checker_for(client)
    checker.receive_data(stream)
    checker.finish()
    broken = [one for one in checker.violations if usage_known or one.rule != "responses-usage"]
    assert broken == []
    return stream


def read(protocol: Protocol, stream: bytes) -> Reply:
    """What a stream says."""
    decoder = CODECS[protocol].stream_decoder(Ledger(), max_event_bytes=MOST)
    found = assemble([*decoder.receive_data(stream), *decoder.finish()])
    assert isinstance(found, Reply)
    return found


def said(reply: Reply) -> list[object]:
    """The blocks of an answer, without what a provider signs."""
    blocks: list[object] = []
    for block in reply.blocks:
        match block:
            case ReplyText(text=text):
                blocks.append(text)
            case Reasoning(parts=parts):
                blocks.append(parts)
            case ToolCall():
                blocks.append((block.id, block.tool.name, block.arguments.replace(" ", "")))
            case _:
                blocks.append(block)
    return blocks


SAID: list[object] = [
    ("First things first.",),
    "Héllo, STOP world",
    ("call_1", "get_weather", '{"city":"Oslo"}'),
    ("call_2", "get_time", '{"zone":"CET"}'),
]


# --- streams ---


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_stream_arrives_whole_and_legal(upstream: Protocol, client: Protocol) -> None:
    machine = machine_for(upstream, client)
    out = machine.receive_data(answer_stream(upstream)) + machine.finish()
    reply = read(client, held(client, out))
    assert said(reply) == SAID
    assert (reply.finish, reply.model) == (Finish(FinishReason.TOOL_CALLS), "fast")
    assert (machine.state, machine.usage, reply.usage) == (StreamState.DONE, SPENT, SPENT)
    assert (machine.failure, machine.error, machine.problem) == (None, None, None)


def cut_run(machine: TranslatedStream, chunks: list[bytes]) -> tuple[object, ...]:
    out = b"".join([machine.receive_data(chunk) for chunk in chunks]) + machine.finish()
    return out, machine.usage, machine.state, machine.chunks, machine.error


@given(st.sampled_from(PAIRS), st.sampled_from([(), ("STOP", "TOP w"), ("nowhere",)]), st.data())
def test_it_does_not_depend_on_how_the_upstreams_bytes_were_cut(
    pair: tuple[Protocol, Protocol], stop: tuple[str, ...], chosen: st.DataObject
) -> None:
    upstream, client = pair
    stream = answer_stream(upstream)
    whole = cut_run(machine_for(upstream, client, stop=stop), [stream])
    assert cut_run(machine_for(upstream, client, stop=stop), chosen.draw(pieces(stream))) == whole


@pytest.mark.parametrize("stop", [(), ("STOP",)], ids=repr)
@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_nor_when_they_come_one_by_one(upstream: Protocol, client: Protocol, stop: tuple[str, ...]) -> None:
    stream = answer_stream(upstream)
    single = [stream[at : at + 1] for at in range(len(stream))]
    whole = cut_run(machine_for(upstream, client, stop=stop), [stream])
    assert cut_run(machine_for(upstream, client, stop=stop), single) == whole


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_failure_after_any_event_gives_a_legal_end(upstream: Protocol, client: Protocol) -> None:
    events = answer_events(upstream)
    for taken in range(len(events)):
        machine = machine_for(upstream, client)
        out = b"".join([machine.receive_data(event) for event in events[:taken]])
        held(client, out + machine.fail(PROBLEM))
        assert machine.state is StreamState.ERRORED
        assert (machine.receive_data(events[taken]), machine.finish()) == (b"", b""), "it is over"


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_stream_that_is_cut_after_any_event_is_broken_or_whole(upstream: Protocol, client: Protocol) -> None:
    """Whole from the event on that says why the answer ended."""
    events = answer_events(upstream)
    states = []
    for taken in range(len(events) + 1):
        machine = machine_for(upstream, client)
        out = b"".join([machine.receive_data(event) for event in events[:taken]]) + machine.finish()
        states.append(machine.state)
        if machine.state is StreamState.BROKEN:
            assert machine.failure is not None
            assert (machine.failure.code, machine.failure.status_hint) == ("upstream_truncated", 502)
            out += machine.fail(Problem.of(machine.failure))
        held(client, out, usage_known=machine.usage is not None)
    broken = states.count(StreamState.BROKEN)
    assert states == [StreamState.BROKEN] * broken + [StreamState.DONE] * (len(states) - broken)
    assert broken >= len(events) - 3


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_garbage_breaks_it_and_what_came_before_still_goes_out(upstream: Protocol, client: Protocol) -> None:
    events = answer_events(upstream)
    machine = machine_for(upstream, client)
    out = machine.receive_data(b"".join(events[:5]) + b"data: <html>\n\n" + events[5])
    assert machine.state is StreamState.BROKEN
    assert machine.failure is not None
    assert (machine.failure.code, machine.failure.status_hint) == ("upstream_garbage", 502)
    with pytest.raises(LocalError):
        machine.receive_data(events[5])
    with pytest.raises(LocalError):
        machine.finish()
    alone = machine_for(upstream, client)
    assert out == alone.receive_data(b"".join(events[:5]))
    held(client, out + machine.fail(Problem.of(machine.failure)))


# Arguments are the model's words: they go out as they come, object or not. Calls may end in another order than they
# began, which the checker holds against the final list.
TOLERATED = {"messages-tool-input", "responses-output", "responses-usage"}


@st.composite
def damaged(draw: st.DrawFn, upstream: Protocol) -> bytes:
    """A stream with an event lost, repeated or moved, some bytes replaced, and perhaps its end missing."""
    events = answer_events(upstream)
    places = st.integers(0, len(events) - 1)
    moved = events.pop(draw(places))
    for _ in range(draw(st.integers(0, 2))):
        events.insert(draw(places), moved)
    data = bytearray(b"".join(events))
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        data[place] = draw(st.sampled_from(b'"{}[]:,01ax\n \\'))
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@given(st.sampled_from(PAIRS), st.data())
def test_whatever_an_upstream_sends_the_client_gets_a_legal_stream(
    pair: tuple[Protocol, Protocol], chosen: st.DataObject
) -> None:
    upstream, client = pair
    data = chosen.draw(damaged(upstream))
    machine = machine_for(upstream, client)
    out = machine.receive_data(data)
    if machine.state is not StreamState.BROKEN:
        out += machine.finish()
    if machine.failure is not None:
        out += machine.fail(Problem.of(machine.failure))
    assert machine.state in (StreamState.DONE, StreamState.ERRORED)
    checker = checker_for(client)
    checker.receive_data(out)
    checker.finish()
    assert {broken.rule for broken in checker.violations} <= TOLERATED


def test_an_event_too_large_breaks_it() -> None:
    machine = translation(CHAT, MESSAGES).stream(max_event_bytes=100)
    assert machine.receive_data(b"data: " + b"x" * 101) == b""
    assert machine.failure is not None
    assert machine.failure.code == "upstream_event_too_large"


ERRORS = {
    CHAT: streams.chat({"error": {"message": "busy", "code": 429}}),
    RESPONSES: streams.named({"type": "error", "code": "rate_limit_exceeded", "message": "busy"}),
    MESSAGES: streams.named({"type": "error", "error": {"type": "rate_limit_error", "message": "busy"}}),
}


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_an_upstreams_error_goes_on_in_the_clients_shape(upstream: Protocol, client: Protocol, taken: int) -> None:
    events = answer_events(upstream)
    machine = machine_for(upstream, client)
    out = machine.receive_data(b"".join(events[:taken]) + ERRORS[upstream])
    assert machine.state is StreamState.ERRORED
    assert machine.failure is None
    assert machine.problem is not None
    assert (machine.problem.status, machine.problem.message) == (429, "busy")
    assert machine.error is not None
    told = CODECS[client].decode_error(machine.error, 429)
    assert told is not None
    assert told.message == "busy"
    assert (machine.chunks == 0) == (taken == 0)
    assert (machine.receive_data(events[5]), machine.finish()) == (b"", b"")
    held(client, out)


def test_a_ping_is_no_part_of_the_answer() -> None:
    """The gateway may still answer with a status of its own after it."""
    machine = machine_for(MESSAGES, CHAT)
    assert machine.receive_data(streams.named({"type": "ping"}))
    assert machine.chunks == 0


# --- whole answers ---


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_whole_answer_arrives_whole(upstream: Protocol, client: Protocol) -> None:
    passed = translation(upstream, client).whole(answer_document(upstream))
    reply = CODECS[client].decode_reply(passed.body, Ledger())
    assert (passed.usage, reply.usage, passed.error) == (SPENT, SPENT, False)
    assert (said(reply), reply.finish.reason, reply.model) == (SAID, FinishReason.TOOL_CALLS, "fast")


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_whole_answer_can_be_told_as_a_stream(upstream: Protocol, client: Protocol) -> None:
    stream, usage = translation(upstream, client).as_stream(answer_document(upstream))
    reply = read(client, held(client, stream))
    assert (said(reply), reply.usage, usage) == (SAID, SPENT, SPENT)


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_what_is_no_answer_is_the_upstreams_fault(upstream: Protocol, client: Protocol) -> None:
    for read_as in (translation(upstream, client).whole, translation(upstream, client).as_stream):
        with pytest.raises(ProtocolError) as raised:
            read_as(b"<html>")
        assert raised.value.status_hint == 502


counts = st.integers(0, 2**40)
usages = st.builds(Usage, counts, counts, counts, counts, counts)
chains = st.lists(st.sampled_from(Protocol), min_size=2, max_size=6)


@given(usages, chains)
def test_usage_is_the_same_after_any_chain_of_whole_answers(usage: Usage, chain: list[Protocol]) -> None:
    body = answer_document(chain[0], usage=usage)
    for upstream, client in itertools.pairwise(chain):
        passed = translation(upstream, client).whole(body)
        assert passed.usage == usage
        body = passed.body
    assert said(CODECS[chain[-1]].decode_reply(body, Ledger())) == SAID


@given(usages, chains)
def test_usage_is_the_same_after_any_chain_of_streams(usage: Usage, chain: list[Protocol]) -> None:
    stream = answer_stream(chain[0], usage=usage)
    for upstream, client in itertools.pairwise(chain):
        machine = machine_for(upstream, client)
        stream = held(client, machine.receive_data(stream) + machine.finish())
        assert machine.usage == usage
    assert said(read(chain[-1], stream)) == SAID


@pytest.mark.parametrize(("upstream", "client"), [pair for pair in PAIRS if pair[0] is not MESSAGES])
def test_usage_that_nobody_reported_is_not_made_up_for_the_account(upstream: Protocol, client: Protocol) -> None:
    """Messages has no way to leave it out."""
    machine = machine_for(upstream, client)
    held(client, machine.receive_data(answer_stream(upstream, usage=None)) + machine.finish(), usage_known=False)
    assert machine.usage is None
    assert translation(upstream, client).whole(answer_document(upstream, usage=None)).usage is None


# --- stop sequences ---


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_stop_sequence_ends_the_answer_and_the_whole_is_accounted(upstream: Protocol, client: Protocol) -> None:
    """What comes after it was made, and paid for, all the same."""
    events = answer_events(upstream)
    machine = machine_for(upstream, client, stop=("STOP",))
    at, out = 0, b""
    while machine.state is not StreamState.DONE:
        out += machine.receive_data(events[at])
        at += 1
    assert at < len(events) - 3
    reply = read(client, held(client, out, usage_known=False))  # the client is not kept waiting for it
    assert said(reply) == [*SAID[:1], "Héllo, "]
    reason = FinishReason.STOP_SEQUENCE if client is MESSAGES else FinishReason.STOP
    assert reply.finish == Finish(reason, "STOP" if client is MESSAGES else None)
    assert [machine.receive_data(event) for event in events[at:]] == [b""] * (len(events) - at)
    assert (machine.finish(), machine.usage, machine.state) == (b"", SPENT, StreamState.DONE)


@pytest.mark.parametrize(("upstream", "client"), PAIRS)
def test_a_whole_answer_is_cut_there_as_well(upstream: Protocol, client: Protocol) -> None:
    given_body = answer_document(upstream)
    passed = translation(upstream, client, stop=("STOP",)).whole(given_body)
    reply = CODECS[client].decode_reply(passed.body, Ledger())
    assert (said(reply), passed.usage, reply.usage) == ([*SAID[:1], "Héllo, "], SPENT, SPENT)
    stream, usage = translation(upstream, client, stop=("STOP",)).as_stream(given_body)
    told = read(client, held(client, stream))
    assert (said(told), usage, told.usage) == ([*SAID[:1], "Héllo, "], SPENT, SPENT)


# --- names of tools ---


def renamed() -> ToolNames:
    """The client's own names for the tools in the upstream's answer."""
    names = ToolNames()
    names.wire(ToolRef("get_weather"), ToolKind.CUSTOM)
    names.wire(ToolRef("get_time"))
    return names


def custom_call(arguments: str) -> bytes:
    call = {"index": 0, "id": "c", "function": {"name": "get_weather", "arguments": arguments}}
    return streams.chat({"id": "1", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})


FINISHED = streams.chat({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}, "[DONE]")


def test_a_custom_tool_gets_its_input_as_text() -> None:
    machine = translation(CHAT, RESPONSES, names=renamed()).stream(max_event_bytes=MOST)
    out = machine.receive_data(custom_call('{"input":"*** Begin"}') + FINISHED) + machine.finish()
    (call,) = read(RESPONSES, held(RESPONSES, out, usage_known=False)).blocks
    assert call == ToolCall("c", ToolRef("get_weather"), "*** Begin", ToolKind.CUSTOM)


@pytest.mark.parametrize("upstream", Protocol)
def test_names_and_stop_sequences_go_together(upstream: Protocol) -> None:
    asked = translation(upstream, RESPONSES, names=renamed(), stop=("nowhere",))
    reply = CODECS[RESPONSES].decode_reply(asked.whole(answer_document(upstream)).body, Ledger())
    calls = [block for block in reply.blocks if isinstance(block, ToolCall)]
    assert [(call.tool.name, call.kind) for call in calls] == [
        ("get_weather", ToolKind.CUSTOM),
        ("get_time", ToolKind.FUNCTION),
    ]
    assert reply.usage == SPENT


def test_a_call_that_is_too_large_to_be_held_breaks_the_answer() -> None:
    piece = "x" * (MAX_CUSTOM_INPUT // 4)
    machine = translation(CHAT, RESPONSES, names=renamed()).stream(max_event_bytes=MAX_CUSTOM_INPUT)
    out = machine.receive_data(custom_call(""))
    more = {"index": 0, "function": {"arguments": piece}}
    event = streams.chat({"choices": [{"index": 0, "delta": {"tool_calls": [more]}}]})
    for _ in range(5):
        out += machine.receive_data(event)
    assert machine.failure is not None
    assert machine.failure.code == "upstream_call_too_large"
    held(RESPONSES, out + machine.fail(Problem.of(machine.failure)))


def test_nor_is_such_a_call_taken_in_a_whole_answer() -> None:
    call = {"id": "c", "function": {"name": "get_weather", "arguments": "x" * (MAX_CUSTOM_INPUT + 1)}}
    body = streams.chat({"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})[6:]
    with pytest.raises(ProtocolError) as raised:
        translation(CHAT, RESPONSES, names=renamed()).whole(body)
    assert (raised.value.code, raised.value.status_hint) == ("upstream_call_too_large", 502)


# --- what went wrong elsewhere ---


def call_piece(arguments: str, **more: object) -> dict[str, object]:
    return {"tool_calls": [{"index": 0, **more, "function": {"name": "get_weather", "arguments": arguments}}]}


@pytest.mark.parametrize("client", Protocol)
def test_text_between_the_pieces_of_a_calls_arguments_costs_neither(client: Protocol) -> None:
    """A block that was told to be over gets nothing more: here neither the call nor the text is over."""
    deltas = [
        {"content": "one "},
        call_piece('{"city":', id="call_1"),
        {"content": "two"},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    ]
    chunks = [{"id": "c1", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    machine = machine_for(CHAT, client)
    out = machine.receive_data(streams.chat(*chunks, finish, "[DONE]")) + machine.finish()
    reply = read(client, held(client, out, usage_known=False))
    texts = [block.text for block in reply.blocks if isinstance(block, ReplyText)]
    calls = [block for block in reply.blocks if isinstance(block, ToolCall)]
    assert "".join(texts) == "one two"
    assert [(call.id, call.arguments) for call in calls] == [("call_1", '{"city":"Oslo"}')]


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("client", Protocol)
def test_a_whole_answer_with_empty_arguments_and_no_words_is_one_call(client: Protocol, content: str | None) -> None:
    """Of an empty object, which every client can parse, and without an empty text beside it."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    body = streams.chat({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})[6:]
    written = translation(CHAT, client).whole(body).body
    (block,) = CODECS[client].decode_reply(written, Ledger()).blocks
    assert isinstance(block, ToolCall)
    assert (block.id, block.tool) == ("c", ToolRef("f"))
    assert (b'"input":{}' if client is MESSAGES else b'"arguments":"{}"') in written
    assert b'"text":""' not in written


NO_CONTENT = [
    (CHAT, b"{}"),
    (CHAT, b'{"choices":null}'),
    (CHAT, b'{"choices":[]}'),
    (CHAT, b'{"choices":[{"message":null}]}'),
    (RESPONSES, b'{"object":"response","status":"completed"}'),
    (MESSAGES, b'{"type":"message"}'),
    (MESSAGES, b'{"type":"message","content":null}'),
]


@pytest.mark.parametrize("client", Protocol)
@pytest.mark.parametrize(("upstream", "body"), NO_CONTENT)
def test_a_success_without_an_answer_in_it_is_the_upstreams_fault(
    upstream: Protocol, body: bytes, client: Protocol
) -> None:
    """Neither a fault of our own nor an answer of nothing."""
    for read_as in (translation(upstream, client).whole, translation(upstream, client).as_stream):
        with pytest.raises(ProtocolError) as raised:
            read_as(body)
        assert raised.value.status_hint == 502
