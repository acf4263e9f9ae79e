"""Passwords: what is a good one, how it is kept (Argon2id), and how often one may be tried.

An attempt is counted before the password is looked at and forgiven when it was right, so that many attempts at once
gain nothing. From the fifth failure of a name, and the twentieth of an address, the wait doubles with each.
"""

from __future__ import annotations

import hashlib
import ipaddress
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, delete, insert, select, update

from rlhf_pipeline.errors import LoginRefused, StoreError
from rlhf_pipeline.store.tables import login_throttle

SHORTEST, LONGEST = 10, 200
FREE_BY_NAME, FREE_BY_ADDRESS = 5, 20
FIRST_WAIT_S, LONGEST_WAIT_S = 30, 15 * 60
FORGET_S = 60 * 60
"""Failures older than this are forgotten."""

hasher = PasswordHasher()
_of_nobody: dict[int, str] = {}


def hash_password(password: str) -> str:
    """The Argon2id hash of a password, as it is kept.

    Raises:
        StoreError: the password is too short, too long or too simple.
    """
    password = unicodedata.normalize("NFKC", password)
    if not SHORTEST <= len(password) <= LONGEST:
        raise StoreError(
            f"the password has {len(password)} characters; wanted: {SHORTEST} to {LONGEST}",
            advice="Several words in a row are easy to keep in mind.",
        )
    if len(set(password.casefold())) < 5:
        raise StoreError("the password is too simple", advice="Use at least five different characters.")
    return hasher.hash(password.encode("utf-8", "surrogatepass"))


def verify(kept: str | None, password: str) -> bool:
    """Whether this is the password; it takes as long where none is kept."""
    if id(hasher) not in _of_nobody:
        _of_nobody[id(hasher)] = hasher.hash(b"nobody has this password")
    given = unicodedata.normalize("NFKC", password[: LONGEST + 1]).encode("utf-8", "surrogatepass")
    try:
        return hasher.verify(kept or _of_nobody[id(hasher)], given) and kept is not None
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(kept: str) -> bool:
    """Whether the hash was made with other costs than are used now."""
    return hasher.check_needs_rehash(kept)


def count_attempt(connection: Connection, name: str, address: str, now: int) -> None:
    """Count an attempt against the name and the address.

    Raises:
        LoginRefused: there were too many; it says how long to wait.
    """
    keys = _keys(name, address)
    rows = {row.key: row for row in connection.execute(select(login_throttle).where(login_throttle.c.key.in_(keys)))}
    wait = max((row.locked_until - now for row in rows.values()), default=0)
    if wait > 0:
        seconds = -(-wait // 1000)
        raise LoginRefused(
            f"too many attempts: try again in {seconds} seconds"
            if seconds < 120
            else f"too many attempts: try again in {-(-seconds // 60)} minutes",
            wait_seconds=seconds,
        )
    connection.execute(delete(login_throttle).where(login_throttle.c.last_at < now - FORGET_S * 1000))
    for key, free in keys.items():
        row = rows.get(key)
        failures = row.failures + 1 if row is not None and row.last_at >= now - FORGET_S * 1000 else 1
        seconds = min(FIRST_WAIT_S * 2 ** min(failures - free, 20), LONGEST_WAIT_S) if failures >= free else 0
        values = {"failures": failures, "last_at": now, "locked_until": now + seconds * 1000}
        connection.execute(delete(login_throttle).where(login_throttle.c.key == key))
        connection.execute(insert(login_throttle).values(key=key, **values))


def forgive(connection: Connection, name: str, address: str) -> None:
    """The attempt was right: the name begins anew, the address is rid of this one."""
    by_name, *by_address = _keys(name, address)
    connection.execute(delete(login_throttle).where(login_throttle.c.key == by_name))
    for key in by_address:
        connection.execute(
            update(login_throttle)
            .where(login_throttle.c.key == key)
            .values(failures=login_throttle.c.failures - 1, locked_until=0)
        )


def _keys(name: str, address: str) -> dict[str, int]:
    """Hashed keys, so that the table says nothing about who tried; an IPv6 network is one address."""
    keys = {f"name:{name}": FREE_BY_NAME}
    if address:
        try:
            ip = ipaddress.ip_address(address)
            network = ipaddress.ip_network((ip, 64), strict=False) if ip.version == 6 else ip
            keys[f"ip:{network}"] = FREE_BY_ADDRESS
        except ValueError:
            keys[f"ip:{address}"] = FREE_BY_ADDRESS
    return {hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(): free for key, free in keys.items()}
