"""Turns become messages that Chat's servers take, and what does not fit is noted with its path."""

import json

import pytest

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    Role,
    Signature,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.message_encoder import MessageEncoder
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes
from capi_core.target import ReasoningMember, Target
from capi_core.tool_names import ToolNames

HI = Turn(Role.USER, (Text("hi"),))
USER_HI = {"role": "user", "content": "hi"}
PNG = Image(Source(SourceKind.BASE64, "QQ=="), at="i")
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}


def assistant(*blocks: Block) -> Turn:
    return Turn(Role.ASSISTANT, blocks, at="turn")


def user(*blocks: Block) -> Turn:
    return Turn(Role.USER, blocks)


def call(call_id: str, name: str = "f", arguments: str = "{}") -> ToolCall:
    return ToolCall(call_id, ToolRef(name), arguments, at=f"call {call_id}")


def encode(
    *turns: Turn,
    ledger: Ledger | None = None,
    sender: Protocol = Protocol.MESSAGES,
    target: Target | None = None,
    names: ToolNames | None = None,
) -> list[dict[str, object]]:
    conversation = Conversation(sender, "m", turns)
    encoder = MessageEncoder(conversation, target or Target("up"), names or ToolNames(), ledger or Ledger())
    found = json.loads(json_bytes(encoder.messages))
    assert isinstance(found, list)
    return found


def called(*calls: tuple[str, str]) -> dict[str, object]:
    functions = [{"id": one, "type": "function", "function": {"name": name, "arguments": "{}"}} for one, name in calls]
    return {"role": "assistant", "content": None, "tool_calls": functions}


def answer(call_id: str, content: str) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def changes(ledger: Ledger) -> list[tuple[Change, str]]:
    return [(entry.change, entry.path) for entry in ledger]


# -- calls and results -----------------------------------------------------------------------------------------------


def test_each_call_is_answered_right_behind_it_in_the_order_of_the_calls() -> None:
    turns = (assistant(call("a"), call("b", "g")), user(Text("x"), ToolResult("b", (Text("2"),)), Text("y")))
    found = encode(*turns, user(ToolResult("a", (Text("1"), Text("more")))))
    assert found == [
        called(("a", "f"), ("b", "g")),
        answer("a", "1\nmore"),
        answer("b", "2"),
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
    ]


def test_what_stands_between_a_call_and_its_result_comes_after_both() -> None:
    note = Turn(Role.SYSTEM, (Text("note"),))
    found = encode(assistant(call("a")), note, assistant(Text("b")), user(ToolResult("a", (Text("r"),))))
    assert found == [
        called(("a", "f")),
        answer("a", "r"),
        {"role": "system", "content": "note"},
        {"role": "assistant", "content": "b"},
    ]


def test_a_call_without_a_result_is_answered_by_saying_so() -> None:
    ledger = Ledger()
    found = encode(assistant(call("a")), HI, assistant(call("b")), ledger=ledger)
    none = "The tool gave no result: the call was not carried out."
    assert found == [called(("a", "f")), answer("a", none), USER_HI, called(("b", "f")), answer("b", none)]
    assert changes(ledger) == [(Change.SYNTHESISED, "call a"), (Change.SYNTHESISED, "call b")]


def test_a_result_that_answers_nothing_or_answers_again_is_dropped() -> None:
    ledger = Ledger()
    orphan, first = ToolResult("x", (Text("o"),), at="o"), ToolResult("a", (Text("1"),))
    again = ToolResult("a", (Text("1"),), at="again")
    found = encode(user(orphan), assistant(call("a")), user(first, again), ledger=ledger)
    assert found == [called(("a", "f")), answer("a", "1")]
    assert changes(ledger) == [(Change.DROPPED, "o"), (Change.DROPPED, "again")]


def test_a_failure_is_said_in_the_text() -> None:
    ledger = Ledger()
    found = encode(assistant(call("a")), user(ToolResult("a", (Text("no file"),), True, at="r")), ledger=ledger)
    assert found[1] == answer("a", "The tool failed: no file")
    assert changes(ledger) == [(Change.ALTERED, "r")]


def test_images_of_results_follow_as_the_users_before_its_own_words() -> None:
    ledger = Ledger()
    shot = user(ToolResult("a", (Text("see"), PNG), at="r"))
    note = {"type": "text", "text": "This belongs to the result of the tool call a:"}
    apart = encode(assistant(call("a")), shot, assistant(Text("b")), HI, ledger=ledger)
    assert apart == [
        called(("a", "f")),
        answer("a", "see"),
        {"role": "user", "content": [note, PNG_PART]},
        {"role": "assistant", "content": "b"},
        USER_HI,
    ]
    assert changes(ledger) == [(Change.ALTERED, "r")]
    with_words = encode(assistant(call("a")), shot, HI)
    assert with_words[2:] == [{"role": "user", "content": [note, PNG_PART, {"type": "text", "text": "hi"}]}]
    assert encode(assistant(call("a")), shot)[2:] == [{"role": "user", "content": [note, PNG_PART]}]


def test_an_id_that_is_refused_is_the_same_digest_at_both_ends_and_in_every_request() -> None:
    ledger = Ledger()
    long = "c" * 41
    turns = (assistant(call(long), call("")), user(ToolResult("", (Text("2"),)), ToolResult(long, (Text("1"),))))
    found = encode(*turns, ledger=ledger)
    ids = [message["tool_call_id"] for message in found[1:]]
    assert [message["content"] for message in found[1:]] == ["1", "2"]
    assert all(isinstance(one, str) and 0 < len(one) <= 40 for one in ids)
    assert encode(*turns, HI)[: len(found)] == found
    assert changes(ledger) == [(Change.RENAMED, f"call {long}"), (Change.RENAMED, "call ")]
    assert encode(assistant(call("c" * 40)))[1]["tool_call_id"] == "c" * 40


def test_an_id_that_comes_again_is_another_one() -> None:
    result = user(ToolResult("a", (Text("r"),)))
    found = encode(assistant(call("a")), result, assistant(call("a")), result)
    assert [message.get("tool_call_id") for message in found[1::2]] == ["a", found[3]["tool_call_id"]]
    assert found[3]["tool_call_id"] != "a"


def test_names_and_arguments_of_calls() -> None:
    ledger, names = Ledger(), ToolNames()
    custom = ToolCall("b", ToolRef("q"), 'say "x"', ToolKind.CUSTOM)
    found = encode(assistant(call("a", "web search", ""), custom), ledger=ledger, names=names)
    calls = found[0]["tool_calls"]
    assert isinstance(calls, list)
    assert [one["function"]["arguments"] for one in calls] == ["{}", '{"input":"say \\"x\\""}']
    assert names.client(calls[0]["function"]["name"]) == (ToolRef("web search"), ToolKind.FUNCTION)
    assert names.client("q") == (ToolRef("q"), ToolKind.CUSTOM)
    assert (Change.RENAMED, "call a") in changes(ledger)


# -- the assistant ---------------------------------------------------------------------------------------------------


def test_neighbouring_turns_of_the_assistants_are_one_message() -> None:
    found = encode(assistant(Text("a")), assistant(call("c")), user(Text("")), assistant(Text("b")))
    assert found[0] == {**called(("c", "f")), "content": "a"}
    assert found[2:] == [{"role": "assistant", "content": "b"}]
    assert encode(assistant(Text("a")), user(), assistant(Text("b"))) == [{"role": "assistant", "content": "a\n\nb"}]


def test_texts_that_follow_each_other_are_one_and_others_stand_apart() -> None:
    blocks = (Text("It is "), Text(""), Text("so."), call("c"), Text("Then"), Refusal("n"), Refusal("o"))
    found = encode(assistant(*blocks))[0]
    assert (found["content"], found["refusal"]) == ("It is so.\n\nThen", "no")


def test_a_refusal_alone_is_a_message_and_nothing_is_none() -> None:
    assert encode(assistant(Refusal("no"))) == [{"role": "assistant", "content": None, "refusal": "no"}]
    assert encode(assistant(Refusal(""), Text(""))) == encode(assistant()) == encode() == []


def test_what_an_assistants_message_has_no_place_for_is_noted() -> None:
    ledger = Ledger()
    odd = (PNG, Opaque(Protocol.MESSAGES, "server_tool_use", b"{}", at="o"), Audio("QQ==", "wav", at="a"))
    assert encode(assistant(*odd, Text("x", CacheMark(), at="t"), ToolResult("c", (), at="r")), ledger=ledger) == [
        {"role": "assistant", "content": "x"}
    ]
    assert sorted(path for _, path in changes(ledger)) == ["a", "i", "o", "r", "t"]


MINE, FOREIGN = Signature(Protocol.CHAT, "S"), Signature(Protocol.MESSAGES, "M")


@pytest.mark.parametrize(
    ("member", "told", "noted"),
    [
        (ReasoningMember.NONE, {}, ["r1", "r2", "r3"]),
        (ReasoningMember.REASONING, {"reasoning": "t\n\nu\n\nv"}, ["r1", "r2", "r3"]),
        (ReasoningMember.REASONING_CONTENT, {"reasoning_content": "t\n\nu\n\nv"}, ["r1", "r2", "r3"]),
        (ReasoningMember.REASONING_TEXT, {"reasoning_text": "t\n\nu\n\nv", "reasoning_opaque": "S"}, ["r2", "r3"]),
    ],
)
def test_reasoning_goes_where_the_upstream_takes_it_back(
    member: ReasoningMember, told: dict[str, str], noted: list[str]
) -> None:
    ledger = Ledger()
    blocks = (
        Reasoning(("t", "", "u"), MINE, at="r1"),
        Reasoning(("v",), FOREIGN, at="r2"),
        Reasoning((), MINE, at="r3"),
        Text("a"),
    )
    found = encode(assistant(*blocks), target=Target("up", reasoning_member=member), ledger=ledger)
    assert found == [{"role": "assistant", "content": "a", **told}]
    assert [path for _, path in changes(ledger)] == noted


@pytest.mark.parametrize("block", [Reasoning(("t",)), Reasoning((), MINE)])
def test_reasoning_that_nothing_follows_is_no_message(block: Reasoning) -> None:
    ledger = Ledger()
    target = Target("up", reasoning_member=ReasoningMember.REASONING_TEXT)
    assert encode(HI, assistant(block), target=target, ledger=ledger) == [USER_HI]
    assert changes(ledger) == [(Change.DROPPED, "turn")]


def test_an_empty_signature_is_none() -> None:
    target = Target("up", reasoning_member=ReasoningMember.REASONING_TEXT)
    block = Reasoning(("t",), Signature(Protocol.CHAT, ""))
    assert encode(assistant(block, Text("a")), target=target) == [
        {"role": "assistant", "content": "a", "reasoning_text": "t"}
    ]


# -- users and instructions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "known", "told"),
    [
        (Role.DEVELOPER, True, "developer"),
        (Role.DEVELOPER, False, "system"),
        (Role.SYSTEM, True, "system"),
        (Role.USER, True, "user"),
    ],
)
def test_a_turn_stays_where_it_is(role: Role, known: bool, told: str) -> None:
    found = encode(HI, Turn(role, (Text("a"),)), target=Target("up", developer_role=known))
    assert found == [USER_HI, {"role": told, "content": "a"}]


def test_instructions_have_text_only() -> None:
    ledger = Ledger()
    odd = Opaque(Protocol.CHAT, "novel", b"{}", at="o")
    assert encode(Turn(Role.SYSTEM, (PNG, odd, Text("a"))), ledger=ledger) == [{"role": "system", "content": "a"}]
    assert changes(ledger) == [(Change.DROPPED, "i"), (Change.DROPPED, "o")]


def test_an_unknown_part_goes_to_its_own_protocol_only() -> None:
    ledger = Ledger()
    mine, other = Opaque(Protocol.CHAT, "n", b'{"type":"n"}'), Opaque(Protocol.MESSAGES, "n", b"{}", at="o")
    assert encode(user(mine, other), ledger=ledger) == [{"role": "user", "content": [{"type": "n"}]}]
    assert changes(ledger) == [(Change.DROPPED, "o")]


def test_a_call_or_reasoning_that_the_user_made_is_noted() -> None:
    ledger = Ledger()
    assert encode(user(call("c"), Reasoning(("t",), at="r")), ledger=ledger) == []
    assert changes(ledger) == [(Change.DROPPED, "call c"), (Change.DROPPED, "r")]


def test_cache_points_pass_from_openais_protocols_only() -> None:
    marked = user(Text("a", CacheMark("30m"), at="t"), Image(Source(SourceKind.URL, "u"), None, CacheMark()))
    (kept,) = encode(marked, sender=Protocol.RESPONSES)
    parts = kept["content"]
    assert isinstance(parts, list)
    assert [part["prompt_cache_breakpoint"] for part in parts] == [
        {"mode": "explicit", "ttl": "30m"},
        {"mode": "explicit"},
    ]
    ledger = Ledger()
    text = Text("r", CacheMark(), at="inner")
    result = ToolResult("c", (text,), cache=CacheMark(), at="result")
    asked = ToolCall("c", ToolRef("f"), "{}", cache=CacheMark(), at="call")
    encode(marked, assistant(asked), user(result), ledger=ledger)
    assert {path for _, path in changes(ledger)} == {"t", "", "call", "result", "inner"}


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (PNG, PNG_PART),
        (Image(Source(SourceKind.URL, "u"), "low"), {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}),
        (Audio("QQ==", "wav"), {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}),
        (
            Document(Source(SourceKind.BASE64, "QQ==")),
            {
                "type": "file",
                "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,QQ=="},
            },
        ),
        (Document(Source(SourceKind.FILE_ID, "f")), {"type": "file", "file": {"file_id": "f"}}),
        (Document(Source(SourceKind.TEXT, "words"), "n"), {"type": "text", "text": "n\n\nwords"}),
        (Document(Source(SourceKind.TEXT, "words")), {"type": "text", "text": "words"}),
        (Refusal("r"), {"type": "text", "text": "r"}),
    ],
)
def test_parts_of_a_users_message(block: Block, part: object) -> None:
    assert encode(user(Text("a"), block), sender=Protocol.CHAT) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, part]}
    ]


@pytest.mark.parametrize(
    "block",
    [
        Image(Source(SourceKind.FILE_ID, "f"), at="x"),
        Document(Source(SourceKind.FILE_ID, "f"), at="x"),
        Document(Source(SourceKind.URL, "u"), at="x"),
        Document(Source(SourceKind.TEXT, ""), at="x"),
    ],
)
def test_files_that_the_upstream_cannot_have_are_left_out_and_noted(block: Block) -> None:
    ledger = Ledger()
    assert encode(user(block, Refusal(""), Text("")), ledger=ledger) == []
    assert changes(ledger) == [(Change.DROPPED, "x")]


@pytest.mark.parametrize(
    ("image", "target"),
    [
        (Image(Source(SourceKind.BASE64, "QQ=="), at="$.x"), Target("up", images=False)),
        (Image(Source(SourceKind.URL, "u"), at="$.x"), Target("up", image_urls=False)),
    ],
)
def test_an_image_that_the_model_does_not_take_is_refused(image: Image, target: Target) -> None:
    for turns in ((user(image),), (assistant(call("a")), user(ToolResult("a", (image,))))):
        with pytest.raises(ProtocolError) as caught:
            encode(*turns, target=target)
        assert (caught.value.code, caught.value.param, caught.value.status_hint) == ("image_not_supported", "x", 400)
    assert encode(user(PNG), target=Target("up", images=None)) == [{"role": "user", "content": [PNG_PART]}]
