"""Carries what requests cost from their end into the database, and never holds one up for it.

`note` only queues. A task commits what waits a fraction of a second later, a group at a time, together with the sums of
its minutes; so a `kill -9` loses a quarter of a second of figures. While the database cannot be written, what waits is
kept and tried again; once the queue is full, what comes is dropped and counted.

A client that is refused over and over must not fill the table: of each key only so many refusals a minute leave a row.
The others are in the sums all the same, and take no room in the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import trio
from attrs import frozen

from capi_core.commands import Outcome
from capi_core.rollups import RollupKey, UsageRollup, fold, merge_all
from capi_core.usage_events import UsageEvent
from capi_trio.logs import describe, get_logger
from capi_trio.storage.errors import DatabaseError
from capi_trio.storage.usage import UsageBatch, storable

__all__ = ["Recorder", "RecorderOptions", "UsageSink"]

_REFUSALS: Final = frozenset(outcome for outcome in Outcome if outcome.value.startswith("refused_"))
_MINUTE_S: Final = 60.0
_DAY_MS: Final = 24 * 3600 * 1000
_FOLDED_AT_ONCE: Final = 100
_SWEEP_PAUSE_S: Final = 0.05
"""After each thousand rows, for others who want to write."""

_log = get_logger("usage")


class UsageSink(Protocol):
    """What `Recorder` needs of the database."""

    async def store_usage(self, batch: UsageBatch) -> None:
        """Stores a batch in one transaction. After a `DatabaseError` it is given again, before any other; any other
        exception says that it can never be stored."""

    async def sweep_usage(self, before_ms: int) -> int:
        """Removes some rows from before that time (ms since the epoch); 0 when none is left."""


@frozen(kw_only=True)
class RecorderOptions:
    """Bounds of a recorder. Times are in seconds; `refusal_rows` are of each key and minute.

    `commit_s` is less than the 250 ms of rows that a crash may cost, as a commit takes some time too.
    """

    max_waiting: int = 10_000
    max_batch: int = 500
    commit_s: float = 0.2
    refusal_rows: int = 60
    retry_s: float = 0.5
    max_retry_s: float = 30.0
    drain_s: float = 3.0
    sweep_s: float = 3600.0


_DEFAULTS: Final = RecorderOptions()


class Recorder:
    """The one writer of usage. `run` must be running for anything to be stored.

    `now_ms`: wall clock, ms since the epoch. `keep_days`: for how many days rows and sums are kept; asked before each
    sweep. `new_batch_id` makes ids that no other batch has. All methods are for the trio thread.
    """

    def __init__(
        self,
        sink: UsageSink,
        *,
        now_ms: Callable[[], int],
        keep_days: Callable[[], int],
        new_batch_id: Callable[[], str],
        options: RecorderOptions = _DEFAULTS,
    ) -> None:
        self._sink = sink
        self._now_ms = now_ms
        self._keep_days = keep_days
        self._new_batch_id = new_batch_id
        self._options = options
        self._queue: deque[tuple[float, UsageEvent]] = deque()
        self._refusals = _Refusals(options.refusal_rows, options.max_waiting)
        self._batch: UsageBatch | None = None
        self._drops = _Drops()
        self._failure: str | None = None
        self._ended = False
        self._something = trio.Event()
        self._enough = trio.Event()

    @property
    def waiting(self) -> int:
        """How many requests wait to be stored as rows."""
        return len(self._queue) + (0 if self._batch is None else len(self._batch.events))

    @property
    def dropped(self) -> int:
        """How many requests are neither stored nor will be."""
        return self._drops.total

    @property
    def failure(self) -> str | None:
        """Why nothing can be stored now; `None` when it can."""
        return self._failure

    def note(self, event: UsageEvent) -> None:
        """Queues a request that has ended. Never blocks and never raises."""
        try:
            now = trio.current_time()
            if not self._take(event, now):
                self._drops.add(1)
                self._drops.report(now)
        except Exception as error:
            # Its request was answered; whatever is wrong here must not become the answer's fault.
            self._drops.add(1, error)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stores what comes and removes what is too old, until cancelled; then stores what waits, for `drain_s`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                task_status.started()
                while True:
                    await self._gather()
                    await self._commit()
        finally:
            # Shielded, as cancelling is how a server ends.
            with trio.move_on_after(self._options.drain_s, shield=True):
                while self._pending():
                    await self._commit()
            self._end()

    # -- what waits ---------------------------------------------------------------------------------------------

    def _take(self, event: UsageEvent, now: float) -> bool:
        if self._ended:
            return False
        if event.outcome in _REFUSALS and not self._refusals.leaves_row(event.key_id, now):
            taken = self._refusals.sum_up(event, now)
        else:
            taken = self.waiting < self._options.max_waiting
            if taken:
                self._queue.append((now, event))
        if taken:
            self._something.set()
        if len(self._queue) >= self._options.max_batch:
            self._enough.set()
        return taken

    def _pending(self) -> bool:
        return bool(self._batch is not None or self._queue or self._refusals)

    async def _gather(self) -> None:
        """Returns when it is time for the next commit."""
        if not self._pending():
            self._something = trio.Event()
            await self._something.wait()
        if len(self._queue) >= self._options.max_batch:
            return
        self._enough = trio.Event()
        began = [self._refusals.since] if self._refusals else []
        began += [self._queue[0][0]] if self._queue else []
        with trio.move_on_at(min(began) + self._options.commit_s):
            await self._enough.wait()

    def _next_batch(self) -> UsageBatch:
        if self._batch is None:
            count = min(len(self._queue), self._options.max_batch)
            rollups = self._refusals.take()
            events = [self._queue.popleft()[1] for _ in range(count)]
            self._batch = UsageBatch(self._new_batch_id(), events, rollups)
        return self._batch

    # -- storing ------------------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Stores a batch, trying again for as long as the database is the reason that it cannot."""
        batch = self._next_batch()
        delay = self._options.retry_s
        while not await self._stored(batch):
            self._drops.report(trio.current_time())
            await trio.sleep(delay)
            delay = min(2 * delay, self._options.max_retry_s)
        self._batch = None
        self._drops.report(trio.current_time())

    async def _stored(self, batch: UsageBatch) -> bool:
        """Whether the batch is done with."""
        try:
            await self._sink.store_usage(batch)
        except DatabaseError as error:
            if self._failure is None:
                _log.error("usage_not_stored", reason=str(error), next="it is kept in memory and tried again")
            self._failure = str(error)
            return False
        except Exception as error:
            self._drops.add(_requests(batch), error)
        if self._failure is not None:
            _log.info("usage_stored_again", waiting=len(self._queue))
        self._failure = None
        return True

    def _end(self) -> None:
        self._ended = True
        while self._pending():
            self._drops.add(_requests(self._next_batch()))
            self._batch = None
        self._drops.report(None)

    # -- removing -----------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            before_ms = self._now_ms() - self._keep_days() * _DAY_MS
            total = 0
            try:
                while removed := await self._sink.sweep_usage(before_ms):
                    total += removed
                    await trio.sleep(_SWEEP_PAUSE_S)
            except DatabaseError as error:
                _log.warning("usage_not_swept", reason=str(error))
            except Exception as error:
                # Nor may what is wrong with old figures end the server.
                _log.error("usage_not_swept", **describe(error))
            if total:
                _log.info("usage_swept", rows=total)
            await trio.sleep(self._options.sweep_s)


def _requests(batch: UsageBatch) -> int:
    return len(batch.events) + sum(rollup.requests for rollup in batch.rollups.values())


class _Refusals:
    """Which refusals leave a row, and the sums of those that do not. True while there are any."""

    def __init__(self, rows: int, max_keys: int) -> None:
        self.since = 0.0
        """When the oldest of those in the sums came, by trio's clock."""
        self._rows = rows
        self._max_keys = max_keys
        self._minute = 0.0
        self._counts: dict[str, int] = {}
        self._events: list[UsageEvent] = []
        self._sums: dict[RollupKey, UsageRollup] = {}

    def __bool__(self) -> bool:
        return bool(self._events or self._sums)

    def leaves_row(self, key_id: str, now: float) -> bool:
        minute = now // _MINUTE_S
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
        seen = self._counts.get(key_id, 0)
        if seen >= self._rows or (not seen and len(self._counts) >= self._max_keys):
            return False
        self._counts[key_id] = seen + 1
        return True

    def sum_up(self, event: UsageEvent, now: float) -> bool:
        """False when there is no room for more sums."""
        if len(self._sums) >= self._max_keys:
            return False
        if not self:
            self.since = now
        self._events.append(storable(event))
        if len(self._events) >= _FOLDED_AT_ONCE:
            self._fold()
        return True

    def take(self) -> dict[RollupKey, UsageRollup]:
        """The sums, which begin anew."""
        self._fold()
        sums, self._sums = self._sums, {}
        return sums

    def _fold(self) -> None:
        events, self._events = self._events, []
        self._sums = merge_all([*self._sums.items(), *fold(events).items()])


class _Drops:
    """Counts what was dropped, and says so at most once a minute, with the latest error that did it."""

    def __init__(self) -> None:
        self.total = 0
        self._reported = 0
        self._next_at = float("-inf")
        self._error: Mapping[str, list[str]] = {}

    def add(self, count: int, error: Exception | None = None) -> None:
        self.total += count
        if error is not None:
            self._error = describe(error)

    def report(self, now: float | None) -> None:
        """Logs what was dropped since the last time, if it is due. `now`: trio's clock; `None`: it is the last time."""
        if self.total == self._reported or (now is not None and now < self._next_at):
            return
        _log.error("usage_dropped", requests=self.total - self._reported, total=self.total, **self._error)
        self._reported, self._error = self.total, {}
        if now is not None:
            self._next_at = now + _MINUTE_S
