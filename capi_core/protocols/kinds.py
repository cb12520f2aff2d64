"""Which protocols there are."""

from __future__ import annotations

import enum

__all__ = ["Protocol"]


class Protocol(enum.Enum):
    """A protocol in which models are asked. The value is its name in options, logs and records."""

    CHAT = "chat"
    """OpenAI Chat Completions."""
    RESPONSES = "responses"
    """OpenAI Responses."""
    MESSAGES = "messages"
    """Anthropic Messages."""
