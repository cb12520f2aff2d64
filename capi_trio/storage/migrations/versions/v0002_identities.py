"""Identities: GitHub seats."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Makes the table identities."""
    op.create_table(
        "identities",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("login", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("shared", sa.Boolean, nullable=False),
        sa.Column("share_reason", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_reason", sa.Text),
        sa.Column("max_in_flight", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("removed_at", sa.BigInteger),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name="identities_name"),
        sa.CheckConstraint("shared = (share_reason IS NOT NULL)", name="identities_share_has_its_reason"),
        sa.CheckConstraint("NOT shared OR owner IS NOT NULL", name="identities_share_has_an_owner"),
        sa.CheckConstraint("state IN ('active', 'paused', 'stopped')", name="identities_state"),
        sa.CheckConstraint("max_in_flight > 0", name="identities_max_in_flight"),
    )
    live = sa.text("removed_at IS NULL")
    op.create_index(
        "identities_live_name", "identities", ["name"], unique=True, sqlite_where=live, postgresql_where=live
    )
