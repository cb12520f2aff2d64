"""What is left of a seat, whatever the plan."""

import msgspec
import pytest

from capi_core.errors import ProtocolError
from capi_core.github.quota import CHAT, COMPLETIONS, PREMIUM_INTERACTIONS, Quota, read_quota

SEPTEMBER = 1_756_684_800.0  # 2025-09-01T00:00:00Z


def snapshot(**members: object) -> dict[str, object]:
    return {"quota_id": "x", "timestamp_utc": "2025-08-20T00:00:00Z", "has_quota": True} | members


def body(**members: object) -> bytes:
    return msgspec.json.encode({"analytics_tracking_id": "x", "organization_list": []} | members)


def test_a_paid_plan_gives_a_snapshot_of_each_kind() -> None:
    report = read_quota(
        body(
            login="octo",
            copilot_plan="individual",
            access_type_sku="plus_monthly_subscriber_quota",
            chat_enabled=True,
            quota_reset_date="2025-09-01",
            quota_snapshots={
                "chat": snapshot(entitlement=0, remaining=0, unlimited=True, percent_remaining=100.0),
                "premium_interactions": snapshot(
                    entitlement=1500,
                    remaining=1200.5,
                    unlimited=False,
                    percent_remaining=80.03,
                    overage_count=2,
                    overage_permitted=True,
                ),
                "completions": snapshot(unlimited=True),
            },
        )
    )
    premium = Quota(PREMIUM_INTERACTIONS, 1500, 1200.5, 80.03, False, 2, True)
    assert report.quotas == (premium, Quota(CHAT, 0, 0, 100, True), Quota(COMPLETIONS, unlimited=True))
    assert (report.plan, report.sku, report.login) == ("individual", "plus_monthly_subscriber_quota", "octo")
    assert (report.chat_enabled, report.resets_at) == (True, SEPTEMBER)
    assert report.get(PREMIUM_INTERACTIONS) == premium
    assert report.get("tokens") is None


def test_used_is_what_was_given_less_what_is_left_and_unknown_otherwise() -> None:
    assert Quota(CHAT, 300, 270.5).used == 29.5
    assert Quota(CHAT, 300, -4).used == 304
    assert Quota(CHAT, 300, 300, unlimited=True).used is None
    assert Quota(CHAT, None, 3).used is None
    assert Quota(CHAT, 3, None).used is None


def test_kinds_that_are_not_known_are_kept_by_name() -> None:
    kinds = {"zeta": snapshot(entitlement=1), "ai_credits": snapshot(remaining=2), "chat": snapshot(), "gone": None}
    report = read_quota(body(quota_snapshots=kinds))
    assert report.quotas == (Quota("chat"), Quota("ai_credits", None, 2), Quota("zeta", 1))


def test_what_is_left_may_go_by_either_of_its_names() -> None:
    report = read_quota(body(quota_snapshots={"chat": snapshot(entitlement=50, quota_remaining=49.5)}))
    assert report.quotas == (Quota("chat", 50, 49.5),)


def test_as_many_kinds_are_kept_as_anybody_could_read() -> None:
    kinds = {f"kind{number:03}": snapshot() for number in range(1000)} | {
        "a" * 65: snapshot(),
        "a" * 64: snapshot(),
        "chat": snapshot(),
    }
    quotas = read_quota(body(quota_snapshots=kinds)).quotas
    assert [quota.kind for quota in quotas] == ["chat", "a" * 64, *(f"kind{number:03}" for number in range(30))]


def test_a_free_plan_gives_totals_and_what_is_left_of_them() -> None:
    report = read_quota(
        body(
            copilot_plan="free",
            monthly_quotas={"chat": 50, "completions": 2000},
            limited_user_quotas={"chat": 12, "completions": None},
            limited_user_reset_date="2025-09-01",
        )
    )
    assert report.quotas == (Quota(CHAT, 50, 12), Quota(COMPLETIONS, 2000, None))
    assert report.resets_at == SEPTEMBER


def test_a_plan_without_quotas_is_an_empty_report() -> None:
    """The base proxy's `check-usage` crashed on it (spec.md 5, 32)."""
    report = read_quota(body(copilot_plan="business", quota_snapshots=None))
    assert (report.quotas, report.plan, report.resets_at) == ((), "business", None)


@pytest.mark.parametrize(
    ("dates", "instant"),
    [
        ({"quota_reset_date_utc": "2025-09-01T00:00:00.000Z", "quota_reset_date": "2025-08-31"}, SEPTEMBER),
        ({"quota_reset_date_utc": "2025-09-01T02:00:00+02:00"}, SEPTEMBER),
        ({"quota_reset_date_utc": "soon", "quota_reset_date": "2025-09-01"}, SEPTEMBER),
        ({"limited_user_reset_date": SEPTEMBER}, SEPTEMBER),
        ({"quota_reset_date": ""}, None),
        ({"limited_user_reset_date": SEPTEMBER * 1000}, None),
        ({"limited_user_reset_date": -1}, None),
        ({"quota_reset_date_utc": "9999-12-31T23:59:59-23:00"}, None),
        ({"quota_reset_date_utc": "0001-01-01T00:00:00+23:00"}, None),
    ],
)
def test_the_reset_is_an_instant_however_it_is_written(dates: dict[str, object], instant: float | None) -> None:
    assert read_quota(body(**dates)).resets_at == instant


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html></html>",
        b"[]",
        body(quota_snapshots=[]),
        body(quota_snapshots={"chat": 5}),
        body(quota_snapshots={"chat": {"entitlement": "300"}}),
        body(quota_snapshots={"chat": {"remaining": 1e300}}),
        body(quota_snapshots={"chat": {"unlimited": 1}}),
        body(monthly_quotas={"chat": "many"}),
        body(login=5),
    ],
)
def test_wrong_types_are_the_upstreams_fault(text: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        read_quota(text)
    assert (refused.value.code, refused.value.status_hint) == ("upstream_garbage", 502)
