"""The grammar of Messages streams: each rule has a stream that breaks it and nothing else."""

from collections.abc import Mapping
from typing import Final

import pytest

from capi_core.conformance.checker import StreamChecker
from capi_core.conformance.messages import RULES, MessagesGrammar
from tests.support.streams import named

Event = Mapping[str, object]

USAGE: Final = {"input_tokens": 1, "output_tokens": 1}
START: Final[Event] = {"type": "message_start", "message": {"id": "m", "usage": USAGE}}
END: Final[tuple[Event, ...]] = (
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USAGE},
    {"type": "message_stop"},
)
PING: Final[Event] = {"type": "ping"}
ERROR: Final[Event] = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}


def opened(kind: str = "text", index: int = 0) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind}}


def delta(kind: str = "text_delta", index: int = 0, **more: object) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}


def closed(index: int = 0) -> Event:
    return {"type": "content_block_stop", "index": index}


SIGNATURE: Final = delta("signature_delta", signature="s")


def judged(stream: bytes) -> list[tuple[str, str]]:
    checker = StreamChecker(MessagesGrammar(), max_event_bytes=4 * 1024 * 1024)
    checker.receive_data(stream)
    checker.finish()
    return [(violation.rule, violation.path) for violation in checker.violations]


def broken(*events: Event) -> list[tuple[str, str]]:
    return judged(named(*events))


LEGAL: Final[dict[str, tuple[Event, ...]]] = {
    "text": (START, PING, opened(), delta(), delta("citations_delta"), closed(), *END),
    "nothing": (START, *END),
    "thinking": (START, opened("thinking"), delta("thinking_delta"), SIGNATURE, closed(), *END),
    "redacted": (START, opened("redacted_thinking"), closed(), *END),
    "a tool": (
        START,
        opened("tool_use"),
        delta("input_json_delta", partial_json='{"a":'),
        delta("input_json_delta", partial_json="1}"),
        closed(),
        opened("tool_use", 1),
        closed(1),
        *END,
    ),
    "an error at once": (ERROR,),
    "an error in a block": (START, opened(), ERROR),
    "an error at the end": (START, END[0], ERROR),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_stream_breaks_nothing(name: str) -> None:
    assert broken(*LEGAL[name]) == []


def test_a_long_tool_input_is_not_judged() -> None:
    piece = delta("input_json_delta", partial_json="x" * 600_000)
    assert broken(START, opened("tool_use"), piece, piece, closed(), *END) == []


TEXT: Final = (opened(), delta(), closed())
BREAKS: Final[dict[str, tuple[tuple[Event, ...], str]]] = {
    "messages-order": ((START, START, *TEXT, *END), "type"),
    "messages-block-index": ((START, opened(index=2), closed(0), *END), "index"),
    "messages-block-open": ((START, *TEXT, delta(), *END), "index"),
    "messages-delta-kind": ((START, opened(), delta("thinking_delta"), closed(), *END), "delta.type"),
    "messages-signature": ((START, opened("thinking"), SIGNATURE, SIGNATURE, closed(), *END), "delta"),
    "messages-tool-input": (
        (START, opened("tool_use"), delta("input_json_delta", partial_json="[1]"), closed(), *END),
        "index",
    ),
    "messages-stop-reason": ((START, {**END[0], "delta": {}}, END[1]), "delta.stop_reason"),
    "messages-usage": ((START, {**END[0], "usage": None}, END[1]), "usage"),
    "messages-unfinished": ((START, *TEXT, END[0]), ""),
    "messages-unknown-event": ((START, {"type": "surprise"}, *END), "type"),
}


def test_every_rule_is_broken_by_a_stream_of_its_own() -> None:
    assert {*BREAKS, "messages-event-name", "messages-done-mark"} == set(RULES)


@pytest.mark.parametrize("rule", BREAKS)
def test_a_stream_breaks_its_rule_and_no_other(rule: str) -> None:
    events, path = BREAKS[rule]
    assert broken(*events) == [(rule, path)]


def test_names_and_marks() -> None:
    whole = named(START, *END)
    assert judged(whole.replace(b"event: message_stop\n", b"")) == [("messages-event-name", "type")]
    assert judged(whole + b"data: [DONE]\n\n") == [("messages-done-mark", "")]


def test_other_ways_to_break_them() -> None:
    assert broken({**START, "message": {}}, *END) == [("messages-usage", "message.usage")]
    assert broken(START, opened(), opened(index=1), closed(1), *END) == [("messages-block-open", "index")]
    assert broken(START, opened(), *END) == [("messages-block-open", "type")]
    assert broken(START, closed(), *END) == [("messages-block-open", "index")]
    assert broken(START, opened("thinking"), SIGNATURE, delta("thinking_delta"), closed(), *END) == [
        ("messages-signature", "delta")
    ]
    assert broken(START, opened("redacted_thinking"), delta(), closed(), *END) == [
        ("messages-delta-kind", "delta.type")
    ]
    assert broken(*END) == [("messages-order", "type"), ("messages-order", "type"), ("messages-unfinished", "")]
    assert broken(START, *END, PING, ERROR) == [("messages-order", "type")]
