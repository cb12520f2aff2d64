"""Looking into untyped JSON, and comparing a text with pieces that were not kept."""

from hypothesis import given
from hypothesis import strategies as st

from capi_core.conformance.rules import Rule, Running, Severity, integer, items, members, text


def test_only_what_has_the_wanted_type_is_found() -> None:
    parent: dict[str, object] = {"t": "x", "n": 3, "b": True, "f": 1.5}
    assert (text(parent, "t"), text(parent, "n"), text(parent, "gone")) == ("x", None, None)
    assert (integer(parent, "n"), integer(parent, "b"), integer(parent, "f")) == (3, None, None)
    assert members({"a": 1}) == {"a": 1}
    assert members([1]) == {}
    assert items([1, 2]) == [1, 2]
    assert items("ab") == []


@given(st.lists(st.text(max_size=5)), st.text(max_size=5))
def test_pieces_spell_their_text_and_no_other(pieces: list[str], other: str) -> None:
    running = Running()
    for piece in pieces:
        running.add(piece)
    whole = "".join(pieces)
    assert running.same(whole)
    assert running.same(other) == (other == whole)
    assert not running.same(whole + "x")


def test_a_rule_makes_its_violation() -> None:
    violation = Rule("r", Severity.SHOULD, "text", "source")("a.b")
    assert (violation.rule, violation.severity, violation.message) == ("r", Severity.SHOULD, "text")
    assert (violation.path, violation.event) == ("a.b", None)
