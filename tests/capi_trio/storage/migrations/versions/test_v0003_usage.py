"""The third step: tables of usage that take no prompt, whoever writes into them."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from capi_trio.storage import migrations, sqlite, tables
from tests.capi_trio.storage.helpers import Backend
from tests.capi_trio.storage.migrations.test_init import engine
from tests.capi_trio.storage.migrations.versions.test_v0002_identities import ROW as IDENTITY

PROMPT = "Summarise this contract between Ann and Bob for me, please."
LONG = PROMPT * 20

NAMES = {
    "usage_events": {"request_id", "key_id", "owner", "identity", "upstream", "model", "upstream_model"},
    "usage_minutes": {"key_id", "model", "upstream"},
    "usage_writers": {"stream", "batch"},
}
"""Columns with the name of something, of at most 128 characters. No other text is free."""
WORDS = {"operation", "transport", "client_protocol", "upstream_protocol", "usage_source", "outcome"}
HISTOGRAMS = {"latency", "ttft"}

EVENT: dict[str, object] = {
    "id": 1, "ts": 1, "request_id": "req_1", "key_id": "key_a", "owner": "Ann", "identity": "seat", "operation": "chat",
    "transport": "http", "stream": True, "client_protocol": "chat", "upstream": "copilot", "upstream_protocol": "chat",
    "model": "fast", "upstream_model": "gpt-4.1", "uncached_input": 2**53, "cache_read": 1, "cache_write": 1,
    "output": 1, "reasoning": None, "usage_source": "none", "status": 200, "outcome": "ok", "ttft_ms": 1,
    "latency_ms": 1, "queue_ms": None, "losses": 0, "failed_upstreams": 0, "cost_micros": 2**62,
}  # fmt: skip
MINUTE: dict[str, object] = {
    "minute": 60_000, "key_id": "key_a", "model": "", "upstream": "", "requests": 2**63 - 1, "errors": 0, "aborted": 0,
    "refused": 0, "uncached_input": 1, "cache_read": 1, "cache_write": 1, "output": 1, "reasoning": 1,
    "unknown_usage": 0, "cost_micros": 1, "unknown_cost": 0, "latency": '{"57":3,"58":1}', "ttft": "{}",
}  # fmt: skip
WRITER: dict[str, object] = {"stream": "local", "batch": "0123456789abcdef"}
ROWS = {"usage_events": EVENT, "usage_minutes": MINUTE, "usage_writers": WRITER}

TEXTS = [
    (table.name, column.name)
    for table in tables.metadata.sorted_tables
    if table.name in tables.TELEMETRY
    for column in table.columns
    if isinstance(column.type, sa.Text)
]


def insert(connection: sa.Connection, table: str, row: Mapping[str, object]) -> None:
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)  # noqa: S608


def test_what_it_makes_is_as_it_was_released(tmp_path: Path) -> None:
    sqlite.create(tmp_path / "capi.db")
    with closing(sqlite3.connect(tmp_path / "capi.db")) as connection:
        columns = {
            table: [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
            for table in (*ROWS, "events")
        }
        text = " ".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
    view = "id ts key_id model upstream_model prompt_tokens completion_tokens status latency_ms error usage_unknown"
    assert columns == {**{table: list(row) for table, row in ROWS.items()}, "events": view.split()}
    for rule in (
        "usage_events_ts ON usage_events (ts)", "usage_events_key ON usage_events (key_id, ts)",
        "usage_events_model ON usage_events (model, ts) WHERE model IS NOT NULL",
        "usage_events_identity ON usage_events (identity, ts) WHERE identity IS NOT NULL",
        "usage_events_owner ON usage_events (owner, ts) WHERE owner IS NOT NULL",
        "usage_minutes_key ON usage_minutes (key_id, minute)", "PRIMARY KEY (minute, key_id, model, upstream)",
        "WITHOUT ROWID",
    ):  # fmt: skip
        assert rule in text


def test_no_column_of_telemetry_takes_free_text_but_the_listed_names() -> None:
    """What there is beside them is numbers, words of closed sets, and histograms."""
    for table in (tables.metadata.tables[name] for name in sorted(tables.TELEMETRY)):
        for column in table.columns:
            is_number = isinstance(column.type, sa.Integer | sa.Boolean)
            assert is_number or column.name in NAMES[table.name] | WORDS | HISTOGRAMS, (table.name, column.name)


def refused(table: str, column: str) -> list[str]:
    """A long prompt in any column, and any prompt where no name belongs."""
    if column in NAMES[table]:
        return [LONG]
    return [PROMPT, LONG, '{"a":"b"}' if column in HISTOGRAMS else ""]


def test_no_prompt_can_be_stored(backend: Backend) -> None:
    with engine(backend) as writer:
        migrations.upgrade(writer, "test")
        for table, column in TEXTS:
            for text in refused(table, column):
                with pytest.raises(sa.exc.IntegrityError), writer.begin() as connection:
                    insert(connection, table, {**ROWS[table], column: text})


def test_the_longest_names_and_sums_fit(backend: Backend) -> None:
    with engine(backend) as writer:
        migrations.upgrade(writer, "test")
        for table, names in NAMES.items():
            with writer.begin() as connection:
                insert(connection, table, {**ROWS[table], **dict.fromkeys(names, "\u00fc" * 128)})


def test_a_row_that_means_nothing_is_refused(backend: Backend) -> None:
    with engine(backend) as writer:
        migrations.upgrade(writer, "test")
        for name, row in ROWS.items():
            with writer.begin() as connection:
                insert(connection, name, row)
        for column, value in (("ttft_ms", -1), ("latency_ms", -1), ("queue_ms", -1), ("latency_ms", None)):
            with pytest.raises(sa.exc.IntegrityError), writer.begin() as connection:
                insert(connection, "usage_events", {**EVENT, "id": 2, column: value})
        for column, value in (("minute", 120_001), ("model", None)):
            with pytest.raises(sa.exc.IntegrityError), writer.begin() as connection:
                insert(connection, "usage_minutes", {**MINUTE, "minute": 120_000, column: value})


def test_a_database_of_the_second_step_keeps_its_rows(backend: Backend, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for step in migrations.VERSIONS.glob("v000[12]*.py"):
        (second / step.name).write_text(step.read_text())
    with engine(backend) as writer:
        migrations.upgrade(writer, "test", second)
        with writer.begin() as connection:
            insert(connection, "identities", IDENTITY)
        migrations.upgrade(writer, "test")
        with writer.begin() as connection:
            assert migrations.installed(connection, "test") == migrations.head()
            assert connection.execute(sa.text("SELECT id FROM identities")).scalars().all() == ["idn_a"]
            assert connection.execute(sa.text("SELECT * FROM events")).all() == []
