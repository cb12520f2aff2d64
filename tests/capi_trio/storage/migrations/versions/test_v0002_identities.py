"""The second step: what it adds, and that it leaves what was there."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from capi_trio.storage import migrations, sqlite
from tests.capi_trio.storage.helpers import Backend
from tests.capi_trio.storage.migrations.test_init import engine

ROW = {
    "id": "idn_a", "name": "a", "host": "github.com", "login": None, "owner": None, "shared": False,
    "share_reason": None, "state": "active", "state_reason": None, "max_in_flight": None, "created_at": 1,
    "updated_at": 1, "removed_at": None,
}  # fmt: skip


def test_what_it_makes_is_as_it_was_released(tmp_path: Path) -> None:
    sqlite.create(tmp_path / "capi.db")
    with closing(sqlite3.connect(tmp_path / "capi.db")) as connection:
        columns = " ".join(name for _, name, *_ in connection.execute("PRAGMA table_info(identities)"))
        text = " ".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
    assert columns == " ".join(ROW)
    for rule in (
        "identities_name", "identities_share_has_its_reason", "identities_share_has_an_owner", "identities_state",
        "identities_max_in_flight", "UNIQUE INDEX identities_live_name ON identities (name) WHERE removed_at IS NULL",
    ):  # fmt: skip
        assert rule in text


def test_a_database_of_the_first_step_keeps_its_keys(backend: Backend, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    [step] = migrations.VERSIONS.glob("v0001*.py")
    (first / step.name).write_text(step.read_text())
    insert = sa.text(
        "INSERT INTO keys (id, hash, tier, label, allowed_models, created_at) "
        "VALUES ('key_a', :hash, 'admin', 'a', '[\"*\"]', 1)"
    )
    with engine(backend) as writer:
        migrations.upgrade(writer, "test", first)
        with writer.begin() as connection:
            connection.execute(insert, {"hash": "f" * 64})
        migrations.upgrade(writer, "test")
        with writer.begin() as connection:
            assert migrations.installed(connection, "test") == migrations.head()
            assert connection.execute(sa.text("SELECT id FROM keys")).scalars().all() == ["key_a"]
            assert connection.execute(sa.text("SELECT * FROM identities")).all() == []


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"shared": True},
        {"share_reason": "why"},
        {"shared": True, "share_reason": "why"},
        {"state": "asleep"},
        {"max_in_flight": 0},
        {"created_at": None},
    ],
)
def test_a_row_that_means_nothing_is_refused(backend: Backend, values: dict[str, object]) -> None:
    names = ", ".join(ROW)
    statement = sa.text(f"INSERT INTO identities ({names}) VALUES ({', '.join(f':{name}' for name in ROW)})")  # noqa: S608
    with engine(backend) as writer:
        migrations.upgrade(writer, "test")
        with writer.begin() as connection:
            connection.execute(statement, ROW)
        with pytest.raises(sa.exc.IntegrityError), writer.begin() as connection:
            connection.execute(statement, {**ROW, "id": "idn_b", "name": "b", **values})
