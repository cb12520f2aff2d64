"""Requests of every kind, each with what it must leave behind, and what their clients were told that it cost.

Every text that a client can send holds `CANARY`: prompts, tools and their arguments, results, headers, the query, names
of models. It must be in no row.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import msgspec
import trio
from attrs import evolve, field, frozen
from trio_websocket import WebSocketConnection, open_websocket_url

from capi_core.commands import Operation, Outcome
from tests.e2e.peers import Client, Response, connect, post

__all__ = ["CANARY", "MAX_BODY", "Ask", "Spent", "Told", "ask", "document", "every_kind", "no_requests", "send", "told"]

CANARY: Final = "canary7d41"
MAX_BODY: Final = 60_000
MODELS: Final = {"demo-chat": Operation.CHAT, "demo-gpt": Operation.RESPONSES, "demo-claude": Operation.MESSAGES}
DOORS: Final = tuple(MODELS.values())
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
_REFUSED: Final = frozenset(outcome for outcome in Outcome if outcome.value.startswith("refused_"))
_CACHE: Final = {"cached": 5, "cache_write": 2}

JSON = dict[str, object]


@frozen
class Spent:
    """Tokens, as every protocol can tell them: of the prompt, those of it from and to a cache; those that the model
    made, and those of them for its thoughts."""

    prompt: int = 0
    cache_read: int = 0
    cache_write: int = 0
    made: int = 0
    thought: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.prompt + other.prompt,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.made + other.made,
            self.thought + other.thought,
        )


@frozen
class Ask:
    """One request. `called`: the name that its client types; `model`: the one that its row may have. `demo`: options of
    the demo provider. `leaves`: its client does, with all of it `sent` or `midway` in the answer. `key`: of whom."""

    operation: Operation
    called: str
    model: str | None
    outcome: Outcome = Outcome.OK
    stream: bool = False
    websocket: bool = False
    demo: Mapping[str, object] = field(factory=dict)
    leaves: str | None = None
    key: str = "anybody"
    body: bytes | None = None
    """Instead of a sound one."""
    more: Mapping[str, object] = field(factory=dict)
    """Members of the body."""
    unheard: bool = False
    """Its client is not told what it cost, though the gateway is."""

    @property
    def kind(self) -> tuple[str, str, bool, str | None]:
        """What tells it from requests of other kinds, in its row too. A request that is refused never streams."""
        transport = "websocket" if self.websocket else "http"
        stream = (self.stream or self.websocket) and self.outcome not in _REFUSED
        return self.operation.name.lower(), transport, stream, self.model


@frozen
class Told:
    """What came of it, as far as its client has heard."""

    ask: Ask
    status: int | None = None
    id: str | None = None
    spent: Spent | None = None


# -- which ------------------------------------------------------------------------------------------------------


def every_kind() -> Iterator[Ask]:
    """The requests of one round: at most 60 refusals a key, as many as leave a row each."""
    yield from _served()
    yield from _left()
    yield from _broken()
    yield from _refused()
    yield from (evolve(ask, websocket=True, stream=False) for ask in _over_websocket())


def _served() -> Iterator[Ask]:
    for door in DOORS:
        for model in MODELS:
            for stream in (True, False):
                yield Ask(door, model, model, stream=stream, demo=_CACHE)
        for stream in (True, False):
            yield Ask(door, "quick", "quick", stream=stream)
        # Another spelling of a listed name leads to the listed one, and a client may write there what it likes.
        yield Ask(door, f"demo-claude[{CANARY}]", "demo-claude")
        yield Ask(Operation.COUNT_TOKENS, "demo-claude", "demo-claude")
        yield Ask(Operation.EMBEDDINGS, "demo-embed", "demo-embed")
    for model in MODELS:
        yield Ask(Operation.COUNT_TOKENS, model, model)
        unasked = {"stream_options": {"include_usage": False}}
        yield Ask(Operation.CHAT, model, model, stream=True, more=unasked, unheard=True)
    for model, door in MODELS.items():
        for stream in (True, False):
            yield Ask(door, model, model, stream=stream, demo={"usage": "missing"})
    yield Ask(Operation.CHAT, "demo-chat", "demo-chat", demo={"quirks": ["no_usage_details"]})


def _left() -> Iterator[Ask]:
    gone = partial(Ask, outcome=Outcome.CLIENT_GONE)
    for door in DOORS:
        for model in MODELS:
            late = {"fault": "slow_head", "delay_ms": 60_000}
            yield gone(door, model, model, stream=door is MODELS[model], demo=late, leaves="sent")
            long = {"events": 400, "pace_ms": 50}
            yield gone(door, model, model, stream=True, demo=long, leaves="midway")


def _broken() -> Iterator[Ask]:
    for door in DOORS:
        for stream in (True, False):
            error = partial(Ask, door, outcome=Outcome.UPSTREAM_ERROR, stream=stream)
            yield error("demo-chat", "demo-chat", demo={"fault": "status", "status": 500})
            yield error("demo-claude", "demo-claude", demo={"fault": "status", "status": 400})
        for model in MODELS:
            broke = partial(Ask, door, model, model, outcome=Outcome.UPSTREAM_BROKE)
            yield broke(stream=True, demo={"fault": "reset"})
            yield broke(stream=True, demo={"fault": "end"})
            yield broke(stream=False, demo={"fault": "reset"})
    yield Ask(Operation.EMBEDDINGS, "demo-embed", "demo-embed", Outcome.UPSTREAM_ERROR, more={"input": []})


def _refused() -> Iterator[Ask]:
    called = f"{CANARY}-1"
    for door in Operation:
        yield Ask(door, called, None, Outcome.REFUSED_MODEL)
        yield Ask(door, "demo-chat", None, Outcome.REFUSED_INVALID, body=f'{{"model": "demo-chat", "{CANARY}'.encode())
        yield Ask(door, called, None, Outcome.REFUSED_TOO_LARGE, body=CANARY.encode() * (MAX_BODY // len(CANARY) + 1))
    for door in DOORS:
        yield Ask(door, "demo-gpt", None, Outcome.REFUSED_SCOPE, key="chat-only")
        yield Ask(door, called, None, Outcome.REFUSED_RATE, key="over-rate")


def _over_websocket() -> Iterator[Ask]:
    for model in MODELS:
        turn = partial(Ask, Operation.RESPONSES, model, model)
        yield turn(demo=_CACHE)
        yield turn(Outcome.UPSTREAM_BROKE, demo={"fault": "reset"})
        yield turn(Outcome.CLIENT_GONE, demo={"events": 400, "pace_ms": 50}, leaves="midway")
    yield Ask(Operation.RESPONSES, "demo-gpt", "demo-gpt", demo={"usage": "missing"})
    yield Ask(Operation.RESPONSES, CANARY, None, Outcome.REFUSED_MODEL)


def no_requests(key: str) -> Iterator[bytes]:
    """What is no request to a model, and leaves no row: no key, no such route, and half a request (the last one)."""
    yield post(b"{}", b"Authorization: Bearer sk-cap-" + CANARY.encode())
    yield post(b"{}", b"Authorization: Bearer " + key.encode(), target=b"/v1/" + CANARY.encode())
    yield post(b'{"model":"demo-chat"}' + b" " * 99, b"Authorization: Bearer " + key.encode())[:-50]


# -- asking -----------------------------------------------------------------------------------------------------


def document(ask: Ask) -> JSON:
    """The body: a conversation in which a tool was called."""
    words = f"Say {CANARY}. [[demo {msgspec.json.encode({'pace_ms': 0, **ask.demo}).decode()}]]"
    schema = {"type": "object", "properties": {CANARY: {"type": "string"}}}
    name, arguments = f"{CANARY}_tool", {CANARY: CANARY}
    text = msgspec.json.encode(arguments).decode()
    members: JSON
    match ask.operation:
        case Operation.CHAT:
            called = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": text}}
            members = {
                "messages": [
                    {"role": "system", "content": CANARY},
                    {"role": "user", "content": words},
                    {"role": "assistant", "content": None, "tool_calls": [called]},
                    {"role": "tool", "tool_call_id": "call_1", "content": CANARY},
                ],
                "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
                "user": CANARY,
            }
            if ask.stream:
                members["stream_options"] = {"include_usage": True}
        case Operation.RESPONSES:
            members = {
                "instructions": CANARY,
                "input": [
                    {"role": "user", "content": words},
                    {"type": "function_call", "call_id": "call_1", "name": name, "arguments": text},
                    {"type": "function_call_output", "call_id": "call_1", "output": CANARY},
                ],
                "tools": [{"type": "function", "name": name, "parameters": schema, "strict": False}],
                "prompt_cache_key": CANARY,
                "store": False,
            }
        case Operation.EMBEDDINGS:
            members = {"input": words}
        case _:
            members = {
                "system": CANARY,
                "messages": [
                    {"role": "user", "content": words},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "call_1", "name": name, "input": arguments}],
                    },
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": CANARY}],
                    },
                ],
                "tools": [{"name": name, "input_schema": schema}],
            }
            if ask.operation is Operation.MESSAGES:
                members |= {"max_tokens": 9000, "metadata": {"user_id": CANARY}}
    flag = {} if ask.websocket or not ask.stream else {"stream": True}
    return {"model": ask.called, **flag, **members, **ask.more}


async def ask(port: int, key: str, what: Ask) -> Told:
    """Asks on a connection of its own, and leaves if that is its way."""
    if what.websocket:
        return await _ask_websocket(port, key, what)
    async with connect(port) as client:
        await send(client, key, what)
        if what.leaves is None:
            return told(what, await client.response(b"POST"))
        if what.leaves == "sent":  # not by a reset, which may take the request back before anybody has read it
            await client.finish()
            return Told(what)
        await client.read_until(b"delta")
        await (client.reset() if what.called == "demo-gpt" else client.finish())
        return Told(what)


async def send(client: Client, key: str, what: Ask) -> None:
    """Sends it as a whole."""
    canary = CANARY.encode()
    fields = [b"Authorization: Bearer " + key.encode(), b"User-Agent: " + canary, b"X-Request-Id: " + canary]
    fields += [b"X-Capi-Model: " + canary, b"Cookie: a=" + canary, b"Origin-Agent: " + canary]
    body = msgspec.json.encode(document(what)) if what.body is None else what.body
    target = b"/v1" + what.operation.value.encode() + b"?beta=" + canary
    await client.send(post(body, *fields, target=target))


async def _ask_websocket(port: int, key: str, what: Ask) -> Told:
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"user-agent", CANARY.encode())]
    url = f"ws://127.0.0.1:{port}/v1/responses?beta={CANARY}"
    with trio.fail_after(30):
        async with open_websocket_url(url, extra_headers=headers) as connection:
            await connection.send_message(msgspec.json.encode({"type": "response.create", **document(what)}).decode())
            last = await _last_event(connection, leaves=what.leaves is not None)
            response = last.get("response")
            usage = response.get("usage") if isinstance(response, dict) else None
            return Told(what, spent=_spent(usage or {}))


async def _last_event(connection: WebSocketConnection, *, leaves: bool) -> JSON:
    """The event that ends the answer; the first piece of it to somebody who leaves then."""
    while True:
        event = msgspec.json.decode(await connection.get_message(), type=JSON)
        kind = str(event["type"])
        if kind in _LAST or (leaves and kind.endswith(".delta")):
            return event


# -- hearing ----------------------------------------------------------------------------------------------------


def told(what: Ask, response: Response) -> Told:
    """What its client heard."""
    assert response.complete
    usage: JSON = {}
    streamed = (response.header(b"content-type") or b"").startswith(b"text/event-stream")
    events = _events(response.body) if streamed else [msgspec.json.decode(response.body, type=JSON)]
    for event in events:
        inner = event.get("response") or event.get("message")
        for place in (inner, event):
            found = place.get("usage") if isinstance(place, dict) else None
            usage |= found or {}
    name = response.header(b"x-request-id")
    assert name is not None
    return Told(what, response.status, name.decode(), _spent(usage))


def _events(stream: bytes) -> list[JSON]:
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [msgspec.json.decode(line, type=JSON) for line in lines if line != b"[DONE]"]


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    thinking_tokens: int = 0


class _Usage(msgspec.Struct):
    """Usage in any of the three protocols."""

    prompt_tokens: int = 0
    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    completion_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details = msgspec.field(default_factory=_Details)
    input_tokens_details: _Details = msgspec.field(default_factory=_Details)
    completion_tokens_details: _Details = msgspec.field(default_factory=_Details)
    output_tokens_details: _Details = msgspec.field(default_factory=_Details)


def _spent(usage: JSON) -> Spent | None:
    """Only Messages counts what comes from a cache beside the prompt; the members of the others are 0 there.

    Nothing but zeros is how a protocol that requires the members says that nobody knows.
    """
    one = msgspec.convert(usage, _Usage)
    given = (one.prompt_tokens_details, one.input_tokens_details)
    made = (one.completion_tokens_details, one.output_tokens_details)
    beside = one.cache_read_input_tokens + one.cache_creation_input_tokens
    spent = Spent(
        prompt=one.prompt_tokens + one.input_tokens + beside,
        cache_read=one.cache_read_input_tokens + sum(part.cached_tokens for part in given),
        cache_write=one.cache_creation_input_tokens + sum(part.cache_write_tokens for part in given),
        made=one.completion_tokens + one.output_tokens,
        thought=sum(part.reasoning_tokens + part.thinking_tokens for part in made),
    )
    return None if spent == Spent() else spent
