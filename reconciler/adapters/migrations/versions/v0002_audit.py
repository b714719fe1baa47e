"""Who gave an object its form, which changes were refused, the audit trail, names used once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "accepted_objects",
        sa.Column("signed_by", sa.Text(), nullable=False, server_default=""),
    )
    op.create_table(
        "refused_changes",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("row_hash", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in _TEXTS),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_table(
        "used_once",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("used_once_expires", "used_once", ["expires_at_ms"])


_TEXTS = (
    "actor",
    "requester_type",
    "action",
    "object",
    "before",
    "after",
    "reason",
    "revision",
    "correlation_id",
    "result",
    "key_id",
    "via",
)


def downgrade() -> None:
    for table in ("used_once", "audit", "refused_changes"):
        op.drop_table(table)
    op.drop_column("accepted_objects", "signed_by")
