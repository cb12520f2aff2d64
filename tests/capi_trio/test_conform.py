"""Conform: what a gateway is asked, and how its answers are judged."""

import json
import math
from collections.abc import Sequence

import httpx
import pytest
import trio.testing

from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.tool_names import ToolNames
from capi_core.translation import Translation
from capi_trio.conform import GATEWAY, PROBES, Result, run_probes
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply
from tests.support.streams import answer_stream

ERRORS: dict[Protocol, object] = {
    Protocol.CHAT: {"error": {"message": "no such model", "type": "x", "param": "model", "code": "model_not_found"}},
    Protocol.RESPONSES: {"error": {"message": "no such model", "type": "x", "param": "model", "code": "x"}},
    Protocol.MESSAGES: {"type": "error", "error": {"type": "not_found_error", "message": "no such model"}},
}


def legal(protocol: Protocol) -> bytes:
    """A stream without a fault."""
    envelope = Envelope("r", "m")
    translation = Translation(CODECS[Protocol.CHAT], CODECS[protocol], envelope, Ledger(), ToolNames())
    machine = translation.stream(max_event_bytes=10_000)
    return machine.receive_data(answer_stream(Protocol.CHAT)) + machine.finish()


def good_replies(protocol: Protocol) -> list[Reply]:
    """One for each probe."""
    error = fakes.json_reply(ERRORS[protocol], 404)
    return [error if probe.fails else Reply([legal(protocol)]) for probe in PROBES[protocol]]


async def judged(upstream: FakeUpstream, *protocols: Protocol) -> list[Result]:
    async with fakes.client(upstream, *GATEWAY.values()) as client:
        return await run_probes(client, protocols, "m-1")


async def rules_for(protocol: Protocol, replies: Sequence[Reply | Exception]) -> list[list[str]]:
    results = await judged(FakeUpstream(*replies), protocol)
    return [[broken.rule for broken in result.violations] for result in results]


@pytest.mark.parametrize("protocol", Protocol)
async def test_a_gateway_without_a_fault_has_none(protocol: Protocol) -> None:
    results = await judged(FakeUpstream(*good_replies(protocol)), protocol)
    assert [result.probe for result in results] == [probe.name for probe in PROBES[protocol]]
    assert all(result.protocol is protocol and not result.violations and not result.unreachable for result in results)
    assert "unknown model" in {result.probe for result in results}


async def test_every_protocol_is_asked_at_its_own_place_with_its_own_headers() -> None:
    upstream = FakeUpstream(*[reply for protocol in Protocol for reply in good_replies(protocol)])
    await judged(upstream, *Protocol)
    paths = [asked.url.partition("/v1")[2] for asked in upstream.asked]
    assert list(dict.fromkeys(paths)) == ["/chat/completions", "/responses", "/messages"]
    for asked, path in zip(upstream.asked, paths, strict=True):
        versions = asked.header(b"anthropic-version")
        assert (asked.method, versions) == ("POST", [b"2023-06-01"] if path == "/messages" else [])


@pytest.mark.parametrize("protocol", Protocol)
async def test_the_probes_are_requests_that_this_gateway_understands(protocol: Protocol) -> None:
    upstream = FakeUpstream(*good_replies(protocol))
    await judged(upstream, protocol)
    models = []
    for asked in upstream.asked:
        ledger = Ledger()
        request = CODECS[protocol].read(asked.body)
        conversation = CODECS[protocol].decode_request(request.document, ledger)
        assert conversation.turns
        models.append((request.model, request.stream))
    assert models == [("m-1", True)] * (len(models) - 1) + [("capi-conform-there-is-no-such-model", False)]


async def test_a_broken_stream_is_judged_by_its_grammar() -> None:
    """Two blocks that are open at once, where one is legal."""
    replies = [Reply([answer_stream(Protocol.MESSAGES)]), *good_replies(Protocol.MESSAGES)[1:]]
    found = await rules_for(Protocol.MESSAGES, replies)
    assert set(found[0]) == {"messages-block-open"}
    assert not any(found[1:])


async def test_a_stream_that_is_cut_short_is_told() -> None:
    whole = legal(Protocol.CHAT)
    replies = [Reply([whole[: len(whole) // 2]]), *good_replies(Protocol.CHAT)[1:]]
    assert "chat-unfinished" in (await rules_for(Protocol.CHAT, replies))[0]


async def test_a_status_other_than_200_is_told() -> None:
    replies = [fakes.json_reply({"detail": "Not Found"}, 404), *good_replies(Protocol.CHAT)[1:]]
    results = await judged(FakeUpstream(*replies), Protocol.CHAT)
    (broken,) = results[0].violations
    assert (broken.rule, broken.message) == ("probe-status", "a legal request is answered with 200, not with 404")


@pytest.mark.parametrize(
    ("kind", "found"), [("Text/Event-Stream; charset=utf-8", []), ("text/plain", ["probe-content-type"])]
)
async def test_a_stream_has_its_media_type(kind: str, found: list[str]) -> None:
    replies = [Reply([legal(Protocol.CHAT)], headers=(("content-type", kind),)), *good_replies(Protocol.CHAT)[1:]]
    assert (await rules_for(Protocol.CHAT, replies))[0] == found


async def test_a_stream_without_a_media_type_is_judged_all_the_same() -> None:
    replies = [Reply([legal(Protocol.CHAT)], headers=()), *good_replies(Protocol.CHAT)[1:]]
    assert (await rules_for(Protocol.CHAT, replies))[0] == ["probe-content-type"]


async def test_a_stream_without_an_end_is_not_read_for_ever() -> None:
    comment = b": " + b"x" * 1_048_573 + b"\n\n"
    replies = [Reply([comment] * 18), *good_replies(Protocol.CHAT)[1:]]
    assert (await rules_for(Protocol.CHAT, replies))[0] == ["probe-size"]


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    "reply",
    [
        fakes.json_reply({"detail": "Not Found"}, 404),
        Reply([b"<html>"], 500),
        Reply([legal(Protocol.CHAT)]),
        Reply([b"x" * 600_000, b"x" * 600_000], 400),
        Reply([], 400),
    ],
    ids=["of another shape", "a page", "an answer", "endless", "nothing"],
)
async def test_an_error_has_the_protocols_shape(protocol: Protocol, reply: Reply) -> None:
    found = await rules_for(protocol, [*good_replies(protocol)[:-1], reply])
    assert found[-1] in (["probe-error-shape"], ["probe-size"])
    assert not any(found[:-1])


async def test_an_error_with_a_status_of_success_is_none() -> None:
    replies = [*good_replies(Protocol.CHAT)[:-1], fakes.json_reply(ERRORS[Protocol.CHAT], 200)]
    assert (await rules_for(Protocol.CHAT, replies))[-1] == ["probe-error-shape"]


async def test_no_answer_is_told_with_its_reason(autojump_clock: trio.testing.MockClock) -> None:
    replies: list[Reply | Exception] = [
        httpx.ConnectError("x"),
        Reply([b"data: ", httpx.ReadError("x")]),
        Reply(head_after=math.inf),
        *good_replies(Protocol.CHAT)[3:],
    ]
    results = await judged(FakeUpstream(*replies), Protocol.CHAT)
    assert [result.unreachable for result in results] == [
        "ConnectError",
        "ReadError",
        "no whole answer within 120 s",
        None,
    ]
    assert not any(result.violations for result in results)


async def test_nothing_of_an_answer_is_kept() -> None:
    said = json.dumps({"error": "SECRET"}).encode()
    results = await judged(FakeUpstream(Reply([b"data: SECRET\n\n" + said], 200)), Protocol.CHAT)
    assert all(result.violations for result in results)
    assert "SECRET" not in repr(results)
