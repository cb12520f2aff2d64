"""Holds a gateway, any gateway, to the grammars of the protocols that it speaks: a few scripted requests, judged.

Nothing of an answer is kept or shown but the rules that it breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import evolve, frozen

from capi_core.commands import Operation, SendRequest
from capi_core.conformance import Rule, Severity, Violation, checker_for
from capi_core.headers import find, upstream_request_headers
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_trio.upstream import UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from capi_core.errors import Problem
    from capi_trio.upstream import UpstreamClient, UpstreamResponse

__all__ = ["GATEWAY", "PROBES", "PROBE_S", "Probe", "Result", "judge_error", "judge_stream", "run_probes", "short_body"]

GATEWAY: Final[Mapping[bool, str]] = {False: "gateway", True: "gateway-x-api-key"}
"""The client's names for the gateway: with the key as a bearer token, and as Anthropic's SDKs send it."""

PROBE_S: Final = 120.0
"""A request is answered whole within these seconds."""
_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_ERROR_BYTES: Final = 1024 * 1024
_SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_ASK: Final = "Say hello in one short sentence."
_ASK_TOOL: Final = "What is the weather in Oslo? Call get_weather."
_UNKNOWN_MODEL: Final = "capi-conform-there-is-no-such-model"

_STATUS = Rule("probe-status", Severity.MUST, "a legal request is answered with 200", "HTTP")
_TYPE = Rule("probe-content-type", Severity.SHOULD, "an event stream is sent as text/event-stream", "WHATWG HTML 9.2")
_ERROR = Rule(
    "probe-error-shape",
    Severity.MUST,
    "an error has the protocol's own shape and a status of 400 or more",
    "wire.md 1.4",
)
_SIZE = Rule("probe-size", Severity.MUST, "a short answer is short", "capi conform")


@frozen
class Probe:
    """One request, and whether it is one that has to fail."""

    name: str
    protocol: Protocol
    body: Mapping[str, object]
    fails: bool = False


@frozen
class Result:
    """How a probe went. `unreachable`: why there was no answer to judge."""

    probe: str
    protocol: Protocol
    violations: tuple[Violation, ...]
    unreachable: str | None = None


def _probes(protocol: Protocol, bodies: Mapping[str, Mapping[str, object]]) -> tuple[Probe, ...]:
    found = [Probe(name, protocol, {**body, "stream": True}) for name, body in bodies.items()]
    unknown = Probe("unknown model", protocol, {**bodies["text"], "model": _UNKNOWN_MODEL}, fails=True)
    return (*found, unknown)


PROBES: Final[Mapping[Protocol, tuple[Probe, ...]]] = {
    Protocol.CHAT: _probes(
        Protocol.CHAT,
        {
            "text": {"messages": [{"role": "user", "content": _ASK}]},
            "usage": {
                "messages": [{"role": "user", "content": _ASK}],
                "stream_options": {"include_usage": True},
            },
            "tool": {
                "messages": [{"role": "user", "content": _ASK_TOOL}],
                "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": _SCHEMA}}],
                "tool_choice": "required",
            },
        },
    ),
    Protocol.RESPONSES: _probes(
        Protocol.RESPONSES,
        {
            "text": {"input": _ASK, "store": False},
            "tool": {
                "input": _ASK_TOOL,
                "store": False,
                "tools": [{"type": "function", "name": "get_weather", "parameters": _SCHEMA, "strict": False}],
                "tool_choice": "required",
            },
        },
    ),
    Protocol.MESSAGES: _probes(
        Protocol.MESSAGES,
        {
            "text": {"max_tokens": 1024, "messages": [{"role": "user", "content": _ASK}]},
            "tool": {
                "max_tokens": 1024,
                "messages": [{"role": "user", "content": _ASK_TOOL}],
                "tools": [{"name": "get_weather", "input_schema": _SCHEMA}],
                "tool_choice": {"type": "any"},
            },
        },
    ),
}

_OPERATIONS: Final = {
    Protocol.CHAT: Operation.CHAT,
    Protocol.RESPONSES: Operation.RESPONSES,
    Protocol.MESSAGES: Operation.MESSAGES,
}


async def run_probes(client: UpstreamClient, protocols: Sequence[Protocol], model: str) -> list[Result]:
    """Sends every probe of `protocols`, one after the other. `client` knows the gateway by the names in `GATEWAY`."""
    return [await _run(client, probe, model) for protocol in protocols for probe in PROBES[protocol]]


async def _run(client: UpstreamClient, probe: Probe, model: str) -> Result:
    body = msgspec.json.encode({"model": model, **probe.body})
    headers = upstream_request_headers(stream=not probe.fails, request_id="conform")
    speaks_messages = probe.protocol is Protocol.MESSAGES
    if speaks_messages:
        headers = (*headers, (b"anthropic-version", b"2023-06-01"))
    request = SendRequest(GATEWAY[speaks_messages], _OPERATIONS[probe.protocol], headers, body)
    violations: tuple[Violation, ...] = ()
    try:
        with trio.fail_after(PROBE_S):
            async with client.request(request) as response:
                if probe.fails:
                    violations, _ = await judge_error(probe.protocol, response)
                else:
                    violations = await judge_stream(probe.protocol, response)
    except UpstreamFailedError as error:
        return Result(probe.name, probe.protocol, (), unreachable=error.reason)
    except trio.TooSlowError:
        return Result(probe.name, probe.protocol, (), unreachable=f"no whole answer within {PROBE_S:.0f} s")
    return Result(probe.name, probe.protocol, violations)


async def judge_stream(
    protocol: Protocol, response: UpstreamResponse, hear: Callable[[bytes], None] = lambda _: None
) -> tuple[Violation, ...]:
    """What is wrong with the answer to a request that asked for a stream. `hear` is given its bytes as they come."""
    if response.status != 200:
        return (evolve(_STATUS(), message=f"{_STATUS.text}, not with {response.status}"),)
    media_type = (find(response.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    found = () if media_type == b"text/event-stream" else (_TYPE(),)
    checker = checker_for(protocol)
    size = 0
    async for chunk in response.chunks():
        checker.receive_data(chunk)
        hear(chunk)
        size += len(chunk)
        if size > _MAX_BYTES:
            return (*found, *checker.violations, _SIZE())
    checker.finish()
    return (*found, *checker.violations)


async def judge_error(protocol: Protocol, response: UpstreamResponse) -> tuple[tuple[Violation, ...], Problem | None]:
    """What is wrong with the answer to a request that has to fail, and the problem that it tells, if it tells one."""
    body = await short_body(response)
    if body is None:
        return (_SIZE(),), None
    problem = CODECS[protocol].decode_error(body, response.status)
    return () if problem is not None and response.status >= 400 else (_ERROR(),), problem


async def short_body(response: UpstreamResponse) -> bytes | None:
    """A body that is no stream; `None` when it is larger than such a body has to be."""
    body = b""
    async for chunk in response.chunks():
        body += chunk
        if len(body) > _MAX_ERROR_BYTES:
            return None
    return body
