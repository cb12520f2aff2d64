"""Any turns become messages in the order that Anthropic takes."""

import json

import pytest

from capi_core.conversation import (
    Block,
    Conversation,
    Opaque,
    Reasoning,
    Role,
    Signature,
    Text,
    ToolCall,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.cache_marks import CacheMarks
from capi_core.protocols.messages.content_encoder import ContentEncoder
from capi_core.protocols.messages.turn_encoder import TurnEncoder, plain
from capi_core.protocols.writing import json_bytes
from capi_core.target import Target
from capi_core.tool_names import ToolNames

SIGNED = Reasoning(("hm",), Signature(Protocol.MESSAGES, "S"))


def user(*words: str) -> Turn:
    return Turn(Role.USER, tuple(map(Text, words)), at="$.user")


def system(text: str = "s") -> Turn:
    return Turn(Role.SYSTEM, (Text(text),), at="$.system")


def assistant(*blocks: Block) -> Turn:
    return Turn(Role.ASSISTANT, blocks, at="$.assistant")


def call(call_id: str) -> ToolCall:
    return ToolCall(call_id, ToolRef("f"), "{}", at="$.call")


def result(call_id: str) -> Turn:
    return Turn(Role.USER, (ToolResult(call_id, (Text("r"),), at="$.result"),))


def shown(part: dict[str, str]) -> str:
    match part["type"]:
        case "text":
            return part["text"]
        case "tool_use":
            return f"call {part['id']}"
        case "tool_result":
            return f"{'error' if part.get('is_error') else 'result'} {part['tool_use_id']}"
        case kind:
            return kind


def encode(*turns: Turn, ledger: Ledger | None = None) -> TurnEncoder:
    ledger = ledger or Ledger()
    conversation = Conversation(Protocol.CHAT, "m", turns)
    content = ContentEncoder(conversation, Target("up"), ToolNames(), CacheMarks(ledger), ledger)
    return TurnEncoder(conversation, content, ledger)


def told(*turns: Turn, ledger: Ledger | None = None) -> list[tuple[str, list[str]]]:
    """Role and parts of each message."""
    messages = json.loads(json_bytes([[one.role.value, one.parts] for one in encode(*turns, ledger=ledger).messages]))
    return [(role, [shown(part) for part in parts]) for role, parts in messages]


def noted(*turns: Turn) -> list[tuple[Change, str]]:
    ledger = Ledger()
    encode(*turns, ledger=ledger)
    return [(entry.change, entry.path) for entry in ledger]


def test_leading_instructions_are_the_system_prompt() -> None:
    found = encode(system("a"), Turn(Role.DEVELOPER, (Text("b"),)), user(" "), system("c"), user("hi"))
    assert found.system == [{"type": "text", "text": one} for one in "abc"]
    assert [message.encoded() for message in found.messages] == [{"role": "user", "content": "hi"}]


def test_neighbours_of_one_role_are_one_message() -> None:
    assert told(user("a"), user("b"), assistant(Text("c")), assistant(), assistant(Text("d")), user("e")) == [
        ("user", ["a", "b"]),
        ("assistant", ["c", "d"]),
        ("user", ["e"]),
    ]


def test_later_instructions_stand_behind_the_users_words() -> None:
    assert told(user("a"), system(), assistant(Text("b")), user("c"), system()) == [
        ("user", ["a"]),
        ("system", ["s"]),
        ("assistant", ["b"]),
        ("user", ["c"]),
        ("system", ["s"]),
    ]
    turns = user("a"), system("s"), user("b"), system("t"), assistant(Text("c")), user("d")
    assert told(*turns)[:2] == [("user", ["a", "b"]), ("system", ["s", "t"])]
    assert noted(*turns) == [(Change.ALTERED, "$.user")]


def test_instructions_behind_the_assistant_are_the_users() -> None:
    turns = user("a"), assistant(Text("b")), system()
    assert told(*turns)[2:] == [("user", ["s"])]
    assert noted(*turns) == [(Change.ALTERED, "$.messages")]
    assert told(*turns, assistant(Text("c")))[2:] == [("user", ["s"]), ("assistant", ["c"])]


def test_results_come_first_in_the_message_behind_their_calls() -> None:
    both = assistant(call("x"), call("y"))
    assert told(user("a"), both, user("b"), system(), result("y"), result("x"), assistant(Text("c"))) == [
        ("user", ["a"]),
        ("assistant", ["call x", "call y"]),
        ("user", ["result x", "result y", "b"]),
        ("system", ["s"]),
        ("assistant", ["c"]),
    ]


def test_nothing_stands_between_a_call_and_its_result() -> None:
    assert told(user("a"), assistant(call("x")), system(), result("x")) == [
        ("user", ["a"]),
        ("assistant", ["call x"]),
        ("user", ["result x"]),
        ("system", ["s"]),
    ]
    assert told(user("a"), assistant(call("x")), system(), assistant(Text("b")), result("x"))[2:] == [
        ("user", ["result x"]),
        ("system", ["s"]),
        ("assistant", ["b"]),
    ]


def test_a_call_that_nothing_answers_is_answered_by_an_error() -> None:
    turns = user("a"), assistant(call("x"), call("y")), result("y"), assistant(call("z"))
    assert told(*turns)[2:] == [
        ("user", ["error x", "result y"]),
        ("assistant", ["call z"]),
        ("user", ["error z"]),
    ]
    assert noted(*turns) == [(Change.SYNTHESISED, "$.call")]


def test_results_in_the_assistants_turn_are_found() -> None:
    mixed = assistant(call("x"), result("x").blocks[0], Text("b"))
    assert told(user("a"), mixed)[1:] == [("assistant", ["call x", "b"]), ("user", ["result x"])]


def test_the_user_speaks_first() -> None:
    assert told(assistant(Text("b"))) == [("user", ["Continue."]), ("assistant", ["b"])]
    assert noted(assistant(Text("b")), user("c")) == [(Change.SYNTHESISED, "$.assistant")]


def test_no_word_is_put_before_an_assistant_of_which_nothing_is_left() -> None:
    assert told(assistant(SIGNED), user("a")) == [("user", ["a"])]
    found = encode(assistant(SIGNED), system(), assistant(Text("b")))
    assert found.system == [{"type": "text", "text": "s"}]
    assert [message.role for message in found.messages] == [Role.USER, Role.ASSISTANT]


def test_the_assistant_does_not_end_in_thinking() -> None:
    turns = user("a"), assistant(Text("b"), SIGNED), user("c"), assistant(SIGNED), user("d")
    assert told(*turns) == [("user", ["a"]), ("assistant", ["b"]), ("user", ["c", "d"])]
    assert noted(*turns) == [(Change.DROPPED, "$.messages")]
    assert told(user("a"), system("s"), assistant(SIGNED), user("b")) == [("user", ["a", "b"]), ("system", ["s"])]


def test_words_to_go_on_from_do_not_end_in_space() -> None:
    assert told(user("a"), assistant(Text("b \n")))[1:] == [("assistant", ["b"])]
    raw = Opaque(Protocol.MESSAGES, "server_tool_use", b'{"type":"server_tool_use"}')
    assert told(user("a"), assistant(raw))[1:] == [("assistant", ["server_tool_use"])]


def test_instructions_alone_are_asked_as_the_users() -> None:
    found = encode(system())
    assert (found.system, [message.encoded() for message in found.messages]) == (
        [],
        [{"role": "user", "content": "s"}],
    )
    assert noted(system()) == [(Change.ALTERED, "$.messages")]


@pytest.mark.parametrize("turns", [(), (user(),), (user(" "), assistant()), (result("x"),), (assistant(SIGNED),)])
def test_a_conversation_of_which_nothing_is_left_is_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(*turns)
    assert (caught.value.code, caught.value.status_hint) == ("empty_conversation", 400)


def test_only_one_text_without_a_mark_is_a_string() -> None:
    text: dict[str, object] = {"type": "text", "text": "a"}
    assert plain([text]) == "a"
    for parts in ([text, text], [{**text, "cache_control": {}}], [{"type": "image"}]):
        assert plain(list(parts)) == parts


def test_a_message_tells_what_it_begins_with() -> None:
    (message,) = encode(user("a")).messages
    assert message.first_type() == "text"
    raw = Opaque(Protocol.MESSAGES, "container_upload", b'{"type":"container_upload"}')
    (message,) = encode(Turn(Role.USER, (raw,))).messages
    assert message.first_type() is None
