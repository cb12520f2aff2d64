"""Invariant: any bytes are judged and repaired, any texts make a line, and no line can be changed unseen.

The input is read in three ways: as a file, whose repaired part is never torn; as the texts of entries, one a line,
whose chain holds; and as a place in that chain and a byte to put there, after which it does not.
"""

import json
from collections.abc import Iterator

from capi_core.audit import (
    GENESIS,
    MAX_LINE_BYTES,
    Action,
    AuditEntry,
    Fault,
    encode_line,
    line_hash,
    link_of,
    repair_tail,
    verify,
)

__all__ = ["test_one_input"]

MAX_ENTRIES = 8


def as_lines(data: bytes) -> list[bytes]:
    """As iterating over a file gives them: only LF ends one."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def check_file(data: bytes) -> None:
    end = repair_tail(data)
    assert repair_tail(data[:end]) == end
    for after in (verify(as_lines(data[:end])), verify(as_lines(data[:end]), after=None)):
        assert after.fault is not Fault.TORN_TAIL
    before = verify(as_lines(data))
    assert before.ok or before.line is not None
    if before.ok:
        assert end == len(data)


def chain(data: bytes) -> Iterator[bytes]:
    previous = GENESIS
    for seq, raw in enumerate(data.split(b"\n")[:MAX_ENTRIES], 1):
        text = raw.decode("utf-8", "surrogateescape")
        entry = AuditEntry(
            seq=seq,
            ts=seq,
            actor_key_id=text,
            action=Action.AUTH_REJECT,
            target=text,
            before=text,
            after=text,
            ip=text,
            user_agent=text,
            reason=text,
        )
        line = encode_line(entry, previous)
        previous = line_hash(line)
        yield line


def check_chain(lines: list[bytes]) -> None:
    assert verify(lines).ok
    assert verify(lines).last == link_of(lines[-1])
    for line in lines:
        assert len(line) <= MAX_LINE_BYTES
        assert line.index(b"\n") == len(line) - 1
        assert line[:-1].decode("ascii").isprintable()
        assert b"sk-cap-" not in line
        json.dumps(json.loads(line), ensure_ascii=False).encode()


def check_edit(lines: list[bytes], place: int, byte: int) -> None:
    file = b"".join(lines)
    at = place % (len(file) - 1)  # not the last line end: without it the line is torn, which is another matter
    if file[at] != byte:
        edited = file[:at] + bytes([byte]) + file[at + 1 :]
        assert verify(as_lines(edited)).fault is Fault.ALTERED


def test_one_input(data: bytes) -> None:
    check_file(data)
    lines = list(chain(data))
    check_chain(lines)
    check_edit(lines, int.from_bytes(data[:3], "big"), data[3] if len(data) > 3 else 0)
