"""A consistent copy of everything in one file, and the way back.

A backup is a plain tar archive (readable with any `tar`), mode 0600:

    audit-*.jsonl       the audit files
    config.json         the configuration, if there is one
    capi.db             the database at the same point of the history, as one SQLite file from either engine
    capi-backup.json    last: the format's version, the time, and size and SHA-256 of each file above

`restore` unpacks one into an empty data directory and checks the sums. `load` then moves the unpacked database into an
empty PostgreSQL one, where that is wanted. Not in a backup: the bootstrap key's file, the identities' tokens, debug
traces, and the secrets that the configuration only names.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import sqlalchemy as sa
import trio

from capi_core.audit import day_of
from capi_trio.configfile import CONFIG_NAME
from capi_trio.storage import postgres, sqlite
from capi_trio.storage.audit_log import Extent
from capi_trio.storage.audit_writer import AuditWriter
from capi_trio.storage.database import LOCAL_STREAM, Database
from capi_trio.storage.errors import BackupError, UnsafePath, translated
from capi_trio.storage.files import FILE_MODE, create_file, instance_id, sync_directory
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.tables import metadata

__all__ = ["MANIFEST_NAME", "Manifest", "Member", "back_up", "load", "restore"]

MANIFEST_NAME: Final = "capi-backup.json"

_FORMAT: Final = 1
_CHUNK: Final = 1024 * 1024
_ROWS: Final = 1000
_MAX_MANIFEST: Final = 16 * 1024 * 1024


class Member(msgspec.Struct, frozen=True):
    """One file of a backup: its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself. `created_at`: ms since the epoch, UTC."""

    format: int
    created_at: int
    members: tuple[Member, ...]


async def back_up(
    database: Database, writer: AuditWriter, lock: DirectoryLock, destination: Path, *, now_ms: int
) -> Manifest:
    """Writes a backup to `destination`, which must not exist yet. Changes go on meanwhile and are not in it.

    Audit rows that are in no file yet are in the database's copy. Once begun it is not cancelled. Raises `BackupError`
    (nothing is left at `destination`) and `DatabaseError`.
    """
    made = False

    def write(extents: Sequence[Extent], source: sa.Connection) -> Manifest:
        nonlocal made
        manifest = _write_all(database.stream, lock.directory, extents, destination, now_ms, source)
        made = True
        return manifest

    async with writer.at_rest() as extents:
        try:
            return await database.read(partial(write, extents))
        except BaseException:
            if made:  # and the database failed in what was left to do
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(partial(destination.unlink, missing_ok=True))
            raise


def restore(archive: Path, lock: DirectoryLock) -> Manifest:
    """Unpacks a backup into the locked directory, which must hold no database, configuration or audit file yet.

    Nothing is in place before all of it was checked; the database comes last. Raises `BackupError`.
    """
    directory = lock.directory
    present = [name for name in os.listdir(directory) if _belongs(name)]
    if present:
        raise BackupError(f"{directory} is not empty: it has {present[0]}. Restore into a new directory")
    with (
        _failing(archive, "cannot be restored"),
        tempfile.TemporaryDirectory(dir=directory, prefix=".restore-") as work,
    ):
        with tarfile.open(archive, "r:") as tar:
            found = {info.name: info for info in tar}
            manifest = _manifest(archive, tar, found)
            for member in manifest.members:
                _unpack(archive, tar, found.get(member.name), member, Path(work) / member.name)
        for member in sorted(manifest.members, key=lambda member: member.name == sqlite.DATABASE_NAME):
            (Path(work) / member.name).rename(directory / member.name)
        sync_directory(directory)
    return manifest


def load(lock: DirectoryLock, url: str) -> None:
    """Copies `capi.db` of the locked directory into the PostgreSQL database at `url`, which must hold no keys yet.

    The directory's audit files continue from there; `capi.db` is left as it is and no longer used. Raises
    `BackupError`, `DatabaseError`, `UnsafePath`.
    """
    path = lock.directory / sqlite.DATABASE_NAME
    if not path.exists():
        raise BackupError(f"{path} is not there: restore a backup first")
    target = postgres.address(url)
    with lock.claim("database"), translated(postgres.display(target)):
        sqlite.prepare(path)
        postgres.prepare(target)
        with (
            _disposed(sqlite.writer_engine(path)) as reading,
            _disposed(postgres.writer_engine(target)) as writing,
            reading.begin() as source,
            writing.begin() as sink,
        ):
            if any(sink.execute(sa.select(table).limit(1)).first() for table in metadata.sorted_tables):
                raise BackupError(f"{postgres.display(target)} is not empty")
            _copy_rows(source, sink, {LOCAL_STREAM: instance_id(lock.directory)})


def _write_all(
    stream: str, directory: Path, extents: Sequence[Extent], destination: Path, now_ms: int, source: sa.Connection
) -> Manifest:
    with _failing(destination, "was not written"), _reserved(destination) as work:
        copy = work / sqlite.DATABASE_NAME
        sqlite.create(copy)
        with translated(str(copy)), _disposed(sqlite.writer_engine(copy)) as engine, engine.begin() as sink:
            _copy_rows(source, sink, {stream: LOCAL_STREAM})
        archive = work / "archive"
        create_file(archive)
        with archive.open("r+b") as file:
            manifest = _pack(file, directory, extents, copy, now_ms)
            file.flush()
            os.fsync(file.fileno())
        archive.replace(destination)
        sync_directory(destination.parent)
    return manifest


def _pack(file: BinaryIO, directory: Path, extents: Sequence[Extent], copy: Path, now_ms: int) -> Manifest:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add = partial(_add, tar, now_ms)
        members = [add(extent.path, extent.size) for extent in extents]
        config = directory / CONFIG_NAME
        if config.exists():
            members.append(add(config, None))
        members.append(add(copy, None))
        manifest = Manifest(_FORMAT, now_ms, tuple(members))
        encoded = msgspec.json.encode(manifest)
        tar.addfile(_info(MANIFEST_NAME, len(encoded), now_ms), io.BytesIO(encoded))
    return manifest


def _add(tar: tarfile.TarFile, now_ms: int, path: Path, size: int | None) -> Member:
    # Not `open_private`: the configuration may be a link, as Kubernetes mounts it.
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size if size is None else size
        digest = hashlib.sha256()
        tar.addfile(_info(path.name, size, now_ms), _Hashing(file, digest.update))
    return Member(path.name, size, digest.hexdigest())


def _info(name: str, size: int, now_ms: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, FILE_MODE, now_ms // 1000
    return info


class _Hashing:
    """A file whose every read is also shown to a digest."""

    def __init__(self, file: BinaryIO, update: Callable[[bytes], None]) -> None:
        self._file = file
        self._update = update

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._update(data)
        return data


def _manifest(archive: Path, tar: tarfile.TarFile, found: Mapping[str, tarfile.TarInfo]) -> Manifest:
    info = found.get(MANIFEST_NAME)
    file = None if info is None or info.size > _MAX_MANIFEST else tar.extractfile(info)
    if file is None:
        raise BackupError(f"{archive} is not a whole backup of capi: it has no {MANIFEST_NAME}")
    manifest = msgspec.json.decode(file.read(), type=Manifest)
    if manifest.format != _FORMAT:
        raise BackupError(f"{archive} has the format {manifest.format}; this capi reads {_FORMAT}")
    strange = [member.name for member in manifest.members if not _belongs(member.name)]
    if strange:
        raise BackupError(f"{archive} holds a file that is not capi's: {strange[0]!r}")
    return manifest


def _unpack(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo | None, member: Member, path: Path) -> None:
    source = None if info is None or not info.isreg() or info.size != member.size else tar.extractfile(info)
    if source is None:
        raise BackupError(f"{archive} lacks {member.name}, or has another size of it")
    digest = hashlib.sha256()
    create_file(path)
    with path.open("r+b") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != member.sha256:
        raise BackupError(f"{archive} is damaged: {member.name} does not have the sum that was written down")


def _belongs(name: str) -> bool:
    return name in (sqlite.DATABASE_NAME, CONFIG_NAME) or day_of(name) is not None


def _copy_rows(source: sa.Connection, sink: sa.Connection, streams: Mapping[str, str]) -> None:
    """Copies every table, and gives the audit streams their names at the other end."""
    for table in metadata.sorted_tables:
        for rows in source.execute(sa.select(table)).partitions(_ROWS):
            sink.execute(table.insert(), [_renamed(row, streams) for row in rows])


def _renamed(row: sa.Row[tuple[object, ...]], streams: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = row._asdict()
    if "stream" in values:
        values["stream"] = streams.get(str(values["stream"]), values["stream"])
    return values


@contextmanager
def _reserved(destination: Path) -> Iterator[Path]:
    """Takes the name, so that nothing else is ever replaced, and gives a private folder beside it to work in."""
    create_file(destination)
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".capi-backup-") as work:
            yield Path(work)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


@contextmanager
def _disposed(engine: sa.Engine) -> Iterator[sa.Engine]:
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _failing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise BackupError(f"{path} {what}: the file is there already") from error
    except (OSError, UnsafePath, tarfile.TarError, msgspec.MsgspecError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BackupError(f"{path} {what}: {reason}") from error
