"""What a translated request is encoded for: the model at the upstream, and what that model is known to take.

An encoder asks the target instead of guessing. Unknown (`None`, UNKNOWN) is not "no": the upstream's own error is
better than our guess, and a value that it may understand is sent.
"""

from __future__ import annotations

import enum

from attrs import frozen

__all__ = ["ReasoningMember", "Target", "ThinkingSupport"]


class ThinkingSupport(enum.Enum):
    """Which form of Messages' `thinking` a model takes (wire.md 1.8, `capabilities.supports`)."""

    UNKNOWN = "unknown"
    NONE = "none"
    ENABLED = "enabled"
    """`thinking: {type: enabled, budget_tokens}`."""
    ADAPTIVE = "adaptive"
    """`thinking: {type: adaptive}` with `output_config.effort`."""


class ReasoningMember(enum.Enum):
    """Under which member of a Chat message an upstream takes reasoning back. NONE: it takes none, it is left out."""

    NONE = "none"
    REASONING_CONTENT = "reasoning_content"
    REASONING = "reasoning"
    REASONING_TEXT = "reasoning_text"
    """Copilot's, together with `reasoning_opaque` for the signature."""


@frozen
class Target:
    """`model`: its name at the upstream. Token counts are per request.

    `efforts`: the values of reasoning effort it takes. `images`, `image_urls`: whether it takes images, and images by
    URL. `max_tokens_member`: Chat's name for the limit; newer models refuse `max_tokens`, older servers only know that.
    `ask_usage`: ask for usage on streams. `sampling`: it takes temperature and the like. `developer_role`: it knows the
    role `developer`.
    """

    model: str
    max_output_tokens: int | None = None
    thinking: ThinkingSupport = ThinkingSupport.UNKNOWN
    min_thinking_budget: int | None = None
    max_thinking_budget: int | None = None
    efforts: tuple[str, ...] | None = None
    images: bool | None = None
    image_urls: bool = True
    reasoning_member: ReasoningMember = ReasoningMember.NONE
    max_tokens_member: str = "max_completion_tokens"
    ask_usage: bool = True
    sampling: bool = True
    developer_role: bool = True
