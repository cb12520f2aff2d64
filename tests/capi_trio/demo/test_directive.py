"""Options in the words of the user."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_trio.demo.answers import Refused
from capi_trio.demo.directive import given_options, obey, take_directive
from capi_trio.demo.faults import Fault, Options
from capi_trio.demo.prompt import Prompt, Role, Turn


def prompt(*turns: Turn, limited: bool = False) -> Prompt:
    return Prompt("demo-chat", turns, 100, limited=limited)


def user(text: str) -> Turn:
    return Turn(Role.USER, text)


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("plain [[words]] and {}", None, "plain [[words]] and {}"),
        ("", None, ""),
        ('[[demo {"at": 3}]]', {"at": 3}, ""),
        ('hi [[demo {"at": 3}]]', {"at": 3}, "hi"),
        ('[[demo {"at": 3}]] hi', {"at": 3}, "hi"),
        ('a [[demo  {"at": 3} ]] b', {"at": 3}, "a b"),
        ('a [[demo {"x": "]] [[demo }"}]] b', {"x": "]] [[demo }"}, "a b"),
        ('a [[demo {"at": 1}]] [[demo {"at": 2}]]', {"at": 1}, 'a [[demo {"at": 2}]]'),
    ],
)
def test_a_directive_is_taken_out_of_the_text(text: str, value: object, rest: str) -> None:
    assert take_directive(text) == (value, rest)


@pytest.mark.parametrize("rest", ["", "{", "fault]]", '{"at": 3}', '{"at": 3} x]]', "[" * 100_000, "9" * 5000])
def test_a_malformed_directive_is_refused(rest: str) -> None:
    with pytest.raises(Refused) as refused:
        take_directive(f"[[demo {rest}")
    assert refused.value.problem.code == "invalid_demo_options"


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    for said in (text, f"[[demo {text}", f"[[demo {{}}{text}"):
        with suppress(Refused):
            take_directive(said)


def test_the_last_user_message_is_obeyed_and_loses_its_directive() -> None:
    first, last = user('[[demo {"at": 9}]] one'), user('two [[demo {"fault": "end", "events": 3}]]')
    answered = Turn(Role.TOOL, "18 °C")
    heard, options = obey(prompt(first, last, answered), None, streaming=True)
    assert heard.turns == (first, user("two"), answered)
    assert options == Options(fault=Fault.END, events=3)
    assert heard.events == 3


def test_the_requests_own_member_wins() -> None:
    given_first = given_options({"at": 5}, streaming=True)
    heard, options = obey(prompt(user('hi [[demo {"fault": "end"}]]')), given_first, streaming=True)
    assert options == Options(at=5)
    assert heard.turns == (user("hi"),)


def test_without_either_there_is_no_trouble() -> None:
    assert given_options(None, streaming=True) is None
    asked = prompt(Turn(Role.SYSTEM, '[[demo {"at": 5}]]'))
    assert obey(asked, None, streaming=True) == (asked, Options())


def test_many_events_are_not_cut_by_a_limit_that_nobody_asked_for() -> None:
    asked = user('[[demo {"events": 9000}]]')
    assert obey(prompt(asked), None, streaming=True)[0].max_tokens > 10**6
    assert obey(prompt(asked, limited=True), None, streaming=True)[0].max_tokens == 100


def test_a_directive_is_checked_as_the_member_is() -> None:
    for directive, streaming in (('{"fault": "explode"}', True), ('{"fault": "end"}', False), ("3", True)):
        with pytest.raises(Refused) as refused:
            obey(prompt(user(f"[[demo {directive}]]")), None, streaming=streaming)
        assert refused.value.problem.code == "invalid_demo_options"
