"""Invariant: any header fields are one credential or a refusal, and no text opens anything but the key that it is.

The answer does not depend on the order of the fields, takes nothing over from them but a hash, and each refusal is one
of the few that are known. An input is header fields, one a line.
"""

import attrs

from capi_core.credentials import (
    FOREIGN_TOKEN,
    INVALID_API_KEY,
    Credential,
    CredentialForm,
    decide,
    find_credential,
)
from capi_core.errors import Problem
from capi_core.keys import KEY_PREFIX, KeyRecord, Tier, format_key, is_well_formed, key_hash, mask_keys

__all__ = ["test_one_input"]

NOW = 1_800_000_000_000
KEY = format_key(bytes(range(32)))  # the corpus holds it
RECORD = KeyRecord(id="k1", hash=key_hash(KEY), tier=Tier.CLIENT, label="a laptop", created_at=NOW)


def fields(data: bytes) -> list[tuple[bytes, bytes]]:
    parts = (line.partition(b":") for line in data.split(b"\n"))
    return [(name, value) for name, _, value in parts]


def check_credential(found: Credential, headers: list[tuple[bytes, bytes]]) -> None:
    texts = [value.decode("latin-1").strip(" \t") for _, value in headers]
    texts += [text.partition(" ")[2].lstrip(" ") for text in texts]
    (text,) = {text for text in texts if key_hash(text) == found.hash}
    assert (found.form is CredentialForm.ISSUED) == is_well_formed(text)
    # Even if the look-up mixed this credential up with another.
    answer = decide(found, RECORD, NOW)
    if text == KEY:
        assert answer is RECORD
        assert decide(found, attrs.evolve(RECORD, revoked_at=NOW), NOW) is INVALID_API_KEY
    else:
        assert answer is (FOREIGN_TOKEN if found.form is CredentialForm.FOREIGN else INVALID_API_KEY)
        assert decide(found, None, NOW) is answer


def test_one_input(data: bytes) -> None:
    headers = fields(data)
    found = find_credential(headers)
    assert find_credential(headers[::-1]) == found
    if isinstance(found, Problem):
        assert found.code in ("missing_api_key", "ambiguous_credentials")
    else:
        check_credential(found, headers)
    masked = mask_keys(data.decode("latin-1"))
    assert KEY_PREFIX not in masked
    assert mask_keys(masked) == masked
