"""Embeddings: vectors of the input and nothing else."""

import base64
import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse

from capi_trio.demo import embeddings
from capi_trio.demo.answers import Refused, Request, World, Write
from capi_trio.demo.app import IdCounter


def post(**members: object) -> bytes:
    body = msgspec.json.encode({"model": "demo-embed"} | members)
    answer = embeddings.answer(Request("POST", "/v1/embeddings", (), body), World(lambda: 0.0, IdCounter(), 0.0))
    return b"".join(step.data for step in answer.steps if isinstance(step, Write))


def embed(**members: object) -> CreateEmbeddingResponse:
    return CreateEmbeddingResponse.model_validate_json(post(**members))


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.integers()).map(tuple), st.integers(1, 300))
def test_vectors_have_length_one_and_depend_on_the_input_alone(item: str | tuple[int, ...], size: int) -> None:
    vector = embeddings.embed(item, size)
    assert vector == embeddings.embed(item, size)
    assert len(vector) == size
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)


def test_each_input_gets_its_own_vector_in_order() -> None:
    response = embed(input=["one", "two"])
    assert (response.object, response.model) == ("list", "demo-embed")
    assert [item.index for item in response.data] == [0, 1]
    one, two = (item.embedding for item in response.data)
    assert one == embed(input="one").data[0].embedding
    assert one != two
    assert len(one) == embeddings.DEFAULT_DIMENSIONS


def test_tokens_are_inputs_too() -> None:
    assert len(embed(input=[1, 2, 3]).data) == 1
    both = embed(input=[[1, 2, 3], [4]])
    assert both.data[0].embedding == embed(input=[1, 2, 3]).data[0].embedding
    assert both.usage.prompt_tokens == 4


def test_usage_counts_every_input() -> None:
    usage = embed(input=["12345678", "1"]).usage
    assert (usage.prompt_tokens, usage.total_tokens) == (3, 3)


def test_base64_holds_the_same_floats() -> None:
    floats = embed(input="x", dimensions=10, encoding_format="float").data[0].embedding
    encoded = msgspec.json.decode(post(input="x", dimensions=10, encoding_format="base64"))["data"][0]["embedding"]
    assert list(struct.unpack("<10f", base64.b64decode(encoded))) == floats


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({}, "invalid_input", "input"),
        ({"input": ""}, "invalid_input", "input"),
        ({"input": []}, "invalid_input", "input"),
        ({"input": ["a", ""]}, "invalid_input", "input"),
        ({"input": [[]]}, "invalid_input", "input"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": {"a": 1}}, "invalid_type", "input"),
        ({"input": ["a"] * 2049}, "array_above_max_length", "input"),
        ({"input": "a" * 40_000}, "context_length_exceeded", "input"),
        ({"input": "a", "dimensions": 0}, "invalid_type", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_type", "encoding_format"),
        ({"input": "a", "model": "demo-chat"}, "unsupported_api_for_model", "model"),
        ({"input": "a", "demo": {"fault": "end"}}, "invalid_demo_options", "demo"),
    ],
)
def test_bad_requests_are_refused(members: dict[str, object], code: str, param: str) -> None:
    with pytest.raises(Refused) as refused:
        post(**members)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param)
