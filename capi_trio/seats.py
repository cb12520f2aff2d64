"""The seats at every upstream.

An upstream with a cap has a gate (`capi_trio.slots`): so many requests in flight, a bounded queue in front of them that
is fair to every key, and a pause when the upstream asks for one. An upstream without a cap is always free. Copilot has
a gate for each of its identities (`capi_trio.copilot`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from capi_trio.seat import Seat, gate_limits, hold
from capi_trio.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from capi_core.commands import SendRequest
    from capi_core.config import Config
    from capi_core.gate_events import GateSnapshot
    from capi_core.keys import KeyRecord
    from capi_trio.copilot import CopilotSeats
    from capi_trio.quotas import SeatUsage
    from capi_trio.upstream import UpstreamClient

__all__ = ["Seats"]


class Seats:
    """The seats at every upstream of `client`. `now_s`: seconds since epoch."""

    def __init__(
        self, client: UpstreamClient, config: Config, *, now_s: Callable[[], float], copilot: CopilotSeats | None = None
    ) -> None:
        self._client = client
        self._now_s = now_s
        self._copilot = copilot
        self._slots: dict[str, Slots] = {}
        self._retired: dict[str, Slots] = {}
        """Of upstreams that lost their cap: what is still in flight counts, should it come back."""
        self._of_copilot: frozenset[str] = frozenset()
        self.set_config(config)

    def set_config(self, config: Config) -> None:
        """Goes on with other limits. Who has a slot or waits for one keeps it."""
        limits = config.limits
        self._of_copilot = frozenset(name for name, upstream in config.upstreams.items() if upstream.kind == "copilot")
        caps = {
            name: upstream.max_in_flight
            for name, upstream in config.upstreams.items()
            if upstream.max_in_flight is not None and name not in self._of_copilot
        }
        self._retired = {name: slots for name, slots in self._retired.items() if slots.in_flight}
        for name in self._slots.keys() - caps.keys():
            self._retired[name] = self._slots.pop(name)
        for name, cap in caps.items():
            gate = gate_limits(cap, limits)
            slots = self._slots.get(name) or self._retired.pop(name, None)
            if slots is None:
                self._slots[name] = Slots(gate)
            else:
                self._slots[name] = slots
                slots.resize(gate)
        if self._copilot is not None:
            self._copilot.set_config(config)

    @asynccontextmanager
    async def take(self, key: KeyRecord, request: SendRequest, *, address: str | None = None) -> AsyncIterator[Seat]:
        """Waits for a seat for a key's request, and holds it for the block. `address`: its client's, if it is known.

        Raises `NoSeatError` when there is none to be had, `UpstreamFailedError` when there is no such upstream.
        """
        if self._copilot is not None and request.upstream in self._of_copilot:
            async with self._copilot.take(key, request, address) as seat:
                yield seat
            return
        target = self._client.target(request.upstream)
        slots = self._slots.get(request.upstream)
        if slots is None:
            yield Seat(target, None, now_s=self._now_s)
            return
        async with hold(slots, key.id) as slot:
            yield Seat(target, slot, slots=slots, now_s=self._now_s)

    @property
    def have_identities(self) -> bool:
        """Whether there is an upstream whose seats are those of identities."""
        return self._copilot is not None and bool(self._of_copilot)

    async def usage(self, key: KeyRecord) -> SeatUsage:
        """What is left of the identity that a new conversation of that key would ride now. Raises `NoSeatError`."""
        if self._copilot is None:
            raise AssertionError("there are no identities to ask about")
        return await self._copilot.usage(key)

    async def list_models(self, upstream: str) -> bytes:
        """The body of an upstream's GET /models. Raises `UpstreamFailedError`."""
        if self._copilot is not None and upstream in self._of_copilot:
            return await self._copilot.list_models()
        return await self._client.list_models(upstream)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every credential that a seat can have, for masking."""
        return self._client.secrets if self._copilot is None else (*self._client.secrets, *self._copilot.secrets)

    def snapshots(self) -> Mapping[str, GateSnapshot]:
        """The gate of each upstream with a cap, as the operator sees it."""
        return {name: slots.snapshot() for name, slots in self._slots.items()}
