"""The checker: events and their faults, in any chunking, of any bytes, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conformance import RULES, checker_for
from capi_core.conformance.checker import SSE_RULES
from capi_core.conformance.rules import Severity, Violation
from capi_core.protocols.kinds import Protocol
from tests.support.streams import chat
from tests.support.trickle import pieces


def judged(protocol: Protocol, chunks: list[bytes], **options: int) -> tuple[Violation, ...]:
    checker = checker_for(protocol, **options)
    told = [violation for chunk in chunks for violation in checker.receive_data(chunk)] + checker.finish()
    assert checker.finish() == []
    assert checker.receive_data(b"data: x\n\n") == []
    assert checker.violations == tuple(told[:1000])
    return checker.violations


ERROR = chat({"error": "x"})
BREAKS = {
    "sse-event-size": b"data: " + b"x" * 500,
    "sse-unended-event": ERROR + b"data: y",
    "sse-event-without-data": b"event: ping\n\n" + ERROR,
    "sse-json": b"data: nonsense\n\n" + ERROR,
}


def test_every_rule_of_events_is_broken_by_a_stream_of_its_own() -> None:
    assert set(BREAKS) == set(SSE_RULES)


@pytest.mark.parametrize("rule", BREAKS)
def test_events_that_no_reader_takes(rule: str) -> None:
    assert [violation.rule for violation in judged(Protocol.CHAT, [BREAKS[rule]], max_event_bytes=400)] == [rule]


@pytest.mark.parametrize("block", [b"id: 7\n\n", b"retry: 5\n\n"])
def test_an_id_or_a_retry_time_alone_breaks_a_reader_too(block: bytes) -> None:
    assert [v.rule for v in judged(Protocol.CHAT, [block + ERROR])] == ["sse-event-without-data"]


@pytest.mark.parametrize("block", [b": ping\n\n", b"\n\n", b"unknown: x\n\n"])
def test_comments_and_empty_blocks_are_no_events(block: bytes) -> None:
    assert judged(Protocol.CHAT, [block + ERROR]) == ()


def test_a_violation_says_which_event_and_which_rule() -> None:
    first, *_ = judged(Protocol.CHAT, [ERROR + b"data: [1]\n\n"])
    assert first == Violation("sse-json", Severity.MUST, SSE_RULES["sse-json"].text, "", 1)
    for rule in RULES.values():
        assert rule.text
        assert rule.source


def test_a_thousand_violations_are_enough() -> None:
    assert len(judged(Protocol.MESSAGES, [b"data: [DONE]\n\n" * 1500])) == 1000


FRAGMENTS = st.sampled_from(
    [
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
        b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
        b'event: message_start\ndata: {"type":"message_start"}\r\n\r\n',
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":true}\n\n',
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n',
        b'data: {"type":"response.output_item.added","output_index":0,"item":[]}\n\n',
        b'data: {"type":"response.output_text.delta","output_index":0,"content_index":[]}\n\n',
        b'data: {"type":"response.completed","response":{"output":3}}\n\n',
        b"data: " + b"[" * 2000 + b"\n\n",
        b": c\n\n",
        b"event: x\n\n",
    ]
)


@given(st.lists(FRAGMENTS | st.binary(max_size=8), max_size=8).map(b"".join), st.sampled_from(Protocol), st.data())
def test_any_bytes_in_any_pieces_get_the_same_judgement(
    stream: bytes, protocol: Protocol, chosen: st.DataObject
) -> None:
    whole = judged(protocol, [stream])
    assert judged(protocol, [stream[at : at + 1] for at in range(len(stream))]) == whole
    assert judged(protocol, chosen.draw(pieces(stream))) == whole
