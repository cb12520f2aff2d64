"""How long requests took, in a few bytes: a histogram whose percentiles are right to 5 %, and which can be added up.

Theory of operation. The buckets are the same for all histograms, and log-spaced: eight to each doubling, from 0.1 ms to
a day. Each is 9.05 % wider than the one before it, so that a value anywhere in it is at most 4.33 % away from the
bucket's middle, which is what `percentile` tells (the bound of DDSketch, VLDB 2019, for a growth of 2 ** (1 / 8)). As
the buckets are fixed, adding up is adding counts: in any order, over any window, in the database if need be, and
nothing is lost.

A histogram is written as a JSON object, number of the bucket to count, with only the buckets that hold something:
`{"57":3,"58":1}`. Where the database reads JSON, `sum(value)` over its members is what `merged` gives.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from attrs import field, frozen

from capi_core.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MAX_MS", "MIN_MS", "RELATIVE_ERROR", "Histogram"]

MIN_MS: Final = 0.1
"""What is shorter counts as this long, in milliseconds."""
MAX_MS: Final = 86_400_000.0
"""What is longer counts as this long, in milliseconds: a day."""

_PER_DOUBLING: Final = 8
_GROWTH: Final = 2 ** (1 / _PER_DOUBLING)

RELATIVE_ERROR: Final = (_GROWTH - 1) / (_GROWTH + 1)
"""By how much of it a percentile between `MIN_MS` and `MAX_MS` may be off: 0.0433."""

# Bucket 0 holds what is below the first edge; bucket i what is from edge i - 1 to below edge i.
_LAST: Final = math.ceil(_PER_DOUBLING * math.log2(MAX_MS / MIN_MS))
_EDGES: Final = tuple(MIN_MS * 2 ** (step / _PER_DOUBLING) for step in range(_LAST))
# The middle of a bucket: as far from its lower edge as from its upper one, relative to each.
_MIDDLES: Final = (MIN_MS, *(2 * lower * _GROWTH / (_GROWTH + 1) for lower in _EDGES))

_Bucket = Annotated[int, msgspec.Meta(ge=0, le=_LAST)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_DECODER: Final = msgspec.json.Decoder(dict[_Bucket, _Count])


@frozen
class Histogram:
    """Durations, counted in buckets. `counts`: number of the bucket to how many it holds; no bucket is empty."""

    counts: Mapping[int, int] = field(factory=dict)

    @classmethod
    def of(cls, durations_ms: Iterable[float]) -> Histogram:
        """Counts durations in ms. A negative one (of a clock that was set back) counts as 0.

        Raises `LocalError` for one that is no number.
        """
        counts: dict[int, int] = {}
        for duration in durations_ms:
            if math.isnan(duration):
                raise LocalError("a duration must be a number of milliseconds")
            bucket = bisect_right(_EDGES, min(duration, MAX_MS))
            counts[bucket] = counts.get(bucket, 0) + 1
        return cls(counts)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """The histogram of all that these hold."""
        counts: dict[int, int] = {}
        for histogram in histograms:
            for bucket, count in histogram.counts.items():
                counts[bucket] = counts.get(bucket, 0) + count
        return cls(counts)

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    def percentile(self, percent: int) -> float | None:
        """The duration, in ms, that `percent` of all (0 to 100) do not exceed; `None` if there are none.

        That is the value of rank `ceil(total * percent / 100)`, at least the first, to `RELATIVE_ERROR`. Raises
        `LocalError` for a `percent` out of range.
        """
        if not 0 <= percent <= 100:
            raise LocalError("a percentile is from 0 to 100")
        rank = max(1, -(-self.total * percent // 100))
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return _MIDDLES[bucket]
        return None

    def encode(self) -> str:
        """The histogram as JSON in ASCII, at most some 6 KB; equal histograms are written alike."""
        return msgspec.json.encode(dict(sorted(self.counts.items()))).decode("ascii")

    @classmethod
    def decode(cls, text: str | bytes) -> Histogram:
        """Reads what `encode` wrote. Raises `LocalError` for anything else."""
        try:
            return cls(_DECODER.decode(text))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise LocalError("this is no histogram of ours") from error
