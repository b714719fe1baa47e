"""Brings the tables of a store up to date with alembic. Imported only when that is needed.

Rules: on the connection, and in the transaction, of the caller, who holds the lock. Never down.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from reconciler.errors import Refused

_MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(connection: Connection, where: str) -> None:
    """Raises Refused for a store that a newer version has migrated."""
    config = _config()
    script = ScriptDirectory.from_config(config)
    found = set(MigrationContext.configure(connection).get_current_heads())
    known = {migration.revision for migration in script.walk_revisions()}
    if found - known:
        raise Refused(
            "store_newer",
            f"the store has schema {', '.join(sorted(found))}, this version knows "
            f"{max(known)} and older",
            where=where,
            hint="run the gpuaas version that last wrote it, or a later one",
        )
    if found != set(script.get_heads()):
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def newest() -> str:
    """The revision that the last migration leads to; `store_schema.REVISION` says the same."""
    (head,) = ScriptDirectory.from_config(_config()).get_heads()
    return str(head)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
