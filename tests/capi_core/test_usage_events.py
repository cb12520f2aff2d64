"""The event of a request: what it must tell, and that it holds no text of a conversation."""

import enum
import types
import typing

import attrs
import pytest

from capi_core import commands, usage, usage_events
from capi_core.commands import Operation, Outcome
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent

NAMES = {"request_id", "key_id", "owner", "identity", "transport", "upstream", "model", "upstream_model"}
"""The fields that are text: each the name of something that the operator, the gateway or an upstream knows."""
HINTS = typing.get_type_hints(
    UsageEvent, vars(commands) | vars(usage) | vars(usage_events) | {"Protocol": Protocol, "Usage": Usage}
)


def kinds(name: str) -> set[type]:
    """The types of a field, but for `None`."""
    hint = HINTS[name]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return set(parts) - {types.NoneType}


def an_event() -> UsageEvent:
    return UsageEvent(
        ts_ms=1,
        request_id="r",
        key_id="k",
        operation=Operation.CHAT,
        transport="http",
        stream=False,
        usage_source=UsageSource.NONE,
        outcome=Outcome.OK,
        latency_ms=1.0,
    )


def test_what_nobody_told_is_none_and_not_zero() -> None:
    event = an_event()
    unknown = ("usage", "cost_micros", "ttft_ms", "queue_ms", "status", "model", "upstream", "owner", "identity")
    assert [getattr(event, name) for name in unknown] == [None] * len(unknown)


def test_an_event_does_not_change() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        an_event().losses = 1  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(UsageEvent)])
def test_only_names_are_text(name: str) -> None:
    """Everything else is a number, a member of an enum, or the counts of tokens."""
    if name in NAMES:
        assert kinds(name) == {str}
    else:
        [kind] = kinds(name)
        assert kind in {int, float, bool, Usage} or issubclass(kind, enum.Enum)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Usage)])
def test_the_usage_of_an_event_is_counts(name: str) -> None:
    assert typing.get_type_hints(Usage)[name] == int | None
