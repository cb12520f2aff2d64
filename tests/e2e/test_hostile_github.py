"""A GitHub that means harm, or is broken as if it did: no token goes elsewhere, nobody waits for long.

Each case is an identity of its own behind one gateway in a process of its own. What GitHub does to it is told by its
token. A trap listens beside it: whoever connects there has sent a credential where it does not belong.
"""

import gzip
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from capi_trio.control import ask
from capi_trio.demo.github import Call, Trouble
from capi_trio.github.tokens import NoTokenError
from capi_trio.identity_operations import AddIdentity, IdentityAnswer
from capi_trio.operations import CreateKey
from tests.e2e.conftest import faultless
from tests.e2e.peers import RawUpstream, UpstreamRequest, answer, chunked, connect, post, reset
from tests.support.fakes import chat_answer
from tests.support.github_peer import open_seat
from tests.support.process import Capi, gateway, issue_key, peak_bytes, resident_bytes
from tests.support.scale import FULL, tell

WHOLE: Final = msgspec.json.encode(chat_answer("hi"))
BODY: Final = b'{"model":"real","messages":[{"role":"user","content":"hi"}]}'
UNUSABLE: Final = 503
EXCHANGE_S: Final = 15.0
"""How long one exchange may take (capi_trio/github/client.py)."""


def token(name: str) -> str:
    return f"ghu_{name.replace('-', '')}0000000000"


def granted(api: str, *, expires_at: object = None, **more: object) -> bytes:
    now = int(time.time())
    return msgspec.json.encode(
        {
            "token": f"tid=1;exp={now + 1800}",
            "expires_at": now + 1800 if expires_at is None else expires_at,
            "refresh_in": 1500,
            "endpoints": {"api": api},
            **more,
        }
    )


@define
class HostileGitHub:
    """GitHub, its Copilot and the trap beside it."""

    raw: RawUpstream
    trap: RawUpstream
    asked: Counter[str] = field(factory=Counter)
    rode: Counter[str] = field(factory=Counter)

    async def script(self, stream: trio.SocketStream, received: UpstreamRequest) -> None:
        path = received.head.split(b" ")[1]
        if b"/copilot_internal/" not in path:
            self.rode["all"] += 1
            await stream.send_all(answer(WHOLE) if received.body else answer(b'{"data":[{"id":"real"}]}'))
            return
        authorization = dict(received.headers)[b"authorization"].decode()
        name = next(name for name in CASES if token(name) in authorization)
        self.asked[name] += 1
        await self._answer(stream, name)

    async def _answer(self, stream: trio.SocketStream, name: str) -> None:
        here, trap = f"http://127.0.0.1:{self.raw.port}", f"127.0.0.1:{self.trap.port}"
        hour = 3600
        now = time.time()
        bodies: Mapping[str, bytes] = {
            "sound": granted(here),
            "names-the-trap": granted(f"https://{trap}"),
            "names-a-stranger": granted("https://copilot.evil.test"),
            "names-a-look-alike": granted("https://githubcopilot.com.evil.test"),
            "names-a-cloud": granted("http://169.254.169.254/latest"),
            "names-a-file": granted("file:///etc/passwd"),
            "names-with-a-user": granted(f"http://api.githubcopilot.com@{trap}/"),
            "names-nothing": granted(""),
            "expires-as-text": granted(here, expires_at=str(int(now + 1800))),
            "expires-as-float": granted(here, expires_at=now + 1800.5),
            "expired-an-hour-ago": granted(here, expires_at=int(now) - hour),
            "expires-in-a-second": granted(here, expires_at=int(now) + 1),
            "expires-never": granted(here, expires_at=10**300),
            "no-token": granted(here, token=None),
            "a-token-with-a-line-end": granted(here, token="tid=1\r\nx-evil: 1"),
            "a-page": b"<!doctype html><title>Sign in</title>",
            "deep": b"[" * 500_000,
            "too-long": b'{"token":"' + b"x" * 3_000_000 + b'"}',
        }
        match name:
            case "redirects":
                await stream.send_all(
                    b"HTTP/1.1 302 x\r\nlocation: http://%b/\r\ncontent-length: 0\r\n\r\n" % trap.encode()
                )
            case "redirects-for-good":
                await stream.send_all(
                    b"HTTP/1.1 308 x\r\nlocation: http://%b/\r\ncontent-length: 0\r\n\r\n" % trap.encode()
                )
            case "resets":
                await reset(stream)
            case "says-nothing":
                while await stream.receive_some(100):
                    pass
            case "trickles":
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
                while True:
                    await stream.send_all(b" ")
                    await trio.sleep(0.2)
            case "a-head-without-end":
                await stream.send_all(b"HTTP/1.1 200 OK\r\n")
                while True:
                    await stream.send_all(b"x: y\r\n" * 1000)
            case "a-body-without-end":
                await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                while True:
                    await stream.send_all(chunked(b"x" * 65536, end=False))
            case "a-bomb" | "a-bomb-in-layers":
                packed, layers = bytes(96 * 1024 * 1024), 1 if name == "a-bomb" else 3
                for _ in range(layers):
                    packed = gzip.compress(packed, 1)
                coding = b", ".join([b"gzip"] * layers)
                await stream.send_all(
                    answer(packed).replace(b"\r\n\r\n", b"\r\ncontent-encoding: " + coding + b"\r\n\r\n", 1)
                )
            case _:
                await stream.send_all(answer(bodies[name]))


SLOW: Final = ("says-nothing", "trickles")
GOOD: Final = ("sound",)
# Understood all the same, or not: what counts is that a client has an answer, and GitHub no storm.
EITHER: Final = (
    "expires-as-text",
    "expires-as-float",
    "expires-in-a-second",
    "expires-never",
    "expired-an-hour-ago",  # the clocks differ, as far as anybody can tell
    "names-nothing",
)
BAD: Final = (
    "names-the-trap",
    "names-a-stranger",
    "names-a-look-alike",
    "names-a-cloud",
    "names-a-file",
    "names-with-a-user",
    "no-token",
    "a-token-with-a-line-end",
    "a-page",
    "deep",
    "too-long",
    "redirects",
    "redirects-for-good",
    "resets",
    "a-head-without-end",
    "a-body-without-end",
    "a-bomb",
    "a-bomb-in-layers",
)
CASES: Final = (*GOOD, *EITHER, *BAD, *(SLOW if FULL else ()))


async def ask_as(capi: Capi, key: str) -> tuple[int, float]:
    began = time.monotonic()
    async with connect(capi.port) as client:
        await client.send(post(BODY, b"Authorization: Bearer " + key.encode()))
        response = await client.response()
    assert b"ghu_" not in response.body
    assert b"tid=" not in response.body
    return response.status, time.monotonic() - began


async def test_no_answer_of_githubs_leads_elsewhere_or_holds_anybody_up(tmp_path: Path) -> None:
    status: dict[str, list[int]] = {name: [] for name in CASES}
    slowest = 0.0

    async def fall_in(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(answer(b"{}"))

    async with RawUpstream.serving(fall_in) as trap, RawUpstream.serving(fall_in) as raw:
        github = HostileGitHub(raw, trap)
        raw.script = github.script
        url = f"http://127.0.0.1:{raw.port}"
        upstreams = {"gh": {"kind": "copilot", "protocols": ["chat"], "models": ["real"]}}
        with faultless(gateway(tmp_path, {"upstreams": upstreams}, auth=True)) as capi:
            idle = resident_bytes(capi.pid)
            keys: dict[str, str] = {}

            def link() -> None:
                for name in CASES:
                    adding = AddIdentity(name=name, host=url, token=token(name), login=name)
                    assert isinstance(ask(tmp_path, adding), IdentityAnswer)
                    keys[name] = issue_key(tmp_path, CreateKey(label=name, identity=name)).text

            await trio.to_thread.run_sync(link)

            async def ride(name: str) -> None:
                nonlocal slowest
                for _ in range(3):
                    code, took = await ask_as(capi, keys[name])
                    status[name].append(code)
                    slowest = max(slowest, took)

            began = time.monotonic()
            async with trio.open_nursery() as nursery:
                for name in CASES:
                    nursery.start_soon(ride, name)
            lasted = time.monotonic() - began
            more = (peak_bytes(capi.pid) - idle) / 1e6
            refused = {str(line["named"]) for line in capi.events("copilot_base_url_refused")}
    assert {code for name in GOOD for code in status[name]} == {200}
    wrong = {name: status[name] for name in CASES if name in (*BAD, *SLOW) and set(status[name]) != {UNUSABLE}}
    assert wrong == {}
    assert {code for name in EITHER for code in status[name]} <= {200, UNUSABLE}
    assert trap.accepted == 0
    assert any("evil.test" in named for named in refused)
    # At most one ask a second, and one to begin with, whatever the answers say.
    busiest = max(github.asked.values())
    assert busiest <= lasted + 2
    assert slowest < EXCHANGE_S * (2 if FULL else 0.5)
    assert more < 30
    tell(
        f"{len(CASES)} hostile answers of GitHub's: 0 tokens elsewhere, the slowest request took {slowest:.2f} s, "
        f"at most {busiest} exchanges of one identity in {lasted:.1f} s, {more:.1f} MB more"
    )


# -- on trio's clock --------------------------------------------------------------------------------------------


async def test_a_thousand_requests_on_a_dead_token_are_one_exchange(autojump_clock: MockClock) -> None:
    async with open_seat() as seat:
        old = await seat.tokens.token()
        await trio.sleep(120)
        seat.github.expire_copilot_tokens()
        fresh: list[str] = []

        async def ride() -> None:
            assert seat.tokens.refused(old.token, replayed=False)
            fresh.append((await seat.tokens.token()).token.reveal())

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(ride)
        exchanges = seat.github.calls[Call.COPILOT_TOKEN] - 1
    tell(f"{len(fresh)} requests at once on a dead token: {exchanges} exchange")
    assert len(set(fresh)) == exchanges == 1


TROUBLES: Final = {
    "500": Trouble.http(500),
    "silence": Trouble.stall(),
    "a page": Trouble.garbage(),
    "401": Trouble.http(401),
    "403": Trouble.no_copilot(),
    "429": Trouble.http(429, 30),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_a_github_in_trouble_is_not_asked_all_the_time(autojump_clock: MockClock, name: str) -> None:
    """Somebody wants a token every second; callers are told soon, and GitHub is asked ever more seldom."""
    seconds = 3600 if FULL else 600
    async with open_seat() as seat:
        seat.github.fail(Call.COPILOT_TOKEN, TROUBLES[name], None)
        failed = 0
        for _ in range(seconds):
            with trio.move_on_after(1):
                with suppress(NoTokenError):
                    await seat.tokens.token()
                    raise AssertionError("there is no token")
                failed += 1
                await trio.sleep(1)
        asked = seat.github.calls[Call.COPILOT_TOKEN]
    tell(f"{seconds} s of {name} from GitHub: {asked} exchanges; {failed} of {seconds} callers told at once")
    assert asked <= 2 * seconds / 60 + 5
    assert failed > seconds * 0.7
