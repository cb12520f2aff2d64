"""What becomes of a data directory when its process dies, or a system call fails, at a named point.

    python -m tests.support.failpoints DIRECTORY MODE EVERY

A process that has everything loaded forks one child for each point. The child does what operators do (first start,
keys, identities, an edit of the configuration, a backup), until the point is reached; another child then judges what
it left. The points are the calls by which capi changes files, before and after each: nothing in capi itself knows of
them. `EVERY` is 1 for all points, 10 for a tenth.

- `kill`: the process is killed there.
- `ENOSPC`, `EIO`, `EROFS`, `EDQUOT`: the call fails with that error, once; what failed is then done again.
- `limit`: no file can grow beyond N bytes, also those that SQLite writes; N goes up in steps, and the limit is lifted
  when something has failed.

Prints one line for each point, and fails if any child found fault.
"""

import errno
import functools
import os
import resource
import signal
import sqlite3
import sys
import tarfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
import sqlalchemy as sa
import trio
from attrs import define, field
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import PoolProxiedConnection

from capi_core.audit import Action, verify
from capi_core.keys import KeyState, Tier, key_hash
from capi_trio.bootstrap import ADMIN_KEY_NAME, bootstrap
from capi_trio.clock import now_ms, random_bytes
from capi_trio.configfile import CONFIG_NAME
from capi_trio.configstore import seed, sweep
from capi_trio.identities import IdentityBook
from capi_trio.identity_operations import AddIdentity, RemoveIdentity
from capi_trio.keyring import Keyring
from capi_trio.operations import (
    Answer,
    BackUp,
    Command,
    CreateKey,
    EditConfig,
    KeyAnswer,
    Operations,
    Refused,
    RevokeKey,
    RotateKey,
)
from capi_trio.storage.audit_log import read_lines
from capi_trio.storage.audit_writer import open_audit_writer
from capi_trio.storage.backup import MANIFEST_NAME
from capi_trio.storage.database import open_database
from capi_trio.storage.errors import StorageError
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.sqlite import DATABASE_NAME
from capi_trio.storage.tables import identities as identities_table
from capi_trio.token_files import TOKENS_NAME

__all__ = ["ERRORS"]

P = ParamSpec("P")
T = TypeVar("T")

ERRORS: Final = ("ENOSPC", "EIO", "EROFS", "EDQUOT")

_CALLS: Final = (
    "chmod",
    "fchmod",
    "fsync",
    "ftruncate",
    "mkdir",
    "open",
    "pwrite",
    "rename",
    "replace",
    "unlink",
    "write",
)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_NEW: Final = '{"strict":true}'
_BACKUP_NAME: Final = "backup.tar"
_TOKEN: Final = "gho_of_no_account"
_LIMIT_STEP: Final = 1024
_LIMIT_END: Final = 96 * 1024


@define
class Points:
    """Counts the points as they are passed, and strikes at one of them."""

    strike_at: int | None = None
    strike: Callable[[str], None] = lambda _: None
    names: list[str] = field(factory=list)
    step: str = "start"

    def passed(self, name: str) -> None:
        self.names.append(f"{self.step}: {name}")
        if len(self.names) == self.strike_at:
            self.strike(name)

    def install(self) -> None:
        """Puts points before and after each call. For the life of the process."""
        for name in _CALLS:
            setattr(os, name, self._around(name, getattr(os, name)))
        commit: Callable[[DefaultDialect, PoolProxiedConnection], None] = DefaultDialect.do_commit

        def do_commit(dialect: DefaultDialect, connection: PoolProxiedConnection) -> None:
            self.passed("before commit")
            commit(dialect, connection)
            self.passed("after commit")

        setattr(DefaultDialect, "do_commit", do_commit)  # noqa: B010 - an assignment would be a type error

    def _around(self, name: str, call: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(call)
        def around(*arguments: P.args, **named: P.kwargs) -> T:
            if name == "open" and not (isinstance(arguments[1], int) and arguments[1] & _WRITES):
                return call(*arguments, **named)
            self.passed(f"before {name}")
            result = call(*arguments, **named)
            self.passed(f"after {name}")
            return result

        return around


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(number: int, name: str) -> None:
    if name.endswith("commit"):
        raise sqlite3.OperationalError("disk I/O error")
    raise OSError(number, os.strerror(number))


def _acknowledge(directory: Path, text: str) -> None:
    with directory.with_name("acknowledged").open("a") as file:
        file.write(text + "\n")


# -- what is done -------------------------------------------------------------------------------------------------


@define
class Work:
    """What operators do to one data directory. `again`: what fails is done again, which must succeed."""

    directory: Path
    points: Points
    again: Callable[[], None] | None

    async def run(self) -> None:
        await self._tried("seed", self._seed)
        while not await self._attempt():
            pass

    async def _attempt(self) -> bool:
        """One process's life; false when it could not even start."""
        self.points.step = "start"
        try:
            async with AsyncExitStack() as stack:
                lock = stack.enter_context(DirectoryLock.take(self.directory, timeout_s=10))
                sweep(self.directory / CONFIG_NAME)
                database = await stack.enter_async_context(open_database(lock))
                writer = await stack.enter_async_context(open_audit_writer(database, lock))
                keyring = Keyring(database, now_ms=now_ms, random_bytes=random_bytes, default_rpm=lambda: 60)
                await keyring.load()
                identities = IdentityBook(database, lock.directory, now_ms=now_ms, random_bytes=random_bytes)
                await identities.load()
                await self._operate(Operations(keyring, identities, database, writer, lock, now_ms))
                self.points.step = "stop"
        except (OSError, StorageError):
            if self.again is None or self.points.step not in {"start", "stop"}:
                raise
            self.again()
            return self.points.step == "stop"
        return True

    async def _operate(self, operations: Operations) -> None:
        first = await self._tried("bootstrap", lambda: bootstrap(operations.keyring, self.directory, show=None))
        if first is not None:
            _acknowledge(self.directory, f"admin {first.record.id}")
        made = await self._asked(operations, "create", CreateKey(label="a"))
        kept = await self._asked(operations, "create", CreateKey(label="b"))
        old = (self.directory / CONFIG_NAME).read_text()
        await self._asked(operations, "edit", EditConfig(str(self.directory / CONFIG_NAME), old, _NEW))
        await self._asked(operations, "revoke", RevokeKey(made))
        await self._asked(operations, "rotate", RotateKey(kept, 3_600_000))
        await self._asked(operations, "link", AddIdentity(name="kept", login="octo", token=_TOKEN))
        await self._asked(operations, "link", AddIdentity(name="gone", token=_TOKEN))
        await self._asked(operations, "relink", AddIdentity(name="kept", login="octo", token=_TOKEN + "_anew"))
        await self._asked(operations, "unlink", RemoveIdentity("gone"))
        await self._tried("drain", operations.writer.drain)
        await self._asked(operations, "backup", BackUp(str(self.directory.with_name(_BACKUP_NAME))))

    async def _asked(self, operations: Operations, step: str, command: Command) -> str:
        """Has a command carried out and acknowledges it; the id of the key that it was about."""

        async def run() -> Answer:
            answer = await operations.run(command)
            if isinstance(answer, Refused):
                raise StorageError(answer.message)
            return answer

        answer = await self._tried(step, run)
        key_id = answer.key.id if isinstance(answer, KeyAnswer) else ""
        _acknowledge(self.directory, f"{step} {key_id}")
        return key_id

    async def _seed(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        seed(self.directory / CONFIG_NAME)

    async def _tried(self, step: str, work: Callable[[], Awaitable[T]]) -> T:
        self.points.step = step
        try:
            return await work()
        except (OSError, StorageError):
            if self.again is None:
                raise
            self.again()
            # As the audit writer does by itself in a server: rows that wait are carried over before the next change.
            return await work()


# -- how it is judged ---------------------------------------------------------------------------------------------


def judge(directory: Path, *, killed: bool) -> str:
    """Opens what was left as a next start would. Raises `AssertionError`; returns what an auditor would have to ask."""
    path = directory.with_name("acknowledged")
    told = [line.partition(" ") for line in path.read_text().splitlines()] if path.exists() else []
    said = Counter(step for step, _, _ in told)
    notes: list[str] = []

    async def look() -> None:
        with DirectoryLock.take(directory, timeout_s=10) as lock:
            sweep(directory / CONFIG_NAME)
            async with open_database(lock) as database, open_audit_writer(database, lock) as writer:
                keyring = Keyring(database, now_ms=now_ms, random_bytes=random_bytes, default_rpm=lambda: 60)
                await keyring.load()
                rows = [msgspec.json.decode(line, type=dict[str, object]) for line in read_lines(directory)]
                _judge_keys(directory, keyring, told, rows)
                notes.extend(_judge_files(directory, said, rows, killed=killed))
                identities = IdentityBook(database, lock.directory, now_ms=now_ms, random_bytes=random_bytes)
                await identities.load()
                ids = await database.read(_all_identities)
                notes.extend(await _judge_identities(identities, ids, said, rows, killed=killed))
                notes.extend(_judge_tokens(directory, identities, killed=killed))
                life = await Operations(keyring, identities, database, writer, lock, now_ms).run(
                    CreateKey(label="afterwards")
                )
                assert isinstance(life, KeyAnswer), life

    trio.run(look)
    assert verify(read_lines(directory), after=None).ok
    assert [name for name in os.listdir(directory) if name.endswith(".tmp")] == []
    with sqlite3.connect(directory / DATABASE_NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return "; ".join(notes)


def _judge_keys(
    directory: Path, keyring: Keyring, told: list[tuple[str, str, str]], rows: list[dict[str, object]]
) -> None:
    """Nothing that was acknowledged is lost, and each change has one row."""
    keys = {record.id: record for record in keyring.all()}
    assert {key_id for step, _, key_id in told if key_id} <= keys.keys()
    revoked = {key_id for key_id, record in keys.items() if record.revoked_at is not None}
    assert {key_id for step, _, key_id in told if step == "revoke"} <= revoked
    admins = [record for record in keys.values() if record.tier is Tier.ADMIN]
    assert len(admins) <= 1
    assert all(record.state(now_ms()) is KeyState.ACTIVE for record in admins)
    file = directory / ADMIN_KEY_NAME
    if admins:
        assert key_hash(file.read_text().strip()) == admins[0].hash, "the key that nobody can read"
    clients = {key_id for key_id, record in keys.items() if record.tier is Tier.CLIENT and record.rotated_from is None}
    rotated = [record.rotated_from for record in keys.values() if record.rotated_from is not None]
    assert _targets(rows, Action.AUTH_BOOTSTRAP) == Counter(record.id for record in admins)
    assert _targets(rows, Action.KEY_CREATE) == Counter(clients)
    assert _targets(rows, Action.KEY_REVOKE) == Counter(revoked)
    assert _targets(rows, Action.KEY_ROTATE) == Counter(rotated)


def _all_identities(connection: sa.Connection) -> dict[str, bool]:
    """Whether each is removed, by id."""
    columns = identities_table.c
    rows = connection.execute(sa.select(columns.id, columns.removed_at.is_not(None)))
    return {str(identity): bool(removed) for identity, removed in rows}


async def _judge_identities(
    identities: IdentityBook, ids: dict[str, bool], said: Counter[str], rows: list[dict[str, object]], *, killed: bool
) -> list[str]:
    """Nothing that was acknowledged is lost, and each change has one row. Tells of an identity without its token."""
    removed = [identity for identity, gone in ids.items() if gone]
    assert said["link"] <= len(ids) <= said["link"] + killed
    assert said["unlink"] <= len(removed) <= said["unlink"] + killed
    assert _targets(rows, Action.IDENTITY_ADD) == Counter(ids.keys())
    assert _targets(rows, Action.IDENTITY_REMOVE) == Counter(removed)
    relinked = _targets(rows, Action.IDENTITY_LINK).total()
    assert said["relink"] <= relinked <= said["relink"] + killed
    if relinked:
        assert (await identities.token("kept")).reveal() == _TOKEN + "_anew"
    live = identities.live()
    problems = await identities.token_problems(live)
    without = [record.name for record, problem in zip(live, problems, strict=True) if problem is not None]
    assert without in ([], ["gone"])
    notes = [f"{name}: token deleted, identity not removed" for name in without]
    linked = any(record.name == "kept" for record in live)
    if linked and not relinked and (await identities.token("kept")).reveal() != _TOKEN:
        notes.append("kept: token exchanged without a row")
    assert killed or not notes
    return notes


def _judge_tokens(directory: Path, identities: IdentityBook, *, killed: bool) -> Iterator[str]:
    """No token is half written, and none is there without its identity, unless a kill came in between: tells of it."""
    names = {f"{record.name}.token" for record in identities.live()}
    for path in (directory / TOKENS_NAME).glob("*"):
        if path.name not in names:
            assert killed
            yield f"{path.name} without an identity"


def _judge_files(directory: Path, said: Counter[str], rows: list[dict[str, object]], *, killed: bool) -> Iterator[str]:
    """The configuration and the backup are as their rows say. Yields what is there without a row."""
    edits = _targets(rows, Action.CONFIG_EDIT).total()
    config = directory / CONFIG_NAME
    text = config.read_text() if config.exists() else ""
    assert not text or msgspec.json.decode(text, type=dict[str, object])
    assert edits == said["edit"] or (killed and edits <= 1)
    assert text == _NEW or not edits, "a row of a change that was not made"
    if text == _NEW and not edits:
        assert killed
        yield "configuration changed without a row of its own"
    backups = _targets(rows, Action.BACKUP_CREATE).total()
    assert backups == said["backup"] or (killed and backups <= 1)
    backup = directory.with_name(_BACKUP_NAME)
    if backup.exists() and backup.stat().st_size:
        with tarfile.open(backup) as tar:
            assert MANIFEST_NAME in tar.getnames()
        if not backups:
            assert killed
            yield "backup without a row"
    else:
        assert not backups, "a row of a backup that is not there"


def _targets(rows: list[dict[str, object]], action: Action) -> Counter[str]:
    return Counter(str(row["target"]) for row in rows if row["action"] == action.value)


# -- the runs -----------------------------------------------------------------------------------------------------


def _child(work: Callable[[], object]) -> int:
    """Does it in a process of its own; the exit code, negative for the signal that ended it."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _scenario(directory: Path, points: Points, again: Callable[[], None] | None) -> Callable[[], None]:
    def run() -> None:
        points.install()
        trio.run(Work(directory, points, again).run)

    return run


def _count(folder: Path) -> list[str]:
    """The names of all points, in the order in which one undisturbed run passes them."""
    folder.mkdir()
    path = folder / "names"

    def run() -> None:
        points = Points()
        _scenario(folder / "data", points, None)()
        with path.open("w") as file:
            file.write("\n".join(points.names))

    assert _child(run) == 0
    assert _child(lambda: judge(folder / "data", killed=False)) == 0
    return path.read_text().splitlines()


def _judged(folder: Path, *, killed: bool) -> str:
    """What a judge says of a folder; "FAULT" when it found one."""
    verdict = folder / "verdict"

    def work() -> None:
        verdict.write_text(judge(folder / "data", killed=killed))

    return verdict.read_text() or "ok" if _child(work) == 0 else "FAULT"


def _struck(folder: Path, number: int, mode: str) -> str:
    folder.mkdir()
    if mode == "kill":
        died = _child(_scenario(folder / "data", Points(number, _die), None))
        return _judged(folder, killed=True) if died == -signal.SIGKILL else f"FAULT: ended with {died}"
    strike = functools.partial(_fail, int(getattr(errno, mode)))
    ended = _child(_scenario(folder / "data", Points(number, strike), lambda: None))
    return _judged(folder, killed=False) if ended == 0 else f"FAULT: ended with {ended}"


def _limited(folder: Path, size: int) -> str:
    folder.mkdir()

    def limit(soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def run() -> None:
        limit(size)
        _scenario(folder / "data", Points(), lambda: limit(resource.RLIM_INFINITY))()

    ended = _child(run)
    return _judged(folder, killed=False) if ended == 0 else f"FAULT: ended with {ended}"


def main(directory: Path, mode: str, every: int) -> int:
    """Strikes at each point in turn. Returns how many times a fault was found."""
    results: dict[str, str] = {}
    if mode == "limit":
        for size in range(0, _LIMIT_END, _LIMIT_STEP * every):
            results[f"{size} bytes"] = _limited(directory / f"{size}", size)
    else:
        names = _count(directory / "count")
        for number in range(1, len(names) + 1, every):
            name = names[number - 1]
            if mode != "kill" and " after " in name:
                continue  # a call that was done has not failed
            results[f"{number} {name}"] = _struck(directory / f"{number}", number, mode)
    for name, result in results.items():
        sys.stdout.write(f"{name}: {result}\n")
    faults = sum(result.startswith("FAULT") for result in results.values())
    sys.stdout.write(f"{mode}: {len(results)} points, {faults} faults\n")
    return faults


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])) > 0)
