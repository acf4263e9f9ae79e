"""By what a person is known: browser sessions and API tokens. Of every token only the sha256 is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.audit import log_event
from rlhf_pipeline.store.engine import Database, now_ms
from rlhf_pipeline.store.tables import api_token, login_session, user
from rlhf_pipeline.store.tasks import chunks

SESSION_SECONDS = 30 * 24 * 3600
SEEN_SECONDS = 300
"""How exact the time is at which a person was last seen: each change is a write."""

SCOPES = {"judge": ("admin", "annotator"), "read": ("admin", "reader"), "admin": ("admin",)}
"""What an API token is good for → the roles that may have one."""


@dataclass(frozen=True, slots=True)
class User:
    """A person, or a program that judges like one; ``scope`` where they are known by an API token."""

    id: int
    name: str
    role: str
    locale: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A browser in which a person is known; the id is not the secret."""

    id: str
    user_id: int
    created_at: int
    expires_at: int
    last_seen_at: int
    ip: str
    agent: str


@dataclass(frozen=True, slots=True)
class ApiToken:
    """An API token that is good; the id is not the secret."""

    id: int
    user_id: int
    scope: str
    created_at: int


def sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def person(connection: Connection, user_id: int) -> Row[Any]:
    """The row of a person.

    Raises:
        StoreError: there is none.
    """
    row = connection.execute(select(user).where(user.c.id == user_id)).one_or_none()
    if row is None:
        raise StoreError(f"there is no person {user_id}")
    return row


def end_sessions(connection: Connection, user_id: int, now: int, *, keep: str | None = None) -> int:
    """Revoke a person's sessions, except the one of the token ``keep``; returns how many."""
    ours = (login_session.c.user_id == user_id) & login_session.c.revoked_at.is_(None)
    if keep is not None:
        ours &= login_session.c.id_sha256 != sha256(keep)
    return connection.execute(update(login_session).where(ours).values(revoked_at=now)).rowcount


_OF_SESSIONS = (
    select(user, login_session.c.id_sha256, login_session.c.last_seen_at.label("seen"))
    .join(login_session, login_session.c.user_id == user.c.id)
    .where(login_session.c.id_sha256.in_(bindparam("hashes", expanding=True)))
    .where(login_session.c.expires_at >= bindparam("now"))
    .where(login_session.c.revoked_at.is_(None), user.c.state == "active")
)


class Logins:
    """Sessions and API tokens of people."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start_session(self, user_id: int, *, ip: str = "", agent: str = "", now: int | None = None) -> str:
        """A fresh secret token that names this person for :data:`SESSION_SECONDS`."""
        now = now_ms() if now is None else now
        token = secrets.token_urlsafe(32)
        agent = agent.encode("ascii", "replace").decode()[:200]
        with self._database.write() as connection:
            connection.execute(delete(login_session).where(login_session.c.expires_at < now))
            connection.execute(
                insert(login_session).values(
                    id_sha256=sha256(token),
                    user_id=user_id,
                    created_at=now,
                    expires_at=now + SESSION_SECONDS * 1000,
                    last_seen_at=now,
                    ip=ip[:60],
                    agent=agent,
                )
            )
            connection.execute(update(user).where(user.c.id == user_id).values(last_seen_at=now))
            log_event(connection, now, user_id, "sign in", "session", None, {"ip": ip[:60]})
        return token

    def of_session(self, token: str, *, now: int | None = None) -> User | None:
        """Whom a token names; None where it is unknown, expired or revoked, or the person is blocked."""
        return self.of_sessions([token], now=now).get(token)

    def of_sessions(
        self, tokens: Collection[str], *, with_password: bool = False, now: int | None = None
    ) -> dict[str, User]:
        """Whom each of these tokens names, as :meth:`of_session`; all of them are seen now.

        Args:
            with_password: leave out the sessions of people who have no password.
        """
        now = now_ms() if now is None else now
        by_hash = {sha256(token): token for token in tokens}
        with self._database.read() as connection:
            rows = [
                row
                for part in chunks(list(by_hash))
                for row in connection.execute(_OF_SESSIONS, {"hashes": part, "now": now})
                if row.password_hash is not None or not with_password
            ]
        unseen = [row for row in rows if now - (row.seen or 0) > SEEN_SECONDS * 1000]
        if unseen:
            with self._database.write() as connection:
                for part in chunks(unseen):
                    these_sessions = login_session.c.id_sha256.in_([row.id_sha256 for row in part])
                    connection.execute(update(login_session).where(these_sessions).values(last_seen_at=now))
                    these_people = user.c.id.in_([row.id for row in part])
                    connection.execute(update(user).where(these_people).values(last_seen_at=now))
        return {by_hash[row.id_sha256]: User(int(row.id), row.display_name, row.role, row.locale) for row in rows}

    def end_session(self, token: str, *, now: int | None = None) -> None:
        """Sign out: the token names nobody any more."""
        self.revoke_session(sha256(token), verb="sign out", now=now)

    def sessions(self, user_id: int, *, now: int | None = None) -> list[Session]:
        """A person's sessions that are good, newest first."""
        now = now_ms() if now is None else now
        query = (
            select(login_session)
            .where(login_session.c.user_id == user_id, login_session.c.expires_at >= now)
            .where(login_session.c.revoked_at.is_(None))
            .order_by(login_session.c.created_at.desc(), login_session.c.id_sha256)
        )
        with self._database.read() as connection:
            return [
                Session(
                    id=row.id_sha256,
                    user_id=int(row.user_id),
                    created_at=int(row.created_at),
                    expires_at=int(row.expires_at),
                    last_seen_at=int(row.last_seen_at or row.created_at),
                    ip=row.ip,
                    agent=row.agent,
                )
                for row in connection.execute(query)
            ]

    def revoke_session(
        self, session_id: str, *, by: int | None = None, verb: str = "revoke", now: int | None = None
    ) -> bool:
        """End a session by its id; whether there was one."""
        now = now_ms() if now is None else now
        with self._database.write() as connection:
            good = (login_session.c.id_sha256 == session_id) & login_session.c.revoked_at.is_(None)
            owner = connection.execute(select(login_session.c.user_id).where(good)).scalar_one_or_none()
            if owner is None:
                return False
            connection.execute(update(login_session).where(good).values(revoked_at=now))
            doer = int(owner) if verb == "sign out" else by
            log_event(connection, now, doer, verb, "session", None, {"of": int(owner), "session": session_id[:12]})
            return True

    def revoke_sessions(self, user_id: int, *, by: int | None = None, keep: str | None = None) -> int:
        """End a person's sessions (except that of the token ``keep``); returns how many."""
        now = now_ms()
        with self._database.write() as connection:
            ended = end_sessions(connection, user_id, now, keep=keep)
            log_event(connection, now, by, "revoke", "session", None, {"of": user_id, "sessions": ended})
            return ended

    def make_api_token(self, user_id: int, scope: str, *, by: int | None = None) -> str:
        """A fresh secret token with which programs act for this person: "judge", "read" or "admin".

        Raises:
            StoreError: there is no such scope, or the person's role may not have it.
        """
        if scope not in SCOPES:
            raise StoreError(f"there is no scope {scope!r}", advice=f"Scopes: {', '.join(SCOPES)}")
        token = f"rlhf_{secrets.token_urlsafe(32)}"
        now = now_ms()
        with self._database.write() as connection:
            owner = person(connection, user_id)
            if owner.role not in SCOPES[scope]:
                good = [name for name, roles in SCOPES.items() if owner.role in roles]
                raise StoreError(
                    f"{owner.display_name} is {owner.role} and may not have a token for {scope!r}",
                    advice=f"That takes the role {' or '.join(SCOPES[scope])}; theirs may have {' or '.join(good)}.",
                )
            values = {"user_id": user_id, "sha256": sha256(token), "scope": scope, "created_at": now}
            added = connection.execute(insert(api_token).values(values).returning(api_token.c.id)).scalar_one()
            log_event(connection, now, by, "add", "api token", int(added), {"of": user_id, "scope": scope})
        return token

    def of_api_token(self, token: str) -> User | None:
        """Whom an API token names; None where it is unknown or revoked, or the person is blocked or lost the right."""
        query = (
            select(user, api_token.c.scope)
            .join(api_token, api_token.c.user_id == user.c.id)
            .where(api_token.c.sha256 == sha256(token), api_token.c.revoked_at.is_(None), user.c.state == "active")
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.role not in SCOPES[row.scope]:
            return None
        return User(int(row.id), row.display_name, row.role, row.locale, row.scope)

    def api_tokens(self, user_id: int) -> list[ApiToken]:
        """A person's API tokens that are not revoked, oldest first."""
        query = select(api_token).where(api_token.c.user_id == user_id, api_token.c.revoked_at.is_(None))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(api_token.c.id)).all()
        return [ApiToken(int(row.id), int(row.user_id), row.scope, int(row.created_at)) for row in rows]

    def revoke_api_token(self, token_id: int, *, by: int | None = None) -> bool:
        """End an API token by its id; whether there was one."""
        now = now_ms()
        good = (api_token.c.id == token_id) & api_token.c.revoked_at.is_(None)
        with self._database.write() as connection:
            ended = connection.execute(update(api_token).where(good).values(revoked_at=now)).rowcount
            if ended:
                log_event(connection, now, by, "revoke", "api token", token_id)
            return bool(ended)
