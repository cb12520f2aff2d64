"""Any conversation becomes a request that Chat's servers take; what Chat can say comes back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
    CustomTool,
    Document,
    Effort,
    FunctionTool,
    HostedTool,
    Image,
    Opaque,
    OutputFormat,
    OutputKind,
    Reasoning,
    ReasoningRequest,
    Refusal,
    Role,
    Signature,
    Source,
    SourceKind,
    Text,
    ThinkingMode,
    ToolCall,
    ToolChoice,
    ToolKind,
    ToolMode,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.members import JSONObject
from capi_core.protocols.chat.request_decoder import decode_request
from capi_core.protocols.chat.request_encoder import MOST_STOPS, encode_request
from capi_core.protocols.codec import EncodedRequest
from capi_core.protocols.kinds import Protocol
from capi_core.target import ReasoningMember, Target
from tests.support.chat_requests import check_legal

HI = (Turn(Role.USER, (Text("hi"),)),)


def encode(given: Conversation, target: Target | None = None, ledger: Ledger | None = None) -> dict[str, object]:
    body = encode_request(given, target or Target("up"), ledger or Ledger()).body
    check_legal(body)
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def changed(ledger: Ledger) -> list[tuple[Change, str]]:
    return [(entry.change, entry.path) for entry in ledger]


def test_the_least_request() -> None:
    found = encode(Conversation(Protocol.MESSAGES, "m", HI))
    assert found == {"model": "up", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("turns", [(), (Turn(Role.USER, (Text(""),)),)])
def test_a_conversation_of_which_nothing_is_left_is_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(Conversation(Protocol.MESSAGES, "m", turns))
    assert (caught.value.code, caught.value.status_hint) == ("empty_conversation", 400)


@pytest.mark.parametrize(("asks", "options"), [(True, {"include_usage": True}), (False, None)])
def test_a_stream_asks_for_usage_where_that_is_taken(asks: bool, options: object) -> None:
    found = encode(Conversation(Protocol.MESSAGES, "m", HI, stream=True), Target("up", ask_usage=asks))
    assert (found["stream"], found.get("stream_options")) == (True, options)


@pytest.mark.parametrize(
    ("asked", "most", "sent", "noted"),
    [(100, None, 100, 0), (100, 50, 50, 1), (50, 50, 50, 0), (20, 50, 20, 0), (None, 50, None, 0)],
)
def test_the_limit_is_kept_to_what_the_model_gives(
    asked: int | None, most: int | None, sent: int | None, noted: int
) -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, max_output_tokens=asked)
    target = Target("up", max_output_tokens=most, max_tokens_member="max_tokens")
    assert encode(given, target, ledger).get("max_tokens") == sent
    assert ledger.losses == noted


def test_sampling_is_sent_where_it_is_taken() -> None:
    given = Conversation(Protocol.MESSAGES, "m", HI, temperature=0.5, top_p=0.9, top_k=5)
    found = encode(given)
    assert (found["temperature"], found["top_p"], "top_k" in found) == (0.5, 0.9, False)
    ledger = Ledger()
    assert "temperature" not in encode(given, Target("up", sampling=False), ledger)
    assert changed(ledger) == [(Change.DROPPED, path) for path in ("$.temperature", "$.top_p", "$.top_k")]


def test_four_stop_sequences_are_sent() -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, stop=("", "a", "b", "c", "d", "e"))
    assert encode(given, None, ledger)["stop"] == ["a", "b", "c", "d"]
    assert (MOST_STOPS, ledger.entries) == (4, ())
    assert "stop" not in encode(Conversation(Protocol.MESSAGES, "m", HI, stop=("",)))


def test_how_hard_to_reason() -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, reasoning=ReasoningRequest(effort=Effort.MAX))
    assert encode(given)["reasoning_effort"] == "max"
    assert encode(given, Target("up", efforts=("low",)), ledger)["reasoning_effort"] == "low"
    assert "reasoning_effort" not in encode(given, Target("up", efforts=()), ledger)
    assert [change for change, _ in changed(ledger)] == [Change.ALTERED] * 2


def test_what_the_text_must_be() -> None:
    ledger = Ledger()
    schema = OutputFormat(OutputKind.JSON_SCHEMA, None, b'{"type":"object"}')
    found = encode(Conversation(Protocol.MESSAGES, "m", HI, output=schema, verbosity="huge"), None, ledger)
    assert found["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}},
    }
    assert changed(ledger) == [(Change.DEFAULTED, "$.output.name"), (Change.DROPPED, "$.verbosity")]
    plain = encode(Conversation(Protocol.CHAT, "m", HI, output=OutputFormat(OutputKind.JSON_OBJECT), verbosity="low"))
    assert (plain["response_format"], plain["verbosity"]) == ({"type": "json_object"}, "low")


def test_who_asks_is_told_in_64_characters() -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, user="u" * 65, cache_key="k" * 64, service_tier="standard_only")
    found = encode(given, None, ledger)
    user = found["user"]
    assert isinstance(user, str)
    assert (len(user), user != "u" * 64, found["prompt_cache_key"]) == (64, True, "k" * 64)
    assert changed(ledger) == [(Change.ALTERED, "$.user"), (Change.DROPPED, "$.service_tier")]
    for sender, tier in ((Protocol.RESPONSES, "flex"), (Protocol.MESSAGES, "auto")):
        assert encode(Conversation(sender, "m", HI, service_tier=tier))["service_tier"] == tier


def test_metadata_is_for_answers_that_are_stored() -> None:
    ledger = Ledger()
    assert "metadata" not in encode(Conversation(Protocol.RESPONSES, "m", HI, metadata=b'{"a":"b"}'), None, ledger)
    assert changed(ledger) == [(Change.DROPPED, "$.metadata")]


def test_names_that_change_are_known_afterwards() -> None:
    ref = ToolRef("spawn it", "multi")
    call = Turn(Role.ASSISTANT, (ToolCall("c", ref, "{}"),))
    given = Conversation(Protocol.RESPONSES, "m", (*HI, call), (FunctionTool(ref),))
    encoded = encode_request(given, Target("up"), Ledger())
    (tool,) = json.loads(encoded.body)["tools"]
    name = tool["function"]["name"]
    assert encoded.names.client(name) == (ref, ToolKind.FUNCTION)
    assert json.loads(encoded.body)["messages"][1]["tool_calls"][0]["function"]["name"] == name


def test_a_custom_tool_is_known_as_one_whatever_a_past_call_of_it_says() -> None:
    call = Turn(Role.ASSISTANT, (ToolCall("c", ToolRef("p"), "{}"),))
    given = Conversation(Protocol.RESPONSES, "m", (*HI, call), (CustomTool(ToolRef("p")),))
    names = encode_request(given, Target("up"), Ledger()).names
    assert names.client("p") == (ToolRef("p"), ToolKind.CUSTOM)


# -- any conversation ------------------------------------------------------------------------------------------------

words = st.text(max_size=6)
some = st.text(min_size=1, max_size=6)
names = st.text("abcXYZ_-09", min_size=1, max_size=8)
marks = st.none() | st.builds(CacheMark, st.none() | st.just("5m"))
refs = st.builds(ToolRef, words | st.text("a.", min_size=60, max_size=70), st.none() | st.just("space"))
ids = st.sampled_from(["a", "b", "c" * 41, ""])
sources = st.builds(Source, st.sampled_from(SourceKind), words, st.none() | st.just("image/png"))
signatures = st.none() | st.builds(Signature, st.sampled_from(Protocol), words)
inner = st.one_of(
    st.builds(Text, words, marks),
    st.builds(Image, sources, st.none() | st.just("low"), marks),
    st.builds(Document, sources, st.none() | words, marks),
)
any_block: st.SearchStrategy[Block] = st.one_of(
    inner,
    st.builds(Audio, words, st.just("wav")),
    st.builds(Refusal, words),
    st.builds(Reasoning, st.lists(words, max_size=2).map(tuple), signatures),
    st.builds(ToolCall, ids, refs, words, st.sampled_from(ToolKind), marks),
    st.builds(ToolResult, ids, st.lists(inner, max_size=2).map(tuple), st.booleans()),
    st.builds(Opaque, st.sampled_from(Protocol), st.just("x"), st.just(b'{"type":"x"}')),
)
any_tool = st.one_of(
    st.builds(FunctionTool, refs, st.none() | words, st.none() | st.just(b'{"type":"object"}')),
    st.builds(CustomTool, refs, st.none() | words, st.none() | st.just(b"{}")),
    st.builds(HostedTool, st.sampled_from([Protocol.MESSAGES, Protocol.RESPONSES]), st.just("t"), st.just(b"{}")),
)
any_conversation = st.builds(
    Conversation,
    protocol=st.sampled_from(Protocol),
    model=st.just("m"),
    turns=st.lists(st.builds(Turn, st.sampled_from(Role), st.lists(any_block, max_size=4).map(tuple)), max_size=6).map(
        tuple
    ),
    tools=st.lists(any_tool, max_size=4).map(tuple),
    tool_choice=st.none() | st.builds(ToolChoice, st.sampled_from(ToolMode), st.lists(refs, max_size=2).map(tuple)),
    stop=st.lists(words, max_size=6).map(tuple),
    user=st.none() | st.text(max_size=80),
    cache_key=st.none() | st.text(max_size=80),
    metadata=st.none() | st.just(b"{}"),
)
targets = st.sampled_from(
    [
        Target("up"),
        Target("up", reasoning_member=ReasoningMember.REASONING_TEXT, developer_role=False),
    ]
)


def encoded_if_any(given: Conversation, target: Target) -> EncodedRequest | None:
    """The request; `None` when nothing is left of the conversation, and an error for any other reason."""
    try:
        return encode_request(given, target, Ledger())
    except ProtocolError as error:
        if error.code != "empty_conversation":
            raise
        return None


@given(any_conversation, targets)
def test_every_request_is_legal(given: Conversation, target: Target) -> None:
    encoded = encoded_if_any(given, target)
    if encoded is None:
        return
    check_legal(encoded.body)
    for tool in given.tools:
        if not isinstance(tool, HostedTool):
            assert encoded.names.client(encoded.names.wire(tool.ref))[0] == tool.ref


# -- there and back --------------------------------------------------------------------------------------------------

files = st.one_of(
    st.builds(Source, st.just(SourceKind.BASE64), st.just("QQ=="), st.just("application/pdf")),
    st.builds(Source, st.just(SourceKind.FILE_ID), names),
)
pictures = st.one_of(
    st.builds(Source, st.just(SourceKind.URL), names.map("http://".__add__)),
    st.builds(Source, st.just(SourceKind.BASE64), st.just("QQ=="), st.just("image/png")),
)
text_blocks: st.SearchStrategy[Block] = st.builds(Text, some, marks)
user_blocks: st.SearchStrategy[Block] = st.one_of(
    text_blocks,
    st.builds(Image, pictures, st.none() | st.sampled_from(["auto", "low", "high", "original"]), marks),
    st.builds(Document, files.filter(lambda one: one.kind is SourceKind.BASE64), some, marks),
    st.builds(Document, files.filter(lambda one: one.kind is SourceKind.FILE_ID), st.none(), marks),
    st.builds(Audio, names, st.just("wav")),
    st.just(Opaque(Protocol.CHAT, "novel", b'{"type":"novel","a":1.50}')),
)
said = st.tuples(
    st.lists(
        st.builds(Reasoning, some.map(lambda one: (one,)), st.none() | st.just(Signature(Protocol.CHAT, "S"))),
        max_size=1,
    ),
    st.lists(st.builds(Text, some), max_size=1),
    st.lists(st.builds(Refusal, some), max_size=1),
    st.lists(names.map(ToolRef), max_size=3),
).filter(lambda found: any(found[1:]))


def turn(role: Role, blocks: st.SearchStrategy[Block]) -> st.SearchStrategy[Turn]:
    return st.lists(blocks, min_size=1, max_size=3).map(lambda found: Turn(role, tuple(found)))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Turn, ...]:
    """Turns as a server of Chat's takes them: each call of the assistant's is answered."""
    turns: list[Turn] = list(HI)
    for place in range(draw(st.integers(0, 4))):
        role = draw(st.sampled_from(Role))
        if role is not Role.ASSISTANT or turns[-1].role is Role.ASSISTANT:
            turns.append(draw(turn(Role.USER, user_blocks) if role is Role.USER else turn(Role.SYSTEM, text_blocks)))
            continue
        reasoning, texts, refusals, called = draw(said)
        calls = [ToolCall(f"c{place}{number}", ref, draw(some)) for number, ref in enumerate(called)]
        turns.append(Turn(role, (*reasoning, *texts, *refusals, *calls)))
        if calls:
            results = [
                ToolResult(call.id, draw(st.lists(st.builds(Text, some), max_size=1).map(tuple))) for call in calls
            ]
            turns.append(Turn(Role.USER, tuple(results)))
    return tuple(turns)


tools = st.lists(
    st.builds(FunctionTool, names.map(ToolRef), st.none() | some, st.just(b'{"a":1}'), st.none() | st.booleans()),
    min_size=1,
    max_size=3,
    unique_by=lambda tool: tool.ref,
).map(tuple)
conversations = st.builds(
    Conversation,
    protocol=st.just(Protocol.CHAT),
    model=st.just("up"),
    turns=histories(),
    tools=tools,
    tool_choice=st.none() | st.builds(ToolChoice, st.sampled_from(ToolMode), st.just(()), st.booleans() | st.none()),
    stream=st.booleans(),
    max_output_tokens=st.none() | st.integers(1, 10**6),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    stop=st.lists(some, max_size=4).map(tuple),
    reasoning=st.sampled_from(
        [
            ReasoningRequest(),
            ReasoningRequest(ThinkingMode.OFF, Effort.NONE),
            *(ReasoningRequest(effort=effort) for effort in Effort if effort is not Effort.NONE),
        ]
    ),
    output=st.sampled_from(
        [
            OutputFormat(),
            OutputFormat(OutputKind.JSON_OBJECT),
            OutputFormat(OutputKind.JSON_SCHEMA, "n", b'{"a":1}', True, "d"),
        ]
    ),
    verbosity=st.none() | st.sampled_from(["low", "medium", "high"]),
    user=st.none() | names,
    cache_key=st.none() | names,
    service_tier=st.none() | st.just("flex"),
)
TAKES_REASONING = Target("up", reasoning_member=ReasoningMember.REASONING_TEXT)


@given(conversations)
def test_what_chat_can_say_comes_back_the_same(given: Conversation) -> None:
    ledger = Ledger()
    body = encode_request(given, TAKES_REASONING, ledger).body
    check_legal(body)
    assert decode_request(JSONObject(body), ledger) == given
    assert ledger.entries == ()


@given(any_conversation.filter(lambda one: one.turns), targets)
def test_what_is_left_of_any_conversation_stays_the_same_from_then_on(given: Conversation, target: Target) -> None:
    encoded = encoded_if_any(given, target)
    if encoded is None or b'""' in encoded.body.replace(b'"content":""', b""):
        return  # an image or a file without content, which nobody would read
    once = decode_request(JSONObject(encoded.body), Ledger())
    assert decode_request(JSONObject(encode_request(once, target, Ledger()).body), Ledger()) == once
