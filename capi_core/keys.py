"""Keys: their text, what is kept of them, what an operator may choose about them, and what they allow.

The text of a key is seen once, by whoever it was made for. Kept and looked up is its SHA-256: 256 random bits need no
slow hash. Logs and the audit file show the first eight digits of that (`hash_prefix`), and no `repr` here shows more.

Times are integer milliseconds since the epoch, UTC, passed in. So are random bytes.
"""

import base64
import enum
import hashlib
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Self, TypeVar

from attrs import evolve, field, frozen

from capi_core.errors import LocalError

__all__ = [
    "DEBUG_MAX_MS",
    "KEY_PREFIX",
    "UNCHANGED",
    "Budget",
    "BudgetPeriod",
    "BudgetUnit",
    "FieldProblem",
    "KeyDraft",
    "KeyEdit",
    "KeyRecord",
    "KeyState",
    "Tier",
    "Unchanged",
    "changed",
    "effective_rpm",
    "format_key",
    "hash_prefix",
    "is_well_formed",
    "key_hash",
    "mask_keys",
    "may_call",
    "shown_hash",
    "text_fault",
    "validate",
]

KEY_PREFIX: Final = "sk-cap-"
DEBUG_MAX_MS: Final = 24 * 3600 * 1000
"""Debug capture of a key ends by itself after at most this long; it can be renewed."""

_RANDOM_BYTES: Final = 32
# 32 bytes are 51 letters of 5 bits and one that carries 1 bit: A or Q.
_KEY: Final = re.compile(r"sk-cap-[A-Z2-7]{51}[AQ]")
_KEY_LIKE: Final = re.compile(r"sk-cap-[A-Za-z0-9]*")
_PREFIX_DIGITS: Final = 8
_ALL: Final = "*"
_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,127}")
_MAX_MODELS: Final = 256
_MAX_TEXT: Final = 100
_MAX_RATE_FACTOR: Final = 10
_MAX_AMOUNT: Final = 10**15  # tokens or micro-units; exact in every JSON reader
_MAX_TIME_MS: Final = 253_402_300_799_999  # the last millisecond of the year 9999


# The text of a key.


def format_key(random: bytes) -> str:
    """A new key: the prefix and 52 letters of unpadded base32 (RFC 4648 section 6).

    `random`: exactly 32 bytes from a cryptographic source. Raises `LocalError` otherwise.
    """
    if len(random) != _RANDOM_BYTES:
        raise LocalError(f"a key is made of {_RANDOM_BYTES} random bytes")
    return KEY_PREFIX + base64.b32encode(random).decode("ascii").rstrip("=")


def is_well_formed(text: str) -> bool:
    """Whether `format_key` can have made this text."""
    return _KEY.fullmatch(text) is not None


def key_hash(text: str) -> str:
    """SHA-256 of the whole text, prefix included: 64 hexadecimal digits. Any text has one."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_prefix(hash: str) -> str:
    """The part of a hash that logs and the audit file may show: tells keys apart, and is of no use otherwise."""
    return hash[:_PREFIX_DIGITS]


def shown_hash(hash: str) -> str:
    """For attrs' `field(repr=...)`: the prefix, as a text that is seen to go on."""
    return f"'{hash_prefix(hash)}...'"


def mask_keys(text: str) -> str:
    """The text with everything that looks like a key, or like the start of one, replaced by its hash prefix.

    For JSON text too: neither what is replaced nor what it is replaced by holds a character that JSON escapes.
    """
    return _KEY_LIKE.sub(lambda found: f"[key sha256:{hash_prefix(key_hash(found[0]))}]", text)


# What is kept of a key.


class Tier(enum.Enum):
    """What a key is for. Never changes."""

    ADMIN = "admin"
    CLIENT = "client"


class KeyState(enum.Enum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class BudgetPeriod(enum.Enum):
    """How often a budget starts anew: at midnight UTC, or with the first of the month UTC."""

    DAY = "day"
    MONTH = "month"


class BudgetUnit(enum.Enum):
    """What a budget counts: tokens, or millionths of the currency of the price list."""

    TOKENS = "tokens"
    MONEY = "money"


@frozen
class Budget:
    """At most `amount` of `unit` in each `period`."""

    unit: BudgetUnit
    amount: int
    period: BudgetPeriod

    def window(self, now_ms: int) -> tuple[int, int]:
        """The period that `now_ms` lies in: its first millisecond, and the first one after it."""
        start = datetime.fromtimestamp(now_ms // 1000, UTC).replace(hour=0, minute=0, second=0)
        if self.period is BudgetPeriod.MONTH:
            start = start.replace(day=1)
            end = (start + timedelta(days=31)).replace(day=1)
        else:
            end = start + timedelta(days=1)
        return int(start.timestamp()) * 1000, int(end.timestamp()) * 1000


def _override(rpm: int | None) -> int | None:
    """0 and less mean the default, never "unlimited"."""
    return rpm if rpm is not None and rpm > 0 else None


@frozen(kw_only=True)
class KeyRecord:
    """A key as it is stored. `rate_limit_override` is in requests per minute, `None` for the default.

    `expires_at` and `debug_expires_at` are the first instants at which the key, or the capture, is over.
    `rotated_from` is the id of the key that this one took the place of. The model list `("*",)` means all.
    """

    id: str
    hash: str = field(repr=shown_hash)
    tier: Tier
    label: str
    owner: str | None = None
    identity: str | None = None
    allowed_models: tuple[str, ...] = (_ALL,)
    rate_limit_override: int | None = field(default=None, converter=_override)
    budget: Budget | None = None
    expires_at: int | None = None
    debug_expires_at: int | None = None
    created_at: int
    revoked_at: int | None = None
    rotated_from: str | None = None

    def state(self, now_ms: int) -> KeyState:
        """Revoked is for good: whenever it was, also when the clock has since been set back."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now_ms:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    def captures(self, now_ms: int) -> bool:
        """Whether debug capture is on: asked for, not over, and the key itself still valid."""
        asked = self.debug_expires_at is not None and now_ms < self.debug_expires_at
        return asked and self.state(now_ms) is KeyState.ACTIVE

    def rotated_out(self, now_ms: int, grace_ms: int) -> Self:
        """This key after another took its place: it works for `grace_ms` more, never longer than it would have."""
        end = now_ms + max(grace_ms, 0)
        return evolve(self, expires_at=end if self.expires_at is None else min(end, self.expires_at))


# What an operator chooses about a key.


class Unchanged(enum.Enum):
    """Its one member marks what an edit leaves alone; `None` is a value."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
_T = TypeVar("_T")


@frozen(kw_only=True)
class KeyDraft:
    """What the creator of a key chooses. Only what passes `validate` may become a record."""

    label: str
    tier: Tier = Tier.CLIENT
    owner: str | None = None
    identity: str | None = None
    allowed_models: Sequence[str] = (_ALL,)
    rate_limit_override: int | None = None
    budget: Budget | None = None
    expires_at: int | None = None

    def record(self, *, id: str, hash: str, now_ms: int, rotated_from: str | None = None) -> KeyRecord:
        """The record of a new key with this draft's choices."""
        return KeyRecord(
            id=id,
            hash=hash,
            tier=self.tier,
            label=self.label,
            owner=self.owner,
            identity=self.identity,
            allowed_models=tuple(self.allowed_models),
            rate_limit_override=self.rate_limit_override,
            budget=self.budget,
            expires_at=self.expires_at,
            created_at=now_ms,
            rotated_from=rotated_from,
        )


@frozen(kw_only=True)
class KeyEdit:
    """Changes to a key. What is not here (tier, hash, dates of creation and revocation) never changes by an edit."""

    label: str | Unchanged = UNCHANGED
    owner: str | Unchanged | None = UNCHANGED
    identity: str | Unchanged | None = UNCHANGED
    allowed_models: Sequence[str] | Unchanged = UNCHANGED
    rate_limit_override: int | Unchanged | None = UNCHANGED
    budget: Budget | Unchanged | None = UNCHANGED
    expires_at: int | Unchanged | None = UNCHANGED
    debug_expires_at: int | Unchanged | None = UNCHANGED

    def apply(self, record: KeyRecord) -> KeyRecord:
        """The record with the changes made."""
        return evolve(
            record,
            label=changed(self.label, record.label),
            owner=changed(self.owner, record.owner),
            identity=changed(self.identity, record.identity),
            allowed_models=tuple(changed(self.allowed_models, record.allowed_models)),
            rate_limit_override=changed(self.rate_limit_override, record.rate_limit_override),
            budget=changed(self.budget, record.budget),
            expires_at=changed(self.expires_at, record.expires_at),
            debug_expires_at=changed(self.debug_expires_at, record.debug_expires_at),
        )


def changed(value: _T | Unchanged, old: _T) -> _T:
    """What an edit makes of `old`."""
    return old if isinstance(value, Unchanged) else value


@frozen
class FieldProblem:
    """One choice that cannot be: `field` is its name in `KeyDraft` or `KeyEdit`."""

    field: str
    message: str


def validate(chosen: KeyDraft | KeyEdit, *, default_rpm: int, now_ms: int) -> tuple[FieldProblem, ...]:
    """Everything that is wrong with a draft or an edit; empty when nothing is. `default_rpm`: requests per minute."""
    faults = {
        "label": text_fault(chosen.label),
        "owner": text_fault(chosen.owner),
        "identity": text_fault(chosen.identity),
        "allowed_models": _models_fault(chosen.allowed_models),
        "rate_limit_override": _rate_fault(chosen.rate_limit_override, default_rpm * _MAX_RATE_FACTOR),
        "budget": _budget_fault(chosen.budget),
        "expires_at": _time_fault(chosen.expires_at, now_ms, _MAX_TIME_MS),
    }
    if isinstance(chosen, KeyEdit):
        faults["debug_expires_at"] = _time_fault(chosen.debug_expires_at, now_ms, now_ms + DEBUG_MAX_MS)
    return tuple(FieldProblem(name, message) for name, message in faults.items() if message is not None)


def text_fault(text: str | Unchanged | None, most: int = _MAX_TEXT) -> str | None:
    """What is wrong with a text that an operator types, of at most so many characters; `None`: nothing, or no text."""
    if text is None or isinstance(text, Unchanged):
        return None
    if not text.strip():
        return "must not be empty"
    if len(text) > most:
        return f"has more than {most} characters"
    if not text.isprintable() or text != text.strip():
        return "must be printable characters on one line, without spaces around them"
    if KEY_PREFIX in text:
        return "must not hold a key: what is typed here is stored and shown as it is"
    return None


def _models_fault(names: Sequence[str] | Unchanged) -> str | None:
    if isinstance(names, Unchanged):
        return None
    if isinstance(names, str):  # a sequence of its letters: "*" would pass for ["*"]
        return "must be a list of model names, not one text"
    if not names:
        return 'must name at least one model; ["*"] means all'
    if _ALL in names and len(names) > 1:
        return '"*" means all models and stands alone'
    if len(names) > _MAX_MODELS:
        return f"has more than {_MAX_MODELS} names"
    if not all(name == _ALL or _MODEL_NAME.fullmatch(name) for name in names):
        return "a model name has 1 to 128 letters, digits and _.:/@+- and starts with a letter, a digit or _"
    return None


def _rate_fault(rpm: int | Unchanged | None, most: int) -> str | None:
    if rpm is None or isinstance(rpm, Unchanged) or rpm <= most:
        return None
    return f"is more than {_MAX_RATE_FACTOR} times the default: at most {most} requests per minute"


def _budget_fault(budget: Budget | Unchanged | None) -> str | None:
    if budget is None or isinstance(budget, Unchanged) or 1 <= budget.amount <= _MAX_AMOUNT:
        return None
    return f"must be from 1 to {_MAX_AMOUNT}; to let nothing through, revoke the key"


def _time_fault(instant: int | Unchanged | None, now_ms: int, last: int) -> str | None:
    if instant is None or isinstance(instant, Unchanged) or now_ms < instant <= last:
        return None
    return "must lie in the future" if instant <= now_ms else "is too far in the future"


# What a key allows.


def may_call(record: KeyRecord, alias_name: str, alias_allowed_keys: Collection[str]) -> bool:
    """Whether the key admits the alias and the alias admits the key. `alias_name`: the one that is really called,
    after any default took the place of an unknown name. `alias_allowed_keys`: ids of keys, or `"*"`.
    """
    return _admits(record.allowed_models, alias_name) and _admits(alias_allowed_keys, record.id)


def _admits(names: Collection[str], name: str) -> bool:
    """Fails closed on a text in a list's place, in which "*" or any part of the text would be found."""
    return not isinstance(names, str) and (_ALL in names or name in names)


def effective_rpm(record: KeyRecord, default_rpm: int) -> int:
    """Requests per minute for this key. The cap holds also when the default was lowered after the override was set."""
    if record.rate_limit_override is None:
        return default_rpm
    return min(record.rate_limit_override, default_rpm * _MAX_RATE_FACTOR)
