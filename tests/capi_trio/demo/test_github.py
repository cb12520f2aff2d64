"""The simulated GitHub: as GitHub answers, as strict, and with any trouble that was asked for."""

import itertools
import math
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.github import (
    Authorized,
    ClientTraits,
    CopilotToken,
    Denied,
    DeviceFlow,
    DeviceFlowEvent,
    Endpoint,
    Expired,
    Failed,
    FlowFailure,
    GitHubHost,
    GitHubRequest,
    Initiator,
    Quota,
    ShowCode,
    TokenProblem,
    TokenRefusal,
    Wait,
    read_account,
    read_copilot_token,
    read_quota,
)
from capi_trio.demo.answers import Answer, Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.github import CLIENT_ID, Call, Decision, DemoGitHub, Trouble

BASE = "http://127.0.0.1:4000"
HOST = GitHubHost.of(BASE)
TRAITS = ClientTraits(user_agent="capi/1.0", editor_version="capi/1.0")
NOW = 1_800_000_000.0
LINKED = "gho_linked"

Answered = tuple[int, tuple[tuple[bytes, bytes], ...], bytes]


class Side:
    """A client's side of one GitHub, with a clock that the test sets."""

    def __init__(self, github: DemoGitHub | None = None) -> None:
        self.github = github or DemoGitHub()
        self.github.link(LINKED)
        self.now = NOW
        self._world = World(lambda: self.now, IdCounter(), 0.0)

    def answer(self, request: Request) -> Answer:
        found = self.github.answer(request, self._world)
        assert found is not None
        return found

    def send(self, request: GitHubRequest) -> Answered:
        headers = (*request.headers, (b"host", b"127.0.0.1:4000"))
        answer = self.answer(Request(request.method, request.url.removeprefix(BASE), headers, request.body))
        body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
        assert dict(answer.headers)[b"content-length"] == b"%d" % len(body)
        return answer.status, answer.headers, body

    def get(self, endpoint: Endpoint, token: str = LINKED) -> Answered:
        return self.send(HOST.get(endpoint, TRAITS.github_headers(token)))

    def copilot_token(self, token: str = LINKED) -> CopilotToken | TokenRefusal:
        status, headers, body = self.get(Endpoint.COPILOT_TOKEN, token)
        return read_copilot_token(status, headers, body, now=self.now, host=HOST)

    def new_token(self) -> str:
        found = self.copilot_token()
        assert isinstance(found, CopilotToken)
        return found.token

    def link(self, client_id: str = CLIENT_ID) -> list[DeviceFlowEvent]:
        """All events of the core's own device flow, run to its end against this GitHub."""
        flow = DeviceFlow(client_id, user_agent="capi/1.0", host=HOST)
        request, events = flow.start(), list[DeviceFlowEvent]()
        while True:
            status, _, body = self.send(request)
            events += flow.receive(status, body, self.now)
            if not isinstance(events[-1], Wait):
                return events
            self.now = events[-1].until
            request = flow.poll(self.now)

    def admit(self, token: str, method: str = "POST", initiator: Initiator | None = Initiator.USER) -> None:
        headers = TRAITS.copilot_headers(token, initiator=initiator)
        self.github.admit(Request(method, "/chat/completions", headers, b""), self.now)


def pauses(events: Iterable[DeviceFlowEvent]) -> list[float]:
    waits = [NOW, *(event.until for event in events if isinstance(event, Wait))]
    return [later - earlier for earlier, later in itertools.pairwise(waits)]


def test_a_code_is_approved_after_some_polls_and_the_token_is_the_accounts() -> None:
    side = Side()
    side.github.pending_polls, side.github.login = 3, "somebody"
    events = side.link()
    assert events[0] == ShowCode("DEMO-0001", f"{BASE}/login/device", NOW + 900, 5)
    assert pauses(events) == [5, 5, 5, 5]
    assert isinstance(events[-1], Authorized)
    assert read_account(side.get(Endpoint.USER, events[-1].token)[2]).login == "somebody"
    assert side.github.calls == {Call.DEVICE_CODE: 1, Call.ACCESS_TOKEN: 4, Call.USER: 1}
    assert side.github.early_polls == 0


def test_each_account_has_its_own_number_and_each_code_serves_once() -> None:
    side = Side()
    first, second = side.link()[-1], side.link()[-1]
    assert isinstance(first, Authorized)
    assert isinstance(second, Authorized)
    assert first.token != second.token
    numbers = {read_account(side.get(Endpoint.USER, token)[2]).id for token in (first.token, second.token, LINKED)}
    side.github.link("gho_other", "other")
    assert numbers == {1000}
    assert read_account(side.get(Endpoint.USER, "gho_other")[2]).id == 1001


@pytest.mark.parametrize(
    ("decision", "end"), [(Decision.DENY, Denied()), (Decision.IGNORE, Expired())], ids=["denied", "ignored"]
)
def test_a_user_may_say_no_or_nothing(decision: Decision, end: DeviceFlowEvent) -> None:
    side = Side()
    side.github.decision, side.github.code_life_s = decision, 60
    assert side.link()[-1] == end


@pytest.mark.parametrize(
    ("error", "end"),
    [
        ("expired_token", Expired()),
        ("access_denied", Denied()),
        ("device_flow_disabled", Failed(FlowFailure.DISABLED)),
        ("incorrect_device_code", Failed(FlowFailure.WRONG_CODE)),
    ],
)
def test_any_error_of_the_flow_can_be_had(error: str, end: DeviceFlowEvent) -> None:
    side = Side()
    side.github.fail(Call.ACCESS_TOKEN, Trouble.oauth(error))
    assert side.link()[-1] == end


def test_a_client_may_be_told_to_slow_down_without_being_fast() -> None:
    side = Side()
    side.github.fail(Call.ACCESS_TOKEN, Trouble.oauth("slow_down", interval=20))
    events = side.link()
    assert isinstance(events[-1], Authorized)
    assert pauses(events) == [5, 20, 20]


def test_trouble_comes_as_often_as_it_was_asked_for_and_one_after_another() -> None:
    side = Side()
    side.github.fail(Call.ACCESS_TOKEN, Trouble.http(503), times=2)
    side.github.fail(Call.ACCESS_TOKEN, Trouble.garbage())
    events = side.link()
    assert isinstance(events[-1], Authorized)
    assert pauses(events) == [5, 10, 20, 40, 5]


def test_trouble_may_last_until_it_is_healed() -> None:
    side = Side()
    side.github.fail(Call.DEVICE_CODE, Trouble.http(500), times=None)
    assert side.link() == [
        Wait(NOW + 10),
        Wait(NOW + 30),
        Wait(NOW + 70),
        Wait(NOW + 130),
        Failed(FlowFailure.UNREACHABLE),
    ]
    side.github.fail(Call.DEVICE_CODE, Trouble.http(500))
    side.github.heal(Call.DEVICE_CODE)
    assert isinstance(side.link()[-1], Authorized)


def test_a_wrong_client_gets_no_code() -> None:
    assert Side().link("Iv1.another") == [Failed(FlowFailure.REFUSED)]


# --- what our own client never does, and GitHub is strict about ---

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
ASKS_JSON = ((b"accept", b"application/json"), (b"content-type", b"application/x-www-form-urlencoded"))


def post(
    side: Side, path: str, form: Mapping[str, str], headers: tuple[tuple[bytes, bytes], ...] = ASKS_JSON
) -> Answer:
    return side.answer(Request("POST", path, headers, urlencode(form).encode()))


def told(answer: Answer) -> dict[str, object]:
    return msgspec.json.decode(text(answer), type=dict[str, object])


def text(answer: Answer) -> bytes:
    return b"".join(step.data for step in answer.steps if isinstance(step, Write))


def new_code(side: Side) -> str:
    return str(told(post(side, "/login/device/code", {"client_id": CLIENT_ID}))["device_code"])


def test_a_poll_before_its_time_makes_all_later_ones_slower() -> None:
    side = Side()
    form = {"client_id": CLIENT_ID, "grant_type": GRANT, "device_code": new_code(side)}
    answers = []
    for pause in (0, 4.9, 9.9, 15, 15):
        side.now += pause
        answer = told(post(side, "/login/oauth/access_token", form))
        answers.append((answer.get("error"), answer.get("interval")))
    pending, early = ("authorization_pending", None), "slow_down"
    assert answers == [pending, (early, 10), (early, 15), (None, None), ("incorrect_device_code", None)]
    assert side.github.early_polls == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"client_id": "x"}, "incorrect_client_credentials"),
        ({"device_code": "x"}, "incorrect_device_code"),
    ],
)
def test_a_wrong_poll_is_told_what_is_wrong(changes: dict[str, str], error: str) -> None:
    side = Side()
    form = {"client_id": CLIENT_ID, "grant_type": GRANT, "device_code": new_code(side)} | changes
    answer = post(side, "/login/oauth/access_token", form)
    assert (answer.status, told(answer)["error"]) == (200, error)


def test_a_poll_for_a_code_that_died_says_so() -> None:
    side = Side()
    form = {"client_id": CLIENT_ID, "grant_type": GRANT, "device_code": new_code(side)}
    side.now += 900
    assert told(post(side, "/login/oauth/access_token", form))["error"] == "expired_token"


def test_codes_that_nobody_asked_for_again_are_forgotten() -> None:
    side = Side()
    codes = [new_code(side) for _ in range(150)]
    form = {"client_id": CLIENT_ID, "grant_type": GRANT}
    errors = [told(post(side, "/login/oauth/access_token", form | {"device_code": code}))["error"] for code in codes]
    assert errors.count("incorrect_device_code") == 49


def test_who_does_not_ask_for_json_gets_a_form() -> None:
    side = Side()
    answer = post(side, "/login/device/code", {"client_id": CLIENT_ID}, ())
    assert dict(answer.headers)[b"content-type"].startswith(b"application/x-www-form-urlencoded")
    assert parse_qs(text(answer).decode())["user_code"] == ["DEMO-0001"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(msgspec.json.encode({"client_id": CLIENT_ID}), 200), (b"{", 404), (b"\xff", 404), (b"[" * 100_000, 404)],
)
def test_requests_may_be_json(body: bytes, status: int) -> None:
    headers = ((b"content-type", b"application/json"), (b"accept", b"application/json"))
    assert Side().answer(Request("POST", "/login/device/code", headers, body)).status == status


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"token gho_unknown"),),
        ((b"authorization", b"Basic gho_linked"),),
        ((b"authorization", LINKED.encode()),),
    ],
)
@pytest.mark.parametrize("path", [endpoint.value for endpoint in Endpoint])
def test_an_account_is_read_with_its_own_token_only(path: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    side = Side()
    answer = side.answer(Request("GET", path, (*headers, (b"user-agent", b"x")), b""))
    assert (answer.status, told(answer)["message"]) == (401, "Bad credentials")


@pytest.mark.parametrize("path", [endpoint.value for endpoint in Endpoint])
def test_github_wants_a_user_agent(path: str) -> None:
    headers = ((b"authorization", b"Bearer gho_linked"),)
    assert Side().answer(Request("GET", path, headers, b"")).status == 403
    assert Side().answer(Request("GET", path, (*headers, (b"user-agent", b"x")), b"")).status == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/models"), ("GET", "/login/device/code"), ("POST", "/user")])
def test_what_is_not_githubs_is_left_to_others(method: str, path: str) -> None:
    side = Side()
    world = World(lambda: NOW, IdCounter(), 0.0)
    assert side.github.answer(Request(method, path, (), b""), world) is None
    assert not side.github.calls


# --- Copilot tokens ---


def test_a_copilot_token_lives_as_long_as_it_says() -> None:
    side = Side()
    side.github.token_life_s = 60
    found = side.copilot_token()
    assert isinstance(found, CopilotToken)
    assert (found.expires_at, found.api, found.sku, found.chat_enabled) == (NOW + 60, BASE, "demo_seat", True)
    assert side.github.is_live(found.token, NOW + 59)
    assert not side.github.is_live(found.token, NOW + 60)
    assert not side.github.is_live("tid=other", NOW)
    side.now = NOW + 61
    assert side.new_token() != found.token
    assert not side.github.is_live(found.token, NOW)  # dead ones are forgotten
    assert side.github.calls[Call.COPILOT_TOKEN] == 2


def test_copilot_is_where_the_client_reached_it_or_where_it_was_told() -> None:
    request = Request("GET", Endpoint.COPILOT_TOKEN.value, TRAITS.github_headers(LINKED), b"")
    assert b'"api":"http://localhost"' in text(Side().answer(request))
    elsewhere = Side(DemoGitHub(base_url="http://127.0.0.1:9"))
    assert b'"api":"http://127.0.0.1:9"' in text(elsewhere.answer(request))


def test_a_revoked_token_gets_no_new_copilot_token_and_the_old_one_lives_on() -> None:
    side = Side()
    token = side.new_token()
    side.github.revoke(LINKED)
    side.github.revoke(LINKED)
    assert side.copilot_token() == TokenRefusal(TokenProblem.REVOKED)
    side.admit(token)


@pytest.mark.parametrize(
    ("trouble", "refusal"),
    [
        (Trouble.http(401), TokenRefusal(TokenProblem.REVOKED)),
        (Trouble.no_copilot(), TokenRefusal(TokenProblem.NO_SUBSCRIPTION)),
        (Trouble.no_copilot("spammy_user"), TokenRefusal(TokenProblem.BLOCKED)),
        (Trouble.http(404), TokenRefusal(TokenProblem.NOT_FOUND)),
        (Trouble.http(429, retry_after=30), TokenRefusal(TokenProblem.RATE_LIMITED, 30)),
        (Trouble.http(502), TokenRefusal(TokenProblem.SERVER_ERROR)),
        (Trouble.garbage(), TokenRefusal(TokenProblem.GARBAGE)),
    ],
)
def test_any_refusal_of_a_copilot_token_can_be_had(trouble: Trouble, refusal: TokenRefusal) -> None:
    side = Side()
    side.github.fail(Call.COPILOT_TOKEN, trouble)
    assert side.copilot_token() == refusal
    assert isinstance(side.copilot_token(), CopilotToken)


def test_a_stall_never_answers_and_trouble_is_not_sound() -> None:
    side = Side()
    side.github.fail(Call.USER, Trouble.stall())
    request = Request("GET", "/user", TRAITS.github_headers(LINKED), b"")
    stalled = side.answer(request)
    assert (stalled.delay_s, stalled.sound) == (math.inf, False)
    assert side.answer(request).sound


# --- Copilot itself ---


def refused(side: Side, token: str) -> tuple[int, str]:
    with pytest.raises(Refused) as error:
        side.admit(token)
    return error.value.problem.status, error.value.problem.code


def test_copilot_wants_a_live_token() -> None:
    side = Side()
    token = side.new_token()
    side.admit(token)
    assert refused(side, "tid=other") == (401, "unauthorized")
    side.github.expire_copilot_tokens()
    assert refused(side, token) == (401, "unauthorized")
    token = side.new_token()
    side.now += 1800
    assert refused(side, token) == (401, "unauthorized")
    with pytest.raises(Refused):
        side.github.admit(Request("GET", "/models", (), b""), NOW)


@pytest.mark.parametrize("name", [b"editor-version", b"copilot-integration-id"])
def test_copilot_insists_on_some_headers(name: bytes) -> None:
    side = Side()
    headers = tuple(header for header in TRAITS.copilot_headers(side.new_token()) if header[0] != name)
    with pytest.raises(Refused) as error:
        side.github.admit(Request("GET", "/models", headers, b""), NOW)
    assert error.value.problem.status == 400
    assert name.decode() in error.value.problem.message


def test_what_the_user_begins_uses_the_quota_and_the_report_says_so() -> None:
    side = Side()
    side.github.entitlement = 3
    token = side.new_token()
    side.admit(token)
    side.admit(token, initiator=None)
    side.admit(token, initiator=Initiator.AGENT)
    side.admit(token, method="GET")
    assert side.github.initiators == {"user": 2, "agent": 1}
    assert side.github.used() == 2
    report = read_quota(side.get(Endpoint.COPILOT_USER)[2])
    assert report.get("premium_interactions") == Quota("premium_interactions", 3, 1, 33.3, False, 0, False)
    assert report.get("chat") == Quota("chat", 0, 0, 100, True)
    assert (report.login, report.plan, report.sku) == ("demo-octocat", "individual", "demo_seat")
    side.admit(token)
    assert refused(side, token) == (402, "quota_exceeded")
    side.admit(token, initiator=Initiator.AGENT)
    assert side.github.used("somebody else") == 0


@pytest.mark.parametrize(
    ("now", "reset"),
    [(0.0, 2_678_400.0), (1_798_761_600.0 - 1, 1_798_761_600.0), (1_798_761_600.0, 1_801_440_000.0)],
    ids=["january", "the last second of december", "new year"],
)
def test_quotas_start_anew_with_each_month(now: float, reset: float) -> None:
    side = Side()
    side.now = now
    assert read_quota(side.get(Endpoint.COPILOT_USER)[2]).resets_at == reset


def test_an_account_without_premium_requests_has_none_left() -> None:
    side = Side()
    side.github.entitlement = 0
    assert read_quota(side.get(Endpoint.COPILOT_USER)[2]).get("premium_interactions") == Quota(
        "premium_interactions", 0, 0, 0, False, 0, False
    )


TROUBLES = st.sampled_from(
    [Trouble.http(500), Trouble.http(429), Trouble.garbage(), Trouble.oauth("slow_down"), Trouble.http(404)]
)


@given(troubles=st.lists(TROUBLES, max_size=8), pending=st.integers(0, 5), interval=st.integers(0, 30))
def test_whatever_goes_wrong_on_the_way_the_core_never_polls_too_early(
    troubles: list[Trouble], pending: int, interval: int
) -> None:
    side = Side()
    side.github.pending_polls, side.github.interval_s = pending, interval
    for trouble in troubles:
        side.github.fail(Call.ACCESS_TOKEN, trouble)
    assert isinstance(side.link()[-1], Authorized | Expired)
    assert side.github.early_polls == 0
