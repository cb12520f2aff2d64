"""Reasoning that a client hands back: sealed, so that the provider knows its own. Pure.

Real providers encrypt. Here it is enough that a seal is opaque to a gateway, is the same for the same text, and
does not fit any other: the text in base64, behind a digest of it.
"""

import base64
import binascii
import hashlib
from typing import Final

__all__ = ["seal", "unseal"]

_KEY: Final = b"capi demo provider"
_DIGEST_BYTES: Final = 16


def seal(text: str) -> str:
    """The seal of a text: base64 (RFC 4648 section 4)."""
    data = text.encode(errors="surrogatepass")
    return base64.b64encode(_digest(data) + data).decode()


def unseal(sealed: str) -> str | None:
    """The text in a seal, or None when `seal` did not make it."""
    try:
        blob = base64.b64decode(sealed, validate=True)
        digest, data = blob[:_DIGEST_BYTES], blob[_DIGEST_BYTES:]
        return data.decode(errors="surrogatepass") if digest == _digest(data) else None
    except (binascii.Error, ValueError):
        return None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, key=_KEY, digest_size=_DIGEST_BYTES).digest()
