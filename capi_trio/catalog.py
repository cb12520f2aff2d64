"""What the upstreams say they serve: asked at start, then every hour, kept while an upstream cannot be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from capi_trio.logs import get_logger
from capi_trio.upstream import UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.aliases import Catalog
    from capi_core.config import Config

__all__ = ["CatalogKeeper", "ModelSource", "decode_model_list"]

_REFRESH_S: Final = 3600.0
_RETRY_S: Final = 30.0


class _Entry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


_LIST: Final = msgspec.json.Decoder(_ModelList)
_ENTRY: Final = msgspec.json.Decoder(_Entry)


def decode_model_list(body: bytes) -> dict[str, bytes]:
    """An OpenAI-shaped model list as raw record by id; entries without an id are left out. Raises `ValueError`."""
    try:
        entries = _LIST.decode(body).data
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError("not a model list") from error
    models: dict[str, bytes] = {}
    for entry in entries:
        raw = bytes(entry)
        try:
            models.setdefault(_ENTRY.decode(raw).id, raw)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            continue
    return models


class ModelSource(Protocol):
    """Where model lists come from."""

    async def list_models(self, upstream: str, /) -> bytes:
        """The body of that upstream's GET /models. Raises `UpstreamFailedError`."""
        ...


class CatalogKeeper:
    """Keeps the routing snapshot of one configuration up to date. `catalog` is replaced, never changed."""

    def __init__(self, config: Config, source: ModelSource) -> None:
        self._config = config
        self._source = source
        self._log = get_logger("catalog")
        self._lists: dict[str, Mapping[str, bytes] | None] = {}
        self._changed = trio.Event()
        self.ready = trio.Event()
        self.catalog: Catalog = config.catalog({})
        self.set_config(config)

    def set_config(self, config: Config) -> None:
        """Goes on with another configuration. What an unchanged upstream said stays; the others are asked anew."""
        kept = {
            name: self._lists.get(name)
            for name, upstream in config.upstreams.items()
            if self._config.upstreams.get(name) == upstream
        }
        self._config = config
        self._lists = {
            name: kept.get(name) if upstream.models is None else dict.fromkeys(upstream.models, b"{}")
            for name, upstream in config.upstreams.items()
        }
        self.catalog = config.catalog(self._lists)
        self._changed.set()

    def refresh_soon(self) -> None:
        """Has every list asked for anew."""
        self._changed.set()

    async def run(self) -> None:
        """Refreshes for ever. `ready` is set after the first round, whether or not every upstream answered."""
        while True:
            self._changed = trio.Event()
            await self.refresh()
            self.ready.set()
            with trio.move_on_after(_RETRY_S if None in self._lists.values() else _REFRESH_S):
                await self._changed.wait()

    async def refresh(self) -> None:
        """Asks every upstream that has a list, all at once."""
        async with trio.open_nursery() as nursery:
            for name in self._asked():
                nursery.start_soon(self._refresh_one, name)
        self.catalog = self._config.catalog(self._lists)

    def _asked(self) -> list[str]:
        return [name for name, upstream in self._config.upstreams.items() if upstream.models is None]

    async def _refresh_one(self, name: str) -> None:
        try:
            models = decode_model_list(await self._source.list_models(name))
        except (UpstreamFailedError, ValueError) as error:
            self._log.warning("model_list_unavailable", upstream=name, reason=str(error))
            return
        if name in self._lists:  # it may have been taken out meanwhile
            self._lists[name] = models
        self._log.info("model_list", upstream=name, models=len(models))
