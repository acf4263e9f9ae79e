"""The people of a judgement store: who they are, what they may do, and how they prove it.

Roles: ``admin`` may do everything, ``annotator`` judges, ``reader`` reads the admin pages and exports and judges
nothing. Programs judge under the roles ``simulated`` and ``import``. Every change of a person is in the audit trail.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
import urllib.parse
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from rlhf_pipeline.errors import LoginRefused, StoreError, UsageError
from rlhf_pipeline.store import passwords
from rlhf_pipeline.store.audit import log_event
from rlhf_pipeline.store.engine import now_ms
from rlhf_pipeline.store.logins import SESSION_SECONDS, Logins, User, end_sessions, person, sha256
from rlhf_pipeline.store.tables import invite, user

__all__ = ["NAME_LENGTH", "ROLES", "SESSION_SECONDS", "Invite", "People", "Person", "User", "clean_name", "site_origin"]

NAME_LENGTH = 80
ROLES = ("admin", "annotator", "reader")
"""What a person can be; programs are "simulated" and "import"."""


@dataclass(frozen=True, slots=True)
class Person:
    """A person or program as the list of people has them; times are UTC epoch milliseconds."""

    id: int
    name: str
    role: str
    state: str
    has_password: bool
    locale: str | None
    created_at: int
    last_seen_at: int | None


@dataclass(frozen=True, slots=True)
class Invite:
    """An invitation that is still good; of a person who is known already, or (None) of somebody new."""

    role: str
    expires_at: int
    user_id: int | None = None
    name: str | None = None


class People(Logins):
    """Who judges, reads and leads; with their sessions and API tokens."""

    def add(self, name: str, role: str = "annotator") -> int:
        """The id of the person with this name, who is added if new.

        Names are compared without regard to case and runs of blanks.

        Raises:
            StoreError: the name is empty, too long, or holds characters that cannot be seen, or it is known in another
                role: a person does not judge under the name of a program.
        """
        shown = clean_name(name)
        with self._database.write() as connection:
            known = connection.execute(select(user).where(user.c.name == shown.casefold())).one_or_none()
            if known is not None and known.role != role:
                raise StoreError(f"{shown} is taken: that name is known as {known.role}", advice="take another name")
            if known is not None:
                return int(known.id)
            return _add(connection, shown, role, None, now_ms())

    def find(self, name: str) -> Person | None:
        """The person of this name."""
        with self._database.read() as connection:
            row = connection.execute(select(user).where(user.c.name == _key(name))).one_or_none()
        return _person(row) if row is not None else None

    def list(self) -> list[Person]:
        """Everybody, programs included, by name."""
        with self._database.read() as connection:
            return [_person(row) for row in connection.execute(select(user).order_by(user.c.name))]

    # Invitations

    def invite(self, role: str, *, by: int | None = None, days: int = 7, now: int | None = None) -> str:
        """A secret token with which one person makes an account in this role, once.

        Raises:
            StoreError: there is no such role, or ``by`` is no admin.
        """
        _check_role(role)
        now = now_ms() if now is None else now
        with self._database.write() as connection:
            return _invite(connection, role, None, by, days, now)

    def invite_known(self, user_id: int, *, by: int | None = None, days: int = 7, now: int | None = None) -> str:
        """A secret token with which a person who is known already sets a password, once.

        It is for who judged under a name before there were accounts, and for who has forgotten the password: they keep
        their name, their role and what they judged.

        Raises:
            StoreError: this is a program, the person is blocked, or ``by`` is no admin.
        """
        now = now_ms() if now is None else now
        with self._database.write() as connection:
            known = person(connection, user_id)
            if known.role not in ROLES or known.state != "active":
                raise StoreError(f"{known.display_name} cannot be invited: {known.state} {known.role}")
            return _invite(connection, known.role, user_id, by, days, now)

    def invited(self, token: str, *, now: int | None = None) -> Invite | None:
        """What a token invites to; None where it is unknown, used or expired."""
        now = now_ms() if now is None else now
        with self._database.read() as connection:
            return _invited(connection, token, now)

    def accept_invite(self, token: str, name: str, password: str, *, now: int | None = None) -> User:
        """Make the account of somebody who was invited; who was known already keeps their name, whatever is given.

        Raises:
            LoginRefused: the token is unknown, used or expired.
            StoreError: the name is taken or cannot be shown, or the password is not a good one.
        """
        now = now_ms() if now is None else now
        with self._database.read() as connection:
            found = _invited(connection, token, now)
            if found is None:
                raise _no_invite()
        shown, kept = found.name or clean_name(name), passwords.hash_password(password)
        with self._database.write() as connection:
            found = _invited(connection, token, now)
            if found is None:
                raise _no_invite()
            if found.user_id is not None:
                id_ = found.user_id
                connection.execute(update(user).where(user.c.id == id_).values(password_hash=kept))
                end_sessions(connection, id_, now)  # whoever came in under this name before
            elif connection.execute(select(user.c.id).where(user.c.name == shown.casefold())).one_or_none():
                raise StoreError(f"{shown} is taken", advice="Take another name.")
            else:
                id_ = _add(connection, shown, found.role, kept, now)
            this = invite.c.token_sha256 == sha256(token)
            connection.execute(update(invite).where(this).values(used_by=id_, used_at=now))
            log_event(connection, now, id_, "accept invite", "user", id_, {"role": found.role})
        return User(id_, shown, found.role)

    # Passwords

    def check_password(self, name: str, password: str, *, ip: str = "", now: int | None = None) -> User:
        """The person whose name and password these are.

        Raises:
            LoginRefused: they are not, or the name or the address was tried too often.
        """
        now = now_ms() if now is None else now
        key = _key(name)
        with self._database.write() as connection:
            passwords.count_attempt(connection, key, ip, now)
            row = connection.execute(select(user).where(user.c.name == key)).one_or_none()
        # Outside of the transaction: hashing takes long on purpose, and others want to judge.
        right = passwords.verify(row.password_hash if row is not None else None, password)
        with self._database.write() as connection:
            if row is None or not right or person(connection, row.id).state != "active":
                detail = {"name": key[:NAME_LENGTH], "ip": ip[:60]}
                log_event(connection, now, int(row.id) if row else None, "refuse", "sign in", None, detail)
                refused = True
            else:
                passwords.forgive(connection, key, ip)
                refused = False
        if refused or row is None:
            raise LoginRefused("the name or the password is wrong")
        if passwords.is_outdated(row.password_hash):
            fresh = passwords.hash_password(password)
            with self._database.write() as connection:
                connection.execute(update(user).where(user.c.id == row.id).values(password_hash=fresh))
        return User(int(row.id), row.display_name, row.role, row.locale)

    def set_password(self, user_id: int, password: str, *, by: int | None = None, keep: str | None = None) -> None:
        """Give a person a new password and end their sessions, except that of the token ``keep``.

        Raises:
            StoreError: it is not a good password, or ``by`` is neither an admin nor this person.
        """
        kept = passwords.hash_password(password)
        now = now_ms()
        with self._database.write() as connection:
            if by != user_id:
                _check_admin(connection, by)
            if person(connection, user_id).role not in ROLES:
                raise StoreError("a program has no password")
            connection.execute(update(user).where(user.c.id == user_id).values(password_hash=kept))
            end_sessions(connection, user_id, now, keep=keep)
            log_event(connection, now, by, "set password", "user", user_id)

    # Rights

    def set_role(self, user_id: int, role: str, *, by: int | None = None) -> None:
        """Change what a person may do; they have to sign in again.

        Raises:
            StoreError: there is no such role, this is a program or the last admin, or ``by`` is no admin.
        """
        _check_role(role)
        self._change(user_id, {"role": role}, "set role", by, {"role": role})

    def block(self, user_id: int, *, by: int | None = None) -> None:
        """Let a person do nothing any more; their judgements stay, their sessions end.

        Raises:
            StoreError: this is the last admin, or ``by`` is no admin.
        """
        self._change(user_id, {"state": "blocked"}, "block", by)

    def unblock(self, user_id: int, *, by: int | None = None) -> None:
        """Let a blocked person in again.

        Raises:
            StoreError: ``by`` is no admin.
        """
        self._change(user_id, {"state": "active"}, "unblock", by)

    def set_locale(self, user_id: int, locale: str | None) -> None:
        """The language in which a person wants the pages; None for their browser's.

        Raises:
            StoreError: it is not the name of a language, such as ``fa`` or ``pt-BR``.
        """
        if locale is not None and not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}", locale):
            raise StoreError(f"{locale!r} names no language", advice="Use a language tag such as fa or pt-BR.")
        with self._database.write() as connection:
            connection.execute(update(user).where(user.c.id == user_id).values(locale=locale))

    def _change(
        self, user_id: int, values: dict[str, str], verb: str, by: int | None, detail: dict[str, str] | None = None
    ) -> None:
        now = now_ms()
        with self._database.write() as connection:
            _check_admin(connection, by)
            row = person(connection, user_id)
            if row.role not in ROLES and "role" in values:
                raise StoreError(f"{row.display_name} is a program: its role stays {row.role}")
            if all(row._mapping[key] == value for key, value in values.items()):
                return
            stays = {"role": row.role, "state": row.state, **values}
            if (row.role, row.state) == ("admin", "active") and (stays["role"], stays["state"]) != ("admin", "active"):
                admins = select(func.count()).select_from(user).where(user.c.role == "admin", user.c.state == "active")
                if connection.execute(admins).scalar_one() == 1:
                    raise StoreError(f"{row.display_name} is the last admin", advice="Make somebody else admin first.")
            connection.execute(update(user).where(user.c.id == user_id).values(**values))
            end_sessions(connection, user_id, now)
            log_event(connection, now, by, verb, "user", user_id, detail)


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


def _key(name: str) -> str:
    """The name under which a person is looked up; what cannot be a name finds nobody."""
    shown = " ".join(unicodedata.normalize("NFC", name[:1000]).split()).casefold()
    return "".join(c for c in shown if unicodedata.category(c) not in ("Cc", "Cs"))


def _add(connection: Connection, shown: str, role: str, password_hash: str | None, now: int) -> int:
    values = {"name": shown.casefold(), "display_name": shown, "role": role, "password_hash": password_hash}
    added = insert(user).values(created_at=now, **values).returning(user.c.id)
    id_ = int(connection.execute(added).scalar_one())
    log_event(connection, now, id_, "add", "user", id_, {"role": role})
    return id_


def _invite(connection: Connection, role: str, user_id: int | None, by: int | None, days: int, now: int) -> str:
    _check_admin(connection, by)
    token = secrets.token_urlsafe(32)
    values = {"token_sha256": sha256(token), "role": role, "user_id": user_id, "created_by": by}
    connection.execute(insert(invite).values(created_at=now, expires_at=now + days * 86_400_000, **values))
    log_event(connection, now, by, "invite", "user", user_id, {"role": role, "days": days})
    return token


def _invited(connection: Connection, token: str, now: int) -> Invite | None:
    good = (invite.c.token_sha256 == sha256(token)) & invite.c.used_at.is_(None) & (invite.c.expires_at >= now)
    known = user.c.role.label("known_role"), user.c.display_name, user.c.state
    query = select(invite, *known).outerjoin(user, user.c.id == invite.c.user_id).where(good)
    row = connection.execute(query).one_or_none()
    if row is None or row.state not in (None, "active"):
        return None
    return Invite(row.known_role or row.role, int(row.expires_at), row.user_id, row.display_name)


def _no_invite() -> LoginRefused:
    return LoginRefused("this invitation has been used, or its time is over", advice="Ask for a new one.")


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise StoreError(f"there is no role {role!r}", advice=f"Roles: {', '.join(ROLES)}")


def _check_admin(connection: Connection, by: int | None) -> None:
    """Nobody (None) is the command line, which only those reach who may change the store's file."""
    if by is None:
        return
    doer = person(connection, by)
    if doer.role != "admin" or doer.state != "active":
        raise StoreError(f"{doer.display_name} is {doer.role} and may not do that", advice="Ask an admin.")


def _person(row: Row[Any]) -> Person:
    return Person(
        id=int(row.id),
        name=row.display_name,
        role=row.role,
        state=row.state,
        has_password=row.password_hash is not None,
        locale=row.locale,
        created_at=int(row.created_at),
        last_seen_at=row.last_seen_at,
    )


def site_origin(address: str, *, where: str) -> str:
    """``https://host[:port]`` of the address of a site, given by the option ``where``.

    Raises:
        UsageError: it is no such address, or has a path.
    """
    try:
        parts = urllib.parse.urlsplit(address.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:  # a port that is none, a bracket that is not closed
        parts, host = urllib.parse.urlsplit(""), None
    whole = parts.scheme in ("http", "https") and host and not parts.username
    if not whole or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(
            f"{address!r} is not the address of a site", where=where, advice="write it like https://judge.example.org"
        )
    return f"{parts.scheme}://{parts.netloc}"
