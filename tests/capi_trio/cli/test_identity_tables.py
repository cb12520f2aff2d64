"""Identities as text for people: what stands in each column, and what is left out where nothing is known."""

import re

import msgspec
import pytest

from capi_core.github import Quota, QuotaReport
from capi_trio.cli.identity_tables import all_identities, all_usage, one_identity
from capi_trio.identity_operations import IdentityStatus, IdentityUsage
from capi_trio.quotas import SeatUsage
from capi_trio.seat_status import FanoutHour, SeatStatus

HOUR = 1_800_014_400_000
SEAT = SeatStatus(
    token="linked",
    token_problem=None,
    token_expires_at=HOUR + 1_800_000,
    token_retry_at=None,
    sku="demo_seat",
    gate="open",
    pause_cause=None,
    paused_until=None,
    in_flight=3,
    queued=7,
    cap=4,
    peak_in_flight=4,
    next_steps=[],
    fanout=[],
)


def status(name: str = "ann", seat: SeatStatus | None = SEAT, problem: str | None = None) -> IdentityStatus:
    return IdentityStatus(
        id=f"idn_{name}",
        name=name,
        host="github.com",
        login=None,
        owner="Ann",
        shared=False,
        share_reason=None,
        state="active",
        state_reason=None,
        max_in_flight=None,
        created_at=HOUR,
        updated_at=HOUR,
        removed_at=None,
        token_problem=problem,
        seat=seat,
    )


def cells(table: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in table.splitlines()]


def members(text: str) -> dict[str, str]:
    return dict(re.split(r" +", line, maxsplit=1) for line in text.partition("\n\n")[0].splitlines())


# -- all ----------------------------------------------------------------------------------------------------------


def test_where_a_server_runs_the_table_has_the_seats_too() -> None:
    paused = msgspec.structs.replace(SEAT, gate="paused", pause_cause="retry_after", paused_until=HOUR + 90_000)
    by_hand = msgspec.structs.replace(SEAT, gate="paused", pause_cause="operator", token="refused")
    assert cells(all_identities([status(), status("ben", paused), status("cid", by_hand), status("new", None)])) == [
        ["NAME", "HOST", "LOGIN", "OWNER", "STATE", "MAX", "SERVES", "TOKEN", "IN FLIGHT", "QUEUED", "PEAK", "GATE"],
        *[
            [name, "github.com", "-", "Ann", "active", "-", "its owner", token, *seat]
            for name, token, *seat in (
                ("ann", "linked", "3 of 4", "7", "4", "open"),
                ("ben", "linked", "3 of 4", "7", "4", "paused until 2027-01-15 12:01:30Z"),
                ("cid", "refused", "3 of 4", "7", "4", "paused (operator)"),
                ("new", "ok", "-", "-", "-", "-"),
            )
        ],
    ]


def test_without_a_server_it_has_the_records_only() -> None:
    head, row = cells(all_identities([status(seat=None, problem="it is a link")]))
    assert head[-1] == "TOKEN"
    assert row[-1] == "cannot be used"


def test_what_can_be_done_stands_below() -> None:
    troubled = msgspec.structs.replace(SEAT, next_steps=["link it again", "look at its keys"])
    table = all_identities([status(), status("ben", troubled)])
    assert table.partition("\n\n")[2] == "ben: link it again\nben: look at its keys"


# -- one ----------------------------------------------------------------------------------------------------------


def test_one_is_shown_with_its_seat_and_its_hours() -> None:
    hours = [
        FanoutHour(hour_at=HOUR, owners=1, keys=1024, addresses=3, uncounted=["keys"], peak_in_flight=4, requests=5000),
        FanoutHour(hour_at=HOUR + 3_600_000, owners=1, keys=2, addresses=1, uncounted=[], peak_in_flight=1, requests=2),
    ]
    seat = msgspec.structs.replace(SEAT, token="refused", token_problem="revoked", next_steps=["link"], fanout=hours)
    text = one_identity(status(seat=seat))
    shown = members(text)
    assert (shown["token"], shown["token_problem"], shown["next_step"]) == ("refused", "revoked", "link")
    assert (shown["in_flight"], shown["queued"], shown["cap"], shown["peak_in_flight"]) == ("3", "7", "4", "4")
    assert (shown["shared"], shown["gate"], shown["token_expires_at"]) == ("no", "open", "2027-01-15 12:30:00Z")
    assert {"pause_cause", "paused_until", "fanout", "next_steps", "seat", "login"} & shown.keys() == set()
    assert cells(text.partition("\n\n")[2]) == [
        ["HOUR", "OWNERS", "KEYS", "ADDRESSES", "PEAK", "REQUESTS"],
        ["2027-01-15 12:00:00Z", "1", ">= 1024", "3", "4", "5000"],
        ["2027-01-15 13:00:00Z", "1", "2", "1", "1", "2"],
    ]


def test_one_that_pauses_says_until_when() -> None:
    seat = msgspec.structs.replace(SEAT, gate="paused", pause_cause="cool_down", paused_until=HOUR + 500)
    shown = members(one_identity(status(seat=seat)))
    assert (shown["pause_cause"], shown["paused_until"]) == ("cool_down", "2027-01-15 12:00:00Z")


def test_without_a_server_one_is_its_record() -> None:
    text = one_identity(status(seat=None))
    assert members(text).keys() == {"id", "name", "host", "owner", "shared", "state", "created_at", "updated_at"}
    assert "\n\n" not in text


# -- what is left -------------------------------------------------------------------------------------------------


def usage(*quotas: Quota, name: str = "ann", plan: str | None = "business") -> IdentityUsage:
    view = SeatUsage.of(name, QuotaReport(quotas, plan=plan, resets_at=HOUR / 1000 if plan else None))
    return IdentityUsage(identity=name, usage=view, problem=None)


def test_each_kind_of_each_identity_has_a_row() -> None:
    found = [
        usage(Quota("premium_interactions", 1_500_000, 1_499_999.5, 99.9), Quota("chat", unlimited=True)),
        usage(Quota("chat", 500, -3.25), Quota("completions"), name="free", plan="free"),
        usage(name="bare", plan=None),
        IdentityUsage(identity="lost", usage=None, problem="link it again"),
    ]
    assert cells(all_usage(found)) == [
        ["NAME", "PLAN", "KIND", "USED", "LEFT", "OF", "LEFT %", "RESETS"],
        ["ann", "business", "premium_interactions", "0.5", "1499999.5", "1500000", "99.9", "2027-01-15 12:00:00Z"],
        ["ann", "business", "chat", "-", "unlimited", "-", "-", "2027-01-15 12:00:00Z"],
        ["free", "free", "chat", "503.25", "-3.25", "500", "-0.7", "2027-01-15 12:00:00Z"],
        ["free", "free", "completions", "-", "-", "-", "-", "2027-01-15 12:00:00Z"],
        ["bare", *["-"] * 7],
        ["lost", *["-"] * 7],
    ]


def test_a_seats_plan_does_not_command_the_terminal() -> None:
    text = one_identity(status(seat=msgspec.structs.replace(SEAT, sku="x\x1b]0;owned\x07")))
    assert members(text)["sku"] == "x?]0;owned?"


@pytest.mark.parametrize("figure", [0, 100, 1_000_000, 10])
def test_whole_figures_keep_their_zeros(figure: float) -> None:
    assert cells(all_usage([usage(Quota("chat", figure, figure))]))[1][4] == str(figure)


def test_nothing_is_told_as_that() -> None:
    assert all_identities([]) == all_usage([]) == "There are no identities yet. Link one: capi auth"
