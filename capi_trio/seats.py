"""What a request to an upstream rides on: where it goes, with what credential, and in which slot of how many.

An upstream with a cap has a gate (`capi_trio.slots`): so many requests in flight, a bounded queue in front of them that
is fair to every key, and a pause when the upstream asks for one. An upstream without a cap is always free.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import field, frozen

from capi_core.gate_events import GateLimits, PauseCause
from capi_core.headers import retry_after_s
from capi_trio.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from capi_core.config import Config
    from capi_core.gate_events import GateSnapshot
    from capi_core.headers import Headers
    from capi_trio.slots import Slot
    from capi_trio.upstream import UpstreamClient, UpstreamTarget

__all__ = ["Seat", "Seats"]

_PAUSING = frozenset({429, 503})
"""What an upstream says when it wants to be left alone; then `retry-after` is about all requests, not about this one."""
_REFUSING = frozenset({403, 429})
"""What it says to those that it may take for abusers."""


@frozen
class Seat:
    """`slot`: `None` where there is no cap."""

    target: UpstreamTarget
    slot: Slot | None
    _slots: Slots | None = field(repr=False)
    _now_s: Callable[[], float] = field(repr=False)

    def heard(self, status: int, headers: Headers) -> None:
        """The upstream's answer has begun: the gate learns from it what all others have to know."""
        if self._slots is None:
            return
        pause = retry_after_s(headers, self._now_s()) if status in _PAUSING else None
        if pause:
            self._slots.pause(pause, PauseCause.RETRY_AFTER)
        if status in _REFUSING:
            self._slots.upstream_refused()


class Seats:
    """The seats at every upstream of `client`. `now_s`: seconds since epoch."""

    def __init__(self, client: UpstreamClient, config: Config, *, now_s: Callable[[], float]) -> None:
        self._client = client
        self._now_s = now_s
        self._slots: dict[str, Slots] = {}
        self.set_config(config)

    def set_config(self, config: Config) -> None:
        """Goes on with other limits. Who has a slot or waits for one keeps it."""
        limits = config.limits
        capped = {name: upstream.max_in_flight for name, upstream in config.upstreams.items()}
        for name in self._slots.keys() - {name for name, cap in capped.items() if cap is not None}:
            del self._slots[name]
        for name, cap in capped.items():
            if cap is None:
                continue
            gate = GateLimits(
                cap=cap, max_queued=limits.max_queued_per_identity, queue_timeout_s=limits.queue_timeout_s
            )
            if name in self._slots:
                self._slots[name].resize(gate)
            else:
                self._slots[name] = Slots(gate)

    @asynccontextmanager
    async def take(self, key_id: str, upstream: str) -> AsyncIterator[Seat]:
        """Waits for a seat in the name of a key, and holds it for the block.

        Raises `SlotRefusedError` when there is none to be had, `UpstreamFailedError` when there is no such upstream.
        """
        target = self._client.target(upstream)
        slots = self._slots.get(upstream)
        if slots is None:
            yield Seat(target, None, None, self._now_s)
            return
        async with slots.hold(key_id) as slot:
            yield Seat(target, slot, slots, self._now_s)

    def snapshots(self) -> Mapping[str, GateSnapshot]:
        """Every gate as the operator sees it, by upstream."""
        return {name: slots.snapshot() for name, slots in self._slots.items()}
