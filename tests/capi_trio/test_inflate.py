"""Compressed answers: the same content however they are cut, in small pieces however much they stand for."""

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
import trio
from trio.testing import MockClock

from capi_trio.inflate import CODINGS, Inflated

TEXT = b"".join(b"data: %d\n\n" % number for number in range(5000))


class Chunks:
    """A body as the network cuts it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def packed(coding: str, text: bytes = TEXT) -> bytes:
    return zlib.compress(text) if coding == "deflate" else gzip.compress(text)


def bare(text: bytes) -> bytes:
    """Deflate without a frame."""
    return zlib.compress(text)[2:-4]


async def unpack(coding: str, *chunks: bytes) -> bytes:
    return b"".join([piece async for piece in Inflated(Chunks(chunks), coding)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("coding", sorted(CODINGS))
async def test_the_content_is_the_same_however_it_is_cut(autojump_clock: MockClock, coding: str, seed: int) -> None:
    whole = packed(coding)
    cuts = sorted(random.Random(seed).sample(range(len(whole)), 20 * seed))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert await unpack(coding, *chunks, b"behind the end") == TEXT


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 65536 * 3 + 258])
@pytest.mark.parametrize("coding", sorted(CODINGS))
async def test_no_size_of_the_content_is_special(autojump_clock: MockClock, coding: str, size: int) -> None:
    """The last packed byte may stand for more than fits into a piece."""
    for text in (bytes(size), random.Random(size).randbytes(size)):
        assert await unpack(coding, packed(coding, text)) == text


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), (2,), (1, 2, 3), (100,)])
async def test_deflate_may_come_without_its_frame(autojump_clock: MockClock, cuts: tuple[int, ...]) -> None:
    """A frame shows itself in its second byte only."""
    whole = bare(TEXT)
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert await unpack("deflate", *chunks) == TEXT


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip,gzip,gzip", "identity, gzip", "x"])
async def test_what_cannot_be_unpacked_is_told_if_there_is_anything(autojump_clock: MockClock, coding: str) -> None:
    """Layers are a bomb of bombs, and nobody asked for one."""
    assert await unpack(coding, b"") == b""
    with pytest.raises(zlib.error):
        await unpack(coding, packed("gzip"))


@pytest.mark.parametrize("coding", sorted(CODINGS))
async def test_nothing_is_nothing(autojump_clock: MockClock, coding: str) -> None:
    """An answer without a body may still say how it is packed."""
    assert await unpack(coding, b"") == b""
    assert await unpack(coding) == b""


@pytest.mark.parametrize("coding", sorted(CODINGS))
@pytest.mark.parametrize("broken", [packed("gzip")[:-9], packed("deflate")[:-9], b"not packed at all"])
async def test_what_is_cut_or_no_such_thing_is_told(autojump_clock: MockClock, coding: str, broken: bytes) -> None:
    with pytest.raises(zlib.error):
        await unpack(coding, broken)


async def test_a_thousandfold_is_read_in_pieces_and_others_have_their_turn(autojump_clock: MockClock) -> None:
    """64 MiB out of 64 KiB, which came at once: no more than a piece of them is ever there."""
    bomb, turns, size = gzip.compress(bytes(64 * 1024 * 1024)), 0, 0

    async def be_another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_another)
            async for piece in Inflated(Chunks([bomb]), "gzip"):
                assert len(piece) <= 64 * 1024
                size += len(piece)
            nursery.cancel_scope.cancel()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 64 * 1024 * 1024
    assert turns > 500
    assert peak < 1024 * 1024
