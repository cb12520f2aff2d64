"""Any conversation becomes a request that Anthropic takes; what Messages can say comes back the same."""

import json
from typing import Final

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
    Tool,
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
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.request_decoder import decode_request
from capi_core.protocols.messages.request_encoder import encode_request
from capi_core.target import Target, ThinkingSupport
from tests.support.messages_requests import check_legal

HI: Final = (Turn(Role.USER, (Text("hi"),)),)
LEAST: Final = {"model": "up", "max_tokens": 8192, "messages": [{"role": "user", "content": "hi"}]}
BUDGET: Final = ReasoningRequest(ThinkingMode.ENABLED, None, 2000)


def encode(conversation: Conversation, target: Target | None = None, ledger: Ledger | None = None) -> dict[str, object]:
    body = encode_request(conversation, target or Target("up"), ledger or Ledger()).body
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def conversation(turns: tuple[Turn, ...] = HI, sender: Protocol = Protocol.CHAT) -> Conversation:
    return Conversation(sender, "m", turns)


def changed(ledger: Ledger) -> list[tuple[Change, str]]:
    return [(entry.change, entry.path) for entry in ledger]


def test_the_least_request() -> None:
    ledger = Ledger()
    assert encode(conversation(), None, ledger) == LEAST
    assert changed(ledger) == [(Change.DEFAULTED, "$.max_tokens")]


def test_a_system_prompt_of_one_text_is_a_string() -> None:
    assert encode(conversation((Turn(Role.SYSTEM, (Text("s"),)), *HI)))["system"] == "s"
    marked = Turn(Role.SYSTEM, (Text("s", CacheMark()),))
    control = {"type": "ephemeral"}
    assert encode(conversation((marked, *HI)))["system"] == [{"type": "text", "text": "s", "cache_control": control}]


@pytest.mark.parametrize(
    ("asked", "most", "sent", "noted"),
    [
        (None, 64_000, 64_000, [Change.DEFAULTED]),
        (100, None, 100, []),
        (100, 50, 50, [Change.ALTERED]),
        (0, None, 1, [Change.ALTERED]),
    ],
)
def test_a_limit_is_always_told(asked: int | None, most: int | None, sent: int, noted: list[Change]) -> None:
    ledger = Ledger()
    given = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=asked)
    assert encode(given, Target("up", max_output_tokens=most), ledger)["max_tokens"] == sent
    assert [change for change, _ in changed(ledger)] == noted


SAMPLING: Final = ("temperature", "top_p", "top_k")


@pytest.mark.parametrize(
    ("given", "target", "sent", "noted"),
    [
        ((0.5, None, 3), Target("up"), (0.5, None, 3), []),
        ((1.7, None, None), Target("up"), (1.0, None, None), ["$.temperature"]),
        ((None, 0.9, None), Target("up"), (None, 0.9, None), []),
        ((0.5, 0.9, None), Target("up"), (0.5, None, None), ["$.top_p"]),
        ((0.5, 1.0, None), Target("up"), (0.5, None, None), []),
        ((0.5, None, 3), Target("up", sampling=False), (None, None, None), ["$.temperature", "$.top_k"]),
        ((1.0, 1.0, None), Target("up", sampling=False), (None, None, None), []),
    ],
)
def test_sampling(
    given: tuple[float | None, float | None, int | None],
    target: Target,
    sent: tuple[float | None, float | None, int | None],
    noted: list[str],
) -> None:
    ledger = Ledger()
    temperature, top_p, top_k = given
    asked = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=9, temperature=temperature, top_p=top_p, top_k=top_k)
    found = encode(asked, target, ledger)
    assert tuple(found.get(name) for name in SAMPLING) == sent
    assert [path for _, path in changed(ledger)] == noted


def test_messages_own_sampling_is_left_to_it() -> None:
    found = encode(Conversation(Protocol.MESSAGES, "m", HI, temperature=0.5, top_p=0.9))
    assert (found["temperature"], found["top_p"]) == (0.5, 0.9)


@pytest.mark.parametrize(("top_p", "sent"), [(0.9, None), (0.95, 0.95), (None, None)])
def test_a_model_that_thinks_is_sampled_as_it_takes_it(top_p: float | None, sent: float | None) -> None:
    ledger = Ledger()
    asked = Conversation(
        Protocol.MESSAGES,
        "m",
        HI,
        max_output_tokens=9000,
        temperature=0.5,
        top_p=top_p,
        top_k=3,
        reasoning=BUDGET,
    )
    found = encode(asked, None, ledger)
    assert found["thinking"] == {"type": "enabled", "budget_tokens": 2000}
    assert tuple(found.get(name) for name in SAMPLING) == (None, sent, None)
    assert {"$.temperature", "$.top_k"} <= {path for _, path in changed(ledger)}


def test_thinking_and_a_forced_choice() -> None:
    choice = ToolChoice(ToolMode.REQUIRED)
    tools = (FunctionTool(ToolRef("f")),)
    asked = Conversation(Protocol.MESSAGES, "m", HI, tools, choice, max_output_tokens=9000, reasoning=BUDGET)
    assert encode(asked)["tool_choice"] == {"type": "auto"}


def test_stop_sequences_of_white_space_are_refused_by_anthropic() -> None:
    ledger = Ledger()
    asked = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=9, stop=("a", "\n", ""))
    assert encode(asked, None, ledger)["stop_sequences"] == ["a"]
    assert changed(ledger) == [(Change.DROPPED, "$.stop[1]"), (Change.DROPPED, "$.stop[2]")]


def test_what_the_text_must_be() -> None:
    schema = OutputFormat(OutputKind.JSON_SCHEMA, "n", b'{"type":"object"}', True)
    asked = Conversation(Protocol.MESSAGES, "m", HI, reasoning=ReasoningRequest(effort=Effort.LOW), output=schema)
    told = {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert encode(asked)["output_config"] == told
    ledger = Ledger()
    asked = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=9, output=OutputFormat(OutputKind.JSON_OBJECT))
    assert "output_config" not in encode(asked, None, ledger)
    assert changed(ledger) == [(Change.DROPPED, "$.output")]


def test_who_asks_is_told_in_256_characters() -> None:
    ledger = Ledger()
    asked = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=9, user="u" * 257)
    told = encode(asked, None, ledger)["metadata"]
    assert isinstance(told, dict)
    assert (list(told), len(told["user_id"])) == (["user_id"], 64)
    assert changed(ledger) == [(Change.ALTERED, "$.user")]
    assert encode(Conversation(Protocol.CHAT, "m", HI, user="u" * 256))["metadata"] == {"user_id": "u" * 256}


@pytest.mark.parametrize(
    ("sender", "tier", "told"),
    [
        (Protocol.MESSAGES, "standard_only", "standard_only"),
        (Protocol.CHAT, "auto", "auto"),
        (Protocol.CHAT, "default", "standard_only"),
        (Protocol.CHAT, "flex", None),
    ],
)
def test_tiers(sender: Protocol, tier: str, told: str | None) -> None:
    ledger = Ledger()
    asked = Conversation(sender, "m", HI, max_output_tokens=9, service_tier=tier)
    assert encode(asked, None, ledger).get("service_tier") == told
    assert ledger.losses == (told is None)


def test_what_has_no_place_is_noted() -> None:
    ledger = Ledger()
    asked = Conversation(
        Protocol.RESPONSES, "m", HI, max_output_tokens=9, verbosity="low", cache_key="k", metadata=b"{}", stream=True
    )
    assert encode(asked, None, ledger) == {**LEAST, "max_tokens": 9, "stream": True}
    assert [path for _, path in changed(ledger)] == ["$.verbosity", "$.prompt_cache_key", "$.metadata"]


def test_four_cache_marks_are_sent() -> None:
    marked = Turn(Role.USER, tuple(Text(one, CacheMark()) for one in "abcd"))
    tools = (FunctionTool(ToolRef("f"), cache=CacheMark(), at="$.tools[0]"),)
    ledger = Ledger()
    body = encode_request(Conversation(Protocol.CHAT, "m", (marked,), tools), Target("up"), ledger).body
    assert body.count(b"cache_control") == 4
    assert (Change.DROPPED, "$.tools[0]") in changed(ledger)


def test_names_that_change_are_known_afterwards() -> None:
    call = Turn(Role.ASSISTANT, (ToolCall("c", ToolRef("spawn", "multi"), "{}"),))
    given = Conversation(Protocol.RESPONSES, "m", (*HI, call), (FunctionTool(ToolRef("spawn", "multi")),))
    encoded = encode_request(given, Target("up"), Ledger())
    body = json.loads(encoded.body)
    name = body["tools"][0]["name"]
    assert encoded.names.client(name) == (ToolRef("spawn", "multi"), ToolKind.FUNCTION)
    assert body["messages"][1]["content"][0]["name"] == name


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(conversation((Turn(Role.USER, (Text(" "),)),)))
    assert (caught.value.code, caught.value.status_hint) == ("empty_conversation", 400)


marks = st.none() | st.builds(CacheMark, st.sampled_from([None, "5m", "1h", "24h"]))
any_words = st.sampled_from(["", " ", "a", "b \n", "ü"])
any_ids = st.sampled_from(["a", "b", "", "c|d"])
any_refs = st.builds(ToolRef, st.sampled_from(["f", "g", "h.i", "x" * 70]), st.none() | st.just("ns"))
signatures = st.none() | st.builds(Signature, st.sampled_from(Protocol), st.sampled_from(["", "S", "unshown.S"]))
any_sources = st.builds(Source, st.sampled_from(SourceKind), any_words, st.none() | st.just("text/plain"))
any_contents = st.lists(
    st.one_of(st.builds(Text, any_words), st.builds(Image, any_sources), st.builds(Document, any_sources)), max_size=2
).map(tuple)
any_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, any_words, marks),
    st.builds(Image, any_sources, st.none() | st.just("low"), marks),
    st.builds(Document, any_sources, st.none() | any_words, marks),
    st.just(Audio("x", "wav")),
    st.builds(Reasoning, st.lists(any_words, max_size=2).map(tuple), signatures),
    st.builds(Refusal, any_words),
    st.builds(
        ToolCall, any_ids, any_refs, st.sampled_from(["", "{}", "[", '{"a":1}']), st.sampled_from(ToolKind), marks
    ),
    st.builds(ToolResult, any_ids, any_contents, st.booleans(), st.sampled_from(ToolKind), marks),
    st.just(Opaque(Protocol.CHAT, "odd", b"{}")),
)
any_turns = st.lists(
    st.builds(Turn, st.sampled_from(Role), st.lists(any_blocks, max_size=4).map(tuple)), max_size=7
).map(tuple)
any_tools: st.SearchStrategy[tuple[Tool, ...]] = st.lists(
    st.one_of(
        st.builds(FunctionTool, any_refs, st.none(), st.none() | st.just(b'{"a":1}'), st.booleans(), marks),
        st.builds(CustomTool, any_refs),
        st.just(HostedTool(Protocol.RESPONSES, "web_search", b"{}", web_search=True)),
    ),
    max_size=3,
).map(tuple)
any_conversations = st.builds(
    Conversation,
    protocol=st.sampled_from(Protocol),
    model=st.just("m"),
    turns=any_turns,
    tools=any_tools,
    tool_choice=st.none()
    | st.builds(
        ToolChoice,
        st.sampled_from(ToolMode),
        st.lists(any_refs, max_size=2).map(tuple),
        st.none() | st.booleans(),
    ),
    max_output_tokens=st.none() | st.integers(-1, 10_000),
    temperature=st.none() | st.floats(0, 2),
    reasoning=st.builds(
        ReasoningRequest,
        st.sampled_from(ThinkingMode),
        st.none() | st.sampled_from(Effort),
        st.none() | st.integers(-1, 40_000),
    ),
)
any_targets = st.builds(
    Target,
    st.just("up"),
    max_output_tokens=st.none() | st.integers(1, 9000),
    thinking=st.sampled_from(ThinkingSupport),
)


def check_refused(error: ProtocolError, code: str) -> None:
    assert (error.code, error.status_hint) == (code, 400)


@given(any_conversations, any_targets)
def test_whatever_is_asked_is_asked_legally(given: Conversation, target: Target) -> None:
    try:
        body = encode_request(given, target, Ledger()).body
    except ProtocolError as error:
        check_refused(error, "empty_conversation")
        return
    check_legal(body)
    decode_request(JSONObject(body), Ledger())


words = st.text(min_size=1, max_size=6).filter(lambda text: bool(text.strip()))
names = st.text("abcXYZ_-09", min_size=1, max_size=8)
sources = st.one_of(
    st.builds(Source, st.just(SourceKind.URL), names.map("https://".__add__)),
    st.builds(Source, st.just(SourceKind.BASE64), st.just("QQ=="), st.just("application/pdf")),
    st.builds(Source, st.just(SourceKind.FILE_ID), names),
)
texts = st.builds(Source, st.just(SourceKind.TEXT), words, st.just("text/plain"))
mark = st.none() | st.just(CacheMark("5m"))
user_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, words),
    st.builds(Image, sources),
    st.builds(Document, sources | texts, st.none() | words),
    st.just(Opaque(Protocol.MESSAGES, "container_upload", b'{"type":"container_upload","file_id":"f"}')),
)
results = st.lists(st.builds(Text, words), max_size=2).map(tuple)
assistant_blocks: st.SearchStrategy[Block] = st.one_of(
    st.builds(Text, words),
    st.builds(
        Reasoning,
        st.just(()) | words.map(lambda text: (text,)),
        st.builds(Signature, st.just(Protocol.MESSAGES), names),
    ),
    st.just(Reasoning((), Signature(Protocol.MESSAGES, "unshown.S"))),
)


@st.composite
def rounds(draw: st.DrawFn, call_id: str) -> tuple[Turn, ...]:
    """What the user says, and perhaps the system, the assistant with its calls, and their results."""
    turns = [Turn(Role.USER, (*draw(st.lists(user_blocks, max_size=2)), Text("hi", draw(mark))))]
    if draw(st.booleans()):
        turns.append(Turn(Role.SYSTEM, (Text(draw(words)),)))
    said = draw(st.lists(assistant_blocks, max_size=2))
    call = ToolCall(call_id, ToolRef(draw(names)), draw(st.sampled_from(["{}", '{"a": [1]}'])))
    turns.append(Turn(Role.ASSISTANT, (*said, call)))
    turns.append(Turn(Role.USER, (ToolResult(call_id, draw(results)), Text("ok"))))
    turns.append(Turn(Role.ASSISTANT, (Text("done"),)))
    return tuple(turns)


called = st.tuples(st.just(()) | rounds("t1"), st.just(()) | rounds("t2")).map(lambda found: found[0] + found[1])
native = st.builds(
    Conversation,
    protocol=st.just(Protocol.MESSAGES),
    model=st.just("up"),
    turns=st.tuples(st.just(()) | words.map(lambda text: (Turn(Role.SYSTEM, (Text(text),)),)), called, st.just(HI)).map(
        lambda found: (*found[0], *found[1], *found[2])
    ),
    tools=st.lists(
        st.builds(
            FunctionTool,
            names.map(ToolRef),
            words | st.none(),
            st.just(b'{"type":"object"}'),
            st.none() | st.booleans(),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda tool: tool.ref,
    ).map(tuple),
    tool_choice=st.none() | st.builds(ToolChoice, st.sampled_from([ToolMode.AUTO, ToolMode.NONE])),
    stream=st.booleans(),
    max_output_tokens=st.integers(4000, 10**6),
    stop=st.lists(words, max_size=2).map(tuple),
    reasoning=st.one_of(
        st.builds(ReasoningRequest, st.just(ThinkingMode.ADAPTIVE), st.none() | st.just(Effort.MAX), st.none()),
        st.builds(
            ReasoningRequest, st.sampled_from([ThinkingMode.DEFAULT, ThinkingMode.OFF]), st.none() | st.just(Effort.LOW)
        ),
        st.builds(
            ReasoningRequest,
            st.just(ThinkingMode.ENABLED),
            st.none(),
            st.integers(1024, 3999),
            st.sampled_from([None, "auto", "omitted"]),
        ),
    ),
    output=st.sampled_from([OutputFormat(), OutputFormat(OutputKind.JSON_SCHEMA, None, b'{"a":1}')]),
    user=st.none() | names,
    service_tier=st.none() | st.just("standard_only"),
)


@given(native)
def test_what_messages_can_say_comes_back_the_same(given: Conversation) -> None:
    ledger = Ledger()
    body = encode_request(given, Target("up"), ledger).body
    assert decode_request(JSONObject(body), ledger) == given
    assert ledger.header() == "exact"
