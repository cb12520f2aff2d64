"""The vocabulary is plain, frozen data, and keeps bodies out of its reprs."""

from __future__ import annotations

import attrs
import pytest

from capi_core import exchange
from capi_core.commands import EndResponse, Failure, Operation, Outcome, SendBody, SendRequest, StartResponse
from capi_core.exchange import _FAILURES

COMMANDS = [
    SendRequest("up", Operation.CHAT, (), b"secret prompt"),
    StartResponse(200, ()),
    SendBody(b"secret answer"),
    EndResponse(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_commands_are_frozen_comparable_and_silent_about_bodies(command: exchange.Command) -> None:
    assert command == attrs.evolve(command)
    assert "secret" not in repr(command)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        command.status = 1  # type: ignore[union-attr, misc] # that it cannot is the point


def test_every_failure_has_its_answer_and_outcome() -> None:
    assert set(_FAILURES) == set(Failure)
    assert all(status >= 500 for status, *_ in _FAILURES.values())


def test_outcomes_and_operations_are_told_apart_by_their_values() -> None:
    assert len({outcome.value for outcome in Outcome}) == len(Outcome)
    assert [operation.value for operation in Operation] == ["/chat/completions", "/embeddings"]


def test_an_embedder_finds_everything_in_one_place() -> None:
    assert {"SendRequest", "StartResponse", "SendBody", "EndResponse", "Outcome"} <= set(exchange.__all__)
