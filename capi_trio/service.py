"""A running gateway: everything that `capi start` and `capi demo` keep alive, in one nursery.

The gateway's own server is the foreground; demo providers and the model lists are the background, and outlive it. A
background part that fails takes the process down: a gateway that is half alive is worse than one that restarts.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from capi_core.config import LimitsConfig
from capi_core.framing import FramingLimits
from capi_trio.app import Gateway, Snapshot
from capi_trio.catalog import CatalogKeeper
from capi_trio.configfile import upstream_targets
from capi_trio.demo.app import DemoProvider, IdCounter
from capi_trio.logs import get_logger
from capi_trio.server import Server, listen
from capi_trio.upstream import UpstreamClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from capi_core.aliases import Catalog
    from capi_core.config import Config
    from capi_trio.upstream import UpstreamTarget

__all__ = ["Running", "serve"]

_FIRST_LISTS_S: Final = 2.0
"""How long the first requests wait for the upstreams' model lists; without one, an upstream is asked for any model."""
_HARD_STOP_S: Final = 5.0
"""Beyond the grace period. Then the process ends, whatever still hangs."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@frozen
class Running:
    """A gateway that answers. `provider_urls` has the base URL of each demo provider, by upstream name."""

    host: str
    port: int
    provider_urls: Mapping[str, str]
    catalog: Callable[[], Catalog]

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@frozen
class _Parts:
    """What is there before anything runs."""

    config: Config
    listener: trio.SocketListener
    host: str
    providers: Mapping[str, trio.SocketListener]
    demo_urls: Mapping[str, str]
    targets: Mapping[str, UpstreamTarget]
    new_request_id: Callable[[], str]


async def serve(
    config: Config,
    *,
    host: str,
    port: int,
    environ: Mapping[str, str],
    base_dir: Path,
    new_request_id: Callable[[], str],
    on_ready: Callable[[Running], None],
) -> bool:
    """Runs a gateway until a signal ends it. `on_ready` is called once it answers.

    Returns whether every request could end by itself. Raises `BindError` and `ConfigError` before anything is served.
    """
    async with AsyncExitStack() as sockets:
        listener = await sockets.enter_async_context(listen(host, port, write_stall_s=config.limits.write_stall_s))
        providers = {name: await sockets.enter_async_context(demo) for name, demo in _demo_listeners(config).items()}
        demo_urls = {name: f"http://127.0.0.1:{demo.socket.getsockname()[1]}/v1" for name, demo in providers.items()}
        targets = upstream_targets(config, environ, base_dir=base_dir, demo_urls=demo_urls)
        running = _Parts(config, listener, host, providers, demo_urls, targets, new_request_id)
        return await _serve(running, on_ready)


async def _serve(parts: _Parts, on_ready: Callable[[Running], None]) -> bool:
    config, new_request_id = parts.config, parts.new_request_id
    async with trio.open_nursery() as background:
        for provider in parts.providers.values():
            # Ids must not come again after a restart; what tests look into need not be kept.
            app = DemoProvider(time.time, IdCounter(f"{time.time_ns():x}"), kept_records=0)
            demo_server = _server(app, LimitsConfig(), new_request_id)
            background.start_soon(demo_server.serve, provider)
        async with UpstreamClient(parts.targets) as client:
            keeper = CatalogKeeper(config, client)

            async def snapshot() -> Snapshot:
                if not keeper.ready.is_set():
                    with trio.move_on_after(_FIRST_LISTS_S):
                        await keeper.ready.wait()
                return Snapshot(config, keeper.catalog)

            def ready() -> bool:
                return keeper.ready.is_set() and not server.draining

            gateway = Gateway(snapshot=snapshot, client=client, ready=ready, new_request_id=new_request_id)
            server = _server(gateway, config.limits, new_request_id, on_stop=gateway.stop)
            background.start_soon(keeper.run)
            background.start_soon(_watch_signals, server, config.limits.grace_s)
            port = parts.listener.socket.getsockname()[1]
            running = Running(parts.host, port, parts.demo_urls, lambda: keeper.catalog)
            background.start_soon(_announce, keeper, running, on_ready)
            drained = await server.serve(parts.listener)
        background.cancel_scope.cancel()
    return drained


def _server(
    app: Gateway | DemoProvider,
    limits: LimitsConfig,
    new_request_id: Callable[[], str],
    on_stop: Callable[[], None] | None = None,
) -> Server:
    framing = FramingLimits(body=limits.max_body_bytes)
    return Server(app, limits=limits, framing=framing, new_request_id=new_request_id, on_stop=on_stop)


async def _announce(keeper: CatalogKeeper, running: Running, on_ready: Callable[[Running], None]) -> None:
    with trio.move_on_after(_FIRST_LISTS_S):
        await keeper.ready.wait()
    get_logger("server").info("listening", url=running.url, auth_mode="off (loopback)")
    on_ready(running)


def _demo_listeners(config: Config) -> dict[str, trio.SocketListener]:
    """A port of its own for each upstream of kind `demo`."""
    stall = LimitsConfig().write_stall_s
    demos = [name for name, upstream in config.upstreams.items() if upstream.kind == "demo"]
    return {name: listen("127.0.0.1", 0, write_stall_s=stall) for name in demos}


async def _watch_signals(server: Server, grace_s: float) -> None:
    """The first signal begins the graceful end, the second one is the end."""
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if server.draining:
                os._exit(1)
            get_logger("server").info("shutdown", signal=name, running=server.connections, grace_s=grace_s)
            server.shutdown()
            hard_stop = threading.Timer(grace_s + _HARD_STOP_S, os._exit, [1])
            hard_stop.daemon = True  # the process may end before it
            hard_stop.start()
