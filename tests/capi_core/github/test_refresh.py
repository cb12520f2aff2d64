"""When a token is renewed: in time, once, and never so often that GitHub would mind."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal
from capi_core.github.refresh import Refresh, RefreshSchedule, Refuse, Use

NOW = 1_800_000_000.0
LIFE = 1800.0
DOWN = TokenRefusal(TokenProblem.SERVER_ERROR)


def token(at: float = NOW, life: float = LIFE, text: str = "tid=1") -> CopilotToken:
    return CopilotToken(text, at, at + life, "https://api.example.com")


def schedule_with(answer: CopilotToken | TokenRefusal, now: float = NOW, fraction: float = 0.5) -> RefreshSchedule:
    schedule = RefreshSchedule()
    refresh(schedule, answer, now, fraction)
    return schedule


def refresh(schedule: RefreshSchedule, answer: CopilotToken | TokenRefusal, now: float, fraction: float = 0.5) -> None:
    schedule.begin()
    schedule.receive(answer, now, fraction)


def test_without_a_token_the_first_thing_is_to_get_one() -> None:
    schedule = RefreshSchedule()
    assert schedule.decide(NOW) == Refresh()
    assert schedule.next_at == -math.inf
    schedule.begin()
    assert (schedule.refreshing, schedule.decide(NOW)) == (True, Refresh())  # join the one under way
    schedule.receive(token(), NOW, 0.5)
    assert (schedule.refreshing, schedule.decide(NOW)) == (False, Use(token()))
    assert schedule.problem is None


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.75), (0.5, 0.80), (1.0, 0.85)])
def test_a_token_is_renewed_at_four_fifths_of_its_life_give_or_take(fraction: float, share: float) -> None:
    schedule = schedule_with(token(), fraction=fraction)
    due = NOW + LIFE * share
    assert schedule.next_at == pytest.approx(due)
    assert schedule.decide(due - 1) == Use(token())
    assert schedule.decide(due + 1) == Use(token(), refresh=True)
    schedule.begin()
    assert schedule.decide(due + 2) == Use(token())  # one is under way


def test_a_refresh_is_single() -> None:
    schedule = RefreshSchedule()
    schedule.begin()
    with pytest.raises(LocalError, match="under way already"):
        schedule.begin()


def test_a_machine_that_slept_renews_before_use() -> None:
    """No timer had to fire for that (spec.md 5, 23)."""
    schedule = schedule_with(token())
    assert schedule.decide(NOW + 8 * 3600) == Refresh()
    fresh = token(NOW + 8 * 3600, text="tid=2")
    refresh(schedule, fresh, NOW + 8 * 3600)
    assert schedule.decide(NOW + 8 * 3600) == Use(fresh)


@pytest.mark.parametrize(("life", "margin"), [(1800.0, 10.0), (40.0, 4.0), (0.5, 0.05)])
def test_a_token_is_not_used_just_before_its_end(life: float, margin: float) -> None:
    schedule = schedule_with(token(life=life))
    assert isinstance(schedule.decide(NOW + life - margin * 1.1), Use)
    assert schedule.decide(NOW + life - margin * 0.9) == Refresh()


def test_each_instant_belongs_to_one_side() -> None:
    schedule = schedule_with(token(life=1000.0))
    due = schedule.next_at
    assert due is not None
    assert schedule.decide(due) == Use(token(life=1000.0), refresh=True)
    assert schedule.decide(NOW + 990) == Refresh()
    assert isinstance(schedule.decide(NOW - 60), Use)
    assert not schedule.may_replay("tid=1", NOW, replayed=False)
    assert schedule.may_replay("tid=1", NOW + 30, replayed=False)


def test_a_clock_that_was_set_back_makes_the_tokens_age_unknown() -> None:
    schedule = schedule_with(token())
    assert isinstance(schedule.decide(NOW - 59), Use)
    assert schedule.decide(NOW - 61) == Refresh()


def test_a_failing_refresh_harms_nobody_while_the_token_lives() -> None:
    schedule = schedule_with(token())
    due = NOW + 0.8 * LIFE
    refresh(schedule, DOWN, due, fraction=1.0)
    assert (schedule.problem,) == (TokenProblem.SERVER_ERROR,)
    assert schedule.decide(due + 1) == Use(token())
    assert schedule.decide(due + 2) == Use(token(), refresh=True)
    refresh(schedule, token(due + 2), due + 2)
    assert schedule.decide(due + 3) == Use(token(due + 2))
    assert schedule.problem is None


def test_refreshes_that_fail_come_ever_more_slowly_until_one_succeeds() -> None:
    schedule, now, pauses = RefreshSchedule(), NOW, []
    for _ in range(10):
        refresh(schedule, DOWN, now, fraction=1.0)
        decision = schedule.decide(now)
        assert isinstance(decision, Refuse)
        retry_at = decision.retry_at
        assert retry_at is not None
        assert retry_at == schedule.next_at
        pauses.append(retry_at - now)
        assert schedule.decide(retry_at - 0.1) == decision
        now = retry_at
        assert schedule.decide(now) == Refresh()
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    refresh(schedule, token(now, 1), now)
    refresh(schedule, DOWN, now + 1, fraction=1.0)
    assert schedule.next_at == now + 3


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_a_pause_is_spread_by_chance(fraction: float, share: float) -> None:
    assert schedule_with(DOWN, fraction=fraction).next_at == NOW + 2 * share


def test_a_pause_is_at_least_the_servers() -> None:
    limited = TokenRefusal(TokenProblem.RATE_LIMITED, retry_after_s=90)
    assert schedule_with(limited).decide(NOW) == Refuse(TokenProblem.RATE_LIMITED, NOW + 90)


@pytest.mark.parametrize(
    "problem",
    [TokenProblem.NO_SUBSCRIPTION, TokenProblem.BLOCKED, TokenProblem.NOT_FOUND, TokenProblem.REFUSED],
)
def test_what_an_administrator_must_lift_is_tried_again_seldom(problem: TokenProblem) -> None:
    assert schedule_with(TokenRefusal(problem), fraction=1.0).next_at == NOW + 900


def test_a_revoked_token_is_never_tried_again() -> None:
    schedule = schedule_with(TokenRefusal(TokenProblem.REVOKED, retry_after_s=5))
    for now in (NOW, NOW + 1e9, NOW - 1e9):
        assert schedule.decide(now) == Refuse(TokenProblem.REVOKED, None)
    assert schedule.next_at is None


def test_a_clock_that_was_set_back_does_not_make_a_pause_longer() -> None:
    schedule = schedule_with(DOWN)
    assert isinstance(schedule.decide(NOW - 59), Refuse)
    assert schedule.decide(NOW - 61) == Refresh()


def test_a_refresh_that_was_called_off_taught_nothing() -> None:
    schedule = RefreshSchedule()
    schedule.begin()
    schedule.abandon()
    assert schedule.decide(NOW) == Refresh()
    schedule.begin()


def test_an_answer_without_a_refresh_is_the_embedders_fault() -> None:
    schedule = RefreshSchedule()
    with pytest.raises(LocalError, match="no refresh"):
        schedule.abandon()
    with pytest.raises(LocalError, match="no refresh"):
        schedule.receive(token(), NOW, 0.5)
    schedule.begin()
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(LocalError, match="fraction"):
            schedule.receive(token(), NOW, fraction)
    schedule.receive(token(), NOW, 1)


def test_a_request_refused_with_401_is_sent_once_more_with_a_new_token() -> None:
    schedule = schedule_with(token())
    assert schedule.may_replay("tid=1", NOW + 60, replayed=False)
    assert schedule.decide(NOW + 60) == Refresh()
    fresh = token(NOW + 61, text="tid=2")
    refresh(schedule, fresh, NOW + 61)
    assert schedule.decide(NOW + 62) == Use(fresh)
    assert not schedule.may_replay("tid=2", NOW + 120, replayed=True)
    assert schedule.decide(NOW + 120) == Use(fresh)


def test_of_many_requests_refused_at_once_one_refreshes_and_the_others_use_its_token() -> None:
    schedule = schedule_with(token())
    assert schedule.may_replay("tid=1", NOW + 60, replayed=False)
    assert schedule.may_replay("tid=1", NOW + 60, replayed=False)
    fresh = token(NOW + 60, text="tid=2")
    refresh(schedule, fresh, NOW + 60)
    assert schedule.may_replay("tid=1", NOW + 61, replayed=False)
    assert schedule.decide(NOW + 61) == Use(fresh)


def test_a_token_that_just_came_is_not_what_is_wrong() -> None:
    schedule = schedule_with(token())
    assert not schedule.may_replay("tid=1", NOW + 29, replayed=False)
    assert schedule.decide(NOW + 29) == Use(token())
    assert schedule.may_replay("tid=1", NOW + 31, replayed=False)


def test_a_refused_token_is_not_used_again_when_the_refresh_fails() -> None:
    schedule = schedule_with(token())
    assert schedule.may_replay("tid=1", NOW + 60, replayed=False)
    refresh(schedule, TokenRefusal(TokenProblem.REVOKED), NOW + 60)
    assert schedule.decide(NOW + 60) == Refuse(TokenProblem.REVOKED, None)


def test_no_token_is_shown() -> None:
    assert "tid" not in repr(schedule_with(token()).decide(NOW))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["token", "short", *TokenProblem, "abandon", "reject"]),
        st.sampled_from([0.0, 0.5, 3.0, 100.0, 5000.0, -30.0, -1e6]),
        st.floats(0, 1),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_whatever_happens_a_token_in_use_is_alive_and_refreshes_keep_their_pauses(
    steps: list[tuple[str | TokenProblem, float, float]],
) -> None:
    schedule, now, revoked, refused_at, number = RefreshSchedule(), NOW, False, -math.inf, 0
    for kind, pause, fraction in steps:
        now += pause
        decision = schedule.decide(now)
        if isinstance(decision, Use):
            assert decision.token.obtained_at - 60 <= now < decision.token.expires_at
            if kind == "reject":
                young = 0 <= now - decision.token.obtained_at < 30
                assert schedule.may_replay(decision.token.token, now, replayed=False) is not young
        if not (isinstance(decision, Refresh) or (isinstance(decision, Use) and decision.refresh)):
            continue
        assert not revoked
        assert now >= refused_at + 1 or now < refused_at - 60
        schedule.begin()
        if isinstance(kind, TokenProblem):
            schedule.receive(TokenRefusal(kind), now, fraction)
            revoked, refused_at = kind is TokenProblem.REVOKED, now
        elif kind in ("token", "short"):
            number += 1
            schedule.receive(token(now, LIFE if kind == "token" else 5, f"tid={number}"), now, fraction)
            refused_at = -math.inf
        else:
            schedule.abandon()
    assert not re.search("tid", repr(schedule))


def test_a_token_that_ended_on_its_way_is_renewed_however_young_it_is() -> None:
    """A request that was sent in the last moment of a short life comes back with 401."""
    schedule = schedule_with(token(life=2.0))
    assert not schedule.may_replay("tid=1", NOW + 1.9, replayed=False)
    assert schedule.may_replay("tid=1", NOW + 2.0, replayed=False)
    assert schedule.decide(NOW + 2.0) == Refresh()
