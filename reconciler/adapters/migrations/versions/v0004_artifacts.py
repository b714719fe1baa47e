"""Publish and pull intents, what is known of signatures, and canaries that went back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "transfers",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_index("transfers_owner", "transfers", ["owner", "created_at_ms"])
    op.create_index("transfers_expiry", "transfers", ["state", "expires_at_ms"])
    op.create_table(
        "evidence",
        sa.Column("artifact", sa.Text(), primary_key=True),
        sa.Column("checked_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
    )
    op.create_table(
        "step_backs",
        sa.Column("promotion", sa.Text(), primary_key=True),
        sa.Column("document", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    for name in ("step_backs", "evidence", "transfers"):
        op.drop_table(name)
