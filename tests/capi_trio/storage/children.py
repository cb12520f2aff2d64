"""Processes for the tests to start by the dozen and to kill: jobs run in forks of one program that has loaded it all.

Run as a program it reads jobs, one JSON object a line, and answers each with the id of the process that does it; the
word `wait` is answered with how all of them ended. `Forker` is the other end. A job tells what it has done by
appending lines to a file, which outlives it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import sqlalchemy as sa
import trio
from sqlalchemy import event

from capi_core.keys import Tier
from capi_trio.clock import random_bytes
from capi_trio.recorder import Recorder
from capi_trio.storage import migrations, postgres, sqlite
from capi_trio.storage.database import Database, Mutation
from capi_trio.storage.keys import KeyRepository
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.usage import UsageBatch
from tests.capi_trio.storage.helpers import NOW, added, draft, open_store, record, revoked
from tests.support.usage_rows import usage_event

__all__ = ["Forker", "wait_for"]

ROOT: Final = Path(__file__).parents[3]


class Forker:
    """Starts and awaits jobs. `exits` of `wait`: by process id, negative for the signal that ended it."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.capi_trio.storage.children"]
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def start(self, job: str, directory: Path, url: str | None = None, **more: object) -> int:
        return int(
            self._ask(
                json.dumps(
                    {
                        "job": job,
                        "directory": str(directory),
                        "url": url or "",
                        **{name: str(value) for name, value in more.items()},
                    }
                )
            )
        )

    def wait(self) -> dict[int, int]:
        exits: dict[str, int] = json.loads(self._ask("wait"))
        return {int(pid): code for pid, code in exits.items()}

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        return self._process.stdout.readline()


def say(path: str, line: str) -> None:
    """Acknowledges something, for good as far as this process is concerned."""
    with Path(path).open("a") as file:
        file.write(line + "\n")


def churn(directory: Path, url: str | None, acks: str, seed: str) -> None:
    """Creates and revokes keys, several at a time, and tells of each when it is acknowledged, until killed."""
    dice = random.Random(seed)

    async def work(database: Database, name: str) -> None:
        for number in range(10_000):
            key = record(f"{seed}_{name}_{number}")
            await added(database, key)
            say(acks, f"create {key.id}")
            if dice.random() < 0.5:
                await revoked(database, key.id)
                say(acks, f"revoke {key.id}")

    async def main() -> None:
        async with open_store(directory, url) as store, trio.open_nursery() as nursery:
            await nursery.start(store.audit.run)
            for name in "abc":
                nursery.start_soon(work, store.database, name)

    trio.run(main)


class _TellingDatabase:
    """Tells of each commit when it began and when it ended."""

    def __init__(self, database: Database, acks: str) -> None:
        self._database = database
        self._acks = acks

    async def store_usage(self, batch: UsageBatch) -> None:
        say(self._acks, f"begun {time.monotonic()} -")
        await self._database.store_usage(batch)
        say(self._acks, f"ended {time.monotonic()} -")

    async def sweep_usage(self, before_ms: int) -> int:
        return await self._database.sweep_usage(before_ms)


def note(directory: Path, url: str | None, acks: str, seed: str) -> None:
    """Notes requests, some hundreds a second, each after it told of it, until killed."""

    async def main() -> None:
        async with open_store(directory, url) as store, trio.open_nursery() as nursery:
            recorder = Recorder(
                _TellingDatabase(store.database, acks),
                now_ms=lambda: NOW,
                keep_days=lambda: 30,
                new_batch_id=lambda: random_bytes(8).hex(),
            )
            await nursery.start(recorder.run)
            for number in range(100_000):
                event = usage_event(f"{seed}_{number}")
                say(acks, f"noted {time.monotonic()} {event.request_id}")
                recorder.note(event)
                await trio.sleep(0.002)

    trio.run(main)


def bootstrap(directory: Path, url: str | None, acks: str) -> None:
    """Makes the first admin key when there is none, as a server does at its start."""

    def first_admin(connection: sa.Connection) -> Mutation[bool]:
        keys = KeyRepository(connection)
        if keys.active_admins(NOW):
            return Mutation(False, (draft("nothing"),))
        keys.create(record(f"admin_{os.getpid()}", tier=Tier.ADMIN))
        return Mutation(True, (draft("bootstrap"),))

    async def main() -> None:
        async with open_store(directory, url) as store:
            made = await store.database.mutate(first_admin)
            say(acks, "made" if made else "found")

    trio.run(main)


def hold(directory: Path, acks: str) -> None:
    """Holds the directory's lock until killed."""
    with DirectoryLock.take(directory):
        say(acks, "held")
        signal.pause()


def connect(directory: Path, acks: str) -> None:
    """Has the database open, as somebody's database browser would, until killed."""
    connection = sqlite.connect(directory / sqlite.DATABASE_NAME)
    connection.execute("SELECT count(*) FROM keys").fetchone()
    say(acks, "open")
    signal.pause()


def migrate(directory: Path, url: str | None, kill_at: int, versions: str) -> None:
    """Brings the schema up to date, and is killed before its statement number `kill_at`."""
    statements = iter(range(1, 10_000))

    def count(*_: object) -> None:
        if next(statements) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(sa.Engine, "before_cursor_execute", count)
    event.listen(sa.Engine, "commit", count)
    if url is None:
        engine = sqlite.writer_engine(directory / sqlite.DATABASE_NAME)
    else:
        engine = postgres.writer_engine(postgres.address(url))
    migrations.upgrade(engine, "test", Path(versions))


def _do(order: dict[str, str]) -> None:
    directory, url, acks = Path(order["directory"]), order["url"] or None, order.get("acks", "")
    match order["job"]:
        case "churn":
            churn(directory, url, acks, order["seed"])
        case "bootstrap":
            bootstrap(directory, url, acks)
        case "note":
            note(directory, url, acks, order["seed"])
        case "hold":
            hold(directory, acks)
        case "connect":
            connect(directory, acks)
        case "migrate":
            migrate(directory, url, int(order["kill_at"]), order["versions"])
        case job:
            raise AssertionError(f"there is no job {job}")


def _fork(order: dict[str, str]) -> int:
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        # A job must not read the orders that are meant for the program.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _do(order)
        code = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def main() -> None:
    """Serves until the end of its input."""
    running: list[int] = []
    with suppress(ModuleNotFoundError):  # loaded once here, and not by each child
        sa.create_engine("postgresql+psycopg://")
    while line := sys.stdin.readline():
        if line.strip() == "wait":
            exits = {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running}
            running.clear()
            answer = json.dumps(exits)
        else:
            running.append(_fork(json.loads(line)))
            answer = str(running[-1])
        os.write(1, f"{answer}\n".encode())


def wait_for(path: Path, timeout_s: float = 10.0) -> list[str]:
    """The lines of a file, once there are any."""
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and (text := path.read_text())):
        assert time.monotonic() < deadline, f"nothing in {path}"
        time.sleep(0.005)
    return text.split("\n")[:-1]


if __name__ == "__main__":
    main()
