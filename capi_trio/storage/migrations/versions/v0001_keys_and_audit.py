"""Keys, and the outbox of the audit files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Makes the tables keys, audit_head and audit_outbox."""
    is_json = "json_valid({0})" if op.get_bind().dialect.name == "sqlite" else "({0})::json IS NOT NULL"
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("identity", sa.Text),
        sa.Column("allowed_models", sa.Text, nullable=False),
        sa.Column("rate_limit_override", sa.BigInteger),
        sa.Column("budget_unit", sa.Text),
        sa.Column("budget_amount", sa.BigInteger),
        sa.Column("budget_period", sa.Text),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("debug_expires_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("rotated_from", sa.Text, sa.ForeignKey("keys.id", deferrable=True, initially="DEFERRED")),
        sa.CheckConstraint("length(hash) = 64", name="keys_hash_is_sha256"),
        sa.CheckConstraint("tier IN ('admin', 'client')", name="keys_tier"),
        sa.CheckConstraint(is_json.format("allowed_models"), name="keys_allowed_models_is_json"),
        sa.CheckConstraint("rate_limit_override > 0", name="keys_rate_limit_override"),
        sa.CheckConstraint(
            "(budget_unit IS NULL) = (budget_amount IS NULL) AND (budget_unit IS NULL) = (budget_period IS NULL)",
            name="keys_budget_is_whole",
        ),
    )
    op.create_index("keys_newest", "keys", ["created_at", "id"])
    op.create_table(
        "audit_head",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("written_seq", sa.BigInteger, nullable=False),
        sa.Column("written_hash", sa.Text, nullable=False),
        sa.CheckConstraint("next_seq > written_seq", name="audit_head_order"),
    )
    op.create_table(
        "audit_outbox",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("ts", sa.BigInteger, nullable=False),
        sa.Column("actor_key_id", sa.Text),
        sa.Column("actor_tier", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("ip", sa.Text),
        sa.Column("user_agent", sa.Text),
        sa.Column("reason", sa.Text),
        sa.CheckConstraint(f"before IS NULL OR {is_json.format('before')}", name="audit_outbox_before_is_json"),
        sa.CheckConstraint(f"after IS NULL OR {is_json.format('after')}", name="audit_outbox_after_is_json"),
    )
