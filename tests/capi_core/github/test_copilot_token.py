"""The exchange for a Copilot token: what a token says, and why there may be none."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal, read_copilot_token
from capi_core.github.endpoints import GITHUB, GitHubHost
from capi_core.headers import Headers

NOW = 1_800_000_000.0
SECRET = "tid=0123456789abcdef;exp=1800001800;sku=yearly_subscriber;chat=1:6c5ac1ab"
API = "https://api.individual.githubcopilot.com"


def body(**changes: object) -> bytes:
    answer: dict[str, object] = {
        "annotations_enabled": True,
        "chat_enabled": True,
        "endpoints": {"api": API, "proxy": "https://proxy.individual.githubcopilot.com"},
        "expires_at": NOW + 1800,
        "individual": True,
        "refresh_in": 1500,
        "sku": "yearly_subscriber",
        "token": SECRET,
        "tracking_id": "x",
    }
    return msgspec.json.encode(answer | changes)


def read(
    text: bytes, status: int = 200, headers: Headers = (), host: GitHubHost = GITHUB
) -> CopilotToken | TokenRefusal:
    return read_copilot_token(status, headers, text, now=NOW, host=host)


def token(text: bytes, host: GitHubHost = GITHUB) -> CopilotToken:
    found = read(text, host=host)
    assert isinstance(found, CopilotToken), found
    return found


def test_a_token_comes_with_its_end_its_address_and_facts_about_the_seat() -> None:
    assert token(body()) == CopilotToken(SECRET, NOW, NOW + 1800, API, "yearly_subscriber", True)
    assert token(body()).life_s == 1800
    assert SECRET not in repr(token(body()))


def test_only_token_and_end_are_needed() -> None:
    text = msgspec.json.encode({"token": SECRET, "expires_at": NOW + 60})
    assert token(text) == CopilotToken(SECRET, NOW, NOW + 60, "https://api.githubcopilot.com")


@pytest.mark.parametrize(
    ("expires_in", "refresh_in", "life"),
    [
        (1800, 1500, 1800),
        (1500, 1500, 1500),
        (1800, None, 1800),
        (1800, 0, 1800),
        # this clock is fast, then slow, by an hour
        (1800 - 3600, 1500, 1500),
        (1800 + 3600, 1500, 1500),
        (10**9, None, 86_400),
        (1, None, 1),
        (1800, 0.5, 0.5),
    ],
)
def test_a_wrong_clock_does_not_kill_every_token(expires_in: float, refresh_in: float | None, life: float) -> None:
    assert token(body(expires_at=NOW + expires_in, refresh_in=refresh_in)).life_s == life


@pytest.mark.parametrize(
    ("named", "secret", "api"),
    [
        ({"api": API + "/"}, SECRET, API),
        ({}, "tid=1;proxy-ep=proxy.Business.githubcopilot.com;exp=2:s", "https://api.business.githubcopilot.com"),
        (None, "proxy-ep=proxy.x.example:s", "https://api.x.example"),
        (None, "tid=1;not-proxy-ep=proxy.x.example;exp=2:s", "https://api.githubcopilot.com"),
        (None, "tid=1;proxy-ep=http://x;exp=2:s", "https://api.githubcopilot.com"),
    ],
)
def test_the_address_is_the_answers_else_the_tokens_else_the_hosts(
    named: dict[str, str] | None, secret: str, api: str
) -> None:
    """Another seat's address answers 421 (spec.md 5, 26)."""
    assert token(body(endpoints=named, token=secret)).api == api


def test_a_tenants_copilot_is_its_own() -> None:
    assert token(body(endpoints=None), GitHubHost.of("octo.ghe.com")).api == "https://copilot-api.octo.ghe.com"


def test_a_token_goes_in_clear_only_where_github_is_simulated() -> None:
    endpoints = {"api": "http://127.0.0.1:4000"}
    assert read(body(endpoints=endpoints)) == TokenRefusal(TokenProblem.GARBAGE)
    assert token(body(endpoints=endpoints), GitHubHost.of("http://127.0.0.1:4000")).api == "http://127.0.0.1:4000"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html></html>",
        b"[]",
        b"{}",
        b"[" * 10_000,
        body(token=5),
        body(token=""),
        body(token="a b"),
        body(token="a\r\nb"),
        body(token="x" * 16_385),
        body(expires_at="soon"),
        body(expires_at=-1),
        body(expires_at=NOW, refresh_in=None),
        body(expires_at=1e300),
        body(refresh_in="1500"),
        body(chat_enabled="yes"),
        body(sku=5),
        body(endpoints=[]),
        body(endpoints={"api": 5}),
        body(endpoints={"api": "http://evil.example"}),
        body(endpoints={"api": "https://a@evil.example"}),
        body(endpoints={"api": ""}),
    ],
)
def test_what_is_no_token_is_garbage(text: bytes) -> None:
    assert read(text) == TokenRefusal(TokenProblem.GARBAGE)


def refused(notification: object) -> bytes:
    details = {"notification_id": notification, "message": "No.", "title": "No", "url": "https://x"}
    return msgspec.json.encode({"can_signup_for_limited": False, "error_details": details, "message": "no"})


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (401, b'{"message":"Bad credentials"}', TokenProblem.REVOKED),
        (403, refused("not_signed_up"), TokenProblem.NO_SUBSCRIPTION),
        (403, refused("subscription_ended"), TokenProblem.NO_SUBSCRIPTION),
        (403, refused("spammy_user"), TokenProblem.BLOCKED),
        (403, refused("feature_flag_blocked"), TokenProblem.BLOCKED),
        (403, refused(5), TokenProblem.NO_SUBSCRIPTION),
        (403, b'{"error_details":null}', TokenProblem.NO_SUBSCRIPTION),
        (403, b"<html>", TokenProblem.NO_SUBSCRIPTION),
        (404, b'{"message":"Not Found"}', TokenProblem.NOT_FOUND),
        (429, b"", TokenProblem.RATE_LIMITED),
        (400, b"", TokenProblem.REFUSED),
        (422, b"", TokenProblem.REFUSED),
        (500, b"", TokenProblem.SERVER_ERROR),
        (503, body(), TokenProblem.SERVER_ERROR),
        (302, body(), TokenProblem.GARBAGE),
        (204, b"", TokenProblem.GARBAGE),
    ],
)
def test_each_status_has_its_problem(status: int, text: bytes, problem: TokenProblem) -> None:
    assert read(text, status) == TokenRefusal(problem)


@pytest.mark.parametrize(
    ("status", "headers", "problem", "after"),
    [
        (429, ((b"Retry-After", b"30"),), TokenProblem.RATE_LIMITED, 30),
        (403, ((b"retry-after", b"60"),), TokenProblem.RATE_LIMITED, 60),
        (503, ((b"retry-after", b"7"),), TokenProblem.SERVER_ERROR, 7),
        (429, ((b"retry-after", b"999999"),), TokenProblem.RATE_LIMITED, 3600),
        (429, ((b"retry-after", b"Fri, 31 Dec 1999 23:59:59 GMT"),), TokenProblem.RATE_LIMITED, None),
        (429, ((b"retry-after", b"-5"),), TokenProblem.RATE_LIMITED, None),
        (
            403,
            ((b"x-ratelimit-remaining", b"0"), (b"x-ratelimit-reset", b"%d" % (NOW + 90))),
            TokenProblem.RATE_LIMITED,
            90,
        ),
        (403, ((b"x-ratelimit-remaining", b"0"), (b"x-ratelimit-reset", b"5")), TokenProblem.RATE_LIMITED, 0),
        (403, ((b"x-ratelimit-remaining", b"0"),), TokenProblem.RATE_LIMITED, None),
        (403, ((b"x-ratelimit-remaining", b"9"), (b"x-ratelimit-reset", b"5")), TokenProblem.NO_SUBSCRIPTION, None),
    ],
)
def test_a_pause_that_the_server_wants_is_told(
    status: int, headers: Headers, problem: TokenProblem, after: float | None
) -> None:
    assert read(b"{}", status, headers) == TokenRefusal(problem, after)


def test_each_problem_has_a_next_step() -> None:
    steps = {problem.next_step for problem in TokenProblem}
    assert len(steps) == len(TokenProblem)
    assert "link the identity again" in TokenProblem.REVOKED.next_step


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**60) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["token", "expires_at", "refresh_in", "endpoints", "api"]), inner)
    ),
    max_leaves=9,
)


@given(status=st.integers(100, 599), value=JSON | st.just(body()), raw=st.none() | st.binary(max_size=20))
def test_no_answer_makes_it_fail(status: int, value: object, raw: bytes | None) -> None:
    text = raw if raw is not None else value if isinstance(value, bytes) else msgspec.json.encode(value)
    found = read(text, status)
    assert isinstance(found, TokenRefusal) or found.life_s > 0
