"""How a caller asks for trouble."""

import pytest

from capi_trio.demo.answers import Refused
from capi_trio.demo.faults import Fault, LineEnd, Options, Quirk, UsageStyle, parse_options


def test_without_the_member_there_is_no_trouble() -> None:
    options = parse_options(None, streaming=True)
    assert options == Options()
    assert options.fault is None


def test_every_member_is_read() -> None:
    member = {
        "pace_ms": 1.5,
        "events": 3,
        "split": 7,
        "line_end": "cr",
        "usage": "missing",
        "quirks": ["no_finish", "choices_null"],
        "cached": 8,
        "cache_write": 9,
        "fault": "status",
        "at": 2,
        "status": 429,
        "retry_after": 2,
        "delay_ms": 4,
        "silence_ms": 5,
        "size": 6,
    }
    assert parse_options(member, streaming=True) == Options(
        pace_ms=1.5, events=3, split=7, line_end=LineEnd.CR, usage=UsageStyle.MISSING, fault=Fault.STATUS,
        at=2, status=429, retry_after=2, delay_ms=4, silence_ms=5, size=6,
        quirks=frozenset({Quirk.NO_FINISH, Quirk.CHOICES_NULL}), cached=8, cache_write=9,
    )  # fmt: skip


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_can_be_asked_for_in_a_stream(fault: Fault) -> None:
    assert parse_options({"fault": fault.value}, streaming=True).fault is fault


@pytest.mark.parametrize(
    "member",
    [
        {"fault": "explode"},
        {"line_end": "nel"},
        {"usage": "sometimes"},
        {"quirks": ["whimsical"]},
        {"quirks": "no_finish"},
        {"cached": -1},
        {"pace_ms": -1},
        {"events": 100_001},
        {"split": 0},
        {"status": 200},
        {"at": "3"},
        {"retry_after": 0.5},
        {"size": 10**9},
        {"no_such_member": 1},
        [],
        "reset",
        False,
    ],
)
def test_a_bad_member_is_refused_naming_all_that_is_allowed(member: object) -> None:
    with pytest.raises(Refused) as refused:
        parse_options(member, streaming=True)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, "invalid_demo_options", "demo")
    for allowed in (*Fault, *LineEnd, *UsageStyle):
        assert allowed.value in problem.message
    for name in Options.__struct_fields__:
        assert name in problem.message


@pytest.mark.parametrize("fault", ["end", "no_done", "no_blank", "comments", "keepalive", "crlf"])
def test_a_fault_of_streams_is_refused_for_a_whole_answer(fault: str) -> None:
    with pytest.raises(Refused, match="needs a streamed answer"):
        parse_options({"fault": fault}, streaming=False)
