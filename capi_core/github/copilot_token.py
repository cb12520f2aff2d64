"""What the exchange of a GitHub token for a Copilot token answered: a token, or why there is none.

Undocumented by GitHub (spec.md 3, 4.3, 5 entries 23 to 26): `GET /copilot_internal/v2/token` gives `token`,
`expires_at` (Unix seconds), `refresh_in` (seconds), `endpoints.api` and facts about the seat; a refusal gives `message`
and perhaps `error_details.notification_id`. Members that are not known here are no error, known ones of a wrong type
are.
"""

from __future__ import annotations

import enum
import math
import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from attrs import field, frozen

from capi_core.errors import ProtocolError
from capi_core.github.endpoints import GitHubHost, base_url
from capi_core.headers import find
from capi_core.members import decode
from capi_core.protocols.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.headers import Headers

__all__ = ["CopilotToken", "TokenProblem", "TokenRefusal", "read_copilot_token"]

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_PROXY: Final = re.compile(r"(?:^|;)proxy-ep=proxy\.([A-Za-z0-9.-]+)(?=;|:|$)")
_MOST_SKEW_S: Final = 300.0
_MOST_LIFE_S: Final = 86_400.0
_MOST_RETRY_AFTER_S: Final = 3600.0
_DIGITS: Final = re.compile(rb"[0-9]{1,12}")

# `error_details.notification_id` of refusals that only GitHub or the seat's administrator can lift.
_BLOCKED: Final = frozenset({"feature_flag_blocked", "spammy_user"})


class TokenProblem(enum.Enum):
    """Why there is no Copilot token."""

    REVOKED = "revoked"
    NO_SUBSCRIPTION = "no_subscription"
    BLOCKED = "blocked"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"
    GARBAGE = "garbage"
    REFUSED = "refused"

    @property
    def next_step(self) -> str:
        """What the operator can do."""
        return _NEXT_STEPS[self]


_NEXT_STEPS: Final[Mapping[TokenProblem, str]] = {
    TokenProblem.REVOKED: "GitHub no longer takes this identity's token: link the identity again",
    TokenProblem.NO_SUBSCRIPTION: "this account has no Copilot seat: have one assigned or subscribe, and accept its "
    "terms on GitHub; it is tried again every quarter of an hour",
    TokenProblem.BLOCKED: "GitHub has blocked Copilot for this account: read the mail it sent, and ask its support; "
    "stop using the identity until then",
    TokenProblem.NOT_FOUND: "this host knows no Copilot for this token: check the host's name, and link the identity "
    "by the device flow (a personal access token does not do)",
    TokenProblem.RATE_LIMITED: "GitHub asks for a pause: nothing to do, it is tried again afterwards",
    TokenProblem.SERVER_ERROR: "GitHub has a problem: nothing to do, it is tried again; see its status page",
    TokenProblem.UNREACHABLE: "GitHub cannot be reached: check the network and the proxy; it is tried again",
    TokenProblem.GARBAGE: "the answer was not GitHub's: check for a proxy in between, and this machine's clock; it is "
    "tried again",
    TokenProblem.REFUSED: "GitHub refused the request: check the version of the gateway, and its headers in the "
    "configuration; it is tried again every quarter of an hour",
}


@frozen
class CopilotToken:
    """A token and what came with it. Instants are Unix seconds by the clock that `read_copilot_token` was given.

    `api`: base URL of Copilot for this seat, without a final slash. `sku`, `chat_enabled`: `None` when not told.
    """

    token: str = field(repr=False)
    obtained_at: float
    expires_at: float
    api: str
    sku: str | None = None
    chat_enabled: bool | None = None

    @property
    def life_s(self) -> float:
        """Seconds from its coming to its end: more than 0."""
        return self.expires_at - self.obtained_at


@frozen
class TokenRefusal:
    """No token. `retry_after_s`: the server's own wish, at most an hour."""

    problem: TokenProblem
    retry_after_s: float | None = None


_Instant = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Endpoints(msgspec.Struct):
    api: str | None = None


class _Answer(msgspec.Struct):
    token: str
    expires_at: _Instant
    refresh_in: _Instant | None = None
    endpoints: _Endpoints | None = None
    sku: str | None = None
    chat_enabled: bool | None = None


class _Details(msgspec.Struct):
    notification_id: str | None = None


class _Refusal(msgspec.Struct):
    error_details: _Details | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_REFUSAL: Final = msgspec.json.Decoder(_Refusal)


def read_copilot_token(
    status: int, headers: Headers, body: bytes, *, now: float, host: GitHubHost
) -> CopilotToken | TokenRefusal:
    """Reads an answer of any status. `now`: Unix seconds; `host`: who was asked. Never raises."""
    if status == 200:
        try:
            return _token(read_json(_ANSWER, body, status=502), now, host)
        except ProtocolError:
            return TokenRefusal(TokenProblem.GARBAGE)
    retry_after = _retry_after(headers, now)
    return TokenRefusal(_problem(status, headers, body, retry_after), retry_after)


def _token(answer: _Answer, now: float, host: GitHubHost) -> CopilotToken:
    life = answer.expires_at - now
    told = answer.refresh_in
    # A wrong clock on this side must not make every token a dead one: what counts from now is then the better figure.
    if told and not 0 <= life - told <= _MOST_SKEW_S:
        life = told
    if not _TOKEN.fullmatch(answer.token) or life <= 0:
        raise ProtocolError("not a token that can be used", code="upstream_garbage", status_hint=502)
    return CopilotToken(
        token=answer.token,
        obtained_at=now,
        expires_at=now + min(life, _MOST_LIFE_S),
        api=_api(answer, host),
        sku=answer.sku,
        chat_enabled=answer.chat_enabled,
    )


def _api(answer: _Answer, host: GitHubHost) -> str:
    """Another host than the seat's answers 421 (spec.md 5, 26). Old servers name it in the token only.

    In clear only where GitHub itself was asked in clear, which is a loopback address. Raises `ProtocolError`.
    """
    named = answer.endpoints.api if answer.endpoints else None
    if named is None:
        proxy = _PROXY.search(answer.token)
        named = f"https://api.{proxy[1].lower()}" if proxy else host.copilot
    base = base_url(named)
    if base is None or (base.startswith("http://") and not host.api.startswith("http://")):
        raise ProtocolError("not a base URL for Copilot", code="upstream_garbage", status_hint=502)
    return base


def _problem(status: int, headers: Headers, body: bytes, retry_after: float | None) -> TokenProblem:
    match status:
        case 401:
            return TokenProblem.REVOKED
        case 403 if retry_after is not None or find(headers, b"x-ratelimit-remaining") == b"0":
            return TokenProblem.RATE_LIMITED  # GitHub REST API, "Rate limits": 403 or 429
        case 403:
            return TokenProblem.BLOCKED if _notification(body) in _BLOCKED else TokenProblem.NO_SUBSCRIPTION
        case 404:
            return TokenProblem.NOT_FOUND
        case 429:
            return TokenProblem.RATE_LIMITED
        case _ if 400 <= status < 500:
            return TokenProblem.REFUSED
        case _ if status >= 500:
            return TokenProblem.SERVER_ERROR
        case _:
            return TokenProblem.GARBAGE  # a redirect to a login page, as proxies send it


def _notification(body: bytes) -> str | None:
    try:
        details = decode(_REFUSAL, body)[0].error_details
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return None if details is None else details.notification_id


def _retry_after(headers: Headers, now: float) -> float | None:
    """Seconds to wait: `retry-after` (RFC 9110 section 10.2.3; seconds, as GitHub sends it), or until the instant in
    `x-ratelimit-reset` when nothing is left."""
    told = _number(find(headers, b"retry-after"))
    if told is None and find(headers, b"x-ratelimit-remaining") == b"0":
        reset = _number(find(headers, b"x-ratelimit-reset"))
        told = None if reset is None else reset - now
    return None if told is None else min(max(math.ceil(told), 0), _MOST_RETRY_AFTER_S)


def _number(value: bytes | None) -> float | None:
    return float(value) if value is not None and _DIGITS.fullmatch(value) else None
