"""How a command that changes something is carried out: by the running server, or else by this process itself."""

from __future__ import annotations

from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import trio

from capi_core.config import Config, ConfigError
from capi_trio import logs
from capi_trio.cli.options import config_path, fail, prepare_data_dir, refuse
from capi_trio.clock import now_ms, random_bytes
from capi_trio.configfile import load
from capi_trio.control import ask
from capi_trio.copilot import configured_traits
from capi_trio.identities import IdentityBook
from capi_trio.identity_operations import ShowSeatUsage
from capi_trio.keyring import Keyring
from capi_trio.operations import Command, Operations, Refused, ServerStatus, ShowStatus
from capi_trio.quotas import Quotas
from capi_trio.storage.audit_writer import open_audit_writer
from capi_trio.storage.database import open_database
from capi_trio.storage.errors import DirectoryLocked, StorageError
from capi_trio.storage.lock import DirectoryLock
from capi_trio.upstream import UpstreamClient

if TYPE_CHECKING:
    from pathlib import Path

    from capi_trio.operations import Answer

__all__ = ["operate", "server_status"]

_LOCK_S = 2.0


def operate(data_dir: Path, command: Command, *, database: str | None = None) -> Answer:
    """Carries a command out and returns its answer. Ends the process with the reason when it is refused."""
    try:
        answer = ask(data_dir, command) or _operate_here(data_dir, command, database)
    except (StorageError, OSError) as error:
        fail(str(error))
    if isinstance(answer, Refused):
        refuse(answer.message)
    return answer


def server_status(data_dir: Path) -> ServerStatus | None:
    """How the server is that runs on this directory; `None` when none does, or none that can say."""
    try:
        answer = ask(data_dir, ShowStatus())
    except OSError:
        return None
    return answer if isinstance(answer, ServerStatus) else None


def _operate_here(data_dir: Path, command: Command, database: str | None) -> Answer:
    prepare_data_dir(data_dir)
    try:
        with DirectoryLock.take(data_dir, timeout_s=_LOCK_S) as lock, closing(logs.configure()):
            return trio.run(_run, lock, command, database, _config(data_dir))
    except DirectoryLocked as error:
        answer = ask(data_dir, command)  # a server that has started in the meantime
        if answer is None:
            raise StorageError(f"{error}, which does not answer; is it starting or stopping?") from error
        return answer


async def _run(lock: DirectoryLock, command: Command, url: str | None, config: Config) -> Answer:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(lock, url))
        writer = await stack.enter_async_context(open_audit_writer(database, lock))
        default_rpm = config.limits.requests_per_minute  # by which an override is judged
        keyring = Keyring(database, now_ms=now_ms, random_bytes=random_bytes, default_rpm=lambda: default_rpm)
        await keyring.load()
        identities = IdentityBook(database, lock.directory, now_ms=now_ms, random_bytes=random_bytes)
        await identities.load()
        quotas = None
        if isinstance(command, ShowSeatUsage):
            client = await stack.enter_async_context(UpstreamClient({}))
            traits = configured_traits(config)
            quotas = Quotas(identities, client, traits=lambda: traits, now_s=lambda: now_ms() / 1000)
        return await Operations(keyring, identities, database, writer, lock, now_ms, quotas).run(command)


def _config(data_dir: Path) -> Config:
    """The configuration of a gateway that does not run; the built-in one when the file cannot be used."""
    try:
        config, _ = load(config_path(data_dir, None))
    except ConfigError:
        return Config()
    return config
