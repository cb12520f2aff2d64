"""The demo provider's GitHub in the place of httpx's connections, on trio's clock, with a wall clock that can jump."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import httpx
import trio
from attrs import define, field
from typing_extensions import override

from capi_core.github import ClientTraits, GitHubHost
from capi_trio.demo.answers import Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.github import DemoGitHub
from capi_trio.github.client import GitHubClient
from capi_trio.github.tokens import CopilotTokens, TokenState
from capi_trio.upstream import Secret, UpstreamClient

__all__ = ["BASE", "HOST", "NOW", "TOKEN", "TRAITS", "GitHubPeer", "Seat", "github_client", "open_seat"]

BASE: Final = "http://127.0.0.1:4000"
HOST: Final = GitHubHost.of(BASE)
TRAITS: Final = ClientTraits(user_agent="capi/1.0", editor_version="capi/1.0")
NOW: Final = 1_800_000_000.0
TOKEN: Final = Secret("ghu_theGitHubTokenOfAlice")


class GitHubPeer(httpx.AsyncBaseTransport):
    """`latency_s`: before each answer. `losses`: what the next requests raise instead of being sent.

    `slept_s`: how long the machine slept so far, which only the wall clock (`now`) has noticed.
    """

    def __init__(self, latency_s: float = 0.1) -> None:
        self.github = DemoGitHub()
        self.github.link(TOKEN.reveal())
        self.latency_s = latency_s
        self.losses: deque[Exception] = deque()
        self.slept_s = 0.0
        self.asked: list[Request] = []
        self.under_way = 0
        self._world: Final = World(self.now, IdCounter(), 0.0)

    def now(self) -> float:
        """Unix seconds."""
        return NOW + self.slept_s + trio.current_time()

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.losses:
            await trio.lowlevel.checkpoint()
            raise self.losses.popleft()
        headers = tuple((name.lower(), value) for name, value in request.headers.raw)
        asked = Request(request.method, request.url.path, headers, await request.aread())
        self.asked.append(asked)
        self.under_way += 1
        try:
            await trio.sleep(self.latency_s)
            answer = self.github.answer(asked, self._world)
            assert answer is not None, f"{asked.path} is not GitHub's"
            await trio.sleep(answer.delay_s)
        finally:
            self.under_way -= 1
        body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
        return httpx.Response(answer.status, headers=[*answer.headers], stream=httpx.ByteStream(body))


def github_client(peer: GitHubPeer, fetcher: UpstreamClient) -> GitHubClient:
    return GitHubClient(fetcher, HOST, TRAITS, now=peer.now)


@define(eq=False)
class Seat:
    """An identity whose token is kept alive, and all states that it told."""

    peer: GitHubPeer
    client: GitHubClient
    tokens: CopilotTokens
    stop: Callable[[], None]
    """Cancels `tokens.run`."""
    told: list[TokenState] = field(factory=list)

    @property
    def github(self) -> DemoGitHub:
        return self.peer.github


@asynccontextmanager
async def open_seat(peer: GitHubPeer | None = None, fraction: float = 0.5) -> AsyncIterator[Seat]:
    """The tokens of `TOKEN`'s account, running."""
    peer = peer or GitHubPeer()
    told: list[TokenState] = []
    async with UpstreamClient({}, transport=peer) as fetcher, trio.open_nursery() as nursery:
        client = github_client(peer, fetcher)
        tokens = CopilotTokens("alice", TOKEN, client, now=peer.now, fraction=lambda: fraction, on_change=told.append)
        running = trio.CancelScope()

        async def run() -> None:
            with running:
                await tokens.run()

        nursery.start_soon(run)
        yield Seat(peer, client, tokens, running.cancel, told)
        nursery.cancel_scope.cancel()
