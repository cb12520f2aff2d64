"""A simulated GitHub: the device flow, an account, its Copilot token and its quota (spec.md 4.3; RFC 8628).

It keeps what GitHub keeps: codes that wait for their user, tokens of accounts, Copilot tokens with an end, what was
used of a quota. It is as strict as GitHub is where clients get it wrong: a poll before its time makes all later ones
slower, a request without a user agent or with another kind of token is refused. What goes wrong besides is told by
`fail`.

It shares nothing with the gateway's own reading of these answers. The time is the provider's (`World.clock`), ids count
up: the same calls get the same answers.
"""

import enum
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec
from attrs import define, frozen

from capi_trio.demo.answers import Answer, Refused, Request, World, Write, json_answer

__all__ = ["CLIENT_ID", "Call", "Decision", "DemoGitHub", "Trouble", "is_copilot_token"]

CLIENT_ID: Final = "Iv1.demo00000000demo"
_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_LOGIN: Final = "demo-octocat"
_SLOWER_BY_S: Final = 5
_ENTITLEMENT: Final = 300
_KEPT_CODES: Final = 100
_REFRESH_AT: Final = 5 / 6  # of a token's life: GitHub says 1,500 s of 1,800
_DOCS: Final = "https://docs.github.com/"
_WORDS: Final[Mapping[int, str]] = {
    401: "Bad credentials",
    403: "Forbidden",
    404: "Not Found",
    429: "Too many requests",
}


class Call(enum.Enum):
    """What may be called: method and path."""

    DEVICE_CODE = ("POST", "/login/device/code")
    ACCESS_TOKEN = ("POST", "/login/oauth/access_token")
    USER = ("GET", "/user")
    COPILOT_TOKEN = ("GET", "/copilot_internal/v2/token")
    COPILOT_USER = ("GET", "/copilot_internal/user")


class Decision(enum.Enum):
    """What the user does with a code."""

    APPROVE = "approve"
    DENY = "deny"
    IGNORE = "ignore"


@frozen
class Trouble:
    """An answer in the place of the proper one. `delay_s`: before its head; infinity waits until the client goes."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    delay_s: float = 0.0

    @classmethod
    def http(cls, status: int, retry_after: int | None = None) -> "Trouble":
        """An error as GitHub's REST API puts it, with `retry-after` (s) if given: 401, 404, 429, 503, ..."""
        pause = () if retry_after is None else ((b"retry-after", b"%d" % retry_after),)
        return cls(status, msgspec.json.encode(_message(status)), (*_JSON, *pause))

    @classmethod
    def no_copilot(cls, notification: str = "not_signed_up") -> "Trouble":
        """The 403 of `COPILOT_TOKEN` for an account without a seat, or (`spammy_user`) one that is blocked."""
        details = {"message": "No access to GitHub Copilot found.", "notification_id": notification, "url": _DOCS}
        body = {"can_signup_for_limited": False, "error_details": details, "message": "Resource not accessible"}
        return cls(403, msgspec.json.encode(body), _JSON)

    @classmethod
    def oauth(cls, error: str, **members: int | str) -> "Trouble":
        """An error of the device flow: `slow_down` (with `interval`), `expired_token`, `device_flow_disabled`, ..."""
        return cls(200, msgspec.json.encode(_oauth_error(error, **members)), _JSON)

    @classmethod
    def garbage(cls) -> "Trouble":
        """A page in the place of JSON, with status 200: a proxy's, or a login's."""
        return cls(200, b"<!doctype html><title>Sign in</title>", ((b"content-type", b"text/html; charset=utf-8"),))

    @classmethod
    def stall(cls) -> "Trouble":
        """No answer at all."""
        return cls(delay_s=math.inf)

    def answer(self) -> Answer:
        headers = (*self.headers, (b"content-length", b"%d" % len(self.body)))
        return Answer(self.status, headers, (Write(self.body),), self.delay_s, sound=False)


_JSON: Final = ((b"content-type", b"application/json; charset=utf-8"),)

Handler = Callable[[Request, World], Answer]


@define
class _Grant:
    """A code that waits for its user."""

    expires_at: float
    interval: float
    pending: int
    asked_at: float = -math.inf


@frozen
class _Seat:
    """Whose Copilot token it is, and until when."""

    login: str
    expires_at: float


def is_copilot_token(authorization: bytes | None) -> bool:
    """Whether an `authorization` header has what looks like a Copilot token, be it live or not."""
    return (authorization or b"").lower().startswith(b"bearer tid=")


class DemoGitHub:
    """One GitHub. Its attributes may be changed at any time, and count from the next call on.

    `decision`: what users do; they take `pending_polls` polls to approve, as `login`. `interval_s` and `code_life_s`:
    of new codes; `token_life_s`: of new Copilot tokens. `entitlement`: premium requests of each account. `base_url`:
    where this GitHub and its Copilot are, if that is not what the client's `host` header says.
    """

    def __init__(self, *, client_id: str = CLIENT_ID, base_url: str | None = None) -> None:
        self.client_id = client_id
        self.base_url = base_url
        self.decision = Decision.APPROVE
        self.pending_polls = 1
        self.login = _LOGIN
        self.interval_s = 5
        self.code_life_s = 900
        self.token_life_s = 1800
        self.entitlement = _ENTITLEMENT
        self.calls: Counter[Call] = Counter()
        """How often each was called, whatever the answer."""
        self.early_polls = 0
        """Polls that came before their time."""
        self.initiators: Counter[str] = Counter()
        """Requests to models that `admit` let in, by `x-initiator`; one without it counts as the user's."""
        self._handlers: Final[Mapping[tuple[str, str], tuple[Call, Handler]]] = {
            call.value: (call, handler)
            for call, handler in (
                (Call.DEVICE_CODE, self._device_code),
                (Call.ACCESS_TOKEN, self._access_token),
                (Call.USER, self._user),
                (Call.COPILOT_TOKEN, self._copilot_token),
                (Call.COPILOT_USER, self._copilot_user),
            )
        }
        self._troubles: dict[Call, deque[Trouble]] = {call: deque() for call in Call}
        self._lasting: dict[Call, Trouble] = {}
        self._grants: dict[str, _Grant] = {}
        self._accounts: dict[str, str] = {}  # login by GitHub token
        self._numbers: dict[str, int] = {}  # account id by login
        self._seats: dict[str, _Seat] = {}  # by Copilot token
        self._used: Counter[str] = Counter()  # premium requests by login

    def answer(self, request: Request, world: World) -> Answer | None:
        """The answer to a request that is for GitHub; `None` for all others. Never raises."""
        found = self._handlers.get((request.method, request.path))
        if found is None:
            return None
        call, handler = found
        self.calls[call] += 1
        told = self._troubles[call]
        trouble = told.popleft() if told else self._lasting.get(call)
        return handler(request, world) if trouble is None else trouble.answer()

    def fail(self, call: Call, trouble: Trouble, times: int | None = 1) -> None:
        """The next `times` calls get `trouble`, after what was told before; `None`: all of them, until `heal`."""
        if times is None:
            self._lasting[call] = trouble
        else:
            self._troubles[call].extend([trouble] * times)

    def heal(self, call: Call) -> None:
        """No more trouble with that call."""
        self._troubles[call].clear()
        self._lasting.pop(call, None)

    def link(self, token: str, login: str = _LOGIN) -> None:
        """Makes `token` a GitHub token of that account, as if it had come from a device flow."""
        self._accounts[token] = login
        self._numbers.setdefault(login, 1000 + len(self._numbers))

    def revoke(self, token: str) -> None:
        """The user takes a GitHub token back. Its Copilot tokens live on, as GitHub's do."""
        self._accounts.pop(token, None)

    def expire_copilot_tokens(self) -> None:
        """All Copilot tokens die before their time."""
        self._seats.clear()

    def is_live(self, copilot_token: str, now: float) -> bool:
        """Whether that Copilot token is one of this GitHub's, and alive at `now` (Unix seconds)."""
        seat = self._seats.get(copilot_token)
        return seat is not None and now < seat.expires_at

    def used(self, login: str = _LOGIN) -> int:
        """Premium requests that this account has made."""
        return self._used[login]

    def admit(self, request: Request, now: float) -> None:
        """Lets a request to Copilot in, as Copilot does. Raises `Refused`.

        401 without a live Copilot token, 400 without the headers that Copilot insists on, 402 when a request that the
        user began finds the quota used up. A POST that a user began uses one of it.
        """
        scheme, _, token = (request.header(b"authorization") or b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not self.is_live(token, now):
            raise Refused.because("unauthorized: token expired", "unauthorized", status=401)
        for name in (b"editor-version", b"copilot-integration-id"):
            if not request.header(name):
                raise Refused.because(f"bad request: missing {name.decode()} header", "bad_request")
        if request.method == "POST":
            self._bill(self._seats[token].login, request)

    def _bill(self, login: str, request: Request) -> None:
        initiator = (request.header(b"x-initiator") or b"user").decode("latin-1")
        if initiator != "agent":
            if self._used[login] >= self.entitlement:
                raise Refused.because("you have exceeded your premium request quota", "quota_exceeded", status=402)
            self._used[login] += 1
        self.initiators[initiator] += 1

    def _device_code(self, request: Request, world: World) -> Answer:
        if _form(request).get("client_id") != self.client_id:
            return _oauth_answer(request, {"error": "Not Found"}, 404)
        device_code = world.new_id("device-code-")
        number = self.calls[Call.DEVICE_CODE]
        for oldest in list(self._grants)[:-_KEPT_CODES]:
            del self._grants[oldest]
        self._grants[device_code] = _Grant(world.clock() + self.code_life_s, self.interval_s, self.pending_polls)
        return _oauth_answer(
            request,
            {
                "device_code": device_code,
                "user_code": f"DEMO-{number:04}",
                "verification_uri": f"{self._base(request)}/login/device",
                "expires_in": self.code_life_s,
                "interval": self.interval_s,
            },
        )

    def _access_token(self, request: Request, world: World) -> Answer:
        form = _form(request)
        if form.get("grant_type") != _GRANT_TYPE:
            return _oauth_answer(request, _oauth_error("unsupported_grant_type"))
        if form.get("client_id") != self.client_id:
            return _oauth_answer(request, _oauth_error("incorrect_client_credentials"))
        grant = self._grants.get(form.get("device_code", ""))
        if grant is None:
            return _oauth_answer(request, _oauth_error("incorrect_device_code"))
        told = self._poll(grant, world.clock())
        if told is None:
            del self._grants[form["device_code"]]
            token = world.new_id("ghu_")
            self.link(token, self.login)
            told = {"access_token": token, "token_type": "bearer", "scope": form.get("scope", "")}
        return _oauth_answer(request, told)

    def _poll(self, grant: _Grant, now: float) -> Mapping[str, object] | None:
        """What a poll is told while there is no token; `None` when there is."""
        if now >= grant.expires_at:
            return _oauth_error("expired_token")
        early, grant.asked_at = now - grant.asked_at < grant.interval, now
        if early:
            self.early_polls += 1
            grant.interval += _SLOWER_BY_S
            return _oauth_error("slow_down", interval=int(grant.interval))
        if self.decision is Decision.DENY:
            return _oauth_error("access_denied")
        if self.decision is Decision.IGNORE or grant.pending > 0:
            grant.pending -= 1
            return _oauth_error("authorization_pending")
        return None

    def _user(self, request: Request, _world: World) -> Answer:
        login = self._login_of(request)
        if isinstance(login, Answer):
            return login
        return json_answer({"login": login, "id": self._numbers[login], "type": "User", "name": None})

    def _copilot_token(self, request: Request, world: World) -> Answer:
        login = self._login_of(request)
        if isinstance(login, Answer):
            return login
        now = world.clock()
        expires_at = math.ceil(now + self.token_life_s)
        token = f"{world.new_id('tid=')};exp={expires_at};sku=demo_seat;chat=1:{self.calls[Call.COPILOT_TOKEN]:08x}"
        self._seats = {old: seat for old, seat in self._seats.items() if now < seat.expires_at}
        self._seats[token] = _Seat(login, expires_at)
        base = self._base(request)
        return json_answer(
            {
                "chat_enabled": True,
                "endpoints": {"api": base, "proxy": base, "telemetry": base},
                "expires_at": expires_at,
                "individual": True,
                "refresh_in": int(self.token_life_s * _REFRESH_AT),
                "sku": "demo_seat",
                "token": token,
            }
        )

    def _copilot_user(self, request: Request, world: World) -> Answer:
        login = self._login_of(request)
        if isinstance(login, Answer):
            return login
        reset = _next_month(world.clock())
        left = self.entitlement - self._used[login]
        unlimited = {"entitlement": 0, "remaining": 0, "percent_remaining": 100.0, "unlimited": True}
        premium = {
            "entitlement": self.entitlement,
            "remaining": left,
            "percent_remaining": round(100 * left / self.entitlement, 1) if self.entitlement else 0.0,
            "unlimited": False,
            "overage_count": 0,
            "overage_permitted": False,
            "quota_id": "premium_interactions",
        }
        return json_answer(
            {
                "login": login,
                "access_type_sku": "demo_seat",
                "copilot_plan": "individual",
                "chat_enabled": True,
                "quota_reset_date": f"{reset:%Y-%m-%d}",
                "quota_reset_date_utc": f"{reset:%Y-%m-%dT%H:%M:%S}.000Z",
                "quota_snapshots": {"chat": unlimited, "completions": unlimited, "premium_interactions": premium},
            }
        )

    def _login_of(self, request: Request) -> str | Answer:
        """Whose token the request has, or the refusal of it."""
        if not request.header(b"user-agent"):
            return json_answer(_message(403), 403)
        scheme, _, token = (request.header(b"authorization") or b"").decode("latin-1").partition(" ")
        login = self._accounts.get(token) if scheme.lower() in ("token", "bearer") else None
        return json_answer(_message(401), 401) if login is None else login

    def _base(self, request: Request) -> str:
        return self.base_url or f"http://{(request.header(b'host') or b'localhost').decode('latin-1')}"


def _message(status: int) -> Mapping[str, object]:
    return {"message": _WORDS.get(status, "Server Error"), "documentation_url": _DOCS, "status": str(status)}


def _oauth_error(error: str, **members: int | str) -> Mapping[str, object]:
    return {"error": error, "error_description": f"Demo: {error}.", "error_uri": _DOCS, **members}


def _form(request: Request) -> Mapping[str, str]:
    """The members of a request of the device flow, which may be a form or JSON; none when it is neither."""
    if (request.header(b"content-type") or b"").startswith(b"application/json"):
        try:
            return msgspec.json.decode(request.body, type=dict[str, str])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
    return dict(parse_qsl(request.body.decode("latin-1")))


def _oauth_answer(request: Request, members: Mapping[str, object], status: int = 200) -> Answer:
    """JSON for those who ask for it; a form for all others, as GitHub does."""
    if b"application/json" in (request.header(b"accept") or b""):
        return json_answer(members, status)
    body = urlencode(members).encode()
    kind = (b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")
    return Answer(status, (kind, (b"content-length", b"%d" % len(body))), (Write(body),))


def _next_month(now: float) -> datetime:
    """When quotas start anew: the first of the next month, midnight UTC."""
    today = datetime.fromtimestamp(now, UTC)
    return datetime(today.year + today.month // 12, today.month % 12 + 1, 1, tzinfo=UTC)
