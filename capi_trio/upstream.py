"""The one module that talks HTTP to upstreams: httpx clients are built, and their exceptions end, here.

Settings that were measured (reliability.md section 0, style.md 5.5): a bounded httpx pool wedges for good under
cancellation, so the pool is unbounded and the gate is the cap; httpx's read timeout is per read and would cut a stream
that pauses, so time limits are the relay's own; environment proxies, redirects and compression are off.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import zlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final, Protocol

import httpx
import trio
from attrs import field, frozen
from typing_extensions import override

from capi_core import __version__
from capi_core.exchange import Failure
from capi_core.protocols.kinds import Protocol as Wire
from capi_trio.inflate import Inflated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from capi_core.exchange import Operation, SendRequest
    from capi_core.headers import Headers

__all__ = [
    "Address",
    "FetchLimits",
    "Fetched",
    "Secret",
    "UpstreamClient",
    "UpstreamFailedError",
    "UpstreamResponse",
    "UpstreamSource",
    "UpstreamTarget",
    "address_of",
    "credential_headers",
    "tls_context",
    "version_headers",
]

_IDLE_UPSTREAM_CONNECTIONS: Final = 20
_KEEPALIVE_EXPIRY_S: Final = 30.0
"""Below the 60 to 75 s after which common servers close an idle connection: reusing one that closes loses a request."""
_WRITE_TIMEOUT_S: Final = 60.0
_PORTS: Final = {"http": 80, "https": 443}
_LIST_TIMEOUT_S: Final = 10.0
_MAX_LIST_BYTES: Final = 8 * 1024 * 1024
_UNPACKED: Final = frozenset({"", "identity"})


class Secret:
    """A value that no repr, log or traceback shows."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    @override
    def __repr__(self) -> str:
        return "Secret(***)"


@frozen
class UpstreamTarget:
    """Where an upstream is, and what opens it. `base_url` has no trailing slash.

    `anthropic`: its key goes as `x-api-key`, and it wants to be told a version with every request. `websocket`: it
    offers Responses over WebSocket as well (`capi_trio.upstream_socket`). `copilot`: its URL has no version, but for
    Messages. `headers`: what opens it besides a key.
    """

    name: str
    base_url: str
    api_key: Secret | None = None
    connect_timeout_s: float = 10.0
    anthropic: bool = False
    websocket: bool = False
    copilot: bool = False
    headers: Headers = field(default=(), repr=False)

    def path(self, operation: Operation) -> str:
        """Where an operation is, below `base_url`."""
        messages = operation.protocol is Wire.MESSAGES
        return f"/v1{operation.value}" if self.copilot and messages else operation.value


@frozen
class Address:
    """A URL, as one needs it who opens the connection: `authority` is the value of a Host header."""

    tls: bool
    host: str
    port: int
    authority: str
    path: str


class UpstreamFailedError(Exception):
    """There is no (more) response. `failure` says why, in the core's terms; `reason` is the exception's kind."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(f"{failure.name.lower()}: {reason}")
        self.failure = failure
        self.reason = reason


@frozen
class UpstreamResponse:
    """An open response: its head, and its body as it comes in."""

    status: int
    headers: Headers
    _chunks: Callable[[], AsyncIterator[bytes]] = field(repr=False)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes. Iterate inside `request` only, with its errors mapped; once."""
        return self._chunks()


@frozen
class FetchLimits:
    """Of a small answer that is read whole. `total_s`: from asking until its last byte."""

    max_bytes: int
    total_s: float
    connect_s: float


@frozen
class Fetched:
    """A whole answer, of any status."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


class UpstreamSource(Protocol):
    """Where answers come from: what an exchange needs of `UpstreamClient`, and of what asks over something else."""

    @property
    def secrets(self) -> tuple[bytes, ...]: ...

    def request(
        self, request: SendRequest, target: UpstreamTarget | None = None, /
    ) -> AbstractAsyncContextManager[UpstreamResponse]: ...


class UpstreamClient:
    """Connections to every configured upstream. An async context manager; closing it closes them.

    `transport` takes the place of httpx's own connections.
    """

    def __init__(
        self, targets: Mapping[str, UpstreamTarget], *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._targets = targets
        self._client = httpx.AsyncClient(  # noqa: TID251 - this is that one module
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=_IDLE_UPSTREAM_CONNECTIONS,
                keepalive_expiry=_KEEPALIVE_EXPIRY_S,
            ),
            timeout=httpx.Timeout(None),
            trust_env=False,
            follow_redirects=False,
            headers=version_headers(),
            # No cookie of an upstream is kept: one client's answer must not mark another client's request.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def set_targets(self, targets: Mapping[str, UpstreamTarget]) -> None:
        """Goes on with other targets. Requests that are under way keep theirs."""
        self._targets = targets

    def target(self, name: str) -> UpstreamTarget:
        """The upstream called `name`. Raises `UpstreamFailedError`."""
        target = self._targets.get(name)
        if target is None:  # the configuration changed between the decision and the request
            raise UpstreamFailedError(Failure.UNREACHABLE, "no longer configured")
        return target

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every credential this client can send, for masking."""
        return tuple(target.api_key.reveal().encode() for target in self._targets.values() if target.api_key)

    @contextlib.asynccontextmanager
    async def request(
        self, request: SendRequest, target: UpstreamTarget | None = None
    ) -> AsyncIterator[UpstreamResponse]:
        """Sends `request`; the response is open inside the `async with`. Raises `UpstreamFailedError`.

        `target`: where to, if not where the request's upstream is configured to be. Leaving the block, by whatever way,
        closes the upstream connection unless the response was read to its end.
        """
        target = target or self.target(request.upstream)
        headers = (*request.headers, *credential_headers(target))
        with _failures_mapped():
            async with self._stream(target, "POST", target.path(request.operation), headers, request.body) as response:
                yield _opened(response)

    @contextlib.asynccontextmanager
    async def ask(
        self, name: str, method: str, path: str, headers: Headers, body: bytes | None = None
    ) -> AsyncIterator[UpstreamResponse]:
        """Sends what the caller wants below the target's base URL, without a credential of ours. Else as `request`."""
        with _failures_mapped():
            async with self._stream(self.target(name), method, path, headers, body) as response:
                yield _opened(response)

    def _stream(
        self, target: UpstreamTarget, method: str, path: str, headers: Headers, body: bytes | None
    ) -> AbstractAsyncContextManager[httpx.Response]:
        return self._client.stream(
            method,
            target.base_url + path,
            headers=[*headers],
            content=body,
            timeout=httpx.Timeout(None, connect=target.connect_timeout_s, write=_WRITE_TIMEOUT_S),
        )

    async def list_models(self, name: str, target: UpstreamTarget | None = None) -> bytes:
        """The body of an upstream's GET /models; `target` as in `request`. Raises `UpstreamFailedError`."""
        target = target or self.target(name)
        body = bytearray()
        with _failures_mapped(), trio.move_on_after(_LIST_TIMEOUT_S) as waiting:
            async with self._client.stream(
                "GET",
                target.base_url + ("/models?limit=1000" if target.anthropic else "/models"),
                headers=[(b"accept", b"application/json"), *credential_headers(target), *_version(target)],
            ) as response:
                if response.status_code != 200:
                    raise UpstreamFailedError(Failure.BROKEN, f"status {response.status_code}")
                async for chunk in _opened(response).chunks():
                    body += chunk
                    if len(body) > _MAX_LIST_BYTES:
                        raise UpstreamFailedError(Failure.BROKEN, "the model list is too long")
        if waiting.cancelled_caught:
            raise UpstreamFailedError(Failure.TIMEOUT, f"no model list within {_LIST_TIMEOUT_S:.0f} s")
        return bytes(body)

    async def fetch(self, method: str, url: str, headers: Headers, body: bytes | None, limits: FetchLimits) -> Fetched:
        """Asks `url`, which need be no target's, and without a credential of ours. Raises `UpstreamFailedError`."""
        received = bytearray()
        timeout = httpx.Timeout(None, connect=limits.connect_s)
        with _failures_mapped(), trio.move_on_after(limits.total_s):
            async with self._client.stream(method, url, headers=[*headers], content=body, timeout=timeout) as response:
                async for chunk in _opened(response).chunks():
                    received += chunk
                    if len(received) > limits.max_bytes:
                        raise UpstreamFailedError(Failure.BROKEN, "the answer is too long")
                return Fetched(response.status_code, tuple(response.headers.raw), bytes(received))
        raise UpstreamFailedError(Failure.TIMEOUT, f"no whole answer within {limits.total_s:.0f} s")


def version_headers() -> dict[str, str]:
    """What capi says of itself to every upstream."""
    return {"user-agent": f"capi/{__version__}", "accept-encoding": "identity"}


def address_of(target: UpstreamTarget, path: str) -> Address | None:
    """Where `path` below the target's base URL is; `None` when that is no URL that can be asked."""
    try:
        url = httpx.URL(target.base_url + path)
    except httpx.InvalidURL:
        return None
    port = url.port or _PORTS.get(url.scheme)
    if port is None or not url.host:
        return None
    host, authority, full_path = (part.decode("ascii") for part in (url.raw_host, url.netloc, url.raw_path))
    return Address(url.scheme == "https", host, port, authority, full_path)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Trusts what the HTTP client trusts, for who connects without it. Reading certificates takes long: once."""
    return httpx.create_ssl_context(trust_env=False)


def _opened(response: httpx.Response) -> UpstreamResponse:
    coding = response.headers.get("content-encoding", "identity").strip().lower()

    def chunks() -> AsyncIterator[bytes]:
        # A server that compresses although asked not to is still understood. Not by httpx, which unpacks all that has
        # come at once, and layer by layer: some bytes of `gzip, gzip, gzip` are as many gigabytes.
        raw = response.aiter_raw()
        return raw if coding in _UNPACKED else Inflated(raw, coding)

    return UpstreamResponse(response.status_code, tuple(response.headers.raw), chunks)


def credential_headers(target: UpstreamTarget) -> Headers:
    """What opens the upstream."""
    if target.api_key is None:
        return target.headers
    key = target.api_key.reveal().encode()
    return ((b"x-api-key", key),) if target.anthropic else ((b"authorization", b"Bearer " + key),)


def _version(target: UpstreamTarget) -> Headers:
    return ((b"anthropic-version", b"2023-06-01"),) if target.anthropic else ()


# The first class that matches decides: the special ones stand before those they derive from.
_FAILURES: Final[tuple[tuple[type[httpx.HTTPError], Failure], ...]] = (
    (httpx.TimeoutException, Failure.TIMEOUT),
    (httpx.ConnectError, Failure.UNREACHABLE),
    (httpx.UnsupportedProtocol, Failure.UNREACHABLE),
    (httpx.HTTPError, Failure.BROKEN),
)


@contextlib.contextmanager
def _failures_mapped() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        failure = next(failure for kind, failure in _FAILURES if isinstance(error, kind))
        # httpx's text can hold the URL; its kind is all that a log needs.
        raise UpstreamFailedError(failure, type(error).__name__) from None
    except httpx.InvalidURL:
        raise UpstreamFailedError(Failure.UNREACHABLE, "InvalidURL") from None
    except zlib.error:
        raise UpstreamFailedError(Failure.BROKEN, "DecodingError") from None
