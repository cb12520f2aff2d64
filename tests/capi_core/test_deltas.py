"""A reply and the stream of its deltas are the same thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import (
    PART_BREAK,
    Annotation,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Ping,
    Reply,
    ReplyText,
    Start,
    assemble,
)
from capi_core.errors import LocalError, Problem
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage

TEXT = st.text(max_size=5)
PROTOCOL = st.sampled_from(Protocol)
SIGNATURE = st.none() | st.builds(Signature, PROTOCOL, TEXT)
ANNOTATIONS = st.lists(st.builds(Annotation, PROTOCOL, st.just(b"{}")), max_size=2).map(tuple)
BLOCKS = st.one_of(
    st.builds(ReplyText, TEXT, ANNOTATIONS),
    st.builds(Reasoning, st.lists(TEXT.filter(bool), max_size=1).map(tuple), SIGNATURE),
    st.builds(Refusal, TEXT),
    st.builds(ToolCall, TEXT, st.builds(ToolRef, TEXT), TEXT, st.sampled_from(ToolKind)),
    st.builds(Opaque, PROTOCOL, TEXT, st.just(b"{}")),
)
REPLIES = st.builds(
    Reply,
    TEXT,
    TEXT,
    st.lists(BLOCKS, max_size=4).map(tuple),
    st.builds(Finish, st.sampled_from(FinishReason)),
    st.none() | st.just(Usage(1)),
    st.none() | st.just(5),
)
STOP = Finish(FinishReason.STOP)


@given(REPLIES)
def test_a_reply_told_as_a_stream_is_assembled_to_itself(reply: Reply) -> None:
    assert assemble(reply.deltas()) == reply


def test_a_block_of_every_kind_is_told_and_assembled() -> None:
    """Also the ones that hypothesis may not come upon."""
    blocks = (
        ReplyText("a", (Annotation(Protocol.CHAT, b"{}"),)),
        ReplyText(""),
        Reasoning(("r",), Signature(Protocol.CHAT, "S")),
        Reasoning((), None),
        Refusal("no"),
        ToolCall("i", ToolRef("f"), "{}"),
        ToolCall("j", ToolRef("c"), "raw", ToolKind.CUSTOM),
        Opaque(Protocol.CHAT, "t", b"{}"),
    )
    for usage in (None, Usage(1)):
        reply = Reply("i", "m", blocks, STOP, usage, 1)
        assert assemble(reply.deltas()) == reply


def test_parts_of_reasoning_become_one_text() -> None:
    found = assemble(Reply("", "", (Reasoning(("a", "b")),), STOP).deltas())
    assert isinstance(found, Reply)
    assert found.blocks == (Reasoning((f"a{PART_BREAK}b",)),)


def test_blocks_may_overlap_and_pings_say_nothing() -> None:
    text = BlockKind.TEXT
    opened: list[AnswerDelta] = [
        BlockStart(0, text),
        BlockStart(1, text),
        Delta(1, "b"),
        Ping(),
        Delta(0, "a"),
        Delta(1, "c"),
    ]
    found = assemble([Start(), *opened, BlockStop(1), BlockStop(0), STOP, End()])
    assert isinstance(found, Reply)
    assert found.blocks == (ReplyText("a"), ReplyText("bc"))


def test_a_failure_is_what_it_failed_with() -> None:
    failed = Failed(Problem(502, "c", "m"), upstream=False)
    assert assemble([Start(), failed]) is failed


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        [Start(), STOP],
        [Start(), End()],
        [STOP, End()],
        [Start(), Delta(0, "x")],
        [Start(), BlockStart(0, BlockKind.OPAQUE), STOP, End()],
    ],
)
def test_deltas_that_break_the_rules_are_our_own_fault(deltas: list[AnswerDelta]) -> None:
    with pytest.raises(LocalError):
        assemble(deltas)
