"""A signature travels inside another protocol's field, and comes out as it went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Signature
from capi_core.protocols.carriage import MARK, unwrap, wrap
from capi_core.protocols.kinds import Protocol

OWN = st.text().filter(lambda text: not text.startswith(MARK))


@given(st.builds(Signature, st.sampled_from(Protocol), OWN), st.sampled_from(Protocol))
def test_what_is_wrapped_is_unwrapped(signature: Signature, field: Protocol) -> None:
    assert unwrap(wrap(signature, field), field) == signature


def test_at_home_it_is_not_wrapped() -> None:
    assert wrap(Signature(Protocol.MESSAGES, "S"), Protocol.MESSAGES) == "S"
    assert wrap(Signature(Protocol.MESSAGES, "S"), Protocol.CHAT) == "capi1.messages.S"


@pytest.mark.parametrize("text", ["", "S", "capi1.", "capi1.messages", "capi1.other.S", "capi2.messages.S"])
def test_what_is_no_carriage_is_the_fields_own(text: str) -> None:
    assert unwrap(text, Protocol.CHAT) == Signature(Protocol.CHAT, text)
