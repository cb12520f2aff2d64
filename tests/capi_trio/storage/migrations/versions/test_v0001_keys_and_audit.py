"""The first step, which is released: its outcome never changes."""

import sqlite3
from contextlib import closing
from pathlib import Path

from capi_trio.storage import sqlite


def test_what_it_makes_is_as_it_was_released(tmp_path: Path) -> None:
    """Names and kinds of all columns, and every rule that rows must keep."""
    sqlite.create(tmp_path / "capi.db")
    with closing(sqlite3.connect(tmp_path / "capi.db")) as connection:
        columns = {
            table: " ".join(name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})"))
            for table in ("keys", "audit_head", "audit_outbox")
        }
        text = " ".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
    assert columns == {
        "keys": "id hash tier label owner identity allowed_models rate_limit_override budget_unit budget_amount "
        "budget_period expires_at debug_expires_at created_at revoked_at rotated_from",
        "audit_head": "stream next_seq written_seq written_hash",
        "audit_outbox": "stream seq ts actor_key_id actor_tier action target before after ip user_agent reason",
    }
    for rule in (
        "keys_hash_is_sha256", "keys_tier", "keys_allowed_models_is_json", "keys_rate_limit_override",
        "keys_budget_is_whole", "keys_newest", "audit_head_order", "audit_outbox_before_is_json",
        "audit_outbox_after_is_json", "UNIQUE (hash)", "DEFERRABLE INITIALLY DEFERRED",
    ):  # fmt: skip
        assert rule in text
