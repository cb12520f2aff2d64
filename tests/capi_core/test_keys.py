"""Keys: the format, what may be seen of them, their life, what may be chosen, and what they allow."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.keys import (
    DEBUG_MAX_MS,
    KEY_PREFIX,
    UNCHANGED,
    Budget,
    BudgetPeriod,
    BudgetUnit,
    FieldProblem,
    KeyDraft,
    KeyEdit,
    KeyRecord,
    KeyState,
    Tier,
    Unchanged,
    effective_rpm,
    format_key,
    hash_prefix,
    is_well_formed,
    key_hash,
    mask_keys,
    may_call,
    validate,
)

NOW = 1_800_000_000_000
SECRETS = st.binary(min_size=32, max_size=32)
TEXTS = st.text(st.characters(exclude_categories=[]))  # surrogates too
KEY = format_key(bytes(32))
OTHER_KEY = format_key(bytes(range(32)))


def record(
    *,
    allowed_models: tuple[str, ...] = ("*",),
    rate_limit_override: int | None = None,
    expires_at: int | None = None,
    debug_expires_at: int | None = None,
    revoked_at: int | None = None,
) -> KeyRecord:
    return KeyRecord(
        id="k1",
        hash=key_hash(KEY),
        tier=Tier.CLIENT,
        label="a laptop",
        allowed_models=allowed_models,
        rate_limit_override=rate_limit_override,
        expires_at=expires_at,
        debug_expires_at=debug_expires_at,
        created_at=NOW,
        revoked_at=revoked_at,
    )


def faults(chosen: KeyDraft | KeyEdit) -> list[str]:
    """The names of the fields that are refused."""
    return [problem.field for problem in validate(chosen, default_rpm=60, now_ms=NOW)]


# The text of a key.


@given(SECRETS)
def test_a_key_is_the_prefix_and_52_letters_that_end_in_a_or_q(secret: bytes) -> None:
    """spec.md 1.5: 59 characters, and nothing of the 32 bytes is lost."""
    text = format_key(secret)
    assert is_well_formed(text)
    assert len(text) == 59
    assert text[-1] in "AQ"
    assert base64.b32decode(text.removeprefix(KEY_PREFIX) + "====") == secret


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_no_other_number_of_bytes_makes_a_key(size: int) -> None:
    """33 bytes would give 53 letters: what a later document says of them is wrong (spec.md 1.5)."""
    with pytest.raises(LocalError):
        format_key(bytes(size))


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY_PREFIX,
        KEY[:-1],
        KEY + "A",
        KEY + "\n",
        " " + KEY,
        KEY.lower(),
        KEY.upper(),
        KEY[:-1] + "B",
        KEY[:-1] + "\uff21",
        KEY[:20] + "1" + KEY[21:],
        KEY[:20] + "\0" + KEY[21:],
        KEY[:20] + "'" + KEY[21:],
        KEY_PREFIX + key_hash(KEY)[:52],
    ],
)
def test_what_is_nearly_a_key_is_none(text: str) -> None:
    assert not is_well_formed(text)


@given(TEXTS)
def test_any_text_has_a_hash(text: str) -> None:
    """A login form takes whatever is typed: quotes, NUL, halves of characters."""
    assert len(key_hash(text)) == 64
    assert hash_prefix(key_hash(text)) == key_hash(text)[:8]


def test_the_hash_is_sha_256_of_the_whole_text() -> None:
    """Pinned, from another implementation (base32 and sha256sum): a change would lock every key out."""
    assert key_hash(KEY) == "c4413f24581d2245b7e856fc4c2fa148fea137c70f40688eabe829049a69ec30"


def test_no_repr_shows_more_of_a_hash_than_its_prefix() -> None:
    """A2, F6: a hash in a log would be one more place to keep clean."""
    shown = repr(record())
    assert hash_prefix(key_hash(KEY)) in shown
    assert key_hash(KEY)[:9] not in shown


@given(TEXTS, st.lists(st.tuples(SECRETS, TEXTS)))
def test_masking_leaves_no_key_and_nothing_that_looks_like_one(start: str, rest: list[tuple[bytes, str]]) -> None:
    """In plain text and in JSON, which stays what it was apart from that."""
    text = start + "".join(format_key(secret) + after for secret, after in rest)
    masked = mask_keys(text)
    assert KEY_PREFIX not in masked
    assert mask_keys(masked) == masked
    assert json.loads(mask_keys(json.dumps(text))) == masked
    assert rest or masked == mask_keys(start)


def test_a_masked_key_is_still_told_from_another() -> None:
    assert mask_keys(f"<{KEY}>") == f"<[key sha256:{hash_prefix(key_hash(KEY))}]>"
    assert mask_keys(KEY) != mask_keys(OTHER_KEY)


def test_a_key_that_was_cut_is_masked_too() -> None:
    assert KEY[:30] not in mask_keys(f"curl -H {KEY[:30]}")


# The life of a key.


def test_a_key_is_active_until_the_instant_it_expires() -> None:
    assert record().state(NOW) is KeyState.ACTIVE
    assert record(expires_at=NOW + 1).state(NOW) is KeyState.ACTIVE
    assert record(expires_at=NOW).state(NOW) is KeyState.EXPIRED


def test_a_clock_set_back_does_not_bring_a_revoked_key_to_life() -> None:
    for now in (NOW - 10**12, NOW - 1, NOW, NOW + 1):
        assert record(revoked_at=NOW, expires_at=now).state(now) is KeyState.REVOKED


def test_a_revoked_key_is_revoked_even_at_the_instant_0() -> None:
    assert record(revoked_at=0).state(NOW) is KeyState.REVOKED


def test_capture_needs_a_key_that_works() -> None:
    """spec.md 1.9: one rule for "is it being captured", used everywhere."""
    until = NOW + 10
    assert record(debug_expires_at=until).captures(NOW)
    assert not record(debug_expires_at=until).captures(until)
    assert not record(debug_expires_at=until, revoked_at=NOW).captures(NOW)
    assert not record(debug_expires_at=until, expires_at=NOW).captures(NOW)
    assert not record().captures(NOW)


@given(
    expires_at=st.none() | st.integers(NOW - 10**6, NOW + 10**6),
    grace_ms=st.integers(-10, 10**6),
)
def test_rotation_lets_the_old_key_go_on_for_the_grace_and_never_longer_than_before(
    expires_at: int | None, grace_ms: int
) -> None:
    before = record(expires_at=expires_at)
    after = before.rotated_out(NOW, grace_ms)
    assert attrs.evolve(after, expires_at=expires_at) == before
    assert after.expires_at is not None
    assert after.expires_at <= NOW + max(grace_ms, 0)
    assert expires_at is None or after.expires_at <= expires_at
    assert after.expires_at in (NOW + max(grace_ms, 0), expires_at)


def test_rotation_without_grace_ends_the_old_key_at_once() -> None:
    assert record().rotated_out(NOW, 0).state(NOW) is KeyState.EXPIRED


# What may be chosen.


def test_a_draft_becomes_a_record_and_nothing_else_is_set() -> None:
    budget = Budget(BudgetUnit.MONEY, 5_000_000, BudgetPeriod.MONTH)
    draft = KeyDraft(
        label="ci",
        tier=Tier.ADMIN,
        owner="ann",
        identity="ann-gh",
        allowed_models=["fast", "gpt-4.1/mini"],
        rate_limit_override=600,
        budget=budget,
        expires_at=NOW + 1,
    )
    assert faults(draft) == []
    assert draft.record(id="k2", hash="h", now_ms=NOW, rotated_from="k1") == KeyRecord(
        id="k2",
        hash="h",
        tier=Tier.ADMIN,
        label="ci",
        owner="ann",
        identity="ann-gh",
        allowed_models=("fast", "gpt-4.1/mini"),
        rate_limit_override=600,
        budget=budget,
        expires_at=NOW + 1,
        debug_expires_at=None,
        created_at=NOW,
        revoked_at=None,
        rotated_from="k1",
    )


def test_a_draft_is_a_client_key_for_all_models_unless_said_otherwise() -> None:
    made = KeyDraft(label="x").record(id="k", hash="h", now_ms=NOW)
    assert (made.tier, made.allowed_models, made.expires_at) == (Tier.CLIENT, ("*",), None)


@pytest.mark.parametrize(
    "label",
    ["", " ", " x", "x ", "a\nb", "a\rb", "a\0b", "a\x1b[31mb", "a\x7fb", "a\u2028b", "a\u202eb", "\ud800", "x" * 101],
)
def test_a_label_is_one_printable_line(label: str) -> None:
    """What is shown on terminals and pages, and written to the audit file."""
    assert faults(KeyDraft(label=label)) == ["label"]
    assert faults(KeyEdit(label=label)) == ["label"]
    assert faults(KeyDraft(label="ok", owner=label, identity=label)) == ["owner", "identity"]


@pytest.mark.parametrize("label", ["x", "x" * 100, "Ann's laptop", "Bürorechner", "機械", "<script>", "=1+1"])
def test_a_label_may_be_in_any_language(label: str) -> None:
    """What a page or a spreadsheet would do with it is theirs to prevent."""
    assert faults(KeyDraft(label=label)) == []


def test_a_key_pasted_as_a_label_is_refused() -> None:
    """Else its text would be stored: a search for sk-cap- over all data finds nothing."""
    (problem,) = validate(KeyDraft(label=f"key {KEY}"), default_rpm=60, now_ms=NOW)
    assert problem.field == "label"
    assert KEY not in problem.message


@pytest.mark.parametrize(
    "names",
    [
        [],
        [""],
        ["*", "gpt"],
        ["gpt", "*"],
        ["gpt\n"],
        ["*\n"],
        ["a b"],
        ["-x"],
        ["x" * 129],
        ["\uff47pt"],
        ["ok", "ok?"],
        ["a*"],
        [f"m{number}" for number in range(257)],
    ],
)
def test_models_are_a_list_of_names_or_all(names: list[str]) -> None:
    assert faults(KeyDraft(label="x", allowed_models=names)) == ["allowed_models"]
    assert faults(KeyEdit(allowed_models=names)) == ["allowed_models"]


@pytest.mark.parametrize("text", ["*", "gpt-4o", "", '["*"]'])
def test_a_text_in_the_place_of_the_list_of_models_is_refused(text: str) -> None:
    """spec.md 1.5: a text `*` passes for a list that holds `*` in code that only asks whether it is in there."""
    assert faults(KeyDraft(label="x", allowed_models=text)) == ["allowed_models"]


@pytest.mark.parametrize(
    "names", [["*"], ("a",), ["gpt-4.1", "claude-sonnet-4@2025", "a/b:c+d_e"], ["x" * 128], ["a"] * 256]
)
def test_model_names_may_have_what_upstreams_use(names: Sequence[str]) -> None:
    assert faults(KeyDraft(label="x", allowed_models=names)) == []


@pytest.mark.parametrize("rpm", [None, 0, -1, -(10**9)])
def test_no_rate_means_the_default_and_never_unlimited(rpm: int | None) -> None:
    """spec.md 1.5, S8."""
    draft = KeyDraft(label="x", rate_limit_override=rpm)
    assert faults(draft) == []
    made = draft.record(id="k", hash="h", now_ms=NOW)
    assert made.rate_limit_override is None
    assert effective_rpm(made, 60) == 60
    assert KeyEdit(rate_limit_override=rpm).apply(record(rate_limit_override=5)).rate_limit_override is None


def test_a_rate_up_to_ten_times_the_default_is_allowed() -> None:
    assert faults(KeyDraft(label="x", rate_limit_override=600)) == []
    (problem,) = validate(KeyEdit(rate_limit_override=601), default_rpm=60, now_ms=NOW)
    assert problem == FieldProblem(
        "rate_limit_override", "is more than 10 times the default: at most 600 requests per minute"
    )


def test_a_lowered_default_lowers_what_an_old_override_gives() -> None:
    assert effective_rpm(record(rate_limit_override=600), 60) == 600
    assert effective_rpm(record(rate_limit_override=600), 6) == 60
    assert effective_rpm(record(rate_limit_override=3), 60) == 3
    assert effective_rpm(record(rate_limit_override=1), 60) == 1


@pytest.mark.parametrize("amount", [0, -1, 10**15 + 1])
def test_a_budget_is_more_than_nothing(amount: int) -> None:
    budget = Budget(BudgetUnit.TOKENS, amount, BudgetPeriod.DAY)
    assert faults(KeyDraft(label="x", budget=budget)) == ["budget"]
    assert faults(KeyEdit(budget=budget)) == ["budget"]


@pytest.mark.parametrize("amount", [1, 10**15])
def test_a_budget_may_be_small_or_large(amount: int) -> None:
    assert faults(KeyDraft(label="x", budget=Budget(BudgetUnit.MONEY, amount, BudgetPeriod.MONTH))) == []


def test_an_expiry_lies_in_the_future_that_calendars_know() -> None:
    end = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1000 + 999
    for expires_at in (NOW + 1, end, None):
        assert faults(KeyDraft(label="x", expires_at=expires_at)) == []
    assert validate(KeyEdit(expires_at=NOW), default_rpm=60, now_ms=NOW) == (
        FieldProblem("expires_at", "must lie in the future"),
    )
    assert validate(KeyEdit(expires_at=end + 1), default_rpm=60, now_ms=NOW) == (
        FieldProblem("expires_at", "is too far in the future"),
    )


def test_capture_lasts_a_day_at_most() -> None:
    """spec.md 1.9: 24 hours, and nobody has to think of turning it off."""
    assert faults(KeyEdit(debug_expires_at=NOW + DEBUG_MAX_MS)) == []
    assert faults(KeyEdit(debug_expires_at=None)) == []
    assert DEBUG_MAX_MS == 86_400_000
    assert faults(KeyEdit(debug_expires_at=NOW + DEBUG_MAX_MS + 1)) == ["debug_expires_at"]
    assert faults(KeyEdit(debug_expires_at=NOW)) == ["debug_expires_at"]


def test_all_faults_are_told_at_once() -> None:
    draft = KeyDraft(label="", owner="\n", allowed_models=[], rate_limit_override=10**6, expires_at=0)
    assert faults(draft) == ["label", "owner", "allowed_models", "rate_limit_override", "expires_at"]


def test_an_edit_of_nothing_changes_nothing() -> None:
    assert faults(KeyEdit()) == []
    assert KeyEdit().apply(record(expires_at=NOW, debug_expires_at=NOW)) == record(expires_at=NOW, debug_expires_at=NOW)


def test_an_edit_changes_what_it_names_and_none_is_a_value() -> None:
    before = record(allowed_models=("a",), rate_limit_override=5, expires_at=NOW, debug_expires_at=NOW)
    edit = KeyEdit(
        label="new",
        owner="ann",
        identity="ann-gh",
        allowed_models=["b"],
        rate_limit_override=None,
        budget=Budget(BudgetUnit.TOKENS, 1, BudgetPeriod.DAY),
        expires_at=None,
        debug_expires_at=None,
    )
    after = edit.apply(before)
    for name in (field.name for field in attrs.fields(KeyEdit)):
        wanted = getattr(edit, name)
        assert getattr(after, name) == (tuple(wanted) if name == "allowed_models" else wanted)


def test_nothing_else_can_be_edited() -> None:
    """A6, spec.md 1.9: not the tier, nor what identifies a key, nor what happened to it."""
    editable = {field.name for field in attrs.fields(KeyEdit)}
    assert {field.name for field in attrs.fields(KeyRecord)} - editable == {
        "id",
        "hash",
        "tier",
        "created_at",
        "revoked_at",
        "rotated_from",
    }
    assert all(field.default is UNCHANGED for field in attrs.fields(KeyEdit))
    assert list(Unchanged) == [UNCHANGED]


# Budgets.


def at(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        (BudgetPeriod.DAY, "2026-11-24T00:00:00", "2026-11-24T00:00:00", "2026-11-25T00:00:00"),
        (BudgetPeriod.DAY, "2026-12-31T23:59:59.999", "2026-12-31T00:00:00", "2027-01-01T00:00:00"),
        (BudgetPeriod.MONTH, "2028-02-29T12:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        (BudgetPeriod.MONTH, "2026-12-31T23:59:59.999", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        (BudgetPeriod.MONTH, "2026-01-01T00:00:00", "2026-01-01T00:00:00", "2026-02-01T00:00:00"),
    ],
)
def test_a_budget_runs_by_the_calendar_in_utc(period: BudgetPeriod, now: str, start: str, end: str) -> None:
    assert Budget(BudgetUnit.TOKENS, 1, period).window(at(now)) == (at(start), at(end))


@given(now=st.integers(0, at("2100-01-01T00:00:00")), period=st.sampled_from(BudgetPeriod))
def test_each_instant_lies_in_one_window(now: int, period: BudgetPeriod) -> None:
    budget = Budget(BudgetUnit.TOKENS, 1, period)
    start, end = budget.window(now)
    assert start <= now < end
    assert budget.window(start) == budget.window(end - 1) == (start, end)
    assert budget.window(end)[0] == end


# What a key allows.


@pytest.mark.parametrize(
    ("models", "keys", "allowed"),
    [
        (("*",), ["*"], True),
        (("fast",), ["k1"], True),
        (("*",), ["k1", "k2"], True),
        (("fast", "slow"), ["*"], True),
        (("slow",), ["*"], False),
        (("*",), ["k2"], False),
        (("fast",), [], False),
        ((), ["*"], False),
        (("fast-2", "FAST", "fas"), ["*"], False),
        (("*",), ["k11"], False),
    ],
)
def test_both_the_key_and_the_alias_must_agree(models: tuple[str, ...], keys: list[str], allowed: bool) -> None:
    """design.md 7: visible and callable are the same question."""
    assert may_call(record(allowed_models=models), "fast", keys) is allowed


@pytest.mark.parametrize("text", ["*", "k1", "a k1 b"])
def test_a_text_in_the_place_of_a_list_lets_nobody_in(text: str) -> None:
    """spec.md 1.5: `"*" in "*"` is true, and so is `"k1" in "k10"`."""
    assert not may_call(record(), "fast", text)
