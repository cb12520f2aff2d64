"""How reasoning crosses protocols: a signature of one protocol inside the field of another, and back.

A provider takes reasoning back only with the blob that it gave along: Messages' `signature` and redacted `data`,
Responses' `encrypted_content`, Copilot's `reasoning_opaque`. A client that speaks another protocol has one such field,
which it keeps and replays unread. So the blob travels in it behind a versioned prefix that names its origin:

    capi1.responses.<blob>

On replay the prefix tells our carriage from a blob of the field's own protocol, and whose it is: it is given back to a
provider of its origin byte for byte, and to no other.
"""

from __future__ import annotations

from typing import Final

from capi_core.conversation import Signature
from capi_core.protocols.kinds import Protocol

__all__ = ["MARK", "unwrap", "wrap"]

MARK: Final = "capi1."
"""How a carried blob starts. No provider's own does: base64 has no full stop."""

_BY_NAME: Final = {protocol.value: protocol for protocol in Protocol}


def wrap(signature: Signature, field: Protocol) -> str:
    """The text for a signature field of protocol `field`; as it is, when that is where it comes from."""
    if signature.origin is field:
        return signature.value
    return f"{MARK}{signature.origin.value}.{signature.value}"


def unwrap(text: str, field: Protocol) -> Signature:
    """The signature that stands in a field of protocol `field`."""
    if text.startswith(MARK):
        name, dot, value = text[len(MARK) :].partition(".")
        origin = _BY_NAME.get(name)
        if dot and origin is not None:
            return Signature(origin, value)
    return Signature(field, text)
