"""Invariant: any bytes become canonical requests or a refusal, the same however they are split.

What is handed on is read by h11 as exactly that many requests, and is its own canonical form.
The first byte of an input chooses tight or default limits (lowest bit) and the size of the pieces (the rest).
"""

import attrs

from capi_core.framing import FramingFault, FramingLimits
from tests.support.framing_cases import drive, read_back

__all__ = ["test_one_input"]

# Small enough that mutated requests fall on both sides of every limit.
TIGHT = FramingLimits(
    request_line=40, head=200, fields=6, chunk_line=12, chunk_excess=20, trailer=24, body=16, held=256
)
DEFAULT = FramingLimits()


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limits = TIGHT if data[0] & 1 else DEFAULT
    size, wire = 1 + (data[0] >> 1), data[1:]
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]

    # `drive` turns FramingError, the only exception that bytes may cause, into a code.
    whole = drive([wire], limits)
    requests = read_back(whole.canonical)
    split = drive(pieces, limits)
    assert (split.code, split.state) == (whole.code, whole.state)
    assert read_back(split.canonical) == requests

    if whole.code != FramingFault.PIPELINE_TOO_LONG.name.lower():
        # Nothing is held when each request is answered at once.
        eager = drive(pieces, limits, eager=True)
        assert eager.code == whole.code
        assert read_back(eager.canonical) == requests

    # The canonical form may be longer than what was sent: no white space was left out, `connection: close` is new.
    roomy = attrs.evolve(DEFAULT, head=4 * DEFAULT.head, fields=DEFAULT.fields + 2, body=limits.body, held=1 << 30)
    again = drive([whole.canonical], roomy)
    assert (again.code, again.canonical) == (None, whole.canonical)
