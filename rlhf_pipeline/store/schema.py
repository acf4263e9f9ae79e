"""The version of a store: a new database gets the tables, an earlier store is brought up to date where it stands.

All steps run in one writing transaction: another process waits and then finds nothing left to do, and a program that is
killed in the middle leaves the store as it was.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, inspect, select, text

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.tables import metadata, schema_version

SCHEMA_VERSION = 3
"""The version that this program needs: the number of the last step in ``migrations/versions``."""

_one_at_a_time = threading.Lock()  # Alembic keeps the running step in a global


def version_of(connection: Connection, where: str) -> int | None:
    """The version of the store in this database; None where the database is empty.

    Raises:
        StoreError: it holds something else, or a store that this program cannot use.
    """
    present = set(inspect(connection).get_table_names())
    if not present & set(metadata.tables):
        if not present:
            return None
        raise StoreError(
            f"this database holds other tables ({', '.join(sorted(present)[:3])} …) and no judgements",
            where=where,
            advice="Name an empty database, or a file that does not exist yet.",
        )
    version = connection.execute(select(schema_version.c.version)).scalar() if "schema_version" in present else None
    if version is not None and version > SCHEMA_VERSION:
        raise StoreError(
            f"the store has schema version {version}, this program knows versions up to {SCHEMA_VERSION}",
            where=where,
            advice="A newer rlhf-pipeline made it: upgrade with `pip install --upgrade rlhf-pipeline`.",
        )
    if version is None or version < 1:
        raise StoreError(
            f"the store has schema version {version}, this program needs {SCHEMA_VERSION} or one before it",
            where=where,
            advice="Restore the file from a copy, or name another store.",
        )
    return int(version)


def migrate(connection: Connection, version: int | None, now: int) -> None:
    """Bring a store of this version (None: an empty database) to :data:`SCHEMA_VERSION`, in the running transaction."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    target = f"{SCHEMA_VERSION:04d}"

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return scripts._upgrade_revs(target, revision)

    context = MigrationContext.configure(connection, opts={"fn": steps, "script": scripts})
    with _one_at_a_time, Operations.context(context):
        if version is not None and not context.get_current_heads():
            context.stamp(scripts, f"{version:04d}")  # made before Alembic kept count
        context.run_migrations()
    if connection.dialect.name == "sqlite":
        broken = connection.execute(text("PRAGMA foreign_key_check")).all()
        assert not broken, f"references that lead nowhere: {broken[:3]}"
    connection.execute(schema_version.delete())  # one row: programs of earlier versions read the first
    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION, applied_at=now))
