"""What a request to an OpenAI model is fitted to, in Chat and in Responses alike: efforts and identifiers.

Source: OpenAI API reference; wire.md 1.1, 1.2, 1.5.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from capi_core.conversation import Effort, ReasoningRequest, ThinkingMode
from capi_core.fidelity import Change, Ledger

if TYPE_CHECKING:
    from capi_core.target import Target

__all__ = ["short_identity", "taken_effort", "wanted_effort"]

_ORDER: Final = tuple(Effort)
_MOST_ID: Final = 64
"""Characters of `safety_identifier` and `prompt_cache_key`."""
_BUDGETS: Final = ((4096, Effort.HIGH), (2048, Effort.MEDIUM), (1024, Effort.LOW), (0, Effort.MINIMAL))
"""The effort that a budget of reasoning tokens comes nearest to (wire.md 1.5)."""


def wanted_effort(asked: ReasoningRequest, ledger: Ledger) -> Effort | None:
    """The effort that a request asks for, or that its budget comes nearest to; `None` when it leaves it open."""
    if asked.mode is ThinkingMode.OFF:
        return Effort.NONE
    if asked.effort is not None or asked.budget_tokens is None:
        return asked.effort
    ledger.add(Change.ALTERED, "$.reasoning.budget_tokens", "OpenAI has efforts and no budgets; the nearest is asked")
    return next(effort for least, effort in _BUDGETS if asked.budget_tokens >= least or not least)


def taken_effort(effort: Effort | None, target: Target, ledger: Ledger) -> Effort | None:
    """The nearest effort that the model takes; of two that are as near, the weaker."""
    if effort is None or target.efforts is None or effort.value in target.efforts:
        return effort
    known = [one for one in _ORDER if one.value in target.efforts]
    place = _ORDER.index(effort)
    taken = min(known, key=lambda one: abs(_ORDER.index(one) - place), default=None)
    ledger.add(Change.ALTERED, "$.reasoning.effort", f"the model takes {', '.join(target.efforts) or 'no effort'}")
    return taken


def short_identity(text: str, path: str, ledger: Ledger) -> str:
    """`text`, or in place of one that is too long its digest: it still tells users, and prompts, apart."""
    if len(text) <= _MOST_ID:
        return text
    ledger.add(Change.ALTERED, path, f"longer than {_MOST_ID} characters: a digest is sent")
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
