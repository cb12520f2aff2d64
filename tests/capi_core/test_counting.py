"""Counting a request: the whole of it, without a limit on the answer, and with what is wrong told by its path."""

import msgspec
import pytest

from capi_core.counting import count_request, estimate_request
from capi_core.errors import ProtocolError
from capi_core.members import JSONObject
from capi_core.tokens import ESTIMATOR


def asked(**members: object) -> JSONObject:
    return JSONObject(
        msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hello"}], **members})
    )


def count(document: JSONObject, factor: float = 1.0) -> int:
    answer = msgspec.json.decode(count_request(document, ESTIMATOR, vendor_factor=factor), type=dict[str, int])
    return answer["input_tokens"]


def test_a_count_needs_no_limit_on_the_answer() -> None:
    assert count(asked()) > 0
    assert estimate_request(asked(), "any") == count_request(asked(), ESTIMATOR)


def test_everything_counts() -> None:
    tool = {"name": "f", "description": "what it does", "input_schema": {"type": "object"}}
    assert count(asked()) < count(asked(system="be brief")) < count(asked(system="be brief", tools=[tool]))
    assert count(asked(), factor=2.0) > count(asked())


def test_text_that_looks_like_a_special_token_is_text() -> None:
    """The base proxy answers 1 to it (spec.md 5, entry 30)."""
    marked = {"role": "user", "content": "<|endoftext|>" * 100}
    assert count(asked(messages=[marked])) > 100


def test_what_is_wrong_is_told_by_its_path() -> None:
    with pytest.raises(ProtocolError) as caught:
        estimate_request(asked(messages=[{"role": "user", "content": [{"type": "text", "text": 7}]}]), "any")
    assert caught.value.status_hint == 400
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[0].content[0]")
