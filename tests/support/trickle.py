"""The law of every machine that is fed bytes: what comes out does not depend on how they were cut.

`assert_split_invariant` runs a machine on its input whole, byte by byte, cut in two at every place (for short
inputs) and cut where hypothesis chooses, and compares what each run showed.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from attrs import frozen
from hypothesis import strategies as st

from capi_core.errors import ProtocolError

__all__ = ["Machine", "Run", "assert_split_invariant", "pieces", "run"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

_SHORT = 64
"""Inputs up to this many bytes are cut in two at every place."""


class Machine(Protocol[_T_co]):
    """A transducer of bytes."""

    def feed(self, data: bytes, /) -> Sequence[_T_co]: ...

    def finish(self) -> Sequence[_T_co]: ...


_M = TypeVar("_M", bound=Machine[object])


@frozen
class Run:
    """All that one run showed: outputs in order, the code of the error that ended it, and a last look."""

    outputs: tuple[object, ...]
    error: str | None
    seen: object


def run(make: Callable[[], _M], chunks: Iterable[bytes], look: Callable[[_M], object] = lambda _: None) -> Run:
    """Feeds a new machine each chunk and finishes it; a `ProtocolError` ends the run and is part of it."""
    machine = make()
    outputs: list[object] = []
    error = None
    try:
        for chunk in chunks:
            outputs += machine.feed(chunk)
        outputs += machine.finish()
    except ProtocolError as refused:
        error = refused.code
    return Run(tuple(outputs), error, look(machine))


def assert_split_invariant(
    make: Callable[[], _M],
    data: bytes,
    chosen: st.DataObject | None = None,
    look: Callable[[_M], object] = lambda _: None,
) -> Run:
    """Asserts that every way to cut `data` shows the same, and returns the run of the whole.

    `chosen` (from `st.data()`) adds one cutting chosen by hypothesis; `look` tells what to compare of the
    machine itself after the run.
    """
    whole = run(make, [data], look)
    cuttings = [[data[at : at + 1] for at in range(len(data))]]
    if len(data) <= _SHORT:
        cuttings += [[data[:at], data[at:]] for at in range(len(data) + 1)]
    if chosen is not None:
        cuttings.append(chosen.draw(pieces(data), label="pieces"))
    for cutting in cuttings:
        assert run(make, cutting, look) == whole, cutting
    return whole


def pieces(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Ways to cut `data` into chunks; some of them empty."""

    def cut(places: list[int]) -> list[bytes]:
        bounds = [0, *sorted(places), len(data)]
        return [data[start:end] for start, end in pairwise(bounds)]

    return st.lists(st.integers(0, len(data)), max_size=8).map(cut)
