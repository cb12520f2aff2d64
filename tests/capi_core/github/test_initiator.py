"""Who began a request: one rule in three protocols, and never a guess that saves quota."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.fidelity import Ledger
from capi_core.github.initiator import Initiator, has_images, initiator_of
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.target import Target

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
USER, AGENT = Initiator.USER, Initiator.AGENT
PNG = "iVBORw0KGgo="

# What is said, as each protocol writes it. A list of them is a conversation.
Spoken = dict[Protocol, list[dict[str, object]]]


def said(role: str, text: str) -> Spoken:
    message: dict[str, object] = {"role": role, "content": text}
    return {protocol: [message] for protocol in Protocol}


def result(*, then: str | None = None) -> Spoken:
    """A tool's result and, in Messages in the same message, the user's words after it."""
    blocks: list[object] = [{"type": "tool_result", "tool_use_id": "c1", "content": "4 degrees"}]
    words: list[dict[str, object]] = [] if then is None else [{"role": "user", "content": then}]
    return {
        CHAT: [{"role": "tool", "tool_call_id": "c1", "content": "4 degrees"}, *words],
        MESSAGES: [{"role": "user", "content": [*blocks, *([{"type": "text", "text": then}] if then else [])]}],
        RESPONSES: [{"type": "function_call_output", "call_id": "c1", "output": "4 degrees"}, *words],
    }


ASK = said("user", "hi")
ANSWER = said("assistant", "hello")
SYSTEM = said("system", "be brief")
CALL: Spoken = {
    CHAT: [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
    ],
    MESSAGES: [{"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]}],
    RESPONSES: [{"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}],
}
# What Claude Code sends in a loop of its own: results with a reminder after them. It is not told from the user's words.
RESULT, RESULT_AND_WORDS = result(), result(then="and in Fahrenheit?")

CASES: list[tuple[str, list[Spoken], Initiator]] = [
    ("a first message", [ASK], USER),
    ("a follow-up, though an assistant has spoken before", [ASK, ANSWER, ASK], USER),
    ("a follow-up after a tool was used", [ASK, CALL, RESULT, ANSWER, ASK], USER),
    ("a tool's result", [ASK, CALL, RESULT], AGENT),
    ("a tool's result with the user's words after it", [ASK, CALL, RESULT_AND_WORDS], USER),
    ("an assistant's turn to go on with", [ASK, ANSWER], AGENT),
    ("a call without its result", [ASK, CALL], AGENT),
    ("instructions after the user's message", [ASK, SYSTEM], USER),
    ("instructions after a tool's result", [ASK, CALL, RESULT, SYSTEM], AGENT),
    ("instructions alone", [SYSTEM], USER),
    ("nothing", [], USER),
]


def document(protocol: Protocol, *items: object, **members: object) -> JSONObject:
    name = "input" if protocol is RESPONSES else "messages"
    return JSONObject(msgspec.json.encode({"model": "m", "max_tokens": 99, name: items} | members))


def written(protocol: Protocol, conversation: list[Spoken]) -> JSONObject:
    return document(protocol, *itertools.chain.from_iterable(spoken[protocol] for spoken in conversation))


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize(("conversation", "initiator"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_rule(protocol: Protocol, conversation: list[Spoken], initiator: Initiator) -> None:
    assert initiator_of(protocol, written(protocol, conversation)) is initiator


TRANSLATIONS = [(client, upstream) for client in Protocol for upstream in Protocol if client is not upstream]


@pytest.mark.parametrize(("client", "upstream"), TRANSLATIONS)
@pytest.mark.parametrize("conversation", [case[1] for case in CASES[:6]], ids=[case[0] for case in CASES[:6]])
def test_a_translated_request_has_the_initiator_of_the_original(
    client: Protocol, upstream: Protocol, conversation: list[Spoken]
) -> None:
    """So it does not matter which of the two is asked."""
    original = written(client, conversation)
    decoded = CODECS[client].decode_request(original, Ledger())
    encoded = CODECS[upstream].encode_request(decoded, Target("m"), Ledger())
    assert initiator_of(upstream, JSONObject(encoded.body)) is initiator_of(client, original)


@pytest.mark.parametrize(
    ("item", "initiator"),
    [
        ({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}, USER),
        ({"type": "message", "role": "assistant", "content": []}, AGENT),
        ({"type": "reasoning", "summary": []}, AGENT),
        ({"type": "custom_tool_call_output", "call_id": "c", "output": "x"}, AGENT),
        ({"type": "local_shell_call_output", "id": "c", "output": "x"}, AGENT),
        ({"type": "computer_call_output", "call_id": "c", "output": {}}, AGENT),
        ({"type": "web_search_call", "id": "w"}, AGENT),
        ({"type": "mcp_list_tools", "tools": []}, AGENT),
        ({"type": "mcp_approval_request", "id": "m"}, AGENT),
        ({"type": "mcp_approval_response", "approve": True}, USER),
        ({"type": "item_reference", "id": "x"}, USER),
        ({"id": "x"}, USER),
        ({"type": "something_new"}, USER),
    ],
)
def test_each_item_of_responses_has_its_side(item: dict[str, object], initiator: Initiator) -> None:
    assert initiator_of(RESPONSES, document(RESPONSES, item)) is initiator


def test_tools_among_the_items_say_nothing() -> None:
    tools = {"type": "additional_tools", "tools": []}
    assert initiator_of(RESPONSES, document(RESPONSES, *RESULT[RESPONSES], tools)) is AGENT


@pytest.mark.parametrize("value", ["hi", "", None, 5, {}, [5], [None], [[]], ["hi"]])
def test_what_is_no_list_of_messages_is_the_users(value: object) -> None:
    for protocol in Protocol:
        name = "input" if protocol is RESPONSES else "messages"
        request = JSONObject(msgspec.json.encode({"model": "m", name: value}))
        assert initiator_of(protocol, request) is USER
        assert not has_images(protocol, request)


def test_a_request_without_messages_is_the_users() -> None:
    for protocol in Protocol:
        assert initiator_of(protocol, JSONObject(b"{}")) is USER
        assert not has_images(protocol, JSONObject(b"{}"))


@pytest.mark.parametrize(
    ("content", "initiator"),
    [
        ([], USER),
        (None, USER),
        ([5], USER),
        ([{"type": 5}], USER),
        ([{"type": "image"}], USER),
        ([{"type": "tool_result"}, {"type": "mcp_tool_result"}], AGENT),
        ([{"type": "tool_result"}, {"type": "text", "text": ""}], USER),
        ([{"type": "text", "text": "x"}, {"type": "tool_result"}], USER),
    ],
)
def test_a_message_is_the_agents_only_when_all_of_it_is_results(content: object, initiator: Initiator) -> None:
    assert initiator_of(MESSAGES, document(MESSAGES, {"role": "user", "content": content})) is initiator


def test_a_legacy_function_result_is_the_agents() -> None:
    assert initiator_of(CHAT, document(CHAT, {"role": "function", "name": "f", "content": "x"})) is AGENT


def test_an_unknown_role_is_the_users() -> None:
    assert initiator_of(CHAT, document(CHAT, {"role": "critic", "content": "x"})) is USER


def test_a_name_may_be_written_in_escapes_and_texts_may_have_cut_emoji() -> None:
    raw = b'{"messages":[{"role":"\\u0074ool","content":"\\ud83d"}]}'
    assert initiator_of(CHAT, JSONObject(raw)) is AGENT
    raw = b'{"messages":[{"role":"user","content":[{"type":"\\u0069mage","source":{"type":"url","url":"x"}}]}]}'
    assert has_images(MESSAGES, JSONObject(raw))


IMAGE_BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
IMAGE_INPUT = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
DOCUMENT = {"type": "document", "source": {"type": "content", "content": [IMAGE_BLOCK]}}


@pytest.mark.parametrize(
    ("protocol", "item"),
    [
        (CHAT, {"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE_PART]}),
        (CHAT, {"role": "tool", "tool_call_id": "c", "content": [IMAGE_PART]}),
        (MESSAGES, {"role": "user", "content": [IMAGE_BLOCK]}),
        (
            MESSAGES,
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [IMAGE_BLOCK]}]},
        ),
        (MESSAGES, {"role": "user", "content": [DOCUMENT]}),
        (MESSAGES, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [DOCUMENT]}]}),
        (RESPONSES, {"role": "user", "content": [IMAGE_INPUT]}),
        (RESPONSES, {"type": "message", "role": "user", "content": [{"type": "input_text"}, IMAGE_INPUT]}),
        (RESPONSES, {"type": "function_call_output", "call_id": "c", "output": [IMAGE_INPUT]}),
        (RESPONSES, {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}),
    ],
)
def test_an_image_is_seen_wherever_it_stands(protocol: Protocol, item: dict[str, object]) -> None:
    """Results of tools and items without a type included (spec.md 5, 16 and 21); later messages do not hide it."""
    assert has_images(protocol, document(protocol, item))
    assert has_images(protocol, document(protocol, 5, item, {"role": "user", "content": "and?"}))


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize(
    "content",
    [
        "an image of image_url",
        [{"type": "text", "text": '{"type":"image"}'}],
        [{"type": "images"}],
        ["image"],
        "\\u0069",
    ],
)
def test_words_about_images_are_none(protocol: Protocol, content: object) -> None:
    assert not has_images(protocol, document(protocol, {"role": "user", "content": content}))


def test_images_nested_deeper_than_any_protocol_has_them_are_not_looked_for() -> None:
    """Each level is read anew: without an end to it, a hostile request would cost the square of its size."""
    block: object = IMAGE_BLOCK
    for _ in range(4):
        block = {"type": "tool_result", "content": [block]}
    assert not has_images(MESSAGES, document(MESSAGES, {"role": "user", "content": [block]}))


def test_a_request_of_countless_parts_is_judged_by_its_text_and_soon() -> None:
    """Each part costs a reading of its own; a request of millions would hold up everybody."""
    many: list[object] = [{}] * 20_001
    mention = {"role": "user", "content": [{"type": "text", "image": "x"}]}
    assert not has_images(MESSAGES, document(MESSAGES, mention, *many[:9_000]))
    assert has_images(MESSAGES, document(MESSAGES, mention, *many))
    assert not has_images(MESSAGES, document(MESSAGES, *many))
    countless = b'{"messages":[%b{"role":"assistant","type":"images"}]}' % (b"1," * 1_000_001)
    assert not has_images(MESSAGES, JSONObject(countless))
    assert has_images(MESSAGES, JSONObject(countless.replace(b"images", b"image")))
    assert initiator_of(MESSAGES, JSONObject(countless)) is USER


ATOMS = st.none() | st.booleans() | st.integers(-9, 9)
NAMES = st.sampled_from(["role", "type", "content", "output", "source", "x"])
WORDS = st.sampled_from(["user", "assistant", "tool", "system", "image", "input_image", "tool_result", "reasoning"])
JSON = st.recursive(ATOMS | WORDS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=20)


@given(protocol=st.sampled_from(Protocol), value=JSON)
def test_no_json_makes_either_fail(protocol: Protocol, value: object) -> None:
    name = "input" if protocol is RESPONSES else "messages"
    request = JSONObject(msgspec.json.encode({name: value}))
    assert initiator_of(protocol, request) in Initiator
    assert has_images(protocol, request) in (True, False)


@given(history=st.lists(st.sampled_from([ASK, ANSWER, SYSTEM, RESULT, RESULT_AND_WORDS]), max_size=6))
def test_what_the_user_says_last_is_the_users_whatever_was_before(history: list[Spoken]) -> None:
    for protocol in Protocol:
        assert initiator_of(protocol, written(protocol, [*history, ASK])) is USER
        assert initiator_of(protocol, written(protocol, [*history, ANSWER])) is AGENT
