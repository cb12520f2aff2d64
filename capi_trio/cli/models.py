"""`capi models`: what this configuration lets clients call, and where each name leads."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import click
import msgspec
import trio

from capi_core.config import ConfigError
from capi_trio import logs
from capi_trio.catalog import CatalogKeeper
from capi_trio.cli.options import (
    config_option,
    config_path,
    data_dir_option,
    fail,
    json_option,
    load_config,
    refuse,
    refuse_config,
    warn,
)
from capi_trio.cli.tables import columns
from capi_trio.configfile import upstream_targets
from capi_trio.upstream import UpstreamClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from capi_core.aliases import Catalog
    from capi_core.config import Config
    from capi_trio.upstream import UpstreamTarget

__all__ = ["models_command"]


class _Row(msgspec.Struct):
    model: str
    upstream: str | None
    upstream_model: str
    alias: bool


@click.command("models")
@data_dir_option
@config_option
@json_option
def models_command(data_dir: Path, config_file: Path | None, as_json: bool) -> None:
    """List the models that clients can call, by asking every upstream for its own list."""
    path = config_path(data_dir, config_file)
    config = load_config(path)
    if any(upstream.kind == "demo" for upstream in config.upstreams.values()):
        refuse("the demo provider only exists while `capi demo` runs; ask it: GET /v1/models")
    seated = [name for name, upstream in config.upstreams.items() if upstream.kind == "copilot"]
    if seated:
        warn(f"{seated[0]} is not asked: its seats' tokens are the running gateway's. Ask that one: GET /v1/models")
        asked = {name: upstream for name, upstream in config.upstreams.items() if name not in seated}
        config = msgspec.structs.replace(config, upstreams=asked)
    try:
        targets = upstream_targets(config, os.environ, base_dir=path.parent, demo_urls={})
    except ConfigError as error:
        refuse_config(path, error)
    with closing(logs.configure()):
        catalog = trio.run(_ask, config, targets)
    rows = _rows(catalog)
    click.echo(msgspec.json.encode(rows).decode() if as_json else _table(rows))
    if catalog.upstreams and all(upstream.models is None for upstream in catalog.upstreams):
        fail("no upstream gave its list of models; the log above says why")


async def _ask(config: Config, targets: Mapping[str, UpstreamTarget]) -> Catalog:
    async with UpstreamClient(targets) as client:
        keeper = CatalogKeeper(config, client)
        await keeper.refresh()
        return keeper.catalog


def _rows(catalog: Catalog) -> list[_Row]:
    rows = []
    for model in catalog.listed():
        resolution = catalog.resolve(model.name)
        alias = model.name in catalog.aliases
        rows.append(_Row(model.name, resolution.upstream, resolution.upstream_model, alias))
    return rows


def _table(rows: list[_Row]) -> str:
    if not rows:
        return "No model can be called. Add an upstream, or an alias, to the configuration (docs/configuration.md)."
    cells = [(row.model, f"{row.upstream}: {row.upstream_model}", "(alias)" if row.alias else "") for row in rows]
    return columns([("MODEL", "LEADS TO", ""), *cells])
