"""The core of capi without capi: one Chat Completions stream through an `Exchange`, with no event loop.

The "upstream" is a list of byte chunks, cut in awkward places. Run it: python examples/embed.py
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from capi_core.aliases import Alias, Catalog, UpstreamModels
from capi_core.exchange import EndResponse, Exchange, Operation, SendBody, SendRequest, Settings, StartResponse, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.exchange import Command

CATALOG = Catalog(
    aliases={"fast": Alias("fast", upstream_model="small-model-2026-01-01")},
    upstreams=(UpstreamModels("lab", {"small-model-2026-01-01": b"{}"}),),
)
REQUEST = b'{"model": "fast", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
UPSTREAM = [
    b'data: {"model":"small-model-2026-01-01","choices":[{"index":0,"delta":{"content":"Hel',
    b'lo"},"finish_reason":null}]}\n\ndata: {"model":"small-model-2026-01-01","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\ndata: {"model":"small-model-2026-01-01","choices":[],',
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n',
]


def main() -> None:
    exchange = Exchange(Operation.CHAT, Settings(CATALOG), request_id="req_example")
    carry_out(exchange.receive_request(REQUEST))
    carry_out(exchange.receive_head(200, [(b"content-type", b"text/event-stream")]))
    for chunk in UPSTREAM:
        carry_out(exchange.receive_data(chunk))
    if exchange.state is not State.DONE:
        carry_out(exchange.receive_eof())
    sys.stdout.write(f"{exchange.record()}\n")


def carry_out(commands: Iterable[Command]) -> None:
    """Where an embedder would use its sockets."""
    for command in commands:
        match command:
            case SendRequest(upstream, operation, _, body):
                sys.stdout.write(f"-> {upstream}{operation.value}: {body.decode()}\n")
            case StartResponse(status, _):
                sys.stdout.write(f"<- {status}\n")
            case SendBody(data):
                sys.stdout.write(data.decode())
            case EndResponse():
                sys.stdout.write("<- end\n")


if __name__ == "__main__":
    main()
