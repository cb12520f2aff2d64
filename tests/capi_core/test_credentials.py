"""Who is asking: every way to present a key, and one answer to every key that opens nothing."""

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.credentials import (
    ADMIN_REQUIRED,
    FOREIGN_TOKEN,
    INVALID_API_KEY,
    Credential,
    CredentialForm,
    decide,
    find_credential,
)
from capi_core.errors import Problem
from capi_core.keys import KEY_PREFIX, KeyRecord, Tier, format_key, hash_prefix, key_hash

NOW = 1_800_000_000_000
KEY = format_key(bytes(range(32)))
OTHER_KEY = format_key(bytes(32))
RAW, OTHER_RAW = KEY.encode(), OTHER_KEY.encode()
ISSUED = Credential(key_hash(KEY), CredentialForm.ISSUED)
RECORD = KeyRecord(id="k1", hash=key_hash(KEY), tier=Tier.CLIENT, label="a laptop", created_at=NOW)

Headers = list[tuple[bytes, bytes]]


def code(headers: Headers) -> str:
    """The code of the refusal; "found" when there is a credential."""
    found = find_credential(headers)
    return found.code if isinstance(found, Problem) else "found"


# How a key is presented.


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + RAW)],
        [(b"Authorization", b"bearer " + RAW)],
        [(b"AUTHORIZATION", b"BEARER   " + RAW + b" \t")],
        [(b"x-api-key", RAW)],
        [(b"X-Api-Key", b"\t " + RAW + b" ")],
        [(b"authorization", b"Bearer " + RAW), (b"x-api-key", RAW)],
        [(b"x-api-key", RAW), (b"x-api-key", RAW)],
        [(b"authorization", b"Bearer"), (b"x-api-key", RAW)],
        [(b"authorization", b"Bearer  "), (b"x-api-key", RAW)],
        [(b"authorization", b"Bearer " + RAW), (b"x-api-key", b"")],
        [(b"authorization", b"Basic dXNlcjpwYXNz"), (b"x-api-key", RAW)],
        [(b"host", b"h"), (b"cookie", b"sid=1"), (b"authorization", b"Bearer " + RAW)],
    ],
)
def test_a_key_comes_as_bearer_or_as_x_api_key(headers: Headers) -> None:
    """As OpenAI's and Anthropic's SDKs send it, or both at once; the scheme's case does not matter (RFC 9110 11.1)."""
    assert find_credential(headers) == ISSUED


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"x-api-key", b" \t")],
        [(b"authorization", b"Basic dXNlcjpwYXNz")],
        [(b"authorization", RAW)],
        [(b"authorization", b"Bearer\t" + RAW)],
        [(b"authorization", b"Bearer" + RAW)],
        [(b"authorization", b"token " + RAW)],
        [(b"proxy-authorization", b"Bearer " + RAW)],
        [(b"api-key", RAW), (b"x_api_key", RAW), (b"cookie", b"key=" + RAW)],
    ],
)
def test_everything_else_is_no_key(headers: Headers) -> None:
    found = find_credential(headers)
    assert isinstance(found, Problem)
    assert (found.status, found.code) == (401, "missing_api_key")
    assert "x-api-key" in found.message


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + RAW), (b"x-api-key", OTHER_RAW)],
        [(b"authorization", b"Bearer " + RAW), (b"authorization", b"Bearer " + OTHER_RAW)],
        [(b"x-api-key", RAW), (b"x-api-key", OTHER_RAW)],
        [(b"authorization", b"Bearer ghp_x"), (b"x-api-key", RAW)],
        [(b"authorization", b"Bearer " + RAW), (b"x-api-key", RAW + b"A")],
    ],
)
def test_two_different_credentials_are_refused_before_either_is_looked_at(headers: Headers) -> None:
    """Which of them counts must not depend on who reads the request."""
    for order in (headers, headers[::-1]):
        found = find_credential(order)
        assert isinstance(found, Problem)
        assert (found.status, found.code) == (401, "ambiguous_credentials")


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"host"]), st.binary(max_size=80))))
def test_no_bytes_are_too_strange_and_none_of_them_come_back(headers: Headers) -> None:
    """A1, CVE-2026-42208: quotes, NUL, invalid UTF-8. What is handed on is a hash and a form, never the text."""
    found = find_credential(headers)
    assert find_credential(headers[::-1]) == found
    if isinstance(found, Credential):
        assert len(found.hash) == 64
        assert not isinstance(decide(found, None, NOW), KeyRecord)
        values = [value.strip(b" \t") for _, value in headers]
        assert all(value.decode("latin-1") not in attrs.astuple(found) for value in values if value)


def test_no_repr_shows_more_of_a_credential_than_its_prefix() -> None:
    shown = repr(ISSUED)
    assert hash_prefix(ISSUED.hash) in shown
    assert ISSUED.hash[:9] not in shown
    assert KEY not in shown


# What it looks like.


@pytest.mark.parametrize(
    "text",
    [
        KEY_PREFIX,
        KEY[:-1],
        KEY + "A",
        KEY[:-1] + "B",
        f"{KEY} {KEY}",
        f"{KEY},{KEY}",
        KEY + "'; DROP TABLE keys; --",
        KEY[:20] + "\0" + KEY[21:],
        KEY_PREFIX + key_hash(KEY),
        "x" * 1025,
        KEY_PREFIX + "A" * 10_000_000,
    ],
    ids=lambda text: text[:24].encode("unicode_escape").decode(),
)
def test_a_malformed_key_is_answered_like_an_unknown_one(text: str) -> None:
    credential = Credential.of(text)
    assert credential.form is CredentialForm.MALFORMED
    assert decide(credential, None, NOW) is INVALID_API_KEY


@pytest.mark.parametrize("token", ["ghp_0123456789", "gho_x", "eyJhbGciOi.eyJzdWIi.c2ln", "x" * 1024, KEY.upper()])
def test_somebody_elses_token_is_told_so_in_exactly_these_words(token: str) -> None:
    """spec.md 1.6, S10; without a look-up, and without the token."""
    answer = decide(Credential.of(token), None, NOW)
    assert answer == Problem(
        401,
        "invalid_api_key",
        "this proxy does not forward your GitHub token; use sk-cap-* key issued by this server",
    )
    assert answer is FOREIGN_TOKEN


def test_the_hash_of_a_key_is_no_key() -> None:
    """A2 (litellm GHSA-69x8): whoever reads the database cannot call with what stands there."""
    for text in (key_hash(KEY), KEY_PREFIX + key_hash(KEY), KEY_PREFIX + key_hash(KEY)[:52].upper()):
        credential = Credential.of(text)
        assert credential.form is not CredentialForm.ISSUED
        assert isinstance(decide(credential, RECORD, NOW), Problem)


# What it opens.


def test_an_active_key_opens() -> None:
    assert decide(ISSUED, RECORD, NOW) is RECORD


@pytest.mark.parametrize(
    ("credential", "record"),
    [
        (ISSUED, None),
        (ISSUED, attrs.evolve(RECORD, revoked_at=NOW)),
        (ISSUED, attrs.evolve(RECORD, revoked_at=NOW + 10**9)),
        (ISSUED, attrs.evolve(RECORD, expires_at=NOW)),
        (Credential.of(KEY + "A"), None),
        (Credential.of(KEY[:-1]), RECORD),
        (Credential(RECORD.hash, CredentialForm.MALFORMED), RECORD),
    ],
    ids=["unknown", "revoked", "revoked by a clock ahead", "expired", "too long", "too short", "malformed"],
)
def test_whatever_is_wrong_with_a_key_the_answer_is_the_same_to_the_byte(
    credential: Credential, record: KeyRecord | None
) -> None:
    """A3: nobody learns that a key once existed."""
    answer = decide(credential, record, NOW)
    assert answer is INVALID_API_KEY
    assert msgspec.json.encode(answer) == msgspec.json.encode(decide(ISSUED, None, NOW))
    assert (answer.status, answer.code) == (401, "invalid_api_key")


def test_ten_thousand_keys_that_begin_alike_are_never_mixed_up() -> None:
    """A4 (CVE-2026-35030: a cache that looked at the first 20 characters)."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    tails = (letters[n // 1024] + letters[n // 32 % 32] + letters[n % 32] for n in range(10_000))
    texts = [KEY_PREFIX + "A" * 48 + tail + "Q" for tail in tails]
    assert len({text[:50] for text in texts}) == 1
    records = {
        key_hash(text): attrs.evolve(RECORD, id=str(number), hash=key_hash(text)) for number, text in enumerate(texts)
    }
    assert len(records) == 10_000
    for number, text in enumerate(texts):
        found = find_credential([(b"x-api-key", text.encode())])
        assert isinstance(found, Credential)
        key = decide(found, records.get(found.hash), NOW)
        assert isinstance(key, KeyRecord)
        assert key.id == str(number)


def test_nothing_opens_as_the_key_that_is_not_there() -> None:
    """Not even a credential with the hash that stands in for it."""
    assert decide(Credential("0" * 64, CredentialForm.ISSUED), None, NOW) is INVALID_API_KEY
    assert decide(Credential("0" * 64, CredentialForm.ISSUED), None, -1) is INVALID_API_KEY


@given(st.integers(0, 63))
def test_a_look_up_that_mixes_keys_up_lets_nobody_in(digit: int) -> None:
    """`decide` compares the whole hashes itself, whichever digit differs."""
    wrong = ISSUED.hash[:digit] + ("0" if ISSUED.hash[digit] != "0" else "1") + ISSUED.hash[digit + 1 :]
    assert decide(ISSUED, attrs.evolve(RECORD, hash=wrong), NOW) is INVALID_API_KEY


# What else a caller may be told.


def test_the_wrong_tier_is_forbidden() -> None:
    assert (ADMIN_REQUIRED.status, ADMIN_REQUIRED.code) == (403, "admin_required")
