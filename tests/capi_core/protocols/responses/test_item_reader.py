"""Items become blocks once, from whichever events tell of them."""

import json

from msgspec import Raw

from capi_core.conversation import Opaque, Signature, ToolRef
from capi_core.deltas import Annotated, AnswerDelta, BlockKind, BlockStart, BlockStop, Delta, Signed
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.item_reader import ItemReader


class Seen:
    """A reader with what it said."""

    def __init__(self) -> None:
        self.deltas: list[AnswerDelta] = []
        self.failures: list[str] = []
        self.reader = ItemReader(self.deltas.append, self.failures.append)


def raw(**members: object) -> Raw:
    return Raw(json.dumps(members).encode())


def test_a_message_without_events_is_read_from_its_end() -> None:
    seen = Seen()
    cited = {"type": "output_text", "text": "t", "annotations": [{"url": "u"}]}
    parts = [cited, {"type": "odd"}, {"type": "refusal", "refusal": "r"}, {"type": "output_text", "text": ""}]
    seen.reader.done(0, raw(type="message", content=parts))
    kinds = [delta.kind for delta in seen.deltas if isinstance(delta, BlockStart)]
    assert kinds == [BlockKind.TEXT, BlockKind.REFUSAL]
    assert [delta.text for delta in seen.deltas if isinstance(delta, Delta)] == ["t", "r"]
    assert [delta.annotation.url for delta in seen.deltas if isinstance(delta, Annotated)] == ["u"]
    assert sum(isinstance(delta, BlockStop) for delta in seen.deltas) == 2
    told = len(seen.deltas)
    seen.reader.done(0, raw(type="message", content=parts))
    seen.reader.text(0, 0, BlockKind.TEXT, "late", whole=False)
    seen.reader.done(1, raw(type="message"))
    assert len(seen.deltas) == told


def test_annotations_told_by_events_are_not_told_again() -> None:
    seen = Seen()
    seen.reader.text(0, 0, BlockKind.TEXT, "t", whole=False)
    seen.reader.annotation(0, 0, raw(type="url_citation", url="u", title="T"))
    seen.reader.annotation(0, 1, raw(url="nowhere"))
    seen.reader.done(0, raw(type="message", content=[{"type": "output_text", "text": "t", "annotations": [{}]}]))
    assert [delta.annotation.title for delta in seen.deltas if isinstance(delta, Annotated)] == ["T"]


def test_a_call_starts_when_its_id_and_name_are_known() -> None:
    seen = Seen()
    seen.reader.added(0, raw(type="function_call"))
    seen.reader.call(0, "early", whole=False)
    seen.reader.done(0, raw(type="function_call", call_id="c", name="f", namespace="n", arguments="{}"))
    start = BlockStart(0, BlockKind.FUNCTION_CALL, "c", ToolRef("f", "n"))
    assert seen.deltas == [start, Delta(0, "{}"), BlockStop(0)]
    assert seen.reader.called


def test_a_call_is_told_as_it_comes() -> None:
    seen = Seen()
    seen.reader.added(0, raw(type="custom_tool_call", call_id="c", name="f"))
    seen.reader.added(0, raw(type="custom_tool_call", call_id="d", name="g"))
    seen.reader.call(0, "a", whole=False)
    seen.reader.call(0, "ab", whole=True)
    seen.reader.done(0, raw(type="custom_tool_call", call_id="c", name="f", input="ab"))
    assert seen.deltas == [
        BlockStart(0, BlockKind.CUSTOM_CALL, "c", ToolRef("f")),
        Delta(0, "a"),
        BlockStop(0),
    ]


def test_a_call_that_never_gets_its_name_fails_the_answer() -> None:
    seen = Seen()
    seen.reader.done(0, raw(type="function_call", call_id="c"))
    assert seen.failures == ["the upstream's answer has a tool call without an id or a name"]


def test_parts_of_reasoning_are_set_apart_and_told_once() -> None:
    seen = Seen()
    for part, text, whole in [(0, "a", False), (0, "a", True), (1, "b", True), (1, "", False)]:
        seen.reader.think(0, ("summary", part), text, whole=whole)
    seen.reader.done(0, raw(type="reasoning", summary=[{"text": "other"}], encrypted_content="e"))
    seen.reader.think(0, ("summary", 2), "late", whole=False)
    signature = Signature(Protocol.RESPONSES, "e")
    assert seen.deltas == [
        BlockStart(0, BlockKind.REASONING),
        Delta(0, "a"),
        Delta(0, "\n\nb"),
        Signed(0, signature),
        BlockStop(0),
    ]


def test_reasoning_without_text_is_its_signature_or_nothing() -> None:
    seen = Seen()
    seen.reader.done(0, raw(type="reasoning", summary=[]))
    assert seen.deltas == []
    seen.reader.done(1, raw(type="reasoning", summary=[], encrypted_content="e"))
    assert [type(delta) for delta in seen.deltas] == [BlockStart, Signed, BlockStop]


def test_a_hosted_tools_item_is_opaque_and_comes_from_its_end() -> None:
    seen = Seen()
    item = raw(type="web_search_call", id="ws")
    seen.reader.added(0, item)
    seen.reader.done(0, item)
    opaque = Opaque(Protocol.RESPONSES, "web_search_call", bytes(item))
    assert seen.deltas == [BlockStart(0, BlockKind.OPAQUE, opaque=opaque), BlockStop(0)]


def test_an_item_that_ends_as_something_else_is_what_it_was_begun_as() -> None:
    seen = Seen()
    seen.reader.think(0, ("summary", 0), "t", whole=False)
    seen.reader.done(0, raw(type="novel"))
    assert seen.deltas == [BlockStart(0, BlockKind.REASONING), Delta(0, "t"), BlockStop(0)]


def test_items_without_a_type_are_nothing() -> None:
    seen = Seen()
    seen.reader.added(0, raw(id="x"))
    seen.reader.done(0, raw(id="x"))
    assert (seen.deltas, seen.failures) == ([], [])


def test_a_last_event_that_is_the_first_tells_all() -> None:
    seen = Seen()
    seen.reader.finish_all([raw(type="message", content=[{"type": "text", "text": "a"}]), raw(type="odd")])
    assert [type(delta) for delta in seen.deltas] == [BlockStart, Delta, BlockStop, BlockStart, BlockStop]


def test_a_last_event_completes_only_what_is_open_and_of_its_type() -> None:
    seen = Seen()
    seen.reader.added(0, raw(type="message"))
    seen.reader.text(1, 0, BlockKind.TEXT, "b", whole=False)
    seen.reader.finish_all(
        [
            raw(type="message", content=[{"type": "output_text", "text": "a"}]),
            raw(type="reasoning"),
            raw(type="message"),
        ]
    )
    assert [delta.text for delta in seen.deltas if isinstance(delta, Delta)] == ["b", "a"]
    assert sum(isinstance(delta, BlockStop) for delta in seen.deltas) == 2


def test_text_of_another_kind_than_its_block_is_passed_over() -> None:
    seen = Seen()
    seen.reader.text(0, 0, BlockKind.TEXT, "a", whole=False)
    seen.reader.text(0, 0, BlockKind.REFUSAL, "b", whole=False)
    seen.reader.added(1, raw(type="function_call", call_id="c", name="f"))
    seen.reader.done(1, raw(type="reasoning", summary=[{"text": "t"}], encrypted_content="e"))
    seen.reader.text(2, 0, BlockKind.REFUSAL, "r", whole=True)
    seen.reader.annotation(2, 0, raw(url="u"))
    assert [delta.text for delta in seen.deltas if isinstance(delta, Delta)] == ["a", "r"]
    assert not any(isinstance(delta, Signed | Annotated) for delta in seen.deltas)


def test_items_parts_and_open_calls_are_bounded() -> None:
    items, parts, calls = Seen(), Seen(), Seen()
    for index in range(4097):
        items.reader.added(index, raw(type="message"))
        parts.reader.text(0, index, BlockKind.TEXT, "x", whole=False)
    for index in range(129):
        calls.reader.added(index, raw(type="function_call", call_id="c", name="f"))
    assert [len(seen.failures) for seen in (items, parts, calls)] == [1, 1, 1]
