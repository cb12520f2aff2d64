"""Tool calls are put together from their parts, within bounds."""

import msgspec
import pytest

from capi_core.conversation import ToolRef
from capi_core.deltas import AnswerDelta, BlockKind, BlockStart, BlockStop, Delta
from capi_core.protocols.chat.answer_wire import CallPart
from capi_core.protocols.chat.call_reader import CallReader


def read(*parts: dict[str, object]) -> tuple[list[AnswerDelta], str | None]:
    """The deltas of these parts, and the code of what is wrong."""
    reader, out = CallReader(), list[AnswerDelta]()
    for part in parts:
        problem = reader.take(msgspec.convert(part, CallPart), reader.begun, out)
        if problem is not None:
            return out, problem.code
    problem = reader.close(out)
    return out, None if problem is None else problem.code


def part(arguments: str = "", **members: object) -> dict[str, object]:
    return {"function": {"arguments": arguments}, **members}


def test_id_and_name_may_come_apart_and_arguments_are_held_for_them() -> None:
    named = {"index": 0, "function": {"name": "f"}}
    assert read({"index": 0, "id": "i"}, part("{", index=0), named, part("}", index=0)) == (
        [BlockStart(0, BlockKind.FUNCTION_CALL, "i", ToolRef("f")), Delta(0, "{"), Delta(0, "}"), BlockStop(0)],
        None,
    )


def test_a_custom_call_is_one() -> None:
    custom: dict[str, object] = {"id": "i", "type": "custom", "custom": {"name": "c", "input": "x"}}
    assert read(custom) == (
        [BlockStart(0, BlockKind.CUSTOM_CALL, "i", ToolRef("c")), Delta(0, "x"), BlockStop(0)],
        None,
    )


def test_without_an_index_an_id_begins_a_call() -> None:
    whole: list[dict[str, object]] = [{"id": name, "function": {"name": name, "arguments": "1"}} for name in "ab"]
    found, problem = read(*whole, part("2"))
    assert [delta for delta in found if isinstance(delta, Delta)] == [Delta(0, "1"), Delta(1, "1"), Delta(1, "2")]
    assert problem is None


def test_an_empty_part_says_nothing() -> None:
    found, _ = read({"index": 0, "id": "i", "function": {"name": "f"}}, {"index": 0})
    assert found == [BlockStart(0, BlockKind.FUNCTION_CALL, "i", ToolRef("f")), BlockStop(0)]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([{"index": 0, "id": "i"}], "upstream_garbage"),
        ([part("x" * (1 << 20), index=0), part("x", index=0)], "upstream_call_too_large"),
        ([{"index": at} for at in range(129)], "upstream_too_many_calls"),
        ([part("{" + " " * 40_000, index=0), part("\n" * 40_000, index=0)], "upstream_runaway_call"),
    ],
)
def test_bounds(parts: list[dict[str, object]], code: str) -> None:
    assert read(*parts)[1] == code


def test_white_space_between_words_is_no_runaway() -> None:
    parts = [part(" " * 40_000 + "x", index=0, id="i"), part(" " * 40_000, index=0)]
    assert read({"index": 0, "function": {"name": "f"}}, *parts)[1] is None
