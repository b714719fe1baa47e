"""Which nodes are revoked, the newest certificate of each, and how long each was heard of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TEXTS = ("revoked_reason", "certificate_serial")
_MOMENTS = ("revoked_at_ms", "certificate_ends_at_ms", "heard_since_ms")


def upgrade() -> None:
    for name in _MOMENTS:
        op.add_column("nodes", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in _TEXTS:
        op.add_column("nodes", sa.Column(name, sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    for name in (*_MOMENTS, *_TEXTS):
        op.drop_column("nodes", name)
