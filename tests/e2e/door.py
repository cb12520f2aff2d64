"""A client of one protocol and an upstream of another with nothing but an `Exchange` between them."""

from typing import Final

import msgspec

from capi_core.aliases import Alias, Catalog, UpstreamModels
from capi_core.commands import ExchangeLimits, Operation
from capi_core.exchange import Exchange, Settings
from capi_core.protocols.kinds import Protocol
from capi_core.routing import UpstreamTraits
from tests.support.playbook import Client, Input, Request, feed

__all__ = ["ALIAS", "MODEL", "OPERATIONS", "asked", "exchange", "fed"]

ALIAS: Final = "fast"
MODEL: Final = "up"
"""The model that `ALIAS` leads to: the one that `tests.support.streams` speaks of."""

OPERATIONS: Final = {
    Protocol.CHAT: Operation.CHAT,
    Protocol.RESPONSES: Operation.RESPONSES,
    Protocol.MESSAGES: Operation.MESSAGES,
}
_CATALOG: Final = Catalog({ALIAS: Alias(ALIAS, MODEL)}, (UpstreamModels("lab", {MODEL: b"{}"}),))
_SAID: Final = [{"role": "user", "content": "hi"}]
_MINIMAL: Final[dict[Protocol, dict[str, object]]] = {
    Protocol.CHAT: {"messages": _SAID, "stream_options": {"include_usage": True}},
    Protocol.RESPONSES: {"input": "hi"},
    Protocol.MESSAGES: {"max_tokens": 900, "messages": _SAID},
}


def exchange(client: Protocol, upstream: Protocol, limits: ExchangeLimits | None = None) -> Exchange:
    """A new one, which knows `MODEL` under the name `ALIAS`."""
    traits = {"lab": UpstreamTraits(protocols=(upstream,))}
    settings = Settings(_CATALOG, traits, limits=limits or ExchangeLimits())
    return Exchange(OPERATIONS[client], settings, request_id="req_1", now_s=9)


def asked(client: Protocol, *, stream: bool = True, **members: object) -> Request:
    """The shortest request of a client, and `members`."""
    chosen = {name: value for name, value in _MINIMAL[client].items() if stream or name != "stream_options"}
    return Request(msgspec.json.encode({"model": ALIAS, "stream": stream, **chosen, **members}))


def fed(machine: Exchange, *inputs: Input) -> Client:
    """The client after these inputs."""
    client = Client()
    for one in inputs:
        client.take(feed(machine, one))
    return client
