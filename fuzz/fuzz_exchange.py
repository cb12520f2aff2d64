"""Invariant: any order of inputs gives one well-formed answer and one account, or `LocalError` and no change.

An input is a script: each line is one call (the first byte says which, the rest are its bytes, with `\\n` and `\\r` for
line ends in them). The client takes every command in order (tests/support/playbook.py). When the script is over the
upstream breaks, so that each exchange ends. The upstream's body cut into single bytes gives the client the same bytes,
unless the stream begins with its error (docstring of `capi_core.exchange`).
"""

import json

from capi_core.aliases import Alias, Catalog, UpstreamModels
from capi_core.errors import LocalError, Problem
from capi_core.exchange import Exchange, ExchangeLimits, Failure, Operation, Outcome, Settings, State
from capi_core.usage import UsageSource
from tests.support.playbook import (
    Client,
    ClientGone,
    Data,
    Eof,
    Fail,
    Head,
    Input,
    KeepAlive,
    Refuse,
    Request,
    feed,
)

__all__ = ["test_one_input"]

CATALOG = Catalog(
    {"fast": Alias("fast", "up-2026"), "off": Alias("off", "x", enabled=False)},
    (UpstreamModels("lab", {"up-2026": b"{}"}),),
)
LIMITS = ExchangeLimits(max_event_bytes=256, max_answer_bytes=512, max_error_bytes=128)
SECRET = b"sk-upstream-secret"
FAILURES = list(Failure)
STATUSES = (200, 204, 301, 400, 401, 429, 503)
MOST_LINES = 64


def read(line: bytes) -> Input:
    kind, rest = line[:1], line[1:]
    text = rest.replace(b"\\n", b"\n").replace(b"\\r", b"\r")
    number = rest[0] if rest else 0
    match kind:
        case b"Q":
            return Request(text)
        case b"H":
            return Head(STATUSES[number % len(STATUSES)], ((b"content-type", rest[1:]), (b"retry-after", rest[1:])))
        case b"E":
            return Eof()
        case b"F":
            return Fail(FAILURES[number % len(FAILURES)])
        case b"G":
            return ClientGone()
        case b"K":
            return KeepAlive()
        case b"R":
            return Refuse(Problem(413, "body_too_large", "too large"), Outcome.REFUSED_TOO_LARGE)
        case _:
            return Data(text)


def cut(inputs: list[Input]) -> list[Input]:
    """The same with the upstream's body in single bytes."""
    pieces: list[Input] = []
    for given in inputs:
        if isinstance(given, Data):
            pieces += [Data(given.data[at : at + 1]) for at in range(len(given.data))]
        else:
            pieces.append(given)
    return pieces


def run(inputs: list[Input], operation: Operation) -> tuple[Exchange, Client]:
    exchange, client = (
        Exchange(operation, Settings(CATALOG, limits=LIMITS, hidden=lambda: (SECRET,)), request_id="r"),
        Client(),
    )
    for given in inputs:
        before = exchange.state
        try:
            commands = feed(exchange, given)
        except LocalError:  # the script is in no order; nothing may have changed
            assert (exchange.state, before is State.DONE) == (before, False)
            continue
        assert not (before is State.DONE and commands)
        client.take(commands)
    client.take(exchange.receive_failure(Failure.BROKEN))
    return exchange, client


def check(exchange: Exchange, client: Client) -> None:
    record = exchange.record()
    assert exchange.state is State.DONE
    assert record.status == client.status
    assert len(client.ends) == 1 or record.outcome in (Outcome.CLIENT_GONE, Outcome.OK)
    assert (record.usage is None) == (record.usage_source is UsageSource.NONE)
    if client.ends and dict(client.heads[0].headers)[b"content-type"] == b"application/json":
        assert record.outcome is Outcome.OK or isinstance(json.loads(client.body.decode("utf-8", "replace")), dict)
    for head in client.heads:
        for name, value in head.headers:
            assert not set(name + value) & set(b"\r\n\0")


def test_one_input(data: bytes) -> None:
    if not data:
        return
    operation = Operation.EMBEDDINGS if data[0] & 1 else Operation.CHAT
    inputs = [read(line) for line in data[1:].split(b"\n")[:MOST_LINES]]
    exchange, client = run(inputs, operation)
    check(exchange, client)

    cut_exchange, cut_client = run(cut(inputs), operation)
    check(cut_exchange, cut_client)
    if exchange.outcome is not Outcome.UPSTREAM_ERROR:
        assert cut_client.body == client.body
        assert cut_exchange.record() == exchange.record()
