"""The official SDKs against the demo provider, over a real socket: each of the protocols it speaks."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anthropic
import openai
import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from capi_trio.demo import DemoProvider, Outcome

pytestmark = pytest.mark.slow

T = TypeVar("T")
KEY = "sk-demo"
HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "What is capi?"}]


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[DemoProvider, str]]:
    app = DemoProvider(lambda: 1_800_000_000.0, api_key=KEY, pace_s=0.0)
    config = Config()
    config.errorlog = None

    async def connection(stream: trio.SocketStream) -> None:
        server = TCPServer(ASGIWrapper(app), config, WorkerContext(None), {}, stream)  # type: ignore[arg-type]  # says SSL
        await server.run()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, connection, [listener])
        yield app, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


async def run(ask: Callable[[openai.OpenAI], T]) -> tuple[T, DemoProvider]:
    """What `ask` makes of OpenAI's client of the provider."""

    def with_client(url: str) -> T:
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=10) as client:
            return ask(client)

    return await run_at(with_client)


async def run_anthropic(ask: Callable[[anthropic.Anthropic], T]) -> tuple[T, DemoProvider]:
    """What `ask` makes of Anthropic's client of the provider."""

    def with_client(url: str) -> T:
        base_url = url.removesuffix("/v1")
        with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, timeout=10) as client:
            return ask(client)

    return await run_at(with_client)


async def run_at(ask: Callable[[str], T]) -> tuple[T, DemoProvider]:
    """What `ask` makes of the provider's URL, in a thread of its own: the SDKs block."""
    async with serving() as (app, url):

        def work() -> T:
            return ask(url)

        result = await trio.to_thread.run_sync(work)
        # The client has its last byte a moment before the server is done with sending it.
        await app.until(lambda: app.active == 0)
        return result, app


async def test_models_chat_streams_and_embeddings() -> None:
    def ask(client: openai.OpenAI) -> None:
        assert next(iter(client.models.list())).id == "demo-chat"
        assert client.models.retrieve("demo-embed").owned_by == "capi"
        whole = client.chat.completions.create(model="demo-chat", messages=HI)
        text = whole.choices[0].message.content
        with client.chat.completions.stream(model="demo-chat", messages=HI) as stream:
            assert stream.get_final_completion().choices[0].message.content == text
        assert len(client.embeddings.create(model="demo-embed", input=["a", "b"]).data[1].embedding) == 64

    _, app = await run(ask)
    assert [record for record in app.requests if record.outcome is not Outcome.COMPLETED] == []


async def test_errors_become_the_sdks_exceptions() -> None:
    def ask(client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-12", messages=HI)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(
                model="demo-chat", messages=HI, extra_body={"demo": {"fault": "status", "status": 429}}
            )
        assert limited.value.request_id is not None
        assert limited.value.code == "demo_fault"
        for fault, error in (("error_event", openai.APIError), ("reset", openai.APIConnectionError)):
            stream = client.chat.completions.create(
                model="demo-chat", messages=HI, stream=True, extra_body={"demo": {"fault": fault}}
            )
            with pytest.raises(error):
                list(stream)

    await run(ask)


async def test_a_client_that_closes_its_stream_is_noticed_soon() -> None:
    async with serving() as (app, url):
        first = threading.Event()

        def work() -> None:
            with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=10) as client:
                options = {"demo": {"events": 1000, "pace_ms": 50}}
                stream = client.chat.completions.create(model="demo-chat", messages=HI, stream=True, extra_body=options)
                next(iter(stream))
                first.set()
                stream.close()

        await trio.to_thread.run_sync(work)
        assert first.is_set()
        with trio.fail_after(0.25):
            await app.until(lambda: app.active == 0)
        assert app.requests[0].outcome is Outcome.CLIENT_GONE


WEATHER_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
PARIS = "the weather in Paris"


async def test_responses_whole_and_streamed_say_the_same() -> None:
    def ask(client: openai.OpenAI) -> None:
        whole = client.responses.create(model="demo-gpt", input="What is capi?", reasoning={"summary": "auto"})
        assert [item.type for item in whole.output] == ["reasoning", "message"]
        assert whole.output_text
        with client.responses.stream(model="demo-gpt", input="What is capi?", reasoning={"summary": "auto"}) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.output_text == whole.output_text
        assert final.usage == whole.usage

    _, app = await run(ask)
    assert [record for record in app.requests if record.outcome is not Outcome.COMPLETED] == []


async def test_responses_call_a_tool_and_take_its_output_back() -> None:
    def ask(client: openai.OpenAI) -> str:
        history: list[openai.types.responses.ResponseInputItemParam] = [{"role": "user", "content": PARIS}]
        tools: list[openai.types.responses.ToolParam] = [
            {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": False}
        ]
        with client.responses.stream(
            model="demo-gpt", input=history, tools=tools, include=["reasoning.encrypted_content"]
        ) as stream:
            response = stream.get_final_response()
        reasoning, call = response.output
        assert reasoning.type == "reasoning"
        assert call.type == "function_call"
        assert call.arguments == '{"city":"Paris"}'
        assert reasoning.encrypted_content is not None
        history += [
            {"type": "reasoning", "id": reasoning.id, "summary": [], "encrypted_content": reasoning.encrypted_content},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "18 °C"},
        ]
        return client.responses.create(model="demo-gpt", input=history, tools=tools).output_text

    text, _ = await run(ask)
    assert text == "get_weather answered: “18 °C”."


async def test_responses_errors_become_the_sdks_exceptions() -> None:
    def ask(client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="No tool call found for function call output"):
            client.responses.create(
                model="demo-gpt", input=[{"type": "function_call_output", "call_id": "call_1", "output": "x"}]
            )
        with pytest.raises(openai.BadRequestError, match="does not support /responses"):
            client.responses.create(model="demo-claude", input="hi")
        lasts = []
        for fault in ("error_event", "failed"):
            stream = client.responses.create(
                model="demo-gpt", input="hi", stream=True, extra_body={"demo": {"fault": fault}}
            )
            lasts.append(list(stream)[-1])
        error, last = lasts
        assert error.type == "error"
        assert error.code == "demo_fault"
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"

    await run(ask)


async def test_messages_whole_and_streamed_say_the_same() -> None:
    def ask(client: anthropic.Anthropic) -> None:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "What is capi?"}]
        whole = client.messages.create(
            model="demo-claude", max_tokens=500, messages=messages, thinking={"type": "adaptive"}
        )
        assert [block.type for block in whole.content] == ["thinking", "text"]
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(
            model="demo-claude", max_tokens=500, messages=messages, thinking={"type": "adaptive"}
        ) as stream:
            final = stream.get_final_message()
        assert final.to_dict()["content"] == whole.to_dict()["content"]
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens
        counted = client.messages.count_tokens(model="demo-claude", messages=messages)
        assert counted.input_tokens == whole.usage.input_tokens

    _, app = await run_anthropic(ask)
    assert [record for record in app.requests if record.outcome is not Outcome.COMPLETED] == []


async def test_messages_call_a_tool_and_take_its_result_and_thinking_back() -> None:
    def ask(client: anthropic.Anthropic) -> str:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": PARIS}]
        tools: list[anthropic.types.ToolParam] = [{"name": "get_weather", "input_schema": WEATHER_SCHEMA}]
        with client.messages.stream(
            model="demo-claude", max_tokens=2000, messages=messages, tools=tools,
            thinking={"type": "enabled", "budget_tokens": 1024},
        ) as stream:  # fmt: skip
            message = stream.get_final_message()
        assert message.stop_reason == "tool_use"
        thinking, call = message.content
        assert thinking.type == "thinking"
        assert call.type == "tool_use"
        assert call.input == {"city": "Paris"}
        messages += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 °C"}]},
        ]
        (block,) = client.messages.create(model="demo-claude", max_tokens=99, messages=messages, tools=tools).content
        assert block.type == "text"
        return block.text

    text, _ = await run_anthropic(ask)
    assert text == "get_weather answered: “18 °C”."


async def test_messages_errors_become_the_sdks_exceptions() -> None:
    def ask(client: anthropic.Anthropic) -> None:
        hi: list[anthropic.types.MessageParam] = [{"role": "user", "content": "hi"}]
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(model="claude-12", max_tokens=9, messages=hi)
        assert missing.value.request_id is not None
        assert missing.value.body is not None
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="wrong").messages.create(model="demo-claude", max_tokens=9, messages=hi)
        with pytest.raises(anthropic.BadRequestError, match="temperature: Extra inputs"):
            client.messages.create(model="demo-claude", max_tokens=9, messages=hi, extra_body={"temperature": 1})
        limited = {"demo": {"fault": "status", "status": 429, "retry_after": 3}}
        with pytest.raises(anthropic.RateLimitError) as busy:
            client.messages.create(model="demo-claude", max_tokens=9, messages=hi, extra_body=limited)
        assert busy.value.response.headers["retry-after"] == "3"
        # The SDK hands on what its HTTP client says of a connection that breaks.
        for fault, message in (("error_event", "because it was asked to"), ("reset", "peer closed connection")):
            stream = client.messages.create(
                model="demo-claude", max_tokens=99, messages=hi, stream=True, extra_body={"demo": {"fault": fault}}
            )
            with pytest.raises(Exception, match=message):
                list(stream)

    await run_anthropic(ask)


async def test_one_model_speaks_every_protocol() -> None:
    """And says the same in each: only the shape differs."""

    def ask(client: openai.OpenAI) -> tuple[str | None, str]:
        chat = client.chat.completions.create(model="demo-all", messages=HI)
        return chat.choices[0].message.content, client.responses.create(
            model="demo-all", input="What is capi?"
        ).output_text

    def ask_anthropic(client: anthropic.Anthropic) -> str:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "What is capi?"}]
        with client.messages.stream(model="demo-all", max_tokens=500, messages=messages) as stream:
            return stream.get_final_text()

    (chat, response), _ = await run(ask)
    message, _ = await run_anthropic(ask_anthropic)
    assert chat == response == message


async def test_quirks_trip_the_sdks_that_they_trip_in_the_field() -> None:
    """Which is why a gateway has to mend them."""

    def ask(client: openai.OpenAI) -> None:
        for quirk in ("rotating_ids", "done_only"):
            with client.responses.stream(
                model="demo-gpt", input="hi", extra_body={"demo": {"quirks": [quirk]}}
            ) as stream:
                if quirk == "rotating_ids":
                    with pytest.raises(RuntimeError, match="identity changed"):
                        stream.get_final_response()
                else:
                    assert stream.get_final_response().output_text

    def ask_anthropic(client: anthropic.Anthropic) -> None:
        messages: list[anthropic.types.MessageParam] = [
            {"role": "user", "content": 'hi [[demo {"quirks": ["split_signature", "done_after_stop"]}]]'}
        ]
        with client.messages.stream(
            model="demo-claude", max_tokens=500, messages=messages, thinking={"type": "adaptive"}
        ) as stream:
            thinking, text = stream.get_final_message().content
        assert text.type == "text"
        assert "“hi”" in text.text
        # The SDK keeps only the last part of a signature, and the provider does not know that.
        with pytest.raises(anthropic.BadRequestError, match="Invalid `signature`"):
            client.messages.create(
                model="demo-claude",
                max_tokens=9,
                messages=[*messages, {"role": "assistant", "content": [thinking, text]}, *messages],
            )

    await run(ask)
    await run_anthropic(ask_anthropic)


async def test_structured_output_and_custom_tools_through_the_helpers() -> None:
    def ask(client: openai.OpenAI) -> None:
        custom: list[openai.types.responses.ToolParam] = [{"type": "custom", "name": "shell"}]
        with client.responses.stream(model="demo-gpt", input='shell "ls -l"', tools=custom) as stream:
            call = stream.get_final_response().output[-1]
        assert call.type == "custom_tool_call"
        assert call.input == "ls -l"
        incomplete = client.responses.create(model="demo-gpt", input="hi", max_output_tokens=16)
        assert incomplete.status == "incomplete"

    await run(ask)
