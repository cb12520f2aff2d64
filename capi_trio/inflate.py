"""A compressed answer, unpacked as it comes and a bounded piece at a time: a small body may stand for a huge one.

Deflate shrinks to a thousandth (RFC 1951), so a piece of the network's size can hold 64 MiB; whoever reads an answer
with a limit in mind must get to look at it before all of that is in memory.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Self

__all__ = ["CODINGS", "Inflated"]

_PIECE: Final = 64 * 1024
_FRAME_HEAD: Final = 2
CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
"""What can be unpacked (RFC 9110 8.4.1), in small letters."""


class Inflated:
    """The content of `chunks` in pieces of at most 64 KiB. `coding`: as the head has it. Iterate once.

    Raises `zlib.error` when it is not what it says it is, or ends too early; and for any content whose coding is none
    of `CODINGS`, as several on top of each other are. A class and not a generator, which would
    have to be closed by whoever reads only a part.
    """

    def __init__(self, chunks: AsyncIterator[bytes], coding: str) -> None:
        self._chunks = chunks
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS if coding == "deflate" else zlib.MAX_WBITS | 16)
        self._unwrap: Callable[[bytes], bytes] = self._first if coding == "deflate" else self._next
        if coding not in CODINGS:
            self._unwrap = self._refuse
        self._begun = self._full = False
        self._head = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._full:  # there may be more of it, also when no packed byte is left
                await trio.lowlevel.checkpoint()  # nothing is waited for: the others must have their turn
                piece = self._unwrap(self._inflater.unconsumed_tail)
            else:
                piece = self._unwrap(await self._more())
            self._full = len(piece) == _PIECE
            if piece:
                return piece

    async def _more(self) -> bytes:
        """The next packed bytes; what is behind the end is dropped. Raises `StopAsyncIteration`, `zlib.error`."""
        async for chunk in self._chunks:
            if chunk and not self._inflater.eof:
                self._begun = True
                return chunk
        if self._begun and not self._inflater.eof:
            raise zlib.error("the compressed content ends too early")
        raise StopAsyncIteration

    def _refuse(self, data: bytes) -> bytes:
        raise zlib.error("an unknown content-encoding")

    def _first(self, data: bytes) -> bytes:
        """Some mean the bare format by `deflate`, without zlib's frame around it (RFC 9110 8.4.1.2)."""
        self._head += data
        try:
            piece = self._next(data)
        except zlib.error:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            piece = self._next(self._head)
        if len(self._head) >= _FRAME_HEAD:  # only then it is clear which of the two it is
            self._unwrap = self._next
        return piece

    def _next(self, data: bytes) -> bytes:
        return self._inflater.decompress(data, _PIECE)
