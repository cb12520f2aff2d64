"""The plain data between protocols and the script."""

import attrs
import pytest
from openai.types.chat.chat_completion import Choice
from pydantic import TypeAdapter

from capi_trio.demo.prompt import Finish, JsonMode, Prompt, Role, ToolChoice, Turn, thoughts_for


def test_a_prompt_needs_only_a_model_turns_and_a_limit() -> None:
    prompt = Prompt("demo-chat", (Turn(Role.USER, "hi"),), max_tokens=10)
    assert prompt.tool_choice is ToolChoice.AUTO
    assert prompt.parallel_calls
    assert (prompt.tools, prompt.stop, prompt.json_mode, prompt.events) == ((), (), None, None)


def test_a_prompt_cannot_be_changed() -> None:
    prompt = Prompt("demo-chat", (), max_tokens=10)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        prompt.json_mode = JsonMode()  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("finish", Finish)
def test_each_finish_is_a_finish_reason_of_the_official_sdk(finish: Finish) -> None:
    adapter = TypeAdapter(Choice)
    choice = {"index": 0, "message": {"role": "assistant"}, "finish_reason": finish.value}
    assert adapter.validate_python(choice).finish_reason == finish.value


@pytest.mark.parametrize(("effort", "thoughts"), [(None, 2), ("none", 0), ("minimal", 1), ("max", 3), ("odd", 2)])
def test_effort_is_worth_sentences(effort: str | None, thoughts: int) -> None:
    assert thoughts_for(effort) == thoughts
