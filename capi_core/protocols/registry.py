"""The table of protocols: one row each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.protocols.chat.row import CHAT
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.row import MESSAGES
from capi_core.protocols.responses.row import RESPONSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.protocols.codec import Codec

__all__ = ["CODECS"]

CODECS: Final[Mapping[Protocol, Codec]] = {
    Protocol.CHAT: CHAT,
    Protocol.RESPONSES: RESPONSES,
    Protocol.MESSAGES: MESSAGES,
}
