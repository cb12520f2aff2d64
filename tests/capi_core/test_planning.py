"""Planning: what is asked of which upstream, in which protocol, with which headers, and how its answer is read."""

import itertools
import json

import pytest

from capi_core.aliases import Resolution
from capi_core.commands import Operation
from capi_core.errors import ProtocolError
from capi_core.headers import Headers, find, upstream_request_headers
from capi_core.planning import Plan, Planner
from capi_core.protocols import embeddings
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.routing import UpstreamTraits
from tests.support import streams
from tests.support.streams import SPENT, answer_document, answer_stream

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
PAIRS = list(itertools.product(Protocol, Protocol))
OPERATIONS = {CHAT: Operation.CHAT, RESPONSES: Operation.RESPONSES, MESSAGES: Operation.MESSAGES}
RESOLUTION = Resolution("lab", "up-2026", "fast", renames=True)
PROMPT = "a secret prompt"
MINIMAL: dict[Protocol, dict[str, object]] = {
    CHAT: {"messages": [{"role": "user", "content": PROMPT}]},
    RESPONSES: {"input": PROMPT},
    MESSAGES: {"max_tokens": 900, "messages": [{"role": "user", "content": PROMPT}]},
}


def planner(*client_headers: tuple[bytes, bytes]) -> Planner:
    return Planner("req_1", 9, client_headers, 64 * 1024)


def plan(
    client: Protocol,
    upstream: Protocol,
    *client_headers: tuple[bytes, bytes],
    traits: UpstreamTraits | None = None,
    record: bytes | None = None,
    **members: object,
) -> Plan:
    body = json.dumps({"model": "fast", **MINIMAL[client], **members}).encode()
    request = CODECS[client].read(body)
    known = UpstreamTraits(protocols=(upstream,)) if traits is None else traits
    return planner(*client_headers).plan(client, request, RESOLUTION, record, known)


def sent(asked: Plan) -> dict[str, object]:
    found = json.loads(asked.body)
    assert isinstance(found, dict)
    return found


# --- what is asked ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_request_goes_in_the_upstreams_protocol_under_its_name(
    client: Protocol, upstream: Protocol, stream: bool
) -> None:
    asked = plan(client, upstream, stream=stream)
    assert (asked.upstream, asked.operation) == ("lab", OPERATIONS[upstream])
    assert (sent(asked)["model"], sent(asked).get("stream", False)) == ("up-2026", stream)
    assert asked.headers[:4] == upstream_request_headers(stream=stream, request_id="req_1")
    assert (asked.answers.machine is not None) == stream
    assert asked.answers.codec is CODECS[upstream]
    assert PROMPT in asked.body.decode()
    assert PROMPT not in repr(asked), "a plan that ends in a log takes no prompt with it"


@pytest.mark.parametrize("client", Protocol)
def test_the_models_own_record_decides_before_the_configuration(client: Protocol) -> None:
    record = b'{"id":"up-2026","supported_endpoints":["/responses"]}'
    assert plan(client, CHAT, record=record).operation is Operation.RESPONSES


def test_a_model_in_no_protocol_that_generates_text_is_refused() -> None:
    with pytest.raises(ProtocolError) as raised:
        plan(CHAT, CHAT, traits=UpstreamTraits(protocols=()))
    assert (raised.value.code, raised.value.param, raised.value.status_hint) == ("model_not_served", "model", 400)


def test_usage_is_only_asked_for_where_it_may_be() -> None:
    for client in (CHAT, MESSAGES):
        for ask in (True, False):
            asked = plan(client, CHAT, traits=UpstreamTraits(ask_usage=ask), stream=True)
            assert ("stream_options" in sent(asked)) == ask


def test_embeddings_pass() -> None:
    request = embeddings.decode_request(b'{"input":"x","model":"fast"}')
    asked = planner().plan_embeddings(request, RESOLUTION)
    assert (asked.operation, sent(asked)) == (Operation.EMBEDDINGS, {"input": "x", "model": "up-2026"})
    assert (asked.answers.machine, asked.answers.ledger.total) == (None, 0)
    assert asked.answers.codec is CODECS[CHAT]
    passed = asked.answers.whole(b'{"model":"up-2026","usage":{"prompt_tokens":3}}')
    assert passed.body == b'{"model":"fast","usage":{"prompt_tokens":3}}'
    with pytest.raises(AssertionError):
        asked.answers.as_stream(b"{}")
    with pytest.raises(AssertionError):
        asked.answers.error_status(b"{}")


def test_embeddings_under_the_upstreams_own_name_are_not_touched() -> None:
    resolution = Resolution("lab", "up-2026", "up-2026", renames=False)
    asked = planner().plan_embeddings(embeddings.decode_request(b'{"model": "up-2026"}'), resolution)
    answer = b'{"model":"something else"}'
    assert (asked.body, asked.answers.whole(answer).body) == (b'{"model": "up-2026"}', answer)


# --- strict fidelity ---


def test_a_translation_that_loses_something_is_told_of() -> None:
    asked = plan(CHAT, MESSAGES, seed=7, logit_bias={"5": 1})
    assert asked.answers.ledger.losses == 2
    assert asked.answers.ledger.header() == "lossy; n=2"


def test_where_the_operator_is_strict_it_is_refused() -> None:
    strict = UpstreamTraits(protocols=(MESSAGES,), strict_fidelity=True)
    with pytest.raises(ProtocolError) as raised:
        plan(CHAT, MESSAGES, traits=strict, seed=7, logit_bias={"5": 1})
    assert (raised.value.code, raised.value.status_hint) == ("lossy_translation", 400)
    assert raised.value.param in ("seed", "logit_bias")
    assert "seed" in str(raised.value)
    assert "logit_bias" in str(raised.value)
    assert "2 of its parts" in str(raised.value)
    assert "messages protocol" in str(raised.value)


def test_of_many_losses_a_few_are_named() -> None:
    strict = UpstreamTraits(protocols=(MESSAGES,), strict_fidelity=True)
    with pytest.raises(ProtocolError) as raised:
        plan(
            CHAT,
            MESSAGES,
            traits=strict,
            seed=7,
            logit_bias={"5": 1},
            presence_penalty=1,
            frequency_penalty=1,
            logprobs=True,
            top_logprobs=2,
            prediction={},
        )
    assert ", ...)" in str(raised.value)
    assert str(raised.value).partition("(")[2].partition(")")[0].count(",") == 5


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_strict_upstream_is_asked_what_loses_nothing(client: Protocol, upstream: Protocol) -> None:
    strict = UpstreamTraits(protocols=(upstream,), strict_fidelity=True)
    asked = plan(client, upstream, traits=strict)
    assert asked.answers.ledger.losses == 0


def test_a_request_that_passes_is_never_lossy() -> None:
    strict = UpstreamTraits(strict_fidelity=True)
    assert sent(plan(CHAT, CHAT, traits=strict, seed=7, invented=1))["invented"] == 1


# --- the headers that Messages is versioned by ---

VERSION, BETA = b"anthropic-version", b"anthropic-beta"


def versions(headers: Headers) -> tuple[bytes | None, bytes | None]:
    return find(headers, VERSION), find(headers, BETA)


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_they_go_to_messages_upstreams_only(client: Protocol, upstream: Protocol) -> None:
    """With a translated request they are the gateway's own: the client's speak of its own protocol."""
    told = ((VERSION, b"2026-10-21"), (BETA, b"x-1,y-2"))
    found = versions(plan(client, upstream, *told).headers)
    if upstream is not MESSAGES:
        assert found == (None, None)
    elif client is MESSAGES:
        assert found == (b"2026-10-21", b"x-1,y-2")
    else:
        assert found == (b"2023-06-01", None)


@pytest.mark.parametrize("client", Protocol)
def test_the_operators_betas_go_with_all_requests(client: Protocol) -> None:
    traits = UpstreamTraits(protocols=(MESSAGES,), betas=("own-1", "x-1"))
    found = versions(plan(client, MESSAGES, (BETA, b"x-1"), traits=traits).headers)
    assert found == (b"2023-06-01", b"x-1,own-1" if client is MESSAGES else b"own-1,x-1")


# --- counting tokens ---


def test_a_count_passes_with_its_headers() -> None:
    request = CODECS[MESSAGES].read(b'{"model":"fast","messages":[]}')
    traits = UpstreamTraits(protocols=(MESSAGES,), betas=("own-1",))
    asked = planner((VERSION, b"2024-01-01")).pass_count(request, RESOLUTION, traits)
    assert (asked.operation, sent(asked)) == (Operation.COUNT_TOKENS, {"model": "up-2026", "messages": []})
    assert versions(asked.headers) == (b"2024-01-01", b"own-1")
    passed = asked.answers.whole(b'{"input_tokens":7}')
    assert (passed.body, passed.usage, passed.error) == (b'{"input_tokens":7}', None, False)


def test_a_count_is_a_document_whatever_the_request_says() -> None:
    request = CODECS[MESSAGES].read(b'{"model":"fast","messages":[],"stream":true}')
    asked = planner().pass_count(request, RESOLUTION, UpstreamTraits(protocols=(MESSAGES,)))
    assert asked.answers.machine is None
    assert find(asked.headers, b"accept") == b"application/json"


# --- stop sequences ---


def stops_at(asked: Plan, upstream: Protocol) -> bool:
    """Whether the answer is cut at the word STOP here."""
    whole = asked.answers.whole(answer_document(upstream))
    assert whole.usage == SPENT
    return b"STOP world" not in whole.body


def test_a_responses_upstream_cannot_be_told_them() -> None:
    asked = plan(CHAT, RESPONSES, stop=["STOP"])
    assert "stop" not in sent(asked)
    assert asked.answers.ledger.losses == 0, "the client loses nothing by it"
    assert stops_at(asked, RESPONSES)


@pytest.mark.parametrize(
    ("sequences", "here"), [(["1", "2", "3", "STOP"], False), (["1", "2", "3", "4", "STOP"], True)]
)
def test_a_chat_upstream_takes_four(sequences: list[str], here: bool) -> None:
    asked = plan(MESSAGES, CHAT, stop_sequences=sequences)
    assert sent(asked)["stop"] == sequences[:4]
    assert stops_at(asked, CHAT) == here


def test_a_messages_upstream_takes_all() -> None:
    many = ["STOP", *"123456"]
    asked = plan(RESPONSES, MESSAGES)
    assert not stops_at(asked, MESSAGES)
    told = plan(CHAT, MESSAGES, stop=many)
    assert sent(told)["stop_sequences"] == many
    assert not stops_at(told, MESSAGES)


# --- how the answer is read ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_answer_arrives_with_its_usage(client: Protocol, upstream: Protocol, stream: bool) -> None:
    answers = plan(client, upstream, stream=stream).answers
    passed = answers.whole(answer_document(upstream))
    assert (passed.usage, passed.error, json.loads(passed.body)["model"]) == (SPENT, False, "fast")
    told, usage = answers.as_stream(answer_document(upstream))
    decoder = CODECS[client].stream_decoder(answers.ledger, max_event_bytes=64 * 1024)
    assert decoder.receive_data(told)
    assert usage == SPENT
    if answers.machine is not None:
        assert answers.machine.receive_data(answer_stream(upstream))
        assert answers.machine.usage == SPENT


@pytest.mark.parametrize("client", Protocol)
def test_copilots_chat_may_answer_as_anthropic_does(client: Protocol) -> None:
    """A text that is about choices is still no answer of Chat."""
    answers = plan(client, CHAT).answers
    foreign = answer_document(MESSAGES, words=["choices"])
    assert b'"choices"' in foreign
    passed = answers.whole(foreign)
    reply = CODECS[client].decode_reply(passed.body, answers.ledger)
    assert (len(reply.blocks), reply.model, passed.usage, reply.usage) == (4, "fast", SPENT, SPENT)
    told, usage = answers.as_stream(foreign)
    assert (b"choices" in told, usage) == (True, SPENT)


@pytest.mark.parametrize("body", [b'{"choices":[],"x":{"type":"message"}}', b'{"type":"message"', b'"type":"message"'])
def test_what_only_looks_like_that_is_read_as_chat(body: bytes) -> None:
    answers = plan(CHAT, CHAT).answers
    try:
        assert answers.whole(body).body == body
    except ProtocolError as error:
        assert error.code == "upstream_garbage"  # noqa: PT017 - either is right, for the one that it is


CALLED = b'{"message":{"role":"assistant","tool_calls":[%b]},"finish_reason":"tool_calls"}' % (
    b'{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}'
)
SPLIT = b'{"id":"a","model":"up","choices":[%b,%b]}' % (
    b'{"message":{"role":"assistant","content":"I look."},"finish_reason":"tool_calls"}',
    CALLED,
)


def test_copilots_split_answer_is_one_for_a_client_that_asked_for_one() -> None:
    """Wire.md 1.8: text and calls of one answer come as choices of their own, without an index."""
    (choice,) = json.loads(plan(CHAT, CHAT).answers.whole(SPLIT).body)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["c1"]


def test_several_answers_are_left_apart() -> None:
    request = CODECS[CHAT].read(b'{"model":"fast","n":2,"messages":[{"role":"user","content":"hi"}]}')
    resolution = Resolution("lab", "up", "up", renames=False)
    asked = planner().plan(CHAT, request, resolution, None, UpstreamTraits(protocols=(CHAT,)))
    assert asked.answers.whole(SPLIT).body == SPLIT


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"content":"\\"finish_reason\\" \\"finish_reason\\""},"finish_reason":"stop"}]}',
        b'{"choices":[{"finish_reason":"stop"}],"x":{"finish_reason":"stop"}}',
        b'{"choices":{"finish_reason":1,"finish_reason":2}}',
    ],
)
def test_one_choice_is_one_choice(body: bytes) -> None:
    assert plan(CHAT, CHAT).answers.whole(body).body == body


ERRORS = {
    CHAT: streams.chat({"error": {"message": "busy", "code": 429}}),
    RESPONSES: streams.named({"type": "error", "code": "rate_limit_exceeded", "message": "busy"}),
    MESSAGES: streams.named({"type": "error", "error": {"type": "rate_limit_error", "message": "busy"}}),
}


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_in_a_stream_means_a_status(client: Protocol, upstream: Protocol) -> None:
    answers = plan(client, upstream, stream=True).answers
    machine = answers.machine
    assert machine is not None
    machine.receive_data(ERRORS[upstream])
    assert machine.error is not None
    assert answers.error_status(machine.error) == 429


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_that_says_nothing_is_the_upstreams_fault(client: Protocol, upstream: Protocol) -> None:
    for stream in (False, True):
        assert plan(client, upstream, stream=stream).answers.error_status(b"{}") == 502


# --- Copilot ---


def seat(*protocols: Protocol) -> UpstreamTraits:
    return UpstreamTraits(protocols=protocols, copilot=True)


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_copilot_is_told_who_began_a_request(client: Protocol, upstream: Protocol) -> None:
    """By the client's own words, in whatever protocol they are asked."""
    asked = plan(client, upstream, traits=seat(upstream))
    assert find(asked.headers, b"x-initiator") == b"user"
    assert find(asked.headers, b"copilot-vision-request") is None
    assert find(plan(client, upstream).headers, b"x-initiator") is None


def test_copilot_is_told_of_a_tools_result_and_of_images() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    turns = [
        {"role": "user", "content": [image]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    for upstream in Protocol:
        asked = plan(CHAT, upstream, traits=seat(upstream), messages=turns)
        assert find(asked.headers, b"x-initiator") == b"agent"
        assert find(asked.headers, b"copilot-vision-request") == b"true"


def test_item_ids_of_another_seat_do_not_go_to_copilot() -> None:
    """They belong to the account that made them (wire.md 1.8)."""
    said = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
    given = [said, {"type": "message", "role": "user", "content": "y"}]
    assert "msg_1" in plan(RESPONSES, RESPONSES, input=given).body.decode()
    assert "msg_1" not in plan(RESPONSES, RESPONSES, traits=seat(RESPONSES), input=given).body.decode()
