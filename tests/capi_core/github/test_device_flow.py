"""The device flow: one end for any course of events, and never a poll before its time."""

from urllib.parse import parse_qs

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.github.device_flow import (
    Authorized,
    Denied,
    DeviceFlow,
    DeviceFlowEvent,
    DeviceFlowState,
    Expired,
    Failed,
    FlowFailure,
    ShowCode,
    Wait,
)
from capi_core.github.endpoints import GITHUB, GitHubHost, GitHubRequest

CLIENT = "Iv1.0123456789abcdef"
SECRET_CODE = "3584d83530557fdd1f46af8289938c8ef79f9dc5"
TOKEN = "ghu_16C7e42F292c6912E7710c838347Ae178B4a"
START = 1000.0
ENDS = (Authorized, Denied, Expired, Failed)


def code(**changes: object) -> bytes:
    answer: dict[str, object] = {
        "device_code": SECRET_CODE,
        "user_code": "WDJB-MJHT",
        "verification_uri": "https://github.com/login/device",
        "expires_in": 900,
        "interval": 5,
    }
    return msgspec.json.encode({name: value for name, value in (answer | changes).items() if value is not None})


def error(name: str, **members: object) -> bytes:
    return msgspec.json.encode({"error": name, "error_description": "because", "error_uri": "https://x"} | members)


def token(**members: object) -> bytes:
    return msgspec.json.encode({"access_token": TOKEN, "token_type": "bearer", "scope": "read:user"} | members)


PENDING = error("authorization_pending")


def new_flow(host: GitHubHost = GITHUB, scope: str = "read:user") -> DeviceFlow:
    return DeviceFlow(CLIENT, user_agent="capi/1.0", host=host, scope=scope)


def polling(**changes: object) -> DeviceFlow:
    """A flow with a code, whose first poll is on its way."""
    flow = new_flow()
    flow.start()
    events = flow.receive(200, code(**changes), START)
    flow.poll(until(events))
    return flow


def until(events: list[DeviceFlowEvent]) -> float:
    """The instant of the `Wait` that these events end in."""
    last = events[-1]
    assert isinstance(last, Wait)
    return last.until


def form(request: GitHubRequest) -> dict[str, list[str]]:
    assert request.method == "POST"
    headers = dict(request.headers)
    assert headers[b"accept"] == b"application/json"
    assert headers[b"content-type"] == b"application/x-www-form-urlencoded"
    assert headers[b"user-agent"] == b"capi/1.0"
    return parse_qs(request.body.decode(), strict_parsing=True)


def test_a_user_enters_the_code_and_the_token_comes() -> None:
    flow = new_flow()
    states = [flow.state]
    first = flow.start()
    assert first.url == "https://github.com/login/device/code"
    assert form(first) == {"client_id": [CLIENT], "scope": ["read:user"]}
    shown = ShowCode("WDJB-MJHT", "https://github.com/login/device", START + 900, 5)
    assert flow.receive(200, code(), START) == [shown, Wait(START + 5)]
    poll = flow.poll(START + 5)
    assert poll.url == "https://github.com/login/oauth/access_token"
    assert form(poll) == {
        "client_id": [CLIENT],
        "device_code": [SECRET_CODE],
        "grant_type": ["urn:ietf:params:oauth:grant-type:device_code"],
    }
    assert flow.receive(200, PENDING, START + 6) == [Wait(START + 11)]
    states.append(flow.state)
    flow.poll(START + 12)
    assert flow.receive(200, token(), START + 13) == [Authorized(TOKEN, "read:user")]
    assert [*states, flow.state] == [DeviceFlowState.NEW, DeviceFlowState.WAITING, DeviceFlowState.ENDED]


def test_no_secret_is_in_what_could_be_logged() -> None:
    flow = new_flow()
    shown = [repr(flow.start())]
    shown += map(repr, flow.receive(200, code(), START))
    shown.append(repr(flow.poll(START + 5)))
    shown += map(repr, flow.receive(200, token(), START + 6))
    for secret in (SECRET_CODE, TOKEN, "WDJB"):
        assert secret not in "".join(shown)


def test_an_enterprise_host_is_asked_at_its_own_addresses() -> None:
    flow = new_flow(GitHubHost.of("octo.ghe.com"), scope="")
    first = flow.start()
    assert first.url == "https://octo.ghe.com/login/device/code"
    assert form(first) == {"client_id": [CLIENT]}
    shown, _ = flow.receive(200, code(verification_uri="https://octo.ghe.com/login/device"), START)
    assert isinstance(shown, ShowCode)
    assert shown.verification_uri == "https://octo.ghe.com/login/device"
    assert flow.poll(START + 5).url == "https://octo.ghe.com/login/oauth/access_token"


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "https://evil.example/login/device",
        "https://github.com.evil.example/",
        "javascript:alert(1)",
        "http://github.com/login/device",
        "https://github.com/\u202e",
        "https://github.com/é",
        "https://github.com/\n",
    ],
)
def test_a_page_on_another_site_is_never_shown(uri: str | None) -> None:
    flow = new_flow()
    flow.start()
    shown, _ = flow.receive(200, code(verification_uri=uri), START)
    assert isinstance(shown, ShowCode)
    assert shown.verification_uri == "https://github.com/login/device"


def test_the_servers_own_page_is_shown() -> None:
    flow = new_flow()
    flow.start()
    shown, _ = flow.receive(200, code(verification_uri="https://github.com/login/device/select?x=1"), START)
    assert isinstance(shown, ShowCode)
    assert shown.verification_uri == "https://github.com/login/device/select?x=1"


@pytest.mark.parametrize(("told", "interval"), [(None, 5), (0, 1), (0.2, 1), (7.5, 7.5), (60, 60)])
def test_the_interval_is_the_servers_or_five_seconds(told: float | None, interval: float) -> None:
    """RFC 8628 section 3.2; and never less than a second."""
    flow = new_flow()
    flow.start()
    events = flow.receive(200, code(interval=told), START)
    assert events[1] == Wait(START + interval)


@pytest.mark.parametrize(
    ("members", "interval"), [({}, 10), ({"interval": 12}, 12), ({"interval": 7}, 10), ({"interval": 1}, 10)]
)
def test_slow_down_makes_all_later_polls_slower(members: dict[str, object], interval: float) -> None:
    """By five seconds (RFC 8628 section 3.5), or to what GitHub tells if that is more."""
    flow = polling()
    assert flow.receive(200, error("slow_down", **members), START + 5) == [Wait(START + 5 + interval)]
    flow.poll(START + 100)
    assert flow.receive(400, PENDING, START + 100) == [Wait(START + 100 + interval)]
    flow.poll(START + 200)
    assert flow.receive(200, error("slow_down"), START + 200) == [Wait(START + 205 + interval)]


def test_a_429_is_a_slow_down_whatever_it_says() -> None:
    flow = polling()
    assert flow.receive(429, b"<html>", START + 5) == [Wait(START + 15)]


@pytest.mark.parametrize("status", [200, 400, 401, 403])
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("access_denied", Denied()),
        ("expired_token", Expired()),
        ("token_expired", Expired()),
        ("incorrect_device_code", Failed(FlowFailure.WRONG_CODE)),
        ("unsupported_grant_type", Failed(FlowFailure.WRONG_GRANT)),
        ("device_flow_disabled", Failed(FlowFailure.DISABLED)),
        ("incorrect_client_credentials", Failed(FlowFailure.WRONG_CLIENT)),
        ("unauthorized_client", Failed(FlowFailure.WRONG_CLIENT)),
        ("something_new", Failed(FlowFailure.REFUSED)),
    ],
)
def test_an_error_ends_the_flow_whatever_its_status(status: int, name: str, end: DeviceFlowEvent) -> None:
    """The base proxy polled on for ever (spec.md 5, 24)."""
    flow = polling()
    assert flow.receive(status, error(name), START + 5) == [end]
    with pytest.raises(LocalError):
        flow.poll(START + 99)
    with pytest.raises(LocalError):
        flow.receive(200, token(), START + 99)
    with pytest.raises(LocalError):
        flow.receive_failure(START + 99)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b'{"error":"Not Found"}', FlowFailure.REFUSED),
        (400, error("device_flow_disabled"), FlowFailure.DISABLED),
        (401, error("invalid_client"), FlowFailure.WRONG_CLIENT),
        (400, PENDING, FlowFailure.REFUSED),
    ],
)
def test_a_code_may_be_refused(status: int, body: bytes, reason: FlowFailure) -> None:
    flow = new_flow()
    flow.start()
    assert flow.receive(status, body, START) == [Failed(reason)]


def test_each_failure_has_a_next_step() -> None:
    steps = {failure.next_step for failure in FlowFailure}
    assert len(steps) == len(FlowFailure)
    assert all(step.isascii() and len(step) > 20 for step in steps)


# What is no answer of the protocol, to either request.
NONSENSE = [
    (200, b""),
    (200, b"<html>log in</html>"),
    (200, b"[]"),
    (200, b"{}"),
    (200, b"\xff"),
    (200, b"[" * 10_000),
    (200, b'{"error":5}'),
    (200, b'{"access_token":5,"device_code":5}'),
    (200, b'{"x":"' + b"x" * 70_000 + b'"}'),
    (302, token()),
    (403, code()),
    (404, b"not found"),
    (500, error("access_denied")),
    (502, token()),
    (503, b""),
    (200, error("temporarily_unavailable")),
]


def test_a_github_that_only_says_slower_gives_no_code_in_the_end() -> None:
    """Nothing is on the screen yet, and no code whose end would end it."""
    flow = new_flow()
    flow.start()
    now, pauses = START, []
    for _ in range(4):
        then = until(flow.receive(429, b"", now))
        pauses.append(then - now)
        now = then
        flow.poll(now)
    assert pauses == sorted(pauses)
    assert flow.receive(429, b"", now) == [Failed(FlowFailure.UNREACHABLE)]


@pytest.mark.parametrize(("status", "body"), NONSENSE)
def test_nonsense_instead_of_a_code_is_tried_again_a_few_times(status: int, body: bytes) -> None:
    flow = new_flow()
    flow.start()
    now, pauses = START, []
    for _ in range(4):
        then = until(flow.receive(status, body, now))
        pauses.append(then - now)
        now = then
        assert flow.poll(now).url == GITHUB.device_code_url
    assert pauses == [10, 20, 40, 60]
    assert flow.receive(status, body, now) == [Failed(FlowFailure.UNREACHABLE)]


@pytest.mark.parametrize(("status", "body"), NONSENSE)
def test_nonsense_instead_of_a_token_is_tried_again_ever_more_slowly_and_then_all_is_well(
    status: int, body: bytes
) -> None:
    flow = polling()
    now, pauses = START + 5, []
    for _ in range(5):
        then = until(flow.receive(status, body, now))
        pauses.append(then - now)
        now = then
        flow.poll(now)
    assert pauses == [10, 20, 40, 60, 60]
    assert flow.receive(200, PENDING, now) == [Wait(now + 5)]
    flow.poll(now + 5)
    assert flow.receive(status, body, now + 5) == [Wait(now + 15)]
    flow.poll(now + 15)
    assert flow.receive(200, token(), now + 15) == [Authorized(TOKEN, "read:user")]


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": None},
        {"device_code": ""},
        {"user_code": None},
        {"user_code": ""},
        {"user_code": "<b>"},
        {"user_code": "x" * 33},
        {"expires_in": None},
        {"expires_in": 0},
        {"expires_in": 5},
        {"expires_in": -1},
        {"expires_in": "900"},
        {"interval": "5"},
        {"interval": -1},
        {"interval": 900},
    ],
)
def test_a_code_that_could_not_be_used_is_none(changes: dict[str, object]) -> None:
    flow = new_flow()
    flow.start()
    body = msgspec.json.decode(code(), type=dict[str, object]) | changes
    assert flow.receive(200, msgspec.json.encode(body), START) == [Wait(START + 10)]


@pytest.mark.parametrize(
    "members",
    [
        {"access_token": ""},
        {"access_token": "a b"},
        {"access_token": "a\r\nb"},
        {"access_token": "é"},
        {"access_token": "x" * 4097},
        {"token_type": "mac"},
    ],
)
def test_a_token_that_could_not_be_sent_is_none(members: dict[str, object]) -> None:
    flow = polling()
    assert flow.receive(200, token(**members), START + 5) == [Wait(START + 15)]


def test_a_token_may_have_an_end_and_needs_no_type_or_scope() -> None:
    body = msgspec.json.encode({"access_token": TOKEN, "expires_in": 28_800, "refresh_token": "ghr_x"})
    assert polling().receive(200, body, START + 5) == [Authorized(TOKEN, None, START + 28_805)]


def test_a_lost_network_is_tried_again_until_the_code_dies() -> None:
    flow = polling(expires_in=100)
    now, instants = START + 5, list[float]()
    for _ in range(4):
        now = until(flow.receive_failure(now))
        instants.append(now - START)
        flow.poll(now)
    # The last try comes just before the end, although the backoff is longer.
    assert instants == [15, 35, 75, 99]
    assert flow.receive_failure(now) == [Expired()]


@pytest.mark.parametrize(("life", "polls"), [(15.0, 2), (15.5, 3), (17.0, 3)])
def test_pending_until_the_code_dies_is_an_end_of_its_own(life: float, polls: int) -> None:
    """No poll at its last instant or after."""
    flow = polling(expires_in=life)
    now = START + 5
    for _ in range(polls - 1):
        assert flow.receive(200, PENDING, now) == [Wait(now + 5)]
        now += 5
        flow.poll(now)
    assert flow.receive(200, PENDING, now) == [Expired()]


def test_who_slept_past_the_end_of_the_code_still_asks_once() -> None:
    """The server's clock is the one that counts."""
    flow = new_flow()
    flow.start()
    flow.receive(200, code(), START)
    flow.poll(START + 5000)
    assert flow.receive(200, token(), START + 5000) == [Authorized(TOKEN, "read:user")]
    flow = new_flow()
    flow.start()
    flow.receive(200, code(), START)
    flow.poll(START + 5000)
    assert flow.receive_failure(START + 5000) == [Expired()]


def test_a_flow_that_is_driven_wrongly_says_so_and_goes_on() -> None:
    with pytest.raises(LocalError, match="client id"):
        DeviceFlow("", user_agent="capi/1.0")
    flow = new_flow()
    with pytest.raises(LocalError, match="new"):
        flow.poll(START)
    with pytest.raises(LocalError):
        flow.receive(200, code(), START)
    flow.start()
    with pytest.raises(LocalError):
        flow.start()
    flow.receive(200, code(), START)
    for early in (START, START + 4.999, float("nan")):
        with pytest.raises(LocalError, match="before the time"):
            flow.poll(early)
    flow.poll(START + 5)
    with pytest.raises(LocalError):
        flow.poll(START + 50)


BODIES = st.sampled_from(
    [
        code(),
        code(interval=30),
        code(expires_in=40),
        token(),
        PENDING,
        error("slow_down"),
        error("slow_down", interval=40),
        error("access_denied"),
        error("expired_token"),
        error("new"),
        b"{}",
        b"<html>",
    ]
)
ANSWERS = st.none() | st.tuples(st.sampled_from([200, 200, 200, 400, 404, 429, 503]), BODIES | st.binary(max_size=9))
LATENESS = st.sampled_from([0.0, 0.25, 3.0, 200.0])


@given(answers=st.lists(st.tuples(ANSWERS, LATENESS, LATENESS), max_size=60))
def test_any_answers_in_any_order_come_to_at_most_one_end_and_no_poll_is_too_early(
    answers: list[tuple[tuple[int, bytes] | None, float, float]],
) -> None:
    """And to exactly one when the answers are followed by silence."""
    flow, now, interval = new_flow(), START, 5.0
    flow.start()
    answered_at, ends, shown = now, 0, 0
    answers = [*answers, *[(None, 0.0, 0.0)] * 60]
    for answer, latency, lateness in answers:
        now += latency
        events = flow.receive_failure(now) if answer is None else flow.receive(*answer, now)
        answered_at = now
        for event in events:
            ends += isinstance(event, ENDS)
            if isinstance(event, ShowCode):
                shown, interval = shown + 1, event.interval
        if ends:
            assert isinstance(events[-1], ENDS)
            break
        if answer is not None and answer[1].startswith(b'{"error":"slow_down"') and answer[0] < 500:
            interval += 5
        now = until(events)
        assert now - answered_at >= interval
        with pytest.raises(LocalError):
            flow.poll(now - 0.01)
        now += lateness
        flow.poll(now)
    assert ends == 1
    assert shown <= 1
    assert flow.state is DeviceFlowState.ENDED
    with pytest.raises(LocalError):
        flow.receive(200, token(), now)
    with pytest.raises(LocalError):
        flow.receive_failure(now)
