"""How hard to think is told in the form that the model takes, and within its limits."""

import pytest

from capi_core.conversation import Conversation, Effort, ReasoningRequest, Role, ThinkingMode
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.thinking_encoder import put_thinking
from capi_core.protocols.messages.turn_encoder import Message
from capi_core.target import Target, ThinkingSupport

TEXT = {"type": "text", "text": "a"}
HI = (Message(Role.USER, [TEXT]),)
ENABLED, ADAPTIVE, OFF = ThinkingMode.ENABLED, ThinkingMode.ADAPTIVE, ThinkingMode.OFF
CHAT, MESSAGES = Protocol.CHAT, Protocol.MESSAGES


def told(
    asked: ReasoningRequest,
    target: Target | None = None,
    sender: Protocol = CHAT,
    limit: int = 32_000,
    messages: tuple[Message, ...] = HI,
) -> tuple[object, object, list[Change]]:
    """`thinking`, `effort`, and what was noted."""
    ledger = Ledger()
    request: dict[str, object] = {}
    config: dict[str, object] = {}
    conversation = Conversation(sender, "m", (), reasoning=asked)
    thinks = put_thinking(request, config, conversation, target or Target("up"), messages, limit, ledger)
    assert thinks is (request.get("thinking") not in (None, {"type": "disabled"}))
    return request.get("thinking"), config.get("effort"), [entry.change for entry in ledger]


def budget(tokens: int, **more: str) -> dict[str, object]:
    return {"type": "enabled", "budget_tokens": tokens, **more}


def target(
    thinking: ThinkingSupport,
    *,
    efforts: tuple[str, ...] | None = None,
    least: int | None = None,
    most: int | None = None,
) -> Target:
    return Target("up", thinking=thinking, efforts=efforts, min_thinking_budget=least, max_thinking_budget=most)


@pytest.mark.parametrize("sender", Protocol)
def test_nothing_asked_is_nothing_told(sender: Protocol) -> None:
    assert told(ReasoningRequest(), None, sender) == (None, None, [])


@pytest.mark.parametrize(
    ("effort", "tokens"),
    [(Effort.LOW, 1024), (Effort.MEDIUM, 2048), (Effort.HIGH, 4096), (Effort.XHIGH, 8192), (Effort.MAX, 16384)],
)
def test_an_effort_goes_as_a_budget(effort: Effort, tokens: int) -> None:
    assert told(ReasoningRequest(effort=effort)) == (budget(tokens), None, [Change.ALTERED])
    wanted = target(ThinkingSupport.ADAPTIVE)
    assert told(ReasoningRequest(effort=effort), wanted) == ({"type": "adaptive"}, effort.value, [])


@pytest.mark.parametrize("asked", [ReasoningRequest(OFF), ReasoningRequest(effort=Effort.NONE)])
def test_thinking_is_turned_off_where_it_is_known(asked: ReasoningRequest) -> None:
    assert told(asked) == ({"type": "disabled"}, None, [])
    assert told(asked, target(ThinkingSupport.NONE)) == (None, None, [])


def test_a_model_that_does_not_think_is_not_asked_to() -> None:
    assert told(ReasoningRequest(effort=Effort.LOW), target(ThinkingSupport.NONE)) == (None, None, [Change.DROPPED])


@pytest.mark.parametrize(
    ("asked", "thinking", "effort"),
    [
        (ReasoningRequest(effort=Effort.MAX), None, "max"),
        (ReasoningRequest(OFF, Effort.LOW), {"type": "disabled"}, "low"),
        (ReasoningRequest(ADAPTIVE, Effort.HIGH), {"type": "adaptive"}, "high"),
        (ReasoningRequest(ADAPTIVE, summary="omitted"), {"type": "adaptive", "display": "omitted"}, None),
        (ReasoningRequest(ENABLED, Effort.LOW, 5000, "auto"), budget(5000, display="summarized"), "low"),
    ],
)
def test_what_was_written_for_messages_stays_as_it_is(
    asked: ReasoningRequest, thinking: object, effort: object
) -> None:
    assert told(asked, None, MESSAGES) == (thinking, effort, [])


def test_the_models_form_wins() -> None:
    wanted = target(ThinkingSupport.ENABLED)
    assert told(ReasoningRequest(ADAPTIVE), wanted, MESSAGES) == (budget(2048), None, [Change.ALTERED])
    wanted = target(ThinkingSupport.ADAPTIVE)
    found = told(ReasoningRequest(ENABLED, None, 3000), wanted, MESSAGES)
    assert found == ({"type": "adaptive"}, "medium", [Change.ALTERED])
    assert told(ReasoningRequest(ENABLED), wanted) == ({"type": "adaptive"}, None, [])


@pytest.mark.parametrize(
    ("effort", "efforts", "taken", "noted"),
    [
        (Effort.MINIMAL, None, "low", [Change.ALTERED]),
        (Effort.XHIGH, ("low", "high", "max"), "high", [Change.ALTERED]),
        (Effort.LOW, ("minimal",), None, [Change.ALTERED]),
        (Effort.LOW, ("low",), "low", []),
    ],
)
def test_the_nearest_effort_that_the_model_takes(
    effort: Effort, efforts: tuple[str, ...] | None, taken: str | None, noted: list[Change]
) -> None:
    wanted = target(ThinkingSupport.ADAPTIVE, efforts=efforts)
    assert told(ReasoningRequest(effort=effort), wanted) == ({"type": "adaptive"}, taken, noted)


@pytest.mark.parametrize(
    ("asked", "limit", "least", "most", "tokens"),
    [
        (31_999, 32_000, None, None, 31_999),
        (32_000, 32_000, None, None, 31_999),
        (10, 32_000, None, None, 1024),
        (1024, 32_000, 2000, None, 2000),
        (9000, 32_000, None, 8000, 8000),
        (9000, 1025, None, None, 1024),
    ],
)
def test_a_budget_is_kept_within_the_limits(
    asked: int, limit: int, least: int | None, most: int | None, tokens: int
) -> None:
    wanted = target(ThinkingSupport.ENABLED, least=least, most=most)
    found = told(ReasoningRequest(ENABLED, None, asked), wanted, limit=limit)
    assert found == (budget(tokens), None, [] if asked == tokens else [Change.ALTERED])


@pytest.mark.parametrize(("limit", "most"), [(1024, None), (32_000, 1000)])
def test_without_room_for_a_budget_there_is_no_thinking(limit: int, most: int | None) -> None:
    wanted = target(ThinkingSupport.ENABLED, most=most)
    assert told(ReasoningRequest(effort=Effort.LOW), wanted, limit=limit) == (None, None, [Change.ALTERED])


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "S"}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}


@pytest.mark.parametrize(
    ("messages", "thinks"),
    [
        ((*HI, Message(Role.ASSISTANT, [TEXT])), False),
        ((*HI, Message(Role.ASSISTANT, [TEXT]), *HI), True),
        ((*HI, Message(Role.ASSISTANT, [USE]), Message(Role.USER, [RESULT])), False),
        ((*HI, Message(Role.ASSISTANT, [USE]), Message(Role.USER, [RESULT]), Message(Role.SYSTEM, [TEXT])), False),
        ((*HI, Message(Role.ASSISTANT, [THOUGHT, USE]), Message(Role.USER, [RESULT])), True),
        (
            (
                *HI,
                Message(Role.ASSISTANT, [THOUGHT, USE]),
                Message(Role.USER, [RESULT]),
                Message(Role.ASSISTANT, [USE]),
                Message(Role.USER, [RESULT]),
            ),
            True,
        ),
        (
            (*HI, Message(Role.ASSISTANT, [USE]), Message(Role.USER, [RESULT]), Message(Role.ASSISTANT, [TEXT]), *HI),
            True,
        ),
        ((Message(Role.USER, [RESULT]),), True),
    ],
)
def test_thinking_is_off_where_the_conversation_does_not_allow_it(messages: tuple[Message, ...], thinks: bool) -> None:
    found = told(ReasoningRequest(ENABLED, None, 2000), messages=messages)
    assert found == ((budget(2000), None, []) if thinks else (None, None, [Change.ALTERED]))
    assert told(ReasoningRequest(ADAPTIVE), None, MESSAGES, messages=messages)[0] == {"type": "adaptive"}


@pytest.mark.parametrize(
    "model",
    ["claude-opus-4-20250514", "claude-opus-4-5-20251101", "claude-opus-5", "claude-sonnet-5", "claude-sonnet-4.6"],
)
def test_no_form_is_guessed_from_a_models_name(model: str) -> None:
    """A date is no version, and tomorrow's names are nobody's to parse: only the model's record decides."""
    for asked, thinking, effort in (
        (ReasoningRequest(ENABLED, None, 3000), budget(3000), None),
        (ReasoningRequest(ADAPTIVE, Effort.HIGH), {"type": "adaptive"}, "high"),
        (ReasoningRequest(effort=Effort.MAX), None, "max"),
    ):
        assert told(asked, Target(model), MESSAGES) == (thinking, effort, [])
