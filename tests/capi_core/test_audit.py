"""The audit file: any change has its line, no text breaks one, and what was done to the file shows."""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.audit import (
    GENESIS,
    MAX_LINE_BYTES,
    START,
    Action,
    AuditEntry,
    Fault,
    Link,
    Verdict,
    day_of,
    encode_line,
    file_name,
    line_hash,
    link_of,
    repair_tail,
    verify,
)
from capi_core.errors import LocalError
from capi_core.keys import format_key, hash_prefix, key_hash

NOW = 1_800_000_000_000
KEY = format_key(bytes(range(32)))
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=40)  # surrogates and control characters too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
TEXT_FIELDS = ("actor_key_id", "actor_tier", "target", "before", "after", "ip", "user_agent", "reason")


def entry(seq: int = 1, texts: Mapping[str, str | None] | None = None) -> AuditEntry:
    """A plain entry, with some of its texts replaced."""
    values: dict[str, str | None] = {"actor_key_id": "k1", "actor_tier": "admin", "target": "key k2", **(texts or {})}
    target = values.pop("target") or ""
    return AuditEntry(seq=seq, ts=NOW, action=Action.KEY_CREATE, target=target, **values)


def chain(length: int, after: Link = START) -> list[bytes]:
    """So many lines that follow a link."""
    lines = []
    for seq in range(after.seq + 1, after.seq + 1 + length):
        lines.append(encode_line(entry(seq, {"reason": f"number {seq}"}), after.hash))
        after = Link(seq, line_hash(lines[-1]))
    return lines


def link(line: bytes) -> Link:
    found = link_of(line)
    assert found is not None
    return found


def check_line(line: bytes) -> None:
    """One JSON object of printable ASCII on one line, that a parser of another make can read, of bounded length."""
    assert line.endswith(b"}\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert len(line) <= MAX_LINE_BYTES
    assert b"sk-cap-" not in line
    assert isinstance(json.loads(line), dict)
    json.dumps(json.loads(line), ensure_ascii=False).encode()  # no unpaired surrogate: it could not be encoded


# One line.


def test_a_line_holds_what_happened_its_predecessors_hash_and_its_own() -> None:
    full = AuditEntry(
        seq=1,
        ts=NOW,
        actor_key_id="k1",
        actor_tier="admin",
        action=Action.KEY_RATE_LIMIT_OVERRIDE_CHANGE,
        target="key k2",
        before='{"rate_limit_override": null}',
        after='{"rate_limit_override": 5}',
        ip="127.0.0.1",
        user_agent="curl/8",
        reason="too slow",
    )
    line = encode_line(full, GENESIS)
    assert list(json.loads(line).items())[:-1] == [
        ("seq", 1),
        ("ts", NOW),
        ("actor_key_id", "k1"),
        ("actor_tier", "admin"),
        ("action", "key.rate_limit_override_change"),
        ("target", "key k2"),
        ("before", {"rate_limit_override": None}),
        ("after", {"rate_limit_override": 5}),
        ("ip", "127.0.0.1"),
        ("user_agent", "curl/8"),
        ("reason", "too slow"),
        ("prev", GENESIS),
    ]
    assert json.loads(line)["hash"] == line_hash(line)


def test_the_hash_is_what_sha256sum_gives_for_the_line_without_it() -> None:
    """Pinned, from another implementation: a change would make every file that was written look altered."""
    line = encode_line(AuditEntry(seq=1, ts=0, action=Action.SERVER_START, target=""), GENESIS)
    assert line == (
        b'{"seq":1,"ts":0,"actor_key_id":null,"actor_tier":null,"action":"server.start","target":"","prev":"'
        + b"0" * 64
        + b'","hash":"546652671bb47e0a507346dc72ff4c1839158207ce297a8922a1864ebd608553"}\n'
    )


def test_nobody_is_an_actor_too_and_other_members_are_left_out() -> None:
    told = json.loads(encode_line(entry(texts={"actor_key_id": None, "actor_tier": None}), GENESIS))
    assert (told["actor_key_id"], told["actor_tier"]) == (None, None)
    assert told.keys() == {"seq", "ts", "actor_key_id", "actor_tier", "action", "target", "prev", "hash"}


def test_the_actions_of_the_specification_are_there() -> None:
    """spec.md 1.7."""
    wanted = """
        key.create key.revoke key.scope_change key.debug_toggle key.rate_limit_override_change config.edit
        auth.bootstrap auth.recover auth.reject server.start_no_auth
    """
    assert set(wanted.split()) <= {action.value for action in Action}


@given(st.fixed_dictionaries(dict.fromkeys(TEXT_FIELDS, TEXTS)))
def test_no_text_breaks_a_line(texts: dict[str, str]) -> None:
    line = encode_line(entry(texts=texts), GENESIS)
    check_line(line)
    assert verify([line]).ok


HOSTILE = [
    "\n",
    "\r\n",
    "\0",
    "\x1b[2J\x1b]0;owned\x07",
    "\x7f",
    "\x9b31m",
    "\u2028\u2029",
    "\u202egpj.exe",
    "\ufeff",
    "\ud800",
    "\udc00\ud800",
    "\U0001f600",
    "\ud83d\ude00",
    '"',
    "\\",
    '","hash":"' + "0" * 64 + '"}\n',
    '"}\n{"seq":2}\n',
    "</script><script>alert(1)</script>",
    "=HYPERLINK(0)",
    "{{7*7}}",
    "%0a%00",
    KEY,
    "sk-cap-",
    "sk-cap-sk-cap-" + KEY,
    "x" * 100_000,
    "\U0001f600" * 100_000,
    "\n" * 100_000,
    (KEY + "\n") * 1000,
    "null",
    "[" * 100_000,
    "[" * 500 + "]" * 500,
    '{"a":' * 900 + "1" + "}" * 900,
    "NaN",
    "1e999",
    "9" * 5000,
    '"\\ud800"',
    '{"a":1,"a":2}',
    '1,"hash":"x"',
    json.dumps([KEY, {KEY: KEY}]),
    json.dumps(["\U0001f600"] * 50_000),
    json.dumps(KEY).replace("-", "\\u002d"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_strings_in_every_field(text: str) -> None:
    """F5, and A1: a search for keys in the audit file finds none, wherever a caller wrote one."""
    for name in TEXT_FIELDS:
        line = encode_line(entry(texts={name: text}), GENESIS)
        check_line(line)
        assert verify([line]).ok
    line = encode_line(entry(texts=dict.fromkeys(TEXT_FIELDS, text)), GENESIS)
    check_line(line)


@given(st.lists(st.sampled_from([*HOSTILE[:24], "a", " "]), max_size=6), st.sampled_from(TEXT_FIELDS))
def test_hostile_strings_in_a_row(parts: list[str], name: str) -> None:
    check_line(encode_line(entry(texts={name: "".join(parts)}), GENESIS))


@given(JSON)
def test_states_are_kept_as_the_json_that_they_are(value: object) -> None:
    """Also when they hold another line's seal: they are read and written anew, never pasted in."""
    text = json.dumps(value)
    told = json.loads(encode_line(entry(texts={"before": text, "after": text}), GENESIS))
    if "\\ud" not in text:  # with halves of characters it is no JSON that everybody reads, and kept as a text
        assert told["before"] == told["after"] == value


def test_a_state_that_is_no_json_is_kept_as_a_text() -> None:
    """A change that was made must not lack its line for that."""
    told = json.loads(encode_line(entry(texts={"before": '1,"seq":7', "after": ""}), GENESIS))
    assert (told["before"], told["after"], told["seq"]) == ('1,"seq":7', "", 1)


def test_null_is_a_state() -> None:
    assert json.loads(encode_line(entry(texts={"after": "null"}), GENESIS))["after"] is None


@pytest.mark.parametrize(
    ("name", "limit"), [("target", 256), ("user_agent", 256), ("reason", 500), ("ip", 64), ("actor_key_id", 64)]
)
def test_a_text_is_cut_and_says_how_much_is_missing(name: str, limit: int) -> None:
    for length in (limit - 1, limit):
        assert json.loads(encode_line(entry(texts={name: "x" * length}), GENESIS))[name] == "x" * length
    told = json.loads(encode_line(entry(texts={name: "x" * (limit + 7)}), GENESIS))[name]
    assert told == "x" * limit + "... (7 more)"


def test_a_long_state_is_cut_too() -> None:
    fits = json.dumps(["x" * 8188], separators=(",", ":"))
    assert len(fits) == 8192
    told = json.loads(encode_line(entry(texts={"before": fits, "after": fits + " "}), GENESIS))
    assert told["before"] == told["after"] == ["x" * 8188]
    told = json.loads(encode_line(entry(texts={"before": fits.replace("x", "xx", 1)}), GENESIS))
    assert told["before"].startswith('["xxx')
    assert told["before"].endswith("... (7193 more)")


def test_a_rejected_key_is_told_by_its_hash_prefix() -> None:
    """spec.md 1.7: the value is never logged."""
    line = encode_line(entry(texts={"user_agent": f"agent {KEY}"}), GENESIS)
    assert json.loads(line)["user_agent"] == f"agent [key sha256:{hash_prefix(key_hash(KEY))}]"


@pytest.mark.parametrize("previous", ["", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"])
def test_a_line_follows_a_hash(previous: str) -> None:
    with pytest.raises(LocalError):
        encode_line(entry(), previous)


@pytest.mark.parametrize("line", [b"", b"\n", b"{}\n", b'{"hash":"0"}\n', chain(1)[0][:-1], chain(1)[0] + b"\n"])
def test_what_is_no_line_has_no_hash_and_is_no_link(line: bytes) -> None:
    with pytest.raises(LocalError):
        line_hash(line)
    assert link_of(line) is None


def test_a_line_is_a_link() -> None:
    (line,) = chain(1)
    assert link_of(line) == Link(1, line_hash(line))


# The chain.


def test_a_whole_chain_holds() -> None:
    lines = chain(20)
    assert verify(lines) == Verdict(None, None, link(lines[-1]))
    assert verify(lines).ok
    assert verify([]) == Verdict(None, None, START)


def test_a_chain_goes_on_over_daily_files() -> None:
    today = chain(5)
    tomorrow = chain(5, after=link(today[-1]))
    assert verify(today + tomorrow).ok
    assert verify(tomorrow, after=link(today[-1])).ok
    assert verify(tomorrow).fault is Fault.DROPPED
    assert verify(tomorrow, after=Link(5, GENESIS)).fault is Fault.ALTERED


def test_what_retention_took_is_not_missed_when_told_so() -> None:
    kept = chain(10)[4:]
    assert verify(kept, after=None) == Verdict(None, None, link(kept[-1]))
    assert verify([], after=None) == Verdict(None, None, None)
    assert verify(kept[:1] + kept[2:], after=None) == Verdict(Fault.DROPPED, 2, link(kept[0]))
    assert verify([b"x\n", *kept], after=None) == Verdict(Fault.ALTERED, 1, None)


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """D5: any edit shows, at the line that was edited."""
    lines = chain(4)
    number = data.draw(st.integers(0, 3))
    line = lines[number]
    at = data.draw(st.integers(0, len(line) - 2))  # without the line end, which decides where lines are
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[at], 0x0A)))
    lines[number] = line[:at] + bytes([byte]) + line[at + 1 :]
    assert verify(lines) == Verdict(Fault.ALTERED, number + 1, link(chain(4)[number - 1]) if number else START)


@given(st.integers(0, 998), st.integers(1, 5))
def test_no_line_of_a_thousand_can_be_dropped(start: int, count: int) -> None:
    lines = THOUSAND[:start] + THOUSAND[start + count :]
    verdict = verify(lines, until=link(THOUSAND[-1]))
    assert (verdict.fault, verdict.line) == (Fault.DROPPED, start + 1)


@given(st.integers(0, 997), st.integers(1, 5))
def test_no_line_of_a_thousand_can_be_moved(start: int, distance: int) -> None:
    lines = [*THOUSAND]
    lines.insert(start + distance, lines.pop(start))
    if lines != THOUSAND:
        verdict = verify(lines)
        assert (verdict.fault, verdict.line) == (Fault.REORDERED, start + 1)


@given(st.integers(0, 999))
def test_no_line_of_a_thousand_can_be_there_twice(number: int) -> None:
    lines = [*THOUSAND[: number + 1], *THOUSAND[number:]]
    verdict = verify(lines)
    assert (verdict.fault, verdict.line) == (Fault.REORDERED, number + 2)


THOUSAND = chain(1000)


def test_a_line_made_anew_with_its_hash_shows_at_the_next() -> None:
    lines = chain(4)
    lines[1] = encode_line(entry(2, {"reason": "nothing happened"}), line_hash(lines[0]))
    assert verify(lines) == Verdict(Fault.ALTERED, 3, link(lines[1]))


def test_a_whole_chain_made_anew_shows_to_who_remembers_a_link() -> None:
    """The one thing that a file cannot prove of itself."""
    remembered = link(chain(5)[2])
    forged = chain(1) + chain(4, after=link(encode_line(entry(1, {"reason": "nothing"}), GENESIS)))
    forged[0] = encode_line(entry(1, {"reason": "nothing"}), GENESIS)
    assert verify(forged).ok
    assert verify(forged, until=remembered) == Verdict(Fault.ALTERED, 3, link(forged[1]))


def test_lines_cut_off_at_the_end_show_to_who_remembers_a_link() -> None:
    lines = chain(5)
    remembered = link(lines[-1])
    assert verify(lines[:3]).ok
    assert verify(lines[:3], until=remembered) == Verdict(Fault.DROPPED, 4, link(lines[2]))
    assert verify([], until=remembered) == Verdict(Fault.DROPPED, 1, START)
    assert verify([], after=None, until=remembered) == Verdict(Fault.DROPPED, 1, None)
    assert verify([*lines[:3], lines[3][:10]], until=remembered) == Verdict(Fault.DROPPED, 4, link(lines[2]))


def test_a_chain_may_have_gone_on_since_a_link_was_remembered() -> None:
    lines = chain(5)
    assert verify(lines, until=link(lines[2])).ok
    assert verify(lines, until=link(lines[4])).ok


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: b"\n" + line,
        lambda line: b" " + line,
        lambda line: line + b"\n",
        lambda line: line[:-1] + b" \n",
        lambda line: line.replace(b":", b": ", 1),
        lambda line: line.upper(),
        lambda line: b"\xef\xbb\xbf" + line,
    ],
)
def test_what_an_editor_does_on_saving_shows(edit: Callable[[bytes], bytes]) -> None:
    first, second, third = chain(3)
    edited = edit(second).splitlines(keepends=True)
    assert verify([first, *edited, third]).fault is Fault.ALTERED


@pytest.mark.parametrize(
    "members",
    [
        b'"seq":1',
        b'"prev":"x"',
        b'"seq":1,"prev":1',
        b'"seq":"1","prev":"x"',
        b'"seq":1e999,"prev":"x"',
        b'"seq":' + b"9" * 5000 + b',"prev":"x"',
        b'"seq":1,"prev":"\xff"',
        b'"seq":1,"prev":"x","a":' + b"[" * 100_000,
        b'"seq":true,"prev":"x"',
        b"",
    ],
    ids=lambda members: members[:24].decode("latin-1"),
)
def test_a_seal_alone_makes_no_line(members: bytes) -> None:
    """Somebody who can hash can write any bytes with a good hash behind them."""
    assert link_of(seal(b"{" + members + b"}")) is None
    assert verify([seal(b"{" + members + b"}")]) == Verdict(Fault.ALTERED, 1, START)


def seal(unsealed: bytes) -> bytes:
    return unsealed[:-1] + b',"hash":"' + hashlib.sha256(unsealed).hexdigest().encode() + b'"}\n'


# What a crash leaves.


@given(st.integers(0, 3), st.data())
def test_a_torn_last_line_is_told_and_cut_and_the_chain_goes_on(whole: int, data: st.DataObject) -> None:
    """D5: not fatal. What comes after the repair fits."""
    lines = chain(whole + 1)
    torn = lines[-1][: data.draw(st.integers(1, len(lines[-1]) - 1))]
    file = b"".join(lines[:-1]) + torn
    last = link(lines[whole - 1]) if whole else START
    assert verify(file.splitlines(keepends=True)) == Verdict(Fault.TORN_TAIL, whole + 1, last)
    repaired = file[: repair_tail(file)]
    assert repaired == b"".join(lines[:-1])
    assert verify((repaired + lines[-1]).splitlines(keepends=True)).ok


def test_a_line_without_an_end_in_the_middle_was_altered() -> None:
    first, second, third = chain(3)
    assert verify([first, second[:-1], third]) == Verdict(Fault.ALTERED, 2, link(first))


def test_blocks_of_nul_after_a_loss_of_power_are_cut() -> None:
    """A file may have grown before its data reached the disk."""
    good = b"".join(chain(2))
    for rest in (b"\0" * 4096, b"\0" * 10 + b'"}\n', b"\0\n\0\n", b'{"seq":3' + b"\0" * 9 + b'"}\n' + b'{"se'):
        assert repair_tail(good + rest) == len(good)
        assert repair_tail(rest) == 0


def test_nothing_but_the_end_is_ever_cut() -> None:
    """A line that holds NUL before good ones was altered: that must go on being seen."""
    first, second = chain(2)
    damaged = b"\0" + first + second
    assert repair_tail(damaged) == len(damaged)
    assert repair_tail(b"\0\n\n") == 3


def test_a_line_that_was_altered_is_not_cut() -> None:
    data = b"".join(chain(2)).replace(b"key k2", b"key k3")
    assert repair_tail(data) == len(data)


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\n", b"\0", b"a"]), max_size=12).map(b"".join))
def test_a_repair_leaves_whole_lines_and_is_done_once(data: bytes) -> None:
    end = repair_tail(data)
    kept = data[:end]
    assert 0 <= end <= len(data)
    assert kept == b"" or kept.endswith(b"\n")
    assert repair_tail(kept) == end
    assert b"\n" not in data[end:] or b"\0" in data[end:]


# Daily files.


@given(st.integers(0, 253_402_300_799_999))
def test_a_file_is_named_by_the_day_in_utc(ts: int) -> None:
    day = datetime.fromtimestamp(ts // 1000, UTC).date()
    assert file_name(ts) == f"audit-{day.isoformat()}.jsonl"
    assert day_of(file_name(ts)) == day


@pytest.mark.parametrize(
    ("ts", "name"),
    [
        (0, "audit-1970-01-01.jsonl"),
        (-1, "audit-1969-12-31.jsonl"),
        (951_782_400_000, "audit-2000-02-29.jsonl"),
        (1_795_564_799_999, "audit-2026-11-24.jsonl"),
        (1_795_564_800_000, "audit-2026-11-25.jsonl"),
    ],
)
def test_the_day_changes_at_midnight_utc(ts: int, name: str) -> None:
    assert file_name(ts) == name


@pytest.mark.parametrize("ts", [10**15, -(10**15), 10**30])
def test_a_time_without_a_date_is_the_embedders_fault(ts: int) -> None:
    with pytest.raises(LocalError):
        file_name(ts)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "audit.jsonl",
        "audit-2026-11-24.jsonl\n",
        "audit-2026-11-24.jsonl.gz",
        "../audit-2026-11-24.jsonl",
        "audit-2026-13-45.jsonl",
        "audit-2026-02-30.jsonl",
        "audit-0000-01-01.jsonl",
        "audit-\uff12026-11-24.jsonl",
        "audit-\u0662026-11-24.jsonl",
        "audit-20261124.jsonl",
        "audit-2026-11-24\0.jsonl",
        "AUDIT-2026-11-24.jsonl",
    ],
)
def test_no_other_file_is_an_audit_file(name: str) -> None:
    """S5, F3: what this does not know is neither read nor deleted by retention."""
    assert day_of(name) is None


def test_the_day_of_a_file() -> None:
    assert day_of("audit-2026-11-24.jsonl") == date(2026, 11, 24)


@pytest.mark.parametrize("ts", [-1, 253_402_300_800_000])
def test_an_entry_has_a_time_that_a_file_can_be_named_by(ts: int) -> None:
    with pytest.raises(LocalError, match="1970 to 9999"):
        AuditEntry(seq=1, ts=ts, action=Action.KEY_CREATE, target="key k2")
