"""Who is asking: how a caller's credential is found and judged, and what a refused caller is told.

The same steps are taken whatever is wrong: `find_credential`, a look-up by the whole hash, `decide`. Unknown, revoked,
expired and malformed keys get one and the same answer, so that it tells nothing about the key that was tried:

    credential = find_credential(headers)
    if isinstance(credential, Problem): ...  # nothing to look up: refuse
    key = decide(credential, records.get(credential.hash), now_ms)
    if isinstance(key, Problem): ...  # refuse; the audit file may show hash_prefix(credential.hash)
"""

import enum
import hmac
import re
from collections.abc import Iterable
from typing import Final, Self

from attrs import field, frozen

from capi_core.errors import Problem
from capi_core.keys import KEY_PREFIX, KeyRecord, KeyState, Tier, is_well_formed, key_hash, shown_hash

__all__ = [
    "ADMIN_REQUIRED",
    "FOREIGN_TOKEN",
    "INVALID_API_KEY",
    "Credential",
    "CredentialForm",
    "decide",
    "find_credential",
]

_MAX_CREDENTIAL: Final = 1024  # characters; our keys have 59, other vendors' tokens seldom over a few hundred
_BEARER: Final = re.compile(r"bearer +(.*)", re.IGNORECASE | re.DOTALL)  # RFC 9110 section 11.4, RFC 6750 2.1
# Stands in for a key that is not there, so that its lack takes the same steps: no text has this hash, as far as anybody
# knows, and it was never valid.
_NOBODY: Final = KeyRecord(id="", hash="0" * 64, tier=Tier.CLIENT, label="", created_at=0, revoked_at=0)


class CredentialForm(enum.Enum):
    """What a presented credential looks like."""

    ISSUED = "issued"
    """One of our keys, as far as its text tells."""
    MALFORMED = "malformed"
    """Meant to be one of our keys, but cannot be; or longer than any token."""
    FOREIGN = "foreign"
    """Somebody else's token, sent to us by mistake."""


@frozen
class Credential:
    """A presented credential, without its text: what a look-up needs, and what the audit file may show."""

    hash: str = field(repr=shown_hash)
    form: CredentialForm

    @classmethod
    def of(cls, text: str) -> Self:
        """Classifies any text. The hash is always made, so that a malformed key costs what an unknown one does."""
        if len(text) > _MAX_CREDENTIAL or (text.startswith(KEY_PREFIX) and not is_well_formed(text)):
            form = CredentialForm.MALFORMED
        else:
            form = CredentialForm.ISSUED if text.startswith(KEY_PREFIX) else CredentialForm.FOREIGN
        return cls(key_hash(text), form)


INVALID_API_KEY: Final = Problem(
    401,
    "invalid_api_key",
    "this key is unknown, revoked, expired or mistyped; ask the operator for another",
)
FOREIGN_TOKEN: Final = Problem(
    401,
    "invalid_api_key",
    "this proxy does not forward your GitHub token; use sk-cap-* key issued by this server",
)
ADMIN_REQUIRED: Final = Problem(403, "admin_required", "this needs a key of the admin tier")
_MISSING: Final = Problem(
    401,
    "missing_api_key",
    f"no API key was sent; send it as `Authorization: Bearer {KEY_PREFIX}...` or `x-api-key: {KEY_PREFIX}...`",
)
_AMBIGUOUS: Final = Problem(
    401,
    "ambiguous_credentials",
    "two different API keys were sent; send one, as `Authorization: Bearer` or as `x-api-key`",
)


def find_credential(headers: Iterable[tuple[bytes, bytes]]) -> Credential | Problem:
    """What the caller presents: `Authorization: Bearer ...` (scheme in any case) or `x-api-key: ...`.

    `headers` are (name, value) pairs in any order and case. The same credential in several places counts once. Other
    authorization schemes and empty values are no credential. The problems: none at all, or two that differ.
    """
    found = {text for name, value in headers if (text := _presented(name.lower(), value))}
    if not found:
        return _MISSING
    if len(found) > 1:
        return _AMBIGUOUS
    return Credential.of(found.pop())


def _presented(name: bytes, value: bytes) -> str:
    if name not in (b"authorization", b"x-api-key"):
        return ""
    text = value.decode("latin-1").strip(" \t")
    if name == b"x-api-key":
        return text
    bearer = _BEARER.fullmatch(text)
    return bearer[1] if bearer else ""


def decide(credential: Credential, record: KeyRecord | None, now_ms: int) -> KeyRecord | Problem:
    """The key that the caller holds, or why there is none. `record`: what the look-up by `credential.hash` gave.

    The whole hashes are compared again, in constant time: a look-up that mixes keys up must not let anybody in.
    """
    if credential.form is CredentialForm.FOREIGN:
        return FOREIGN_TOKEN
    candidate = _NOBODY if record is None else record
    same = hmac.compare_digest(candidate.hash, credential.hash)
    active = candidate.state(now_ms) is KeyState.ACTIVE
    issued = credential.form is CredentialForm.ISSUED
    return candidate if same and active and issued else INVALID_API_KEY
