"""One client's talk: what goes out, and how what comes back is timed and boiled down."""

import math

import httpx
import pytest
from trio.testing import MockClock

from capi_core.exchange import Failure
from capi_core.protocols.kinds import Protocol
from capi_trio.client_requests import VOICES, Voice
from capi_trio.client_session import Heard, Session
from capi_trio.client_setup import Client
from capi_trio.upstream import Secret, UpstreamClient
from tests.support import fakes
from tests.support.answers import model_list, refusal, streamed
from tests.support.fakes import FakeUpstream, Reply

CLAUDE: Voice = VOICES[Client.CLAUDE_CODE][0]
OPENCODE: Voice = VOICES[Client.OPENCODE][0]
ASK = {"model": "m-1"}


def session(client: UpstreamClient, voice: Voice = OPENCODE, key: str | None = "sk-cap-own") -> Session:
    return Session(client, "up", voice, None if key is None else Secret(key))


async def streamed_as(*script: fakes.Step, status: int = 200) -> Heard:
    async with fakes.client(FakeUpstream(Reply(script, status)), key=None) as client:
        return await session(client).stream(ASK)


async def test_requests_go_out_as_the_clients_own() -> None:
    gateway = FakeUpstream(Reply([streamed(Protocol.MESSAGES)]), fakes.json_reply({}), model_list("m-1"))
    async with fakes.client(gateway) as client:
        talk = session(client, CLAUDE)
        await talk.stream(ASK)
        await talk.count("/v1/messages/count_tokens?beta=true", ASK)
        await talk.models()
        await talk.models("sk-cap-other")
    paths = [(asked.method, asked.url.partition("up.test/v1")[2]) for asked in gateway.asked]
    assert paths == [
        ("POST", "/v1/messages?beta=true"),
        ("POST", "/v1/messages/count_tokens?beta=true"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models"),
    ]
    keys = [(asked.header(b"authorization"), asked.header(b"x-api-key")) for asked in gateway.asked]
    assert keys == [([b"Bearer sk-cap-own"], [b"sk-cap-own"])] * 3 + [([b"Bearer sk-cap-other"], [b"sk-cap-other"])]
    assert [asked.header(b"user-agent") for asked in gateway.asked] == [[b"claude-cli/2.1.197 (external, sdk-cli)"]] * 4
    assert gateway.asked[0].body == b'{"model":"m-1"}'


async def test_without_a_key_it_sends_what_setup_writes() -> None:
    gateway = FakeUpstream(model_list())
    async with fakes.client(gateway) as client:
        talk = session(client, key=None)
        await talk.models()
    assert gateway.asked[0].header(b"authorization") == [b"Bearer none"]
    assert not talk.has_key


async def test_a_stream_is_timed(autojump_clock: MockClock) -> None:
    whole = streamed(Protocol.CHAT)
    events = whole.split(b"\n\n")
    first, rest = b"\n\n".join([*events[:1], b""]), b"\n\n".join(events[1:])
    keep = b": keep-alive\n\n"
    heard = await streamed_as(2.0, first, 15.0, keep, 3.0, rest)
    assert (heard.first_event_s, heard.pause_s, heard.silence_s, heard.keep_alives) == (2.0, 18.0, 15.0, 1)
    assert (heard.status, heard.whole, heard.violations, heard.code) == (200, True, (), None)
    assert heard.events == len(events) - 1
    assert heard.answer.spoke


async def test_only_what_came_in_the_longest_pause_counts(autojump_clock: MockClock) -> None:
    events = streamed(Protocol.CHAT).split(b"\n\n")
    first, rest = events[0] + b"\n\n", b"\n\n".join(events[1:])
    heard = await streamed_as(1.0, b": keep-alive\n\n", 1.0, first, 17.0, rest)
    assert (heard.pause_s, heard.keep_alives) == (17.0, 0)


async def test_waiting_for_the_head_is_silence(autojump_clock: MockClock) -> None:
    async with fakes.client(FakeUpstream(Reply([streamed(Protocol.CHAT)], head_after=40.0))) as client:
        heard = await session(client).stream(ASK)
    assert (heard.first_event_s, heard.pause_s, heard.silence_s, heard.keep_alives) == (40.0, 40.0, 40.0, 0)


async def test_what_is_broken_and_what_is_odd_are_told_apart() -> None:
    whole = streamed(Protocol.CHAT)
    cut = await streamed_as(whole[: len(whole) // 2])
    assert "chat-unfinished" in cut.broken
    odd = await streamed_as(whole.replace(b'"object":"chat.completion.chunk"', b'"object":"x"'))
    assert (odd.broken, odd.odd) == ((), ("chat-object",))


@pytest.mark.parametrize("code", ["SECRET words", "Loud", "sk-cap-1", "x" * 60])
async def test_of_an_error_only_a_code_is_kept_and_nothing_that_may_be_text(code: str) -> None:
    async with fakes.client(FakeUpstream(refusal(Protocol.CHAT, 404, code))) as client:
        refused = await session(client).stream(ASK)
    assert (refused.status, refused.code, refused.whole) == (404, "", False)
    told = await streamed_as(b'data: {"error": {"message": "SECRET", "code": "%b"}}\n\n' % code.encode())
    assert (told.status, told.code) == (200, "")
    assert "SECRET" not in repr((refused, told))


async def test_a_code_is_kept() -> None:
    async with fakes.client(FakeUpstream(refusal(Protocol.CHAT, 404, "model_not_found"))) as client:
        assert (await session(client).stream(ASK)).code == "model_not_found"
    assert (await streamed_as(b'data: {"error": {"code": "upstream_broke"}}\n\n')).code == "upstream_broke"


async def test_an_error_of_no_shape_is_judged() -> None:
    async with fakes.client(FakeUpstream(Reply([b"<html>"], 502))) as client:
        heard = await session(client).models()
    assert (heard.status, heard.code, heard.broken) == (502, "", ("probe-error-shape",))


async def test_why_there_is_no_answer_is_kept(autojump_clock: MockClock) -> None:
    gateway = FakeUpstream(
        httpx.ConnectError("SECRET"), Reply([b"data: ", httpx.ReadError("SECRET")]), Reply([math.inf])
    )
    async with fakes.client(gateway) as client:
        talk = session(client)
        heard = [await talk.stream(ASK) for _ in range(3)]
    assert [(one.failure, one.reason, one.status) for one in heard] == [
        (Failure.UNREACHABLE, "ConnectError", None),
        (Failure.BROKEN, "ReadError", None),
        (Failure.TIMEOUT, "no whole answer within 120 s", None),
    ]


async def test_leaving_closes_the_answer_at_its_first_event(autojump_clock: MockClock) -> None:
    events = streamed(Protocol.CHAT).split(b"\n\n")
    first, rest = events[0] + b"\n\n", b"\n\n".join(events[1:])
    gateway = FakeUpstream(Reply([b": keep-alive\n\n", 1.0, first, 100.0, rest]))
    async with fakes.client(gateway) as client:
        heard = await session(client).leave(ASK)
    assert (heard.status, heard.whole, heard.events, heard.first_event_s) == (200, False, 1, 1.0)
    assert (gateway.asked[0].closed_at or 0) - autojump_clock.current_time() < 1
    assert (gateway.asked[0].taken, gateway.open) == (3, 0)


@pytest.mark.parametrize("script", [[streamed(Protocol.CHAT)], [b""]])
async def test_an_answer_that_was_all_there_cannot_be_left(script: list[bytes]) -> None:
    async with fakes.client(FakeUpstream(Reply(script))) as client:
        heard = await session(client).leave(ASK)
    assert heard.whole is bool(script[0])


async def test_a_body_without_an_end_is_not_read_for_ever() -> None:
    async with fakes.client(FakeUpstream(Reply([b"x" * 600_000] * 9))) as client:
        heard = await session(client).models()
    assert (heard.status, heard.body, heard.whole) == (200, b"", False)


@pytest.mark.parametrize(
    ("value", "kept"), [("req_1-a", "req_1-a"), ("", None), ("SECRET words", None), ("x" * 65, None)]
)
async def test_the_id_of_the_request_is_kept(value: str, kept: str | None) -> None:
    replies = [
        Reply([streamed(Protocol.CHAT)], headers=(*fakes.SSE, ("X-Request-Id", value))),
        fakes.json_reply({}, 404, ("x-request-id", value)),
    ]
    async with fakes.client(FakeUpstream(*replies)) as client:
        talk = session(client)
        assert [(await talk.stream(ASK)).request_id, (await talk.stream(ASK)).request_id] == [kept, kept]


async def test_no_key_is_shown() -> None:
    async with fakes.client(FakeUpstream(model_list("m"))) as client:
        talk = session(client)
        assert "sk-cap-own" not in repr((talk, await talk.models()))
