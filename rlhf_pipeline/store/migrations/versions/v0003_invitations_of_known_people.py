"""An invitation may be for a person who is known already; that of a round, which limited nothing, is gone.

Revision ID: 0003
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, MetaData, String, Table

from rlhf_pipeline.store.migrations.versions import v0001_first as first

revision = "0003"
down_revision = "0002"

Key = first.Key


def upgrade() -> None:
    """Change the table of invitations; those that were made stay good."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_column("invite", "round_id")
        op.add_column("invite", Column("user_id", Key, ForeignKey("user.id"), nullable=True))
        return
    metadata = MetaData()
    for name in ("user", "round"):
        Table(name, metadata, Column("id", Key, primary_key=True))
    old = Table(
        "invite",
        metadata,
        Column("token_sha256", String(64), primary_key=True),
        Column("role", String(20), nullable=False),
        Column("round_id", Key, nullable=True),
        Column("created_by", Key, ForeignKey("user.id"), nullable=True),
        Column("created_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False),
        Column("used_by", Key, ForeignKey("user.id"), nullable=True),
        Column("used_at", BigInteger, nullable=True),
    )
    with op.batch_alter_table("invite", recreate="always", copy_from=old) as batch:
        batch.drop_column("round_id")
        batch.add_column(Column("user_id", Key, nullable=True))
        batch.create_foreign_key("invite_user_id_fkey", "user", ["user_id"], ["id"])
