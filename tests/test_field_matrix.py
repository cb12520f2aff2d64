"""docs/protocols.md says of every request member what the codecs do with it."""

import pytest

from capi_core.protocols.kinds import Protocol
from tests.support.field_matrix import DOCUMENT, fate, rewritten
from tests.support.request_examples import BASES, EXAMPLES, Example


def test_the_document_is_what_the_codecs_do() -> None:
    written = DOCUMENT.read_text()
    assert rewritten(written) == written, "run: python -m tests.support.field_matrix"
    for protocol in Protocol:
        assert f"<!-- requests of {protocol.value} -->" in written


@pytest.mark.parametrize("client", list(Protocol))
def test_a_member_that_nobody_knows_is_dropped_and_said_to_be(client: Protocol) -> None:
    for upstream in Protocol:
        if upstream is not client:
            assert fate(client, Example("x", {"nobody_knows_this": [1]}), upstream) == "dropped"


@pytest.mark.parametrize("client", list(Protocol))
def test_nothing_happens_to_what_is_not_there(client: Protocol) -> None:
    for upstream in Protocol:
        if upstream is not client:
            assert fate(client, Example("nothing", {}), upstream) == "no effect"
    assert BASES[client]["model"] == "m"
    names = [example.name for example in EXAMPLES[client]]
    assert len(set(names)) == len(names)
