"""The official `openai` SDK against a gateway, straight to the demo provider's models and through aliases.

It must find no difference to OpenAI's own service, and every failure as the exception class that it has for it.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
import openai
import pytest
from attrs import frozen
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)

from tests.e2e.conftest import faultless
from tests.support.process import Capi, LogLine, gateway

HI: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "What is capi?"}]
WEATHER: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "call get_weather for Oslo"}]
TOOLS: Final[list[ChatCompletionToolParam]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
# The demo provider answers at a human pace unless told not to.
QUICK: Final = {"demo": {"pace_ms": 0}}
ALIASES: Final = {"fast": "demo-chat", "deep": "demo-reasoner", "vectors": "demo-embed"}


@frozen
class Door:
    """A gateway, and what the demo models are called there."""

    capi: Capi
    chat: str
    reasoner: str
    embed: str

    def client(self, **headers: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.capi.url}/v1", api_key="sk-unused", max_retries=0, timeout=10, default_headers=headers
        )

    def log_of(self, request_id: str | None) -> LogLine:
        """The log line of the request with that id."""
        return self.capi.log_line("exchange", request_id=request_id)


@pytest.fixture(scope="module")
def aliased(shared_demo: Capi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A second gateway, to which the first one's provider is any server that speaks OpenAI's protocol."""
    config = {
        "models": {alias: {"upstream": model} for alias, model in ALIASES.items()},
        "upstreams": {"there": {"kind": "openai", "base_url": shared_demo.provider_url}},
    }
    with faultless(gateway(tmp_path_factory.mktemp("alias"), config)) as capi:
        yield Door(capi, *ALIASES)


@pytest.fixture(params=["direct", "alias"])
def door(request: pytest.FixtureRequest, shared_demo: Capi, aliased: Door) -> Door:
    return aliased if request.param == "alias" else Door(shared_demo, *ALIASES.values())


def text_of(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    """The text that a stream spells out for one choice."""
    pieces = (c.delta.content for chunk in chunks for c in chunk.choices if c.index == choice)
    return "".join(piece for piece in pieces if piece)


def tokens(line: LogLine) -> tuple[int, int]:
    """What a log line says of the tokens of the prompt and of the completion: it has them in disjoint counts."""

    def total(*names: str) -> int:
        counts = (line[f"tokens_{name}"] for name in names)
        return sum(count for count in counts if isinstance(count, int))

    return total("uncached_input", "cache_read", "cache_write"), total("output", "reasoning")


def status_fault(status: int, **more: object) -> dict[str, object]:
    """An `extra_body` that makes the demo provider answer with that status."""
    return {"demo": {"fault": "status", "status": status, **more}}


# -- chat -------------------------------------------------------------------------------------------------------


def test_create(door: Door) -> None:
    with door.client() as client:
        completion = client.chat.completions.create(model=door.chat, messages=HI)
    assert completion.model == door.chat
    assert completion.choices[0].message.content is not None
    assert "capi is a self-hosted gateway" in completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    line = door.log_of(completion._request_id)
    assert (line["outcome"], line["status"], line["model"]) == ("ok", 200, door.chat)
    assert tokens(line) == (completion.usage.prompt_tokens, completion.usage.completion_tokens)


def test_a_stream_spells_the_answer_and_hides_the_usage_that_only_the_gateway_asked_for(door: Door) -> None:
    with door.client() as client:
        whole = client.chat.completions.create(model=door.chat, messages=HI)
        stream = client.chat.completions.create(model=door.chat, messages=HI, stream=True, extra_body=QUICK)
        request_id = stream.response.headers["x-request-id"]
        chunks = list(stream)
    assert text_of(chunks) == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {door.chat}
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert whole.usage is not None
    line = door.log_of(request_id)
    assert (line["outcome"], line["usage_source"]) == ("ok", "upstream_final")
    assert tokens(line) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_a_stream_ends_with_the_usage_that_the_client_asked_for(door: Door) -> None:
    with door.client() as client:
        stream = client.chat.completions.create(
            model=door.chat, messages=HI, stream=True, stream_options={"include_usage": True}, extra_body=QUICK
        )
        *chunks, last = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert last.model == door.chat


def test_include_usage_false_is_as_good_as_not_asked(door: Door) -> None:
    with door.client() as client:
        stream = client.chat.completions.create(
            model=door.chat, messages=HI, stream=True, stream_options={"include_usage": False}, extra_body=QUICK
        )
        request_id = stream.response.headers["x-request-id"]
        assert all(chunk.choices and chunk.usage is None for chunk in stream)
    assert all(count > 0 for count in tokens(door.log_of(request_id)))


def test_the_stream_helper(door: Door) -> None:
    with door.client() as client:
        whole = client.chat.completions.create(model=door.chat, messages=HI)
        with client.chat.completions.stream(model=door.chat, messages=HI, extra_body=QUICK) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.model == door.chat


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_round_trip(door: Door, stream: bool) -> None:
    """The call comes whole or in deltas; its result goes back; the model quotes it."""
    with door.client() as client:
        if stream:
            with client.chat.completions.stream(
                model=door.chat, messages=WEATHER, tools=TOOLS, extra_body=QUICK
            ) as events:
                message = events.get_final_completion().choices[0].message
            assert message.tool_calls
            call = message.tool_calls[0]
            call_id, name, arguments = call.id, call.function.name, call.function.arguments
        else:
            choice = client.chat.completions.create(model=door.chat, messages=WEATHER, tools=TOOLS).choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls
            asked = choice.message.tool_calls[0]
            assert asked.type == "function"
            call_id, name, arguments = asked.id, asked.function.name, asked.function.arguments
        assert name == "get_weather"
        assert isinstance(msgspec.json.decode(arguments, type=dict[str, str])["city"], str)
        answered: list[ChatCompletionMessageParam] = [
            *WEATHER,
            {
                "role": "assistant",
                "tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}],
            },
            {"role": "tool", "tool_call_id": call_id, "content": "4 degrees and rain"},
        ]
        last = client.chat.completions.create(model=door.chat, messages=answered, tools=TOOLS)
    assert "4 degrees and rain" in str(last.choices[0].message.content)


def test_a_reasoning_model_thinks_before_it_answers(door: Door) -> None:
    with door.client() as client:
        whole = client.chat.completions.create(model=door.reasoner, messages=HI, reasoning_effort="high")
        chunks = list(client.chat.completions.create(model=door.reasoner, messages=HI, stream=True, extra_body=QUICK))
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens
    extras = {name for chunk in chunks for c in chunk.choices for name in c.delta.model_extra or {}}
    assert extras & {"reasoning", "reasoning_content", "reasoning_text"}, extras
    assert text_of(chunks) == whole.choices[0].message.content


def test_two_choices_come_to_their_end_each(door: Door) -> None:
    with door.client() as client:
        whole = client.chat.completions.create(model=door.chat, messages=HI, n=2)
        chunks = list(client.chat.completions.create(model=door.chat, messages=HI, n=2, stream=True, extra_body=QUICK))
    assert [text_of(chunks, choice) for choice in (0, 1)] == [choice.message.content for choice in whole.choices]
    finished = [(c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(finished) == [(0, "stop"), (1, "stop")]


# The SDK leaves its own generators and its client's when it has seen [DONE].
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning")
async def test_the_asynchronous_client_on_trio(door: Door) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{door.capi.url}/v1", api_key="sk-unused", max_retries=0, timeout=10
    ) as client:
        whole = await client.chat.completions.create(model=door.chat, messages=HI)
        stream = await client.chat.completions.create(model=door.chat, messages=HI, stream=True, extra_body=QUICK)
        chunks = [chunk async for chunk in stream]
        assert text_of(chunks) == whole.choices[0].message.content
        async with client.chat.completions.stream(model=door.chat, messages=HI, extra_body=QUICK) as events:
            final = await events.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-12", messages=HI)
        assert [model.id async for model in client.models.list()]
        vectors = await client.embeddings.create(model=door.embed, input="a")
        assert len(vectors.data[0].embedding) == 64


# -- embeddings and models --------------------------------------------------------------------------------------


def test_embeddings_are_the_same_as_floats_and_as_base64(door: Door) -> None:
    """The SDK asks for base64 unless told otherwise, and decodes it itself."""
    with door.client() as client:
        decoded = client.embeddings.create(model=door.embed, input=["a", "b"])
        floats = client.embeddings.create(model=door.embed, input=["a", "b"], encoding_format="float")
    assert decoded.model == floats.model == door.embed
    assert len(decoded.data) == len(floats.data) == 2
    for ours, theirs in zip(decoded.data, floats.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)


def test_models_are_listed_and_found_one_by_one(door: Door) -> None:
    with door.client() as client:
        listed = [model.id for model in client.models.list()]
        assert {door.chat, door.reasoner, door.embed} <= set(listed)
        assert len(listed) == len(set(listed))
        for name in listed:
            assert client.models.retrieve(name).id == name
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("gpt-12")
    assert missing.value.code == "model_not_found"


# -- errors -----------------------------------------------------------------------------------------------------

CLASSES: Final[dict[int, type[openai.APIStatusError]]] = {
    400: openai.BadRequestError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", CLASSES)
def test_an_upstreams_error_is_the_sdks_own_exception(door: Door, status: int, stream: bool) -> None:
    with door.client() as client, pytest.raises(CLASSES[status]) as raised:
        client.chat.completions.create(
            model=door.chat, messages=HI, stream=stream, extra_body=status_fault(status, retry_after=7)
        )
    error = raised.value
    assert (error.status_code, error.code) == (status, "demo_fault")
    assert "was asked to" in error.message
    assert error.response.headers["retry-after"] == "7"
    line = door.log_of(error.request_id)
    assert (line["outcome"], line["status"]) == ("upstream_error", status)


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_refuses_the_gateways_key_is_not_the_clients_fault(door: Door, stream: bool) -> None:
    """A client that got the bare 401 would ask its user for another key."""
    with door.client() as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model=door.chat, messages=HI, stream=stream, extra_body=status_fault(401))
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_unauthorized")


def test_an_unknown_model_and_a_body_that_names_none(shared_demo: Capi) -> None:
    """The second is no request that the SDK's types allow, but programs send it."""
    door = Door(shared_demo, *ALIASES.values())
    with door.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-12", messages=HI)
        with pytest.raises(openai.BadRequestError) as unnamed:
            client.post("/chat/completions", cast_to=object, body={"messages": []})
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert (unnamed.value.code, unnamed.value.param) == ("missing_model", "model")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("error_event", "upstream_error"),
        ("reset", "upstream_broke"),
        ("garbage", "upstream_broke"),
        ("bad_json", "upstream_broke"),
        ("end", "upstream_broke"),
    ],
)
def test_a_stream_that_breaks_raises_after_what_had_come(door: Door, fault: str, outcome: str) -> None:
    """Never a clean end: the caller must not take half an answer for a whole one."""
    chunks: list[ChatCompletionChunk] = []
    with door.client() as client:
        stream = client.chat.completions.create(
            model=door.chat, messages=HI, stream=True, extra_body={"demo": {"fault": fault, "at": 3, "pace_ms": 0}}
        )
        request_id = stream.response.headers["x-request-id"]
        with pytest.raises(openai.APIError) as raised:
            chunks.extend(stream)
    assert text_of(chunks)
    assert raised.value.code is not None
    assert door.log_of(request_id)["outcome"] == outcome


def test_an_event_stream_of_any_legal_shape_is_understood(door: Door) -> None:
    with door.client() as client:
        whole = client.chat.completions.create(model=door.chat, messages=HI).choices[0].message.content
        for shape in ({"line_end": "cr"}, {"line_end": "crlf"}, {"split": 1}, {"fault": "comments"}):
            stream = client.chat.completions.create(
                model=door.chat, messages=HI, stream=True, extra_body={"demo": {"pace_ms": 0, **shape}}
            )
            assert text_of(list(stream)) == whole, shape


def test_an_upstream_without_an_end_mark_still_ends(door: Door) -> None:
    """Azure's and Copilot's streams may stop without [DONE], even without the last blank line."""
    with door.client() as client:
        whole = client.chat.completions.create(model=door.chat, messages=HI).choices[0].message.content
        for fault in ("no_done", "no_blank"):
            stream = client.chat.completions.create(
                model=door.chat, messages=HI, stream=True, extra_body={"demo": {"fault": fault, "pace_ms": 0}}
            )
            assert text_of(list(stream)) == whole, fault


def test_a_client_may_leave_a_stream_early(door: Door) -> None:
    with door.client() as client:
        stream = client.chat.completions.create(
            model=door.chat, messages=HI, stream=True, extra_body={"demo": {"events": 1000, "pace_ms": 50}}
        )
        request_id = stream.response.headers["x-request-id"]
        next(iter(stream))
        stream.close()
    assert door.log_of(request_id)["outcome"] == "client_gone"
