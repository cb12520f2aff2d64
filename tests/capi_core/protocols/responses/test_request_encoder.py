"""Any conversation becomes a request that Responses takes; what Responses can say comes back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    Block,
    Conversation,
    CustomTool,
    Document,
    Effort,
    FunctionTool,
    Image,
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
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.request_decoder import decode_request
from capi_core.protocols.responses.request_encoder import encode_request
from capi_core.target import Target

HI = (Turn(Role.USER, (Text("hi"),)),)


def encode(conversation: Conversation, target: Target | None = None, ledger: Ledger | None = None) -> dict[str, object]:
    body = encode_request(conversation, target or Target("up"), ledger or Ledger()).body
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def conversation(turns: tuple[Turn, ...] = HI, sender: Protocol = Protocol.MESSAGES) -> Conversation:
    return Conversation(sender, "m", turns)


def changed(ledger: Ledger) -> list[tuple[Change, str]]:
    return [(entry.change, entry.path) for entry in ledger]


def test_the_least_request() -> None:
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    assert encode(conversation()) == {"model": "up", "input": [message], "store": False}


def test_leading_system_turns_are_the_instructions_and_others_stay() -> None:
    system, later = Turn(Role.SYSTEM, (Text("a"), Text("b"))), Turn(Role.SYSTEM, (Text("c"),))
    found = encode(conversation((system, later, *HI, later)))
    items = found["input"]
    assert isinstance(items, list)
    assert (found["instructions"], [item["role"] for item in items]) == ("a\n\nb\n\nc", ["user", "system"])
    odd = encode(conversation((Turn(Role.SYSTEM, (Refusal("x"),)), Turn(Role.SYSTEM, ()), *HI)))
    assert "instructions" not in odd
    assert "instructions" not in encode(conversation((Turn(Role.SYSTEM, ()), *HI)))


def test_system_words_alone_are_the_input() -> None:
    found = encode(conversation((Turn(Role.SYSTEM, (Text("a"),)),)))
    items = found["input"]
    assert isinstance(items, list)
    assert [item["role"] for item in items] == ["system"]


@pytest.mark.parametrize("turns", [(), (Turn(Role.USER, (Text(""),)),)])
def test_a_conversation_of_which_nothing_is_left_is_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(conversation(turns))
    assert (caught.value.code, caught.value.status_hint) == ("empty_conversation", 400)


@pytest.mark.parametrize(
    ("asked", "most", "sent", "noted"),
    [(100, None, 100, 0), (100, 50, 50, 1), (1, None, 16, 1), (20, 20, 20, 0)],
)
def test_limits_are_kept_to_what_the_model_takes(asked: int, most: int | None, sent: int, noted: int) -> None:
    ledger = Ledger()
    given = Conversation(Protocol.CHAT, "m", HI, max_output_tokens=asked)
    assert encode(given, Target("up", max_output_tokens=most), ledger)["max_output_tokens"] == sent
    assert ledger.losses == noted


def test_sampling_is_sent_where_it_is_taken() -> None:
    given = Conversation(Protocol.CHAT, "m", HI, temperature=0.5, top_p=0.9, top_k=5)
    found = encode(given)
    assert (found["temperature"], found["top_p"], "top_k" in found) == (0.5, 0.9, False)
    ledger = Ledger()
    assert "temperature" not in encode(given, Target("up", sampling=False), ledger)
    assert [path for _, path in changed(ledger)] == ["$.temperature", "$.top_p", "$.top_k"]


@pytest.mark.parametrize(
    ("asked", "efforts", "told", "notes"),
    [
        (ReasoningRequest(), None, None, 0),
        (ReasoningRequest(effort=Effort.HIGH), None, {"effort": "high"}, 0),
        (ReasoningRequest(ThinkingMode.OFF), None, {"effort": "none"}, 0),
        (ReasoningRequest(ThinkingMode.OFF), ("low", "high"), {"effort": "low"}, 1),
        (ReasoningRequest(effort=Effort.MAX), (), None, 1),
        (ReasoningRequest(effort=Effort.MAX), ("low", "odd"), {"effort": "low"}, 1),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=31999), None, {"effort": "high", "summary": "auto"}, 1),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=3000), None, {"effort": "medium", "summary": "auto"}, 1),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=1024), None, {"effort": "low", "summary": "auto"}, 1),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=-1), None, {"effort": "minimal", "summary": "auto"}, 1),
        (ReasoningRequest(ThinkingMode.ADAPTIVE), None, {"summary": "auto"}, 0),
        (ReasoningRequest(ThinkingMode.ADAPTIVE, summary="omitted"), None, None, 0),
    ],
)
def test_how_hard_to_reason(
    asked: ReasoningRequest, efforts: tuple[str, ...] | None, told: dict[str, str] | None, notes: int
) -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, reasoning=asked)
    assert encode(given, Target("up", efforts=efforts), ledger).get("reasoning") == told
    assert ledger.losses == notes


def test_the_encrypted_form_is_asked_for_where_it_will_be_given_back() -> None:
    signed = Turn(Role.ASSISTANT, (Reasoning((), Signature(Protocol.RESPONSES, "E")),))
    wanted = ["reasoning.encrypted_content"]
    assert encode(conversation((*HI, signed, *HI)))["include"] == wanted
    assert encode(Conversation(Protocol.CHAT, "m", HI, reasoning=ReasoningRequest(encrypted=True)))["include"] == wanted
    foreign = Turn(Role.ASSISTANT, (Reasoning((), Signature(Protocol.CHAT, "E")), Reasoning(("x",)), Text("t")))
    assert "include" not in encode(conversation((*HI, foreign)))


def test_what_the_text_must_be() -> None:
    schema = OutputFormat(OutputKind.JSON_SCHEMA, None, b'{"type":"object"}')
    ledger = Ledger()
    found = encode(Conversation(Protocol.MESSAGES, "m", HI, output=schema, verbosity="huge"), None, ledger)
    assert found["text"] == {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}}
    assert changed(ledger) == [(Change.DEFAULTED, "$.output.name"), (Change.DROPPED, "$.verbosity")]
    plain = encode(Conversation(Protocol.CHAT, "m", HI, output=OutputFormat(OutputKind.JSON_OBJECT), verbosity="low"))
    assert plain["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}


def test_who_asks_is_told_in_64_characters() -> None:
    ledger = Ledger()
    given = Conversation(Protocol.MESSAGES, "m", HI, user="u" * 65, cache_key="k" * 64, service_tier="standard_only")
    found = encode(given, None, ledger)
    user = found["safety_identifier"]
    assert isinstance(user, str)
    assert (len(user), user != "u" * 64, found["prompt_cache_key"]) == (64, True, "k" * 64)
    assert changed(ledger) == [(Change.ALTERED, "$.user"), (Change.DROPPED, "$.service_tier")]
    kept = encode(Conversation(Protocol.CHAT, "m", HI, service_tier="flex", metadata=b'{"a":"b"}', stream=True))
    assert (kept["service_tier"], kept["metadata"], kept["stream"]) == ("flex", {"a": "b"}, True)
    assert encode(Conversation(Protocol.MESSAGES, "m", HI, service_tier="auto"))["service_tier"] == "auto"


def test_names_that_change_are_known_afterwards() -> None:
    call = Turn(Role.ASSISTANT, (ToolCall("c", ToolRef("spawn", "multi"), "{}"),))
    given = Conversation(Protocol.RESPONSES, "m", (*HI, call), (FunctionTool(ToolRef("spawn", "multi")),))
    encoded = encode_request(given, Target("up"), Ledger())
    (tool,) = json.loads(encoded.body)["tools"]
    assert encoded.names.client(tool["name"]) == (ToolRef("spawn", "multi"), ToolKind.FUNCTION)
    assert json.loads(encoded.body)["input"][1]["name"] == tool["name"]


words = st.text(min_size=1, max_size=6)
names = st.text("abcXYZ_-09", min_size=1, max_size=8)
sources = st.one_of(
    st.builds(Source, st.just(SourceKind.URL), names.map("http://".__add__)),
    st.builds(Source, st.just(SourceKind.BASE64), st.just("QQ=="), st.sampled_from(["image/png", "application/pdf"])),
    st.builds(Source, st.just(SourceKind.FILE_ID), names),
)
text_blocks: st.SearchStrategy[Block] = st.builds(Text, words)
user_blocks: st.SearchStrategy[Block] = st.one_of(
    text_blocks,
    st.builds(Image, sources, st.sampled_from(["auto", "low", "high", "original"])),
    st.builds(Document, sources, words),
)
results: st.SearchStrategy[Block] = st.sampled_from([(), (Text("one"),), (Text("a"), Text("b"))]).flatmap(
    lambda content: st.builds(ToolResult, st.just("c1"), st.just(content), st.booleans())
)
assistant_blocks: st.SearchStrategy[Block] = st.one_of(
    text_blocks,
    st.builds(Refusal, words),
    st.builds(
        Reasoning, st.lists(words, max_size=2).map(tuple), st.builds(Signature, st.just(Protocol.RESPONSES), names)
    ),
    st.builds(ToolCall, names, names.map(ToolRef), words, st.sampled_from(ToolKind)),
)


def turn(role: Role, blocks: st.SearchStrategy[Block]) -> st.SearchStrategy[Turn]:
    return st.lists(blocks, min_size=1, max_size=3).map(lambda found: Turn(role, tuple(found)))


CALLED = Turn(Role.ASSISTANT, (ToolCall("c1", ToolRef("f"), "{}"),))
turns = st.lists(
    st.one_of(
        turn(Role.USER, user_blocks),
        turn(Role.SYSTEM, text_blocks),
        turn(Role.DEVELOPER, text_blocks),
        turn(Role.USER, results).map(lambda found: (CALLED, found)),
        turn(Role.ASSISTANT, assistant_blocks),
    ),
    max_size=5,
).map(lambda found: tuple(one for part in found for one in (part if isinstance(part, tuple) else (part,))))
tools = st.lists(
    st.one_of(
        st.builds(FunctionTool, names.map(ToolRef), words | st.none(), st.just(b'{"a":1}') | st.none(), st.booleans()),
        st.builds(CustomTool, names.map(ToolRef), words | st.none(), st.just(b'{"type":"text"}') | st.none()),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda tool: tool.ref,
).map(tuple)
conversations = st.builds(
    Conversation,
    protocol=st.just(Protocol.RESPONSES),
    model=st.just("up"),
    turns=turns.map(lambda found: (*HI, *found)),
    tools=tools,
    tool_choice=st.none() | st.builds(ToolChoice, st.sampled_from(ToolMode), st.just(()), st.booleans() | st.none()),
    stream=st.booleans(),
    max_output_tokens=st.none() | st.integers(16, 10**6),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    reasoning=st.builds(
        ReasoningRequest,
        effort=st.none() | st.sampled_from([effort for effort in Effort if effort is not Effort.NONE]),
        summary=st.none() | st.sampled_from(["auto", "concise", "detailed"]),
        encrypted=st.just(True),
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
    metadata=st.none() | st.just(b'{"k":"v"}'),
)


def merged(given: Conversation) -> list[tuple[Role, tuple[Block, ...]]]:
    """The turns with neighbours of one role as one: their borders are no part of a conversation's meaning."""
    found: list[tuple[Role, tuple[Block, ...]]] = []
    for one in given.turns:
        before = found.pop() if found and found[-1][0] is one.role else (one.role, ())
        found.append((one.role, before[1] + one.blocks))
    return found


@given(conversations)
def test_what_responses_can_say_comes_back_the_same(given: Conversation) -> None:
    ledger = Ledger()
    body = encode_request(given, Target("up"), ledger).body
    back = decode_request(JSONObject(body), ledger)
    assert merged(back) == merged(given)
    for name in ("tools", "tool_choice", "stream", "max_output_tokens", "temperature", "top_p", "reasoning", "output"):
        assert getattr(back, name) == getattr(given, name), name
    for name in ("verbosity", "user", "cache_key", "service_tier", "metadata"):
        assert getattr(back, name) == getattr(given, name), name
    assert {entry.note for entry in ledger} <= {"that the tool failed is told by the status `incomplete` only"}
