"""Schema steps: each happens whole or not at all, in order, once."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from capi_trio.storage import migrations, postgres, sqlite
from capi_trio.storage.errors import DatabaseCorrupt, DatabaseTooNew
from tests.capi_trio.storage.children import Forker
from tests.capi_trio.storage.helpers import Backend

STEPS = {
    "0001": "op.create_table('one', sa.Column('id', sa.Integer, primary_key=True), sa.Column('x', sa.Text))",
    "0002": "op.create_table('two', sa.Column('id', sa.Integer, primary_key=True))\n    "
    "op.execute('INSERT INTO one (id, x) VALUES (1, ' + chr(39) + 'a' + chr(39) + ')')\n    "
    "op.create_index('two_id', 'two', ['id'])",
    "0003": "op.add_column('one', sa.Column('y', sa.Text))\n    op.execute('UPDATE one SET y = x')",
}


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """Three steps that make, fill and change tables."""
    folder = tmp_path / "versions"
    folder.mkdir()
    for number, (revision, body) in enumerate(STEPS.items()):
        before = repr(f"{number:04}") if number else None
        (folder / f"v{revision}.py").write_text(
            f"import sqlalchemy as sa\nfrom alembic import op\n\nrevision = {revision!r}\n"
            f"down_revision = {before}\n\n\ndef upgrade():\n    {body}\n"
        )
    return folder


@contextmanager
def engine(backend: Backend) -> Iterator[sa.Engine]:
    backend.directory.mkdir(exist_ok=True)
    if backend.url is None:
        path = backend.directory / sqlite.DATABASE_NAME
        path.touch()
        made = sqlite.writer_engine(path)
    else:
        made = postgres.writer_engine(postgres.address(backend.url))
    try:
        yield made
    finally:
        made.dispose()


def shape(writer: sa.Engine) -> list[tuple[object, ...]]:
    """All tables, columns, indexes and rows, in words."""
    found: list[tuple[object, ...]] = []
    with writer.begin() as connection:
        inspector = sa.inspect(connection)
        for table in sorted(inspector.get_table_names()):
            found += [(table, column["name"], str(column["type"])) for column in inspector.get_columns(table)]
            found += [(table, index["name"]) for index in inspector.get_indexes(table)]
            found += sorted(tuple(row) for row in connection.execute(sa.text(f"SELECT * FROM {table}")))  # noqa: S608
    return found


def number(writer: sa.Engine, versions: Path) -> int:
    with writer.begin() as connection:
        return migrations.installed(connection, "test", versions)


def test_the_steps_of_capi_are_in_one_line_from_1() -> None:
    names = sorted(path.name for path in migrations.VERSIONS.glob("v*.py"))
    assert [int(name[1:5]) for name in names] == list(range(1, migrations.head() + 1))


def test_steps_run_in_order_and_once(backend: Backend, versions: Path) -> None:
    with engine(backend) as writer:
        assert number(writer, versions) == 0
        migrations.upgrade(writer, "test", versions)
        assert number(writer, versions) == migrations.head(versions) == 3
        made = shape(writer)
        migrations.upgrade(writer, "test", versions)
        assert shape(writer) == made


def test_sqlites_header_has_the_number(tmp_path: Path, versions: Path) -> None:
    with engine(Backend(tmp_path, None)) as writer:
        migrations.upgrade(writer, "test", versions)
    with closing(sqlite.connect(tmp_path / sqlite.DATABASE_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


@pytest.mark.slow
def test_a_kill_at_any_statement_leaves_a_database_that_the_next_run_completes(
    backend: Backend, versions: Path
) -> None:
    """D6. After each kill a whole number of steps has happened."""
    with engine(backend) as writer:
        migrations.upgrade(writer, "test", versions)
        whole = shape(writer)
    kill_at, seen = 0, set()
    with Forker() as forker:
        while True:
            kill_at += 1
            _empty(backend)
            pid = forker.start("migrate", backend.directory, backend.url, kill_at=kill_at, versions=str(versions))
            code = forker.wait()[pid]
            assert code in (0, -signal.SIGKILL)
            with engine(backend) as writer:
                seen.add(number(writer, versions))
                migrations.upgrade(writer, "test", versions)
                assert shape(writer) == whole, kill_at
            if code == 0:
                break
    assert seen == {0, 1, 2, 3}
    assert kill_at > 20


def _empty(backend: Backend) -> None:
    if backend.url is None:
        for path in backend.directory.iterdir():
            path.unlink()
        (backend.directory / sqlite.DATABASE_NAME).touch()
        return
    with engine(backend) as writer, writer.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")


def test_several_at_once_do_the_steps_once(backend: Backend, versions: Path) -> None:
    with engine(backend):
        pass
    with Forker() as forker:
        for _ in range(8):
            forker.start("migrate", backend.directory, backend.url, kill_at=0, versions=str(versions))
        assert set(forker.wait().values()) == {0}
    with engine(backend) as writer:
        assert number(writer, versions) == 3


def test_a_newer_database_is_refused_and_left_as_it_is(backend: Backend, versions: Path) -> None:
    with engine(backend) as writer:
        migrations.upgrade(writer, "test", versions)
        made = shape(writer)
        (versions / "v0003.py").unlink()
        with pytest.raises(DatabaseTooNew, match=r"test: .*newer capi.* 3, .* 2"):
            migrations.upgrade(writer, "test", versions)
        assert shape(writer) == made


def test_another_programs_revision_is_refused(backend: Backend, versions: Path) -> None:
    with engine(backend) as writer:
        migrations.upgrade(writer, "test", versions)
        with writer.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = 'ae1027a6acf'"))
        with pytest.raises(DatabaseCorrupt, match="another program"):
            migrations.upgrade(writer, "test", versions)


def test_a_header_that_disagrees_with_the_tables_is_damage(tmp_path: Path, versions: Path) -> None:
    with engine(Backend(tmp_path, None)) as writer:
        migrations.upgrade(writer, "test", versions)
        with writer.begin() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 2")
        with pytest.raises(DatabaseCorrupt, match="schema 2 in its header and 3 in its tables"):
            migrations.upgrade(writer, "test", versions)
