"""What streamed and whole answers of Chat have in common."""

import json

import pytest

from capi_core.deltas import Annotation, Finish, FinishReason
from capi_core.fidelity import Ledger
from capi_core.protocols.chat.answer_parts import answer_created, answer_id, citation, finish_word
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol


def test_ids_and_times_are_the_upstreams_where_it_gave_them() -> None:
    envelope = Envelope("rid", "m", now_s=4)
    assert (answer_id("x", envelope), answer_id("", envelope)) == ("x", "chatcmpl-rid")
    assert (answer_created(0, envelope), answer_created(None, envelope)) == (0, 4)


@pytest.mark.parametrize(
    ("finish", "word", "losses"),
    [
        (Finish(FinishReason.STOP), "stop", 0),
        (Finish(FinishReason.TOOL_CALLS), "tool_calls", 0),
        (Finish(FinishReason.STOP_SEQUENCE, "x"), "stop", 1),
        (Finish(FinishReason.PAUSE), "stop", 1),
        (Finish(FinishReason.CONTEXT_FULL), "length", 1),
        (Finish(FinishReason.CONTENT_FILTER, detail="why"), "content_filter", 1),
    ],
)
def test_every_end_has_a_word(finish: Finish, word: str, losses: int) -> None:
    ledger = Ledger()
    assert (finish_word(finish, ledger), ledger.losses) == (word, losses)


def test_a_citation_of_chat_is_kept_on_one_line() -> None:
    raw = b'{\n "type": "url_citation"\n}'
    assert citation(Annotation(Protocol.CHAT, raw), 0, Ledger()) == b'{"type":"url_citation"}'


@pytest.mark.parametrize(
    ("raw", "place"), [(b'{"start_index":1,"end_index":2}', (1, 2)), (b"{}", (7, 7)), (b'{"start_index":"x"}', (7, 7))]
)
def test_a_cited_page_is_told_with_its_place(raw: bytes, place: tuple[int, int]) -> None:
    found = citation(Annotation(Protocol.RESPONSES, raw, "u"), 7, Ledger())
    assert found is not None
    cited = {"start_index": place[0], "end_index": place[1], "title": "u", "url": "u"}
    assert json.loads(found) == {"type": "url_citation", "url_citation": cited}


def test_what_cites_no_page_is_noted() -> None:
    ledger = Ledger()
    assert citation(Annotation(Protocol.MESSAGES, b"{}"), 0, ledger) is None
    assert ledger.losses == 1
