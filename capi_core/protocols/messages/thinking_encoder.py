"""How hard the model is to think: `thinking` and `output_config.effort`.

Source: Anthropic API reference, "Create a Message", `thinking`, `output_config`; "Extended thinking"; wire.md 1.3, 1.5.
A model takes a budget in tokens or thinks adaptively, with an effort; the target says which, and if it does not, the
sender's own form is kept and others' efforts go as budgets, which all models took first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.conversation import Conversation, Effort, ReasoningRequest, Role, ThinkingMode
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.request_wire import BUDGETS, LEAST_BUDGET, effort_of
from capi_core.target import Target, ThinkingSupport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_core.protocols.messages.turn_encoder import Message

__all__ = ["put_thinking"]

_ORDER: Final = tuple(Effort)
_TAKEN: Final = ("low", "medium", "high", "xhigh", "max")
"""The efforts that Messages knows."""
_PATH: Final = "$.reasoning"
_THINKING: Final = ("thinking", "redacted_thinking")


def put_thinking(
    request: dict[str, object],
    config: dict[str, object],
    conversation: Conversation,
    target: Target,
    messages: Sequence[Message],
    max_tokens: int,
    ledger: Ledger,
) -> bool:
    """Puts `thinking` into `request` and `effort` into its `output_config`, which is `config`. `messages` and
    `max_tokens`: the request's own. Returns whether the model is told to think: sampling and the choice of tools are
    limited then."""
    asked = conversation.reasoning
    native = conversation.protocol is Protocol.MESSAGES
    off = asked.mode is ThinkingMode.OFF or asked.effort is Effort.NONE
    if native and asked.mode is not ThinkingMode.ADAPTIVE:
        _put_effort(config, asked.effort, target, ledger)
    if off:
        if target.thinking is not ThinkingSupport.NONE:
            request["thinking"] = {"type": "disabled"}
        return False
    if asked.mode is ThinkingMode.DEFAULT and asked.budget_tokens is None and (native or asked.effort is None):
        return False
    if target.thinking is ThinkingSupport.NONE:
        ledger.dropped(_PATH, "the model does not think")
        return False
    if _is_adaptive(asked, target):
        _put_adaptive(request, config, asked, target, ledger)
        return True
    return _put_budget(request, asked, target, messages, max_tokens, ledger)


def _is_adaptive(asked: ReasoningRequest, target: Target) -> bool:
    if target.thinking is ThinkingSupport.UNKNOWN:
        return asked.mode is ThinkingMode.ADAPTIVE
    return target.thinking is ThinkingSupport.ADAPTIVE


def _put_adaptive(
    request: dict[str, object], config: dict[str, object], asked: ReasoningRequest, target: Target, ledger: Ledger
) -> None:
    effort = asked.effort
    if effort is None and asked.budget_tokens is not None:
        effort = effort_of(asked.budget_tokens)
        ledger.add(Change.ALTERED, f"{_PATH}.budget_tokens", "the model takes efforts and no budgets: the nearest goes")
    _put_effort(config, effort, target, ledger)
    request["thinking"] = {"type": "adaptive", **_display(asked)}


def _put_effort(config: dict[str, object], effort: Effort | None, target: Target, ledger: Ledger) -> None:
    """Puts the nearest effort that Messages and the model take; of two that are as near, the weaker."""
    if effort is None or effort is Effort.NONE:
        return
    taken = [one for one in _ORDER if one.value in _TAKEN and (target.efforts is None or one.value in target.efforts)]
    place = _ORDER.index(effort)
    nearest = min(taken, key=lambda one: abs(_ORDER.index(one) - place), default=None)
    if nearest is not effort:
        told = ", ".join(one.value for one in taken) or "no effort"
        ledger.add(Change.ALTERED, f"{_PATH}.effort", f"the model takes {told}")
    if nearest is not None:
        config["effort"] = nearest.value


def _put_budget(
    request: dict[str, object],
    asked: ReasoningRequest,
    target: Target,
    messages: Sequence[Message],
    limit: int,
    ledger: Ledger,
) -> bool:
    reason = _cannot_think(messages)
    most = limit - 1 if target.max_thinking_budget is None else min(limit - 1, target.max_thinking_budget)
    least = max(LEAST_BUDGET, target.min_thinking_budget or 0)
    if reason is None and most < least:
        reason = "the limit of tokens leaves no room for thinking"
    if reason is not None:
        ledger.add(Change.ALTERED, _PATH, f"thinking is off: {reason}")
        return False
    wanted = asked.budget_tokens
    if wanted is None:
        wanted = BUDGETS[asked.effort or Effort.MEDIUM]
        ledger.add(Change.ALTERED, f"{_PATH}.effort", "a budget in tokens stands for the effort")
    budget = max(least, min(wanted, most))
    if budget != wanted:
        ledger.add(Change.ALTERED, f"{_PATH}.budget_tokens", f"the model and its limits take {least} to {most} tokens")
    request["thinking"] = {"type": "enabled", "budget_tokens": budget, **_display(asked)}
    return True


def _display(asked: ReasoningRequest) -> dict[str, object]:
    if asked.summary is None:
        return {}
    return {"display": "omitted" if asked.summary == "omitted" else "summarized"}


def _cannot_think(messages: Sequence[Message]) -> str | None:
    """Why Anthropic refuses thinking with a budget for this conversation; `None` when it does not.

    An answer that the client began cannot be thought about, and a run of tool calls must have started with thinking: it
    is lost where the reasoning was another provider's.
    """
    spoken = [message for message in messages if message.role is not Role.SYSTEM]
    if spoken[-1].role is Role.ASSISTANT:
        return "the answer is begun by the client"
    calls = False
    for message in reversed(spoken):
        kind = message.first_type()
        if message.role is Role.ASSISTANT:
            calls = True
            if kind in _THINKING:
                return None
        elif kind != "tool_result":
            break
    return "the tool calls before did not begin with thinking" if calls else None
