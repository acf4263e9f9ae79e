"""Forms, rankings, gold, drafts; passwords, invites, throttled sign-in, API tokens.

Revision ID: 0002
"""

from __future__ import annotations

import random
from typing import Any

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
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    column,
    false,
    insert,
    select,
    table,
    text,
    update,
)

from rlhf_pipeline.store.migrations.versions import v0001_first as first

revision = "0002"
down_revision = "0001"

FIRST_FORM = "177357550e4d97c2"
FIRST_QUESTIONS = {
    "kind": "pair",
    "strength": False,
    "tie": True,
    "all_bad": False,
    "rules": [],
    "attributes": [],
    "correction": False,
    "comment": False,
    "flags": [],
}

CORRECTED = "judgement_corrected_id_fkey"

Texts = JSON(none_as_null=True)
Key = first.Key


def upgrade() -> None:
    """Add what is new; what was judged stays as it is."""
    connection: Connection = op.get_bind()
    _add_tables(connection)
    _add_columns()
    _extend_judgement(connection)
    _draw_lots(connection)


def _add_tables(connection: Connection) -> None:
    metadata = MetaData()
    for name in ("user", "round", "assignment"):
        Table(name, metadata, Column("id", Key, primary_key=True))
    new = [
        Table(
            "form",
            metadata,
            Column("digest", String(16), primary_key=True),
            Column("questions", JSON, nullable=False),
            Column("created_at", BigInteger, nullable=False),
        ),
        Table(
            "invite",
            metadata,
            Column("token_sha256", String(64), primary_key=True),
            Column("role", String(20), nullable=False),
            Column("round_id", Key, ForeignKey("round.id"), nullable=True),
            Column("created_by", Key, ForeignKey("user.id"), nullable=True),
            Column("created_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger, nullable=False),
            Column("used_by", Key, ForeignKey("user.id"), nullable=True),
            Column("used_at", BigInteger, nullable=True),
        ),
        Table(
            "login_throttle",
            metadata,
            Column("key", String(64), primary_key=True),
            Column("failures", Integer, nullable=False),
            Column("last_at", BigInteger, nullable=False),
            Column("locked_until", BigInteger, nullable=False),
        ),
        Table(
            "api_token",
            metadata,
            Column("id", Key, primary_key=True),
            Column("user_id", Key, ForeignKey("user.id"), nullable=False),
            Column("sha256", String(64), nullable=False, unique=True),
            Column("scope", String(20), nullable=False),
            Column("created_at", BigInteger, nullable=False),
            Column("revoked_at", BigInteger, nullable=True),
        ),
        Table(
            "draft",
            metadata,
            Column("assignment_id", Key, ForeignKey("assignment.id"), primary_key=True, autoincrement=False),
            Column("answer", JSON, nullable=False),
            Column("updated_at", BigInteger, nullable=False),
        ),
    ]
    metadata.create_all(connection, tables=new)
    connection.execute(insert(new[0]).values(digest=FIRST_FORM, questions=FIRST_QUESTIONS, created_at=0))


def _add_columns() -> None:
    columns: dict[str, list[Column[Any]]] = {
        "user": [
            Column("password_hash", String(200), nullable=True),
            Column("locale", String(20), nullable=True),
            Column("last_seen_at", BigInteger, nullable=True),
        ],
        "login_session": [
            Column("last_seen_at", BigInteger, nullable=True),
            Column("ip", String(60), nullable=False, server_default=""),
            Column("agent", String(200), nullable=False, server_default=""),
            Column("revoked_at", BigInteger, nullable=True),
        ],
        "round": [
            Column("form_digest", String(16), nullable=False, server_default=FIRST_FORM),
            Column("order_by", String(20), nullable=False, server_default="sequence"),
            Column("gold_rate", Float, nullable=False, server_default="0"),
            Column("gold_feedback", Boolean, nullable=False, server_default=false()),
            Column("repeat_rate", Float, nullable=False, server_default="0"),
            Column("training_tasks", Integer, nullable=False, server_default="0"),
            Column("edit_minutes", Integer, nullable=True),
        ],
        "task": [
            Column("lot", Float, nullable=False, server_default="0"),
            Column("gold", Texts, nullable=True),
        ],
        "assignment": [
            Column("form_digest", String(16), nullable=False, server_default=FIRST_FORM),
            Column("guideline_version", Integer, nullable=True),
        ],
    }
    for name, added in columns.items():
        for new in added:
            op.add_column(name, new)
    op.create_index(
        "task_to_lease_by_lot",
        "task",
        ["round_id", "lot"],
        sqlite_where=text("open_slots > 0"),
        postgresql_where=text("open_slots > 0"),
    )


def _extend_judgement(connection: Connection) -> None:
    """New columns and checks. SQLite cannot change a check: there the table is copied, row by row as it was."""
    added: list[Column[Any]] = [
        Column("strength", Integer, nullable=True),
        Column("ranking", Texts, nullable=True),
        Column("rules", Texts, nullable=True),
        Column("ratings", Texts, nullable=True),
        Column("flags", Texts, nullable=True),
        Column("comment", Texts, nullable=True),
        Column("corrected_id", Key, nullable=True),
        Column("correction", Texts, nullable=True),
        Column("form_digest", String(16), nullable=True),
        Column("guideline_version", Integer, nullable=True),
    ]
    checks = {
        "choice": "choice IN ('response', 'tie', 'all_bad', 'ranking', 'skip', 'withdrawn')",
        "response_given": "(choice = 'response') = (response_id IS NOT NULL)",
        "ranking_given": "(choice = 'ranking') = (ranking IS NOT NULL)",
    }
    if connection.dialect.name == "postgresql":
        for name in ("judgement_choice_check", "judgement_check"):
            op.drop_constraint(name, "judgement", type_="check")
        for new in added:
            op.add_column("judgement", new)
        for name, rule in checks.items():
            op.create_check_constraint(name, "judgement", text(rule))
        op.create_foreign_key(CORRECTED, "judgement", "response", ["corrected_id"], ["id"])
        return
    old = first.judgement.to_metadata(MetaData())
    old.constraints -= {one for one in old.constraints if isinstance(one, CheckConstraint)}
    named = tuple(CheckConstraint(rule, name=name) for name, rule in checks.items())
    with op.batch_alter_table("judgement", recreate="always", copy_from=old, table_args=named) as batch:
        for new in added:
            batch.add_column(new)
        batch.create_foreign_key(CORRECTED, "response", ["corrected_id"], ["id"])
    for statement in first._triggers("judgement", "sqlite"):
        op.execute(statement)


def _draw_lots(connection: Connection) -> None:
    """Each task that is there gets its lot, as a new task does."""
    tasks = table("task", column("id"), column("round_id"), column("digest"), column("lot"))
    rounds = table("round", column("id"), column("shuffle_seed"))
    rows = connection.execute(
        select(tasks.c.id, tasks.c.digest, rounds.c.shuffle_seed).join(rounds, rounds.c.id == tasks.c.round_id)
    ).all()
    if rows:
        connection.execute(
            update(tasks).where(tasks.c.id == bindparam("of")).values(lot=bindparam("drawn")),
            [{"of": row.id, "drawn": random.Random(f"{row.shuffle_seed}:{row.digest}").random()} for row in rows],
        )
