"""Brings a database to the schema that this version of capi works with.

Each step is one transaction, which also records its number: as Alembic's revision on both engines, and as
`PRAGMA user_version` in SQLite's file header. A step that is interrupted anywhere has not happened. Alembic supplies
the operations and the order of the steps; its environment (alembic.ini, env.py) is for a command line, which the
schema of a running gateway must not depend on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from capi_trio.storage.errors import DatabaseCorrupt, DatabaseTooNew

if TYPE_CHECKING:
    from alembic.script import Script, ScriptDirectory

__all__ = ["VERSIONS", "head", "installed", "upgrade"]

VERSIONS: Final = Path(__file__).parent / "versions"

_NUMBER: Final = "SELECT version_num FROM alembic_version"

# Alembic's `op` is one for the whole process.
_operating: Final = threading.Lock()


def head(versions: Path = VERSIONS) -> int:
    """The number of the newest schema that this code knows."""
    return max(int(path.name[1:5]) for path in versions.glob("v[0-9][0-9][0-9][0-9]*.py"))


def _is_current(writer: sa.Engine, versions: Path) -> bool:
    """Whether there is nothing to do, found out without Alembic: it is 10 MB of memory that a running gateway, whose
    schema is nearly always up to date, need not carry. Anything out of the ordinary is left to `installed` to name.
    """
    with writer.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return False
        numbers = [str(number) for number in connection.exec_driver_sql(_NUMBER).scalars()]
        if len(numbers) != 1 or not (numbers[0].isascii() and numbers[0].isdigit()):
            return False
        stamped = [int(numbers[0])]
        if connection.dialect.name == "sqlite":
            stamped.append(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    return set(stamped) == {head(versions)}


def installed(connection: sa.Connection, where: str, versions: Path = VERSIONS) -> int:
    """The number of the database's schema; 0 when it has none.

    Raises `DatabaseTooNew`, or `DatabaseCorrupt` when the number is none of ours or SQLite's header says another.
    """
    from alembic.runtime.migration import MigrationContext

    revision = MigrationContext.configure(connection).get_current_revision() or "0"
    if not (revision.isascii() and revision.isdigit()):
        raise DatabaseCorrupt(where, "has a schema that is not capi's. Is it another program's database?")
    number = stamped = int(revision)
    if connection.dialect.name == "sqlite":
        stamped = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    return _agreed(where, number, stamped, head(versions))


def _agreed(where: str, number: int, stamped: int, newest: int) -> int:
    if max(number, stamped) > newest:
        raise DatabaseTooNew(
            where,
            f"was made by a newer capi (its schema is {max(number, stamped)}, this one knows {newest}). "
            "Install that version again, or restore a backup",
        )
    if number != stamped:
        raise DatabaseCorrupt(where, f"says schema {stamped} in its header and {number} in its tables")
    return number


def upgrade(writer: sa.Engine, where: str, versions: Path = VERSIONS) -> None:
    """Runs the steps that are missing. `writer` begins each transaction with the database's write lock.

    Raises `DatabaseTooNew` when the database has steps that this code does not know, `DatabaseCorrupt`, or what the
    driver raises.
    """
    if _is_current(writer, versions):
        return
    scripts = _scripts(versions)
    with writer.connect() as connection:
        more = True
        while more:
            # The lock is taken first and the number read under it: of two processes, one finds nothing to do.
            with _operating, connection.begin():
                more = _step_from(installed(connection, where, versions), connection, scripts)


def _step_from(number: int, connection: sa.Connection, scripts: ScriptDirectory) -> bool:
    """Runs the step that follows schema `number`; false when there is none."""
    step = next((step for step in _steps(scripts) if int(step.revision) > number), None)
    if step is None:
        return False
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection)
    with Operations.context(context):
        step.module.upgrade()
    context.stamp(scripts, step.revision)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {int(step.revision)}")
    return True


def _scripts(versions: Path) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent), version_locations=[str(versions)])


def _steps(scripts: ScriptDirectory) -> Iterator[Script]:
    """Oldest first."""
    return reversed(list(scripts.walk_revisions()))
