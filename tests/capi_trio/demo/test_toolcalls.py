"""Which tools the demo model calls, and with what."""

import msgspec
import pytest

from capi_trio.demo.prompt import Prompt, Role, Tool, ToolChoice, Turn
from capi_trio.demo.toolcalls import choose_calls

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "The weather", CITY)
TIME = Tool("getLocalTime", "The time", CITY)
LS = Tool("ls", "List files", {"type": "array"})


def calls(
    text: str,
    tools: tuple[Tool, ...] = (WEATHER, TIME, LS),
    choice: ToolChoice = ToolChoice.AUTO,
    *,
    forced: str | None = None,
    parallel: bool = True,
    role: Role = Role.USER,
) -> list[str]:
    last = Turn(role, text)
    prompt = Prompt("demo-chat", (last,), 100, tools, choice, forced_tool=forced, parallel_calls=parallel)
    return [call.name for call in choose_calls(prompt, last)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call get_weather.", ["get_weather"]),
        ("Is the WEATHER nice?", ["get_weather"]),
        ("What time is it, in local terms?", ["getLocalTime"]),
        ("run ls", ["ls"]),
        ("get me some tools", []),
        ("hello", []),
        ("The weather, but ls too", ["ls"]),
    ],
)
def test_a_tool_is_called_when_the_text_names_it_or_a_word_of_its_name(text: str, expected: list[str]) -> None:
    assert calls(text) == expected


def test_a_required_call_without_a_name_in_the_text_is_of_the_first_tool() -> None:
    assert calls("hello", choice=ToolChoice.REQUIRED) == ["get_weather"]


def test_several_are_called_when_a_call_is_required_and_several_are_named() -> None:
    text = "weather and time"
    assert calls(text, choice=ToolChoice.REQUIRED) == ["get_weather", "getLocalTime"]
    assert calls(text, choice=ToolChoice.REQUIRED, parallel=False) == ["get_weather"]
    assert calls(text) == ["get_weather"]


def test_a_forced_tool_is_called_whatever_the_text_says() -> None:
    assert calls("weather", choice=ToolChoice.REQUIRED, forced="ls") == ["ls"]


def test_no_tool_is_called_when_none_may_be_or_none_is_there_or_the_user_did_not_speak_last() -> None:
    assert calls("weather", choice=ToolChoice.NONE) == []
    assert calls("weather", tools=()) == []
    assert calls("weather", role=Role.TOOL) == []


def test_arguments_are_json_in_several_fragments() -> None:
    last = Turn(Role.USER, "the weather in Paris")
    (call,) = choose_calls(Prompt("demo-chat", (last,), 100, (WEATHER,)), last)
    assert len(call.arguments) > 1
    assert msgspec.json.decode("".join(call.arguments)) == {"city": "Paris"}


def test_arguments_are_an_object_whatever_the_schema_says() -> None:
    last = Turn(Role.USER, "ls")
    (call,) = choose_calls(Prompt("demo-chat", (last,), 100, (LS,)), last)
    assert call.arguments == ("{}",)
