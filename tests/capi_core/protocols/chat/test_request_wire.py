"""What is read of a request: open where several forms are legal, strict where a type could only be a mistake."""

import pytest

from capi_core.errors import ProtocolError
from capi_core.protocols.chat.request_wire import CHOICE, FORMAT, MESSAGE, PART, REQUEST, TOOL, Choice
from capi_core.protocols.reading import read_json


def test_members_that_it_does_not_know_are_passed_over() -> None:
    assert read_json(REQUEST, b'{"messages":[],"new":1}').messages == []
    assert read_json(MESSAGE, b'{"role":"user","new":[]}').role == "user"


def test_content_is_a_text_or_parts_and_a_choice_is_a_word_or_an_object() -> None:
    assert read_json(MESSAGE, b'{"role":"user","content":"a"}').content == "a"
    parts = read_json(MESSAGE, b'{"role":"user","content":[5,{}]}').content
    assert isinstance(parts, list)
    assert [bytes(part) for part in parts] == [b"5", b"{}"]
    assert read_json(CHOICE, b'"auto"') == "auto"
    assert read_json(CHOICE, b"null") is None
    choice = read_json(CHOICE, b'{"type":"allowed_tools","allowed_tools":{"tools":[{"name":"f"}]}}')
    assert isinstance(choice, Choice)
    assert choice.allowed_tools is not None
    assert (choice.allowed_tools.mode, choice.allowed_tools.tools) == ("auto", [Choice(name="f")])


def test_an_image_may_be_a_bare_address() -> None:
    assert read_json(PART, b'{"type":"image_url","image_url":"u"}').image_url == "u"


@pytest.mark.parametrize(
    ("decoder", "text", "path"),
    [
        (REQUEST, b"{}", "$"),
        (REQUEST, b'{"messages":[],"stop":[1]}', "stop[0]"),
        (REQUEST, b'{"messages":[],"stop":5}', "stop"),
        (REQUEST, b'{"messages":[],"stream":"yes"}', "stream"),
        (REQUEST, b'{"messages":[],"max_tokens":1.5}', "max_tokens"),
        (MESSAGE, b'{"role":"user","content":5}', "content"),
        (MESSAGE, b'{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}', "tool_calls[0]"),
        (PART, b'{"text":"a"}', "$"),
        (PART, b'{"type":"input_audio","input_audio":{"data":"a"}}', "input_audio"),
        (TOOL, b'{"function":{"name":1}}', "function.name"),
        (FORMAT, b'{"type":"grammar","grammar":{"syntax":"lark"}}', "grammar"),
        (CHOICE, b"5", "$"),
    ],
)
def test_a_wrong_type_is_told_with_its_path(decoder: object, text: bytes, path: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_json(decoder, text)  # type: ignore[arg-type]  # decoders of different types
    assert (caught.value.code, caught.value.param) == ("invalid_request", path)
