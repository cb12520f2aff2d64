"""The OAuth device authorization grant (RFC 8628), as GitHub does it: from a client id to a token, without a browser.

    flow = DeviceFlow(client_id, user_agent=...)
    send(flow.start())
    events = flow.receive(status, body, now)     # or receive_failure(now) when no answer came
    ...                                          # ShowCode, Wait(until): sleep, then send(flow.poll(now))

Theory of operation. There is at most one request on its way, and after each answer either one `Wait` or one end. A poll
before its time is the embedder's mistake and refused here, so that no bug can make the server lock the client out.
Whatever is no answer of the protocol (nothing at all, 5xx, a proxy's page, wrong types) is tried again at a growing
interval for as long as the code lives; before there is a code, a few times.

Sources: RFC 8628 sections 3.1 to 3.5; GitHub docs, "Authorizing OAuth apps", "Device flow" and its error codes. GitHub
sends errors with status 200, RFC 8628 with 400: the `error` member decides, whatever the status.
"""

from __future__ import annotations

import enum
import math
import re
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import msgspec
from attrs import field, frozen

from capi_core.errors import LocalError
from capi_core.github.endpoints import GITHUB, GitHubHost, GitHubRequest
from capi_core.members import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Authorized",
    "Denied",
    "DeviceFlow",
    "DeviceFlowEvent",
    "DeviceFlowState",
    "Expired",
    "Failed",
    "FlowFailure",
    "ShowCode",
    "Wait",
]

_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_DEFAULT_INTERVAL_S: Final = 5.0  # RFC 8628 section 3.2
_SLOWER_BY_S: Final = 5.0  # section 3.5
_LEAST_INTERVAL_S: Final = 1.0
_MOST_BACKOFF_S: Final = 60.0
_LAST_CHANCE_S: Final = 1.0
"""How long before the code's end a backoff wakes up for the last time."""
_MOST_ASKED: Final = 5
"""How often a code is asked for in vain: behind this there is a person who waits."""
_MOST_BODY: Final = 65_536
_TOKEN: Final = re.compile(r"[!-~]{1,4096}")
_USER_CODE: Final = re.compile(r"[A-Za-z0-9-]{1,32}")


class DeviceFlowState(enum.Enum):
    """What the machine waits for."""

    NEW = "new"
    ASKED = "asked"
    """The answer to the first request, which asks for a code."""
    WAITING = "waiting"
    """The time of the next request."""
    POLLED = "polled"
    """The answer to a poll."""
    ENDED = "ended"


class FlowFailure(enum.Enum):
    """Why no token will come, other than by the user's word."""

    UNREACHABLE = "unreachable"
    DISABLED = "device_flow_disabled"
    WRONG_CLIENT = "incorrect_client_credentials"
    WRONG_CODE = "incorrect_device_code"
    WRONG_GRANT = "unsupported_grant_type"
    REFUSED = "refused"

    @property
    def next_step(self) -> str:
        """What the operator can do."""
        return _NEXT_STEPS[self]


_NEXT_STEPS: Final[Mapping[FlowFailure, str]] = {
    FlowFailure.UNREACHABLE: "GitHub did not give a code: check the network, the proxy and the host's name, then retry",
    FlowFailure.DISABLED: "the app of this client id has the device flow switched off: switch it on in its settings "
    "on GitHub, or use another client id",
    FlowFailure.WRONG_CLIENT: "GitHub does not know this client id: check it, and that it is of the same GitHub host",
    FlowFailure.WRONG_CODE: "GitHub no longer knows the code: start again",
    FlowFailure.WRONG_GRANT: "this GitHub host does not offer the device flow: use a token made on its pages instead",
    FlowFailure.REFUSED: "GitHub refused the request: check the client id and the scope, then start again",
}


@frozen
class ShowCode:
    """The user must enter `user_code` at `verification_uri`, before `expires_at` (seconds of the embedder's clock).

    The URI is always one of the host that was asked. `interval`: seconds between two polls.
    """

    user_code: str = field(repr=False)
    verification_uri: str
    expires_at: float
    interval: float


@frozen
class Wait:
    """Call `poll` at `until` (seconds of the embedder's clock), not before."""

    until: float


@frozen
class Authorized:
    """The end: `token` is the user's. `scope`: what was granted, as the server wrote it. `expires_at`: `None` for a
    token that lives until it is revoked, as those of OAuth apps do."""

    token: str = field(repr=False)
    scope: str | None = None
    expires_at: float | None = None


@frozen
class Denied:
    """The end: the user said no."""


@frozen
class Expired:
    """The end: the code was not entered in time."""


@frozen
class Failed:
    """The end: it cannot be done like this."""

    reason: FlowFailure


DeviceFlowEvent = ShowCode | Wait | Authorized | Denied | Expired | Failed

_ENDS: Final[Mapping[str, Denied | Expired | Failed]] = {
    "access_denied": Denied(),
    "expired_token": Expired(),
    "token_expired": Expired(),  # an older spelling of GitHub's
    "device_flow_disabled": Failed(FlowFailure.DISABLED),
    "incorrect_client_credentials": Failed(FlowFailure.WRONG_CLIENT),
    "invalid_client": Failed(FlowFailure.WRONG_CLIENT),
    "unauthorized_client": Failed(FlowFailure.WRONG_CLIENT),
    "incorrect_device_code": Failed(FlowFailure.WRONG_CODE),
    "bad_verification_code": Failed(FlowFailure.WRONG_CODE),
    "unsupported_grant_type": Failed(FlowFailure.WRONG_GRANT),
}

_TRANSIENT: Final = frozenset({"server_error", "temporarily_unavailable"})  # RFC 6749 section 4.1.2.1

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Answer(msgspec.Struct):
    """All answers in one: which one it is, its members tell."""

    error: str | None = None
    interval: _Seconds | None = None
    device_code: str | None = None
    user_code: str | None = None
    verification_uri: str | None = None
    expires_in: _Seconds | None = None
    access_token: str | None = None
    token_type: str | None = None
    scope: str | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_NONSENSE: Final = _Answer()


class DeviceFlow:
    """One attempt to get a token. Times are seconds of any one clock; it may be the wall clock or a monotonic one."""

    def __init__(self, client_id: str, *, user_agent: str, host: GitHubHost = GITHUB, scope: str = "read:user") -> None:
        """`scope`: names with spaces between, or empty. Raises `LocalError` without a client id."""
        if not client_id:
            raise LocalError("the device flow needs a client id")
        self._client_id: Final = client_id
        self._host: Final = host
        self._scope: Final = scope
        self._headers: Final = (
            (b"accept", b"application/json"),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"user-agent", user_agent.encode()),
        )
        self._state = DeviceFlowState.NEW
        self._device_code: str | None = None
        self._expires_at = math.inf
        self._interval = _DEFAULT_INTERVAL_S
        self._until = math.inf
        self._failures = 0  # in a row

    @property
    def state(self) -> DeviceFlowState:
        return self._state

    def start(self) -> GitHubRequest:
        """The first request (RFC 8628 section 3.1). Raises `LocalError` the second time."""
        self._expect(DeviceFlowState.NEW)
        return self._request()

    def poll(self, now: float) -> GitHubRequest:
        """The next request: for the token (section 3.4), or once more for a code.

        It may be late, even past the code's end: the server's clock is the one that counts. Raises `LocalError` before
        the instant of the last `Wait`, and while no `Wait` is pending.
        """
        self._expect(DeviceFlowState.WAITING)
        if not now >= self._until:
            raise LocalError("polled before the time that the last Wait gave")
        return self._request()

    def receive(self, status: int, body: bytes, now: float) -> list[DeviceFlowEvent]:
        """The answer to the request that is on its way: what to do now. Raises `LocalError` when none is."""
        self._expect(DeviceFlowState.ASKED, DeviceFlowState.POLLED)
        answer = _read(status, body)
        if answer.error == "slow_down":
            self._interval = max(answer.interval or 0, self._interval + _SLOWER_BY_S)
            # Before there is a code nothing else ends it.
            return self._retry(now) if self._device_code is None else self._wait(now, self._interval)
        if answer.error is not None:
            return self._receive_error(answer.error, now)
        if self._state is DeviceFlowState.ASKED:
            return self._receive_code(answer, now)
        return self._receive_token(answer, now)

    def receive_failure(self, now: float) -> list[DeviceFlowEvent]:
        """No answer came: the connection failed, or took too long. Raises `LocalError` when none is awaited."""
        self._expect(DeviceFlowState.ASKED, DeviceFlowState.POLLED)
        return self._retry(now)

    def _expect(self, *states: DeviceFlowState) -> None:
        if self._state not in states:
            raise LocalError(f"not allowed while the device flow is {self._state.value}")

    def _request(self) -> GitHubRequest:
        if self._device_code is None:
            self._state = DeviceFlowState.ASKED
            url = self._host.device_code_url
            fields = {"client_id": self._client_id} | ({"scope": self._scope} if self._scope else {})
        else:
            self._state = DeviceFlowState.POLLED
            url = self._host.access_token_url
            fields = {"client_id": self._client_id, "device_code": self._device_code, "grant_type": _GRANT_TYPE}
        return GitHubRequest("POST", url, self._headers, urlencode(fields).encode())

    def _receive_error(self, error: str, now: float) -> list[DeviceFlowEvent]:
        if error in _TRANSIENT:
            return self._retry(now)
        if error == "authorization_pending" and self._device_code is not None:
            self._failures = 0
            return self._wait(now, self._interval)
        return self._end(_ENDS.get(error, Failed(FlowFailure.REFUSED)))

    def _receive_code(self, answer: _Answer, now: float) -> list[DeviceFlowEvent]:
        interval = max(_DEFAULT_INTERVAL_S if answer.interval is None else answer.interval, _LEAST_INTERVAL_S)
        life = answer.expires_in or 0
        if (
            not answer.device_code
            or not _USER_CODE.fullmatch(answer.user_code or "")
            or answer.user_code is None
            or life <= interval
        ):
            return self._retry(now)
        self._device_code = answer.device_code
        self._expires_at = now + life
        self._interval = interval
        self._failures = 0
        shown = ShowCode(answer.user_code, self._page(answer.verification_uri), self._expires_at, interval)
        return [shown, *self._wait(now, interval)]

    def _page(self, uri: str | None) -> str:
        """Where the code is to be entered. Who could put another site here would be given the user's account."""
        if uri is None or not uri.startswith(f"{self._host.web}/") or not uri.isascii() or not uri.isprintable():
            return self._host.verification_url
        return uri

    def _receive_token(self, answer: _Answer, now: float) -> list[DeviceFlowEvent]:
        token = answer.access_token or ""
        if not _TOKEN.fullmatch(token) or (answer.token_type or "bearer").lower() != "bearer":
            return self._retry(now)
        expires_at = now + answer.expires_in if answer.expires_in else None
        return self._end(Authorized(token, answer.scope, expires_at))

    def _retry(self, now: float) -> list[DeviceFlowEvent]:
        """RFC 8628 section 3.5: a client that gets no answer polls less often, exponentially."""
        self._failures += 1
        if self._device_code is None and self._failures >= _MOST_ASKED:
            return self._end(Failed(FlowFailure.UNREACHABLE))
        pause = self._interval * 2.0 ** min(self._failures, 10)
        return self._wait(now, max(self._interval, min(pause, _MOST_BACKOFF_S)))

    def _wait(self, now: float, pause: float) -> list[DeviceFlowEvent]:
        until = max(now + self._interval, min(now + pause, self._expires_at - _LAST_CHANCE_S))
        if until >= self._expires_at:
            return self._end(Expired())
        self._until = until
        self._state = DeviceFlowState.WAITING
        return [Wait(until)]

    def _end(self, event: Authorized | Denied | Expired | Failed) -> list[DeviceFlowEvent]:
        self._state = DeviceFlowState.ENDED
        self._device_code = None
        return [event]


def _read(status: int, body: bytes) -> _Answer:
    """The answer, with nothing in it when it is none of the protocol's."""
    if status >= 500 or len(body) > _MOST_BODY:
        return _NONSENSE
    if status == 429:
        return _Answer(error="slow_down")
    try:
        answer = decode(_ANSWER, body)[0]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _NONSENSE
    return answer if answer.error is not None or status == 200 else _NONSENSE
