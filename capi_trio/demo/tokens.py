"""Text in pieces: how a reply is broken up for streaming, measured and cut. Pure.

One token is four bytes of UTF-8, rounded up: a stated estimate, the same whether a reply is streamed or not.
"""

import re
from itertools import accumulate, pairwise
from typing import Final

__all__ = ["BYTES_PER_TOKEN", "estimate_tokens", "keep", "pieces_of", "regroup", "within"]

BYTES_PER_TOKEN: Final = 4

# A word with the space before it; longer runs (URLs, scripts without spaces) break after twelve characters.
_PIECE: Final = re.compile(r"\s*\S{1,12}|\s+")


def estimate_tokens(text: str) -> int:
    """The number of tokens in `text`: 0 for nothing, else at least 1."""
    return -(-len(text.encode(errors="surrogatepass")) // BYTES_PER_TOKEN)


def pieces_of(text: str) -> tuple[str, ...]:
    """`text` in natural pieces; joined they are `text` again."""
    return tuple(_PIECE.findall(text))


def regroup(pieces: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The same text in `count` pieces, or in as many as there are when `count` is larger; 0 keeps nothing."""
    have = len(pieces)
    if count >= have:
        return pieces
    if count == 0:
        return ()
    edges = [have * index // count for index in range(count + 1)]
    return tuple("".join(pieces[start:end]) for start, end in pairwise(edges))


def keep(pieces: tuple[str, ...], length: int) -> tuple[str, ...]:
    """The first `length` characters of the pieces, broken where the pieces were broken."""
    ends = accumulate(len(piece) for piece in pieces)
    starts = ((piece, end - len(piece)) for piece, end in zip(pieces, ends, strict=True))
    return tuple(piece[: length - start] for piece, start in starts if start < length)


def within(text: str, tokens: int) -> int:
    """How many characters of `text` fit in `tokens` tokens; never half of a character."""
    room = tokens * BYTES_PER_TOKEN
    return len(text.encode(errors="surrogatepass")[:room].decode(errors="ignore"))
