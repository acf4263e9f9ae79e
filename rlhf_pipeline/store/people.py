"""The people of a judgement store and the browser sessions in which they are known."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.engine import Database, now_ms
from rlhf_pipeline.store.tables import event, login_session, user

NAME_LENGTH = 80
SESSION_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class User:
    """A person, or a program that judges like one."""

    id: int
    name: str
    role: str


class People:
    """Who judges: people by name, and their sessions by token (of which only the hash is kept)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, role: str = "annotator") -> int:
        """The id of the person with this name, who is added if new.

        Names are compared without regard to case and runs of blanks.

        Raises:
            StoreError: the name is empty, too long, or holds characters that cannot be seen, or it is known in another
                role: a person does not judge under the name of a program.
        """
        shown = clean_name(name)
        key = shown.casefold()
        with self._database.write() as connection:
            known = connection.execute(select(user.c.id, user.c.role).where(user.c.name == key)).one_or_none()
            if known is not None and known.role != role:
                raise StoreError(f"{shown} is taken: that name is known as {known.role}", advice="take another name")
            if known is not None:
                return int(known.id)
            now = now_ms()
            added = connection.execute(
                insert(user).values(name=key, display_name=shown, role=role, created_at=now).returning(user.c.id)
            ).scalar_one()
            connection.execute(
                insert(event).values(
                    at=now, user_id=added, verb="add", object="user", object_id=added, detail={"role": role}
                )
            )
            return int(added)

    def start_session(self, user_id: int, *, now: int | None = None) -> str:
        """A fresh secret token that names this person for :data:`SESSION_SECONDS`."""
        now = now_ms() if now is None else now
        token = secrets.token_urlsafe(32)
        with self._database.write() as connection:
            connection.execute(delete(login_session).where(login_session.c.expires_at < now))
            connection.execute(
                insert(login_session).values(
                    id_sha256=_sha256(token), user_id=user_id, created_at=now, expires_at=now + SESSION_SECONDS * 1000
                )
            )
        return token

    def of_session(self, token: str, *, now: int | None = None) -> User | None:
        """Whom a token names; None where it is unknown or has expired."""
        now = now_ms() if now is None else now
        query = (
            select(user.c.id, user.c.display_name, user.c.role)
            .join(login_session, login_session.c.user_id == user.c.id)
            .where(login_session.c.id_sha256 == _sha256(token), login_session.c.expires_at >= now)
            .where(user.c.state == "active")
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return User(int(row[0]), row[1], row[2]) if row else None

    def end_session(self, token: str) -> None:
        """Forget a token."""
        with self._database.write() as connection:
            connection.execute(delete(login_session).where(login_session.c.id_sha256 == _sha256(token)))


def clean_name(name: str) -> str:
    """A name as it is shown: NFC, single blanks.

    Raises:
        StoreError: the name is empty, too long, or holds characters that cannot be seen.
    """
    shown = " ".join(unicodedata.normalize("NFC", name).split())
    if not shown:
        raise StoreError("a name is needed", advice="Type the name under which your judgements are kept.")
    if len(shown) > NAME_LENGTH:
        raise StoreError(f"the name has {len(shown)} characters, at most {NAME_LENGTH} are kept")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") and c != "\u200c" for c in shown):
        raise StoreError("the name holds a character that cannot be seen", advice="Type it without control characters.")
    return shown


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
