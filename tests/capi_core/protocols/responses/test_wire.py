"""What Responses reads and writes in many places."""

from capi_core.members import decode
from capi_core.protocols.responses.wire import ITEM, ItemPart


def test_an_items_thoughts_are_its_summary_or_its_content() -> None:
    both = b'{"summary":[{"text":"s"},{"text":""}],"content":[{"text":"c"}]}'
    assert decode(ITEM, both)[0].thoughts == ("s",)
    assert decode(ITEM, b'{"summary":[],"content":[{"text":"c"}]}')[0].thoughts == ("c",)
    assert decode(ITEM, b"{}")[0].thoughts == ()


def test_a_call_is_called_with_its_arguments_or_its_input() -> None:
    assert decode(ITEM, b'{"arguments":"{}"}')[0].called_with == "{}"
    assert decode(ITEM, b'{"input":"x"}')[0].called_with == "x"
    assert decode(ITEM, b"{}")[0].called_with == ""


def test_a_parts_words_are_its_text_or_its_refusal() -> None:
    assert (ItemPart(text="t").words, ItemPart(refusal="r").words, ItemPart().words) == ("t", "r", "")
