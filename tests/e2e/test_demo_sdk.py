"""The official SDK against the demo provider, over a real socket."""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

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
    """What `ask` makes of a client of the provider, in a thread of its own: the SDK blocks."""
    async with serving() as (app, url):

        def work() -> T:
            with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=10) as client:
                return ask(client)

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
