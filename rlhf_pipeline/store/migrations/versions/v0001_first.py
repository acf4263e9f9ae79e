"""The tables of version 1. Never changed again: stores that exist were made by them.

Revision ID: 0001
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

revision = "0001"
down_revision = None

APPEND_ONLY = ("judgement", "event")

metadata = MetaData()

# SQLite numbers rows by itself only where the key is exactly INTEGER.
Key = BigInteger().with_variant(Integer(), "sqlite")


def _reference(name: str, target: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Key, ForeignKey(f"{target}.id"), nullable=nullable)


schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_at", BigInteger, nullable=False),
)

user = Table(
    "user",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),  # case-folded
    Column("display_name", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("state", String(20), nullable=False, server_default="active"),
    Column("created_at", BigInteger, nullable=False),
)

login_session = Table(
    "login_session",
    metadata,
    Column("id_sha256", String(64), primary_key=True),
    _reference("user_id", "user"),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

prompt = Table(
    "prompt",
    metadata,
    Column("id", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("messages", JSON, nullable=False),
)

response = Table(
    "response",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("prompt_id", "prompt"),
    Column("digest", String(64), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("sampler_digest", String(64), nullable=False),  # the artifact that wrote it; "" where unknown
    Column("finish", String(10), nullable=True),  # eos, length, or NULL where unknown
    UniqueConstraint("prompt_id", "digest", "sampler_digest"),
)

round_ = Table(
    "round",
    metadata,
    Column("id", Key, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("source_digest", String(64), nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("lease_s", Integer, nullable=False),
    Column("shuffle_seed", BigInteger, nullable=False),
    Column("state", String(20), nullable=False, server_default="open"),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name", "source_digest"),
    CheckConstraint("overlap >= 1"),
)

guideline = Table(
    "guideline",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("round_id", "round"),
    Column("version", Integer, nullable=False),
    Column("markdown", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("round_id", "version"),
)

task = Table(
    "task",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("round_id", "round"),
    _reference("prompt_id", "prompt"),
    Column("digest", String(64), nullable=False),
    Column("priority", Float, nullable=False, server_default="0"),
    Column("needed", Integer, nullable=False),
    Column("open_slots", Integer, nullable=False),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("state", String(20), nullable=False, server_default="open"),  # open, retired
    Column("meta", JSON, nullable=False),
    UniqueConstraint("round_id", "digest"),
    CheckConstraint("open_slots >= 0"),
    CheckConstraint("state IN ('open', 'retired')"),
)
Index(
    "task_to_lease",
    task.c.round_id,
    task.c.priority.desc(),
    task.c.id,
    sqlite_where=task.c.open_slots > 0,
    postgresql_where=task.c.open_slots > 0,
)

task_response = Table(
    "task_response",
    metadata,
    Column("task_id", Key, ForeignKey("task.id"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # canonical, not the order shown
    _reference("response_id", "response"),
    UniqueConstraint("task_id", "response_id"),
)

assignment = Table(
    "assignment",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("task_id", "task"),
    _reference("user_id", "user"),
    Column("purpose", String(20), nullable=False, server_default="judge"),
    Column("shown_order", String(100), nullable=False),  # JSON: canonical positions from left to right
    Column("state", String(20), nullable=False),
    Column("leased_at", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    # One row for a task, a person and a purpose: a lease that expired is taken up again in its own row.
    UniqueConstraint("task_id", "user_id", "purpose"),
    CheckConstraint("state IN ('leased', 'done', 'skipped', 'expired')"),
)
Index("assignment_of_user", assignment.c.user_id, assignment.c.state)
Index(
    "assignment_to_expire",
    assignment.c.lease_until,
    sqlite_where=assignment.c.state == "leased",
    postgresql_where=assignment.c.state == "leased",
)

judgement = Table(
    "judgement",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("assignment_id", "assignment"),
    _reference("task_id", "task"),
    _reference("user_id", "user"),
    Column("revision", Integer, nullable=False),
    Column("supersedes_id", Key, ForeignKey("judgement.id"), nullable=True, unique=True),
    Column("client_token", String(100), nullable=False, unique=True),
    Column("choice", String(20), nullable=False),
    _reference("response_id", "response", nullable=True),  # the better one, where choice is "response"
    Column("probability", Float, nullable=True),  # how sure the judge is of the choice, 0.5 to 1; NULL: not said
    Column("margin", Float, nullable=True),
    Column("shown_at", BigInteger, nullable=True),  # browser's clock
    Column("decided_at", BigInteger, nullable=True),  # browser's clock
    Column("received_at", BigInteger, nullable=False),  # server's clock
    Column("active_ms", BigInteger, nullable=True),
    Column("wall_ms", BigInteger, nullable=True),
    Column("keys_used", Boolean, nullable=True),
    Column("late", Boolean, nullable=False),
    Column("app_version", String(40), nullable=False),
    UniqueConstraint("assignment_id", "revision"),
    CheckConstraint("choice IN ('response', 'tie', 'all_bad', 'skip', 'withdrawn')"),
    CheckConstraint("(choice = 'response') = (response_id IS NOT NULL)"),
)
Index("judgement_of_task", judgement.c.task_id)
Index("judgement_of_user", judgement.c.user_id)

event = Table(
    "event",
    metadata,
    Column("id", Key, primary_key=True),
    Column("at", BigInteger, nullable=False),
    _reference("user_id", "user", nullable=True),
    Column("verb", String(40), nullable=False),
    Column("object", String(40), nullable=False),
    Column("object_id", Key, nullable=True),
    Column("detail", JSON, nullable=False),
)


def upgrade() -> None:
    """Create every table and trigger in an empty database."""
    connection: Connection = op.get_bind()
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
            )
        )
    for table in APPEND_ONLY:
        for statement in _triggers(table, connection.dialect.name):
            connection.execute(text(statement))


def _triggers(table: str, dialect: str) -> list[str]:
    if dialect == "postgresql":
        return [
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        ]
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]
