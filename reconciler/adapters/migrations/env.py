"""Alembic's entry: migrates over the connection, and in the transaction, of the store."""

from __future__ import annotations

from alembic import context

from reconciler.adapters.store_schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, compare_type=True
)
context.run_migrations()
