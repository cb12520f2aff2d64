"""Requests to one GitHub host: the answers whole, small and soon, or a reason why there is none.

Only the two addresses of the host are ever asked: its pages for the device flow, its REST API for all else. Redirects,
cookies and proxies of the environment are off in `capi_trio.upstream`, certificates are verified there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core import __version__
from capi_core.errors import LocalError, ProtocolError
from capi_core.github.account import read_account
from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal, read_copilot_token
from capi_core.github.endpoints import Endpoint
from capi_core.github.headers import ClientTraits
from capi_core.github.quota import read_quota
from capi_trio.github.api_base import api_base_url
from capi_trio.logs import get_logger
from capi_trio.upstream import FetchLimits, UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.github.account import Account
    from capi_core.github.endpoints import GitHubHost, GitHubRequest
    from capi_core.github.quota import QuotaReport
    from capi_trio.upstream import Fetched, Secret, UpstreamClient

__all__ = ["GitHubClient", "GitHubFailedError", "own_traits"]

_LIMITS: Final = FetchLimits(max_bytes=1024 * 1024, total_s=15.0, connect_s=10.0)


class GitHubFailedError(Exception):
    """GitHub gave no answer that helps. `problem` says what the operator can do."""

    def __init__(self, refusal: TokenRefusal) -> None:
        super().__init__(refusal.problem.next_step)
        self.problem = refusal.problem
        self.retry_after_s = refusal.retry_after_s


def own_traits() -> ClientTraits:
    """How the gateway presents itself unless the configuration says otherwise: under its own name."""
    name = f"capi/{__version__}"
    return ClientTraits(user_agent=name, editor_version=name)


class GitHubClient:
    """Asks one GitHub host. `now` gives Unix seconds."""

    def __init__(
        self, fetcher: UpstreamClient, host: GitHubHost, traits: ClientTraits, *, now: Callable[[], float]
    ) -> None:
        self.host: Final = host
        self.traits: Final = traits
        self._fetcher = fetcher
        self._now = now
        self._log = get_logger("github")

    def request(self, endpoint: Endpoint, token: Secret) -> GitHubRequest:
        """The request that reads `endpoint` with a GitHub token. Raises `LocalError` for what is no token."""
        return self.host.get(endpoint, self.traits.github_headers(token.reveal()))

    async def send(self, request: GitHubRequest) -> Fetched:
        """The answer to a request, of any status. Raises `UpstreamFailedError`; `LocalError` for another host's."""
        if not request.url.startswith((f"{self.host.web}/", f"{self.host.api}/")):
            raise LocalError("the request is for another host")
        return await self._fetcher.fetch(request.method, request.url, request.headers, request.body or None, _LIMITS)

    async def copilot_token(self, token: Secret) -> CopilotToken | TokenRefusal:
        """Exchanges a GitHub token for a Copilot token, or tells why there is none."""
        answer = await self._ask(Endpoint.COPILOT_TOKEN, token)
        if isinstance(answer, TokenRefusal):
            return answer
        read = read_copilot_token(answer.status, answer.headers, answer.body, now=self._now(), host=self.host)
        if isinstance(read, CopilotToken) and api_base_url(read.api, self.host) is None:
            self._log.error("copilot_base_url_refused", host=self.host.web, named=read.api)
            return TokenRefusal(TokenProblem.GARBAGE)
        return read

    async def account(self, token: Secret) -> Account:
        """Whose token it is. Raises `GitHubFailedError`."""
        body = await self._read(Endpoint.USER, token)
        try:
            return read_account(body)
        except ProtocolError:
            raise GitHubFailedError(TokenRefusal(TokenProblem.GARBAGE)) from None

    async def usage(self, token: Secret) -> QuotaReport:
        """What is left of the seat. Raises `GitHubFailedError`."""
        body = await self._read(Endpoint.COPILOT_USER, token)
        try:
            return read_quota(body)
        except ProtocolError:
            raise GitHubFailedError(TokenRefusal(TokenProblem.GARBAGE)) from None

    async def _read(self, endpoint: Endpoint, token: Secret) -> bytes:
        """The body of a 200. Raises `GitHubFailedError`."""
        answer = await self._ask(endpoint, token)
        if isinstance(answer, TokenRefusal):
            raise GitHubFailedError(answer)
        if answer.status != 200:
            raise GitHubFailedError(self._refusal(endpoint, answer))
        return answer.body

    async def _ask(self, endpoint: Endpoint, token: Secret) -> Fetched | TokenRefusal:
        try:
            return await self.send(self.request(endpoint, token))
        except UpstreamFailedError as error:
            self._log.warning("github_unreachable", host=self.host.web, call=endpoint.value, reason=str(error))
            return TokenRefusal(TokenProblem.UNREACHABLE)

    def _refusal(self, endpoint: Endpoint, answer: Fetched) -> TokenRefusal:
        """What a status means: the same at each of the API's endpoints, but that only one of them is about a seat."""
        read = read_copilot_token(answer.status, answer.headers, answer.body, now=self._now(), host=self.host)
        if isinstance(read, CopilotToken):
            raise AssertionError("only a 200 brings a token")
        if endpoint is Endpoint.USER and read.problem is TokenProblem.NO_SUBSCRIPTION:
            return TokenRefusal(TokenProblem.REFUSED)
        return read
