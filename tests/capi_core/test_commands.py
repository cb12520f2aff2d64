"""The vocabulary is plain, frozen data, and keeps bodies out of its reprs."""

from __future__ import annotations

import attrs
import pytest

from capi_core import exchange
from capi_core.commands import EndResponse, Operation, Outcome, SendBody, SendRequest, StartResponse
from capi_core.protocols.kinds import Protocol

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


def test_outcomes_and_operations_are_told_apart_by_their_values() -> None:
    assert len({outcome.value for outcome in Outcome}) == len(Outcome)
    assert {operation.value: operation.protocol for operation in Operation} == {
        "/chat/completions": Protocol.CHAT,
        "/responses": Protocol.RESPONSES,
        "/messages": Protocol.MESSAGES,
        "/messages/count_tokens": Protocol.MESSAGES,
        "/embeddings": Protocol.CHAT,
    }


def test_an_embedder_finds_everything_in_one_place() -> None:
    assert {"SendRequest", "StartResponse", "SendBody", "EndResponse", "Outcome"} <= set(exchange.__all__)
