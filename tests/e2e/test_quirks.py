"""Where providers stray from their protocol, a client must not notice: each quirk, to clients of every protocol.

Through the SDKs' own stream helpers, and on the wire against the protocol's automaton, which knows what other SDKs than
Python's stumble over (wire.md 1.7). Numbers in names are those of spec.md, section 5: what went wrong elsewhere.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Final

import httpx
import msgspec
import pytest
from anthropic.types import ImageBlockParam, MessageParam, ToolResultBlockParam
from attrs import evolve, frozen
from openai.types.responses import ResponseInputParam

from capi_core.conformance import Violation, checker_for
from capi_core.protocols.kinds import Protocol
from tests.e2e.callers import CLOCK, PIXEL, WEATHER, Ask, Heard, Sdks, Tool, open_sdks
from tests.e2e.talks import TALKS
from tests.support.process import Capi

pytestmark = pytest.mark.slow

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
MODELS: Final = {CHAT: "demo-reasoner", RESPONSES: "demo-gpt", MESSAGES: "demo-claude"}
QUIRKS: Final = {
    RESPONSES: ("rotating_ids", "done_only", "empty_summary", "obfuscation"),
    MESSAGES: ("done_after_stop", "done_instead_of_stop", "no_event_names", "split_signature", "redacted_thinking"),
    CHAT: (
        "reasoning_text", "split_tool_id", "interleaved_calls", "choices_null", "filter_results_first",
        "duplicate_finish", "no_finish", "split_choices", "anthropic_body", "no_usage_details",
    ),
}  # fmt: skip
HOMES: Final = {quirk: home for home, quirks in QUIRKS.items() for quirk in quirks}

THINK: Final = Ask("What is capi?", think=True)
CALL: Final = Ask("call get_weather for Paris and read_clock", tools=(WEATHER, CLOCK), force=True)


def but(ask: Ask, **demo: object) -> Ask:
    """The same with those options for the provider."""
    return evolve(ask, demo=demo)


PATHS: Final = {CHAT: "/v1/chat/completions", RESPONSES: "/v1/responses", MESSAGES: "/v1/messages"}


@pytest.fixture(scope="module")
def sdks(shared_demo: Capi) -> Iterator[Sdks]:
    with open_sdks(shared_demo.url) as both:
        yield both


class Told(msgspec.Struct):
    type: str
    message: str


class Refusal(msgspec.Struct):
    """An error in either family's shape."""

    error: Told
    type: str | None = None


@frozen
class Door:
    """The way from a client's protocol to an upstream's."""

    sdks: Sdks
    client: Protocol
    upstream: Protocol

    def hear(self, ask: Ask, *, stream: bool = True) -> Heard:
        """The SDK's answer."""
        return TALKS[self.client](self.sdks, MODELS[self.upstream], stream=stream).say(ask)

    def wire(self, ask: Ask) -> bytes:
        """The event stream as it comes."""
        body = _body(self.client, MODELS[self.upstream], ask)
        base = str(self.sdks.anthropic.base_url).rstrip("/")
        answer = httpx.post(base + PATHS[self.client], json=body, timeout=10)
        assert answer.status_code == 200
        return answer.content

    def violations(self, ask: Ask) -> tuple[Violation, ...]:
        """What the automaton of the client's protocol has against the stream."""
        checker = checker_for(self.client)
        checker.receive_data(self.wire(ask))
        checker.finish()
        return checker.violations


def _body(client: Protocol, model: str, ask: Ask) -> Mapping[str, object]:
    said = [{"role": "user", "content": ask.words}]
    body: dict[str, object] = {"model": model, "stream": True}
    match client:
        case Protocol.CHAT:
            body |= {"messages": said, "stream_options": {"include_usage": True}}
            functions = [{"name": tool.name, "parameters": tool.schema} for tool in ask.tools]
            body |= (
                {"tools": [{"type": "function", "function": function} for function in functions]} if functions else {}
            )
            body |= {"tool_choice": "required"} if ask.force else {}
            body |= {"reasoning_effort": "medium"} if ask.think else {}
        case Protocol.RESPONSES:
            body |= {"input": said, "include": ["reasoning.encrypted_content"]}
            body |= {"tools": [{"type": "function", "name": t.name, "parameters": t.schema} for t in ask.tools]}
            body |= {"tool_choice": "required"} if ask.force else {}
            body |= {"reasoning": {"effort": "medium", "summary": "auto"}} if ask.think else {}
        case Protocol.MESSAGES:
            body |= {"messages": said, "max_tokens": 4000}
            body |= {"tools": [{"name": tool.name, "input_schema": tool.schema} for tool in ask.tools]}
            body |= {"tool_choice": {"type": "any"}} if ask.force else {}
            body |= {"thinking": {"type": "enabled", "budget_tokens": 2048}} if ask.think else {}
    return body


# Which entry of spec.md a quirk is about.
_ENTRIES: Final = {
    "interleaved_calls": "1", "split_tool_id": "3", "no_finish": "5", "duplicate_finish": "6", "choices_null": "6",
    "reasoning_text": "7", "split_choices": "7", "split_signature": "7",
}  # fmt: skip


def name_of(case: tuple[str, Protocol]) -> str:
    quirk, client = case
    return "-".join(filter(None, (_ENTRIES.get(quirk), quirk, "to", client.value)))


@pytest.fixture(params=list(product(HOMES, Protocol)), ids=name_of)
def case(request: pytest.FixtureRequest, sdks: Sdks) -> tuple[str, Door]:
    quirk, client = request.param
    return quirk, Door(sdks, client, HOMES[quirk])


def only(*cases: tuple[str, Protocol]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=name_of, indirect=True)


def every_way(client: Protocol | None = None) -> pytest.MarkDecorator:
    """For a test of all nine pairs, or of one client's three."""
    pairs = list(product(Protocol if client is None else (client,), Protocol))
    return pytest.mark.parametrize(
        ("client", "upstream"), pairs, ids=[f"{one.value}-to-{other.value}" for one, other in pairs]
    )


@cache
def _plain(door: Door, ask: Ask, stream: bool) -> Heard:
    return door.hear(ask, stream=stream)


def plain(door: Door, ask: Ask, *, stream: bool = True, quirk: str = "") -> Heard:
    """What the same upstream says without its quirk; but for what a quirk takes away."""
    heard = _plain(door, ask, stream)
    if quirk in {"empty_summary", "redacted_thinking"} or (quirk == "split_choices" and not stream):
        return evolve(heard, reasoning="")
    if quirk == "no_usage_details":
        return evolve(heard, tokens=evolve(heard.tokens, reasoning=0))
    return heard


def same(heard: Heard, other: Heard) -> bool:
    """Ids are never the same twice."""
    texts = (heard.text, heard.reasoning, heard.finish, heard.tokens) == (
        other.text, other.reasoning, other.finish, other.tokens,
    )  # fmt: skip
    calls = [[(call.name, call.arguments) for call in one.calls] for one in (heard, other)]
    return texts and calls[0] == calls[1]


# -- answers ----------------------------------------------------------------------------------------------------


@only(*product(HOMES, Protocol))
def test_a_streamed_answer_is_what_it_would_be_without_the_quirk(case: tuple[str, Door]) -> None:
    quirk, door = case
    for ask in (THINK, CALL):
        heard = door.hear(but(ask, quirks=[quirk]))
        assert same(heard, plain(door, ask, quirk=quirk))
        assert len({call.id for call in heard.calls}) == len(heard.calls)


@only(*product(HOMES, Protocol))
def test_a_whole_answer_is_what_it_would_be_without_the_quirk(case: tuple[str, Door]) -> None:
    quirk, door = case
    for ask in (THINK, CALL):
        assert same(door.hear(but(ask, quirks=[quirk]), stream=False), plain(door, ask, stream=False, quirk=quirk))


@only(*product(HOMES, Protocol))
def test_a_stream_is_legal_whatever_the_upstreams_was(case: tuple[str, Door]) -> None:
    """Also where Python's SDK would not notice and others would throw."""
    quirk, door = case
    for ask in (THINK, CALL):
        assert door.violations(but(ask, quirks=[quirk])) == ()


# -- spec.md, section 5: streams --------------------------------------------------------------------------------


SHAPES: Final[tuple[Mapping[str, object], ...]] = (
    {"line_end": "cr"}, {"line_end": "crlf"}, {"split": 1}, {"fault": "comments"},
    {"fault": "keepalive", "silence_ms": 40, "delay_ms": 10},
)  # fmt: skip


def shape_of(shape: Mapping[str, object]) -> str:
    return "-".join(map(str, next(iter(shape.items()))))


@every_way()
@pytest.mark.parametrize("shape", SHAPES, ids=shape_of)
def test_10_every_shape_of_event_stream(
    sdks: Sdks, client: Protocol, upstream: Protocol, shape: Mapping[str, object]
) -> None:
    """Any line end, torn anywhere, with comments in between."""
    door = Door(sdks, client, upstream)
    assert same(door.hear(but(THINK, **shape)), plain(door, THINK))


@pytest.mark.parametrize("client", Protocol, ids=lambda client: client.value)
@pytest.mark.parametrize("upstream", [CHAT, MESSAGES], ids=lambda upstream: upstream.value)
@pytest.mark.parametrize("fault", ["no_done", "no_blank"])
def test_10_a_stream_without_its_end_mark(sdks: Sdks, client: Protocol, upstream: Protocol, fault: str) -> None:
    """Or even without its last blank line. Responses has no such mark: its last event is the answer."""
    door = Door(sdks, client, upstream)
    assert same(door.hear(but(THINK, fault=fault)), plain(door, THINK))


@every_way()
@pytest.mark.parametrize("style", ["normal", "unasked", "with_finish", "every_chunk"])
def test_4_usage_arrives_wherever_the_upstream_puts_it(
    sdks: Sdks, client: Protocol, upstream: Protocol, style: str
) -> None:
    """With the finish, after it in a chunk of its own, on every chunk."""
    door = Door(sdks, client, upstream)
    assert door.hear(but(THINK, usage=style)).tokens == plain(door, THINK).tokens


@every_way()
@pytest.mark.parametrize("fault", ["end", "bad_json", "garbage", "reset"])
def test_5_a_stream_that_breaks_off_never_ends_well(
    sdks: Sdks, client: Protocol, upstream: Protocol, fault: str
) -> None:
    """Neither the end mark of the protocol nor a reason to stop, but one error."""
    ends = {
        CHAT: (b"[DONE]", b'"finish_reason":"'),
        RESPONSES: (b"response.completed", b"response.incomplete"),
        MESSAGES: (b"message_stop", b'"stop_reason":"'),
    }
    sent = Door(sdks, client, upstream).wire(but(THINK, fault=fault, at=3))
    assert not any(end in sent for end in ends[client])
    assert failures(client, sent) == 1


@every_way()
@pytest.mark.parametrize("fault", ["error_event", "failed"])
def test_22_an_error_in_the_middle_is_told_once_and_in_the_clients_shape(
    sdks: Sdks, client: Protocol, upstream: Protocol, fault: str
) -> None:
    door = Door(sdks, client, upstream)
    assert failures(client, door.wire(but(THINK, fault=fault, at=3))) == 1
    assert door.violations(but(THINK, fault=fault, at=3)) == ()


def failures(client: Protocol, sent: bytes) -> int:
    """How many error events there are, in the shape of the client's protocol."""
    match client:
        case Protocol.CHAT:
            return sent.count(b'data: {"error":{"message":')
        case Protocol.MESSAGES:
            return sent.count(b'event: error\ndata: {"type":"error","error":{"type":')
        case Protocol.RESPONSES:
            return sent.count(b"event: response.failed\n") + sent.count(b"event: error\n")


@every_way(MESSAGES)
@pytest.mark.parametrize("quirk", ["interleaved_calls", "duplicate_finish"])
def test_1_and_6_blocks_are_closed_once_and_the_message_ends_once(
    sdks: Sdks, client: Protocol, upstream: Protocol, quirk: str
) -> None:
    """Two tools whose fragments take turns are two blocks, one after the other."""
    sent = Door(sdks, client, upstream).wire(but(CALL, quirks=[quirk]))
    kinds = [line.removeprefix(b"event: ") for line in sent.splitlines() if line.startswith(b"event: ")]
    marks = [kind for kind in kinds if kind in {b"content_block_start", b"content_block_stop"}]
    assert marks == [b"content_block_start", b"content_block_stop"] * (len(marks) // 2)
    assert kinds.count(b"message_delta") == kinds.count(b"message_stop") == 1
    assert kinds[-1] == b"message_stop"


@every_way(MESSAGES)
def test_7_a_signature_comes_in_one_delta(sdks: Sdks, client: Protocol, upstream: Protocol) -> None:
    """Both of Anthropic's SDKs keep only the last of several."""
    quirks = ["reasoning_text", "split_signature"]
    assert Door(sdks, client, upstream).wire(but(THINK, quirks=quirks)).count(b'"signature_delta"') == 1


# -- spec.md, section 5: requests -------------------------------------------------------------------------------

ASKED: Final[list[MessageParam]] = [
    {"role": "user", "content": "the weather in Paris"},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}],
    },
]
IMAGE: Final[ImageBlockParam] = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
}
RESULTS: Final[Mapping[str, ToolResultBlockParam]] = {
    "nothing": {"type": "tool_result", "tool_use_id": "toolu_1"},
    "error": {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "no such city"},
    "image": {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE]},
    "text and image": {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "see there"}, IMAGE],
    },
}
SEEING: Final = {**MODELS, CHAT: "demo-chat"}


@pytest.mark.parametrize("upstream", Protocol, ids=lambda upstream: upstream.value)
@pytest.mark.parametrize("kind", RESULTS)
def test_12_a_tool_result_of_every_kind(sdks: Sdks, upstream: Protocol, kind: str) -> None:
    message = sdks.anthropic.messages.create(
        model=SEEING[upstream], max_tokens=1000, messages=[*ASKED, {"role": "user", "content": [RESULTS[kind]]}]
    )
    (block,) = message.content
    assert block.type == "text"
    assert says_it_got_the_result(upstream, block.text, image="image" in kind)


def says_it_got_the_result(upstream: Protocol, text: str, *, image: bool) -> bool:
    """A tool's message in Chat Completions has no image: there, a user's message right after brings it."""
    return ("You sent an image." if image and upstream is CHAT else "get_weather answered: ") in text


@pytest.mark.parametrize("client", Protocol, ids=lambda client: client.value)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_12_thinking_that_is_not_shown_goes_back_too(sdks: Sdks, client: Protocol, stream: bool) -> None:
    """A turn of nothing else but a redacted block and a call: the provider checks the block's data."""
    talk = TALKS[client](sdks, MODELS[MESSAGES], stream=stream)
    ask = Ask("the weather in Paris", tools=(WEATHER,), think=True, demo={"quirks": ["redacted_thinking"]})
    heard = talk.say(ask)
    assert (heard.reasoning, len(heard.calls)) == ("", 1)
    assert heard.seal
    assert talk.answer("18 °C").text == "get_weather answered: “18 °C”."


@every_way()
def test_13_a_tool_without_arguments(sdks: Sdks, client: Protocol, upstream: Protocol) -> None:
    """Is called with an empty object, which every client can parse."""
    heard = Door(sdks, client, upstream).hear(Ask("call refresh", tools=(Tool("refresh"),)))
    assert [(call.name, call.arguments) for call in heard.calls] == [("refresh", {})]


@pytest.mark.parametrize("upstream", Protocol, ids=lambda upstream: upstream.value)
def test_19_the_old_limit_of_chat_holds_everywhere(sdks: Sdks, upstream: Protocol) -> None:
    """`max_tokens` is `max_completion_tokens`, whatever the upstream calls it."""
    whole = sdks.openai.chat.completions.create(
        model=MODELS[upstream], messages=[{"role": "user", "content": "What is capi?"}], max_tokens=30
    )
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 30)


@every_way(RESPONSES)
def test_20_no_status_is_null_and_one_that_comes_back_does_no_harm(
    sdks: Sdks, client: Protocol, upstream: Protocol
) -> None:
    assert b'"status":null' not in Door(sdks, client, upstream).wire(CALL)
    asked: ResponseInputParam = [
        {"role": "user", "content": "the weather in Paris"},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "18", "status": None},
    ]
    assert "answered: “18”" in sdks.openai.responses.create(model=MODELS[upstream], input=asked).output_text


@pytest.mark.parametrize("upstream", Protocol, ids=lambda upstream: upstream.value)
def test_21_untyped_items_and_images_in_a_tools_output(sdks: Sdks, upstream: Protocol) -> None:
    asked: ResponseInputParam = [
        {"role": "user", "content": "the weather in Paris"},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [
                {"type": "input_text", "text": "see there"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
            ],
        },
    ]
    text = sdks.openai.responses.create(model=SEEING[upstream], input=asked).output_text
    assert says_it_got_the_result(upstream, text, image=True)


@pytest.mark.parametrize("client", Protocol, ids=lambda client: client.value)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"{}", b'{"model":"demo-all"}', b'{"model":"demo-all","messages":5,"input":5}',
     b'{"model":5,"messages":[],"input":[]}', b'{"model":"demo-all","messages":null,"input":null,"max_tokens":9}'],
)  # fmt: skip
def test_28_a_body_that_is_no_request_is_told_once_and_in_the_clients_shape(
    shared_demo: Capi, client: Protocol, body: bytes
) -> None:
    """A 400 of the protocol's own shape, whose message is a sentence and not JSON again."""
    answer = httpx.post(shared_demo.url + PATHS[client], content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    told = msgspec.json.decode(answer.content, type=Refusal)
    assert told.error.type == "invalid_request_error"
    assert (told.type == "error") is (client is MESSAGES)
    assert told.error.message
    assert '{"' not in told.error.message
