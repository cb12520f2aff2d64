"""The reference that ratios are given against: hypercorn and httpx as they come, and nothing else.

`python -m bench.relay PORT UPSTREAM_URL`. A request's body goes to the upstream, each piece of the answer goes to the
client. No routes, no protocol, no keys, no log, no deadline, no watch for clients that leave: what a gateway on this
stack costs before it does anything.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click
import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import HTTPResponseBodyEvent, HTTPResponseStartEvent

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

__all__ = ["main", "relay"]

_PASSED_ON = (b"content-type", b"content-length")


async def relay(
    client: httpx.AsyncClient, base_url: str, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """An ASGI app once its first two arguments are bound."""
    if scope["type"] != "http":
        raise NotImplementedError  # an app without a lifespan: ASGI takes this for the answer
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        more = message["more_body"]
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    async with client.stream("POST", base_url + scope["path"], content=body, headers=headers) as response:
        passed_on = [(name.lower(), value) for name, value in response.headers.raw if name.lower() in _PASSED_ON]
        await send(HTTPResponseStartEvent(type="http.response.start", status=response.status_code, headers=passed_on))
        async for chunk in response.aiter_raw():
            await send(HTTPResponseBodyEvent(type="http.response.body", body=chunk, more_body=True))
    await send(HTTPResponseBodyEvent(type="http.response.body", body=b"", more_body=False))


async def _serve(port: int, base_url: str) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.backlog = 1024
    async with httpx.AsyncClient(timeout=None, trust_env=False) as client:  # noqa: S113 - it has no deadlines
        await serve(partial(relay, client, base_url), config)


@click.command()
@click.argument("port", type=int)
@click.argument("base_url")
def main(port: int, base_url: str) -> None:
    """Relay 127.0.0.1:PORT to BASE_URL, to which the path of a request is added."""
    trio.run(_serve, port, base_url)


if __name__ == "__main__":
    main()
