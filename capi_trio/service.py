"""A running gateway: everything that `capi start` and `capi demo` keep alive, in one nursery.

In the order of birth: the data directory's lock, the database with its schema up to date, the audit writer, the keys,
the listening socket, the first admin key, and then everything that runs. The gateway's own server is the foreground;
demo providers, model lists, audit, control socket and configuration watcher are the background, and outlive it. A
background part that fails takes the process down: a gateway that is half alive is worse than one that restarts.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import define, frozen

from capi_core.audit import Action, AuditDraft
from capi_core.config import ConfigError, ConfigProblem, LimitsConfig
from capi_core.framing import FramingLimits
from capi_trio.access import Door, OpenDoor, RejectLog
from capi_trio.admission import ALL_ADMITTED, AdmissionOptions, make_admission
from capi_trio.app import Gateway, Snapshot
from capi_trio.bootstrap import ADMIN_KEY_NAME, bootstrap, key_file_waits
from capi_trio.budgeting import Budgets
from capi_trio.catalog import CatalogKeeper
from capi_trio.clock import now_ms, random_bytes
from capi_trio.configfile import upstream_targets
from capi_trio.configstore import restart_members, sweep
from capi_trio.control import serve_control
from capi_trio.copilot import CopilotSeats
from capi_trio.demo.app import DemoProvider, IdCounter
from capi_trio.demo.github import DemoGitHub
from capi_trio.fanout import FanoutWatch
from capi_trio.github.linking import CLIENT_ID
from capi_trio.identities import IdentityBook
from capi_trio.keyring import Keyring
from capi_trio.logs import get_logger
from capi_trio.metering import Meter
from capi_trio.operations import Operations, ServerStatus
from capi_trio.recorder import Recorder
from capi_trio.request import SESSION_PATHS
from capi_trio.seat_status import SeatStatuses
from capi_trio.seats import Seats
from capi_trio.server import Server, listen
from capi_trio.storage.audit_writer import open_audit_writer
from capi_trio.storage.database import Mutation, open_database
from capi_trio.storage.errors import StorageError
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.usage import UsageRepository
from capi_trio.upstream import UpstreamClient
from capi_trio.usage_reports import UsageReports

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    import sqlalchemy as sa

    from capi_core.aliases import Catalog
    from capi_core.budgets import Amounts
    from capi_core.config import Config
    from capi_trio.configstore import ConfigStore, Loaded
    from capi_trio.perimeter import Perimeter
    from capi_trio.storage.audit_writer import AuditWriter
    from capi_trio.storage.database import Database

__all__ = ["Options", "Running", "serve"]

_FIRST_LISTS_S: Final = 2.0
"""How long the first requests wait for the upstreams' model lists; without one, an upstream is asked for any model."""
_HARD_STOP_S: Final = 5.0
"""Beyond the grace period. Then the process ends, whatever still hangs."""
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_PRUNE_S: Final = 3600.0


@frozen
class Options:
    """How a gateway is run. `database`: a PostgreSQL URL, `None` for SQLite in `data_dir`. `admission`: what a
    request has to wait for.

    `show_key` prints the first admin key on a terminal; without it the key goes to a file. `prepare` is awaited before
    the door opens, to make keys of its own.
    """

    host: str
    port: int
    data_dir: Path
    base_dir: Path
    environ: Mapping[str, str]
    auth: bool
    perimeter: Perimeter
    new_request_id: Callable[[], str]
    database: str | None = None
    tls: ssl.SSLContext | None = None
    show_key: Callable[[str], None] | None = None
    prepare: Callable[[Keyring], Awaitable[None]] | None = None
    admission: AdmissionOptions = ALL_ADMITTED


@frozen
class Running:
    """A gateway that answers. `provider_urls` has the base URL of each demo provider, by upstream name."""

    host: str
    port: int
    auth_mode: str
    provider_urls: Mapping[str, str]
    catalog: Callable[[], Catalog]
    secure: bool = False

    @property
    def url(self) -> str:
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@define
class _State:
    """What a reload replaces."""

    config: Config


async def serve(
    config: Config, options: Options, on_ready: Callable[[Running], None], *, store: ConfigStore | None = None
) -> int:
    """Runs a gateway until a signal ends it. `on_ready` is called once it answers; `store` is watched for changes.

    Returns how many connections had to be cut, because they were busy beyond the grace period. Raises `BindError`,
    `ConfigError` and `StorageError` before anything is served.
    """
    async with AsyncExitStack() as stack:
        armed = stack.enter_context(ExitStack())  # left last: until then the hard stop stays armed
        lock = stack.enter_context(DirectoryLock.take(options.data_dir))
        database = await stack.enter_async_context(open_database(lock, options.database))
        writer = await stack.enter_async_context(open_audit_writer(database, lock))
        if store is not None:
            await trio.to_thread.run_sync(sweep, store.path)
        service = _Service(config, options, database, writer, lock)
        await service.keyring.load()
        await service.identities.load()
        stall = config.limits.write_stall_s
        listener = await stack.enter_async_context(listen(options.host, options.port, write_stall_s=stall))
        async with UpstreamClient({}) as client:
            return await service.run(client, listener, store, on_ready, armed)


@frozen
class _Parts:
    """What a request passes through, and a reload reaches."""

    client: UpstreamClient
    seats: Seats
    keeper: CatalogKeeper
    meter: Meter
    budgets: Budgets


class _Service:
    """The parts of one running gateway, and how a reload reaches them."""

    def __init__(
        self, config: Config, options: Options, database: Database, writer: AuditWriter, lock: DirectoryLock
    ) -> None:
        self._state = _State(config)
        self._options = options
        self._database = database
        self._writer = writer
        self._lock = lock
        self._log = get_logger("service")
        self._demos: dict[str, str] = {}
        self._started = config
        self._admission = make_admission(options.admission)
        self._cut = 0
        self.keyring = Keyring(database, now_ms=now_ms, random_bytes=random_bytes, default_rpm=self._default_rpm)
        self.identities = IdentityBook(database, lock.directory, now_ms=now_ms, random_bytes=random_bytes)

    async def _spent(self, key_id: str, from_ms: int) -> Amounts:
        return await self._database.read(lambda connection: UsageRepository(connection).spent(key_id, from_ms))

    def _default_rpm(self) -> int:
        return self._state.config.limits.requests_per_minute

    async def run(
        self,
        client: UpstreamClient,
        listener: trio.SocketListener,
        store: ConfigStore | None,
        on_ready: Callable[[Running], None],
        armed: ExitStack,
    ) -> int:
        config, options = self._state.config, self._options
        async with trio.open_nursery() as background:
            await self._use_upstreams(config, client, background)
            await self._audit_start()
            door = await self._open_door(background)
            fanout = FanoutWatch(self.identities.live, now_ms=now_ms, random_bytes=random_bytes)
            copilot = CopilotSeats(
                self.identities,
                client,
                fanout,
                now_s=_now_s,
                fraction=random.random,
                on_linked=lambda: keeper.refresh_soon(),
            )
            seats = Seats(client, config, now_s=_now_s, copilot=copilot)
            keeper = CatalogKeeper(config, seats)
            background.start_soon(copilot.run)
            background.start_soon(fanout.run)
            recorder = Recorder(
                self._database,
                now_ms=now_ms,
                keep_days=lambda: self._state.config.retention.events_days,
                new_batch_id=options.new_request_id,
            )
            meter = Meter(config, recorder.note)
            await background.start(recorder.run)
            parts = _Parts(client, seats, keeper, meter, Budgets(self._spent, now_ms=now_ms))
            server = self._gateway(parts, door)
            background.start_soon(self._admission.run)
            background.start_soon(self._writer.run)
            background.start_soon(self._prune)
            background.start_soon(keeper.run)

            def look_again() -> None:
                keeper.refresh_soon()
                if store is not None:
                    store.look_now()

            background.start_soon(_watch_signals, server, config.limits.grace_s, look_again, armed)
            await background.start(
                serve_control,
                options.data_dir,
                Operations(
                    self.keyring,
                    self.identities,
                    self._database,
                    self._writer,
                    self._lock,
                    now_ms,
                    quotas=copilot.quotas,
                    seats=SeatStatuses(copilot.snapshots, fanout, now_ms),
                    status=partial(self._status, door, store),
                ),
            )
            if options.database is not None:
                background.start_soon(self.keyring.follow)
                background.start_soon(self.identities.follow)
            if store is not None:
                background.start_soon(store.watch, self._reloader(parts, background))
            port = listener.socket.getsockname()[1]
            running = Running(
                options.host, port, door.mode, self._demos, lambda: keeper.catalog, secure=options.tls is not None
            )
            background.start_soon(_announce, keeper, running, on_ready)
            await server.serve(listener)
            background.cancel_scope.cancel()
        return self._cut

    def _gateway(self, parts: _Parts, door: Door | OpenDoor) -> Server:
        keeper = parts.keeper
        options, limits = self._options, self._state.config.limits

        async def snapshot() -> Snapshot:
            if not keeper.ready.is_set():
                with trio.move_on_after(_FIRST_LISTS_S):
                    await keeper.ready.wait()
            return Snapshot(self._state.config, keeper.catalog)

        def sealed() -> bool:
            return options.auth and key_file_waits(options.data_dir)

        def ready() -> bool:
            return keeper.ready.is_set() and not server.draining and not sealed()

        gateway = Gateway(
            snapshot=snapshot,
            client=parts.client,
            seats=parts.seats,
            note=parts.meter.note,
            budgets=parts.budgets,
            usage=UsageReports(self._database, now_ms),
            door=door,
            perimeter=options.perimeter,
            ready=ready,
            sealed=sealed,
            new_request_id=options.new_request_id,
            now_ms=now_ms,
            max_body_bytes=limits.max_body_bytes,
            admission=self._admission,
        )

        def stop() -> None:
            self._cut = server.connections
            gateway.stop()

        server = _server(gateway, limits, options.new_request_id, on_drain=gateway.drain, on_stop=stop, tls=options.tls)
        return server

    # -- keys ---------------------------------------------------------------------------------------------------

    async def _open_door(self, background: trio.Nursery) -> Door | OpenDoor:
        options = self._options
        if options.prepare is not None:
            await options.prepare(self.keyring)
        if not options.auth:
            return OpenDoor()
        issued = await bootstrap(self.keyring, options.data_dir, show=options.show_key)
        if key_file_waits(options.data_dir):
            self._log.warning(
                "admin_key_unread",
                path=str(options.data_dir / ADMIN_KEY_NAME),
                sha256_prefix=None if issued is None else issued.record.hash[:8],
                next="read the file and delete it; until then nothing is served",
            )
        rejects = RejectLog(self._database, now_ms=now_ms)
        background.start_soon(rejects.run)
        return Door(self.keyring, rejects, default_rpm=self._default_rpm)

    async def _audit_start(self) -> None:
        options = self._options
        action = Action.SERVER_START if options.auth else Action.SERVER_START_NO_AUTH
        # With the configuration: whoever changed it while nothing ran, no configuration is in force without a row.
        await self._audit(action, f"{options.host}:{options.port}", after=_shown(self._started))

    async def _audit(self, action: Action, target: str, *, before: str | None = None, after: str | None = None) -> None:
        draft = AuditDraft(ts=now_ms(), action=action, target=target, before=before, after=after)

        def change(_: sa.Connection) -> Mutation[None]:
            return Mutation(None, (draft,))

        await self._database.mutate(change)

    def _status(self, door: Door | OpenDoor, store: ConfigStore | None) -> ServerStatus:
        problem = None if store is None else store.problem
        return ServerStatus(
            pid=os.getpid(),
            auth_mode=door.mode,
            config_file=None if store is None else str(store.path.resolve()),
            config_problem=None if problem is None else str(problem),
            started_with=_shown(self._started),
        )

    async def _prune(self) -> None:
        """Removes audit files that are past their time, now and then every hour."""
        while True:
            days = self._state.config.retention.audit_days
            try:
                removed = await self._writer.prune(now_ms(), days)
            except OSError as error:
                self._log.warning("audit_not_pruned", reason=error.strerror)
            else:
                if removed:
                    self._log.info("audit_pruned", files=removed)
            await trio.sleep(_PRUNE_S)

    # -- configuration ------------------------------------------------------------------------------------------

    def _reloader(self, parts: _Parts, background: trio.Nursery) -> Callable[[Loaded], Awaitable[None]]:
        async def reload(loaded: Loaded) -> None:
            self._check_upstreams(loaded.config)
            before, after = _shown(self._state.config), _shown(loaded.config)
            try:
                await self._audit(Action.CONFIG_RELOAD, "config.json", before=before, after=after)
            except StorageError as error:  # what cannot be audited is not done
                raise ConfigError((ConfigProblem("$", f"the change cannot be audited: {error}"),)) from error
            await self._use_upstreams(loaded.config, parts.client, background)
            parts.seats.set_config(loaded.config)
            parts.meter.set_config(loaded.config)
            self._state.config = loaded.config
            waiting = restart_members(self._started, loaded.config)
            if waiting:
                self._log.warning("config_waits_for_restart", members=list(waiting))
            parts.keeper.set_config(loaded.config)

        return reload

    async def _use_upstreams(self, config: Config, client: UpstreamClient, background: trio.Nursery) -> None:
        """Points the client at a configuration's upstreams. Raises `ConfigError`, and then nothing has changed."""
        options = self._options
        self._check_upstreams(config)  # before anything starts
        for name in _demo_names(config) - self._demos.keys():
            self._demos[name] = _start_demo(background, options.new_request_id)
        client.set_targets(upstream_targets(config, options.environ, base_dir=options.base_dir, demo_urls=self._demos))

    def _check_upstreams(self, config: Config) -> None:
        """Raises `ConfigError` when the upstreams cannot be used, as when a key's file is not there."""
        urls = {name: self._demos.get(name, "http://127.0.0.1") for name in _demo_names(config)}
        upstream_targets(config, self._options.environ, base_dir=self._options.base_dir, demo_urls=urls)


def _now_s() -> float:
    return now_ms() / 1000


def _demo_names(config: Config) -> set[str]:
    return {name for name, upstream in config.upstreams.items() if upstream.kind == "demo"}


def _shown(config: Config) -> str:
    return msgspec.json.encode(config).decode()


def _start_demo(background: trio.Nursery, new_request_id: Callable[[], str]) -> str:
    """A simulated provider on a port of its own; returns its base URL."""
    limits = LimitsConfig()
    listener = listen("127.0.0.1", 0, write_stall_s=limits.write_stall_s)
    # Ids must not come again after a restart; what tests look into need not be kept.
    github = DemoGitHub(client_id=CLIENT_ID)
    app = DemoProvider(time.time, IdCounter(f"{time.time_ns():x}"), kept_records=0, github=github)
    background.start_soon(_server(app, limits, new_request_id).serve, listener)
    return f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"


def _server(
    app: Gateway | DemoProvider,
    limits: LimitsConfig,
    new_request_id: Callable[[], str],
    on_drain: Callable[[], None] | None = None,
    on_stop: Callable[[], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Server:
    return Server(
        app,
        limits=limits,
        framing=FramingLimits(body=limits.max_body_bytes, websockets=SESSION_PATHS),
        new_request_id=new_request_id,
        on_drain=on_drain,
        on_stop=on_stop,
        tls=tls,
    )


async def _announce(keeper: CatalogKeeper, running: Running, on_ready: Callable[[Running], None]) -> None:
    with trio.move_on_after(_FIRST_LISTS_S):
        await keeper.ready.wait()
    get_logger("server").info("listening", url=running.url, auth_mode=running.auth_mode)
    on_ready(running)


async def _watch_signals(server: Server, grace_s: float, look_again: Callable[[], None], armed: ExitStack) -> None:
    """The first signal begins the graceful end, the second one is the end. At SIGHUP `look_again` is called."""
    with trio.open_signal_receiver(*_ENDING, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                look_again()
                continue
            name = signal.Signals(number).name
            if server.draining:
                os._exit(1)
            get_logger("server").info("shutdown", signal=name, running=server.connections, grace_s=grace_s)
            server.shutdown()
            hard_stop = threading.Timer(grace_s + _HARD_STOP_S, os._exit, [1])
            hard_stop.daemon = True  # the process may end before it
            hard_stop.start()
            armed.callback(hard_stop.cancel)  # a process that goes on without this gateway is not to be ended
