"""The audit file: one line for each change, each line bound to the one before it.

A line is a JSON object in printable ASCII. Its last member, `hash`, is the SHA-256 of the line without that member;
its last but one, `prev`, is the hash of the line before. Numbers (`seq`) have no gaps. So nothing can be altered,
dropped or moved without breaking the chain, except at its end: against lines cut off there, and against somebody who
makes the whole chain anew, remember the last link elsewhere and give it to `verify` as `until`.

Hashes are over bytes as they stand in the file: nothing has to be written the same way twice to be checked.

What comes from outside (user agents, labels, reasons) can neither break a line, nor speak to a terminal, nor make a
line longer than `MAX_LINE_BYTES`, nor leave a key's text in the file.
"""

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Final

import msgspec
from attrs import Attribute, field, frozen

from capi_core.errors import LocalError
from capi_core.keys import mask_keys

__all__ = [
    "GENESIS",
    "MAX_LINE_BYTES",
    "START",
    "Action",
    "AuditDraft",
    "AuditEntry",
    "Fault",
    "Link",
    "Verdict",
    "day_of",
    "encode_line",
    "file_name",
    "line_hash",
    "link_of",
    "repair_tail",
    "verify",
]

GENESIS: Final = "0" * 64
"""What the first line of all has in the place of its predecessor's hash."""
MAX_LINE_BYTES: Final = 64 * 1024
"""No encoded line is longer."""

# Characters: of what an entry may hold, enough to tell what happened. An escaped one takes up to 12 bytes in the line.
_MAX_ID: Final = 64
_MAX_TARGET: Final = 256
_MAX_USER_AGENT: Final = 256
_MAX_REASON: Final = 500
_MAX_STATE: Final = 8 * 1024  # bytes of JSON before or after the change
_MAX_STATE_TEXT: Final = 1000  # what is shown of one that is longer, or no JSON

_MAX_TS: Final = 253_402_300_799_999  # the last millisecond of the year 9999
_MS_PER_DAY: Final = 24 * 3600 * 1000
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SEAL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}\n')
_SEAL_BYTES: Final = 76
_FILE_NAME: Final = re.compile(r"audit-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl")


class Action(enum.Enum):
    """Everything that is audited."""

    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    KEY_ROTATE = "key.rotate"
    KEY_EDIT = "key.edit"
    KEY_SCOPE_CHANGE = "key.scope_change"
    KEY_RATE_LIMIT_OVERRIDE_CHANGE = "key.rate_limit_override_change"
    KEY_DEBUG_TOGGLE = "key.debug_toggle"
    IDENTITY_ADD = "identity.add"
    IDENTITY_LINK = "identity.link"
    IDENTITY_REMOVE = "identity.remove"
    IDENTITY_EDIT = "identity.edit"
    IDENTITY_PAUSE = "identity.pause"
    IDENTITY_RESUME = "identity.resume"
    IDENTITY_STOP = "identity.stop"
    IDENTITY_SHARE = "identity.share"
    IDENTITY_UNSHARE = "identity.unshare"
    CONFIG_EDIT = "config.edit"
    CONFIG_RELOAD = "config.reload"
    AUTH_BOOTSTRAP = "auth.bootstrap"
    AUTH_RECOVER = "auth.recover"
    AUTH_REJECT = "auth.reject"
    SERVER_START = "server.start"
    SERVER_START_NO_AUTH = "server.start_no_auth"
    BACKUP_CREATE = "backup.create"


def _has_a_date(_: object, __: "Attribute[int]", ts: int) -> None:
    if not 0 <= ts <= _MAX_TS:
        raise LocalError("an audit row needs a time from 1970 to 9999")


@frozen(kw_only=True)
class AuditDraft:
    """What one change leaves in the audit file, before it has a number. `ts` is in ms since the epoch, UTC.

    `before` and `after` are JSON texts of what was changed. No actor: nobody who holds a key (the command line, the
    server itself, a refused caller). Everything is cut to its limit when it is written. Raises `LocalError` when `ts`
    is not within the years 1970 to 9999, for which there are file names.
    """

    ts: int = field(validator=_has_a_date)
    action: Action
    target: str
    actor_key_id: str | None = None
    actor_tier: str | None = None
    before: str | None = None
    after: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    reason: str | None = None


@frozen(kw_only=True)
class AuditEntry(AuditDraft):
    """One change with its number: `seq` counts from 1 without gaps."""

    seq: int


@frozen
class Link:
    """Where a chain has got to: number and hash of a line."""

    seq: int
    hash: str


START: Final = Link(0, GENESIS)
"""Before the first line of all."""


def encode_line(entry: AuditEntry, previous_hash: str) -> bytes:
    """The entry as a line, line end included. `previous_hash`: `line_hash` of the line before, or `GENESIS`.

    Whatever the entry's texts hold, there is a line for it: a change that was made must not lack one. Members without
    a value are left out, except the actor's. Raises `LocalError` when `previous_hash` is no hash.
    """
    if not _HASH.fullmatch(previous_hash):
        raise LocalError("a line follows the hash of another, or GENESIS")
    members: dict[str, object] = {
        "seq": entry.seq,
        "ts": entry.ts,
        "actor_key_id": _capped(entry.actor_key_id, _MAX_ID),
        "actor_tier": _capped(entry.actor_tier, _MAX_ID),
        "action": entry.action.value,
        "target": _capped(entry.target, _MAX_TARGET),
    }
    for name, state in (("before", entry.before), ("after", entry.after)):
        if state is not None:
            members[name] = _embedded(state)
    for name, text, limit in (
        ("ip", entry.ip, _MAX_ID),
        ("user_agent", entry.user_agent, _MAX_USER_AGENT),
        ("reason", entry.reason, _MAX_REASON),
    ):
        if text is not None:
            members[name] = _capped(text, limit)
    members["prev"] = previous_hash
    unsealed = mask_keys(_printable_json(members)).encode("ascii")
    return unsealed[:-1] + b',"hash":"%b"}\n' % hashlib.sha256(unsealed).hexdigest().encode("ascii")


def line_hash(line: bytes) -> str:
    """The hash that an encoded line ends with. Raises `LocalError` for anything else."""
    seal = _SEAL.fullmatch(line[-_SEAL_BYTES:])
    if seal is None:
        raise LocalError("this is no line of an audit file")
    return seal[1].decode("ascii")


def _printable_json(value: object) -> str:
    """JSON in one line of printable ASCII: json escapes all but DEL, which can only stand inside a string."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f")


def _capped(text: str | None, limit: int) -> str | None:
    """At most `limit` characters and a note of how many are missing, without unpaired surrogates."""
    if text is None:
        return None
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole if len(whole) <= limit else f"{whole[:limit]}... ({len(whole) - limit} more)"


def _embedded(text: str) -> object:
    """What a JSON text says, read and written anew so that it is one JSON value and no more.

    One that is too long, and one that is no JSON, is kept as the beginning of its text.
    """
    try:
        value: object = msgspec.json.decode(text)
        text = _printable_json(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _capped(text, _MAX_STATE_TEXT)
    return value if len(text) <= _MAX_STATE else _capped(text, _MAX_STATE_TEXT)


class Fault(enum.Enum):
    """Why a chain does not hold at a line."""

    ALTERED = "altered"
    """This line, or the one before it, is not as it was written."""
    DROPPED = "dropped"
    """Lines are missing before this one."""
    REORDERED = "reordered"
    """Lines are in the wrong order here, or one is there twice."""
    TORN_TAIL = "torn tail"
    """The last line has no end: the process died while writing it. Everything before it holds."""


@frozen
class Verdict:
    """How far a chain holds. `fault is None`: all of it.

    `line`: the first line that does not fit, counted from 1. `last`: the last link that holds, `None` if there is none.
    """

    fault: Fault | None
    line: int | None
    last: Link | None

    @property
    def ok(self) -> bool:
        return self.fault is None


def verify(lines: Iterable[bytes], *, after: Link | None = START, until: Link | None = None) -> Verdict:
    """Follows the chain through `lines`, each with its line end, of one file or of all files by date.

    `after`: the link that the first line follows; `None` takes the first line's word for it, for when older files are
    gone by retention. `until`: a link known to have been written; without it, lines missing at the end go unseen.
    """
    last, number, torn = after, 0, False
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if torn:  # a line end was taken out
            return Verdict(Fault.ALTERED, number - 1, last)
        if not line.endswith(b"\n"):
            torn = True
            continue
        sealed = _unseal(line)
        fault = Fault.ALTERED if sealed is None else _fault(sealed, last, until)
        if sealed is None or fault is not None:
            if last is not None and fault is Fault.DROPPED and _appears(last.seq + 1, numbered):
                fault = Fault.REORDERED
            return Verdict(fault, number, last)
        last = sealed.link
    if until is not None and (last is None or last.seq < until.seq):
        return Verdict(Fault.DROPPED, number + (not torn), last)
    return Verdict(Fault.TORN_TAIL, number, last) if torn else Verdict(None, None, last)


def link_of(line: bytes) -> Link | None:
    """The link that a whole line is, or `None` if its hash does not hold. The lines around it are not looked at."""
    sealed = _unseal(line)
    return None if sealed is None else sealed.link


@frozen
class _Sealed:
    """What a line says about its place in the chain; its hash holds."""

    link: Link
    prev: str


class _Place(msgspec.Struct):
    seq: int
    prev: str


_PLACE: Final = msgspec.json.Decoder(_Place)


def _unseal(line: bytes) -> _Sealed | None:
    seal = _SEAL.fullmatch(line[-_SEAL_BYTES:])
    if seal is None:
        return None
    unsealed = line[:-_SEAL_BYTES] + b"}"
    found = seal[1].decode("ascii")
    if hashlib.sha256(unsealed).hexdigest() != found:
        return None
    try:
        place = _PLACE.decode(unsealed)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return _Sealed(Link(place.seq, found), place.prev)


def _fault(sealed: _Sealed, last: Link | None, until: Link | None) -> Fault | None:
    """Whether a line fits behind the link `last`."""
    if last is not None:
        if sealed.link.seq > last.seq + 1:
            return Fault.DROPPED
        if sealed.link.seq <= last.seq:
            return Fault.REORDERED
        if sealed.prev != last.hash:
            return Fault.ALTERED
    if until is not None and sealed.link.seq == until.seq and sealed.link != until:
        return Fault.ALTERED
    return None


def _appears(seq: int, numbered: Iterator[tuple[int, bytes]]) -> bool:
    """Whether the missing line comes later."""
    return any(link.seq == seq for _, line in numbered if (link := link_of(line)) is not None)


def repair_tail(data: bytes) -> int:
    """Up to where the end of a file, or a whole one, holds whole lines: cut it there before anything is appended.

    A write that was cut short leaves a line without its end. A loss of power can also leave blocks of NUL where a line
    was to be: no line that was ever acknowledged holds NUL, so such lines at the end are none.
    """
    end = data.rfind(b"\n") + 1
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if b"\0" not in data[start:end]:
            break
        end = start
    return end


def file_name(ts: int) -> str:
    """The file that an entry of this time goes to: `audit-YYYY-MM-DD.jsonl`, by the date in UTC.

    Raises `LocalError` for a time outside the years 1 to 9999.
    """
    try:
        day = date(1970, 1, 1) + timedelta(days=ts // _MS_PER_DAY)
    except OverflowError as error:
        raise LocalError("this time has no date") from error
    return f"audit-{day.isoformat()}.jsonl"


def day_of(name: str) -> date | None:
    """The day that a file's name says, or `None` if it is no audit file's: nothing else is ever opened or deleted."""
    found = _FILE_NAME.fullmatch(name)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:  # there is no such day
        return None
