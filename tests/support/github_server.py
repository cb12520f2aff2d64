"""The demo provider with a GitHub in it, on a socket: a peer for gateways that run in processes of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from capi_trio.demo import DemoProvider
from capi_trio.demo.github import DemoGitHub

__all__ = ["serving"]


@asynccontextmanager
async def serving(github: DemoGitHub) -> AsyncIterator[str]:
    """That GitHub on a free port; its base URL."""
    config = Config()
    config.errorlog = None
    app = DemoProvider(time, github=github)

    async def connection(stream: trio.SocketStream) -> None:
        server = TCPServer(ASGIWrapper(app), config, WorkerContext(None), {}, stream)  # type: ignore[arg-type]  # says SSL
        await server.run()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, connection, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
