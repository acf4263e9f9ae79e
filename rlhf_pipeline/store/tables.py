"""The tables of the judgement store, the same on SQLite and PostgreSQL.

Times are UTC epoch milliseconds. Texts that a model or a person wrote are JSON columns: JSON escapes carry every
character, NUL and lone surrogates included, which a PostgreSQL ``text`` column refuses. What was judged is never
changed: triggers refuse UPDATE and DELETE on ``judgement`` and ``event``, and a revision is a new row that names the
row it ``supersedes_id``. The current judgement of an assignment is the one that no other row supersedes.

This is what :mod:`rlhf_pipeline.store.migrations` arrives at; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

from rlhf_pipeline.store.records import Form

APPEND_ONLY = ("judgement", "event")

metadata = MetaData()

FIRST_FORM = Form().digest
"""What was asked before forms were kept."""

# Texts of people; where there is none, SQL's NULL and not JSON's.
Texts = JSON(none_as_null=True)

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
    Column("state", String(20), nullable=False, server_default="active"),  # active, blocked
    Column("created_at", BigInteger, nullable=False),
    Column("password_hash", String(200), nullable=True),  # Argon2id; NULL: this person has no password
    Column("locale", String(20), nullable=True),
    Column("last_seen_at", BigInteger, nullable=True),
)

login_session = Table(
    "login_session",
    metadata,
    Column("id_sha256", String(64), primary_key=True),
    _reference("user_id", "user"),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=True),
    Column("ip", String(60), nullable=False, server_default=""),
    Column("agent", String(200), nullable=False, server_default=""),
    Column("revoked_at", BigInteger, nullable=True),
)

invite = Table(
    "invite",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("role", String(20), nullable=False),
    _reference("user_id", "user", nullable=True),  # of a person who is known already; NULL: of somebody new
    _reference("created_by", "user", nullable=True),  # NULL: the command line
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    _reference("used_by", "user", nullable=True),
    Column("used_at", BigInteger, nullable=True),
)

login_throttle = Table(
    "login_throttle",
    metadata,
    Column("key", String(64), primary_key=True),  # sha256 of "name:…" or "ip:…"
    Column("failures", Integer, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("locked_until", BigInteger, nullable=False),
)

api_token = Table(
    "api_token",
    metadata,
    Column("id", Key, primary_key=True),
    _reference("user_id", "user"),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scope", String(20), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=True),
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

form = Table(
    "form",
    metadata,
    Column("digest", String(16), primary_key=True),
    Column("questions", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
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
    Column("form_digest", String(16), nullable=False, server_default=FIRST_FORM),
    Column("order_by", String(20), nullable=False, server_default="sequence"),
    Column("gold_rate", Float, nullable=False, server_default="0"),
    Column("gold_feedback", Boolean, nullable=False, server_default=false()),
    Column("repeat_rate", Float, nullable=False, server_default="0"),
    Column("training_tasks", Integer, nullable=False, server_default="0"),
    Column("edit_minutes", Integer, nullable=True),  # NULL: for ever
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
    Column("lot", Float, nullable=False, server_default="0"),  # from 0 up to 1, drawn once
    Column("gold", Texts, nullable=True),  # the right answer, where it is known
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

Index(
    "task_to_lease_by_lot",
    task.c.round_id,
    task.c.lot,
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
    Column("form_digest", String(16), nullable=False, server_default=FIRST_FORM),
    Column("guideline_version", Integer, nullable=True),
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

draft = Table(
    "draft",
    metadata,
    Column("assignment_id", Key, ForeignKey("assignment.id"), primary_key=True, autoincrement=False),
    Column("answer", JSON, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
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
    Column("strength", Integer, nullable=True),
    Column("ranking", Texts, nullable=True),  # [[response id, …], …], best first
    Column("rules", Texts, nullable=True),  # {response id: [broken rule, …]}
    Column("ratings", Texts, nullable=True),  # {response id: {attribute: points}}
    Column("flags", Texts, nullable=True),
    Column("comment", Texts, nullable=True),
    _reference("corrected_id", "response", nullable=True),
    Column("correction", Texts, nullable=True),
    Column("form_digest", String(16), nullable=True),
    Column("guideline_version", Integer, nullable=True),
    UniqueConstraint("assignment_id", "revision"),
    CheckConstraint("choice IN ('response', 'tie', 'all_bad', 'ranking', 'skip', 'withdrawn')", name="choice"),
    CheckConstraint("(choice = 'response') = (response_id IS NOT NULL)", name="response_given"),
    CheckConstraint("(choice = 'ranking') = (ranking IS NOT NULL)", name="ranking_given"),
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
