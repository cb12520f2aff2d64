"""A private PostgreSQL server for the tests that run on both engines.

It listens on a Unix socket only and runs as an ordinary user: as root, which PostgreSQL refuses to be, as the user
`postgres` that its package makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from attrs import field, frozen

from tests.capi_trio.storage.helpers import Backend


@frozen
class PostgresServer:
    """A running server. Databases are made by name and go with it."""

    programs: Path
    directory: Path
    names: Iterator[int] = field(factory=count)

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs as the user who may."""
        become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*become, str(self.programs / program), *arguments]
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
            command,
            capture_output=True,
            text=True,
            cwd=self.directory,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        # Nothing here survives a power cut, so nothing has to be synced.
        options = f"-k {self.directory} -c listen_addresses='' -c fsync=off -c max_connections=200"
        data = self.directory / "data"
        self.run("pg_ctl", "-D", str(data), "-l", str(self.directory / "log"), "-w", "-o", options, "start")

    def stop(self) -> None:
        """Ends it as a crash would."""
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-w", "-m", "immediate", "stop")

    def address(self, name: str) -> str:
        return f"postgresql://capi@/{name}?host={self.directory}"

    def new_database(self) -> str:
        """The address of an empty database."""
        name = f"test{next(self.names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.address(name)

    def execute(self, statement: str) -> None:
        """Runs a statement as the server's administrator."""
        url = sa.make_url(self.address("postgres")).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")
    # Not under pytest's own folder: another user must get there, and a socket's path must be short.
    directory = Path(tempfile.mkdtemp(prefix="capi-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres")
        server = PostgresServer(programs, directory)
        server.run("initdb", "-D", str(directory / "data"), "-U", "capi", "-A", "trust", "-E", "UTF8", "--no-sync")
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty database of each engine in turn: the same tests hold on both."""
    directory = tmp_path / "data"
    if request.param == "sqlite":
        return Backend(directory, None)
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Backend(directory, server.new_database())
