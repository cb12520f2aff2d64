"""How widely each identity is used, while the gateway runs: every ride is metered, and what is too much is logged.

`capi_core.fanout` counts and judges; here are its clock, its hash key, and the log. Nothing is stored: with the process
ends what it knew.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from capi_core.fanout import FanoutMeter, FanoutThresholds
from capi_trio.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from capi_core.fanout import FanoutReport, FanoutWarning
    from capi_core.identities import IdentityRecord
    from capi_core.keys import KeyRecord

__all__ = ["FanoutWatch"]

_LOOK_S: Final = 180.0
"""How often is looked for warnings while nothing begins: what ran over just before an hour was full is told, too."""
_LEAST_LOOK_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_HASH_KEY: Final = 32  # bytes


class FanoutWatch:
    """Meters the identities in `records`. `run` must run for as long as it is used.

    `now_ms` is the wall clock; `random_bytes` a cryptographic source.
    """

    def __init__(
        self,
        records: Callable[[], tuple[IdentityRecord, ...]],
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._records = records
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._meter = FanoutMeter(random_bytes(_HASH_KEY), FanoutThresholds())
        self._day = now_ms() // _DAY_MS
        self._looked_at: int | None = None
        self._log = get_logger("fanout")

    def set_thresholds(self, thresholds: FanoutThresholds) -> None:
        """Goes on with others, also for what was counted before: the next request looks."""
        self._meter.set_thresholds(thresholds)
        self._looked_at = None

    async def run(self) -> NoReturn:
        """Looks for warnings for ever, and changes the hash key each day."""
        while True:
            await trio.sleep(_LOOK_S)
            now_ms = self._now_ms()
            if now_ms // _DAY_MS != self._day:
                self._day = now_ms // _DAY_MS
                self._meter.rekey(self._random_bytes(_HASH_KEY))
            self._look(now_ms)

    @contextmanager
    def riding(self, identity: str, key: KeyRecord, address: str | None) -> Iterator[None]:
        """A request rides that identity for the block. `address`: its client's, where it is known."""
        now_ms = self._now_ms()
        self._meter.begin(identity, owner=key.owner, key_id=key.id, address=address, now_ms=now_ms)
        try:
            if self._looked_at is None or not 0 <= now_ms - self._looked_at < _LEAST_LOOK_MS:
                self._look(now_ms)
            yield
        finally:
            self._meter.end(identity, self._now_ms())

    def reports(self, identity: str) -> tuple[FanoutReport, ...]:
        """The hour that runs and the 24 before it, those in which that identity was used; the oldest first."""
        return tuple(report for report in self._meter.report(self._now_ms()) if report.identity == identity)

    def warnings(self) -> tuple[FanoutWarning, ...]:
        """What is too much in the hour that runs, or was in the one before."""
        return self._meter.warnings(self._now_ms(), self._shared())

    def _look(self, now_ms: int) -> None:
        """Logs what was not logged yet."""
        self._looked_at = now_ms
        for warning in self._meter.new_warnings(now_ms, self._shared()):
            report = warning.report
            self._log.warning(
                "identity_fanout",
                identity=report.identity,
                over=[measure.value for measure in warning.over],
                owners=str(report.owners),
                keys=str(report.keys),
                addresses=str(report.addresses),
                peak_in_flight=report.peak_in_flight,
                requests=report.requests,
                next_step=warning.text,
            )

    def _shared(self) -> frozenset[str]:
        return frozenset(record.name for record in self._records() if record.shared)
