"""Many events of a stream judged at once: those that need no change and change no state.

A model speaks in small deltas, which come by the hundred in one read and of which nothing has to be noted. A machine
that passes a stream on describes them by a type, `Quiet` with the members that must not be there or must be null, and
`QuietReader` tells whether a run of blocks consists of nothing else. Where it does, the run is the answer, uncut; where
it does not, the machine looks at each event as if there were no such thing. So this can only save time.

Theory of operation. The lines between two events' JSON objects are taken out, and all objects are decoded in one call.
What is left to show is that the objects that were found are the events': text in which one event opens a bracket and
the next one closes it would decode as well. So a mark is put into each object where its event opens it, a member of a
name that stands nowhere in the run, and the type demands it. There are as many marks as events. If there are as many
objects as events, each of which has a mark at its top level, each has exactly one, starts where its event does, and
ends where the event ends.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

import msgspec

__all__ = ["Quiet", "QuietReader"]

_MARK: Final = "\x7f"
_MARK_BYTE: Final = 0x7F
"""As a number: `in` is then a bare memchr."""
_ESCAPED_MARK: Final = b"\\u007"
_OPENED: Final = b'{"\x7f":0,'
_EVENT_END: Final = b"\n\n"


class Quiet(msgspec.Struct, gc=False):
    """Base of the types of quiet events. A member without a default must be there; one that must not is
    `msgspec.UnsetType`. `mark` is the reader's."""

    mark: int = msgspec.field(name=_MARK)


_Q = TypeVar("_Q", bound=Quiet)


class QuietReader(Generic[_Q]):
    """Reads runs of events of one type, written as servers write them: the `event` line `event`, if any, and one `data`
    line with one JSON object."""

    __slots__ = ("_between", "_decoder", "_start")

    def __init__(self, shape: type[_Q], *, event: bytes = b"") -> None:
        self._start: Final = (b"event: %b\n" % event if event else b"") + b"data: {"
        self._between: Final = _EVENT_END + self._start
        self._decoder: Final = msgspec.json.Decoder(shape)

    def read(self, run: bytes) -> list[_Q] | None:
        """The events of `run`, which ends with LF LF and holds no CR; `None` unless each of them is a `_Q`."""
        if not run.startswith(self._start) or _MARK_BYTE in run or _ESCAPED_MARK in run:
            return None
        objects = run[len(self._start) :]
        marked = objects.replace(self._between, _OPENED)
        if marked.find(b"\n") != len(marked) - 2:  # there is a line that is none of those
            return None
        events = 1 + (len(objects) - len(marked)) // (len(self._between) - len(_OPENED))
        try:
            found = self._decoder.decode_lines(_OPENED + marked)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        return found if len(found) == events else None
