"""What the demo model says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_trio.demo.prompt import Call, Finish, JsonMode, Prompt, Reply, Role, Tool, ToolChoice, Turn
from capi_trio.demo.script import IMAGE_TOKENS, TURN_TOKENS, prompt_tokens, reply_to
from capi_trio.demo.tokens import estimate_tokens

PING = Tool("ping", "Pings", {"type": "object", "properties": {"host": {"type": "string"}}})


def user(text: str, images: int = 0) -> Turn:
    return Turn(Role.USER, text, images)


def prompt(
    *turns: Turn,
    max_tokens: int = 1000,
    tools: tuple[Tool, ...] = (),
    json_mode: JsonMode | None = None,
    stop: tuple[str, ...] = (),
    thoughts: int = 0,
    events: int | None = None,
) -> Prompt:
    return Prompt(
        "demo-chat", turns, max_tokens, tools, json_mode=json_mode, stop=stop, thoughts=thoughts, events=events
    )


def text_of(reply: Reply) -> str:
    return "".join(reply.text)


def test_the_reply_quotes_what_the_user_said() -> None:
    reply = reply_to(prompt(user("The moon is\n made of cheese")))
    assert "You said: “The moon is made of cheese”." in text_of(reply)
    assert reply.finish is Finish.STOP
    assert len(reply.text) > 10


def test_a_long_message_is_quoted_in_short() -> None:
    assert f"“{'x' * 159}…”" in text_of(reply_to(prompt(user("x" * 500))))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is capi?", "self-hosted gateway"),
        ("Who are you?", "I am demo-chat"),
        ("Which models are there", "demo-reasoner"),
        ("help!", "Try:"),
        ("do a fault", '{"demo": {"fault": "reset", "at": 3}}'),
        ("anything else", "I answer from a script"),
    ],
)
def test_it_answers_questions_about_capi(question: str, answer: str) -> None:
    assert answer in text_of(reply_to(prompt(user(question))))


def test_the_same_prompt_gets_the_same_reply_and_each_choice_another() -> None:
    asked = prompt(user("hello"))
    assert reply_to(asked) == reply_to(asked)
    replies = [text_of(reply_to(asked, variant)) for variant in range(3)]
    assert len(set(replies)) == 3
    assert replies[2].startswith("(Choice 3) ")


def test_it_says_how_many_images_came() -> None:
    assert "You sent an image." in text_of(reply_to(prompt(user("look", 1))))
    assert "You sent 2 images." in text_of(reply_to(prompt(user("look", 2))))


def test_it_has_an_answer_to_no_message_at_all() -> None:
    assert text_of(reply_to(prompt(Turn(Role.SYSTEM, "be nice")))).startswith("I am demo-chat")


def test_it_goes_on_after_an_assistant_message_and_past_late_system_messages() -> None:
    assert text_of(reply_to(prompt(user("hi"), Turn(Role.ASSISTANT, "Well,")))).startswith("I am demo-chat")
    assert "“hi”" in text_of(reply_to(prompt(user("hi"), Turn(Role.SYSTEM, "be brief"))))


def test_it_calls_a_tool_instead_of_speaking() -> None:
    reply = reply_to(prompt(user('ping "a.example"'), tools=(PING,)))
    assert reply.text == ()
    (call,) = reply.calls
    assert (call.name, "".join(call.arguments)) == ("ping", '{"host":"a.example"}')
    assert reply.finish is Finish.TOOL_CALLS


def test_it_quotes_every_tool_result_that_it_is_given() -> None:
    turns = (
        user("ping"),
        Turn(Role.ASSISTANT, "", calls=(Call("ping", ("{}",)),)),
        Turn(Role.TOOL, "18 ms", name="ping"),
        Turn(Role.SYSTEM, "be brief"),
        Turn(Role.TOOL, "19 ms"),
    )
    reply = reply_to(prompt(*turns, tools=(PING,)))
    assert text_of(reply) == "ping answered: “18 ms”. The tool answered: “19 ms”."
    assert reply.calls == ()
    assert text_of(reply_to(prompt(Turn(Role.TOOL, "x")))) == "The tool answered: “x”."


def test_json_mode_gives_an_object_and_a_schema_its_shape() -> None:
    reply = reply_to(prompt(user("hello"), json_mode=JsonMode()))
    assert "I answer from a script" in msgspec.json.decode(text_of(reply), type=dict[str, str])["reply"]
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert text_of(reply_to(prompt(user("hello"), json_mode=JsonMode(schema)))) == '{"ok":true}'


@pytest.mark.parametrize("events", [0, 1, 3, 100])
def test_the_number_of_text_pieces_can_be_asked_for(events: int) -> None:
    reply = reply_to(prompt(user("hello"), events=events))
    assert len(reply.text) == events
    reply = reply_to(prompt(user("hello"), events=events, json_mode=JsonMode()))
    assert len(reply.text) == events
    if events:
        msgspec.json.decode(text_of(reply))


def test_reasoning_comes_in_pieces_of_its_own_and_is_counted() -> None:
    reply = reply_to(prompt(user("one two three"), thoughts=2))
    assert "3 words" in "".join(reply.reasoning)
    assert reply.reasoning_tokens == estimate_tokens("".join(reply.reasoning))
    assert reply.completion_tokens == reply.reasoning_tokens + estimate_tokens(text_of(reply))


def test_a_stop_sequence_ends_the_text_before_itself() -> None:
    reply = reply_to(prompt(user("hello"), stop=("script", " model", "")))
    assert text_of(reply).endswith("a simulated")
    assert (reply.finish, reply.stop_sequence) == (Finish.STOP, " model")
    assert reply_to(prompt(user("hello"), stop=("nowhere",))).stop_sequence is None


def test_the_token_limit_cuts_the_text() -> None:
    reply = reply_to(prompt(user("hello"), max_tokens=3))
    assert text_of(reply) == "You said: “"[:10]
    assert (reply.finish, reply.completion_tokens) == (Finish.LENGTH, 3)


def test_a_stop_sequence_beyond_the_token_limit_did_not_end_the_text() -> None:
    reply = reply_to(prompt(user("hello"), max_tokens=3, stop=("model",)))
    assert (reply.finish, reply.stop_sequence) == (Finish.LENGTH, None)


def test_the_token_limit_cuts_calls_inside_their_arguments_and_drops_whole_ones() -> None:
    asked = prompt(user('ping "a.example"'), max_tokens=3, tools=(PING,))
    (call,) = reply_to(asked).calls
    assert "".join(call.arguments) == '{"host":'
    assert reply_to(asked).finish is Finish.LENGTH
    nothing = reply_to(prompt(user("hello hello"), thoughts=3, max_tokens=1))
    assert (nothing.text, nothing.calls) == ((), ())
    two = Prompt(
        "demo-chat",
        (user("ping pong"),),
        5,
        (PING, Tool("pong" * 5, "", {})),
        ToolChoice.REQUIRED,
        forced_tool="pong" * 5,
    )
    assert reply_to(two).calls[0].arguments == ()
    assert reply_to(Prompt("demo-chat", (user("ping"),), 4, two.tools, forced_tool="pong" * 5)).calls == ()


@given(st.text(), st.integers(1, 200), st.integers(0, 3), st.integers(0, 60) | st.none())
def test_no_reply_costs_more_than_its_limit_and_the_figures_add_up(
    text: str, limit: int, thoughts: int, events: int | None
) -> None:
    reply = reply_to(prompt(user(text), max_tokens=limit, thoughts=thoughts, events=events, tools=(PING,)))
    spent = estimate_tokens("".join(reply.reasoning)) + estimate_tokens(text_of(reply))
    spent += sum(estimate_tokens(call.name) + estimate_tokens("".join(call.arguments)) for call in reply.calls)
    assert reply.completion_tokens == spent <= limit


def test_a_prompt_costs_its_text_images_calls_and_tools() -> None:
    assert prompt_tokens(prompt(user("12345678"))) == TURN_TOKENS + 2
    assert prompt_tokens(prompt(user("", 2))) == TURN_TOKENS + 2 * IMAGE_TOKENS
    called = Turn(Role.ASSISTANT, "", calls=(Call("ping", ("{}",)),))
    assert prompt_tokens(prompt(called)) == TURN_TOKENS + 2
    assert prompt_tokens(prompt(tools=(Tool("ab", "cd", {}),))) == 2
