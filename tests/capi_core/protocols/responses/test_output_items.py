"""The events of one item fit together, open and done."""

import json

import pytest

from capi_core.conversation import Signature, ToolRef
from capi_core.deltas import BlockKind, BlockStart
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.output_items import OpenItem


def told(events: list[tuple[bytes, bytes]]) -> list[tuple[str, dict[str, object]]]:
    return [(kind.decode(), json.loads(b"{%b}" % members.removesuffix(b","))) for kind, members in events]


@pytest.mark.parametrize(
    ("kind", "part", "prefix"),
    [
        (BlockKind.TEXT, "output_text", "msg"),
        (BlockKind.REFUSAL, "refusal", "msg"),
        (BlockKind.REASONING, "summary_text", "rs"),
    ],
)
def test_a_part_is_opened_and_closed_around_its_text(kind: BlockKind, part: str, prefix: str) -> None:
    item = OpenItem(BlockStart(0, kind), "q", 3)
    opened = told(item.added() + item.part_added())
    item.texts += ["a", "b"]
    events, whole = item.done(None)
    closed = told(events)
    assert [event.split(".")[-1] for event, _ in opened + closed] == ["added", "added", "done", "done", "done"]
    ids = {members["item_id"] for _, members in opened + closed if "item_id" in members}
    assert ids | {json.loads(whole)["id"]} == {f"{prefix}_q_3"}
    inner = closed[1][1]["part"]
    assert isinstance(inner, dict)
    assert (inner["type"], inner.get("text", inner.get("refusal"))) == (part, "ab")
    assert closed[2][1]["item"] == json.loads(whole)


@pytest.mark.parametrize(
    ("kind", "member", "id"),
    [(BlockKind.FUNCTION_CALL, "arguments", "fc_q_0"), (BlockKind.CUSTOM_CALL, "input", "ctc_q_0")],
)
def test_a_call_has_its_name_from_the_start(kind: BlockKind, member: str, id: str) -> None:
    item = OpenItem(BlockStart(0, kind, "c", ToolRef("f", "n")), "q", 0)
    (added,) = told(item.added())
    item.texts.append("x")
    events, whole = item.done(None)
    done = json.loads(whole)
    begun = added[1]["item"]
    assert isinstance(begun, dict)
    assert {**begun, member: "x"} | {"status": 0} == {**done, "status": 0}
    assert (done["id"], done["call_id"], done["name"], done["namespace"]) == (id, "c", "f", "n")
    assert told(events)[0][1][member] == "x"


def test_a_call_without_an_id_gets_one() -> None:
    item = OpenItem(BlockStart(0, BlockKind.FUNCTION_CALL, "", ToolRef("f")), "q", 1)
    assert json.loads(item.done(None)[1])["call_id"] == "call_q_1"


def test_reasoning_without_text_has_no_part_and_carries_its_signature() -> None:
    item = OpenItem(BlockStart(0, BlockKind.REASONING), "q", 0)
    events, whole = item.done(Signature(Protocol.MESSAGES, "S"))
    assert [kind for kind, _ in events] == [b"response.output_item.done"]
    expected = {"type": "reasoning", "id": "rs_q_0", "summary": [], "encrypted_content": "capi1.messages.S"}
    assert json.loads(whole) == expected


def test_citations_are_counted_and_kept() -> None:
    item = OpenItem(BlockStart(0, BlockKind.TEXT), "q", 0)
    item.added()
    places = [told([item.annotated(b'{"n":%d}' % number)])[0][1]["annotation_index"] for number in range(2)]
    assert places == [0, 1]
    assert json.loads(item.done(None)[1])["content"][0]["annotations"] == [{"n": 0}, {"n": 1}]
