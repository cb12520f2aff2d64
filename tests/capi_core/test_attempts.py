"""Whom a request asks, and whom next."""

import pytest

from capi_core.aliases import Alias, Catalog, Fallback, UpstreamModels
from capi_core.attempts import Attempts, Settings, may_fall_back
from capi_core.commands import Failure, Operation
from capi_core.errors import ProtocolError
from capi_core.planning import Plan, Planner
from capi_core.protocols.kinds import Protocol
from capi_core.routing import UpstreamTraits

CATALOG = Catalog(
    aliases={
        "fast": Alias("fast", "a-1", via="a", fallbacks=(Fallback("b-1", "b"), Fallback("c-1", "c"))),
        "lone": Alias("lone", "a-1", via="a"),
    },
    upstreams=tuple(UpstreamModels(name) for name in "abc"),
)
TRAITS = {
    "a": UpstreamTraits(),
    "b": UpstreamTraits(protocols=(Protocol.MESSAGES,), strict_fidelity=True),
    "c": UpstreamTraits(protocols=(Protocol.RESPONSES,)),
}


def attempts(operation: Operation = Operation.CHAT) -> Attempts:
    return Attempts(operation, Settings(CATALOG, TRAITS), Planner("req_1", 0, (), 1000))


def plan(found: Plan | bytes | None) -> Plan:
    assert isinstance(found, Plan)
    return found


def test_each_upstream_is_asked_in_its_own_protocol_and_for_its_own_model() -> None:
    asking = attempts()
    first = plan(asking.first(b'{"model":"fast","messages":[{"role":"user","content":"hi"}]}'))
    assert (first.upstream, first.operation, asking.model, asking.failed) == ("a", Operation.CHAT, "fast", ())
    second = plan(asking.next())
    assert (second.upstream, second.operation, asking.failed) == ("b", Operation.MESSAGES, ("a",))
    assert b'"b-1"' in second.body
    third = plan(asking.next())
    assert (third.upstream, third.operation, asking.failed) == ("c", Operation.RESPONSES, ("a", "b"))
    assert asking.next() is None
    assert asking.resolution is not None
    assert asking.resolution.upstream == "c"
    assert asking.failed == ("a", "b")


def test_an_upstream_that_speaks_too_little_for_a_request_is_passed_over() -> None:
    """Here: the second one is strict, and would lose `logit_bias`."""
    asking = attempts()
    plan(asking.first(b'{"model":"fast","messages":[{"role":"user","content":"hi"}],"logit_bias":{"5":1}}'))
    assert plan(asking.next()).upstream == "c"
    assert asking.failed == ("a",)


def test_an_alias_without_fallbacks_has_one_attempt() -> None:
    asking = attempts()
    plan(asking.first(b'{"model":"lone","messages":[]}'))
    assert asking.next() is None
    assert asking.failed == ()


def test_nobody_is_next_before_anybody_was_first() -> None:
    assert attempts().next() is None
    with pytest.raises(ProtocolError):
        attempts().first(b"no JSON")


def test_embeddings_and_counts_have_their_attempts_too() -> None:
    asking = attempts(Operation.EMBEDDINGS)
    assert plan(asking.first(b'{"model":"fast","input":"x"}')).operation is Operation.EMBEDDINGS
    assert plan(asking.next()).upstream == "b"
    asking = attempts(Operation.COUNT_TOKENS)
    counted = asking.first(b'{"model":"fast","messages":[{"role":"user","content":"hi"}]}')
    assert isinstance(counted, bytes)
    assert asking.next() is None  # what is counted here needs nobody
    counts = Settings(CATALOG, {"a": UpstreamTraits(protocols=(Protocol.MESSAGES,), count_tokens=True)})
    asking = Attempts(Operation.COUNT_TOKENS, counts, Planner("req_1", 0, (), 1000))
    first = plan(asking.first(b'{"model":"fast","messages":[{"role":"user","content":"hi"}]}'))
    assert (first.upstream, first.operation) == ("a", Operation.COUNT_TOKENS)


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        (400, False),
        (401, True),
        (402, True),
        (403, False),
        (404, False),
        (407, True),
        (408, True),
        (413, False),
        (422, False),
        (429, True),
        (500, True),
        (503, True),
        (529, True),
        (Failure.UNREACHABLE, True),
        (Failure.TIMEOUT, True),
        (Failure.BROKEN, True),
        (Failure.SHUTDOWN, False),
        (Failure.INTERNAL, False),
    ],
)
def test_another_upstream_helps_against_what_is_this_ones_fault(why: int | Failure, expected: bool) -> None:
    assert may_fall_back(why) is expected


def test_without_being_told_there_are_no_secrets_to_hide() -> None:
    assert Settings(CATALOG).hidden() == ()
