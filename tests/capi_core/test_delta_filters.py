"""Delta filters: tools under the client's names, answers that end at a stop sequence; any grouping gives the same."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import ToolKind, ToolRef
from capi_core.delta_filters import MAX_CUSTOM_INPUT, StopFilter, ToolNameFilter
from capi_core.deltas import (
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Start,
)
from capi_core.tool_names import ToolNames


def call(index: int, name: str, *pieces: str) -> list[AnswerDelta]:
    deltas = [Delta(index, piece) for piece in pieces]
    return [BlockStart(index, BlockKind.FUNCTION_CALL, f"c{index}", ToolRef(name)), *deltas, BlockStop(index)]


def text(*pieces: str) -> list[AnswerDelta]:
    return [Start(), BlockStart(0, BlockKind.TEXT), *(Delta(0, piece) for piece in pieces), BlockStop(0)]


STOPPED: list[AnswerDelta] = [Finish(FinishReason.STOP), End()]


def joined(deltas: Iterable[AnswerDelta]) -> list[AnswerDelta]:
    """With neighbouring deltas of a block as one."""
    out: list[AnswerDelta] = []
    for delta in deltas:
        last = out[-1] if out else None
        if isinstance(delta, Delta) and isinstance(last, Delta) and last.index == delta.index:
            out[-1] = Delta(delta.index, last.text + delta.text)
        else:
            out.append(delta)
    return out


# --- names ---


def names() -> ToolNames:
    made = ToolNames()
    made.wire(ToolRef("get", "weather"))
    made.wire(ToolRef("apply patch"), ToolKind.CUSTOM)
    return made


def test_a_tool_gets_its_own_name_and_namespace_back() -> None:
    out = ToolNameFilter(names()).apply(call(0, "weather__get", "{}"))
    assert out == [
        BlockStart(0, BlockKind.FUNCTION_CALL, "c0", ToolRef("get", "weather")),
        Delta(0, "{}"),
        BlockStop(0),
    ]


def test_a_name_that_was_never_sent_and_all_other_deltas_pass() -> None:
    stream = [*text("a"), *call(1, "invented", "{}"), *STOPPED]
    assert ToolNameFilter(names()).apply(stream) == stream
    nameless = [BlockStart(0, BlockKind.FUNCTION_CALL, "c")]
    assert ToolNameFilter(names()).apply(nameless) == [BlockStart(0, BlockKind.FUNCTION_CALL, "c", ToolRef(""))]


@pytest.mark.parametrize(
    ("arguments", "given_back"),
    [
        ('{"input":"*** Begin Patch\\n"}', "*** Begin Patch\n"),
        ('{"input":"cut \\ud83d"}', "cut \ufffd"),
        ("not what was asked for", "not what was asked for"),
        ('{"patch":"x"}', '{"patch":"x"}'),
        ('{"input":""}', ""),
    ],
)
def test_a_custom_tools_input_is_text_again(arguments: str, given_back: str) -> None:
    wire = names().wire(ToolRef("apply patch"), ToolKind.CUSTOM)
    out = ToolNameFilter(names()).apply(call(0, wire, *arguments))
    start, *middle, stop = out
    assert start == BlockStart(0, BlockKind.CUSTOM_CALL, "c0", ToolRef("apply patch"))
    assert middle == ([Delta(0, given_back)] if given_back else [])
    assert stop == BlockStop(0)


def test_calls_that_overlap_are_held_apart() -> None:
    wire = names().wire(ToolRef("apply patch"), ToolKind.CUSTOM)
    one, other = call(0, wire, '{"input":', '"a"}'), call(1, wire, '{"input":"b"}')
    mixed = [one[0], other[0], one[1], other[1], one[2], one[3], other[2]]
    assert ToolNameFilter(names()).apply(mixed)[2:] == [Delta(0, "a"), BlockStop(0), Delta(1, "b"), BlockStop(1)]


def test_input_without_end_fails_the_answer() -> None:
    wire = names().wire(ToolRef("apply patch"), ToolKind.CUSTOM)
    machine = ToolNameFilter(names())
    endless = [BlockStart(0, BlockKind.FUNCTION_CALL, "c", ToolRef(wire))] + [Delta(0, " " * 2**20)] * 5
    failed = machine.apply(endless)[-1]
    assert isinstance(failed, Failed)
    assert failed.problem.code == "upstream_call_too_large"
    assert len(" " * 2**20) * 5 > MAX_CUSTOM_INPUT
    assert machine.apply([BlockStop(0), *STOPPED]) == []


# --- stop sequences ---


@pytest.mark.parametrize(
    ("pieces", "shown", "which"),
    [
        (("one STOP two",), "one ", "STOP"),
        (("one ST", "OP two"), "one ", "STOP"),
        (("one S", "T", "O", "P"), "one ", "STOP"),
        (("a END b STOP",), "a ", "END"),
        (("STSTOP",), "ST", "STOP"),
        (("STOP",), "", "STOP"),
        (("aab", "aac"), "aab", "aac"),
        (("aaac",), "a", "aac"),
    ],
)
def test_the_answer_ends_before_the_first_sequence(pieces: tuple[str, ...], shown: str, which: str) -> None:
    machine = StopFilter(("STOP", "END", "aac", ""))
    out = joined(machine.apply([*text(*pieces), *STOPPED]))
    end = [BlockStop(0), Finish(FinishReason.STOP_SEQUENCE, stop_sequence=which), End()]
    assert out == [Start(), BlockStart(0, BlockKind.TEXT), *([Delta(0, shown)] if shown else []), *end]
    assert machine.hit
    assert machine.apply(text("more")) == []


def test_of_two_the_one_that_is_complete_first_counts() -> None:
    out = StopFilter(("ABC", "AB", "B")).apply(text("xABC"))
    assert Finish(FinishReason.STOP_SEQUENCE, stop_sequence="AB") in out


def test_what_only_began_like_one_is_text_after_all() -> None:
    machine = StopFilter(("STOP",))
    out = machine.apply([*text("one STO"), *STOPPED])
    assert joined(out) == [*text("one STO"), *STOPPED]
    assert not machine.hit


def test_sequences_in_a_call_or_a_thought_are_not_looked_for() -> None:
    thought: list[AnswerDelta] = [BlockStart(0, BlockKind.REASONING), Delta(0, "STOP"), BlockStop(0)]
    stream = [Start(), *thought, *call(1, "f", '{"a":"STOP"}'), *STOPPED]
    assert StopFilter(("STOP",)).apply(stream) == stream


def test_blocks_that_are_open_are_closed_first() -> None:
    stream = [BlockStart(0, BlockKind.REASONING), *text("STOP")[1:2], Delta(0, "x"), BlockStart(1, BlockKind.TEXT)]
    out = StopFilter(("STOP",)).apply([*stream, Delta(1, "STOP")])
    assert [delta for delta in out if isinstance(delta, BlockStop)] == [BlockStop(0), BlockStop(0), BlockStop(1)]


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_pieces_of_any_size_give_the_same(pieces: list[str], sequences: list[str]) -> None:
    def run(parts: Iterable[str]) -> list[AnswerDelta]:
        machine = StopFilter(tuple(sequences))
        out: list[AnswerDelta] = []
        for delta in [*text(*filter(None, parts)), *STOPPED]:
            out += machine.apply([delta])
        return joined(out)

    whole = "".join(pieces)
    assert run(pieces) == run([whole]) == run(whole)
    shown = "".join(delta.text for delta in run([whole]) if isinstance(delta, Delta))
    cuts = [(whole.index(s) + len(s), whole.index(s)) for s in sequences if s in whole]
    assert shown == whole[: min(cuts, default=(0, len(whole)))[1]]
